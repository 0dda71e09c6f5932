"""What a sweep consists of: the runs of a grid of scenes and seeds, their folders, and what is left to do for each."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from confs.load import _Loader, load_config
from confs.schema import Config
from utils import checkpoint
from utils.errors import UserError, raise_all, suggestion
from utils.files import checksum, read_facts, read_file, write_atomic
from utils.log import MADE

ASKED = "asked.json"  # in a run folder: the options that the sweep asked for
SET_BY_SWEEP = {  # option -> how a sweep is told
    "name": "--name", "tag": "--name", "trainer.trial_name": "--name", "seed": "--seeds", "dataset.root_dir": "--scenes and --data",
}  # fmt: skip
ASIDE = {
    f"trainer.{key}" for key in ("outputs_dir", "device", "threads", "log_every", "val_minutes", "save_minutes", "save_every", "chunk")
} | {"dataset.on_disk"}
PLACES = {"folders": ("scene",), "evaluate": ("truth", "scene", "name", "number", "run")}  # key of a list -> what its words may hold in {}
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
        node = yaml.load(read_file(path).decode(), _Loader) or {}
    except FileNotFoundError:
        near = suggestion(path.name, [p.name for p in path.parent.glob("*.yaml")])
        raise UserError(f"{path} does not exist{near}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: also a number of 5000 digits
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
    for key, names in PLACES.items():
        words = node.get(key, []) if isinstance(node.get(key, []), list) else []
        wrong = next((word for word in words if isinstance(word, str) and "{" in filled(word, dict.fromkeys(names, ""))), None)
        if wrong is not None:
            problems.append(f"{key}: '{wrong}', in which only {', '.join(f'{{{name}}}' for name in names)} are filled in")
    raise_all(problems, f"{path}: ")
    lists = {key: tuple(node[key]) for key in KEYS[1:] if key in node and key != "protocol"}
    return Benchmark(path, path.parent / node["config"], protocol=" ".join(str(node.get("protocol", "")).split()), **lists)


def filled(word: str, values: Mapping[str, object]) -> str:
    """The word with {name} replaced by the value of that name."""
    return re.sub(r"\{(\w+)\}", lambda m: str(values[m[1]]) if m[1] in values else m[0], word)


def scene_folder(scene: str, data: Path | None, folders: Sequence[str]) -> Path | None:
    """The folder of a scene: below `data` where that is given, under one of its names; None where there is none."""
    names = [scene] if "/" in scene else [filled(name, {"scene": scene}) for name in folders]
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
    return tuple(filled(word, known) for word in bench.evaluate)


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
        before = json.loads(read_file(run.folder / ASKED))
        if not isinstance(before, dict):
            raise ValueError("no options")
    except FileNotFoundError:
        theirs = (run.folder / "ckpt").is_dir()
        return f"{run.folder} was not made by a sweep; give another --name, or move it away" if theirs else ""
    except (OSError, ValueError, RecursionError):
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


def reached(path: Path) -> tuple[float, float]:
    """How far the training of a checkpoint is, 0 to 1, and its seconds. Raises UserError for a file that is none."""
    from systems.trainer import Clock

    state = checkpoint.load_checkpoint(path, mmap=True)
    try:
        clock = Clock.of(state, path)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); take an older checkpoint") from None
    return clock.progress(load_config(saved=state["config"])), clock.seconds


def made_of(folder: Path, pattern: str, last: Path, seconds: float) -> bool:
    """Whether a file of this name is there and was made of the checkpoint `last`, after `seconds` of training.

    MADE says so: dates do not, where a clock was set or a folder was copied. They decide where an older version left no MADE.
    """
    found = [path for path in folder.glob(pattern) if path.is_file()]
    if (folder / MADE).is_file():
        part = re.split(r"[/.]", pattern)[0]  # test, mesh, video
        return bool(found) and read_facts(folder / MADE).get(part) == seconds
    return any(path.stat().st_mtime >= last.stat().st_mtime for path in found)


def judged(folder: Path) -> bool:
    """Whether mesh/metrics.json is what run.py --eval said of the mesh that is there."""
    try:
        return read_facts(folder / "mesh/metrics.json").get("mesh_sha256") == checksum(folder / "mesh/mesh.ply")
    except OSError:
        return False


def state(run: Run) -> str:
    """new, begun, trained, tested or finished. What lies in the folder decides, not what was once said of it.

    trained: the checkpoint is that of the end, but test, mesh or video is missing or of another one; tested: only `evaluate` is left.
    Raises UserError for a damaged checkpoint.
    """
    last = run.folder / "ckpt/last.pt"
    if not last.is_file():
        return "new"
    progress, seconds = reached(last)
    if progress < 1:
        return "begun"
    if not all(made_of(run.folder, pattern, last, seconds) for pattern in run.ends):
        return "trained"
    return "finished" if not run.evaluate or judged(run.folder) else "tested"


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
