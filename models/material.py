"""Material and light on a fixed mesh, shaded by Monte Carlo (NeRO, Liu et al., SIGGRAPH 2023, section 3.3).

Directions are drawn by the cosine, by the GGX lobe and, beyond the paper, where the light is bright so far, weighed by the balance
heuristic; a direction that meets the mesh again brings indirect light, any other the light from far away. All in linear
light, encoded to sRGB at the end.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.environment import EnvironmentMap, HumanLight, TextureLight
from models.ggx_sampling import frames, pattern, sample_cosine, sample_ggx, shading_weights, to_local
from models.network import mlp, open_levels
from models.raytrace import Hits, MeshTracer, interpolate, vertex_normals

LEAST_ROUGHNESS = 0.04
DIELECTRIC = 0.04  # reflectance of non-metals at normal incidence


@dataclass(frozen=True)
class Material:
    """What P points are made of, each value in (0, 1)."""

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
    """P points of the mesh that rays met."""

    points: Tensor  # [P, 3]
    normal: Tensor  # [P, 3] unit, interpolated, towards the viewer's side of the face
    face_normal: Tensor  # [P, 3] unit, towards the viewer
    view: Tensor  # [P, 3] unit, towards the viewer
    ray: Tensor  # [P] int64, which ray


@dataclass(frozen=True)
class Counts:
    """How many directions a point asks for light: by the cosine, by the GGX lobe, towards what is bright."""

    cosine: int
    lobe: int
    light: int


@dataclass(frozen=True)
class Drawn:
    """D directions at each of P points, and what the light along them counts for."""

    dirs: Tensor  # [P, D, 3]
    weights: Tensor  # [P, 3, D] see `Weights`; zero below the surface
    above: Tensor  # [Q] int64, which of the P D directions point out of the surface


@dataclass(frozen=True)
class Shaded:
    """Linear light that leaves P points towards the viewer."""

    colour: Tensor  # [P, 3]
    diffuse_light: Tensor  # [P, 3] light that falls in, weighted by the cosine
    occluded: Tensor  # [] share of the directions that meet the object


def _full_precision(method):
    """Without autocast: directions and radiances of many magnitudes do not fit float16."""

    @functools.wraps(method)
    def wrapped(*arguments, **options):
        with torch.autocast("cuda", enabled=False):
            return method(*arguments, **options)

    return wrapped


def draw(surface: Surface, alpha: Tensor, counts: Counts, shift: Tensor, light: EnvironmentMap | None, turn: int = 0) -> Drawn:
    """Directions of light for the surface's points with GGX width alpha [P], which gets gradients by the weights.

    shift [P, 6] in [0, 1), turn: place the three patterns; without a map of the light the cosine draws its share too.
    """
    if light is None:
        counts = Counts(counts.cosine + counts.light, counts.lobe, 0)
    frame = frames(surface.normal)
    view = to_local(frame, surface.view)
    others = None
    with torch.no_grad():
        local = [
            sample_cosine(pattern(counts.cosine, shift[:, :2], turn)),
            sample_ggx(pattern(counts.lobe, shift[:, 2:4], turn), view, alpha.detach()),
        ]
        if counts.light:
            local.append(light.sample(pattern(counts.light, shift[:, 4:], turn)) @ frame.transpose(1, 2))
        local = torch.cat(local, 1)
        dirs = local @ frame
        if counts.light:
            others = counts.light * light.pdf(dirs)
    weights = shading_weights(local, view, alpha, counts.cosine, counts.lobe, others)
    return Drawn(dirs, weights.stack(), torch.nonzero((local[..., 2] > 0).reshape(-1))[:, 0])


class MaterialField(nn.Module):
    """Points [P, 3] of the sphere -> `Material`: a feature network on encoded positions, and three heads."""

    def __init__(self, encoding: nn.Module, radius: float, hidden: int, layers: int, start: tuple[float, float, float]):
        """start: albedo, roughness and metallic before training."""
        super().__init__()
        self.encoding, self.radius = encoding, radius
        self.feature = mlp(encoding.width + 3, hidden, layers, hidden)
        self.heads = nn.ModuleList(mlp(hidden + 3, hidden, 1, n) for n in (3, 1, 1))
        first = (start[0], (start[1] - LEAST_ROUGHNESS) / (1 - LEAST_ROUGHNESS), start[2])
        for head, value in zip(self.heads, first):
            value = min(max(value, 1e-3), 1 - 1e-3)
            nn.init.constant_(head[-1].bias, torch.logit(torch.tensor(value)).item())
            nn.init.uniform_(head[-1].weight, -1e-2, 1e-2)

    def forward(self, points: Tensor, levels: float | None = None) -> Material:
        x = torch.cat([points, self.encoding(points / (2 * self.radius) + 0.5, levels)], -1)
        feature = torch.cat([torch.relu(self.feature(x)), points], -1)
        albedo, roughness, metallic = (torch.sigmoid(head(feature).float()) for head in self.heads)
        return Material(albedo, LEAST_ROUGHNESS + (1 - LEAST_ROUGHNESS) * roughness[:, 0], metallic[:, 0])


def reflect(material: Material, sums: Tensor) -> Tensor:
    """Radiance [P, 3] from the weighted sums of light [P, 3, 3] of `Weights.stack`."""
    metallic = material.metallic[:, None]
    straight = DIELECTRIC * (1 - metallic) + metallic * material.albedo
    return (1 - metallic) * material.albedo * sums[:, 0] + straight * sums[:, 1] + sums[:, 2]


class MaterialModel(nn.Module):
    """The mesh, its material, and the light. The mesh stands in the unit sphere's frame once `place` was called."""

    def __init__(self, field: MaterialField, outer: nn.Module, inner: nn.Module | None, human: HumanLight | None, mesh, levels, options):
        """mesh: (vertices [V, 3] world, faces [F, 3]); levels: schedule of open levels; options: `MaterialConfig`."""
        super().__init__()
        self.field, self.outer, self.inner, self.human = field, outer, inner, human
        self.levels, self.options, self.tracer = levels, options, None
        vertices, faces = mesh
        self.register_buffer("vertices", vertices.double(), persistent=False)  # world
        self.register_buffer("faces", faces, persistent=False)
        self.register_buffer("to_world", torch.eye(4, dtype=torch.float64))
        self.register_buffer("seen", torch.full((len(vertices), 3), 0.5))  # mean radiance of each vertex in the photographs
        self.register_buffer("looked", torch.zeros((), dtype=torch.bool))

    # ------------------------------------------------------------------ geometry

    @torch.no_grad()
    def place(self, to_world: Tensor | None = None) -> None:
        """Bring the mesh into the frame of the unit sphere and make it ready for rays; to_world [4, 4] by default the saved one."""
        if to_world is not None:
            self.to_world.copy_(to_world)
        inverse = torch.linalg.inv(self.to_world.cpu()).to(self.vertices)
        self.local = (self.vertices @ inverse[:3, :3].T + inverse[:3, 3]).float().contiguous()
        mirrored = torch.linalg.det(self.to_world[:3, :3].cpu()) < 0
        faces = self.faces.flip(1) if mirrored else self.faces
        self.tracer = MeshTracer(self.local, faces)
        self.normals = vertex_normals(self.local, faces, self.options.smooth_normals)
        corner = self.local[faces]
        self.face_normals = F.normalize(torch.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0], dim=-1), dim=-1, eps=1e-20)

    @torch.no_grad()
    def meet(self, origins: Tensor, dirs: Tensor) -> tuple[Hits, Surface]:
        """First hits of rays [R, 3] and the surface there."""
        hits = self.tracer(origins, dirs)
        return hits, self.surface(hits, dirs)

    @torch.no_grad()
    def surface(self, hits: Hits, dirs: Tensor) -> Surface:
        """The points that rays with these directions [R, 3] hit."""
        ray = torch.nonzero(hits.found)[:, 0]
        points = interpolate(self.local, self.tracer.faces, hits, ray)
        normal = F.normalize(interpolate(self.normals, self.tracer.faces, hits, ray), dim=-1, eps=1e-20)
        face_normal, view = self.face_normals[hits.face[ray]], -dirs[ray]
        side = torch.where((face_normal * view).sum(-1, keepdim=True) < 0, -1.0, 1.0)
        return Surface(points, normal * side, face_normal * side, view, ray)

    # ------------------------------------------------------------------ light

    def light(self, points: Tensor, dirs: Tensor, cameras: Tensor | None = None, spread: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Radiance [N, 3] that reaches points from dirs, and which of them [N] meet the object.

        cameras, spread [N, ...]: where the photographer stands and how blurred it is seen, where one is modelled.
        """
        hits = self.tracer(points, dirs)
        inside, free = torch.nonzero(hits.found)[:, 0], torch.nonzero(~hits.found)[:, 0]
        direct = self.outer(points[free], dirs[free]).float()
        if self.human is not None and cameras is not None:
            colour, cover = self.human(points[free], dirs[free], cameras[free], spread[free])
            direct = direct * (1 - cover) + colour * cover
        if self.inner is not None:
            indirect = self.inner(points[inside], dirs[inside]).float()
        else:
            indirect = interpolate(self.seen, self.tracer.faces, hits, inside)
        radiance = direct.new_zeros(len(points), 3).index_copy(0, free, direct).index_copy(0, inside, indirect.to(direct.dtype))
        return radiance, hits.found

    # ------------------------------------------------------------------ shading

    def material_at(self, points: Tensor, progress: float = 1.0) -> Material:
        """Of points [P, 3] in the unit sphere's frame."""
        return self.field(points, self.open_levels(progress))

    def bright(self) -> EnvironmentMap | None:
        """The light as it is so far, where it is a map."""
        return EnvironmentMap(self.outer.image().detach()) if isinstance(self.outer, TextureLight) else None

    @_full_precision
    def shade(self, surface: Surface, material: Material, counts: Counts, shift: Tensor, cameras: Tensor | None = None) -> Shaded:
        """Light towards the viewer; shift [P, 6] in [0, 1) places the patterns of directions."""
        drawn = draw(surface, material.alpha, counts, shift, self.bright())
        n = drawn.dirs.shape[1]
        at = torch.div(drawn.above, n, rounding_mode="floor")
        starts = surface.points + self.options.offset * surface.face_normal
        seen = (None, None) if self.human is None or cameras is None else (cameras[at], material.alpha.detach()[at])
        radiance, occluded = self.light(starts[at], drawn.dirs.reshape(-1, 3)[drawn.above], *seen)
        everywhere = radiance.new_zeros(len(starts) * n, 3).index_copy(0, drawn.above, radiance)
        sums = drawn.weights @ everywhere.view(-1, n, 3)
        return Shaded(reflect(material, sums), sums[:, 0], occluded.float().mean())

    # ------------------------------------------------------------------ what the system asks

    def before_step(self, step: int, progress: float) -> None:
        """Nothing to keep up."""

    def open_levels(self, progress: float) -> float:
        return open_levels(self.field.encoding, self.levels, progress)
