"""AdamW with a lazy update for hash tables, and learning rates as a function of progress alone.

A step touches a small share of a table's rows. Rows whose gradient is 0 keep their weights and moments (as tiny-cuda-nn
and the sparse Adam of most libraries do), which spares a pass over five arrays of millions of entries.
"""

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from confs.schema import OptimConfig
from utils.schedule import ramp


def lazy_adam_torch(p: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: float, b1: float, b2: float, eps: float, step: int) -> None:
    """One Adam step, in place, on the rows [N, F] whose gradient is not 0; the specification of the kernel."""
    rows = torch.nonzero((g != 0).any(1))[:, 0]
    gr = g[rows]
    m[rows] = b1 * m[rows] + (1 - b1) * gr
    v[rows] = b2 * v[rows] + (1 - b2) * gr * gr
    p[rows] -= lr / (1 - b1**step) * m[rows] / (v[rows].sqrt() / math.sqrt(1 - b2**step) + eps)


def lazy_adam_scaled_torch(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: float, b1: float, b2: float, eps: float, step: Tensor, scale: Tensor, skip: Tensor
) -> None:
    """`lazy_adam_torch` of g / scale, where skip is 0, without a look at any value; the specification of the kernel for CUDA.

    step, scale, skip [] float32: steps taken with this one, the factor on the loss, and whether to do nothing.
    """
    rows = (g != 0).any(1, keepdim=True) & (skip == 0)
    gr = g / scale
    m.copy_(torch.where(rows, b1 * m + (1 - b1) * gr, m))
    v.copy_(torch.where(rows, b2 * v + (1 - b2) * gr * gr, v))
    p.sub_(torch.where(rows, lr / (1 - b1**step) * m / (v.sqrt() / (1 - b2**step).sqrt() + eps), 0.0))


class AdamW(torch.optim.AdamW):
    """torch's AdamW, and the lazy update for groups with `lazy=True` (2-D parameters, no weight decay).

    on_card: the parameters lie on a CUDA device. Dense groups then take torch's fused kernel, the number of steps lies on the
    device too, and torch's GradScaler hands over its scale and whether a gradient is not finite: such a step changes nothing and
    is counted there (`take_skipped`), so that a step never waits for the device.
    """

    def __init__(self, groups: list[dict], betas: tuple[float, float], eps: float, backend: str = "torch", on_card: bool = False):
        groups = [{"lazy": False, **g} for g in groups]
        super().__init__(groups, betas=betas, eps=eps, weight_decay=0.0, foreach=False, fused=on_card or None, capturable=on_card)
        self.backend, self.on_card = backend, on_card
        self._skipped: Tensor | None = None  # [3] on the device: steps left out, of them the last in a row, the longest row

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]
        if self.on_card:
            self._make_state()
        tables = [(p, group) for group in self.param_groups if group["lazy"] for p in group["params"] if p.grad is not None]
        grads = [p.grad for p, _ in tables]
        skip = self._count_skipped() if self.on_card else None
        for p, group in tables:
            self._lazy(p, group, skip)
            p.grad = None  # torch's step passes it over
        super().step(closure)
        for (p, _), grad in zip(tables, grads):
            p.grad = grad

    def _make_state(self) -> None:
        """That of every parameter, also of those whose first gradient is yet to come: made within a CUDA graph, it would be set to 0
        by every replay."""
        for p in (p for group in self.param_groups for p in group["params"]):
            if not self.state[p]:
                new = {"step": torch.zeros((), device=p.device), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                self.state[p].update(new)

    def forget(self) -> None:
        """After a step that ended half-way: what torch's GradScaler handed over for it."""
        for name in ("grad_scale", "found_inf"):
            self.__dict__.pop(name, None)
        self.zero_grad(set_to_none=True)

    def _lazy(self, p: Tensor, group: dict, skip: Tensor | None) -> None:
        state = self.state[p]
        if not state:
            state.update(
                step=torch.zeros((), device=p.device if self.on_card else "cpu"),
                exp_avg=torch.zeros_like(p),
                exp_avg_sq=torch.zeros_like(p),
            )
        assert p.grad is not None
        b1, b2 = group["betas"]
        given = p, p.grad, state["exp_avg"], state["exp_avg_sq"], group["lr"], b1, b2, group["eps"]
        if skip is None:
            state["step"] += 1
            update = lazy_adam_torch
            if self.backend == "warp":
                from systems.optim_warp import lazy_adam_warp as update
            update(*given, int(state["step"]))
        else:
            state["step"] += 1 - skip
            scaled = lazy_adam_scaled_torch
            if self.backend == "warp":
                from systems.optim_warp import lazy_adam_scaled_warp as scaled
            scale = getattr(self, "grad_scale", None)
            scaled(*given, state["step"], torch.ones_like(skip) if scale is None else scale, skip)

    def _count_skipped(self) -> Tensor:
        """[] float32 on the device: 1 where this step is to be left out, which is counted."""
        found = getattr(self, "found_inf", None)
        device = next(p.device for group in self.param_groups for p in group["params"])
        skip = torch.zeros((), device=device) if found is None else found.reshape(())
        if self._skipped is None:
            self._skipped = torch.zeros(3, device=device)
        self._skipped[:2] += skip
        self._skipped[1] *= skip
        torch.maximum(self._skipped[2], self._skipped[1], out=self._skipped[2])
        return skip

    def take_skipped(self) -> tuple[int, int, int]:
        """(steps left out, the last of them in a row, the longest row) since the last call; waits for the device. 0 on the CPU."""
        if self._skipped is None:
            return 0, 0, 0
        total, row, longest = (int(n) for n in self._skipped.tolist())
        self._skipped[0] = 0
        self._skipped[2] = self._skipped[1]
        return total, row, longest

    def load_state_dict(self, state_dict: dict) -> None:
        """The moments, also of the other device, and of a version without lazy updates there; the groups keep their options but the rate.

        Raises ValueError where the groups differ, or the moments are not finite tensors of their parameters' shapes.
        """
        saved, state = state_dict["param_groups"], state_dict["state"]
        if [len(group["params"]) for group in saved] != [len(group["params"]) for group in self.param_groups]:
            raise ValueError("the optimiser has a different number of parameter groups, or of parameters in one")
        numbers = [number for group in saved for number in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(numbers, parameters):
            _check_moments(state.get(number, {}), p)
        if len(set(numbers)) < len(numbers) or not set(state) <= set(numbers):
            raise ValueError("the optimiser has moments of unknown parameters")
        rates = [group.get("lr") for group in saved]
        if not all(isinstance(lr, (int, float)) and math.isfinite(lr) for lr in rates):
            raise ValueError("the optimiser's learning rates are damaged")
        groups = [{**own, "lr": lr, "params": group["params"]} for own, lr, group in zip(self.param_groups, rates, saved)]
        super().load_state_dict({"state": state, "param_groups": groups})


def _check_moments(state: dict, p: Tensor) -> None:
    """Raises ValueError unless it is empty, or the state of AdamW for the parameter."""
    shapes = {"step": torch.Size([]), "exp_avg": p.shape, "exp_avg_sq": p.shape}
    if state and (set(state) != set(shapes) or not all(plain_floats(state[name], shape) for name, shape in shapes.items())):
        raise ValueError(f"the optimiser's moments of a parameter {list(p.shape)} are damaged")


def plain_floats(value: object, shape: torch.Size) -> bool:
    """Whether it is a dense tensor of finite real numbers of this shape."""
    dense = isinstance(value, Tensor) and value.layout == torch.strided and value.is_floating_point() and value.shape == shape
    return bool(dense) and bool(torch.isfinite(value).all())  # type: ignore[arg-type]


def make_optimizer(groups: list[dict], cfg: OptimConfig, device: torch.device, backend: str) -> AdamW:
    """The same on every device; backend: of the lazy update."""
    return AdamW(groups, (cfg.betas[0], cfg.betas[1]), cfg.eps, backend, on_card=device.type == "cuda")


def rate(cfg: OptimConfig, progress: float) -> float:
    """Factor on every learning rate: rises from a tenth during `warmup`, falls geometrically to `decay` from `decay_begin` on."""
    if progress < cfg.warmup:
        return 0.1 + 0.9 * progress / cfg.warmup
    fall = max(0.0, progress - cfg.decay_begin) / (1 - cfg.decay_begin)
    return cfg.decay ** min(fall, 1.0)


class Scheduler:
    """Sets the learning rate of every group to its first one times `rate`; cameras have a schedule of their own (optim.lr_pose)."""

    def __init__(self, optimizer: Optimizer, cfg: OptimConfig):
        self.optimizer, self.cfg, self.pose = optimizer, cfg, ramp(cfg.lr_pose, log=True)
        self.first = [group["lr"] for group in optimizer.param_groups]
        self.step(0.0)

    def step(self, progress: float) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.first):
            group["lr"] = self.pose(progress) if group.get("name") == "pose" else lr * rate(self.cfg, progress)


class Average:
    """Mean of a model's weights over the end of a run, from progress `begin` on (Izmailov et al., SWA, 2018).

    At a finite learning rate the surface as a whole wanders by a tenth of a pixel within a hundred steps; the mean does not.
    """

    EVERY = 4  # steps: neighbours tell little new

    def __init__(self, model: torch.nn.Module, begin: float):
        self.model, self.begin = model, begin
        self.n = 0
        self.mean: list[Tensor] = []

    @torch.no_grad()
    def after_step(self, step: int, progress: float) -> None:
        """Take the weights in, when it is time."""
        if progress < self.begin or step % self.EVERY:
            return
        self.n += 1
        now = [p.detach() for p in self.model.parameters()]
        if self.n == 1:
            self.mean = [p.clone() for p in now]
        for mean, p in zip(self.mean, now):
            mean.lerp_(p, 1 / self.n)

    @torch.no_grad()
    def take(self) -> None:
        """Give the model the mean, where there is one, and begin anew."""
        for p, mean in zip(self.model.parameters(), self.mean):
            p.copy_(mean)
        self.n, self.mean = 0, []

    def state(self) -> dict:
        return {"n": self.n, "mean": self.mean}

    def load(self, state: dict) -> None:
        """Raises ValueError when the state is of another model."""
        mean = list(state.get("mean", []))
        own = list(self.model.parameters())
        if mean and not (len(mean) == len(own) and all(plain_floats(m, p.shape) for m, p in zip(mean, own))):
            raise ValueError("the averaged weights are of another model, or not finite")
        self.n, self.mean = int(state.get("n", 0)), [m.to(p.device) for m, p in zip(mean, self.model.parameters())]
