"""The only place that assembles scene, model and system."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from confs.schema import Config
from encoder.get_encoding import HashGridSpec, get_encoding
from models.background import Background
from models.density import Variance
from models.environment import HumanLight, InnerLight, NetworkLight, TextureLight
from models.estimators import OccupancyGrid
from models.field import DensityNetwork
from models.importance import HierarchicalSampler
from models.material import MaterialField, MaterialModel
from models.nerf import NeRF, Proposals
from models.nero import NeROShape
from models.neus import NeuS
from models.radiance import RadianceNetwork
from models.sdf import SDFNetwork
from models.sdf_mlp import SDFMLP
from models.shading import SplitSumShader
from systems.material import MaterialSystem, find_mesh
from systems.nerf import NeRFSystem
from systems.nero import NeROShapeSystem
from systems.neus import NeuSSystem
from utils import checkpoint
from utils.device import choose
from utils.schedule import Ramp, ramp

log = logging.getLogger("neus")


def _hash_spec(n_levels: int, n_features: int, log2_size: int, base: int, top: int, smooth: bool, cfg: Config, device: torch.device):
    return HashGridSpec(n_levels, n_features, log2_size, base, top, smooth, cfg.backend.half_table and device.type == "cuda")


def build_encoding(cfg: Config, device: torch.device) -> tuple[nn.Module, Ramp]:
    """The encoding of positions in [0, 1]^3, and how many of its levels are open when."""
    m, kind = cfg.model, cfg.model.encoding
    if kind.endswith("hashgrid"):
        g = m.grid
        spec = _hash_spec(g.n_levels, g.n_features, g.log2_size, g.base, g.top, g.interpolation == "smoothstep", cfg, device)
        return get_encoding(kind, spec=spec, backend=choose("hashgrid", cfg.backend.hashgrid, device)), ramp(g.levels)
    options = {"n_frequencies": m.frequency.n_frequencies, "unit": True}
    if kind.endswith("frequency"):
        options["include_input"] = False
    return get_encoding(kind, **options), ramp(m.frequency.levels)


def build_dirs(cfg: Config) -> nn.Module | None:
    """The encoding of view directions, None for a colour that does not depend on them."""
    r = cfg.model.radiance
    options = {"spherical": {"degree": r.sh_degree}, "ide": {"degree": r.ide_degree}, "frequency": {"n_frequencies": r.n_frequencies}}
    return None if r.dirs == "none" else get_encoding(r.dirs, **options.get(r.dirs.rpartition("+")[2], {}))


def build_proposal(cfg: Config, device: torch.device, bounded: bool) -> DensityNetwork:
    """A small density that only says where to look."""
    s = cfg.model.sampling
    spec = _hash_spec(5, 2, s.log2_size, 16, s.top, False, cfg, device)
    grid = get_encoding("hashgrid", spec=spec, backend=choose("hashgrid", cfg.backend.hashgrid, device))
    return DensityNetwork(grid, cfg.model.radius, 16, 1, 0, bounded, -1.0 if bounded else 0.0)


def build_background(cfg: Config, device: torch.device) -> Background | None:
    """The learned background, None where the config wants a colour."""
    if cfg.model.background != "learned":
        return None
    b = cfg.model.backdrop
    spec = _hash_spec(b.n_levels, b.n_features, b.log2_size, b.base, b.top, False, cfg, device)
    grid = get_encoding("hashgrid", spec=spec, backend=choose("hashgrid", cfg.backend.hashgrid, device))
    field = DensityNetwork(grid, cfg.model.radius, b.hidden, 1, b.feature, bounded=False, bias=0.0)
    radiance = RadianceNetwork(b.feature, b.hidden, 2, build_dirs(cfg) if b.see_dirs else None, see_normal=False)
    return Background(build_proposal(cfg, device, bounded=False), field, radiance, b.n_proposal, b.n_samples, b.far, ramp(b.levels))


def build_occupancy(cfg: Config, device: torch.device) -> OccupancyGrid:
    o = cfg.model.occupancy
    return OccupancyGrid(
        cfg.model.radius, o.resolution, o.threshold, o.decay, o.every, o.margin, choose("march", cfg.backend.march, device)
    )


def _steps(cfg: Config) -> tuple[Ramp, float]:
    """Lengths of an interval in training and in pictures."""
    m = cfg.model
    diagonal, n = 2 * 3**0.5 * m.radius, ramp(m.samples_per_ray)
    finest = max(n.start, n.end, m.samples_per_ray_test)
    return Ramp(diagonal / n.start, diagonal / n.end, n.begin, n.until, log=True), diagonal / finest


def build_colour(cfg: Config, n_features: int) -> RadianceNetwork:
    """The colour network of NeuS."""
    r = cfg.model.radiance
    return RadianceNetwork(n_features, r.hidden, r.layers, build_dirs(cfg))


def build_shader(cfg: Config, n_features: int) -> SplitSumShader:
    """Materials and lights of NeRO's first stage."""
    s = cfg.model.shading
    return SplitSumShader(
        n_features, s.hidden, s.layers, s.outer, s.separate, s.ide_degree, s.n_frequencies, s.light_max, s.photographer, s.weight_norm
    )


def build_nero_shape(cfg: Config, device: torch.device) -> NeROShape:
    """NeuS that shades its colours."""
    model, s = build_neus(cfg, device, NeROShape, build_shader), cfg.model.shading
    model.deferred, model.min_weight, model.n_occlusion = s.deferred, s.min_weight, s.occlusion_points
    model.n_even, model.n_near = s.occlusion_samples
    return model


def build_neus(cfg: Config, device: torch.device, make: type[NeuS] = NeuS, colour: Callable = build_colour) -> NeuS:
    """NeuS as the config describes it; `make` and `colour` for methods that only shade it differently."""
    m = cfg.model
    grid, levels = build_encoding(cfg, device)
    grid = getattr(grid, "inner", grid)  # the network sees the position in any case
    sphere = m.sdf.sphere_radius * m.radius
    if m.sdf.network == "neus":
        sdf = SDFMLP(grid, m.radius, m.sdf.hidden, m.sdf.layers, m.sdf.feature, sphere, m.sdf.skip)
    else:
        sdf = SDFNetwork(grid, m.radius, m.sdf.hidden, m.sdf.layers, m.sdf.feature, m.sdf.activation, sphere, m.radiance.see_grid)
    sdf.normals, sdf.eps, sdf.taps = m.sdf.normals, m.sdf.eps, m.sdf.taps
    radiance = colour(cfg, sdf.n_features)
    s = m.sampling
    hierarchical = m.sampler == "hierarchical"
    sampler = HierarchicalSampler(s.n_samples, s.n_importance, s.rounds) if hierarchical else build_occupancy(cfg, device)
    composite = choose("composite", cfg.backend.composite, device)
    variance = Variance(m.variance.init, m.variance.max_inv_s)
    backdrop = build_background(cfg, device)
    return make(
        sdf,
        radiance,
        variance,
        sampler,
        m.radius,
        *_steps(cfg),
        levels,
        m.cos_anneal_end,
        composite,
        backdrop,
        m.gradient_scaling,
        m.refine,
    )


def build_nerf(cfg: Config, device: torch.device) -> NeRF:
    """NeRF as the config describes it: bounded by the sphere, with a learned background unbounded."""
    m, s = cfg.model, cfg.model.sampling
    grid, levels = build_encoding(cfg, device)
    field = DensityNetwork(grid, m.radius, m.density.hidden, m.density.layers, m.density.feature)
    radiance = RadianceNetwork(m.density.feature, m.radiance.hidden, m.radiance.layers, build_dirs(cfg), see_normal=False)
    if m.sampler == "proposal":
        densities = nn.ModuleList(build_proposal(cfg, device, bounded=True) for _ in s.n_proposal)
        sampler = Proposals(densities, list(s.n_proposal), s.n_samples)
    else:
        sampler = build_occupancy(cfg, device)
    composite = choose("composite", cfg.backend.composite, device)
    backdrop = build_background(cfg, device)
    cone = m.frequency.cone if m.encoding.endswith("ipe") else 0.0
    return NeRF(field, radiance, sampler, m.radius, *_steps(cfg), levels, m.density.level, composite, backdrop, m.gradient_scaling, cone)


def build_material(cfg: Config, device: torch.device) -> MaterialModel:
    """The mesh of the config with a material and lights. Raises UserError when there is no such mesh."""
    m, o = cfg.model, cfg.model.material
    grid, levels = build_encoding(cfg, device)
    grid = getattr(grid, "inner", grid)  # the network sees the position in any case
    field = MaterialField(grid, m.radius, o.hidden, o.layers, (o.albedo_init, o.roughness_init, o.metallic_init))
    human = HumanLight(o.light_hidden, o.light_max) if o.human else None
    if o.light == "mlp":
        outer = NetworkLight(o.light_hidden, o.light_max, o.light_sphere, m.radius)
        return MaterialModel(field, outer, InnerLight(o.light_hidden, o.light_max), human, find_mesh(m.mesh), levels, o)
    return MaterialModel(field, TextureLight(o.light_height, o.light_max, o.light_init), None, human, find_mesh(m.mesh), levels, o)


MODELS = {
    "neus": (build_neus, NeuSSystem),
    "nerf": (build_nerf, NeRFSystem),
    "nero-shape": (build_nero_shape, NeROShapeSystem),
    "material": (build_material, MaterialSystem),
}


def build_system(cfg: Config, device: torch.device):
    """Model and system of the config, weights drawn from cfg.seed."""
    torch.manual_seed(cfg.seed or 0)
    make_model, make_system = MODELS[cfg.model.name]
    model = make_model(cfg, device).to(device)
    n = sum(p.numel() for p in model.parameters())
    log.info("model %s: %.1f million parameters on %s", cfg.model.name, n / 1e6, device)
    return make_system(model, cfg, device)


def restore_system(cfg: Config, device: torch.device, state: dict, path: Path):
    """A system with the weights of a loaded checkpoint. Raises UserError when they do not fit the config."""
    system = build_system(cfg, device)
    checkpoint.load_weights(system.model, state["model"], path)
    return system
