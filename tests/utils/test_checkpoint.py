"""Checkpoints: round trips, damaged files and files that hold code."""

import os
import pickle
import zipfile

import pytest
import torch

from utils.checkpoint import (
    FORMAT,
    VERSION,
    load_checkpoint,
    load_weights,
    resolve,
    save_checkpoint,
    seconds_before,
    seconds_trained,
    whole,
)
from utils.errors import UserError

STATE = {"config": "a: 1", "model": {"w": torch.arange(3.0)}, "step": 4}


def test_round_trip_and_run_folder(tmp_path):
    path = tmp_path / "run/ckpt/last.pt"
    save_checkpoint(path, STATE)
    assert torch.equal(load_checkpoint(tmp_path / "run")["model"]["w"], STATE["model"]["w"])
    assert resolve(tmp_path / "run") == path


def test_a_clock_that_was_set_back_does_not_hide_the_newest(tmp_path):
    """last.pt was written later than a copy of an earlier one, at a time of day before it."""
    for name, date in (("last.pt", 1000), ("copy.pt", 5000), ("older.pt", 4000)):
        save_checkpoint(tmp_path / "ckpt" / name, STATE)
        os.utime(tmp_path / "ckpt" / name, (date, date))
    assert resolve(tmp_path).name == resolve(tmp_path / "ckpt").name == "last.pt"
    (tmp_path / "ckpt/last.pt").unlink()
    assert resolve(tmp_path).name == "copy.pt"


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


def test_a_flipped_bit_of_a_weight_is_found(tmp_path):
    """torch does not compare checksums: the weights would be silently wrong."""
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    data = bytearray(path.read_bytes())
    data[data.find(torch.arange(3.0).numpy().tobytes()) + 4] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="checksum of .* is wrong"):
        load_checkpoint(path)


def test_a_packed_archive_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(UserError, match="packed archive"):
        load_checkpoint(path)


def test_a_pipe_and_a_config_that_is_no_text(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(UserError, match="not a regular file"):
        load_checkpoint(tmp_path / "pipe.pt")
    for more in ({"config": 3}, {"model": [1]}):
        save_checkpoint(tmp_path / "a.pt", {**STATE, **more})
        with pytest.raises(UserError, match="lacks the config or the model"):
            load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.tensor([[1.0, float("nan")]]), "weight hold NaN or infinity"),
        (torch.tensor([[True, False]]), "weight is no tensor of numbers"),
        (torch.ones(1, 2).to_sparse(), "weight is no tensor of numbers"),
        (torch.ones(1, 2) * 1j, "weight is no tensor of numbers"),
        ("x", "weight is no tensor of numbers"),
        (torch.zeros(1).expand(10**12), "weight has shape"),
    ],
)
def test_weights_that_are_none(weight, message, tmp_path):
    module = torch.nn.Linear(2, 1)
    before = module.weight.clone()
    with pytest.raises(UserError, match=message):
        load_weights(module, {**module.state_dict(), "weight": weight}, tmp_path / "a.pt")
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("value", [None, -1, 1.5, True, "3", 10**40])
def test_counts(value):
    assert whole({"step": 3}, "step") == 3
    with pytest.raises(ValueError, match="step is .* expected a count"):
        whole({"step": value}, "step")


@pytest.mark.parametrize("value", [None, -1.0, float("nan"), float("inf"), "3"])
def test_seconds(value, tmp_path):
    assert seconds_trained({"trained_seconds": 3}, tmp_path) == 3.0
    with pytest.raises(UserError, match="trained_seconds is"):
        seconds_trained({"trained_seconds": value}, tmp_path)
    assert seconds_before({}, tmp_path) == 0 and seconds_before({"seconds_before": 2}, tmp_path) == 2.0
    with pytest.raises(UserError, match="seconds_before is"):
        seconds_before({"seconds_before": value}, tmp_path)
