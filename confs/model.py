"""The options of the methods: encodings, networks, samplers, background. See `confs/schema.py`.

The config of a model is a tagged union: `model.name` selects one of `METHOD_CONFIGS`, and a key that the method does not have is an
unknown key. `capabilities` lists what a method computes; the loss terms need them (`confs/effects.py`).
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Optional

from confs.checks import check, schedules
from confs.material import MonteCarloConfig
from utils.schedule import ramp


@dataclass(frozen=True)
class HashGridConfig:
    n_levels: int = 12
    n_features: int = 2  # features a level: 1, 2, 4 or 8
    log2_size: int = 18  # rows of a level's table, at most 2^this
    base: int = 16  # coarsest resolution
    top: int = 512  # finest resolution: about the pixel footprint at the object (2 radius / pixel)
    interpolation: Literal["linear", "smoothstep"] = "smoothstep"  # linear leaves cell edges in the normals
    levels: Any = field(default_factory=lambda: [4, 12, 0.0, 0.3])  # schedule: number of open levels

    def __post_init__(self) -> None:
        schedules("model.grid", self, "levels")
        check(
            "model.grid",
            n_levels=(1 <= self.n_levels <= 32, f"must lie in 1..32, got {self.n_levels}"),
            n_features=(self.n_features in (1, 2, 4, 8), f"must be 1, 2, 4 or 8, got {self.n_features}"),
            log2_size=(8 <= self.log2_size <= 24, f"must lie in 8..24, got {self.log2_size}"),
            base=(self.base >= 2, f"must be at least 2, got {self.base}"),
            top=(self.top >= self.base, f"must be at least base, got {self.top}"),
        )


@dataclass(frozen=True)
class SDFConfig:
    hidden: int = 64  # width of the hidden layers
    layers: int = 1  # hidden layers
    feature: int = 15  # features passed to the colour network
    pass_encoding: bool = False  # network=small: pass the position encoding to the colour network too
    activation: Literal["softplus", "relu", "quadratic"] = (
        "softplus"  # network=small; softplus has beta 100, quadratic is its piecewise polynomial twin
    )
    sphere_radius: float = 0.5  # the network is a sphere of this radius at step 0
    network: Literal["small", "neus"] = "small"  # neus: the deep softplus MLP of NeuS with weight norm
    skip: int = 0  # network=neus: layer at which the input enters again; 0: none
    normals: Literal["analytic", "finite"] = "analytic"  # finite: by differences, which smooths over eps and gives the curvature for free
    eps: float = 0.0  # normals=finite: step in radii; 0 follows the finest open level
    taps: int = 6  # normals=finite: points of a difference, 4 (tetrahedron) or 6 (axes)

    def __post_init__(self) -> None:
        check(
            "model.sdf",
            skip=(0 <= self.skip < self.layers or self.skip == 0, f"must lie below layers, got {self.skip}"),
            eps=(self.eps >= 0, f"must not be negative, got {self.eps}"),
            taps=(self.taps in (4, 6), f"must be 4 or 6, got {self.taps}"),
            hidden=(self.hidden >= 4, f"must be at least 4, got {self.hidden}"),
            layers=(1 <= self.layers <= 16, f"must lie in 1..16, got {self.layers}"),
            feature=(self.feature >= 1, f"must be at least 1, got {self.feature}"),
            sphere_radius=(self.sphere_radius > 0, f"must be positive, got {self.sphere_radius}"),
        )


@dataclass(frozen=True)
class RadianceConfig:
    hidden: int = 64
    layers: int = 2  # hidden layers
    dirs: Literal["spherical", "frequency", "identity", "ide", "identity+spherical", "identity+frequency", "none"] = (
        "spherical"  # encoding of the view direction; none: a colour that is the same from everywhere
    )
    sh_degree: int = 4  # dirs=spherical: bands of spherical harmonics, 1..5
    n_frequencies: int = 4  # dirs=frequency: octaves
    ide_degree: int = 4  # dirs=ide: bands 1, 2, 4, ... of the integrated directional encoding, 1..5

    def __post_init__(self) -> None:
        check(
            "model.radiance",
            sh_degree=(1 <= self.sh_degree <= 5, f"must lie in 1..5, got {self.sh_degree}"),
            n_frequencies=(1 <= self.n_frequencies <= 16, f"must lie in 1..16, got {self.n_frequencies}"),
            ide_degree=(1 <= self.ide_degree <= 5, f"must lie in 1..5, got {self.ide_degree}"),
            layers=(1 <= self.layers <= 8, f"must lie in 1..8, got {self.layers}"),
        )


@dataclass(frozen=True)
class ShadingConfig:
    """model.name=nero-shape: material and light networks in place of the colour network."""

    hidden: int = 64  # width of the networks of materials, inner light and occlusion
    layers: int = 2  # hidden layers of each
    outer: int = 128  # width of the network of the outer light, which has more detail than a material
    separate: bool = False  # one network each for albedo, roughness and metallic, as published
    weight_norm: bool = False
    ide_degree: int = 5  # of lights: bands 1, 2, 4, ... of the integrated directional encoding, 1..5
    n_frequencies: int = 8  # octaves of a point for inner light and occlusion
    light_max: float = 20.0  # upper bound of radiance; a white diffuse surface under uniform radiance 1 is white in the photographs
    photographer: bool = False  # real captures: model the reflection of the photographer, which moves with the camera (needs dataset.up)
    deferred: bool = True  # shade once a ray, at the weighted mean of its samples; false: every sample, as published
    min_weight: float = 0.001  # samples (or rays) of smaller weight (or opacity) are not shaded
    occlusion_points: int = 128  # loss.occlusion: surface points a step whose reflected ray is marched
    occlusion_samples: list[int] = field(default_factory=lambda: [64, 16])  # loss.occlusion: [uniform, importance] samples of such a ray

    def __post_init__(self) -> None:
        n = self.occlusion_samples
        check(
            "model.shading",
            hidden=(self.hidden >= 4, f"must be at least 4, got {self.hidden}"),
            outer=(self.outer >= 4, f"must be at least 4, got {self.outer}"),
            layers=(1 <= self.layers <= 8, f"must lie in 1..8, got {self.layers}"),
            ide_degree=(1 <= self.ide_degree <= 5, f"must lie in 1..5, got {self.ide_degree}"),
            n_frequencies=(1 <= self.n_frequencies <= 16, f"must lie in 1..16, got {self.n_frequencies}"),
            light_max=(self.light_max > 0, f"must be positive, got {self.light_max}"),
            min_weight=(0 <= self.min_weight < 0.1, f"must lie in [0, 0.1), got {self.min_weight}"),
            occlusion_points=(self.occlusion_points >= 1, f"must be at least 1, got {self.occlusion_points}"),
            occlusion_samples=(
                len(n) == 2 and n[0] >= 4 and (n[1] == 0 or n[1] >= 2),
                f"must be [at least 4, 0 or at least 2], got {n}",
            ),
        )


@dataclass(frozen=True)
class OccupancyConfig:
    resolution: int = 128  # cells along a side
    threshold: float = 0.02  # a cell is occupied when its value exceeds this, or the mean over all cells where that is smaller
    every: int = 16  # steps between updates
    decay: float = 0.5  # of the running maximum, an update
    margin: float = 0.87  # cells: a cell counts when the surface passes within this distance of the evaluated point (0.87: half a diagonal)

    def __post_init__(self) -> None:
        check(
            "model.occupancy",
            resolution=(8 <= self.resolution <= 512, f"must lie in 8..512, got {self.resolution}"),
            threshold=(0 < self.threshold < 1, f"must lie in (0, 1), got {self.threshold}"),
            every=(self.every >= 1, f"must be at least 1, got {self.every}"),
            decay=(0 < self.decay < 1, f"must lie in (0, 1), got {self.decay}"),
        )


@dataclass(frozen=True)
class VarianceConfig:
    init: float = 0.3  # v at the start; inv_s = exp(10 v)
    min_inv_s: Any = 0.001  # lower bound of inv_s, a geometric schedule: keeps photographs that disagree from dissolving the surface
    max_inv_s: Any = 20000.0  # upper bound of inv_s, a geometric schedule: [50, 20000, 0, 0.8] keeps the surface soft while its shape forms

    def __post_init__(self) -> None:
        schedules("model.variance", self, "min_inv_s", "max_inv_s", log=True)
        cap = ramp(self.max_inv_s, log=True)
        check("model.variance", max_inv_s=(min(cap.start, cap.end) > 1, f"must exceed 1, got {self.max_inv_s}"))


@dataclass(frozen=True)
class FrequencyConfig:
    """model.encoding=frequency and ipe: sines and cosines of 2^k x."""

    n_frequencies: int = 6  # octaves
    levels: Any = 24.0  # schedule: number of open octaves (beyond the last: all), opened gradually
    cone: float = 0.0005  # ipe: radius of a pixel at distance 1, about 0.6 / focal length in pixels

    def __post_init__(self) -> None:
        schedules("model.frequency", self, "levels")
        check(
            "model.frequency",
            n_frequencies=(1 <= self.n_frequencies <= 24, f"must lie in 1..24, got {self.n_frequencies}"),
            cone=(self.cone >= 0, f"must not be negative, got {self.cone}"),
        )


@dataclass(frozen=True)
class DensityConfig:
    """The density network of NeRF."""

    hidden: int = 64
    layers: int = 1  # hidden layers
    feature: int = 15  # features passed to the colour network
    level: float = 5.0  # density, per radius of the unit sphere, at which a mesh is taken

    def __post_init__(self) -> None:
        check(
            "model.density",
            hidden=(self.hidden >= 4, f"must be at least 4, got {self.hidden}"),
            layers=(1 <= self.layers <= 16, f"must lie in 1..16, got {self.layers}"),
            feature=(self.feature >= 1, f"must be at least 1, got {self.feature}"),
            level=(self.level > 0, f"must be positive, got {self.level}"),
        )


@dataclass(frozen=True)
class SamplingConfig:
    """model.sampler=hierarchical and proposal, and the proposal network of the learned background."""

    n_samples: int = 64  # hierarchical: uniform samples a ray; proposal: final samples a ray
    n_importance: int = 64  # hierarchical: importance samples a ray
    rounds: int = 4  # hierarchical: rounds of importance sampling; each doubles inv_s
    n_proposal: list[int] = field(default_factory=lambda: [96])  # proposal: samples of each proposal network
    log2_size: int = 15  # rows of a proposal network's hash table, at most 2^this
    top: int = 128  # finest resolution of a proposal network

    def __post_init__(self) -> None:
        check(
            "model.sampling",
            n_samples=(self.n_samples >= 4, f"must be at least 4, got {self.n_samples}"),
            n_importance=(self.n_importance >= 0, f"must not be negative, got {self.n_importance}"),
            rounds=(0 <= self.rounds <= max(self.n_importance, 1), f"must lie in 0..n_importance, got {self.rounds}"),
            n_proposal=(
                len(self.n_proposal) >= 1 and min(self.n_proposal) >= 4,
                f"must be at least one number of at least 4, got {self.n_proposal}",
            ),
            log2_size=(8 <= self.log2_size <= 24, f"must lie in 8..24, got {self.log2_size}"),
            top=(self.top >= 16, f"must be at least 16, got {self.top}"),
        )


@dataclass(frozen=True)
class BackgroundFieldConfig:
    """model.background=learned: a second radiance field from the far side of the sphere to the horizon."""

    n_levels: int = 8
    n_features: int = 2
    log2_size: int = 19
    base: int = 16
    top: int = 512
    hidden: int = 32
    feature: int = 15
    n_proposal: int = 32  # samples of the proposal network a ray
    n_samples: int = 16  # samples a ray; pictures use twice as many of both
    far: float = 1000.0  # the horizon, in radii
    levels: Any = field(
        default_factory=lambda: [4, 8, 0.0, 0.3]
    )  # schedule: open levels; with few of them the background cannot overfit the object in each view
    view_dependent: bool = False  # colour depends on the view direction; true lets the background overfit the object in each view

    def __post_init__(self) -> None:
        schedules("model.background_field", self, "levels")
        check(
            "model.background_field",
            n_levels=(1 <= self.n_levels <= 32, f"must lie in 1..32, got {self.n_levels}"),
            n_features=(self.n_features in (1, 2, 4, 8), f"must be 1, 2, 4 or 8, got {self.n_features}"),
            log2_size=(8 <= self.log2_size <= 24, f"must lie in 8..24, got {self.log2_size}"),
            top=(self.top >= self.base >= 2, f"must be at least base, and that 2; got {self.top} and {self.base}"),
            n_proposal=(self.n_proposal >= 4, f"must be at least 4, got {self.n_proposal}"),
            n_samples=(self.n_samples >= 2, f"must be at least 2, got {self.n_samples}"),
            far=(self.far > 10, f"must exceed 10, got {self.far}"),
        )


@dataclass(frozen=True)
class MethodConfig:
    """Options of every method; `name` is the tag of the union."""

    name: str = ""
    radius: float = 1.0  # of the sphere that holds the object
    background: Literal["auto", "random", "black", "white", "learned"] = "auto"
    # behind the object in training; learned: a radiance field; auto: learned without masks, else random
    encoding: Literal["hashgrid", "frequency", "ipe", "identity+hashgrid", "identity+frequency", "identity+ipe"] = (
        "hashgrid"  # of positions (an SDF network always receives the position itself too; ipe is NeRF's)
    )
    grid: HashGridConfig = field(default_factory=HashGridConfig)
    frequency: FrequencyConfig = field(default_factory=FrequencyConfig)

    def __post_init__(self) -> None:
        check(
            "model",
            radius=(self.radius > 0, f"must be positive, got {self.radius}"),
            encoding=("ipe" not in self.encoding or self.name == "nerf", "ipe is for model.name=nerf; use frequency"),
        )

    @property
    def capabilities(self) -> frozenset[str]:
        """What the method computes, of: colour, opacity, samples, sdf, occlusion, background, proposals."""
        return frozenset({"colour"})


@dataclass(frozen=True)
class VolumeConfig(MethodConfig):
    """Options of the methods that render by volume rendering."""

    samples_per_ray: Any = 512  # schedule; least step length = 2 sqrt(3) radius / this. A soft surface takes longer steps: 1 / (2 inv_s)
    samples_per_ray_test: int = 1024  # the same for pictures
    sampler: Literal["occupancy", "hierarchical", "proposal"] = "occupancy"  # hierarchical is NeuS's, proposal NeRF's
    pose: Any = "auto"  # true: refine a rotation and a translation of each camera; auto: for photographs (confs/recipes.py: PHOTOGRAPHED)
    appearance: Literal["auto", "none", "affine", "embedding"] = (
        "auto"  # per photograph: an affine map of its colours (exposure, white balance), or a vector for the colour network; auto: as pose
    )
    distractors: Any = "auto"  # true: parts of photographs that the scene cannot explain lose their say; auto: as pose
    gradient_scaling: bool = False  # gradients times min(1, distance to the camera ^2): against floaters near cameras
    occupancy: OccupancyConfig = field(default_factory=OccupancyConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    background_field: BackgroundFieldConfig = field(default_factory=BackgroundFieldConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        schedules("model", self, "samples_per_ray", log=True)
        steps = ramp(self.samples_per_ray)
        other = "hierarchical" if self.name == "nerf" else "proposal"
        check(
            "model",
            pose=(self.pose in ("auto", True, False), f"must be true, false or auto, got {self.pose}"),
            distractors=(self.distractors in ("auto", True, False), f"must be true, false or auto, got {self.distractors}"),
            sampler=(self.sampler != other, f"{self.sampler} is not for model.name={self.name}; use occupancy"),
            samples_per_ray=(min(steps.start, steps.end) >= 16, f"must be at least 16, got {self.samples_per_ray}"),
            samples_per_ray_test=(self.samples_per_ray_test >= 16, f"must be at least 16, got {self.samples_per_ray_test}"),
        )

    @property
    def capabilities(self) -> frozenset[str]:
        learned = {"background", "proposals"} if self.background == "learned" else set()
        proposals = {"proposals"} if self.sampler == "proposal" else set()
        return frozenset({"colour", "opacity", "samples", *learned, *proposals})


@dataclass(frozen=True)
class SurfaceConfig(VolumeConfig):
    """Options of the methods whose geometry is an SDF."""

    start: Literal["auto", "sphere", "points", "sweep"] = (
        "auto"  # the surface at step 0; points: fitted to those of structure from motion; sweep: to those of a plane sweep through the sphere;
        # auto: without masks points where the scene has them, else sweep, or sphere where it finds too few
    )
    refine: float = 0.1  # progress from which the SDF of long intervals is evaluated at their zero crossing, not at the middle; 1: never
    min_weight: float = 0.001  # sampler=occupancy, on the CPU: of a ray that the surface stops, samples of smaller weight take no part in a
    # training step; 0: all do
    cos_anneal_end: float = 0.25  # progress from which the true cosine is used
    sdf: SDFConfig = field(default_factory=SDFConfig)
    variance: VarianceConfig = field(default_factory=VarianceConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            "model",
            min_weight=(0 <= self.min_weight < 0.1, f"must lie in [0, 0.1), got {self.min_weight}"),
            refine=(0 <= self.refine <= 1, f"must lie in [0, 1], got {self.refine}"),
            cos_anneal_end=(0 <= self.cos_anneal_end <= 1, f"must lie in [0, 1], got {self.cos_anneal_end}"),
        )

    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | {"sdf"}


@dataclass(frozen=True)
class NeuSConfig(SurfaceConfig):
    name: str = "neus"
    radiance: RadianceConfig = field(default_factory=RadianceConfig)
    dirs_begin: float = 0.0  # progress from which colours depend on the view direction

    def __post_init__(self) -> None:
        super().__post_init__()
        check("model", dirs_begin=(0 <= self.dirs_begin <= 1, f"must lie in [0, 1], got {self.dirs_begin}"))


@dataclass(frozen=True)
class NeROConfig(SurfaceConfig):
    """NeRO's first stage."""

    name: str = "nero-shape"
    shading: ShadingConfig = field(default_factory=ShadingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check("model", appearance=(self.appearance != "embedding", "embedding is for methods with a colour network; use affine"))

    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | {"occlusion"}


@dataclass(frozen=True)
class NeRFConfig(VolumeConfig):
    name: str = "nerf"
    density: DensityConfig = field(default_factory=DensityConfig)
    radiance: RadianceConfig = field(default_factory=RadianceConfig)


@dataclass(frozen=True)
class MaterialConfig(MethodConfig):
    """NeRO's second stage."""

    name: str = "material"
    background: Literal["auto", "random", "black", "white", "learned"] = "white"
    mesh: Optional[str] = None  # the mesh in world units, or the run folder that holds mesh/mesh.ply
    # per photograph: an affine map of its colours (exposure, white balance); auto: for photographs (confs/recipes.py: PHOTOGRAPHED)
    appearance: Literal["auto", "none", "affine"] = "auto"
    material: MonteCarloConfig = field(default_factory=MonteCarloConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check("model", background=(self.background in ("black", "white"), f"must be black or white here, got {self.background}"))


# model.name -> its options; a method from outside adds its own (`systems/build.py`)
METHOD_CONFIGS: dict[str, type[MethodConfig]] = {
    "neus": NeuSConfig,
    "nerf": NeRFConfig,
    "nero-shape": NeROConfig,
    "material": MaterialConfig,
}
