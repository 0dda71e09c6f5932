"""Files written whole or not at all; mappings read from files that may be damaged."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import yaml

from utils.errors import UserError

Data = bytes | bytearray | memoryview


def read_facts(path: Path) -> dict:
    """A JSON or YAML mapping; {} for a file that is missing or damaged."""
    try:
        text = path.read_text(errors="replace")
        facts = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return facts if isinstance(facts, dict) else {}


def add_facts(path: Path, **found: object) -> None:
    """Add values to a JSON mapping, which is made where it is missing or damaged; the others are kept."""
    write_atomic(path, json.dumps({**read_facts(path), **found}, indent=1).encode())


def write_atomic(path: str | Path, data: Data | Iterable[Data]) -> None:
    """Write bytes, or parts of bytes one after the other, under a temporary name, flush them to disk and rename the file to `path`.

    The folder is made where it is missing. Raises UserError when the file cannot be written: an older file of that name
    survives and the temporary one is removed.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
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
