"""Checkpoints: plain tensors, numbers and strings; written whole or not at all; loaded without running code."""

import io
import pickle
import zipfile
from pathlib import Path

import torch

from utils.errors import UserError, one_line
from utils.files import check_regular, write_atomic

VERSION = "0.3.0"  # of the program; pyproject.toml, CITATION.cff and CHANGELOG.md say the same
FORMAT = 2  # 2: names of weights and options as of version 0.2
STAGES = ("shape", "material")  # folders in the folder of a run of stages, each of them a run (systems/stages.py)
STAGES_FILE = "stages.json"  # what is done of it


def save_checkpoint(path: Path, state: dict) -> None:
    """Save a dict of tensors, numbers and strings, with format and version, under `path` atomically. Raises UserError when the disk refuses."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **state}, buffer)
    write_atomic(path, buffer.getbuffer())


def resolve(path: Path) -> Path:
    """A checkpoint file as it is; of a run folder (or its ckpt folder) last.pt, which is its newest whatever the clock said; without it the
    newest by date; of a run of stages that of its last stage. Raises UserError."""
    if not path.exists():
        raise UserError(f"--resume {path}: no such file or folder")
    path = next((path / name for name in reversed(STAGES) if (path / name / "ckpt/last.pt").is_file()), path)
    if path.is_dir():
        found = sorted([*path.glob("ckpt/*.pt"), *path.glob("*.pt")], key=lambda p: (p.name == "last.pt", p.stat().st_mtime))
        if not found:
            raise UserError(f"--resume {path}: no checkpoint in it; expected ckpt/last.pt")
        return found[-1]
    return path


def whole_run(path: Path) -> Path | None:
    """The folder of the run of stages that a stage's checkpoint RUN/<stage>/ckpt/*.pt lies in; None for one of any other run."""
    folder = path.parent.parent
    inside = path.parent.name == "ckpt" and folder.name in STAGES and (folder.parent / STAGES_FILE).is_file()
    return folder.parent if inside else None


def _check_archive(path: Path, whole: bool) -> None:
    """Raises UserError unless the file is an archive as torch writes it: nothing packed, so that it takes no more memory than disk.

    whole: also compare the checksums of its members, which torch does not.
    """
    try:
        check_regular(path)
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check that the file exists and may be read") from None
    if not zipfile.is_zipfile(path):
        if head[:2] == b"PK" or not head:
            raise UserError(f"{path} is truncated; take an older checkpoint")
        raise UserError(f"{path} is not a checkpoint of this program (if it holds code, that was not and is never run)")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > path.stat().st_size:
                raise UserError(f"{path} is not a checkpoint of this program: it is a packed archive; take the file that was written")
            wrong = archive.testzip() if whole else None
    except (OSError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({one_line(str(error))[:80]}); take an older checkpoint") from None
    if wrong:
        raise UserError(f"{path} is damaged (the checksum of {wrong} is wrong); take an older checkpoint")


def load_checkpoint(path: Path, device: torch.device | str = "cpu", mmap: bool = False) -> dict:
    """Load with `weights_only=True`. mmap: tensors stay on the disk until they are used, for a look at the rest.

    Raises UserError for anything that is not a whole checkpoint of this program, and for one of another format.
    """
    path = resolve(Path(path))
    _check_archive(path, whole=not mmap)
    try:
        state = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is not a checkpoint of this program: it holds more than tensors, numbers and strings, perhaps code, which is never run"
        ) from None
    except Exception as error:  # a stranger's file may break the reader anywhere
        raise UserError(
            f"{path} is damaged ({(str(error).splitlines() or [''])[0][:80] or type(error).__name__}); take an older checkpoint"
        ) from None
    model = state.get("model") if isinstance(state, dict) else None
    if not isinstance(model, dict) or "format" not in state or not isinstance(state.get("config"), str):
        raise UserError(f"{path} is not a checkpoint of this program: it lacks the config or the model")
    if state["format"] != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {state['format']}, written by version {state.get('version', 'unknown')}; this is version {VERSION}, "
            f"which reads format {FORMAT}; use the version that wrote it, or train anew"
        )
    return state


def whole(state: dict, key: str) -> int:
    """The count under the key. Raises ValueError."""
    value = state.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise ValueError(f"{key} is {str(value)[:40]!r}, expected a count")
    return value


def _seconds(value: object, key: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e12:
        raise UserError(f"{path} is damaged ({key} is {str(value)[:40]!r}); take an older checkpoint")
    return float(value)


def seconds_trained(state: dict, path: Path) -> float:
    """The seconds of training. Raises UserError."""
    return _seconds(state.get("trained_seconds"), "trained_seconds", path)


def seconds_before(state: dict, path: Path) -> float:
    """Those of them before the first step; 0 where an older version did not say. Raises UserError."""
    return _seconds(state.get("seconds_before", 0.0), "seconds_before", path)


def load_weights(module: torch.nn.Module, state: dict, path: Path) -> None:
    """Strict load. Raises UserError that names the first difference when the checkpoint is of another architecture."""
    own = module.state_dict()
    problems = [f"{k} is missing" for k in own if k not in state]
    problems += [f"{k} is unknown here" for k in state if k not in own]
    problems += [f"{k} is no tensor of numbers" for k in own if k in state and not _is_numbers(state[k], own[k])]
    if problems:
        _refuse(problems, path)
    problems += [
        f"{k} has shape {list(state[k].shape)}, expected {list(own[k].shape)}" for k in own if k in state and own[k].shape != state[k].shape
    ]
    _refuse(problems, path)
    bad = next((k for k in own if not bool(torch.isfinite(state[k]).all())), None)
    if bad:
        raise UserError(f"{path}: the weights {bad} hold NaN or infinity; take an older checkpoint")
    module.load_state_dict(state)


def _is_numbers(value: object, like: torch.Tensor) -> bool:
    """Whether it is a plain tensor whose numbers are of the same sort, real, whole or logical."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_complex():
        return False
    return (value.is_floating_point(), value.dtype == torch.bool) == (like.is_floating_point(), like.dtype == torch.bool)


def _refuse(problems: list[str], path: Path) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more differences)" if len(problems) > 1 else ""
        raise UserError(
            f"{path} is of another architecture than the config: {problems[0]}{more}; leave out --config and model overrides to use the checkpoint's own"
        )
