"""Schedules are values: a number, or a ramp between two numbers over a part of the run.

Progress p runs from 0 to 1 over a run (steps or minutes, whichever is further: `systems/trainer.py`).
"""

import math
from dataclasses import dataclass

Spec = float | int | tuple | list


@dataclass(frozen=True)
class Ramp:
    """`start` before progress `begin`, `end` after progress `until`, in between linear or (`log`) geometric."""

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0
    log: bool = False

    def __call__(self, progress: float) -> float:
        if progress <= self.begin:
            return self.start
        if progress >= self.until:
            return self.end
        t = (progress - self.begin) / (self.until - self.begin)
        if self.log:
            return math.exp((1 - t) * math.log(self.start) + t * math.log(self.end))
        return (1 - t) * self.start + t * self.end


def ramp(spec: Spec, log: bool = False) -> Ramp:
    """Read `x` as a constant and `[start, end, begin, until]` (progress; the last two optional) as a `Ramp`."""
    if isinstance(spec, Ramp):
        return spec
    if isinstance(spec, (int, float)) and not isinstance(spec, bool):
        return Ramp(float(spec), float(spec), log=log)
    if isinstance(spec, (list, tuple)) and 2 <= len(spec) <= 4 and all(isinstance(v, (int, float)) for v in spec):
        start, end, begin, until = (*map(float, spec), *(0.0, 1.0)[len(spec) - 2 :])
        value = Ramp(start, end, begin, until, log)
        if not 0 <= value.begin < value.until <= 1:
            raise ValueError(f"a schedule runs between progress 0 and 1, begin before end; got {list(spec)}")
        if log and (value.start <= 0 or value.end <= 0):
            raise ValueError(f"a geometric schedule needs positive ends; got {list(spec)}")
        return value
    raise ValueError(f"a schedule is a number or [start, end, begin, until] with progress in [0, 1]; got {spec!r}")
