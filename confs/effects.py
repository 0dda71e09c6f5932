"""Which options have an effect under which others, so that one without effect is reported rather than ignored."""

from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

from utils.schedule import ramp

# loss weight -> the capability of the method that the term needs
NEEDS = {
    "rgb": "colour", "rgb_mse": "colour", "rgb_smooth_l1": "colour", "rgb_charbonnier": "colour", "mask": "opacity", "opaque": "opacity",
    "eikonal": "sdf", "curvature": "sdf", "sparsity": "sdf", "points": "sdf", "patches": "sdf", "free": "sdf", "distortion": "samples", "distortion_bg": "background",
    "interlevel": "proposals", "occlusion": "occlusion",
}  # fmt: skip


def _on(weight: Any) -> bool:
    schedule = ramp(weight)
    return bool(schedule.start or schedule.end)


def _sampler(*names: str) -> Callable[[Any], bool]:
    return lambda c: getattr(c.model, "sampler", None) in names


# pattern of keys -> (whether they have an effect under a config, what they need). The first pattern that fits counts.
EFFECTS: list[tuple[str, Callable[[Any], bool], str]] = [
    ("model.grid.*", lambda c: c.model.encoding.endswith("hashgrid"), "model.encoding=hashgrid"),
    ("model.frequency.cone", lambda c: c.model.encoding.endswith("ipe"), "model.encoding=ipe"),
    ("model.frequency.*", lambda c: c.model.encoding.endswith(("frequency", "ipe")), "model.encoding=frequency or ipe"),
    ("model.occupancy.*", _sampler("occupancy"), "model.sampler=occupancy"),
    ("model.samples_per_ray*", _sampler("occupancy"), "model.sampler=occupancy"),
    ("model.min_weight", _sampler("occupancy"), "model.sampler=occupancy"),
    ("model.sampling.n_samples", _sampler("hierarchical", "proposal"), "model.sampler=hierarchical or proposal"),
    ("model.sampling.n_proposal", _sampler("proposal"), "model.sampler=proposal"),
    ("model.sampling.n_importance", _sampler("hierarchical"), "model.sampler=hierarchical"),
    ("model.sampling.rounds", _sampler("hierarchical"), "model.sampler=hierarchical"),
    ("model.sampling.*", lambda c: "proposals" in c.model.capabilities, "a proposal sampler or model.background=learned"),
    ("model.background_field.*", lambda c: c.model.background == "learned", "model.background=learned"),
    ("optim.lr_background", lambda c: c.model.background == "learned", "model.background=learned"),
    ("model.sdf.eps", lambda c: c.model.sdf.normals == "finite", "model.sdf.normals=finite"),
    ("model.sdf.taps", lambda c: c.model.sdf.normals == "finite", "model.sdf.normals=finite"),
    ("model.sdf.skip", lambda c: c.model.sdf.network == "neus", "model.sdf.network=neus"),
    ("model.sdf.activation", lambda c: c.model.sdf.network == "small", "model.sdf.network=small"),
    ("model.sdf.pass_encoding", lambda c: c.model.sdf.network == "small", "model.sdf.network=small"),
    ("model.dirs_begin", lambda c: c.model.radiance.dirs != "none", "model.radiance.dirs other than none"),
    ("model.radiance.sh_degree", lambda c: c.model.radiance.dirs.endswith("spherical"), "model.radiance.dirs=spherical"),
    ("model.radiance.n_frequencies", lambda c: c.model.radiance.dirs.endswith("frequency"), "model.radiance.dirs=frequency"),
    ("model.radiance.ide_degree", lambda c: c.model.radiance.dirs == "ide", "model.radiance.dirs=ide"),
    ("model.shading.occlusion_*", lambda c: _on(c.loss.occlusion), "loss.occlusion"),
    ("model.material.light_hidden", lambda c: c.model.material.light == "mlp" or c.model.material.photographer, "model.material.light=mlp"),
    ("model.material.light_sphere", lambda c: c.model.material.light == "mlp", "model.material.light=mlp"),
    ("model.material.light_max", lambda c: True, ""),
    ("model.material.light_*", lambda c: c.model.material.light == "texture", "model.material.light=texture"),
    ("model.material.lr_light", lambda c: c.model.material.light == "texture", "model.material.light=texture"),
    ("optim.lr_grid", lambda c: c.model.encoding.endswith("hashgrid"), "model.encoding=hashgrid"),
    ("optim.lr_pose", lambda c: getattr(c.model, "pose", False) is True, "model.pose=true"),
    ("optim.pose_begin", lambda c: getattr(c.model, "pose", False) is True, "model.pose=true"),
    ("optim.lr_appearance", lambda c: getattr(c.model, "appearance", "none") not in ("none", "auto"), "model.appearance=affine or embedding"),
    ("optim.lr_variance", lambda c: "sdf" in c.model.capabilities, "a method with an SDF"),
    ("loss.eikonal_points", lambda c: "sdf" in c.model.capabilities and (_on(c.loss.eikonal) or _on(c.loss.sparsity)), "loss.eikonal or loss.sparsity"),
    ("loss.sparsity_scale", lambda c: _on(c.loss.sparsity), "loss.sparsity"),
    ("dataset.clean_edges", lambda c: c.dataset.apply_mask, "dataset.apply_mask=true"),
    ("export.frame", lambda c: c.model.name != "material", "a method that extracts a mesh"),
    ("export.metres_per_unit", lambda c: c.model.name != "material", "a method that extracts a mesh"),
    ("export.texture_*", lambda c: c.export.texture is True or (c.export.texture == "auto" and "glb" in c.export.formats), "export.texture=true"),
    ("export.mask_dilation", lambda c: c.dataset.apply_mask, "dataset.apply_mask=true"),
]  # fmt: skip


def without_effect(config: Any, keys: list[str]) -> dict[str, str]:
    """{key: what it needs} of the given dotted keys that have no effect under the config."""
    found = {}
    for key in keys:
        section, _, name = key.rpartition(".")
        if section == "loss" and name in NEEDS:
            if _on(getattr(config.loss, name)) and NEEDS[name] not in config.model.capabilities:
                found[key] = f"a method that computes {NEEDS[name]}, which model.name={config.model.name} with these options does not"
            continue
        rule = next((rule for rule in EFFECTS if fnmatch(key, rule[0])), None)
        if rule is not None and not rule[1](config):
            found[key] = rule[2]
    return found
