"""The processes of a run: `torchrun --nproc_per_node=N run.py ...` starts N that train one model, each on its share of the rays.

Numbers that decide what comes next go between the hosts' processors (gloo): an exchange waits for every process, and fails at once
when one has ended. Gradients and weights go between the devices (NCCL on CUDA). One process alone exchanges nothing.
"""

import contextlib
import functools
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from process_data.rays import mixed_seed
from utils.device import pick_device
from utils.errors import UserError
from utils.log import RunFolder

log = logging.getLogger("neus")
T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # of an exchange: the first process may load, triangulate, render or save meanwhile
CARD_PATIENCE = timedelta(seconds=20)  # of the devices, which start together, right after an exchange
OWN, COMMON = 16, 2  # added to the seed of a run: random numbers of process 0 and of all; 0 and 1 draw its batches


class Lost(UserError):
    """Another process of the run has ended, or cannot be reached any more."""


class Ranks:
    """This process among `world`, numbered from 0. Alone (the default) it exchanges nothing and draws what torch draws."""

    def __init__(self, rank: int = 0, world: int = 1, local: int = 0, local_world: int = 1):
        """local, local_world: the number among the processes of this host, and how many they are."""
        self.rank, self.world, self.local, self.local_world = rank, world, local, local_world
        self.cards: dist.ProcessGroup | None = None  # of the devices, where it is not that of the hosts
        self.sent = 0  # bytes this process has given to sums and copies
        self.again = False  # torchrun has started the processes anew (--max-restarts)
        self._own = 0

    @property
    def alone(self) -> bool:
        return self.world == 1

    @property
    def first(self) -> bool:
        """Whether this process logs, saves, validates, tests and exports."""
        return self.rank == 0

    # ------------------------------------------------------------------ where to run

    def device(self, name: str) -> torch.device:
        """`pick_device`; of several processes each takes the CUDA device of its number on its host. Raises UserError."""
        if self.alone:
            return pick_device(name)
        if name.startswith("cuda:"):
            raise UserError(f"trainer.device={name} names one device, but torchrun started {self.world} processes; set trainer.device=cuda")
        device = pick_device(name)
        if device.type == "cuda":
            count = torch.cuda.device_count()
            if self.local_world > count:
                raise UserError(
                    f"torchrun started {self.local_world} processes on this host, but PyTorch sees {count} CUDA devices; give "
                    f"--nproc_per_node={count}, or set trainer.device=cpu"
                )
            device = pick_device(f"cuda:{self.local}")
            self.cards = dist.new_group(backend="nccl", timeout=CARD_PATIENCE)
        log.info("%d processes, by %s", self.world, "NCCL" if self.cards else "gloo")
        return device

    def threads(self, wanted: int) -> int:
        """CPU threads of this process: as wanted, else its share of the cores (0: all, where it is alone)."""
        if wanted or self.alone:
            return wanted
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // self.local_world)

    # ------------------------------------------------------------------ random numbers

    def begin(self, seed: int, step: int) -> None:
        """Several processes: what is drawn until `part_ways` is the same in all. It depends on seed and step alone, so a run resumes."""
        if not self.alone:
            torch.manual_seed(mixed_seed(seed + COMMON, step))
            self._own = mixed_seed(seed + OWN + self.rank, step)

    def part_ways(self) -> None:
        """Several processes: from now on each draws for itself."""
        if not self.alone:
            torch.manual_seed(self._own)

    def drawn(self, draw: Callable[..., Tensor], n: int, *more: int, device: torch.device) -> Tensor:
        """[n, *more]: this process's part of draw(world * n, *more), as one process with all rays would draw it."""
        whole = draw(self.world * n, *more, device=device)
        return whole if self.alone else whole[self.rank * n : (self.rank + 1) * n]

    # ------------------------------------------------------------------ exchanges of the hosts

    def sums(self, numbers: list[float]) -> list[float]:
        """The sum over the processes of each number. Raises Lost."""
        if self.alone:
            return numbers
        values = torch.tensor(numbers, dtype=torch.float64)
        with _lost(self.world):
            dist.all_reduce(values)
        self.sent += values.nbytes
        return values.tolist()

    def from_first(self, numbers: list[float]) -> list[float]:
        """The numbers of the first process (exact up to 2^53). Raises Lost."""
        return self.sums([n if self.first else 0.0 for n in numbers])

    def name_from_first(self, name: str) -> str:
        """The file name of the first process, at most 255 bytes. Raises Lost."""
        sent = self.from_first([float(byte) for byte in os.fsencode(name)[:255].ljust(255, b"\0")])
        return os.fsdecode(bytes(int(byte) for byte in sent).rstrip(b"\0"))

    def in_turn(self, work: Callable[[], T]) -> T:
        """The first process works before the others do, which then find the files that it left."""
        if self.first:
            done = work()
            self.sums([0.0])
            return done
        self.sums([0.0])
        return work()

    def check_same(self, numbers: list[float], what: str) -> None:
        """Raises UserError, in all processes, when `numbers` are not those of the first."""
        if self.sums([float(self.from_first(numbers) != numbers)])[0]:
            raise UserError(f"the processes of this run do not agree on {what}; give all hosts the same files")

    # ------------------------------------------------------------------ sums and copies of the devices

    def sum_tensors(self, tensors: list[Tensor]) -> None:
        """Each tensor becomes its sum over the processes, the same to the last bit in all. Raises Lost."""
        if self.alone:
            return
        with _lost(self.world):
            for work in [dist.all_reduce(t, group=self.cards, async_op=True) for t in tensors]:
                work.wait()
        self.sent += sum(t.nbytes for t in tensors)

    def copy_first(self, tensors: list[Tensor]) -> None:
        """Each tensor becomes that of the first process. Raises Lost."""
        if self.alone:
            return
        with _lost(self.world):
            for t in tensors:
                whole = t.detach().contiguous()
                dist.broadcast(whole, 0, group=self.cards)
                if not self.first:
                    t.detach().copy_(whole)

    def leave(self) -> None:
        """No exchange follows: the others may go."""
        if not self.alone and dist.is_initialized():
            dist.destroy_process_group()


ALONE = Ranks()


@contextlib.contextmanager
def _lost(world: int) -> Iterator[None]:
    """What torch.distributed raises when a process is gone, as one sentence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0][:100]
        raise Lost(f"one of the {world} processes of this run has ended or cannot be reached ({reason})") from None


@functools.cache
def start() -> Ranks:
    """This process among those that torchrun started, all of which call this once; alone without torchrun. Raises UserError."""
    world = int(os.environ.get("WORLD_SIZE", "1")) if dist.is_available() and dist.is_torchelastic_launched() else 1
    if world == 1:
        return ALONE
    rank, local, local_world = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    ranks = Ranks(rank, world, local, local_world)
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # as this host has counted
    try:
        store = next(dist.rendezvous("env://", timeout=PATIENCE))[0]
        again |= not rank and store.add("neus/starts", 1) > 1
        dist.init_process_group(
            "gloo", store=dist.PrefixStore(_meet(store, rank, world), store), rank=rank, world_size=world, timeout=PATIENCE
        )
        ranks.again = ranks.sums([float(again)])[0] > 0
    except RuntimeError as error:
        raise UserError(f"the {world} processes of this run do not find each other ({str(error).splitlines()[0][:120]})") from None
    if rank:
        log.setLevel(logging.ERROR)
    return ranks


def _meet(store: dist.Store, rank: int, world: int) -> str:
    """A name for this start of the processes alone. torchrun's store outlives a restart, and with it the addresses of those that are
    gone, to which gloo would wait to be connected.

    The first process answers what the others have just made up, which cannot be left over, until each has heard it.
    """
    own = secrets.token_hex(8)
    if rank:
        store.set(f"neus/hello/{rank}", own)
        store.wait([f"neus/welcome/{own}"], PATIENCE)
        name = store.get(f"neus/welcome/{own}").decode()
        store.set(f"{name}/heard/{rank}", "")
        return name
    silent = set(range(1, world))
    until = time.monotonic() + PATIENCE.total_seconds()
    while silent and time.monotonic() < until:
        silent -= {r for r in silent if store.check([f"{own}/heard/{r}"])}
        for r in (r for r in silent if store.check([f"neus/hello/{r}"])):
            store.set(f"neus/welcome/{store.get(f'neus/hello/{r}').decode()}", own)
        time.sleep(0.02)
    if silent:
        raise RuntimeError(f"no word of {', '.join(str(r) for r in sorted(silent))} in {PATIENCE}")
    return own


def refuse(flag: str) -> None:
    """Raises UserError where torchrun started several processes for what one does."""
    if not start().alone:
        raise UserError(f"{flag} is the work of one process; run it by itself, without torchrun")


class NoFolder(RunFolder):
    """The run folder of a process that writes nothing there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    def record_source(self, config_yaml: str) -> None:
        return

    def scalars(self, step: int, values: dict[str, float]) -> None:
        return

    def image(self, name: str, picture, step: int) -> None:
        return

    def close(self) -> None:
        return
