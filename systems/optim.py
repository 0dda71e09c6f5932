"""Learning rates over the run, as a function of progress alone."""

from torch.optim import Optimizer

from confs.schema import OptimConfig


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
