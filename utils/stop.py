"""SIGTERM, and SIGHUP of a terminal that was closed, end the program as Ctrl-C does: temporary files go, and a line says how to go on.

`systems/trainer.py` takes these signals over while it trains, to end after the step in hand with a checkpoint.
"""

import contextlib
import logging
import os
import signal
import sys
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


def _leave_terminal(number: int) -> None:
    """After SIGHUP what is printed goes nowhere: a write to a terminal that is no more would be an error in the midst of saving."""
    if number != getattr(signal, "SIGHUP", None):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if os.isatty(stream.fileno()):
                os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextlib.contextmanager
def handled(handler: Callable[[int], None]) -> Iterator[None]:
    """Within, the signals call the handler with their number. One that is ignored (nohup) stays so; only the main thread can set them."""
    main = threading.current_thread() is threading.main_thread()
    numbers = [number for number in SIGNALS if main and signal.getsignal(number) != signal.SIG_IGN]

    def call(number: int, _frame: object) -> None:
        _leave_terminal(number)
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
