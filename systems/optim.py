"""AdamW with a lazy update for hash tables, and learning rates as a function of progress alone.

A step touches a small share of a table's rows. Rows whose gradient is 0 keep their weights and moments (as tiny-cuda-nn
and the sparse Adam of most libraries do), which spares a pass over five arrays of millions of entries.
"""

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from confs.schema import OptimConfig


def lazy_adam_torch(p: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: float, b1: float, b2: float, eps: float, step: int) -> None:
    """One Adam step, in place, on the rows [N, F] whose gradient is not 0; the specification of the kernel."""
    rows = torch.nonzero((g != 0).any(1))[:, 0]
    gr = g[rows]
    m[rows] = b1 * m[rows] + (1 - b1) * gr
    v[rows] = b2 * v[rows] + (1 - b2) * gr * gr
    p[rows] -= lr / (1 - b1**step) * m[rows] / (v[rows].sqrt() / math.sqrt(1 - b2**step) + eps)


class AdamW(Optimizer):
    """torch's AdamW, and the lazy update for groups with `lazy=True` (2-D parameters, no weight decay)."""

    def __init__(self, groups: list[dict], betas: tuple[float, float], eps: float, backend: str = "torch"):
        super().__init__(groups, dict(lr=1e-3, betas=betas, eps=eps, weight_decay=0.0, lazy=False))
        self.backend = backend

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            if group["lazy"]:
                self._lazy(params, group)
            elif params:
                self._dense(params, group)

    def _lazy(self, params: list[Tensor], group: dict) -> None:
        update = lazy_adam_torch
        if self.backend == "warp":
            from systems.optim_warp import lazy_adam_warp as update
        for p in params:
            state = self.state[p]
            state["step"] += 1
            update(p, p.grad, state["exp_avg"], state["exp_avg_sq"], group["lr"], *group["betas"], group["eps"], int(state["step"]))

    def _dense(self, params: list[Tensor], group: dict) -> None:
        states = [self.state[p] for p in params]
        torch.optim.adamw.adamw(
            params, [p.grad for p in params], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], [], [s["step"] for s in states],
            foreach=False, capturable=False, differentiable=False, fused=None, amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1],
            lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip


def make_optimizer(groups: list[dict], cfg: OptimConfig, device: torch.device, backend: str) -> Optimizer:
    """On CUDA torch's fused AdamW (bandwidth is no matter there); on the CPU ours."""
    if device.type == "cuda":
        return torch.optim.AdamW([{k: v for k, v in g.items() if k != "lazy"} for g in groups], betas=tuple(cfg.betas), eps=cfg.eps, fused=True)
    return AdamW(groups, tuple(cfg.betas), cfg.eps, backend)


def rate(cfg: OptimConfig, progress: float) -> float:
    """Factor on every learning rate: rises from a tenth during `warmup`, falls geometrically to `decay` from `decay_begin` on."""
    if progress < cfg.warmup:
        return 0.1 + 0.9 * progress / cfg.warmup
    fall = max(0.0, progress - cfg.decay_begin) / (1 - cfg.decay_begin)
    return cfg.decay ** min(fall, 1.0)


class Scheduler:
    """Sets the learning rate of every group to its first one times `rate`."""

    def __init__(self, optimizer: Optimizer, cfg: OptimConfig):
        self.optimizer, self.cfg = optimizer, cfg
        self.first = [group["lr"] for group in optimizer.param_groups]

    def step(self, progress: float) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.first):
            group["lr"] = lr * rate(self.cfg, progress)

