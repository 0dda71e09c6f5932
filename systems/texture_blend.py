"""The colour of each texel from the photographs that see it.

Low frequencies are the mean over the views that see a point well, so that differences of exposure leave no seams; high frequencies come
from the best view alone, so that small errors of the cameras blur nothing (after Burt and Adelson, 1983, and Allene et al., 2008). A view whose
colours disagree with the median over the views, as where something passes before it or a highlight lies, counts little there, and so does
one that is out of focus.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.linalg import cg
from torch import Tensor

from systems.texture_views import Photograph, look

BEST = 8  # views of a vertex that are kept
LEAST = 0.1  # cosine between normal and line of sight below which a view says nothing
SHARPNESS = 4  # power of the weights of the high frequencies
TOLERANCE = 0.03  # difference from the median, of colours in [0, 1], that is always forgiven
BLURRED = 0.1  # least weight of a view that is less sharp than another, and by that in proportion to its sharpness
FALLBACK = 0.002  # weight of the field's colour, over that of the best view anywhere
FADE, FADE_SHIFT = 0.002, 1e-4  # screening: colours continued into unseen parts, and the field's shift, fade over 0.5 / sqrt(FADE) edges
SEEN = 0.05  # weight of the views from which a vertex has the photographs' colour
CHUNK = 1 << 19  # texels at once


@dataclass(frozen=True)
class Surface:
    """The mesh in the unit sphere's frame."""

    x: Tensor  # [V, 3]
    faces: Tensor  # [F, 3] int64
    normals: Tensor  # [V, 3] smooth


@dataclass(frozen=True)
class Texels:
    """M texels on the faces of a mesh."""

    face: Tensor  # [M] int64
    weights: Tensor  # [M, 3] barycentric; beyond [0, 1] for texels just outside a chart

    def of(self, values: Tensor, faces: Tensor, part: Tensor) -> Tensor:
        """Values of vertices [V, C] at the texels part [P] -> [P, C]."""
        return (values[faces[self.face[part]]] * self.weights[part, :, None]).sum(1)


def smoother(faces: np.ndarray, n: int) -> csr_matrix:
    """[V, V]: the mean over a vertex and its neighbours."""
    a, b, c = faces.T
    at = np.arange(n)
    i, j = np.concatenate([a, b, c, b, c, a, at]), np.concatenate([b, c, a, a, b, c, at])
    matrix = coo_matrix((np.ones(len(i), np.float32), (i, j)), shape=(n, n)).tocsr()
    return diags(1 / np.asarray(matrix.sum(1)).ravel()) @ matrix


def quality(photo: Photograph, x: Tensor, normals: Tensor) -> Tensor:
    """[V]: pixels per area along the surface, times the cosine once more; 0 where it is seen from behind or too flatly."""
    away = photo.c2w[:, 3] - x
    distance = away.norm(dim=1)
    cosine = (away * normals).sum(1) / distance
    return torch.where(cosine > LEAST, (cosine * photo.K[0, 0] / distance).square(), 0.0)


@dataclass(frozen=True)
class Votes:
    """What the views say of the vertices."""

    weights: Tensor  # [N, V] float16 in [0, 1]: quality times agreement; 0 where a view is not among the best of a vertex or its neighbours
    colour: Tensor  # [V, 3] weighted mean of the low frequencies, 0 where no view counts
    seen: Tensor  # [V] weight of the views; 0: none
    glimpsed: Tensor  # [V] bool: in sight of a view, if only at the edge of something
    density: Tensor  # [V] pixels per unit of length in the best view, 0 where none
    unit: float  # quality that has weight 1


def votes(photos: Sequence[Photograph], surface: Surface) -> Votes:
    """Weights of N photographs for V vertices."""
    x, n, device = surface.x, len(surface.x), surface.x.device
    worth = torch.zeros(n, BEST, device=device)
    who = torch.full((n, BEST), -1, device=device)
    colour, sharp = torch.full((n, BEST, 3), torch.nan, device=device), torch.zeros(n, BEST, device=device)
    grade = torch.zeros(len(photos), n, device=device)
    glimpsed = torch.zeros(n, dtype=torch.bool, device=device)
    for i, photo in enumerate(photos):
        grade[i] = quality(photo, x, surface.normals)
        part = torch.nonzero((grade[i] > worth.amin(1)) | (~glimpsed & (grade[i] > 0)))[:, 0]
        if not len(part):
            continue
        found, seen = look(photo, photo.layers(1.0), x[part])
        glimpsed[part] |= seen
        value = grade[i, part] * found[:, 6] * seen
        better = value > worth[part].amin(1)
        part, found, value = part[better], found[better], value[better]
        slot = worth[part].argmin(1)
        worth[part, slot], who[part, slot], colour[part, slot], sharp[part, slot] = value, i, found[:, 3:6], found[:, 8]
    unit = float(grade.max().clamp(min=1e-12))
    agree = agreement(colour) * (sharp / sharp.amax(1, keepdim=True).clamp(min=1e-6)).clamp(min=BLURRED)
    matrix = smoother(surface.faces.cpu().numpy(), n)
    weights = _spread_votes(grade / unit, who, agree, matrix)
    share = (worth / unit).sqrt() * agree * (who >= 0)
    total = share.sum(1)
    mean = (share[..., None] * colour.nan_to_num()).sum(1) / total.clamp(min=1e-12)[:, None]
    density = worth.amax(1).sqrt()
    return Votes(weights, mean, total, glimpsed, density, unit)


def agreement(colour: Tensor) -> Tensor:
    """[V, K] in (0, 1]: how well each of the colours [V, K, 3] (nan: none) agrees with their median; 1 where fewer than three are known."""
    median = colour.nanmedian(1).values
    off = (colour - median[:, None]).abs().amax(2)
    scale = off.nanmedian(1).values.clamp(min=TOLERANCE)
    known = (~colour[..., 0].isnan()).sum(1)
    found = 1 / (1 + (off / (2 * scale[:, None])) ** 4)
    return torch.where((known >= 3)[:, None], found, 1.0).nan_to_num(1.0)


def _spread_votes(grade: Tensor, who: Tensor, agree: Tensor, matrix: csr_matrix) -> Tensor:
    """[N, V] float16: grades [N, V] times smoothed agreement, where a view is among those kept at a vertex or beside it."""
    weights = torch.zeros(grade.shape, dtype=torch.float16, device=grade.device)
    for i in range(len(grade)):
        row, slot = torch.nonzero(who == i, as_tuple=True)
        kept, doubt = np.zeros(grade.shape[1], np.float32), np.zeros(grade.shape[1], np.float32)
        kept[row.cpu().numpy()] = 1
        doubt[row.cpu().numpy()] = 1 - agree[row, slot].cpu().numpy()
        for _ in range(2):
            doubt = np.maximum(doubt, matrix @ doubt)
        for _ in range(3):
            doubt = matrix @ doubt
        beside = torch.from_numpy(((matrix @ kept) > 0) * (1 - doubt)).to(grade.device)
        weights[i] = (grade[i] * beside.float()).half()
    return weights


def bake(photos: Sequence[Photograph], surface: Surface, texels: Texels, votes: Votes, fallback: Tensor, side: float) -> Tensor:
    """Colours [M, 3] of the texels; fallback [V, 3]: colours where no photograph counts.

    side: length of a texel's side.
    """
    m, device, faces = len(texels.face), surface.x.device, surface.faces
    low, high = torch.zeros(m, 3, device=device), torch.zeros(m, 3, device=device)
    total, sharp = torch.zeros(m, device=device), torch.full((m,), 1e-30, device=device)
    for i, photo in enumerate(photos):
        weight = votes.weights[i].float()
        used = weight > 0
        at = torch.nonzero(used[faces].any(1)[texels.face])[:, 0]
        if not len(at):
            continue
        layers = photo.layers(float(side * photo.K[0, 0] / (surface.x[used] - photo.c2w[:, 3]).norm(dim=1).median()))
        for part in at.split(CHUNK):
            found, seen = look(photo, layers, texels.of(surface.x, faces, part))
            w = texels.of(weight[:, None], faces, part)[:, 0].clamp(min=0) * found[:, 6] * seen
            soft, best = w.sqrt(), w**SHARPNESS
            low[part] += soft[:, None] * found[:, 3:6]
            high[part] += best[:, None] * (found[:, :3] - found[:, 3:6])
            total[part] += soft
            sharp[part] += best
    for part in torch.arange(m, device=device).split(CHUNK):
        colour = low[part] / total[part, None].clamp(min=1e-12) + high[part] / sharp[part, None]
        share = (sharp[part] ** (1 / SHARPNESS) / FALLBACK).clamp(max=1)[:, None]
        low[part] = share * colour + (1 - share) * texels.of(fallback, faces, part)
    return low.clamp(0, 1)


def levelled(field: Tensor, votes: Votes, faces: Tensor) -> Tensor:
    """Colours [V, 3] where no photograph counts: the field's [V, 3], shifted to the photographs' beside what these see.

    The field has learned nothing where no view looks; there it is the colours around, that fade to their mean. Both solve a screened Laplace
    equation on the mesh: there is no step at the border.
    """
    matrix = smoother(faces.cpu().numpy(), len(field)).astype(np.float64)
    parts = (votes.seen > SEEN).cpu().numpy(), votes.glimpsed.cpu().numpy()
    seen, glimpsed = (part & (matrix @ (matrix @ part.astype(float)) > 0.5) for part in parts)  # without specks
    glimpsed |= seen
    photo, own = votes.colour.double().cpu().numpy(), field.double().cpu().numpy()
    if not seen.any():
        return field
    colour = own + _fill(matrix, photo - own, seen, np.zeros(3), FADE_SHIFT)
    colour = _fill(matrix, colour, glimpsed, photo[seen].mean(0), FADE)
    return torch.from_numpy(colour).to(field)


def _fill(matrix: csr_matrix, values: np.ndarray, known: np.ndarray, rest: np.ndarray, fade: float) -> np.ndarray:
    """Values [V, 3], those that are not known [V] replaced by a smooth continuation that fades to `rest` [3]."""
    if known.all():
        return values
    inner = matrix[~known]
    a = diags(np.full(int((~known).sum()), 1 + fade)) - inner[:, ~known]
    right = inner[:, known] @ values[known] + fade * rest
    filled = values.copy()
    for k in range(3):
        filled[~known, k] = cg(a, right[:, k], maxiter=300, rtol=1e-4)[0]
    return filled
