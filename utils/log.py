"""The run folder and the logger: screen, log.txt, metrics.jsonl and TensorBoard."""

import contextlib
import functools
import json
import logging
import logging.handlers
import os
import subprocess
import time
from pathlib import Path

from tqdm import tqdm

from utils.errors import UserError
from utils.events import Events
from utils.files import append, remove_leftovers, write_atomic

log = logging.getLogger("neus")


CONTROLS = {i: f"\\x{i:02x}" for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t"}


def printable(text: str) -> str:
    """The text with control characters, which could steer a terminal, and halves of characters written out (\\x1b, \\udcff)."""
    return text.translate(CONTROLS).encode("utf-8", "backslashreplace").decode()


class Printable(logging.Formatter):
    """Names of a stranger's files go into lines of the log: they are made `printable`."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def check_own(root: Path) -> None:
    """Raises UserError for a run folder in which a link leads out of it, or a pipe or a device lies: files would be written elsewhere."""
    home = Path(os.path.realpath(root))
    for top, folders, files in os.walk(root):
        for path in (Path(top, name) for name in (*folders, *files)):
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):  # resolve() raises at a loop
                raise UserError(f"{path}: a symbolic link leads out of the run folder; remove the link")
            if not (path.is_dir() or path.is_file()) and (path.exists() or path.is_symlink()):
                raise UserError(f"{path}: neither a file nor a folder; remove it from the run folder")


class _TqdmHandler(logging.Handler):
    """Prints log lines above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


class _LogFile(logging.handlers.WatchedFileHandler):
    """log.txt, made again where it was removed. A full disk costs lines: what has to be saved says so itself."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """What `emit` meets while it writes is passed over."""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def setup_logging() -> None:
    """Print the project's log lines on the screen; a second call has no effect."""
    if not log.handlers:
        handler = _TqdmHandler()
        handler.setFormatter(Printable("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def git(*arguments: str) -> str:
    """Output of a git command in the project's checkout; empty where there is no checkout or no git."""
    root = Path(__file__).resolve().parent.parent
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


@functools.cache
def commit() -> str:
    """Hash of the commit that was checked out when the program first asked, or "unknown"."""
    return git("rev-parse", "HEAD").strip() or "unknown"


MADE = "made.json"  # in a run folder: how many seconds had been trained when its test, mesh and video were made


class RunFolder:
    """outputs/<name>/<trial>/: config.yaml, log.txt, metrics.jsonl, tb/, ckpt/, images/, test/, mesh/, video.mp4, made.json."""

    def __init__(self, root: Path):
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            check_own(root)
            self._file = _LogFile(root / "log.txt", encoding="utf-8", errors="backslashreplace")
        except (OSError, ValueError) as error:  # ValueError: NUL in the name
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"the run folder {root} cannot be made ({reason}); choose another trainer.outputs_dir") from None
        remove_leftovers(root)
        self._file.setFormatter(Printable("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(self._file)
        self._events = Events(root / "tb")
        self._records: dict[str, bytes] = {}

    def __truediv__(self, name: str) -> Path:
        path = self.root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path.parent}: the folder cannot be made ({error.strerror}); remove what lies in its place") from None
        return path

    def record(self, name: str, data: bytes) -> None:
        """Write a file that tells what the run is; it is written again should someone remove the folder."""
        self._records[name] = data
        write_atomic(self / name, data)

    def record_source(self, config_yaml: str) -> None:
        """Write config.yaml, commit.txt and, where the checkout has changes, uncommitted.patch."""
        self.record("config.yaml", config_yaml.encode())
        self.record("commit.txt", (commit() + "\n").encode())
        patch = git("diff", "HEAD")
        if patch:
            self.record("uncommitted.patch", patch.encode())

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Append a line to metrics.jsonl and write the same values to TensorBoard."""
        self._look_for_records()
        line = json.dumps({"step": step, "time": round(time.time(), 1), **values})
        try:
            append(self / "metrics.jsonl", (line + "\n").encode())
        except OSError as error:
            raise UserError(f"{self.root}/metrics.jsonl cannot be written ({error.strerror}); free some space") from None
        self._events.scalars(step, values)

    def image(self, name: str, picture, step: int) -> None:
        """Write an [H, W, 3] uint8 picture to TensorBoard."""
        self._events.image(name, picture, step)

    def _look_for_records(self) -> None:
        """Write again what tells what the run is, where someone removed the folder while the run goes on."""
        gone = [name for name in self._records if not (self.root / name).exists()]
        if gone:
            log.warning(
                "%s: %s was removed; the run goes on without what was there, and makes its folder again", self.root, ", ".join(gone)
            )
        for name in gone:
            write_atomic(self / name, self._records[name])

    def close(self) -> None:
        log.removeHandler(self._file)
        self._file.close()
