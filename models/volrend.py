"""Compositing of packed samples (Max, Optical models for direct volume rendering, 1995; nerfacc's vocabulary).

S samples along R rays; those of ray r are offsets[r]:offsets[r+1], in order (`utils/rays.py: Samples`). T_i = prod_{j<i}
(1 - alpha_j) is the transmittance in front of sample i, w_i = T_i alpha_i its weight. Everything is differentiable once,
by alpha at exactly 0 and 1 too. The torch code is the specification and works on rays padded to the longest, in the type
it is given: a running sum over all rays at once loses digits. `models/volrend_warp.py` does the same sample by sample.
"""

import torch
from torch import Tensor


class _Padded:
    """Packed [S] <-> padded [R, M], M the samples of the longest ray."""

    def __init__(self, offsets: Tensor):
        counts = offsets.diff()
        self.n_rays, self.n_samples, self.longest = len(counts), int(offsets[-1]), int(counts.max())
        rays = torch.repeat_interleave(counts, output_size=self.n_samples)
        within = torch.arange(self.n_samples, device=offsets.device) - offsets[:-1].index_select(0, rays)
        self.slot = rays * self.longest + within

    def pad(self, packed: Tensor) -> Tensor:
        return packed.new_zeros(self.n_rays * self.longest).index_copy(0, self.slot, packed).view(self.n_rays, self.longest)

    def pack(self, padded: Tensor) -> Tensor:
        return padded.reshape(-1).index_select(0, self.slot)


def _check(offsets: Tensor, *packed: Tensor, partial: bool = False) -> None:
    """partial: entries behind the last ray's belong to none (`Samples.found`)."""
    size = len(packed[0])
    if any(len(p) != size for p in packed):
        raise ValueError(f"packed tensors differ in length: {[len(p) for p in packed]}")
    if offsets.device.type == "cpu" and (
        len(offsets) == 0 or int(offsets[-1]) > size or (int(offsets[-1]) < size and not partial)
    ):  # on CUDA this would wait for the device
        raise ValueError(f"offsets end at {int(offsets[-1]) if len(offsets) else 'nothing'}, expected the {size} samples")


def _shift(x: Tensor, fill: float) -> Tensor:
    """[R, M] one to the right: the first column becomes `fill`."""
    return torch.cat([torch.full_like(x[:, :1], fill), x[:, :-1]], 1)


def _weights_torch(alpha: Tensor, offsets: Tensor, early_stop: float) -> tuple[Tensor, Tensor]:
    rays = _Padded(offsets)
    trans = rays.pack(_shift((1 - rays.pad(alpha)).cumprod(1), 1.0))
    return torch.where(trans < early_stop, 0.0, trans * alpha), trans


def weights_from_alpha(alpha: Tensor, offsets: Tensor, early_stop: float = 0.0, backend: str = "torch") -> tuple[Tensor, Tensor]:
    """(weights [S], transmittance [S]) of opacities alpha [S] in [0, 1].

    A sample whose transmittance is below `early_stop` has weight 0, and no gradient comes from it.
    """
    _check(offsets, alpha)
    if not len(alpha):
        return alpha.clone(), alpha.clone()
    if backend == "warp":
        from models.volrend_warp import TransmittanceWeights

        return TransmittanceWeights.apply(alpha.contiguous(), offsets, early_stop, False)
    if backend == "nerfacc":
        return _weights_nerfacc(alpha, offsets, early_stop)
    return _weights_torch(alpha, offsets, early_stop)


def _packed_info(offsets: Tensor) -> Tensor:
    """[R, 2] first sample and number of samples of each ray, nerfacc's description of packed samples."""
    return torch.stack([offsets[:-1], offsets.diff()], -1)


def _weights_nerfacc(alpha: Tensor, offsets: Tensor, early_stop: float) -> tuple[Tensor, Tensor]:
    """nerfacc's packed kernel (CUDA alone). At alpha of exactly 1 its gradient misses the samples behind."""
    import nerfacc

    weights, trans = nerfacc.render_weight_from_alpha(alpha.contiguous(), packed_info=_packed_info(offsets))
    return torch.where(trans < early_stop, 0.0, weights), trans


def _optical_nerfacc(depth: Tensor, offsets: Tensor, early_stop: float) -> tuple[Tensor, Tensor]:
    """nerfacc's packed kernel (CUDA alone) with our opacity, which keeps the digits of thin samples."""
    import nerfacc

    zeros, ones = torch.zeros_like(depth), torch.ones_like(depth)
    trans, _ = nerfacc.render_transmittance_from_density(zeros, ones, depth, packed_info=_packed_info(offsets))
    return torch.where(trans < early_stop, 0.0, trans * -torch.expm1(-depth)), trans


def _optical_torch(depth: Tensor, offsets: Tensor, early_stop: float) -> tuple[Tensor, Tensor]:
    rays = _Padded(offsets)
    trans = torch.exp(-rays.pack(_shift(rays.pad(depth).cumsum(1), 0.0)))
    return torch.where(trans < early_stop, 0.0, trans * -torch.expm1(-depth)), trans


def weights_from_density(
    sigma: Tensor, t_starts: Tensor, t_ends: Tensor, offsets: Tensor, early_stop: float = 0.0, backend: str = "torch"
) -> tuple[Tensor, Tensor]:
    """`weights_from_alpha` with alpha = 1 - exp(-sigma (t_ends - t_starts)), summed in the exponent; sigma [S] >= 0 per unit length."""
    _check(offsets, sigma, t_starts, t_ends)
    depth = sigma * (t_ends - t_starts)  # optical depth
    if not len(depth):
        return depth, depth.clone()
    if backend == "warp":
        from models.volrend_warp import TransmittanceWeights

        return TransmittanceWeights.apply(depth.contiguous(), offsets, early_stop, True)
    if backend == "nerfacc":
        return _optical_nerfacc(depth, offsets, early_stop)
    return _optical_torch(depth, offsets, early_stop)


def accumulate(weights: Tensor, values: Tensor | None, offsets: Tensor, ray_indices: Tensor, backend: str = "torch") -> Tensor:
    """Sum of weights [S] times values [S, C] over each ray -> [R, C]; values None: of the weights themselves, C = 1."""
    _check(offsets, weights, ray_indices, *(() if values is None else (values,)))
    n_rays = len(offsets) - 1
    if backend == "warp" and len(weights):
        from models.volrend_warp import Accumulate

        return Accumulate.apply(weights.contiguous(), None if values is None else values.to(weights.dtype).contiguous(), offsets)
    if backend == "nerfacc" and len(weights):
        import nerfacc

        return nerfacc.accumulate_along_rays(weights, values, ray_indices, n_rays)
    terms = weights[:, None] if values is None else weights[:, None] * values
    return terms.new_zeros(n_rays, terms.shape[1]).index_add(0, ray_indices, terms)


def composite(
    alpha: Tensor,
    values: Tensor,
    offsets: Tensor,
    ray_indices: Tensor,
    early_stop: float = 0.0,
    backend: str = "torch",
    partial: bool = False,
) -> tuple[Tensor, Tensor]:
    """(sums [R, C] of weight times value over each ray, weights [S]) of opacities alpha [S] and values [S, C].

    `weights_from_alpha`, then `accumulate`; Warp does both in one walk along the ray. partial: entries behind the last ray's belong
    to none and weigh 0 (Warp alone).
    """
    _check(offsets, alpha, values, ray_indices, partial=partial)
    if backend == "warp" and len(alpha):
        from models.volrend_warp import Composite

        return Composite.apply(alpha.contiguous(), values.to(alpha.dtype).contiguous(), offsets, early_stop)
    weights, _ = weights_from_alpha(alpha, offsets, early_stop, backend)
    return accumulate(weights, values, offsets, ray_indices, backend), weights


def _distortion_torch(weights: Tensor, mids: Tensor, lengths: Tensor, offsets: Tensor) -> Tensor:
    rays = _Padded(offsets)
    w, m = rays.pad(weights), rays.pad(mids)
    # sum_{j<i} w_j (m_i - m_j), from gaps between neighbours: a difference of two large sums would lose digits
    gaps = (w.cumsum(1)[:, :-1] * m.diff(dim=1)).cumsum(1)  # [R, M - 1]
    before = torch.cat([torch.zeros_like(w[:, :1]), gaps], 1)
    return (2 * w * before + w * w * rays.pad(lengths) / 3).sum(1)


def distortion(weights: Tensor, t_starts: Tensor, t_ends: Tensor, offsets: Tensor, backend: str = "torch", partial: bool = False) -> Tensor:
    """Distortion of each ray [R]: sum_ij w_i w_j |m_i - m_j| + sum_i w_i^2 dt_i / 3, m the midpoints.

    In units of t (Barron et al., mip-NeRF 360, 2022, divide t by the ray's span first). nerfacc has none: torch computes it.
    """
    _check(offsets, weights, t_starts, t_ends, partial=partial)
    mids, lengths = (t_starts + t_ends) / 2, t_ends - t_starts
    if not len(weights):
        return (weights * mids * lengths).sum() + weights.new_zeros(len(offsets) - 1)  # zeros that still know their inputs
    if backend == "warp":
        from models.volrend_warp import Distortion

        return Distortion.apply(weights.contiguous(), mids.contiguous(), lengths.contiguous(), offsets)
    return _distortion_torch(weights, mids, lengths, offsets)
