"""Cases of `--eval MESH` with its protocols and of `--eval-table`: meshes, crop volumes, matrices and run folders, spoilt."""

import os
import random
import re
import shutil
from pathlib import Path

import numpy as np

import run
from tests.fuzzing import configs, spoil
from tests.fuzzing.meshes import SUFFIXES, ball, write_spoilt


def compare(sources: Path, box: Path, rng: random.Random):
    """`--eval MESH`, by any protocol; the mesh, the truth or what the protocol reads is spoilt."""
    given, outside = box / "given", box / "sentinel/a.txt"
    shutil.copytree(sources / "truths", given)
    mesh, truth = (given / f"{name}{rng.choice(SUFFIXES)}" for name in ("mesh", "truth"))
    for path in (mesh, truth):
        np.savetxt(path, ball().vertices) if path.suffix == ".xyz" else ball().export(path)
    protocol, spoilt = rng.choice(["", "", "", "dtu", "tnt", "scene"]), rng.choice([mesh, mesh, truth])
    words = {
        "": ["--gt", str(truth)], "scene": ["--gt", str(truth), "--scene", str(box / "scene")], "dtu": ["--protocol", "dtu", "--dtu-data", str(given / "dtu"), "--scan", "24"],
        "tnt": ["--protocol", "tnt", "--gt", str(truth), "--tnt-crop", str(given / "crop.json"), "--tnt-tau", rng.choice(["0.1", "0.1", "1e-30", "1e30", "nan", "0"])],
    }[protocol]  # fmt: skip
    if protocol == "tnt" and rng.random() < 0.4:
        words += ["--tnt-align", str(given / "align.txt")]
    others = {"dtu": [p for p in (given / "dtu").rglob("*") if p.is_file()], "tnt": [given / "crop.json", given / "align.txt"]}.get(
        protocol
    )
    if others and rng.random() < 0.5:
        path = rng.choice(sorted(others))
        ways = [
            spoil.spoil_bytes,
            *([spoil.spoil_json] * 3 if path.suffix == ".json" else []),
            *([spoil.spoil_text] * 3 if path.suffix == ".txt" else []),
        ]
        what = rng.choice(ways)(path, rng) if path.suffix != ".ply" else write_spoilt(path, rng, outside)
    else:
        what = write_spoilt(spoilt, rng, outside)
    if protocol == "scene":
        shutil.rmtree(box / "scene")
        shutil.copytree(sources / "material scene", box / "scene")
    out = box / "outputs/compared"
    if rng.random() < 0.5:
        words += ["--eval-out", str(out)]
        if rng.random() < 0.1:
            out.write_text("x") if rng.random() < 0.5 else os.symlink(outside, out)
    return run.main, ["--eval", str(mesh), *words], f"{protocol or 'plain'} {'truth, ' if spoilt == truth else ''}{what}"


def _metrics(path: Path, rng: random.Random) -> str:
    """A file of figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = rng.choice([
        "", "[]", "null", "{", '{"psnr": NaN}', '{"psnr": 1e999}', '{"psnr": "x"}', '{"psnr": null}', '{"psnr": true}', '{"scale": 0.5}', '{"psnr": ' + "9" * 5000 + "}", '{"psnr": ' + "9" * 400 + "}",
        "[" * 5000, "\xff\xfe", '{"step": 5, "seconds": 1e400}', '{"step": [], "seconds": {}}', '{"psnr": 1e300}', '{"scale": NaN, "held_out": 0}', '{"chamfer": -1}', '{"seconds": ' + "9" * 400 + ', "step": 1}',
    ])  # fmt: skip
    path.write_bytes(text.encode("latin-1"))
    return f"{path.name}: {text[:30]!r}"


def spoil_run(folder: Path, rng: random.Random, outside: Path) -> str:
    """A run folder as the table reads it."""
    way = rng.random()
    if way < 0.4:
        return _metrics(folder / rng.choice(["test/metrics.json", "mesh/metrics.json", "metrics.jsonl"]), rng)
    path = folder / "config.yaml"
    if way < 0.6:
        return f"config.yaml: {configs.spoil_yaml(path, rng)}"
    if way < 0.75:
        text = rng.choice(configs.TEXTS)
        path.write_text(text)
        return f"config.yaml: {text[:40]!r}"
    path = rng.choice([path, folder / "test/metrics.json", folder / "metrics.jsonl"])
    if not path.is_file():
        return _metrics(path, rng)
    return spoil.spoil_bytes(path, rng) if way < 0.9 else spoil.spoil_entry(path, rng, outside, [path])


def table(sources: Path, box: Path, rng: random.Random):
    """`--eval-table` of run folders."""
    what, top = [], box / "outputs/n"
    for name in "abc":
        shutil.copytree(sources / "runs" / rng.choice(["neus", "nerf"]), top / name)
        if rng.random() < 0.6:
            what.append(f"{name}: {spoil_run(top / name, rng, box / 'sentinel/a.txt')}")
    given = rng.choice(
        [
            [f"{top}/*"],
            [f"{top}/*"],
            [str(top / name) for name in "abc"],
            [str(top / "a"), rng.choice(["", "/dev/null", str(box / "sentinel"), "a\0b", "x" * 5000, "**/*", "[*"])],
        ]
    )
    out = ["--eval-out", str(box / rng.choice(["outputs/table", "outputs/n/a/config.yaml"]))] if rng.random() < 0.4 else []
    return run.main, ["--eval-table", *given, *out], re.sub(r"\s+", " ", f"{'; '.join(what)} {given[-1][-20:]}")
