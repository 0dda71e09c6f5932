"""The surface of a trained field as a mesh in the unit sphere's frame: culled and open, or cut and closed."""

import logging
from collections.abc import Callable

import torch
import trimesh
from torch import Tensor

from confs.schema import Config
from systems.ground_cut import Plane, Seen, ground_plane, look, lowest_seen
from systems.placement import up_in_sphere
from systems.solid import Cached, Field, ViewCut, intersected, repaired
from utils.errors import UserError
from utils.marching_cubes import extract
from utils.mesh import cull_by_masks, cull_unseen, keep_components
from utils.rays import Scene

log = logging.getLogger("neus")
DRAFT = 128  # cells along the longest side of the mesh that planes are looked for in


class Surface:
    """Extracts the mesh of a system as `export` says."""

    def __init__(self, system, scene: Scene, cfg: Config, device: torch.device, progress: float = 1.0):
        self.system, self.scene, self.cfg, self.device = system, scene, cfg, device
        self.field: Callable[[Tensor], Tensor] = system.surface(progress)
        masks = scene.masks is not None and cfg.dataset.apply_mask and cfg.export.mask_dilation >= 0
        self.masks = scene.masks if masks else None

    def sheet(self) -> tuple[trimesh.Trimesh, list[str]]:
        """(the mesh without the faces that are culled, which may be open there; what was done, for the log)."""
        mesh = self._extract(self.field)
        found = len(mesh.faces)
        mesh, how = self._culled(mesh)
        if self.cfg.export.cut_ground:
            plane = self._ground(look(mesh, self.scene, self.device))
            part = None if plane is None else plane.cut(mesh)
            if plane is not None and part is not None and len(part.faces):
                mesh = part
                how.append(plane.words)
        mesh, dropped = self._largest(mesh)
        return mesh, [f"of {found} extracted", *how, dropped]

    def solid(self) -> tuple[trimesh.Trimesh, list[str]]:
        """(a closed mesh; what was done): what `sheet` culls is cut out of the field, so that it is capped."""
        e, how = self.cfg.export, ["closed"]
        cuts: list[Field] = []
        if self.masks is not None or e.min_views > 0:
            dilation = round(max(e.mask_dilation, 0) * self.scene.cameras.width)
            views = ViewCut(self.scene.cameras, self.masks, dilation, e.min_views, self.scene.train, self.device)
            cuts.append(Cached(views, self.cfg.model.radius, e.coarse, self.device))
            how.append("cut outside the masks and the photographs" if self.masks is not None else "cut outside the photographs")
        try:
            draft = self._draft(cuts)
        except UserError:
            if not cuts:
                raise
            log.warning("nothing of the surface lies inside the masks and in %d views: it is closed without them", e.min_views)
            cuts, how = [], ["closed"]
            draft = self._draft(cuts)
        plane = self._floor(look(draft, self.scene, self.device))
        if plane is not None:
            cuts.append(plane.outside)
            how.append(plane.words)
        mesh, dropped = self._largest(repaired(self._extract(intersected(self.field, cuts))))
        return mesh, [*how, dropped]

    def rough(self, resolution: int) -> trimesh.Trimesh:
        """`sheet` in this many cells along the longest side and with the ground, for a look at it. Raises UserError without a surface."""
        e = self.cfg.export
        mesh = extract(self.field, self.cfg.model.radius, resolution, min(e.coarse, resolution // 2), device=self.device)
        return self._largest(self._culled(mesh)[0])[0]

    def _extract(self, field: Field, resolution: int | None = None) -> trimesh.Trimesh:
        e = self.cfg.export
        try:
            return extract(field, self.cfg.model.radius, resolution or e.resolution, e.coarse, device=self.device, progress=True)
        except UserError as error:
            raise UserError(f"{error}; {self.system.diagnosis()}") from None

    def _draft(self, cuts: list[Field]) -> trimesh.Trimesh:
        mesh = self._extract(intersected(self.field, cuts), min(DRAFT, self.cfg.export.resolution))
        return keep_components(mesh, self.cfg.export.keep, 1)

    def _largest(self, mesh: trimesh.Trimesh) -> tuple[trimesh.Trimesh, str]:
        kept = keep_components(mesh, self.cfg.export.keep, self.cfg.export.min_faces)
        return kept, f"{len(mesh.faces) - len(kept.faces)} in smaller components"

    def _culled(self, mesh: trimesh.Trimesh) -> tuple[trimesh.Trimesh, list[str]]:
        """(the mesh in enough views and inside the masks, where anything is; what was culled)."""
        e, scene, how = self.cfg.export, self.scene, []
        kept = cull_unseen(mesh, scene.cameras, e.min_views, scene.train)
        if len(kept.faces) < len(mesh.faces):
            how.append(f"{len(mesh.faces) - len(kept.faces)} faces in fewer than {e.min_views} views culled")
        mesh = kept if len(kept.faces) else mesh
        if self.masks is not None:
            kept = cull_by_masks(mesh, scene.cameras, self.masks, e.mask_dilation, scene.train)
            how.append(f"{len(mesh.faces) - len(kept.faces)} outside the masks dilated by {e.mask_dilation:.1%} of the width")
            if not len(kept.faces):
                log.warning("every face of the mesh falls outside the masks: it is exported unculled")
            mesh = kept if len(kept.faces) else mesh
        return mesh, how

    def _ground(self, seen: Seen) -> Plane | None:
        """The plane of `export.cut_ground`; where there is none the log says so."""
        certain = self.cfg.export.cut_ground is True
        masked = self.masks is not None  # the mesh should not hold the ground then
        plane = ground_plane(seen, self.scene, up_in_sphere(self.scene, self.cfg), certain or not masked, certain or masked)
        if plane is None:
            say = log.warning if certain else log.info
            say("export.cut_ground: no plane under the object that the cameras look down on; nothing is cut")
        return plane

    def _floor(self, seen: Seen) -> Plane | None:
        """Where a solid ends below: at the ground where it is to be cut, else at the lowest level that was seen, else where it ends."""
        up = up_in_sphere(self.scene, self.cfg)
        plane = self._ground(seen) if self.cfg.export.cut_ground else None
        if plane is None and self.masks is not None:
            plane = ground_plane(seen, self.scene, up, False, True)
        return plane or lowest_seen(seen, up)
