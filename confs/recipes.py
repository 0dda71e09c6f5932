"""Defaults that depend on the method, the masks and the device. Each is a layer below what the user gave."""

# of a training step on a CUDA device, where neither a file nor the command line says otherwise; a CPU takes those of the schema
CUDA_SAMPLES = "trainer.target_samples=262144"

# --preset: minutes on a CPU (two cores were measured), steps on CUDA
PRESETS = {
    name: {
        "cpu": [f"trainer.max_minutes={minutes}", "trainer.max_steps=1000000"],
        "cuda": [f"trainer.max_steps={steps}", "trainer.max_minutes=null", CUDA_SAMPLES],
    }
    for name, minutes, steps in (("fast", 3, 10000), ("balanced", 10, 20000), ("best", 60, 100000))
}

# model.name -> what differs from the schema
METHOD_DEFAULTS: dict[str, dict] = {
    "nerf": {"loss": {"eikonal": 0}},
    "material": {"loss": {"eikonal": 0, "mask": 0, "interlevel": 0}},
}

# layouts of photographs whose cameras were estimated and whose exposures vary: model.pose and model.appearance are on
PHOTOGRAPHED = ("colmap", "transforms", "llff", "metashape")

# model.background=learned: without silhouettes a surface forms anywhere, so a soft one fills the sphere for longer, and the
# occupancy grid keeps it, in coarser cells. distortion_bg gains 2 dB on held-out pictures (docs/recipes.md).
MASK_FREE = {
    "model": {
        "variance": {"init": 0.2, "max_inv_s": [12, 20000, 0.05, 0.35]},
        "occupancy": {"threshold": 0.005, "resolution": 96},
    },
    "loss": {"mask": 0, "distortion_bg": 0.01},
}

# model.start=points: the surface is roughly known from the first step on, so it starts sharp and is kept from dissolving, and
# takes few samples. loss.points holds concave parts, which colours alone fill; loss.curvature keeps texture out of the relief
# (docs/recipes.md, "Photographs").
POINTS_START = {
    "model": {
        "variance": {"min_inv_s": [150, 600, 0.1, 0.7], "max_inv_s": 20000},
        "occupancy": {"threshold": 0.02, "resolution": 128},
        "grid": {"n_levels": 14, "top": 1024, "levels": [5, 14, 0.0, 0.4]},
        "sdf": {"pass_encoding": True},
        "background_field": {"log2_size": 18},
    },
    "loss": {"points": 0.3, "curvature": [0.02, 0, 0.2, 0.8]},
}

# model.start=sweep, above POINTS_START: dense points and the free space before them hold hollows open, and so do colours that may not
# depend on the direction at first, so that no membrane can be painted over a hollow (docs/recipes.md, "Hollows"). The points weigh
# more while the surface is rough, and no more than others once the photographs are finer than they.
SWEEP_START = {
    "model": {"dirs_begin": 0.3},
    "loss": {"points": [3, 0.3, 0.2, 0.9], "patches": [0.3, 0, 0.1, 0.5], "free": 0.2},
}
