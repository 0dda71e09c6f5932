"""Material and light on a fixed mesh, shaded by Monte Carlo (NeRO, Liu et al., SIGGRAPH 2023, section 3.3).

Directions are sampled by the cosine, by the GGX lobe and, beyond the paper, by the recovered light, weighted by the balance
heuristic. A direction that hits the mesh brings indirect light, any other distant light. All in linear light, sRGB at the end.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from confs.material import MonteCarloConfig
from confs.model import MaterialConfig
from encoder.encoding import Encoding
from models.brdf import specular_f0
from models.ggx_sampling import frames, pattern, sample_cosine, sample_ggx, shading_weights, to_local
from models.lights import EnvironmentMap, PhotographerLight, TextureLight
from models.method import Method, RenderContext, RenderOutput
from models.network import mlp, open_levels, output_layer
from models.raytrace import Hits, MeshTracer, interpolate, vertex_normals
from utils.colour import linear_to_srgb
from utils.rays import Rays, Render
from utils.schedule import Spec, ramp

LEAST_ROUGHNESS = 0.04


@dataclass(frozen=True)
class MaterialValues:
    """Materials of P points, each value in (0, 1)."""

    albedo: Tensor  # [P, 3] linear base colour
    roughness: Tensor  # [P] perceptual
    metallic: Tensor  # [P]

    @property
    def alpha(self) -> Tensor:
        """[P] width of the GGX lobe."""
        return self.roughness**2

    def stack(self) -> Tensor:
        """[P, 5]."""
        return torch.cat([self.albedo, self.roughness[:, None], self.metallic[:, None]], -1)


@dataclass(frozen=True)
class Surface:
    """P points of the mesh that rays hit."""

    points: Tensor  # [P, 3]
    normal: Tensor  # [P, 3] unit, interpolated, on the viewer's side of the face
    face_normal: Tensor  # [P, 3] unit, towards the viewer
    view: Tensor  # [P, 3] unit, towards the viewer
    ray: Tensor  # [P] int64, index of the ray


@dataclass(frozen=True)
class Counts:
    """Numbers of directions a point: by the cosine, by the GGX lobe, by the light."""

    cosine: int
    lobe: int
    light: int


@dataclass(frozen=True)
class Directions:
    """D directions at each of P points and their weights."""

    dirs: Tensor  # [P, D, 3]
    weights: Tensor  # [P, 3, D] see `BRDFWeights`; zero below the surface
    above: Tensor  # [Q] int64, indices of the P D directions that point out of the surface


@dataclass(frozen=True)
class ReflectedLight:
    """Linear light that leaves P points towards the viewer."""

    colour: Tensor  # [P, 3]
    diffuse_light: Tensor  # [P, 3] irradiance over pi
    occluded: Tensor  # [] share of the directions that hit the object


def _full_precision(method):
    """Without autocast: radiances exceed the range of float16."""

    @functools.wraps(method)
    def wrapped(*arguments, **options):
        with torch.autocast("cuda", enabled=False):
            return method(*arguments, **options)

    return wrapped


def sample_directions(
    surface: Surface, alpha: Tensor, counts: Counts, shift: Tensor, light: EnvironmentMap | None, turn: int = 0
) -> Directions:
    """Sample directions for the surface's points with GGX width alpha [P], which gets gradients through the weights.

    shift [P, 6] in [0, 1) and turn offset the three patterns; without a map of the light its share is sampled by the cosine.
    """
    if light is None:
        counts = Counts(counts.cosine + counts.light, counts.lobe, 0)
    frame = frames(surface.normal)
    view = to_local(frame, surface.view)
    with torch.no_grad():
        parts = [
            sample_cosine(pattern(counts.cosine, shift[:, :2], turn)),
            sample_ggx(pattern(counts.lobe, shift[:, 2:4], turn), view, alpha.detach()),
        ]
        if light is not None and counts.light:
            parts.append(light.sample(pattern(counts.light, shift[:, 4:], turn)) @ frame.transpose(1, 2))
        local = torch.cat(parts, 1)
        dirs = local @ frame
        others = counts.light * light.pdf(dirs) if light is not None and counts.light else None
    weights = shading_weights(local, view, alpha, counts.cosine, counts.lobe, others)
    return Directions(dirs, weights.stack(), torch.nonzero((local[..., 2] > 0).reshape(-1))[:, 0])


class MaterialField(nn.Module):
    """Points [P, 3] of the sphere -> `MaterialValues`: a feature network on encoded positions, and three heads."""

    def __init__(self, cfg: MonteCarloConfig, encoding: Encoding, radius: float):
        super().__init__()
        self.encoding, self.radius, hidden, layers = encoding, radius, cfg.hidden, cfg.layers
        self.feature = mlp(encoding.width + 3, hidden, layers, hidden)
        heads = [mlp(hidden + 3, hidden, 1, n) for n in (3, 1, 1)]
        self.heads = nn.ModuleList(heads)
        first = (cfg.albedo_init, (cfg.roughness_init - LEAST_ROUGHNESS) / (1 - LEAST_ROUGHNESS), cfg.metallic_init)
        for head, value in zip(heads, first):
            value = min(max(value, 1e-3), 1 - 1e-3)
            nn.init.constant_(output_layer(head).bias, torch.logit(torch.tensor(value)).item())
            nn.init.uniform_(output_layer(head).weight, -1e-2, 1e-2)

    def forward(self, points: Tensor, levels: float | None = None) -> MaterialValues:
        x = torch.cat([points, self.encoding(points / (2 * self.radius) + 0.5, levels)], -1)
        feature = torch.cat([torch.relu(self.feature(x)), points], -1)
        albedo, roughness, metallic = (torch.sigmoid(head(feature).float()) for head in self.heads)
        return MaterialValues(albedo, LEAST_ROUGHNESS + (1 - LEAST_ROUGHNESS) * roughness[:, 0], metallic[:, 0])


def reflect(material: MaterialValues, sums: Tensor) -> Tensor:
    """Radiance [P, 3] from the weighted sums of light [P, 3, 3] of `BRDFWeights.stack`."""
    metallic = material.metallic[:, None]
    return (1 - metallic) * material.albedo * sums[:, 0] + specular_f0(material.albedo, metallic) * sums[:, 1] + sums[:, 2]


class MaterialModel(Method):
    """The mesh, its material, and the light. `set_frame` must be called before rays are traced."""

    cfg: MaterialConfig
    vertices: Tensor
    faces: Tensor
    to_world: Tensor
    vertex_radiance: Tensor
    has_vertex_radiance: Tensor

    def __init__(
        self, cfg: MaterialConfig, field: MaterialField, outer: nn.Module, inner: nn.Module | None, photographer: PhotographerLight | None,
        mesh: tuple[Tensor, Tensor], levels: Spec,
    ):  # fmt: skip
        """mesh: (vertices [V, 3] world, faces [F, 3]); levels: schedule of open levels."""
        super().__init__(cfg)
        self.field, self.outer, self.inner, self.photographer = field, outer, inner, photographer
        self.levels, self.options = ramp(levels), cfg.material
        self.tracer: MeshTracer | None = None
        vertices, faces = mesh
        self.register_buffer("vertices", vertices.double(), persistent=False)  # world
        self.register_buffer("faces", faces, persistent=False)
        self.register_buffer("to_world", torch.eye(4, dtype=torch.float64))
        self.register_buffer("vertex_radiance", torch.full((len(vertices), 3), 0.5))  # mean over the photographs
        self.register_buffer("has_vertex_radiance", torch.zeros((), dtype=torch.bool))

    # ------------------------------------------------------------------ geometry

    @torch.no_grad()
    def set_frame(self, to_world: Tensor | None = None) -> None:
        """Transform the mesh into the unit sphere's frame and build its ray tracer; to_world [4, 4]: by default the saved one."""
        if to_world is not None:
            self.to_world.copy_(to_world)
        inverse = torch.linalg.inv(self.to_world.cpu()).to(self.vertices)
        self.local = (self.vertices @ inverse[:3, :3].T + inverse[:3, 3]).float().contiguous()
        mirrored = torch.linalg.det(self.to_world[:3, :3].cpu()) < 0
        faces = self.faces.flip(1) if mirrored else self.faces
        self.tracer, self.frame_faces = MeshTracer(self.local, faces), faces.long()
        self.normals = vertex_normals(self.local, faces, self.options.smooth_normals)
        corner = self.local[faces]
        self.face_normals = F.normalize(torch.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0], dim=-1), dim=-1, eps=1e-20)

    @torch.no_grad()
    def first_hits(self, origins: Tensor, dirs: Tensor) -> tuple[Hits, Surface]:
        """First hits of rays [R, 3] and the surface there."""
        hits = self.trace(origins, dirs)
        return hits, self.surface_at(hits, dirs)

    def trace(self, origins: Tensor, dirs: Tensor) -> Hits:
        """First hits of rays [N, 3] with the mesh."""
        assert self.tracer is not None, "set_frame comes first"
        return self.tracer(origins, dirs)

    @torch.no_grad()
    def surface_at(self, hits: Hits, dirs: Tensor) -> Surface:
        """The points that rays with these directions [R, 3] hit."""
        ray = torch.nonzero(hits.found)[:, 0]
        points = interpolate(self.local, self.frame_faces, hits, ray)
        normal = F.normalize(interpolate(self.normals, self.frame_faces, hits, ray), dim=-1, eps=1e-20)
        face_normal, view = self.face_normals[hits.face[ray]], -dirs[ray]
        side = torch.where((face_normal * view).sum(-1, keepdim=True) < 0, -1.0, 1.0)
        return Surface(points, normal * side, face_normal * side, view, ray)

    # ------------------------------------------------------------------ light

    def light(self, points: Tensor, dirs: Tensor, cameras: Tensor | None = None, spread: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Radiance [N, 3] that reaches points from dirs, and which of these [N] hit the object.

        cameras [N, 3], spread [N]: positions of the photographer and widths of the lobe, where a photographer is modelled.
        """
        hits = self.trace(points, dirs)
        inside, free = torch.nonzero(hits.found)[:, 0], torch.nonzero(~hits.found)[:, 0]
        direct = self.outer(points[free], dirs[free]).float()
        if self.photographer is not None and cameras is not None and spread is not None:
            colour, coverage = self.photographer(points[free], dirs[free], cameras[free], spread[free])
            direct = direct * (1 - coverage) + colour * coverage
        if self.inner is not None:
            indirect = self.inner(points[inside], dirs[inside]).float()
        else:
            indirect = interpolate(self.vertex_radiance, self.frame_faces, hits, inside)
        radiance = direct.new_zeros(len(points), 3).index_copy(0, free, direct).index_copy(0, inside, indirect.to(direct.dtype))
        return radiance, hits.found

    # ------------------------------------------------------------------ shading

    def material_at(self, points: Tensor, progress: float = 1.0) -> MaterialValues:
        """Materials of points [P, 3] in the unit sphere's frame."""
        return self.field(points, self.levels_at(progress))

    def light_map(self) -> EnvironmentMap | None:
        """The recovered distant light, where it is a map."""
        return EnvironmentMap(self.outer.image().detach()) if isinstance(self.outer, TextureLight) else None

    @_full_precision
    def reflected(
        self, surface: Surface, material: MaterialValues, counts: Counts, shift: Tensor, cameras: Tensor | None = None
    ) -> ReflectedLight:
        """Light towards the viewer; shift [P, 6] in [0, 1) offsets the patterns of directions."""
        drawn = sample_directions(surface, material.alpha, counts, shift, self.light_map())
        n = drawn.dirs.shape[1]
        at = torch.div(drawn.above, n, rounding_mode="floor")
        starts = surface.points + self.options.offset * surface.face_normal
        blur = (None, None) if self.photographer is None or cameras is None else (cameras[at], material.alpha.detach()[at])
        radiance, occluded = self.light(starts[at], drawn.dirs.reshape(-1, 3)[drawn.above], *blur)
        everywhere = radiance.new_zeros(len(starts) * n, 3).index_copy(0, drawn.above, radiance)
        sums = drawn.weights @ everywhere.view(-1, n, 3)
        return ReflectedLight(reflect(material, sums), sums[:, 0], occluded.float().mean())

    # ------------------------------------------------------------------ as a method

    def levels_at(self, progress: float) -> float:
        return open_levels(self.field.encoding, self.levels, progress)

    @torch.no_grad()
    def render(self, rays: Rays, context: RenderContext) -> RenderOutput:
        """A picture without random numbers. Training is in `systems/material.py`: its loss needs two estimates a ray."""
        o = self.options
        hits, surface = self.first_hits(rays.origins, rays.dirs)
        shift = torch.rand(len(surface.ray), 6, generator=torch.Generator().manual_seed(0)).to(rays.origins.device)
        material = self.material_at(surface.points, context.progress)
        counts = Counts(o.n_diffuse_test, o.n_specular_test, o.n_light_test)
        light = self.reflected(surface, material, counts, shift, rays.origins[surface.ray])
        rgb = context.background.expand(len(rays), 3).clone()
        rgb[surface.ray] = linear_to_srgb(light.colour).clamp(0, 1)
        normal = torch.zeros_like(rgb)
        normal[surface.ray] = surface.normal
        return RenderOutput(Render(rgb, hits.found.float(), torch.where(hits.found, hits.t, 0.0), normal))

    def surface(self, context: RenderContext):
        """The mesh is given: nothing is extracted (`systems/material_export.py` writes it)."""
        raise NotImplementedError

    def colour_at(self, points: Tensor, context: RenderContext) -> Tensor:
        """Albedo [P, 3] as sRGB."""
        return linear_to_srgb(self.material_at(points, context.progress).albedo)

    def own_groups(self, optim) -> list[dict]:
        if self.options.light != "texture":
            return []
        return [{"name": "light", "params": list(self.outer.parameters()), "lr": self.options.lr_light, "weight_decay": 0.0}]
