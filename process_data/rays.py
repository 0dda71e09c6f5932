"""Pixels -> rays, and the stream of training batches.

Pixel centres are at integers; cameras have OpenCV axes. A batch is a function of (seed, step, n_rays) alone.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from process_data.edges import scene_edges
from utils.errors import UserError
from utils.rays import Cameras, RayBatch, Rays, Scene, sphere_span

N_POINTS = 512  # points on the surface, and as many of free space, that come with a batch
CUBE, MANY = 0.03, 8  # side of a cube in radii; with so many points or more in it, they share one chance to be drawn
Drawn = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]  # pixels, points, colours, masks: see `RayDataset.drawn`


def make_rays(cameras: Cameras, view: Tensor, uv: Tensor, radius: float) -> Rays:
    """Rays through the points uv [R, 2] (pixels, float) of the views [R] (int64); a ray that misses the sphere has near > far."""
    K = cameras.K.index_select(0, view)
    pose = cameras.c2w.index_select(0, view)
    y = (uv[:, 1] - K[:, 1, 2]) / K[:, 1, 1]
    x = (uv[:, 0] - K[:, 0, 2] - K[:, 0, 1] * y) / K[:, 0, 0]
    local = torch.stack([x, y, torch.ones_like(x)], -1)
    dirs = torch.nn.functional.normalize((pose[:, :, :3] * local[:, None]).sum(-1), dim=-1)
    origins = pose[:, :, 3].contiguous()
    return Rays(origins, dirs, *sphere_span(origins, dirs, radius))


def view_rays(cameras: Cameras, i: int, radius: float) -> Rays:
    """Rays of all h * w pixels of view i, row by row."""
    device, (width, height) = cameras.K.device, cameras.size(i)
    v, u = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    uv = torch.stack([u, v], -1).reshape(-1, 2).to(cameras.K.dtype)
    return make_rays(cameras, torch.full((len(uv),), i, device=device), uv, radius)


def mixed_seed(seed: int, step: int) -> int:
    """A 32-bit seed (torch's CPU generator uses no more); for one seed no two of 2^32 steps share it (MurmurHash3's finaliser)."""
    x = (seed * 0x9E3779B1 + step) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)


def _photographs_on(stack: Tensor, device: torch.device | str) -> Tensor:
    """The stack on a device. Raises UserError where it does not fit there."""
    try:
        return stack.to(device)
    except torch.OutOfMemoryError:
        raise UserError(
            f"the photographs and masks do not fit on {device} ({stack.numel() / 2**30:.1f} GiB): set dataset.on_disk=true, which leaves them "
            "on the host, or raise dataset.img_downscale"
        ) from None


def _chances(points: Tensor, radius: float) -> Tensor:
    """[P] float64, running sums of the chances with which points [P, 3] on a surface are drawn.

    Of n points in a cube each has 1 / max(n, MANY): dense parts count as much as others, and lone points, which are more often wrong, less.
    """
    _, of, count = torch.unique(torch.floor((points + radius) / (CUBE * radius)), dim=0, return_inverse=True, return_counts=True)
    return (1 / count.clamp(min=MANY).double())[of].cumsum(0)


class RayDataset(Dataset):
    """Batches of random pixels of the training views. Item (step, n_rays) -> RayBatch; holds no state between items.

    Photographs stay uint8 and lie on `device`, those of `Scene.on_disk` on the CPU; pixels are drawn on the CPU, so that every device sees
    the same batches.
    share (rank, world): of `world` processes the one numbered `rank` takes its part of a batch of world * n_rays.
    """

    def __init__(
        self, scene: Scene, radius: float, seed: int, device: torch.device | str = "cpu", clean_edges: bool = True, share: tuple[int, int] = (0, 1)
    ) -> None:  # fmt: skip
        self.cameras = scene.cameras.to(device)
        self.stacks = scene.on_disk
        self.host: RayDataset | None = None
        if scene.on_disk and torch.device(device).type != "cpu":
            self.host = RayDataset(scene, radius, seed, "cpu", clean_edges, share)  # reads the pixels
            clean_edges = False
        on = device if self.host is None else "cpu"
        self.pixels = _photographs_on(scene.images, on).reshape(-1, 3)
        self.masks = None if scene.masks is None else _photographs_on(scene.masks, on).reshape(-1)
        self.points = None if scene.points is None or not len(scene.points) else scene.points.to(device)
        self.n_surface = 0 if self.points is None else len(self.points)
        self.chances = None if self.points is None else _chances(self.points.cpu(), radius)
        if self.points is not None and scene.free is not None and len(scene.free):
            self.points = torch.cat([self.points, scene.free.to(self.points)])
        self.train = torch.tensor(scene.train, dtype=torch.int64, device=device)
        self.widths = self.cameras.sizes[:, 0].contiguous()
        areas = scene.cameras.sizes.prod(1)[list(scene.train)]
        self.total, self.ends = int(areas.sum()), areas.cumsum(0).to(device)  # of the training views' pixels, numbered view after view
        self.starts = self.ends - areas.to(device)
        edges = scene_edges(scene) if clean_edges else None
        self.edges = None if edges is None or not len(edges[0]) else tuple(part.to(device) for part in edges)
        self.radius, self.seed, self.device, self.share = radius, seed, device, share

    def draw(self, step: int, n_rays: int) -> Tensor:
        """[n_rays] int64, uniform over the pixels of the training views (of their own sizes), with replacement."""
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, step))
        return self._part(self.total, n_rays, generator)

    def _part(self, high: int, n: int, generator: torch.Generator) -> Tensor:
        """[n] int64 in [0, high): this process's part of what all draw."""
        return self._mine(torch.randint(high, (self.share[1] * n,), generator=generator))

    def _mine(self, drawn: Tensor) -> Tensor:
        rank, world = self.share
        return drawn.chunk(world)[rank]

    def draw_points(self, step: int) -> Tensor | None:
        """[N_POINTS] int64, of the scene's points, with replacement, and as many of free space; None where it has none.

        Of the surface's points about as many are drawn from each part of it, however densely they lie there.
        """
        if self.points is None or self.chances is None:
            return None
        generator = torch.Generator().manual_seed(mixed_seed(self.seed + 1, step))
        at = self._mine(torch.rand(self.share[1] * N_POINTS, generator=generator, dtype=torch.float64))
        surface = torch.searchsorted(self.chances, at * self.chances[-1], right=True).clamp(max=self.n_surface - 1)
        n_free = len(self.points) - self.n_surface
        return torch.cat([surface, self.n_surface + self._part(n_free, N_POINTS, generator)]) if n_free else surface

    def __getitem__(self, item: tuple[int, int]) -> RayBatch:
        return self.batch(*self.sent(self.drawn(*item)))

    def drawn(self, step: int, n_rays: int) -> Drawn:
        """What `batch` makes a batch of, on the CPU: pixels [R] int64, points [P] int64, and where the photographs stay on the CPU but
        the batch does not the pixels' colours [R, 3] uint8 and masks [R] uint8."""
        pixels = self.draw(step, n_rays)
        colours, masks = self.host.values(self.host.places(pixels)[3]) if self.host is not None else (None, None)
        return pixels, self.draw_points(step), colours, masks

    def sent(self, drawn: Drawn) -> Drawn:
        """The same on `device`."""
        pixels, *rest = drawn
        points, colours, masks = (None if t is None else t.to(self.device, non_blocking=True) for t in rest)
        return pixels.to(self.device, non_blocking=True), points, colours, masks

    def places(self, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(view, column, row, number among the N * H * W pixels of the stack), each [R] int64, of the drawn pixels [R]."""
        index = torch.searchsorted(self.ends, drawn, right=True)
        pixel = drawn - self.starts.index_select(0, index)
        view = self.train.index_select(0, index)
        width = self.widths.index_select(0, view)
        v = torch.div(pixel, width, rounding_mode="floor")
        u = pixel - v * width
        return view, u, v, (view * self.cameras.height + v) * self.cameras.width + u

    def values(self, flat: Tensor) -> tuple[Tensor, Tensor | None]:
        """(colours [R, 3], masks [R] or None), uint8, of the pixels [R] of the stack."""
        for stack in self.stacks:
            stack.expect(flat.numpy())
        return self._colours(flat), None if self.masks is None else self.masks.index_select(0, flat)

    def batch(self, drawn: Tensor, points: Tensor | None, colours: Tensor | None = None, masks: Tensor | None = None) -> RayBatch:
        """The rays of what is `drawn`, on `device`."""
        view, u, v, flat = self.places(drawn)
        if colours is None:
            colours, masks = self.values(flat)
        uv = torch.stack([u, v], -1).to(self.cameras.K.dtype)  # [R, 2]
        rgb = colours.to(torch.float32) / 255
        mask = None if masks is None else masks.to(torch.float32) / 255
        chosen = None if points is None or self.points is None else self.points[points]
        free = None if chosen is None or len(chosen) == N_POINTS else chosen[N_POINTS:]
        surface = None if chosen is None else chosen[:N_POINTS]
        return RayBatch(make_rays(self.cameras, view, uv, self.radius), rgb, mask, view, surface, uv, free)

    def _colours(self, flat: Tensor) -> Tensor:
        """[R, 3] uint8 of the pixels [R], those at a mask's edge repaired (`process_data/edges.py`)."""
        rgb = self.pixels.index_select(0, flat)
        if self.edges is None:
            return rgb
        index, colour = self.edges
        at = torch.searchsorted(index, flat).clamp(max=len(index) - 1)
        return torch.where((index.index_select(0, at) == flat)[:, None], colour.index_select(0, at), rgb)


class StepSampler(Sampler):
    """Yields (step, n_rays()) from first_step on, for ever; n_rays is called at every step."""

    def __init__(self, first_step: int, n_rays: Callable[[], int]) -> None:
        self.first_step, self.n_rays = first_step, n_rays

    def __iter__(self) -> Iterator[tuple[int, int]]:
        step = self.first_step
        while True:
            yield step, self.n_rays()
            step += 1


def _identity(batch: RayBatch) -> RayBatch:
    return batch


def ray_loader(
    scene: Scene,
    seed: int,
    first_step: int,
    n_rays: Callable[[], int],
    radius: float,
    device: torch.device | str = "cpu",
    clean_edges: bool = True,
    share: tuple[int, int] = (0, 1),
) -> DataLoader:
    """An endless loader of RayBatch; share: of a `RayDataset`. It fetches no batch ahead, and its own generator leaves the global random state alone.

    No workers: drawing a batch takes about 2 ms, less than passing it between processes, and each would hold the photographs again.
    """
    return DataLoader(
        RayDataset(scene, radius, seed, device, clean_edges, share),
        sampler=StepSampler(first_step, n_rays),
        batch_size=None,
        num_workers=0,
        collate_fn=_identity,  # type: ignore[arg-type]
        generator=torch.Generator(),
    )
