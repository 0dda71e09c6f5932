"""Files written whole or not at all; mappings read from files that may be damaged."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from utils.errors import UserError

Data = bytes | bytearray | memoryview
ABANDONED = 60.0  # seconds without a write after which a temporary file of no living process is a leftover


def check_regular(path: str | Path) -> int:
    """Bytes of a regular file. Raises OSError; also for a folder, for a pipe, which would be waited for, and a device, which never ends."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL, "not a regular file", str(path))
    return found.st_size


def read_file(path: str | Path) -> bytes:
    """The bytes of a regular file. Raises OSError as `check_regular`."""
    check_regular(path)
    return Path(path).read_bytes()


def checksum(path: str | Path) -> str:
    """SHA-256 of the bytes of a regular file, in hexadecimal. Raises OSError."""
    check_regular(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_facts(path: Path) -> dict:
    """A JSON or YAML mapping; {} for a file that is missing or damaged."""
    try:
        text = read_file(path).decode("utf-8", "replace")
        facts = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return facts if isinstance(facts, dict) else {}


def finite_numbers(facts: Mapping[str, object], keys: Iterable[str]) -> dict[str, float]:
    """Those of the keys whose values are finite numbers, not truth values."""
    found = {}
    for key in keys:
        value = facts.get(key)
        with contextlib.suppress(OverflowError):  # a whole number beyond those of floating point
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(float(value)):
                found[key] = float(value)
    return found


def add_facts(path: Path, **found: object) -> None:
    """Add values to a JSON mapping, which is made where it is missing or damaged; the others are kept."""
    write_atomic(path, json.dumps({**read_facts(path), **found}, indent=1).encode())


def temporary_name(path: Path) -> Path:
    """The name under which this process writes a file until it is whole; nothing reads such a file."""
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed processes have left in a folder. Those of another host may be in work: they are left for a while."""
    for path in folder.rglob("*.part"):
        number = re.search(r"\.(\d+)\.part$", path.name)
        with contextlib.suppress(OSError):
            if number and not _alive(int(number[1])) and abs(time.time() - path.stat().st_mtime) > ABANDONED:
                path.unlink()


def _alive(pid: int) -> bool:
    """Whether another process of this number is there."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def write_atomic(path: str | Path, data: Data | Iterable[Data]) -> None:
    """Write bytes, or parts of bytes one after the other, under a temporary name, flush them to disk and rename the file to `path`.

    The folder is made where it is missing. Raises UserError when the file cannot be written: an older file of that name
    survives and the temporary one is removed.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.writelines([data] if isinstance(data, Data) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written ({reason}); free some space or choose a folder that can be written to") from None


def append(path: Path, data: bytes) -> None:
    """Append to a file, which is made where it is missing. Raises OSError where not all of it can be written: then nothing is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise
