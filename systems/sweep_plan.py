"""What a sweep consists of: the runs of a grid of scenes and seeds, their folders, and what is left to do for each."""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from confs.load import _Loader, load_config
from confs.schema import Config
from utils import checkpoint
from utils.errors import UserError, raise_all, suggestion
from utils.files import write_atomic

ASKED = "asked.json"  # in a run folder: the options that the sweep asked for
SET_BY_SWEEP = {  # option -> how a sweep is told
    "name": "--name", "tag": "--name", "trainer.trial_name": "--name", "seed": "--seeds", "dataset.root_dir": "--scenes and --data",
}  # fmt: skip
ASIDE = {
    f"trainer.{key}" for key in ("outputs_dir", "device", "threads", "log_every", "val_minutes", "save_minutes", "save_every", "chunk")
} | {"dataset.on_disk"}  # fmt: skip
KEYS = ("config", "scenes", "folders", "seeds", "overrides", "protocol", "evaluate")


@dataclass(frozen=True)
class Benchmark:
    """Published scenes, and how they are trained and judged. A config alone is one without scenes."""

    path: Path
    config: Path
    scenes: tuple[str, ...] = ()
    folders: tuple[str, ...] = ("{scene}",)  # names that the folder of a scene may have
    seeds: tuple[int, ...] = (1,)
    overrides: tuple[str, ...] = ()
    protocol: str = ""  # what has to be the same for figures to be comparable with published ones
    evaluate: tuple[str, ...] = ()  # words of run.py that judge a finished run against --truth


@dataclass(frozen=True, eq=False)
class Run:
    """One training: a scene, a seed, and the folder in which all of it goes on and ends."""

    scene: str
    seed: int
    folder: Path
    words: tuple[str, ...]  # of run.py, for the start
    asked: dict[str, Any]  # options that may change the result
    ends: tuple[str, ...]  # patterns of the files that the run leaves when it is complete
    device: str  # trainer.device
    threads: int  # trainer.threads
    evaluate: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.scene} seed {self.seed}"


def read_benchmark(path: Path) -> Benchmark:
    """A file of confs/benchmarks, or a config. Raises UserError."""
    try:
        node = yaml.load(path.read_text(), _Loader) or {}
    except FileNotFoundError:
        near = suggestion(path.name, [p.name for p in path.parent.glob("*.yaml")])
        raise UserError(f"{path} does not exist{near}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if isinstance(node, dict) and "stages" in node:
        raise UserError(f"{path} trains in stages, which a sweep does not; sweep the config of a stage, or start run.py for each scene")
    if not isinstance(node, dict) or "scenes" not in node:
        return Benchmark(path, path)
    problems = [f"unknown key '{key}'{suggestion(str(key), list(KEYS))}" for key in node if key not in KEYS]
    problems += [] if isinstance(node.get("config"), str) else ["config: expected a file, relative to this one"]
    for key in KEYS[1:]:
        kind = int if key == "seeds" else str
        if key in node and key != "protocol" and not (isinstance(node[key], list) and all(type(value) is kind for value in node[key])):
            problems.append(f"{key}: expected a list of {'numbers' if kind is int else 'words'}")
    raise_all(problems, f"{path}: ")
    lists = {key: tuple(node[key]) for key in KEYS[1:] if key in node and key != "protocol"}
    return Benchmark(path, path.parent / node["config"], protocol=" ".join(str(node.get("protocol", "")).split()), **lists)


def scene_folder(scene: str, data: Path | None, folders: Sequence[str]) -> Path | None:
    """The folder of a scene: below `data` where that is given, under one of its names; None where there is none."""
    names = [scene] if "/" in scene else [name.format(scene=scene) for name in folders]
    found = [path for name in names if (path := (data / name if data else Path(name))).is_dir()]
    return found[0] if found else None


def grid(
    bench: Benchmark, scenes: Sequence[str], seeds: Sequence[int], data: Path | None = None, name: str | None = None,
    overrides: Sequence[str] = (), film: bool = True, truth: Path | None = None,
) -> list[Run]:  # fmt: skip
    """The runs of a sweep, scene by scene: outputs/<name>/<scene>-seed<seed>.

    Raises UserError before anything is started: for a scene that is missing, an option that is wrong or that the sweep itself sets, and
    a folder that another sweep made with other options.
    """
    taken = [word.partition("=")[0] for word in overrides if word.partition("=")[0] in SET_BY_SWEEP]
    if taken:
        raise UserError(f"{taken[0]} is set by the sweep; give {SET_BY_SWEEP[taken[0]]}")
    name = name or bench.config.stem
    if Path(name).name != name:
        raise UserError(f"--name {name}: expected the name of a folder, without '/'")
    if truth and not bench.evaluate:
        raise UserError(f"--truth: {bench.path} does not say how to judge a run (`evaluate`)")
    scenes = list(dict.fromkeys(scenes))
    found = {scene: folder for scene in scenes if (folder := scene_folder(scene, data, bench.folders))}
    missing = [scene for scene in scenes if scene not in found]
    if missing:
        where = f"in {data}" if data else "here (--data DIR: the folder that holds the scenes)"
        there = f"; --scenes {' '.join(found)} are there" if found else ""
        raise UserError(f"no folder for {', '.join(missing)} {where}{there}")
    labels = {scene: Path(scene).resolve().name for scene in found}
    twice = [scene for scene, label in labels.items() if list(labels.values()).count(label) > 1]
    if twice:
        raise UserError(f"{' and '.join(twice)} would share a run folder; sweep them with different --name")
    runs = []
    for scene, root in found.items():
        for seed in dict.fromkeys(seeds):
            words = [*bench.overrides, *overrides, f"dataset.root_dir={root}", f"seed={seed}", f"name={name}"]
            words.append(f"trainer.trial_name={labels[scene]}-seed{seed}")
            runs.append(_run(labels[scene], seed, str(bench.config), words, film, _judging(bench, truth, labels[scene], root)))
    raise_all([problem for run in runs if (problem := made_otherwise(run))])
    return runs


def _judging(bench: Benchmark, truth: Path | None, scene: str, root: Path) -> tuple[str, ...]:
    if truth is None:
        return ()
    number = re.search(r"\d+$", scene)
    known = {"truth": truth, "scene": root, "name": scene, "number": number.group() if number else "", "run": "{run}"}
    return tuple(word.format(**known) for word in bench.evaluate)


def _run(scene: str, seed: int, config: str, words: list[str], film: bool, evaluate: tuple[str, ...]) -> Run:
    cfg = load_config(config, words)
    folder = Path(cfg.trainer.outputs_dir) / cfg.name / str(cfg.trainer.trial_name)
    ends = ("test/metrics.json", "mesh/mesh.ply", *(["video.[mg]*"] if film else [])) if cfg.trainer.finish else ()
    start = ("--config", config, "--train", *([] if film else ["--no-video"]), *words)
    t = cfg.trainer
    return Run(
        scene, seed, folder, start, asked(cfg), ends, t.device, t.threads, tuple(word.replace("{run}", str(folder)) for word in evaluate)
    )


def asked(cfg: Config) -> dict[str, Any]:
    """Dotted option -> value, as JSON has it, without those that only place or watch a run."""

    def flat(node: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(node, dict):
            return {prefix: node}
        return {key: value for k, v in node.items() for key, value in flat(v, f"{prefix}.{k}" if prefix else k).items()}

    options = json.loads(json.dumps(flat(dataclasses.asdict(cfg))))
    return {key: value for key, value in options.items() if key not in ASIDE}


def made_otherwise(run: Run) -> str:
    """ "" where the folder is new or was made by a sweep with the same options, else what is wrong."""
    try:
        before = json.loads((run.folder / ASKED).read_bytes())
    except FileNotFoundError:
        theirs = (run.folder / "ckpt").is_dir()
        return f"{run.folder} was not made by a sweep; give another --name, or move it away" if theirs else ""
    except (OSError, ValueError):
        return f"{run.folder / ASKED} is damaged; move {run.folder} away"
    keys = [key for key in sorted(run.asked.keys() | before.keys()) if run.asked.get(key) != before.get(key)]
    if not keys:
        return ""
    shown = ", ".join(f"{key} {before.get(key)}, now {run.asked.get(key)}" for key in keys[:3])
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{run.folder} was made with other options ({shown}{more}); give another --name, or move it away"


def record(run: Run) -> None:
    """Write the options asked for into the run folder."""
    write_atomic(run.folder / ASKED, json.dumps(run.asked, indent=1).encode())


def progress(path: Path) -> float:
    """How far the training of a checkpoint is, 0 to 1. Raises UserError for a file that is none."""
    from systems.trainer import Clock

    state = checkpoint.load_checkpoint(path, mmap=True)
    return Clock(int(state["step"]), float(state["trained_seconds"])).progress(load_config(saved=state["config"]))


def newer(folder: Path, pattern: str, than: Path) -> bool:
    """Whether a file of this name is there and not older than another."""
    return any(path.stat().st_mtime >= than.stat().st_mtime for path in folder.glob(pattern))


def state(run: Run) -> str:
    """new, begun, trained, tested or finished. What lies in the folder decides, not what was once said of it.

    trained: the checkpoint is that of the end, but test, mesh or video is missing or older; tested: only `evaluate` is left.
    Raises UserError for a damaged checkpoint.
    """
    last = run.folder / "ckpt/last.pt"
    if not last.is_file():
        return "new"
    if progress(last) < 1:
        return "begun"
    if not all(newer(run.folder, pattern, last) for pattern in run.ends):
        return "trained"
    judged = not run.evaluate or newer(run.folder, "mesh/metrics.json", run.folder / "mesh/mesh.ply")
    return "finished" if judged else "tested"


def command(run: Run, now: str, device: str, threads: int) -> list[str]:
    """Words of run.py that bring a run in state `now` on; none for a finished one. threads: 0 for all."""
    place = [f"trainer.device={device}", f"trainer.threads={threads}"]
    if now == "finished":
        return []
    if now == "tested":
        return list(run.evaluate)
    if now == "new":
        return [*run.words, *place]
    film = ["--no-video"] if "--no-video" in run.words else []
    return ["--train", *film, "--resume", str(run.folder), *place]
