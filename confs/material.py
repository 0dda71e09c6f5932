"""The options of NeRO's second stage, the material, and of relighting. See `confs/schema.py`."""

from dataclasses import dataclass, field
from typing import Any, Literal, Optional

from confs.checks import check, schedules
from utils.schedule import ramp


@dataclass(frozen=True)
class MonteCarloConfig:
    """model.name=material: the material of a fixed mesh and the light around it, by Monte Carlo shading (NeRO, 2023, stage two)."""

    n_diffuse: int = 20  # cosine-weighted directions a surface point in training; two estimates use half of all directions each
    n_specular: int = 24  # directions of the GGX lobe a surface point in training
    n_light: int = 20  # directions drawn by the brightness of the recovered light; light=mlp: cosine-weighted too
    n_diffuse_test: int = 32  # the same in pictures
    n_specular_test: int = 48
    n_light_test: int = 64
    hidden: int = 64  # width of the feature network and of its heads
    layers: int = 2  # hidden layers of the feature network
    light: Literal["texture", "mlp"] = (
        "texture"  # texture: lat-long radiance map, fast; mlp: NeRO's networks, which depend on the position too
    )
    light_height: int = 64  # light=texture: rows of the map, twice as many columns
    light_init: float = 1.0  # light=texture: radiance before training
    light_hidden: int = 128  # light=mlp: width of the light networks (NeRO: 256)
    light_sphere: bool = False  # light=mlp: the outer light depends on the point where a ray leaves the sphere, for real captures
    light_max: float = 8.0  # radiance stays below exp(this)
    photographer: bool = False  # model the reflection of the photographer, which moves with the camera: for real captures
    smooth: Any = 0.1  # weight, a schedule: difference of the material between a point and a jittered one; more removes texture
    smooth_roughness: Any = field(
        default_factory=lambda: [0.03, 1.0, 0.4, 0.7]
    )  # schedule: factor of that for the roughness; small early, while highlights determine how bright the lamps are
    jitter: float = 0.005  # smallest standard deviation of that jitter, in radii (NeRO's)
    jitter_far: float = 0.3  # and its largest: slow variation over the object is more likely due to light
    edge: float = 0.1  # differences beyond this count as edges and cost little more; larger values blend materials
    binary: Any = field(default_factory=lambda: [0.0, 0.05, 0.2, 0.5])  # weight, a schedule: penalty on metallic values between 0 and 1
    neutral: float = 0.02  # weight: penalty on coloured diffuse light
    light_smooth: float = 0.01  # light=texture, weight: difference of log radiance between neighbouring texels
    metallic_init: float = 0.1  # before training; from 0.5 on, paint is explained by rough coloured metal and everything becomes metallic
    roughness_init: float = 0.4  # perceptual
    albedo_init: float = 0.5
    smooth_normals: int = 0  # rounds of averaging the mesh's vertex normals with their neighbours: a few for noisy meshes
    offset: float = 1e-5  # secondary rays start this far above the surface, in radii
    lr_light: float = 0.06  # light=texture: of log radiance

    def __post_init__(self) -> None:
        schedules("model.material", self, "binary", "smooth", "smooth_roughness")
        names = ("n_diffuse", "n_specular", "n_diffuse_test", "n_specular_test")
        check(
            "model.material",
            **{name: (1 <= getattr(self, name) <= 4096, f"must lie in 1..4096, got {getattr(self, name)}") for name in names},
            **{
                name: (0 <= getattr(self, name) <= 4096, f"must lie in 0..4096, got {getattr(self, name)}")
                for name in ("n_light", "n_light_test")
            },
            **{
                name: (getattr(self, name) >= 0, f"must not be negative, got {getattr(self, name)}")
                for name in ("neutral", "light_smooth", "smooth_normals", "offset")
            },
            **{
                name: (0 < getattr(self, name) < 1, f"must lie between 0 and 1, got {getattr(self, name)}")
                for name in ("metallic_init", "roughness_init", "albedo_init")
            },
            hidden=(self.hidden >= 4, f"must be at least 4, got {self.hidden}"),
            layers=(1 <= self.layers <= 16, f"must lie in 1..16, got {self.layers}"),
            light_height=(4 <= self.light_height <= 1024, f"must lie in 4..1024, got {self.light_height}"),
            light_hidden=(self.light_hidden >= 4, f"must be at least 4, got {self.light_hidden}"),
            light_max=(0 < self.light_max <= 20, f"must lie in (0, 20], got {self.light_max}"),
            jitter=(0 < self.jitter <= self.jitter_far, f"must be positive and at most jitter_far, got {self.jitter}"),
            **{
                name: (
                    min(ramp(getattr(self, name)).start, ramp(getattr(self, name)).end) >= 0,
                    f"must not be negative, got {getattr(self, name)}",
                )
                for name in ("smooth", "smooth_roughness", "binary")
            },
            edge=(self.edge > 0, f"must be positive, got {self.edge}"),
            light_init=(self.light_init > 0, f"must be positive, got {self.light_init}"),
            lr_light=(self.lr_light > 0, f"must be positive, got {self.lr_light}"),
        )


@dataclass(frozen=True)
class RelightConfig:
    """`--relight`: pictures of a recovered material under another light."""

    hdr: Optional[str] = None  # light map beside the recovered light, where the flag --hdr names none; null: an evening of our own
    engine: Literal["auto", "blender", "embedded"] = "auto"  # auto: Blender where there is one, else our own renderer
    samples: int = 128  # a pixel
    width: int = 400  # pixels; a file of poses that states its size wins
    height: int = 400
    frames: int = 60  # of the orbit, when no poses are given
    elevation: float = 25.0  # of the orbit, degrees
    distance: float = 3.2  # of the orbit, in radii
    transparent: bool = True  # the object alone with alpha; false: the light is visible behind it
    strength: float = 1.0  # factor on the light
    rotation: float = 0.0  # of the light about the z axis, degrees
    device: Literal["auto", "cpu", "cuda"] = "auto"  # Blender's; the embedded renderer follows trainer.device
    texture: int = 1024  # side of the texture maps, pixels (export and relighting)
    fps: int = 24
    poses: Optional[str] = None  # cameras: a transforms.json in world units; the flag --poses sets it
    minutes: float = 60.0  # Blender is stopped after so many

    def __post_init__(self) -> None:
        check(
            "relight",
            samples=(1 <= self.samples <= 1 << 16, f"must lie in 1..65536, got {self.samples}"),
            width=(2 <= self.width <= 16384, f"must lie in 2..16384, got {self.width}"),
            height=(2 <= self.height <= 16384, f"must lie in 2..16384, got {self.height}"),
            frames=(self.frames >= 1, f"must be at least 1, got {self.frames}"),
            elevation=(-89 <= self.elevation <= 89, f"must lie in -89..89, got {self.elevation}"),
            distance=(self.distance > 1, f"must exceed 1, got {self.distance}"),
            strength=(self.strength > 0, f"must be positive, got {self.strength}"),
            texture=(64 <= self.texture <= 8192, f"must lie in 64..8192, got {self.texture}"),
            fps=(1 <= self.fps <= 240, f"must lie in 1..240, got {self.fps}"),
            minutes=(self.minutes > 0, f"must be positive, got {self.minutes}"),
        )
