"""Files written whole or not at all."""

import os
from collections.abc import Iterable
from pathlib import Path

from utils.errors import UserError

Data = bytes | bytearray | memoryview


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
