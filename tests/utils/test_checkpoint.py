"""Checkpoints: round trips, damaged files and files that hold code."""

import os
import pickle

import pytest
import torch

from utils.checkpoint import FORMAT, VERSION, load_checkpoint, load_weights, resolve, save_checkpoint
from utils.errors import UserError

STATE = {"config": "a: 1", "model": {"w": torch.arange(3.0)}, "step": 4}


def test_round_trip_and_run_folder(tmp_path):
    path = tmp_path / "run/ckpt/last.pt"
    save_checkpoint(path, STATE)
    assert torch.equal(load_checkpoint(tmp_path / "run")["model"]["w"], STATE["model"]["w"])
    assert resolve(tmp_path / "run") == path


class Malicious:
    def __reduce__(self):
        return os.mkdir, (str(Malicious.target),)


def test_code_does_not_run(tmp_path):
    Malicious.target = tmp_path / "was-run"
    for name, write in (
        ("a.pt", lambda p: torch.save({"model": Malicious()}, p)),
        ("b.pt", lambda p: p.write_bytes(pickle.dumps(Malicious()))),
    ):
        path = tmp_path / name
        write(path)
        with pytest.raises(UserError, match="(never|not and is never) run"):
            load_checkpoint(path)
    assert not Malicious.target.exists()


@pytest.mark.parametrize("keep", [0, 10, 200, 0.5, 0.99])
def test_truncated(tmp_path, keep):
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"a\.pt"):
        load_checkpoint(path)


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(path)
    torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(UserError, match="lacks the config"):
        load_checkpoint(path)
    with pytest.raises(UserError, match="no such file"):
        load_checkpoint(tmp_path / "none.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint in it"):
        load_checkpoint(tmp_path / "empty")


def test_another_architecture_is_named(tmp_path):
    layer = torch.nn.Linear(2, 3)
    with pytest.raises(UserError, match=r"weight has shape \[4, 2\], expected \[3, 2\]"):
        load_weights(layer, torch.nn.Linear(2, 4).state_dict(), tmp_path)
    with pytest.raises(UserError, match="bias is missing"):
        load_weights(layer, {"weight": layer.weight}, tmp_path)


def test_versions(tmp_path):
    """What it was written by is in the file; another format is refused by the names of both, an older version of this format is read."""
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    assert load_checkpoint(path)["version"] == VERSION
    for number, version, said in ((1, {}, "unknown"), (FORMAT + 1, {"version": "0.9.0"}, "0.9.0")):
        torch.save({**STATE, "format": number, **version}, path)
        with pytest.raises(UserError, match=f"a.pt has checkpoint format {number}, written by version {said}; this is version {VERSION}"):
            load_checkpoint(path)
    torch.save({**STATE, "format": FORMAT, "version": "0.2.0"}, path)
    assert load_checkpoint(path)["version"] == "0.2.0"


def test_a_look_at_a_checkpoint_leaves_its_tensors_on_the_disk(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    state = load_checkpoint(path, mmap=True)
    assert state["step"] == 4 and torch.equal(state["model"]["w"], STATE["model"]["w"])
