"""The only place that assembles model and system."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from confs.model import (
    BackgroundFieldConfig,
    HashGridConfig,
    MaterialConfig,
    MethodConfig,
    NeRFConfig,
    NeROConfig,
    NeuSConfig,
    SurfaceConfig,
    VolumeConfig,
)
from confs.schema import BackendConfig, Config
from encoder.get_encoding import Encoding, HashGridSpec, get_encoding
from encoder.identity import WithIdentity
from encoder.spherical import SphericalHarmonics
from models.appearance import Appearance
from models.background import Background
from models.distractors import Distractors
from models.estimators import OccupancyGrid
from models.field import DensityNetwork
from models.importance import HierarchicalSampler
from models.lights import InnerLight, NetworkLight, PhotographerLight, TextureLight
from models.material import MaterialField, MaterialModel
from models.method import Method, Sampler
from models.nerf import NeRF, ProposalSampler
from models.nero import NeROShape
from models.network import MLP
from models.neus import NeuS
from models.pose import CameraRefinement
from models.radiance import RadianceNetwork, direction_encoding
from models.sdf import SDFNetwork
from models.sdf_mlp import SDFMLP
from models.shading import SplitSumShader
from systems.base import RaySystem
from systems.material import MaterialSystem, find_mesh
from systems.neus import NeuSSystem
from utils import checkpoint
from utils.device import choose
from utils.rays import Scene
from utils.schedule import Spec

log = logging.getLogger("neus")
EMBEDDING = 8  # length of a photograph's vector (model.appearance=embedding)


@dataclass(frozen=True)
class Context:
    """Where the parts of a model run."""

    device: torch.device
    backend: BackendConfig

    def choose(self, operation: str) -> str:
        """The backend of an operation."""
        return choose(operation, getattr(self.backend, operation), self.device)


# ------------------------------------------------------------------ parts


def _half(where: Context) -> bool:
    return where.backend.half_table and where.device.type == "cuda"


def _spec(g: HashGridConfig | BackgroundFieldConfig, where: Context, smooth: bool) -> HashGridSpec:
    return HashGridSpec(g.n_levels, g.n_features, g.log2_size, g.base, g.top, smooth, _half(where))


def hash_grid(spec: HashGridSpec, where: Context) -> Encoding:
    """A hash grid on the backend that runs here."""
    return get_encoding("hashgrid", spec=spec, backend=where.choose("hashgrid"))


def position_encoding(m: MethodConfig, where: Context) -> tuple[Encoding, Spec]:
    """The encoding of positions in [0, 1]^3, and the schedule of its open levels."""
    if m.encoding.endswith("hashgrid"):
        return get_encoding(
            m.encoding, spec=_spec(m.grid, where, m.grid.interpolation == "smoothstep"), backend=where.choose("hashgrid")
        ), m.grid.levels
    options: dict = {"n_frequencies": m.frequency.n_frequencies, "unit": True}
    if m.encoding.endswith("frequency"):
        options["include_input"] = False
    return get_encoding(m.encoding, **options), m.frequency.levels


def without_identity(encoding: Encoding) -> Encoding:
    """For networks that receive the position itself in any case."""
    return encoding.inner if isinstance(encoding, WithIdentity) else encoding


def proposal_network(m: VolumeConfig, where: Context, bounded: bool) -> DensityNetwork:
    """A small density network for sampling alone."""
    spec = HashGridSpec(5, 2, m.sampling.log2_size, 16, m.sampling.top, False, _half(where))
    return DensityNetwork(
        hash_grid(spec, where), m.radius, hidden=16, layers=1, n_features=0, bounded=bounded, bias=-1.0 if bounded else 0.0
    )


def learned_background(m: VolumeConfig, where: Context) -> Background | None:
    """The learned background; None where the config names a colour."""
    if m.background != "learned":
        return None
    b = m.background_field
    field = DensityNetwork(
        hash_grid(_spec(b, where, False), where), m.radius, hidden=b.hidden, layers=1, n_features=b.feature, bounded=False, bias=0.0
    )
    dirs = SphericalHarmonics(4) if b.view_dependent else None
    radiance = RadianceNetwork(b.feature, dirs, hidden=b.hidden, layers=2, use_normal=False, n_embedding=_embedding(m))
    return Background(b, proposal_network(m, where, bounded=False), field, radiance)


def _embedding(m: VolumeConfig) -> int:
    return EMBEDDING if m.appearance == "embedding" else 0


def sampler_of(m: VolumeConfig, where: Context) -> Sampler:
    """The sampler that `model.sampler` names."""
    s = m.sampling
    if m.sampler == "hierarchical":
        return HierarchicalSampler(s)
    if m.sampler == "proposal":
        densities = [proposal_network(m, where, bounded=True) for _ in s.n_proposal]
        return ProposalSampler(densities, list(s.n_proposal), s.n_samples)
    return OccupancyGrid(m.occupancy, m.radius, where.choose("march"))


def sdf_network(m: SurfaceConfig, encoding: Encoding) -> SDFNetwork | SDFMLP:
    """The SDF network that `model.sdf.network` names."""
    return (SDFMLP if m.sdf.network == "neus" else SDFNetwork)(m.sdf, without_identity(encoding), m.radius)


# ------------------------------------------------------------------ methods


def build_neus(m: NeuSConfig, where: Context) -> NeuS:
    encoding, levels = position_encoding(m, where)
    sdf = sdf_network(m, encoding)
    r = m.radiance
    radiance = RadianceNetwork(sdf.n_features, direction_encoding(r), hidden=r.hidden, layers=r.layers, n_embedding=_embedding(m))
    return NeuS(m, sdf, radiance, sampler_of(m, where), levels, learned_background(m, where), where.choose("composite"))


def build_nero_shape(m: NeROConfig, where: Context) -> NeROShape:
    """NeuS whose colours are shaded."""
    encoding, levels = position_encoding(m, where)
    sdf = sdf_network(m, encoding)
    shader = SplitSumShader(m.shading, sdf.n_features)
    return NeROShape(m, sdf, shader, sampler_of(m, where), levels, learned_background(m, where), where.choose("composite"))


def build_nerf(m: NeRFConfig, where: Context) -> NeRF:
    """Bounded by the sphere; with a learned background unbounded."""
    encoding, levels = position_encoding(m, where)
    d, r = m.density, m.radiance
    field = DensityNetwork(encoding, m.radius, hidden=d.hidden, layers=d.layers, n_features=d.feature)
    dirs = direction_encoding(r)
    radiance = RadianceNetwork(d.feature, dirs, hidden=r.hidden, layers=r.layers, use_normal=False, n_embedding=_embedding(m))
    return NeRF(m, field, radiance, sampler_of(m, where), levels, learned_background(m, where), where.choose("composite"))


def build_material(m: MaterialConfig, where: Context) -> MaterialModel:
    """The mesh of the config with a material and lights. Raises UserError when there is no such mesh."""
    o = m.material
    encoding, levels = position_encoding(m, where)
    field = MaterialField(o, without_identity(encoding), m.radius)
    photographer = PhotographerLight(o.light_hidden, o.light_max) if o.photographer else None
    outer: nn.Module
    if o.light == "mlp":
        outer, inner = NetworkLight(o.light_hidden, o.light_max, o.light_sphere, m.radius), InnerLight(o.light_hidden, o.light_max)
    else:
        outer, inner = TextureLight(o.light_height, o.light_max, o.light_init), None
    return MaterialModel(m, field, outer, inner, photographer, find_mesh(m.mesh), levels)


@dataclass(frozen=True)
class Entry:
    """How a method is built and trained. Its options are `METHOD_CONFIGS[name]` of `confs/model.py`."""

    build: Callable[..., Method]  # (its config, Context) -> Method
    system: type[RaySystem] = RaySystem


METHODS: dict[str, Entry] = {
    "neus": Entry(build_neus, NeuSSystem),
    "nerf": Entry(build_nerf),
    "nero-shape": Entry(build_nero_shape, NeuSSystem),
    "material": Entry(build_material, MaterialSystem),
}


def add_photographs(model: Method, m: MethodConfig, scene: Scene) -> None:
    """What is estimated for each photograph of the scene: its camera, its exposure and white balance, what does not belong."""
    if getattr(m, "pose", False) is True:
        model.pose = CameraRefinement(scene.cameras.c2w[:, :, 3], scene.train)
    kind = getattr(m, "appearance", "none")
    if kind in ("affine", "embedding"):
        model.appearance = Appearance(kind, len(scene.names), scene.train, EMBEDDING)
    if getattr(m, "distractors", False) is True:
        model.distractors = Distractors(len(scene.names), scene.cameras.width, scene.cameras.height)


def build_system(cfg: Config, device: torch.device, scene: Scene | None = None) -> RaySystem:
    """Model and system of the config, weights drawn from cfg.seed; scene: where something is estimated for each photograph."""
    torch.manual_seed(cfg.seed or 0)
    entry = METHODS[cfg.model.name]
    where = Context(device, cfg.backend)
    model = entry.build(cfg.model, where)
    backend = where.choose("network")
    for module in model.modules():
        if isinstance(module, MLP):
            module.backend = backend
    if scene is not None:
        add_photographs(model, cfg.model, scene)
    model = model.to(device)
    n = sum(p.numel() for p in model.parameters())
    log.info("model %s: %.1f million parameters on %s", cfg.model.name, n / 1e6, device)
    return entry.system(model, cfg, device)


def restore_system(cfg: Config, device: torch.device, state: dict, path: Path, scene: Scene | None = None) -> RaySystem:
    """A system with the weights of a loaded checkpoint, without a scene less what was estimated for each photograph.

    Raises UserError when they do not fit the config.
    """
    system = build_system(cfg, device, scene)
    photographs = () if scene is not None else ("pose.", "appearance.", "distractors.")
    checkpoint.load_weights(system.model, {k: v for k, v in state["model"].items() if not k.startswith(photographs)}, path)
    return system
