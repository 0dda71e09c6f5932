"""SIGTERM, and SIGHUP of a terminal that was closed, end the program as Ctrl-C does: temporary files go, and a line says how to go on.

`systems/trainer.py` takes these signals over while it trains, to end after the step in hand with a checkpoint.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator

log = logging.getLogger("neus")
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal that ends the program; raised wherever it happens to be."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def told(stop: KeyboardInterrupt, advice: str = "start again with the same command") -> int:
    """Say what stopped the program and how to go on; returns the exit code."""
    number = stop.number if isinstance(stop, Stopped) else int(signal.SIGINT)
    log.error("stopped by %s; %s", signal.Signals(number).name, advice)
    return 128 + number


def _terminals() -> list[int]:
    """Standard output and error, where they are terminals."""
    found = []
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if os.isatty(number):
                found.append(number)
    return found


def _print_nowhere(outputs: list[int]) -> None:
    """Lead outputs to nowhere: a write to a terminal that is gone is an error, in the midst of saving."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in outputs:
        os.dup2(nowhere, number)
    os.close(nowhere)


@contextlib.contextmanager
def handled(handler: Callable[[int], None]) -> Iterator[None]:
    """Within, the signals call the handler with their number. One that is ignored (nohup) stays so; only the main thread can set them."""
    main = threading.current_thread() is threading.main_thread()
    terminals = _terminals()  # asked now: one that is gone is none any more
    numbers = [number for number in SIGNALS if main and signal.getsignal(number) != signal.SIG_IGN]

    def call(number: int, _frame: object) -> None:
        if number == getattr(signal, "SIGHUP", None):
            _print_nowhere(terminals)
        handler(number)

    old = {number: signal.signal(number, call) for number in numbers}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def stoppable() -> contextlib.AbstractContextManager[None]:
    """Within, a signal raises Stopped, once: a second one ends the program at once."""

    def stop(number: int) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Stopped(number)

    return handled(stop)
