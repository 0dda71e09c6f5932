"""Cases of checkpoints and run folders."""

import io
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import torch
import yaml

from tests.fuzzing import spoil

RUN = "outputs/n/t"


class _Code:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return exec, (f"open({str(self.target)!r}, 'w')",)


def _tensors(node, path=()) -> list[tuple]:
    here = [path] if isinstance(node, torch.Tensor) else []
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return here + [place for key, part in parts for place in _tensors(part, (*path, key))]


def _parent(node, front):
    for part in front:
        node = node[part]
    return node


def _tensor(state: dict, rng: random.Random) -> str:
    """One tensor of the state."""
    *front, key = rng.choice([p for p in _tensors(state) if rng.random() < 0.5 or p[0] == "model"] or _tensors(state))
    node = _parent(state, front)
    t = node[key]
    full = t.float() if t.dtype == torch.bool else t
    kinds = {
        "NaN": lambda: torch.full_like(t.float(), float("nan")), "inf": lambda: torch.full_like(t.float(), float("inf")), "huge": lambda: full * 0 + 1e30,
        "zeros": lambda: t * 0, "another shape": lambda: t[None], "empty": lambda: t.flatten()[:0], "flat": lambda: torch.cat([t.flatten(), t.flatten()]),
        "double": lambda: t.double(), "half": lambda: t.half(), "ints": lambda: t.long(), "bools": lambda: t.bool(), "complex": lambda: t.to(torch.complex64),
        "a number": lambda: 3.0, "text": lambda: "x", "none": lambda: None, "a list": lambda: [1, 2], "expanded": lambda: torch.zeros(1).expand(10**10),
        "bits": lambda: full.float() * -1e4, "sparse": lambda: full.float().to_sparse(), "int8": lambda: t.to(torch.int8), "meta": lambda: torch.zeros(3, 3),
    }  # fmt: skip
    name = rng.choice(list(kinds))
    node[key] = kinds[name]()
    return f"{'/'.join(map(str, (*front, key)))}: {name}"


def _state(state: dict, rng: random.Random) -> str:
    """One entry of the state, from its top."""
    key = rng.choice(list(state))
    how = rng.random()
    if how < 0.3:
        del state[key]
        return f"{key} is gone"
    if how < 0.6 or not isinstance(state[key], dict) or not state[key]:
        state[key] = spoil.value(rng)
        return f"{key} = {str(state[key])[:30]!r}"
    inner = rng.choice(list(state[key]))
    if isinstance(state[key][inner], list) and rng.random() < 0.6:
        state[key][inner] = state[key][inner] * rng.choice([0, 2, 1000])
        return f"{key}/{inner}: another length"
    state[key][inner] = spoil.value(rng)
    return f"{key}/{inner} = {str(state[key][inner])[:30]!r}"


def _config(state: dict, rng: random.Random, box: Path) -> str:
    """The config inside."""
    data = yaml.safe_load(state["config"])
    way = rng.random()
    if way < 0.3:
        text = rng.choice([
            "", "[", "x", "a: &a [*a]", "name: ${oc.env:HOME}", "!!python/object/apply:os.system ['touch was-run']", "\0", "model: {name: nerf}", "model: 3", "dataset: null",
            "{" * 3000, "trainer: {outputs_dir: null}", "name: 3", "1: 2", "base: x", "name: ../../sentinel/x",
        ])  # fmt: skip
        state["config"] = text
        return f"config {text[:40]!r}"
    if way < 0.5:
        key, new = rng.choice([
            ("outputs_dir", str(box / "sentinel")), ("outputs_dir", "../sentinel"), ("trial_name", "../../../sentinel/x"), ("name", "../../sentinel/x"), ("tag", "../x"),
            ("root_dir", "/"), ("root_dir", str(box / "sentinel")), ("root_dir", "a\0b"), ("name", "material"), ("cameras", "/dev/zero"), ("cameras", "../sentinel/a.txt"),
        ])  # fmt: skip
        for node in (data, data["trainer"], data["dataset"]):
            if key in node:
                node[key] = new
        what = f"config: {key}={new}"
    else:
        what = "config: " + spoil.spoil_tree(data, rng)
        data["trainer"] = {**data["trainer"], "max_steps": 2} if isinstance(data.get("trainer"), dict) else data.get("trainer")
    state["config"] = yaml.safe_dump(data, sort_keys=False)
    return what


def _zip(path: Path, rng: random.Random) -> str:
    """A member of the archive."""
    with zipfile.ZipFile(path) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    name = rng.choice([n for n in members if rng.random() < 0.3] or [n for n in members if n.endswith("data.pkl")])
    how = rng.choice(["gone", "flip", "empty", "packed", "code", "a bomb", "twice"])
    data = bytearray(members[name])
    if how == "gone":
        del members[name]
    elif how == "flip" and data:
        for _ in range(5):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        members[name] = bytes(data)
    elif how == "code":
        members[next(n for n in members if n.endswith("data.pkl"))] = pickle.dumps(_Code(path.parents[4] / "sentinel/was-run"), protocol=2)
    elif how == "a bomb":
        members[name] = bytes(300 << 20)
    elif how != "packed":
        members[name] = b""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if how in ("packed", "a bomb") else zipfile.ZIP_STORED) as file:
        for member, content in members.items():
            file.writestr(member, content)
    return f"archive: {Path(name).name} {how}"


def _foreign(path: Path, rng: random.Random, box: Path) -> str:
    """Something that is no checkpoint of ours."""
    kinds = {
        "code": lambda: pickle.dumps(_Code(box / "sentinel/was-run")), "a list": lambda: _saved([1, 2]), "a tensor": lambda: _saved(torch.zeros(3)),
        "a module": lambda: _saved(torch.nn.Linear(2, 2)), "other keys": lambda: _saved({"state_dict": {}}), "code in ours": lambda: _saved({"format": 2, "config": "", "model": _Code(box / "sentinel/was-run")}),
        "old format": lambda: _saved({"format": 1, "config": "", "model": {}}), "text": lambda: b"hello", "empty": lambda: b"", "a zip": lambda: b"PK\x05\x06" + bytes(18),
        "format of a list": lambda: _saved({"format": [2], "config": "", "model": {}}), "no config": lambda: _saved({"format": 2, "config": None, "model": {}}),
    }  # fmt: skip
    name = rng.choice(list(kinds))
    path.write_bytes(kinds[name]())
    return f"checkpoint is {name}"


def _saved(what) -> bytes:
    buffer = io.BytesIO()
    torch.save(what, buffer)
    return buffer.getvalue()


def _folder(run: Path, rng: random.Random, box: Path) -> str:
    """The run folder around the checkpoint."""
    how = rng.choice(["no checkpoint", "empty", "links", "file", "file", "file", "entry", "entry", "only checkpoint"])
    files = [p for p in sorted(run.rglob("*")) if p.is_file()]
    if how == "no checkpoint":
        shutil.rmtree(run / "ckpt")
        (run / "ckpt").mkdir()
    elif how == "empty":
        shutil.rmtree(run)
        run.mkdir()
    elif how == "only checkpoint":
        for path in files:
            path.suffix == ".pt" or path.unlink()
    elif how == "links":
        name = rng.choice(
            ["log.txt", "metrics.jsonl", "config.yaml", "test", "mesh", "tb", "images", "ckpt", "scene.json", "report.html", "video.gif"]
        )
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        os.symlink(box / ("sentinel/a.txt" if "." in name else "sentinel/deep"), path)
        if name == "ckpt":
            return "ckpt/ leads outside"
        return f"{name} leads outside"
    else:
        path = rng.choice([p for p in files if p.suffix in (".json", ".jsonl", ".yaml", ".txt", ".ply")] or files)
        if how == "entry":
            return spoil.spoil_entry(path, rng, box / "sentinel/a.txt", files)
        return spoil.spoil_json(path, rng) if path.suffix == ".json" and rng.random() < 0.7 else spoil.spoil_bytes(path, rng)
    return how


def case(sources: Path, box: Path, rng: random.Random) -> tuple[list[str], str]:
    """A finished run and its scene; something in the run is spoilt."""
    method = rng.choice(["neus", "neus", "nerf"])
    shutil.rmtree(box / "scene")
    shutil.copytree(sources / "dtu", box / "scene")
    run = box / RUN
    shutil.copytree(sources / "runs" / method, run)
    path, way = run / "ckpt/last.pt", rng.random()
    if way < 0.55:
        state = torch.load(path, weights_only=True)
        what = rng.choice([_tensor, _tensor, _state, lambda *a: _config(*a, box), lambda *a: _config(*a, box)])(state, rng)
        torch.save(state, path)
    elif way < 0.65:
        what = spoil.spoil_bytes(path, rng)
    elif way < 0.75:
        what = _zip(path, rng)
    elif way < 0.82:
        what = _foreign(path, rng, box)
    else:
        what = _folder(run, rng, box)
    given = run
    if rng.random() < 0.25 and path.is_file():
        given = box / "outputs/x.pt"  # a checkpoint on its own
        shutil.move(path, given)
    job = rng.choice([["--train"], ["--train"], ["--test", "--no-video"], ["--mesh"], ["--eval"]])
    more = [] if "config: root_dir" in what else [f"dataset.root_dir={box / 'scene'}"]
    return [*job, "--resume", str(given), *more], f"{method} {' '.join(job)}: {what}"
