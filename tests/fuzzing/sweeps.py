"""Cases of `python -m systems.sweep`: lists of scenes, names and the folders of earlier runs, spoilt. A script that copies a finished run trains."""

import os
import random
import shutil
import sys
from pathlib import Path

import yaml

from systems import sweep, sweep_pool
from tests.fuzzing import configs, figures, spoil

LIST = {
    "config": "CONFIG",
    "scenes": ["dtu", "frames"],
    "folders": ["{scene}"],
    "seeds": [1],
    "overrides": ["trainer.max_steps=2"],
    "protocol": "none",
    "evaluate": ["--eval", "{run}/mesh/mesh.ply", "--gt", "{truth}/x"],
}
FAKE = """
import os, pathlib, shutil, sys
options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
if "trainer.outputs_dir" in options and "--resume" not in sys.argv:
    folder = pathlib.Path(options["trainer.outputs_dir"], options["name"], options["trainer.trial_name"])
    shutil.copytree({source!r}, folder, dirs_exist_ok=True, ignore=lambda top, names: [n for n in names if n == "asked.json"])
elif "--eval" not in sys.argv:
    print("error: cannot go on")
    sys.exit(2)
"""
NAMES = ["", "x", "../scene", "/", "a/b", "x" * 5000, "a\0b", "ü✓", "-", "{scene}", "..", "n%s", "a\nb"]
ROOT = Path(__file__).parents[2]


def program(sources: Path) -> list[str]:
    return [sys.executable, "-S", str(sources / "fake.py")]


def _plain(box: Path) -> list[str]:
    return [
        str(box / "list.yaml"),
        "--data",
        "../scenes",
        "trainer.outputs_dir=../outputs",
        "trainer.finish=false",
        "trainer.device=cpu",
        "--no-video",
    ]


def write_sweep(sources: Path) -> None:
    """A sweep that has ended, in a box of its own."""
    box = sources / "swept"
    for name in ("cwd", "outputs"):
        (box / name).mkdir(parents=True)
    for name in LIST["scenes"]:
        shutil.copytree(sources / name, box / "scenes" / name)
    (box / "list.yaml").write_text(yaml.safe_dump({**LIST, "config": str(ROOT / "confs/dtu-wmask.yaml")}))
    (sources / "fake.py").write_text(FAKE.format(source=str(sources / "runs/neus")))
    here = os.getcwd()
    os.chdir(box / "cwd")
    try:
        if sweep.main(_plain(box), program(sources)):
            raise SystemExit("a valid sweep does not end")
    finally:
        os.chdir(here)


def _main(sources: Path):
    """The sweep's command line; that a run has failed is an answer too."""

    def main(words: list[str]) -> int:
        sweep_pool.LOOK = 0.01
        code = sweep.main(words, program(sources))
        return 0 if code == 1 else code

    return main


def _list(path: Path, rng: random.Random) -> str:
    """The list of scenes."""
    way = rng.random()
    if way < 0.55:
        return f"list: {configs.spoil_yaml(path, rng)}"
    if way < 0.75:
        data = yaml.safe_load(path.read_text())
        key, new = rng.choice([
            ("folders", ["{scene.x}"]), ("folders", ["{0}"]), ("folders", ["{"]), ("folders", ["{scene!r:>99999999999}"]), ("folders", [""]), ("folders", ["../../{scene}"]), ("config", "list.yaml"), ("config", "/dev/zero"),
            ("config", "a\0b"), ("scenes", []), ("scenes", [""]), ("scenes", ["../sentinel"]), ("seeds", []), ("seeds", [-1]), ("seeds", [10**30]), ("overrides", ["x"]), ("overrides", ["--train"]), ("overrides", ["seed=4"]),
            ("overrides", ["trainer.outputs_dir=../sentinel/x"]), ("evaluate", ["{nothing}"]), ("evaluate", []), ("protocol", {"a": [1]}), ("protocol", "\x1b[2J"), ("scenes", ["dtu"] * 3000), ("seeds", list(range(40))),
        ])  # fmt: skip
        data[key] = new
        path.write_text(yaml.dump(data, Dumper=configs.Dumper))
        return f"list: {key} = {str(new)[:40]}"
    if way < 0.9:
        text = rng.choice(configs.TEXTS)
        path.write_text(text)
        return f"list: {text[:40]!r}"
    return spoil.spoil_bytes(path, rng) if way < 0.97 else spoil.spoil_entry(path, rng, path.parent / "sentinel/a.txt", [path])


def _earlier(folder: Path, rng: random.Random, outside: Path) -> str:
    """A run folder that an earlier sweep left."""
    way, asked, last = rng.random(), folder / "asked.json", folder / "ckpt/last.pt"
    if way < 0.3:
        asked.write_bytes(
            rng.choice([b"", b"[]", b"null", b"3", b"{", b"[" * 5000, b"{}", b'{"seed": [1]}', b"\xff\xfe", b'{"optim.lr": NaN}', b'"x"'])
        )
        return f"asked.json: {asked.read_bytes()[:20]!r}"
    if way < 0.4:
        return spoil.spoil_json(asked, rng)
    if way < 0.6:
        return figures.spoil_run(folder, rng, outside)
    if way < 0.75:
        return spoil.spoil_bytes(last, rng)
    return spoil.spoil_entry(rng.choice([asked, last, folder / "lock"]), rng, outside, [last])


def _words(words: list[str], rng: random.Random) -> str:
    """The command line."""
    more = rng.choice([
        ["--scenes", rng.choice(NAMES)], ["--scenes", "dtu", rng.choice(NAMES)], ["--seeds", rng.choice(["-1", "x", "1e3", str(10**30), ""])], ["--jobs", rng.choice(["0", "-1", "x"])], ["--memory", rng.choice(["nan", "inf", "0", "-1", "x"])],
        ["--name", rng.choice(NAMES)], ["--config", rng.choice(["/dev/zero", "x.yaml", "", str(ROOT / "confs/nerf-colmap.yaml")])], ["--truth", rng.choice(NAMES)], ["--data", rng.choice(NAMES)], ["--slurm", rng.choice(["x", "", "a=b"])],
        ["optim.lrr=3"], ["seed=3"], ["model.name=x"], ["trainer.device=cuda:7"], ["--unknown"], ["trainer.outputs_dir=../list.yaml"], ["--list"],
    ])  # fmt: skip
    words += more
    return " ".join(word[:20] for word in more)


def case(sources: Path, box: Path, rng: random.Random):
    """A sweep that goes on, lists what is there, or begins; something is spoilt."""
    for name in ("outputs", "cwd"):
        shutil.rmtree(box / name)
    shutil.copytree(sources / "swept", box, dirs_exist_ok=True)
    (box / "cwd/c.txt").write_text("not yours")
    words, runs, way = _plain(box), sorted((box / "outputs").rglob("asked.json")), rng.random()
    if rng.random() < 0.4:
        shutil.rmtree(runs.pop().parent)  # something is left to do
    if way < 0.4:
        what = _list(box / "list.yaml", rng)
    elif way < 0.8:
        what = _earlier(rng.choice(runs).parent, rng, box / "sentinel/a.txt")
    else:
        what = _words(words, rng)
    if rng.random() < 0.3:
        words.append("--list")
    return _main(sources), words, what
