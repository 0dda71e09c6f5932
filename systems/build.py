"""The only place that assembles scene, model and system."""

import logging
from pathlib import Path

import torch

from confs.schema import Config
from encoder.get_encoding import HashGridSpec, get_encoding
from models.density import Variance
from models.estimators import OccupancyGrid
from models.neus import NeuS
from models.radiance import RadianceNetwork
from models.sdf import SDFNetwork
from systems.neus import NeuSSystem
from utils import checkpoint
from utils.device import choose
from utils.schedule import ramp

log = logging.getLogger("neus")


def build_neus(cfg: Config, device: torch.device) -> NeuS:
    """NeuS on a hash grid as the config describes it."""
    m = cfg.model
    g = m.grid
    spec = HashGridSpec(
        g.n_levels,
        g.n_features,
        g.log2_size,
        g.base,
        g.top,
        g.interpolation == "smoothstep",
        cfg.backend.half_table and device.type == "cuda",
    )
    grid = get_encoding("hashgrid", spec=spec, backend=choose("hashgrid", cfg.backend.hashgrid, device))
    sdf = SDFNetwork(
        grid, m.radius, m.sdf.hidden, m.sdf.layers, m.sdf.feature, m.sdf.activation, m.sdf.sphere_radius * m.radius, m.radiance.see_grid
    )
    radiance = RadianceNetwork(sdf.n_features, m.radiance.hidden, m.radiance.layers, m.radiance.sh_degree)
    o = m.occupancy
    occupancy = OccupancyGrid(m.radius, o.resolution, o.threshold, o.decay, o.every, o.margin, choose("march", cfg.backend.march, device))
    diagonal = 2 * 3**0.5 * m.radius
    step, test_step = diagonal / m.samples_per_ray, diagonal / max(m.samples_per_ray, m.samples_per_ray_test)
    composite = choose("composite", cfg.backend.composite, device)
    variance = Variance(m.variance.init, m.variance.max_inv_s)
    return NeuS(sdf, radiance, variance, occupancy, m.radius, step, test_step, ramp(g.levels), m.cos_anneal_end, composite)


MODELS = {"neus": (build_neus, NeuSSystem)}


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
