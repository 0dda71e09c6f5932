"""Every option of the program, with unit and meaning; those of the models stand in `confs/model.py`.

YAML files and `key=value` overrides say only the differences. Lengths are in units of the unit sphere. A *schedule* is a
number or `[start, end, begin, until]` over the progress of the run (0 to 1). Checks live in `__post_init__`; a message
names the key.
"""

import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Optional

from confs.checks import check, schedules
from confs.material import RelightConfig
from confs.model import MethodConfig, NeuSConfig

CENTERS = ("auto", "cameras", "lookat", "points", "bbox", "given")
UPS = ("auto", "cameras", "ground", "given")
MESH_FORMATS = ("ply", "obj", "stl", "3mf", "glb")


def _named_or_xyz(value: Any, names: tuple[str, ...]) -> bool:
    if isinstance(value, str):
        return value in names
    numbers = isinstance(value, (list, tuple)) and len(value) == 3 and all(isinstance(v, (int, float)) for v in value)
    return numbers and all(abs(v) < 1e12 for v in value)


def _stays_below(name: str) -> bool:
    """Whether a folder of this name lies below the one it is joined to."""
    parts = name.replace("\\", "/").split("/")
    return ".." not in parts and not (name and not parts[0]) and not re.match(r"[A-Za-z]:", name)


@dataclass(frozen=True)
class DatasetConfig:
    # the reader; auto: by the files of the folder
    name: Literal["auto", "dtu", "blender", "transforms", "colmap", "glossy", "sdfstudio", "llff", "middlebury", "metashape"] = "auto"
    root_dir: str = "inputs/demo"  # folder of the scene
    img_downscale: Optional[float] = None  # divide the image size by this; null: images above 1 megapixel are reduced to about 0.5
    img_wh: Optional[list[int]] = None  # or: resize to this [width, height]
    apply_mask: bool = True  # use masks: the object over a background colour; false: the images as they are
    masks: bool = True  # read masks when the folder has them
    triangulate: bool = True  # a scene with neither points nor masks: triangulate points (pycolmap), kept in its points.ply
    clean_edges: bool = True  # training: replace the mixed pixels just inside a mask's edge by the object's colour nearby
    # for a scene larger than memory: its pixels are kept in temporary files (in TMPDIR, of a byte per pixel and channel), not in memory, and
    # on the host, not on the card (but for grey levels, a byte per pixel, where loss.patches is on); the results are the same. Wants a fast
    # disk (SSD): pixels are drawn at random
    on_disk: bool = False
    hold_every: int = 8  # view i is held out of training when i % hold_every == 0; 0 trains on all
    cameras: Optional[str] = None  # camera file of the photographs; null: cameras_sphere.npz, then cameras.npz
    object_cameras: Optional[str] = None  # file whose scale_mat_0 gives the region of interest; null: the same
    center: Any = "auto"  # of the region of interest: auto, cameras, lookat, points, bbox, given, or [x, y, z] in the world
    radius: Optional[float] = None  # of the region of interest in world units; null: by masks, points or what the cameras frame
    region: Optional[str] = None  # x0,y0,x1,y1@IMAGE: a box on one photograph, in its pixels, that decides the region of interest
    up: Any = "auto"  # auto, cameras, ground, given (the files' axes), or a direction [x, y, z] in the world; auto: given where the files
    # have a meaning for it, else from the ground plane, else from the cameras
    marker_size: Optional[float] = None  # side of the printed markers in the photographs, metres (process_data/markers.py); null: none
    test_steps: Optional[int] = None  # frames of the video; null: 60, down to 24 where they take longer than trainer.test_share
    test_scale: Optional[float] = None  # size of its frames over that of the photographs; null: 480 rows, fewer where these take longer

    def __post_init__(self) -> None:
        check(
            "dataset",
            img_downscale=(self.img_downscale is None or self.img_downscale > 0, f"must be positive, got {self.img_downscale}"),
            img_wh=(self.img_wh is None or (len(self.img_wh) == 2 and min(self.img_wh) > 0), f"must be [width, height], got {self.img_wh}"),
            hold_every=(
                self.hold_every >= 0 and self.hold_every != 1,
                f"must be 0 (train on all views) or at least 2, got {self.hold_every}",
            ),
            center=(_named_or_xyz(self.center, CENTERS), f"must be {', '.join(CENTERS)} or [x, y, z], got {self.center}"),
            region=(
                self.region is None or self.center == "auto",
                f"decides the centre too; remove dataset.center={self.center}, or set dataset.region=null",
            ),
            radius=(self.radius is None or self.radius > 0, f"must be positive, got {self.radius}"),
            up=(_named_or_xyz(self.up, UPS) and self.up != [0, 0, 0], f"must be {', '.join(UPS)} or a direction [x, y, z], got {self.up}"),
            marker_size=(
                self.marker_size is None or 1e-3 <= self.marker_size <= 10,
                f"must be the side of a marker in metres, 0.001 to 10, got {self.marker_size}",
            ),
            test_steps=(self.test_steps is None or self.test_steps >= 1, f"must be at least 1, got {self.test_steps}"),
            test_scale=(self.test_scale is None or 0 < self.test_scale <= 4, f"must lie in (0, 4], got {self.test_scale}"),
        )


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms of the same names in `systems/losses.py`, each a schedule (`Any`); a term of weight 0 is not computed."""

    rgb: Any = 1.0  # mean absolute colour error: the default, sharp and robust to outliers
    rgb_mse: Any = 0.0  # mean squared colour error, which PSNR measures, for NeRF
    rgb_smooth_l1: Any = 0.0  # Huber loss: squared for small errors, absolute for large ones; for NeRF on noisy photographs
    rgb_charbonnier: Any = 0.0  # rounded absolute error of a pixel's three channels together, for glossy scenes (NeRO)
    mask: Any = 0.1  # cross entropy of opacity and mask, where there are masks: fits the silhouette
    eikonal: Any = 0.1  # (|grad sdf| - 1)^2 on samples and on random points of the sphere: keeps the field a distance
    curvature: Any = 0.0  # change of the normal near samples (analytic normals), |Laplacian| x eps (finite): smooths; warm up and decay
    opaque: Any = 0.0  # entropy of opacity: rays hit or miss; against half-transparent objects, late in a run
    sparsity: Any = 0.0  # exp(-sparsity_scale |sdf|) on random points: removes surfaces outside every view
    points: Any = 0.0  # |sdf| at structure-from-motion points, where the scene has them (Geo-NeuS)
    free: Any = 0.0  # points of free space, where the scene has them, that the surface encloses or touches
    patches: Any = 0.0  # 1 - correlation of patches between photographs, through the surface (Geo-NeuS); where photographs have texture
    distortion: Any = 0.0  # spread of a ray's weights: concentrates a NeRF's density at surfaces (mip-NeRF 360), 0.001 to 0.01
    distortion_bg: Any = 0.0  # the same on the learned background
    interlevel: Any = 1.0  # trains the proposal networks to bound the final weights; leave at 1
    occlusion: Any = 0.0  # trains NeRO's occlusion network on marched reflections; from when the shape is roughly known
    sparsity_scale: float = 10.0  # 1 / the distance to a surface beyond which the sparsity term vanishes
    eikonal_points: int = 2048  # points drawn uniformly in the sphere for the eikonal and sparsity terms

    def __post_init__(self) -> None:
        schedules("loss", self, *loss_weights())
        check(
            "loss",
            eikonal_points=(self.eikonal_points >= 0, f"must not be negative, got {self.eikonal_points}"),
            sparsity_scale=(self.sparsity_scale > 0, f"must be positive, got {self.sparsity_scale}"),
        )


def loss_weights() -> list[str]:
    """Names of the weights among the loss options."""
    return [f.name for f in fields(LossConfig) if f.type is Any]


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 0.01  # networks
    lr_grid: float = 0.01  # hash table
    lr_background: float = 0.03  # hash tables of the learned background
    lr_variance: float = 0.01
    lr_pose: Any = field(
        default_factory=lambda: [0.0001, 0.000003, 0.25, 0.9]
    )  # model.pose: radians and radii a step, a geometric schedule
    pose_begin: float = 0.25  # progress from which cameras are refined; before it the surface says little about them
    lr_appearance: float = 0.002  # model.appearance
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    eps: float = 1e-15
    warmup: float = 0.01  # share of the run in which the rate rises from a tenth
    decay: float = 0.03  # rate at the end over that at the start (exponential in between)
    decay_begin: float = 0.25  # progress at which the decay sets in

    def __post_init__(self) -> None:
        schedules("optim", self, "lr_pose", log=True)
        check(
            "optim",
            lr=(self.lr > 0, f"must be positive, got {self.lr}"),
            lr_grid=(self.lr_grid > 0, f"must be positive, got {self.lr_grid}"),
            lr_background=(self.lr_background > 0, f"must be positive, got {self.lr_background}"),
            pose_begin=(0 <= self.pose_begin < 1, f"must lie in [0, 1), got {self.pose_begin}"),
            lr_appearance=(self.lr_appearance >= 0, f"must not be negative, got {self.lr_appearance}"),
            lr_variance=(self.lr_variance >= 0, f"must not be negative, got {self.lr_variance}"),
            betas=(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), f"must be two numbers in [0, 1), got {self.betas}"),
            warmup=(0 <= self.warmup < 1, f"must lie in [0, 1), got {self.warmup}"),
            decay=(0 < self.decay <= 1, f"must lie in (0, 1], got {self.decay}"),
            decay_begin=(0 <= self.decay_begin < 1, f"must lie in [0, 1), got {self.decay_begin}"),
        )


@dataclass(frozen=True)
class TrainerConfig:
    max_steps: int = 20000
    # of training and of the plane sweep before it, but at least half of them are for training; loading, validation and saving are not
    # counted. A run ends at this or at max_steps, whichever comes first
    max_minutes: Optional[float] = None
    n_rays: int = 256  # rays of the first steps
    max_rays: int = 8192
    target_samples: int = 16384  # the number of rays follows so that a step has about this many samples; on CUDA 262144 unless it is set
    device: str = "auto"  # auto, cpu, cuda, or a card by its number: cuda:1
    threads: int = 0  # CPU threads; 0: all cores
    amp: bool = True  # float16 autocast of the colour network on CUDA
    graph: bool = True  # CUDA: replay training steps as a CUDA graph where the method has steps of fixed shapes (NeuS)
    outputs_dir: str = "outputs"
    trial_name: Optional[str] = None  # folder of the run; null: time stamp
    log_every: int = 50  # steps
    val_minutes: float = 1.0  # minutes of training between validation images, which take a tenth of it at most; 0: none
    save_minutes: float = 2.0  # minutes of training between checkpoints
    save_every: int = 0  # or steps between checkpoints; 0: by minutes only
    finish: bool = True  # test and mesh after training
    test_share: float = 0.1667  # of the training time: most that the test, and the video, take (at least 30 s each); 0: no limit
    average: float = 0.1  # last share of the run over which the weights are averaged; 0: none
    max_skipped: int = 50  # non-finite steps in a row that stop the run
    chunk: int = 8192  # rays rendered at once

    def __post_init__(self) -> None:
        check(
            "trainer",
            device=(
                bool(re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,2})?", self.device)),
                f"must be auto, cpu, cuda or cuda:N, got '{self.device}'",
            ),
            max_steps=(self.max_steps >= 1, f"must be at least 1, got {self.max_steps}"),
            max_minutes=(self.max_minutes is None or self.max_minutes > 0, f"must be positive, got {self.max_minutes}"),
            n_rays=(self.n_rays >= 1, f"must be at least 1, got {self.n_rays}"),
            max_rays=(self.max_rays >= self.n_rays, f"must be at least n_rays, got {self.max_rays}"),
            target_samples=(self.target_samples >= 64, f"must be at least 64, got {self.target_samples}"),
            threads=(self.threads >= 0, f"must not be negative, got {self.threads}"),
            log_every=(self.log_every >= 1, f"must be at least 1, got {self.log_every}"),
            val_minutes=(self.val_minutes >= 0, f"must not be negative, got {self.val_minutes}"),
            save_minutes=(self.save_minutes > 0, f"must be positive, got {self.save_minutes}"),
            save_every=(self.save_every >= 0, f"must not be negative, got {self.save_every}"),
            test_share=(self.test_share >= 0, f"must not be negative, got {self.test_share}"),
            average=(0 <= self.average < 1, f"must lie in [0, 1), got {self.average}"),
            chunk=(self.chunk >= 1, f"must be at least 1, got {self.chunk}"),
        )


@dataclass(frozen=True)
class BackendConfig:
    """Implementation of each operation; auto takes the fastest that runs here (`utils/device.py` logs which and why)."""

    hashgrid: Literal["auto", "torch", "warp", "tinycudann"] = "auto"
    march: Literal["auto", "torch", "warp", "nerfacc"] = "auto"
    composite: Literal["auto", "torch", "warp", "nerfacc"] = "auto"
    network: Literal["auto", "torch", "warp"] = "auto"  # networks with ReLU; warp: on the CPU alone
    half_table: bool = False  # hashgrid=warp on CUDA: look the hash table up in float16 (gradients and weights stay float32)


@dataclass(frozen=True)
class ExportConfig:
    resolution: int = 512  # cells along the longest side of the tight box
    coarse: int = 128  # cells of the dense pass
    faces: int = 200_000  # the mesh is simplified to about this many triangles (fast-simplification); 0: all of them
    closed: bool = False  # a watertight solid, for 3D printing: what is culled, cut or was never seen from below is capped
    cut_ground: Any = False  # remove the plane that the object stands on: true, false, or auto (where the mesh clearly holds one)
    # mesh/mesh.* as ply, obj, stl, 3mf, glb; ply is always written. stl and 3mf are in millimetres where the scale is known, glb has y up
    formats: list[str] = field(default_factory=lambda: ["ply", "obj"])
    size_mm: Optional[float] = None  # of stl and 3mf: the longest side of the mesh's box, in millimetres; null: by the scale of the world
    colour: bool = True  # vertex colours
    confidence: bool = True  # how sure each vertex is, 0 to 1, in mesh.ply; a picture of it, and advice what to photograph next
    keep: int = 1  # connected components kept, largest first; 0 keeps all
    min_faces: int = 50  # smaller components go in any case
    min_views: int = 2  # vertices in the frame of fewer training views are culled; 0: no culling
    mask_dilation: float = 0.02  # vertices outside a mask dilated by this share of the width are culled; negative: no culling
    frame: Literal["auto", "world", "upright"] = "auto"  # upright: z up, the middle of the base at 0; auto: upright where the axes of the
    # world mean nothing (structure from motion), else world
    metres_per_unit: Optional[float] = None  # metres in a unit of the world: the mesh is written in metres; null: by markers, or not
    texture: Any = "auto"  # also write mesh.glb and textured.obj, the mesh with the photographs on it; auto: for photographs, and with glb
    texture_size: int = 0  # texels along a side of its picture; 0: 1024 to 8192, as fine as the photographs' pixels
    texture_from: Literal["photos", "field"] = "photos"  # its colours: the photographs, sharp; or the trained field, smoother

    def __post_init__(self) -> None:
        check(
            "export",
            resolution=(16 <= self.resolution <= 4096, f"must lie in 16..4096, got {self.resolution}"),
            coarse=(16 <= self.coarse <= 512, f"must lie in 16..512, got {self.coarse}"),
            faces=(self.faces >= 0, f"must not be negative, got {self.faces}"),
            cut_ground=(self.cut_ground in (True, False, "auto"), f"must be auto, true or false, got {self.cut_ground}"),
            formats=(
                bool(self.formats) and set(self.formats) <= set(MESH_FORMATS),
                f"must be a list of {', '.join(MESH_FORMATS)}, got {self.formats}",
            ),
            size_mm=(self.size_mm is None or 1e-3 <= self.size_mm <= 1e6, f"must lie in 0.001..1000000, got {self.size_mm}"),
            keep=(self.keep >= 0, f"must not be negative, got {self.keep}"),
            min_views=(self.min_views >= 0, f"must not be negative, got {self.min_views}"),
            texture=(self.texture in (True, False, "auto"), f"must be auto, true or false, got {self.texture}"),
            texture_size=(
                self.texture_size == 0 or 64 <= self.texture_size <= 16384,
                f"must be 0 (chosen) or lie in 64..16384, got {self.texture_size}",
            ),
            metres_per_unit=(
                self.metres_per_unit is None or 1e-9 < self.metres_per_unit < 1e9,
                f"must lie in 1e-9..1e9, got {self.metres_per_unit}",
            ),
        )


@dataclass(frozen=True)
class Config:
    name: str = "${model.name}-${dataset.name}-${basename:${dataset.root_dir}}"  # of the experiment: outputs/<name>
    tag: str = ""  # prefixes the time stamp of the trial
    seed: Optional[int] = None  # drawn and recorded when absent
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: MethodConfig = field(default_factory=NeuSConfig)  # the section of model.name (confs/model.py)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    relight: RelightConfig = field(default_factory=RelightConfig)

    def __post_init__(self) -> None:
        for key, value in (("name", self.name), ("tag", self.tag), ("trainer.trial_name", self.trainer.trial_name or "")):
            section, _, last = f"config.{key}".rpartition(".")
            check(
                section.removeprefix("config.") or "config",
                **{last: (_stays_below(value), f"must be a folder's name below outputs, got {value[:80]!r}")},
            )
        check("config", seed=(self.seed is None or 0 <= self.seed < 2**31, f"must lie in 0..2^31-1, got {self.seed}"))
        check(
            "model",
            background=(
                not (self.model.background == "learned" and self.dataset.apply_mask),
                "learned renders the photographs whole; set dataset.apply_mask=false (loss.mask > 0 still uses the masks)",
            ),
        )
