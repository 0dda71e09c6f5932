"""What visitors of the page of `--view` ask for, kept until the thread that owns the model has time."""

import threading
import time
from collections.abc import Callable, Hashable

SETTLED = 0.25  # seconds without a new request before a picture is rendered: a camera that is dragged asks all the time


class Requests:
    """What visitors ask for, by key, oldest first; a request replaces an older one of its key."""

    def __init__(self) -> None:
        self.waiting: dict[Hashable, tuple[float, Callable[[], None]]] = {}
        self.changed = threading.Condition()

    def put(self, key: Hashable, job: Callable[[], None], delay: float = 0.0) -> None:
        """Ask for `job`, which is ready after `delay` seconds. Any thread."""
        with self.changed:
            self.waiting.pop(key, None)
            self.waiting[key] = (time.monotonic() + delay, job)
            self.changed.notify()

    def take(self) -> Callable[[], None] | None:
        """The oldest job that is ready, or None."""
        if not self.waiting:
            return None
        with self.changed:
            now = time.monotonic()
            key = next((key for key, (when, _) in self.waiting.items() if when <= now), None)
            return None if key is None else self.waiting.pop(key)[1]

    def has(self, key: Hashable) -> bool:
        return key in self.waiting

    def wait(self, seconds: float) -> None:
        """Return when something is asked for, at the latest after so many seconds."""
        with self.changed:
            self.changed.wait(min(seconds, SETTLED / 2) if self.waiting else seconds)
