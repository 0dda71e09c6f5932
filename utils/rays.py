"""The containers that all parts exchange: frozen, shape-checked when made.

Letters: N images, H W pixels of the largest height and width, h w pixels of one view, R rays, S packed samples, F features, P points.
Space: the unit sphere (radius `model.radius`) around the object; cameras have OpenCV axes (x right, y down, z forward)
and pixel centres at integers.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from utils.stack import Stack

NEAR = 0.05  # closest sample to a camera inside the sphere


def _check(owner: object, **shapes: tuple) -> None:
    """Compare shapes with symbols: equal letters must be equal numbers, None accepts any size; None tensors pass."""
    sizes: dict[str, int] = {}
    for name, want in shapes.items():
        value = getattr(owner, name)
        if value is None:
            continue
        got = tuple(value.shape)
        ok = len(got) == len(want)
        for g, w in zip(got, want):
            ok = ok and (g == sizes.setdefault(w, g) if isinstance(w, str) else w is None or g == w)
        if not ok:
            raise ValueError(f"{type(owner).__name__}.{name}: expected shape {list(want)} with {sizes}, got {list(got)}")


@dataclass(frozen=True)
class _Movable:
    def to(self, device: torch.device | str) -> Self:
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True)
class Rays(_Movable):
    """R rays. A sample at distance t lies at origins + t * dirs; samples of the object lie between near and far.

    near, far: where the ray enters and leaves the sphere of interest; near > far when it misses it.
    """

    origins: Tensor  # [R, 3]
    dirs: Tensor  # [R, 3] unit length
    near: Tensor  # [R]
    far: Tensor  # [R]

    def __post_init__(self) -> None:
        _check(self, origins=("R", 3), dirs=("R", 3), near=("R",), far=("R",))

    def __len__(self) -> int:
        return self.origins.shape[0]

    def __getitem__(self, index) -> "Rays":
        return Rays(self.origins[index], self.dirs[index], self.near[index], self.far[index])


def sphere_span(origins: Tensor, dirs: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """(near, far) [R] of unit-length rays through |x| = radius, near >= NEAR; near = 1, far = 0 for rays that miss it.

    The half chord is taken at the ray's closest point to the centre, which loses no digits for distant cameras.
    """
    middle = -(origins * dirs).sum(-1)
    closest = origins + middle[:, None] * dirs
    half = (radius**2 - (closest * closest).sum(-1)).clamp(min=0).sqrt()
    near, far = (middle - half).clamp(min=NEAR), middle + half
    hit = (half > 0) & (far > near)
    return torch.where(hit, near, 1.0), torch.where(hit, far, 0.0)


@dataclass(frozen=True)
class RayBatch(_Movable):
    """Rays with the pixels of the photographs."""

    rays: Rays
    rgb: Tensor  # [R, 3] in [0, 1], as photographed
    mask: Tensor | None  # [R] in [0, 1], 1 on the object
    view: Tensor  # [R] int64, which photograph
    points: Tensor | None = None  # [P, 3] points on the surface, known before training, drawn anew for every batch
    uv: Tensor | None = None  # [R, 2] the pixels
    free: Tensor | None = None  # [P, 3] points of free space, drawn anew for every batch

    def __post_init__(self) -> None:
        r = len(self.rays)
        _check(self, rgb=(r, 3), mask=(r,), view=(r,), points=(None, 3), uv=(r, 2), free=(None, 3))

    def to(self, device: torch.device | str) -> "RayBatch":
        mask, points, uv, free = (None if t is None else t.to(device) for t in (self.mask, self.points, self.uv, self.free))
        return RayBatch(self.rays.to(device), self.rgb.to(device), mask, self.view.to(device), points, uv, free)


@dataclass(frozen=True)
class Samples:
    """S intervals along R rays, packed: those of ray r are offsets[r]:offsets[r+1], sorted by t."""

    t_starts: Tensor  # [S]
    t_ends: Tensor  # [S]
    ray_indices: Tensor  # [S] int64
    offsets: Tensor  # [R + 1] int64
    at: Tensor | None = None  # [S] where in the intervals the field is evaluated; by default in the middle
    found: Tensor | None = None  # [] int64: of a fixed room S, how many intervals there are; those that do not fit are lost,
    # what is left over has length 0 and belongs to no ray. None: all S

    def __post_init__(self) -> None:
        _check(self, t_starts=("S",), t_ends=("S",), ray_indices=("S",), offsets=(None,), at=("S",))

    @property
    def real(self) -> Tensor | None:
        """[S] bool, whether an entry is an interval; None: all are."""
        return None if self.found is None else torch.arange(len(self), device=self.t_starts.device) < self.found

    @property
    def cut(self) -> Tensor | None:
        """[R] bool, the rays that lost intervals to a full room; None: none."""
        return None if self.found is None else self.offsets[1:] >= len(self)

    @property
    def t(self) -> Tensor:
        return self.t_mid if self.at is None else self.at

    def __len__(self) -> int:
        return self.t_starts.shape[0]

    @property
    def n_rays(self) -> int:
        return self.offsets.shape[0] - 1

    @property
    def t_mid(self) -> Tensor:
        return (self.t_starts + self.t_ends) / 2


@dataclass(frozen=True)
class FieldOutput:
    """Geometry at S points."""

    sdf: Tensor  # [S] signed distance, negative inside, in units of the unit sphere
    grad: Tensor  # [S, 3] its gradient, not normalised
    feature: Tensor  # [S, F]
    laplacian: Tensor | None = None  # [S], of finite differences
    eps: float = 0.0  # their step

    def __post_init__(self) -> None:
        _check(self, sdf=("S",), grad=("S", 3), feature=("S", None), laplacian=("S",))

    def __getitem__(self, index) -> "FieldOutput":
        laplacian = None if self.laplacian is None else self.laplacian[index]
        return FieldOutput(self.sdf[index], self.grad[index], self.feature[index], laplacian, self.eps)


@dataclass(frozen=True)
class Render:
    """R rendered rays."""

    rgb: Tensor  # [R, 3] over the background it was rendered on
    opacity: Tensor  # [R]
    depth: Tensor  # [R] distance along the ray, weighted; 0 where nothing was hit
    normal: Tensor  # [R, 3] weighted unit normals, in the unit sphere's frame
    background: Tensor | None = None  # [R, 3] colour of the learned background (0 where it was not evaluated)

    def __post_init__(self) -> None:
        _check(self, rgb=("R", 3), opacity=("R",), depth=("R",), normal=("R", 3), background=("R", 3))

    @property
    def foreground(self) -> Tensor | None:
        """[R, 3] the object on black, where the background is learned."""
        return None if self.background is None else self.rgb - (1 - self.opacity)[:, None] * self.background


@dataclass(frozen=True)
class Cameras(_Movable):
    """N pinhole cameras, pixel (i, j) has its centre at exactly (i, j). View i has `size(i)` pixels, at most width x height."""

    K: Tensor  # [N, 3, 3] pixels
    c2w: Tensor  # [N, 3, 4] camera to unit-sphere frame, OpenCV axes
    height: int  # H, at least the largest
    width: int  # W
    sizes: Tensor = None  # type: ignore[assignment]  # [N, 2] int64, width and height of each view; not given: W and H for all

    def __post_init__(self) -> None:
        largest = torch.tensor([self.width, self.height], device=self.K.device)
        if self.sizes is None:
            object.__setattr__(self, "sizes", largest.expand(len(self.K), 2).clone())
        _check(self, K=("N", 3, 3), c2w=("N", 3, 4), sizes=("N", 2))
        if self.sizes.dtype != torch.int64 or bool(((self.sizes < 1) | (self.sizes > largest)).any()):
            raise ValueError(f"Cameras.sizes: expected int64 from 1 to {largest.tolist()}, got {self.sizes.dtype} {self.sizes.tolist()}")

    def __len__(self) -> int:
        return self.K.shape[0]

    def __getitem__(self, index) -> "Cameras":
        return Cameras(self.K[index], self.c2w[index], self.height, self.width, self.sizes[index])

    def resized(self, width: int, height: int) -> "Cameras":
        """The same views with images resized to this size: u -> f u + (f - 1) / 2, f = new / old width."""
        f = torch.tensor([width, height]).to(self.K) / self.sizes
        K = self.K.clone()
        K[:, :2] *= f[:, :, None]
        K[:, :2, 2] += (f - 1) / 2
        return Cameras(K, self.c2w, height, width)

    def size(self, i: int) -> tuple[int, int]:
        """(width, height) of view i."""
        width, height = self.sizes[i].tolist()
        return width, height


@dataclass(frozen=True)
class Scene:
    """Photographs and cameras after `process_data/normalize.py`: the object lies in the unit sphere.

    images stay uint8; `to_world` maps the unit sphere's frame to the reader's, the world.
    Photographs may have several sizes: each lies in the top-left corner of its H x W pixels, the rest is 0 and is no part of it.
    """

    name: str
    images: Tensor  # [N, H, W, 3] uint8, sRGB; `image(i)` without the padding
    masks: Tensor | None  # [N, H, W] uint8, 255 on the object (soft edges kept); `mask(i)` without the padding
    cameras: Cameras
    to_world: Tensor  # [4, 4] float64
    train: tuple[int, ...]  # views to train on
    test: tuple[int, ...]  # views held out
    names: tuple[str, ...]  # of the image files
    test_background: str = "black"  # behind masked photographs in tests: black, white, or image (photographs as they are)
    points: Tensor | None = None  # [P, 3] points on the surface, of structure from motion or a plane sweep, unit-sphere frame
    tracks: Tensor | None = None  # [M, 2] int64 pairs (point, view): the views that see each point
    arbitrary_world: bool = False  # the axes of the world mean nothing: those of structure from motion
    up: Tensor | None = None  # [3] float64, unit: up in the world, estimated or set; None: the axes are those of the files
    metres_per_unit: float | None = None  # of the world, where markers in the photographs tell it
    free: Tensor | None = None  # [Q, 3] points known to lie in free space
    on_disk: tuple[Stack, ...] = ()  # images and masks where they lie in files: too large for memory, not to be copied as a whole

    def __post_init__(self) -> None:
        n, h, w = self.images.shape[:3]
        _check(
            self,
            images=("N", "H", "W", 3),
            masks=("N", "H", "W"),
            to_world=(4, 4),
            points=(None, 3),
            tracks=(None, 2),
            up=(3,),
            free=(None, 3),
        )
        if (len(self.cameras), self.cameras.height, self.cameras.width) != (n, h, w) or len(self.names) != n:
            raise ValueError(
                f"Scene: {n} images of {h}x{w} but {len(self.cameras)} cameras of {self.cameras.height}x{self.cameras.width} and {len(self.names)} names"
            )

    @property
    def sizes(self) -> Tensor:
        """[N, 2] int64, width and height of each view."""
        return self.cameras.sizes

    def image(self, i: int) -> Tensor:
        """[h, w, 3] uint8, view i."""
        width, height = self.cameras.size(i)
        return self.images[i, :height, :width]

    def mask(self, i: int) -> Tensor | None:
        """[h, w] uint8, None without masks."""
        width, height = self.cameras.size(i)
        return None if self.masks is None else self.masks[i, :height, :width]
