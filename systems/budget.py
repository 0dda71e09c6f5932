"""How long pictures may take: the test and the video a share of the training time each, pictures while training a tenth of it.

Where they would take longer they are reduced. Time is measured on a small picture and taken to go with the number of pixels.
"""

import math
import time
from collections.abc import Callable

FLOOR = 30.0  # seconds that the test and the video may take after the shortest training
VALIDATION = 0.1  # of the training time, for pictures while training
UNMEASURED = 1 << 16  # pixels in all, up to which pictures are rendered without a measurement
FRAMES, FEWEST, ROWS = 60, 24, 480  # of the video: frames, fewest frames, most rows
SMALL, SMALLER = 96, 48  # least pixels of the shorter side: of pictures while training and the video, which are measured, and of the test


def allowance(trained: float, share: float) -> float:
    """Seconds that the test, or the video, may take after this many seconds of training; infinite for a share of 0."""
    return max(FLOOR, share * trained) if share else math.inf


def fitting_scale(seconds: float, allowed: float, size: tuple[int, int], least: int) -> float:
    """The scale of pictures, at most 1, at which what takes `seconds` at this size takes what is allowed.

    The shorter side keeps `least` pixels, where it has them.
    """
    lowest = min(1.0, least / min(size))
    return max(lowest, min(1.0, math.sqrt(allowed / max(seconds, 1e-9))))


def probe_scale(size: tuple[int, int]) -> float:
    """The scale of the picture that is measured."""
    return min(1.0, SMALL / min(size))


def seconds_per_pixel(size: tuple[int, int], picture: Callable[[float], object]) -> float:
    """Render `picture(scale)` of a view of this size twice, small, and time the second: the first may compile kernels."""
    scale = probe_scale(size)
    picture(scale)
    began = time.perf_counter()
    picture(scale)
    return (time.perf_counter() - began) / (scale**2 * size[0] * size[1])


def plan_video(rate: float, size: tuple[int, int], steps: int | None, scale: float | None, allowed: float) -> tuple[int, float]:
    """(frames, scale of their size) of a video of views of this size, at `rate` seconds a pixel; steps, scale: as the user gave them.

    By default FRAMES frames of at most ROWS rows. Where these take longer than allowed, there are fewer of them, then smaller ones.
    """
    frames, factor = steps or FRAMES, scale or min(1.0, ROWS / size[1])
    each = rate * size[0] * size[1] * factor**2
    if steps is None and each * frames > allowed:
        frames = max(FEWEST, int(allowed / each))
    if scale is None:
        small = (round(size[0] * factor), round(size[1] * factor))
        factor *= fitting_scale(each * frames, allowed, small, SMALL)
    return frames, factor
