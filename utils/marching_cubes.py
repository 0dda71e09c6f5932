"""Block-sparse marching cubes: a mesh from a signed distance field, in memory proportional to the surface.

A dense coarse pass finds the cells that the surface can cross. Small blocks of a fine lattice are sampled there, and the
block behind every face that the surface crosses is added. B: lattice cells along a side of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field as dataclass_field

import mcubes
import numpy as np
import torch
import trimesh
from torch import Tensor
from tqdm import tqdm

from utils.errors import UserError

B = 8
WAVE = 1024  # blocks sampled at once: 0.75 million points
LOCAL = np.stack(np.meshgrid(*[np.arange(B + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)  # [(B+1)^3, 3]
SNAP = 1e-3  # smallest |value| as a share of a cell: no vertex falls on a lattice point
UNSURE = 0.05  # below this share of a cell, a point has the value that the first block sampled there


@dataclass
class _Clipped:
    """The field intersected with the sphere, max(field - level, |x| - radius): an open surface is closed along the sphere."""

    field: Callable[[Tensor], Tensor]
    radius: float
    level: float
    device: str | torch.device
    chunk: int
    lowest: float = float("inf")
    highest: float = float("-inf")

    @torch.no_grad()
    def __call__(self, x: np.ndarray, margin: float) -> np.ndarray:
        """x [P, 3] float64 -> [P] float32. Points further than `margin` outside the sphere are not evaluated."""
        beyond = np.linalg.norm(x, axis=1) - self.radius
        out = np.full(len(x), max(self.radius, margin), np.float32)
        near = np.flatnonzero(beyond < margin)
        for part in np.array_split(near, -(-len(near) // self.chunk)) if len(near) else []:
            points = torch.from_numpy(x[part].astype(np.float32)).to(self.device)
            value = self.field(points).reshape(-1).float().cpu().numpy() - np.float32(self.level)
            if not np.isfinite(value).all():
                bad = f"{int((~np.isfinite(value)).sum())} of {len(part)} points"
                raise UserError(f"no mesh: the SDF is not finite at {bad}; the run has diverged, take an earlier checkpoint")
            inside = value[beyond[part] <= 0]
            if len(inside):
                self.lowest, self.highest = min(self.lowest, float(inside.min())), max(self.highest, float(inside.max()))
            out[part] = np.maximum(value, beyond[part])
        return out

    def no_surface(self) -> UserError:
        """The error of a field that does not cross the level."""
        span = f"from {self.lowest + self.level:.4g} to {self.highest + self.level:.4g}"
        hint = "the run may have diverged or be too short, or the object may lie outside the sphere: check the validation images"
        return UserError(f"no surface: the SDF runs {span} inside radius {self.radius:g}, level {self.level:g}; {hint}")


def _coarse_cells(f: _Clipped, coarse: int, lipschitz: float) -> tuple[np.ndarray, np.ndarray, float]:
    """The cells of a dense lattice that the surface can cross: (indices [M, 3], corner of cell 0 [3], cell size).

    A point of the surface lies within half a cell's diagonal of a corner, so some corner has |f| <= lipschitz * diagonal / 2.
    """
    reach = f.radius * (1 + 4 / coarse)
    cell, n = 2 * reach / coarse, coarse + 1
    flat = np.empty(n**3, np.float32)
    for a in range(0, n**3, 2**20):
        index = np.stack(np.unravel_index(np.arange(a, min(a + 2**20, n**3)), (n, n, n)), 1)
        flat[a : a + len(index)] = f(index * cell - reach, 2 * cell)
    value = flat.reshape(n, n, n)
    corners = [value[i : i + coarse, j : j + coarse, k : k + coarse] for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    low, high, near = corners[0].copy(), corners[0].copy(), np.abs(corners[0])
    for c in corners[1:]:
        np.minimum(low, c, out=low), np.maximum(high, c, out=high), np.minimum(near, np.abs(c), out=near)
    cells = np.argwhere(((low <= 0) & (high >= 0)) | (near <= lipschitz * cell * 3**0.5 / 2))
    return cells, np.full(3, -reach), cell


@dataclass
class _Lattice:
    """The fine lattice: point (i, j, k) lies at origin + h (i, j, k); it covers the whole sphere with indices >= 0."""

    origin: np.ndarray  # [3]
    h: float
    blocks: int  # along a side

    def key(self, block: np.ndarray) -> np.ndarray:
        """Block indices [M, 3] -> int64 [M]."""
        return (block[:, 0] * self.blocks + block[:, 1]) * self.blocks + block[:, 2]

    def block(self, key: np.ndarray) -> np.ndarray:
        return np.stack([key // self.blocks**2, key // self.blocks % self.blocks, key % self.blocks], 1)

    def point_key(self, index: np.ndarray) -> np.ndarray:
        n = self.blocks * B + 1
        return (index[..., 0] * n + index[..., 1]) * n + index[..., 2]


def _lattice(cells: np.ndarray, corner: np.ndarray, size: float, resolution: int, radius: float) -> _Lattice:
    low, high = corner + cells.min(0) * size, corner + (cells.max(0) + 1) * size
    h = float((high - low).max()) / resolution
    reach = radius + 2 * B * h + size
    before = np.ceil((low + reach) / (B * h))
    return _Lattice(low - before * B * h, h, int(np.ceil((reach - (low - before * B * h)).max() / (B * h))) + 1)


def _candidates(f: _Clipped, lat: _Lattice, cells: np.ndarray, corner: np.ndarray, size: float, lipschitz: float) -> np.ndarray:
    """Sorted keys of the blocks that overlap a coarse cell and, by the value at their centre, can contain the surface."""
    step = B * lat.h
    first = np.floor((corner + cells * size - lat.origin) / step + 1e-9).astype(np.int64)
    last = np.ceil((corner + (cells + 1) * size - lat.origin) / step - 1e-9).astype(np.int64) - 1
    count = (last - first).max(0) + 1
    found = []
    for dx in range(count[0]):
        offset = np.stack(np.meshgrid([dx], np.arange(count[1]), np.arange(count[2]), indexing="ij"), -1).reshape(-1, 3)
        for part in np.array_split(np.arange(len(cells)), max(1, len(cells) * len(offset) // 2**22)):
            block = first[part, None] + offset
            found.append(np.unique(lat.key(block[(block <= last[part, None]).all(-1)])))
    keys = np.unique(np.concatenate(found))
    parts = np.array_split(keys, -(-len(keys) // 2**20))
    middle = np.concatenate([f(lat.origin + (lat.block(k) + 0.5) * step, size) for k in parts])
    return keys[np.abs(middle) <= lipschitz * step * 3**0.5 / 2]


@dataclass
class _Soup:
    """Triangles of the blocks before welding; a vertex is identified by the lattice edge it lies on."""

    vertices: list[np.ndarray] = dataclass_field(default_factory=list)  # lattice coordinates
    edges: list[np.ndarray] = dataclass_field(default_factory=list)  # 3 * key of the edge's lower point + axis
    faces: list[np.ndarray] = dataclass_field(default_factory=list)
    count: int = 0

    def add(self, lat: _Lattice, block: np.ndarray, value: np.ndarray) -> None:
        """Run marching cubes on blocks; block [M, 3] indices, value [M, B+1, B+1, B+1]."""
        vertices, faces, start = [], [], 0
        for b, v in zip(block, value):
            x, tri = mcubes.marching_cubes(v, 0.0)
            vertices.append(x + b * B)
            faces.append(tri.astype(np.int32)[:, ::-1] + start)  # the normals of PyMCubes point towards smaller values
            start += len(x)
        if not start:
            return
        x = np.concatenate(vertices)
        low = np.floor(x)
        self.edges.append(3 * lat.point_key(low.astype(np.int64)) + (x - low).argmax(1))
        self.vertices.append(x)
        self.faces.append(np.concatenate(faces) + np.int32(self.count))
        self.count += start

    def weld(self, lat: _Lattice) -> trimesh.Trimesh:
        """The mesh with one vertex for each lattice edge, without the faces that collapse."""
        _, first, inverse = np.unique(np.concatenate(self.edges), return_index=True, return_inverse=True)
        self.edges.clear()
        vertices = lat.origin + np.concatenate(self.vertices)[first] * lat.h
        self.vertices.clear()
        faces = inverse.reshape(-1)[np.concatenate(self.faces)]
        self.faces.clear()
        flat = (faces[:, 0] == faces[:, 1]) | (faces[:, 1] == faces[:, 2]) | (faces[:, 2] == faces[:, 0])
        return trimesh.Trimesh(vertices, faces[~flat] if flat.any() else faces, process=False)


def _unify_signs(value: np.ndarray, points: np.ndarray, h: float, sampled: dict[int, float]) -> None:
    """Give a lattice point the same sign in all blocks that share it, in place: batched arithmetic can differ in the last bits.

    value [M, P]; points [M, P] keys; sampled: values near zero of earlier blocks, by key.
    """
    unsure = np.abs(value) < UNSURE * h
    if unsure.any():
        pairs = zip(points[unsure].tolist(), value[unsure].tolist())
        value[unsure] = [sampled.setdefault(k, v) for k, v in pairs]
    small = np.abs(value) < SNAP * h
    value[small] = np.where(value[small] < 0, -SNAP * h, SNAP * h)


def _neighbours(lat: _Lattice, block: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Keys of the blocks behind the faces that the surface crosses; block [M, 3], negative [M, B+1, B+1, B+1]."""
    found = []
    for axis in range(3):
        for side, step in ((0, -1), (B, 1)):
            face = negative.take(side, axis + 1).reshape(len(block), (B + 1) ** 2)  # a size of -1 is ambiguous where M = 0
            crossed = block[face.any(1) & ~face.all(1)] + np.eye(3, dtype=np.int64)[axis] * step
            found.append(lat.key(crossed[((crossed >= 0) & (crossed < lat.blocks)).all(1)]))
    return np.unique(np.concatenate(found))


def _march(f: _Clipped, lat: _Lattice, pending: np.ndarray, progress: bool) -> _Soup:
    """Sample the blocks of the keys `pending` and every block that the surface in them leads to."""
    soup, queued = _Soup(), set(pending.tolist())
    sampled: dict[int, float] = {}
    shape = (-1, B + 1, B + 1, B + 1)
    with tqdm(total=len(pending), desc="marching cubes", unit="block", disable=not progress) as bar:
        while len(pending):
            wave, pending = pending[:WAVE], pending[WAVE:]
            block = lat.block(wave)
            index = block[:, None] * B + LOCAL  # [M, P, 3]
            value = f((lat.origin + index * lat.h).reshape(-1, 3), 2 * lat.h).reshape(len(wave), -1).astype(np.float64)
            _unify_signs(value, lat.point_key(index), lat.h, sampled)
            value = value.reshape(shape)
            negative = value < 0
            mixed = negative.any((1, 2, 3)) & ~negative.all((1, 2, 3))
            soup.add(lat, block[mixed], value[mixed])
            more = [k for k in _neighbours(lat, block[mixed], negative[mixed]).tolist() if k not in queued]
            queued.update(more)
            pending = np.concatenate([pending, np.array(more, np.int64)])
            bar.total = bar.n + len(wave) + len(pending)
            bar.update(len(wave))
    return soup


def extract(
    field: Callable[[Tensor], Tensor],
    radius: float,
    resolution: int,
    coarse: int = 128,
    device: str | torch.device = "cpu",
    chunk: int = 262144,
    level: float = 0.0,
    lipschitz: float = 1.5,
    progress: bool = False,
) -> trimesh.Trimesh:
    """Marching cubes of a signed distance field (negative inside) within the sphere of `radius`; normals point outwards.

    field: [P, 3] float32 on `device` -> [P]. resolution: cells along the longest side of the box of the coarse cells that
    the surface can cross; coarse: cells along the sphere's box in the dense pass. lipschitz: bound on |grad field|; where
    it is exceeded the surface is still followed from block to block, but separate small parts can be missed.
    Raises UserError when the field does not cross the level or is not finite.
    """
    f = _Clipped(field, radius, level, device, chunk)
    cells, corner, size = _coarse_cells(f, coarse, lipschitz)
    if not len(cells):
        raise f.no_surface()
    lat = _lattice(cells, corner, size, resolution, radius)
    soup = _march(f, lat, _candidates(f, lat, cells, corner, size, lipschitz), progress)
    if not soup.count:
        raise f.no_surface()
    return soup.weld(lat)
