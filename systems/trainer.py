"""The training loop: it names no method and fits on a screen; what surrounds it follows below."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from confs.load import to_yaml
from confs.schema import Config
from process_data.rays import ray_loader
from systems.base import RaySystem
from systems.graph import ROOM, StepGraph
from systems.optim import Average, Scheduler, make_optimizer
from systems.parallel import ALONE, Ranks
from systems.together import Together
from systems.validate import Validator
from utils import checkpoint
from utils.device import choose
from utils.errors import UserError
from utils.in_place import gradients_in_place
from utils.log import RunFolder, commit
from utils.rays import RayBatch, Scene
from utils.stop import handled

log = logging.getLogger("neus")
LOOK = 16  # steps between looks at what a CUDA device left out; the sampler's refresh waits for it as often


@dataclass
class Clock:
    """Where a run stands: steps done and seconds of training: of its steps, and of finding a first surface before them."""

    step: int = 0
    seconds: float = 0.0
    before: float = 0.0  # of these, the seconds before the first step: schedules begin after them
    agreed: float | None = None  # of several processes: the seconds of the first, as all know them

    @classmethod
    def of(cls, state: dict, path: Path) -> "Clock":
        """That of a checkpoint. Raises UserError or ValueError where its numbers are none."""
        return cls(checkpoint.whole(state, "step"), checkpoint.seconds_trained(state, path), checkpoint.seconds_before(state, path))

    def progress(self, cfg: Config) -> float:
        """0 at the first step, 1 at the end of the run. At least half of trainer.max_minutes is left for the steps."""
        by_steps, minutes = self.step / cfg.trainer.max_steps, cfg.trainer.max_minutes
        if not minutes:
            return min(1.0, by_steps)
        seconds = (self.seconds if self.agreed is None else self.agreed) - self.before
        return min(1.0, max(by_steps, seconds / max(60 * minutes - self.before, 30 * minutes)))


class Trainer:
    """Drives a system over the rays of a scene; checkpoints hold all that a bitwise equal continuation needs.

    ranks: the processes that train it together, each with this many rays; the first of them logs, saves and validates.
    """

    def __init__(self, system: RaySystem, scene: Scene, cfg: Config, run: RunFolder, device: torch.device, ranks: Ranks = ALONE):
        self.system, self.scene, self.cfg, self.run, self.device = system, scene, cfg, run, device
        self.ranks = system.ranks = ranks
        system.prepare(scene)
        self.optimizer = make_optimizer(system.param_groups(), cfg.optim, device, choose("optimizer", "auto", device))
        self.scheduler = Scheduler(self.optimizer, cfg.optim)
        self.amp = device.type == "cuda" and cfg.trainer.amp
        first, fall, interval = (2.0**16, 0.5, 2000) if self.amp else (1.0, math.nextafter(1.0, 0.0), 2**31 - 1)
        # without amp it only finds what is not finite: in float32 the scale stays 1
        self.scaler = torch.amp.GradScaler("cuda", first, backoff_factor=fall, growth_interval=interval, enabled=device.type == "cuda")
        self.validator = Validator(system, scene, cfg, run, device)
        self.average = Average(system.model, 1 - cfg.trainer.average)
        self.clock = Clock()
        self.rate = self.saved_at = 0.0
        self.spent = 0.0  # seconds of the training before its first step
        self.measured: tuple[float, float, float] = (0, 0, 0.0)  # steps, rays and seconds that `rate` does not know yet
        self.n_rays = cfg.trainer.n_rays
        self.skipped = self.skipped_in_row = 0
        self.terms: dict[str, torch.Tensor] = {}  # of the last step
        self.graph: StepGraph | None = None
        self.stop_signal = 0
        self.kept = False  # whether there is a checkpoint of this run
        self.between: list[Callable[[], None]] = []  # called after each step; their time is no training time
        self.together = Together(self)

    def train(self) -> bool:
        """Train to the end of the run; False when a signal stopped it (a checkpoint is then written)."""
        self.prepare()
        if self.clock.step == 0 and not self.clock.seconds:
            began = time.perf_counter()
            self.system.begin(self.scene)
            self.clock.seconds = self.clock.before = self.spent + time.perf_counter() - began
        with handled(self._stop), self._bar() as self.bar, self.together.guarded():
            self.together.align()
            while self.progress < 1 and not self.stop_signal:
                began = time.perf_counter()
                self.together.begin()
                self.system.before_step(self.clock.step, self.progress)
                n_rays = self.graph.step() if self.graph else self.attempt(next(self.batches))
                self.clock.step += 1
                self.clock.seconds += time.perf_counter() - began
                self.scheduler.step(self.progress)
                self.average.after_step(self.clock.step, self.progress)
                self._after_step(n_rays, time.perf_counter() - began)
                for call in self.between:
                    call()
            self._end()
        return not self.stop_signal

    def _end(self) -> None:
        """After the last step, or the one in which a signal came: the averaged weights at the end of the run, and a checkpoint."""
        self._look_for_skipped()
        if self.graph:
            self.graph.close()
        if self.progress >= 1:
            self.average.take()
        if self.ranks.first:
            self.save()

    def prepare(self) -> None:
        """Batches from the step in hand on; on CUDA steps as a graph, where the system can hold its shapes."""
        self.batches = self._batches()
        room = int(ROOM * self.cfg.trainer.target_samples)
        possible = self.cfg.trainer.graph and self.device.type == "cuda" and self.ranks.alone  # several exchange numbers within a step
        graphed = possible and self.system.hold(room)
        self.graph = StepGraph(self) if graphed else None

    def attempt(self, batch: RayBatch) -> int:
        """A step, its terms in `terms`; CUDA out of memory halves the rays. Returns the number of rays."""
        done = False
        with contextlib.suppress(torch.OutOfMemoryError):
            self.update(batch, self.progress)
            done = True
        if not done:  # not in an `except`, where the traceback still holds the step's tensors
            self.together.out_of_memory()
            self.forget()
            self._halve_rays()
        elif not self.system.held:
            self._follow_samples()
        return len(batch.rays)

    def forget(self) -> None:
        """Leave nothing behind of an update that ended half-way; else the next would be refused, or scaled twice."""
        self.terms, self.system.stats = {}, {}
        self.optimizer.forget()
        if self.scaler.is_enabled():
            self.scaler._per_optimizer_states.clear()

    def _follow_samples(self) -> None:
        samples = self.system.stats["samples"]
        target = self.n_rays * self.cfg.trainer.target_samples / max(samples, 1)
        self.n_rays = int(max(16, min(0.9 * self.n_rays + 0.1 * min(target, 10 * self.n_rays), self.cfg.trainer.max_rays)))

    def update(self, batch: RayBatch, progress: float) -> None:
        """Forward, backward and update; a non-finite step changes nothing and is counted."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", enabled=self.amp):
            terms = self.system.losses(batch, progress)
        loss = torch.stack(list(self.together.weigh(terms).values())).sum()
        if self.scaler.is_enabled():  # CUDA: what is not finite is found and left out on the device, and read later
            self.scaler.scale(loss).backward(1 + 0 * loss.detach())  # a loss that is not finite makes every gradient so
            self.together.gather(loss)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.terms = {name: value.detach() for name, value in terms.items()}
            return
        with gradients_in_place():
            loss.backward()
        if self._finite(self.together.gather(loss)):
            self.optimizer.step()
            self.skipped_in_row = 0
        else:
            self._skip(1, self.skipped_in_row + 1, terms)
        self.terms = {name: value.detach() for name, value in terms.items()}

    def _finite(self, loss: torch.Tensor) -> bool:
        """Whether loss and gradients are finite; waits for the device."""
        grads = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return bool(torch.isfinite(loss)) and bool(torch.isfinite(torch.stack([g.sum() for g in grads])).all())

    def _look_for_skipped(self) -> None:
        """Take in the steps that the optimiser left out on a CUDA device since the last look, which waits for it."""
        new, in_row, longest = self.optimizer.take_skipped()
        if new:
            self._skip(new, longest, self.terms)
        self.skipped_in_row = in_row

    def _skip(self, new: int, in_row: int, terms: dict) -> None:
        """Count `new` steps that were not finite, at most in_row of them in a row; terms: of the last step. Raises UserError at max_skipped."""
        self.skipped += new
        self.skipped_in_row = in_row
        bad = [name for name, value in terms.items() if not torch.isfinite(value)] or ["the gradient"]
        where = f"{new} steps up to {self.clock.step}" if self.scaler.is_enabled() else f"step {self.clock.step}"
        overflow = self.amp and bad == ["the gradient"] and in_row < LOOK  # the scale of the loss is too high for float16, and is halved
        message = "%s skipped: %s not finite (%d so far)"
        log.log(logging.INFO if overflow else logging.WARNING, message, where, ", ".join(bad), self.skipped)
        if in_row >= self.cfg.trainer.max_skipped:
            raise UserError(
                f"{in_row} steps in a row were not finite (term: {', '.join(bad)}); lower optim.lr, or look for bad pixels in the input"
            )

    def _halve_rays(self) -> None:
        torch.cuda.empty_cache()
        if self.n_rays <= 16:
            raise UserError("CUDA is out of memory with 16 rays a step; lower model.grid.log2_size or trainer.target_samples")
        self.n_rays //= 2
        log.warning("CUDA is out of memory: going on with %d rays a step", self.n_rays)

    # ------------------------------------------------------------------ around the loop

    @property
    def progress(self) -> float:
        return self.clock.progress(self.cfg)

    def _batches(self) -> Iterator[RayBatch]:
        cfg = self.cfg
        self.loader = ray_loader(
            self.scene, self.seed, self.clock.step, lambda: self.n_rays, cfg.model.radius, self.device, cfg.dataset.clean_edges,
            (self.ranks.rank, self.ranks.world),
        )  # fmt: skip
        return iter(self.loader)

    @property
    def seed(self) -> int:
        return self.cfg.seed or 0

    def _after_step(self, n_rays: int, seconds: float) -> None:
        cfg = self.cfg.trainer
        began = time.perf_counter()
        look, logged = self.clock.step % LOOK == 0, self.clock.step % cfg.log_every == 0 and bool(self.terms) and self.ranks.first
        if look:
            self._look_for_skipped()
        terms = {f"loss/{k}": float(v) for k, v in self.terms.items()} if logged else {}
        stats = {k: float(v) for k, v in self.system.stats.items()} if logged else {}
        waited = time.perf_counter() - began  # for steps that were handed to the device and counted as nothing
        self.clock.seconds += waited
        self._measure(n_rays * self.ranks.world, seconds + waited, look or logged or not self.graph)
        if logged:
            loss = sum(terms.values())
            values = {**terms, "loss": loss, **stats, **self.system.slow_stats(self.progress)}
            values |= {
                "rays_per_s": self.rate,
                "lr": self.optimizer.param_groups[0]["lr"],
                "progress": self.progress,
                "skipped": self.skipped,
                "seconds": self.clock.seconds,
            }
            self.run.scalars(self.clock.step, {k: round(v, 6) for k, v in values.items()})
            shown = " ".join(f"{key} {stats[key]:.1f}" for key in self.system.shown)
            self.bar.set_postfix_str(f"loss {loss:.4f} {shown} rays/s {self.rate:.0f} step {self.clock.step}")
        self.bar.update(round(1000 * self.progress) - self.bar.n)
        if self.ranks.first:
            self.validator.maybe(self.clock.step, self.clock.seconds, self.progress)
            self._maybe_save()

    def _measure(self, n_rays: int, seconds: float, waited: bool) -> None:
        """Take a step into the mean `rate`; with a graph only where the host has waited, the time between is not that of the steps."""
        steps, rays, spent = (a + b for a, b in zip(self.measured, (1, n_rays, seconds)))
        self.measured = (steps, rays, spent)
        if waited:
            keep, rate = 0.95**steps, rays / spent
            self.rate = keep * (self.rate or rate) + (1 - keep) * rate
            self.measured = (0, 0, 0.0)

    def _maybe_save(self) -> None:
        cfg = self.cfg.trainer
        by_steps = cfg.save_every and self.clock.step % cfg.save_every == 0
        by_time = self.clock.seconds - self.saved_at >= 60 * cfg.save_minutes
        if by_steps or by_time:
            self.save()

    def _bar(self) -> tqdm:
        layout = "{desc} {percentage:5.1f}%|{bar:20}| {elapsed}<{remaining} {postfix}"
        return tqdm(
            total=1000, initial=round(1000 * self.progress), desc="train", bar_format=layout, dynamic_ncols=True, mininterval=0.5,
            disable=not self.ranks.first,
        )  # fmt: skip

    def _stop(self, number: int) -> None:
        """A signal ends the loop after the step in hand, of several processes in all alike."""
        self.together.caught = number
        if self.ranks.alone:
            self.stop_signal = number

    # ------------------------------------------------------------------ checkpoints

    def state(self) -> dict:
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "version": checkpoint.VERSION, "commit": commit(), "config": to_yaml(self.cfg), "step": self.clock.step, "trained_seconds": self.clock.seconds,
            "seconds_before": self.clock.before, "n_rays": self.n_rays, "skipped": self.skipped, "model": self.system.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.amp else {}, "rng": rng, "average": self.average.state(),
        }  # fmt: skip

    def save(self) -> Path:
        """Write ckpt/last.pt; the older one stays until the new one is complete."""
        self._look_for_skipped()
        path = self.run / "ckpt/last.pt"
        checkpoint.save_checkpoint(path, self.state())
        self.saved_at, self.kept = self.clock.seconds, True
        return path

    def load(self, state: dict, path: Path) -> None:
        """Continue from a checkpoint. Raises UserError when it is of another architecture."""
        checkpoint.load_weights(self.system.model, state["model"], path)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            if self.amp and state["scaler"]:
                self.scaler.load_state_dict(state["scaler"])
            self.clock = Clock.of(state, path)
            self.n_rays, self.skipped = (
                min(max(checkpoint.whole(state, "n_rays"), 1), self.cfg.trainer.max_rays),
                checkpoint.whole(state, "skipped"),
            )
            self.average.load(state.get("average", {}))
            torch.set_rng_state(state["rng"]["cpu"].cpu().to(torch.uint8))
            if self.device.type == "cuda" and "cuda" in state["rng"]:
                torch.cuda.set_rng_state(state["rng"]["cuda"].cpu().to(torch.uint8), self.device)
        except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError) as error:
            said = isinstance(error, (ValueError, RuntimeError)) and str(error)
            reason = str(error).splitlines()[0][:120] if said else "its state is damaged"
            raise UserError(f"{path} cannot be continued ({reason}); take an older checkpoint, or train anew") from None
        self.scheduler.step(self.progress)
        self.saved_at, self.kept = self.clock.seconds, True
        self.validator.last = self.clock.seconds
