"""What the processes of a run do together in a training step: weigh the terms, decide, add up the gradients.

Each process has its share of the rays. The mean over the processes of their losses is the loss of all rays once every term that is a
mean over something else (samples, points) counts by its number of values, which the processes exchange before the backward pass.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.nero import HIT, NeROShape
from systems.losses import LossInputs
from systems.parallel import Lost
from utils.errors import UserError
from utils.stop import SIGNALS

log = logging.getLogger("neus")
if TYPE_CHECKING:
    from systems.trainer import Trainer

# terms that are means over other things than a process's rays; the rest are means over these, equally many in all processes
COUNTED = ("curvature", "eikonal", "interlevel", "occlusion", "points", "sparsity")
EVERY = "*"  # all terms of a system that leaves rays out (material)
COMPARE = 1024  # steps between looks at whether all processes still have the same weights
BEGUN, WEIGHED, AGREED, REFUSED = range(4)  # how far a step is: its exchanges, and whether it will be taken


def value_counts(e: LossInputs) -> dict[str, int]:
    """Of how many values each term of COUNTED is a mean in this process.

    Exact for all but "interlevel" of a method that has both a proposal sampler and a learned background: two means, of which the
    background's decides.
    """
    field, extra, samples, background, proposals = e.output.field, e.output.extra, e.output.samples, e.output.background, e.output.proposals
    found = dict.fromkeys(COUNTED, 0)
    n, p = len(samples) if samples is not None else 0, len(extra.sdf) if extra is not None else 0
    if field is not None:
        found["eikonal"] = n + p
        found["curvature"] = n if field.laplacian is not None else (max(1, n // 8) if n else 0)
        found["sparsity"] = p or n
    if e.batch.points is not None:
        found["points"] = int((e.batch.points.norm(dim=-1) < e.model.radius).sum())
    if background is not None:
        found["interlevel"] = len(background.rays)
    elif proposals is not None:
        found["interlevel"] = len(proposals.s)
    if isinstance(e.model, NeROShape):
        found["occlusion"] = min(int((e.output.render.opacity > HIT).sum()), e.model.cfg.shading.occlusion_points)
    return found


class Together:
    """The common part of a trainer's steps. Alone it does nothing.

    Two exchanges of a few hundred bytes between the hosts: `weigh` in the middle of a step, `gather` behind its backward pass, both
    of which every process must reach. Where memory runs out in one, it makes up for those it has missed.
    """

    def __init__(self, trainer: "Trainer"):
        self.trainer, self.ranks = trainer, trainer.ranks
        groups = trainer.optimizer.param_groups
        self.tables: list[Tensor] = [p for group in groups if group["lazy"] for p in group["params"]]
        self.networks: list[Tensor] = [p for group in groups if not group["lazy"] for p in group["params"]]
        self.caught = 0  # the signal that this process received
        self.done = BEGUN  # how far this step is
        self.before: dict[str, Tensor] = {}  # the sampler before its last refresh

    def align(self) -> None:
        """Before the first step: the weights, the sampler and the clock of the first process, for all."""
        t = self.trainer
        if self.ranks.alone:
            return
        self.ranks.check_same([t.clock.step, t.n_rays], "the step they go on from")
        t.clock.agreed, t.clock.before = self.ranks.from_first([t.clock.seconds, t.clock.before])
        self.ranks.copy_first(list(t.system.model.state_dict().values()))
        distractors = t.system.model.distractors
        if distractors is not None and not self.ranks.first:  # a checkpoint holds those of the first process, which add up once
            distractors.pending.zero_()
        if self.ranks.first and t.clock.step == 0:
            t.save()  # a process may end before the next one is due

    def begin(self) -> None:
        """At the start of a step."""
        t, sampler = self.trainer, self.trainer.system.model.sampler
        if self.ranks.alone:
            return
        self.done = BEGUN
        self.ranks.begin(t.seed, t.clock.step)
        if sampler is not None and sampler.due(t.clock.step):
            self.before = {name: value.clone() for name, value in sampler.state_dict().items()}
        if t.clock.step % COMPARE == 0:
            self._keep_alike()

    def _keep_alike(self) -> None:
        """Copy the first process's weights, moments and grid where they differ, as they may once devices of two kinds round differently.

        What `Distractors` has not yet added up is each process's own.
        """
        t = self.trainer
        moments = [v for state in t.optimizer.state.values() for v in state.values() if isinstance(v, Tensor) and v.dim()]
        common = [v for name, v in t.system.model.state_dict().items() if not name.endswith("distractors.pending")]
        tensors = [*common, *moments]
        own = torch.stack([v.detach().double().sum() for v in tensors]).tolist()
        if self.ranks.sums([float(self.ranks.from_first(own) != own)])[0]:
            log.warning("step %d: the processes have drifted apart; all take the weights of the first", t.clock.step)
            self.ranks.copy_first(tensors)

    def weigh(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms as parts of the mean loss over the processes: their sum over these is the loss of all rays."""
        if self.ranks.alone:
            return terms
        factors = self._factors(self.trainer.system.counts())
        return {name: value * (factors[name if name in COUNTED else EVERY] / self.ranks.world) for name, value in terms.items()}

    def _factors(self, counts: dict[str, int]) -> dict[str, float]:
        """For each term its share of the values, times the number of processes."""
        names = (*COUNTED, EVERY)
        own = [float(counts.get(name, 0)) for name in names]
        whole = self.ranks.sums(own)
        self.done = WEIGHED
        return {name: n * self.ranks.world / total if total else 1.0 for name, n, total in zip(names, own, whole)}

    def gather(self, loss: Tensor) -> Tensor:
        """Decide together, and add up the gradients; returns the loss of all rays. Raises torch.OutOfMemoryError where memory ran out
        in some process."""
        if self.ranks.alone:
            return loss
        present = self._agree(False)
        if present is None:
            raise torch.OutOfMemoryError("in another process")
        for p in (p for p, found in zip([*self.tables, *self.networks], present) if found and p.grad is None):
            p.grad = torch.zeros_like(p)
        tables = [p.grad for p in self.tables if p.grad is not None]
        grads = [p.grad for p in self.networks if p.grad is not None]
        bucket = torch.cat([*(g.reshape(-1) for g in grads), loss.detach().reshape(1)])
        self.ranks.sum_tensors([bucket, *tables])
        for g, part in zip(grads, bucket[:-1].split([g.numel() for g in grads])):
            g.copy_(part.view_as(g))
        return bucket[-1]

    def _agree(self, out_of_memory: bool) -> list[bool] | None:
        """The exchange behind the backward pass: which parameters have a gradient somewhere, or None where memory ran out.

        Clock and stop signal become those of all; the number of samples becomes the mean.
        """
        t, world = self.trainer, self.ranks.world
        present = [float(p.grad is not None) for p in (*self.tables, *self.networks)]
        seconds, samples = t.clock.seconds if self.ranks.first else 0.0, float(t.system.stats.get("samples", 0))
        signals = [float(self.caught == number) for number in SIGNALS]
        lacking, total, t.clock.agreed, *rest = self.ranks.sums([float(out_of_memory), samples, seconds, *signals, *present])
        self.done = REFUSED if lacking else AGREED
        t.system.stats["samples"] = total / world
        t.stop_signal = next((int(number) for number, n in zip(SIGNALS, rest) if n), 0)
        return None if lacking else [n > 0 for n in rest[len(SIGNALS) :]]

    def out_of_memory(self) -> None:
        """Tell the others that this step cannot be taken, unless they know. Raises UserError where they have taken it."""
        if self.ranks.alone:
            return
        if self.done == AGREED:
            raise UserError("memory ran out while the weights were updated; lower trainer.target_samples or model.grid.log2_size")
        if self.done == BEGUN:
            self._factors({})
        if self.done == WEIGHED:
            self._agree(True)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """When another process is lost, the first writes a checkpoint of the last whole step."""
        t, sampler = self.trainer, self.trainer.system.model.sampler
        try:
            yield
        except Lost as error:
            if not self.ranks.first:
                raise UserError(f"{error}; the first process saves what it can, go on from its last checkpoint with --resume") from None
            if sampler is not None and self.before and sampler.due(t.clock.step):  # refreshed already for the step that is lost
                sampler.load_state_dict(self.before)
            t.save()
            again = f"torchrun --nproc_per_node={self.ranks.local_world} run.py --train --resume {t.run.root}"
            raise UserError(f"{error}; step {t.clock.step} is saved, go on with: {again}") from None
