"""Checkpoints: plain tensors, numbers and strings; written whole or not at all; loaded without running code."""

import io
import pickle
import zipfile
from pathlib import Path

import torch

from utils.errors import UserError
from utils.files import write_atomic

VERSION = "0.3.0"  # of the program; pyproject.toml, CITATION.cff and CHANGELOG.md say the same
FORMAT = 2  # 2: names of weights and options as of version 0.2


def save_checkpoint(path: Path, state: dict) -> None:
    """Save a dict of tensors, numbers and strings, with format and version, under `path` atomically. Raises UserError when the disk refuses."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **state}, buffer)
    write_atomic(path, buffer.getbuffer())


def resolve(path: Path) -> Path:
    """A checkpoint file as it is; of a run folder (or its ckpt folder) the newest checkpoint. Raises UserError."""
    if not path.exists():
        raise UserError(f"--resume {path}: no such file or folder")
    if path.is_dir():
        found = sorted([*path.glob("ckpt/*.pt"), *path.glob("*.pt")], key=lambda p: (p.stat().st_mtime, p.name == "last.pt"))
        if not found:
            raise UserError(f"--resume {path}: no checkpoint in it; expected ckpt/last.pt")
        return found[-1]
    return path


def load_checkpoint(path: Path, device: torch.device | str = "cpu", mmap: bool = False) -> dict:
    """Load with `weights_only=True`. mmap: tensors stay on the disk until they are used, for a look at the rest.

    Raises UserError for anything that is not a whole checkpoint of this program, and for one of another format.
    """
    path = resolve(Path(path))
    with open(path, "rb") as file:
        head = file.read(4)
    if not zipfile.is_zipfile(path):
        if head[:2] == b"PK" or not head:
            raise UserError(f"{path} is truncated; take an older checkpoint")
        raise UserError(f"{path} is not a checkpoint of this program (if it holds code, that was not and is never run)")
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
    if not isinstance(state, dict) or "format" not in state or "config" not in state or "model" not in state:
        raise UserError(f"{path} is not a checkpoint of this program: it lacks the config or the model")
    if state["format"] != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {state['format']}, written by version {state.get('version', 'unknown')}; this is version {VERSION}, "
            f"which reads format {FORMAT}; use the version that wrote it, or train anew"
        )
    return state


def load_weights(module: torch.nn.Module, state: dict, path: Path) -> None:
    """Strict load. Raises UserError that names the first difference when the checkpoint is of another architecture."""
    own = module.state_dict()
    problems = [f"{k} is missing" for k in own if k not in state]
    problems += [f"{k} is unknown here" for k in state if k not in own]
    problems += [
        f"{k} has shape {list(state[k].shape)}, expected {list(own[k].shape)}" for k in own if k in state and own[k].shape != state[k].shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more differences)" if len(problems) > 1 else ""
        raise UserError(
            f"{path} is of another architecture than the config: {problems[0]}{more}; leave out --config and model overrides to use the checkpoint's own"
        )
    module.load_state_dict(state)
