"""Cases of configs: YAML files and key=value overrides, spoilt."""

import random
import shutil
from dataclasses import is_dataclass
from pathlib import Path

import yaml

from confs.load import known_keys
from confs.model import METHOD_CONFIGS
from confs.schema import Config
from tests.fuzzing import spoil

ROOT = Path(__file__).parents[2]
KEYS = sorted({key for method in METHOD_CONFIGS for key in known_keys(method=method)} - {"trainer.outputs_dir"})  # written to on request
TEXTS = [
    "", "null", "[]", "3", "text", "- a\n- b", "a: 1", "base: x.yaml", "base: /etc/passwd", "base: ..", "base: 3", "base: [a, b]", "base: {a: b}",
    "base: /dev/zero", "base: pipe", "base: ''", "base: \"a\\0b\"", "a: &a [*a]", "a: &a 1\nb: *a", "model: !!python/object/apply:os.system ['touch was-run']",
    "name: ${name}", "name: ${model}", "name: ${oc.env:HOME}", "name: ${dataset.root_dir}", "name: ${nothing}", "name: ${basename:}", "seed: ${add:1,x}",
    "seed: ${add:1}", "seed: ${div:1,0}", "optim: {lr: '${mul:1e308,1e308}'}", "name: ${oc.decode:'{a: 1}'}", "name: '${'", "name: ${basename:${name}}",
    "name: ???", "seed: ???", "dataset: ???", "dataset: ${model}", "? [a, b]\n: c", "1: 2", "null: 3", "true: false", "model:\n\t- x", "model: [", "\ufeffname: x",
    "seed: 1\nseed: 2", "name: &x y", "seed: 0x10", "seed: 1_000", "seed: 1:30:00", "seed: 2020-01-01", "seed: 1e3", "name: 2020-01-01", "name: !!binary aGVsbG8=",
    "dataset: !!set {a, b}", "dataset: !!omap [a: 1]", "%YAML 9.9\n---\nname: x", "---\nname: x\n---\nname: y", "name: " + "x" * 300, "name: " + "x" * 200_000,
    "model: {name: 3}", "model: {name: [neus]}", "model: {name: null}", "model: {name: {a: 1}}", "model: neus", "model: null", "dataset: null", "trainer: 3", "loss: []",
    "[" * 3000, "{" * 3000, "a: {" * 500, "- " * 3000, "name: ../../sentinel/x", "name: /tmp/fuzz-x", "name: .", "name: ..", "name: a/b", "name: ''", "tag: ../../x",
    "trainer: {trial_name: ../../sentinel}", "trainer: {trial_name: /x/y}", "trainer: {trial_name: ''}", "trainer: {trial_name: \"a\\0b\"}", "name: \"a\\nb\"", "name: \"\\e[2J\"",
    "name: " + "9" * 5000, "seed: " + "9" * 5000, "optim: {lr: " + "9" * 5000 + "}",
]  # fmt: skip
VALUES = [
    "-1",
    "0",
    "nan",
    "inf",
    "-inf",
    "1e9",
    "1e18",
    "1e308",
    "1e400",
    "9" * 5000,
    "null",
    "true",
    "x",
    "",
    "[]",
    "{}",
    "[1,2,3]",
    "[nan,nan,nan]",
    "[1,2,0,1]",
]
VALUES += [
    "[-1,1]",
    "[1e30,1,0,0.5]",
    "[0,0,0]",
    "[a,b]",
    "../../sentinel",
    "${name}",
    "${oc.env:HOME}",
    "'",
    "{",
    "[",
    "*a",
    "!!python/name:os.system",
    "a\nb",
    "0.5",
]
VALUES += [
    "1000000",
    "4294967296",
    "9223372036854775808",
    "-9223372036854775809",
    "1",
    "2",
    "3",
    "3.5",
    "1e-30",
    "auto",
    "learned",
    "\x00",
    "\x1b[31m",
    "ü",
    "\ud800",
]
ENDLESS = ("trainer.max_steps", "trainer.max_minutes")  # a large number is no mistake


class Dumper(yaml.SafeDumper):
    """Without aliases, which are refused before anything else is read."""

    def ignore_aliases(self, data) -> bool:
        return True


def spoil_yaml(path: Path, rng: random.Random) -> str:
    """Spoil the content of a YAML file; returns what was done."""
    data = yaml.safe_load(path.read_text())
    what = spoil.spoil_tree(data, rng)
    path.write_text(yaml.dump(data, Dumper=Dumper))
    return what


def _default(key: str, method: str):
    node = Config(model=METHOD_CONFIGS[method]())
    for part in key.split("."):
        node = getattr(node, part)
    return node


def _plausible(rng: random.Random, method: str) -> str:
    """An option of the method with a value of its type, but seldom a wise one."""
    known = [
        k
        for k in known_keys(method=method)
        if k in KEYS and not k.startswith(("relight", "dataset.root_dir", "name")) and not is_dataclass(_default(k, method))
    ]
    key = rng.choice(known)
    default = _default(key, method)
    kinds = {
        bool: ["true", "false"],
        int: ["0", "1", "2", "3", "5", "64", "100000", "50000000", "2147483647"],
        list: ["[1,2]", "[1e-9,1e9,0,1]", "[4,4,4]", "[100000000]"],
    }
    floats = ["0", "1e-30", "1e-9", "0.001", "0.5", "0.999", "1", "2", "50", "1e9", "1e20", "1e30"]
    names = [
        "auto",
        "points",
        "neus",
        "finite",
        "relu",
        "quadratic",
        "hierarchical",
        "proposal",
        "learned",
        "white",
        "embedding",
        "affine",
        "frequency",
        "ide",
        "none",
        "torch",
        "warp",
    ]
    value = rng.choice(names if isinstance(default, str) else kinds.get(type(default), floats + ["[0,1]"]))
    return f"{key}={'x' if key in ENDLESS else value}"


def _override(rng: random.Random) -> str:
    key, value = rng.choice(KEYS), rng.choice(VALUES)
    if rng.random() < 0.1:
        key = rng.choice(
            [
                key + "x",
                key.upper(),
                "." + key,
                key + ".",
                key.split(".")[-1],
                "",
                "a.b.c",
                key + "[0]",
                key.replace(".", ".."),
                "model",
                "=",
                "ü",
            ]
        )
    return f"{key}={'x' if key in ENDLESS else value}"


def _tree(rng: random.Random) -> str:
    """A config of ours with one value replaced, or a tree of the schema's keys with rubbish."""
    files = sorted((ROOT / "confs").glob("*.yaml"))
    path = rng.choice(files)
    data = yaml.safe_load(path.read_text()) or {}
    data.pop("base", None)
    if rng.random() < 0.5:
        *front, last = rng.choice([key for key in KEYS if key not in ENDLESS]).split(".")
        node = data
        for part in front:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                break
        if isinstance(node, dict):
            node[last] = spoil.value(rng)
    else:
        spoil.spoil_tree(data, rng)
    return yaml.dump(data, Dumper=Dumper, sort_keys=False)


def _file(box: Path, rng: random.Random) -> str:
    """Write box/c.yaml; returns what it holds."""
    path, way = box / "c.yaml", rng.random()
    if way < 0.45:
        path.write_text(_tree(rng))
        what = "a value of a config"
    elif way < 0.85:
        text = rng.choice(TEXTS)
        path.write_text(text)
        what = repr(text[:40])
    elif way < 0.93:
        shutil.copy(ROOT / "confs/dtu-wmask.yaml", path)
        what = spoil.spoil_bytes(path, rng)
    else:
        (box / "d.yaml").write_text("base: c.yaml\n")
        path.write_text("base: d.yaml\n")
        what = "base in a circle"
        if rng.random() < 0.6:
            path.write_text("seed: 1\n")
            what = spoil.spoil_entry(path, rng, box / "sentinel/a.txt", [box / "d.yaml"])
    return what


def case(sources: Path, box: Path, rng: random.Random) -> tuple[list[str], str]:
    """A scene that is good and a config that is not."""
    shutil.rmtree(box / "scene")
    shutil.copytree(sources / "dtu", box / "scene")
    words, done = ["--train"], []
    if rng.random() < 0.5:
        done.append(_file(box, rng))
        words += ["--config", str(box / "c.yaml")]
    words.append(f"dataset.root_dir={box / 'scene'}")
    if not done and rng.random() < 0.6:
        method = rng.choice(["neus", "neus", "nerf", "nero-shape"])
        more = [_plausible(rng, method) for _ in range(rng.choice([1, 2, 3]))]
        finish = [f"trainer.finish={str(method == 'neus' and rng.random() < 0.15).lower()}"]
        return [*words, *finish, f"model.name={method}", *more], "; ".join([method, *finish, *more])
    more = [_override(rng) for _ in range(rng.choice([0, 1, 2]) if done else rng.choice([1, 1, 2]))]
    methods = [m for m in METHOD_CONFIGS if m != "material" and all(word.split("=")[0] in known_keys(method=m) for word in more)]
    if not done and methods and rng.random() < 0.8:
        words.append(f"model.name={rng.choice(methods)}")
    return [*words, *more], "; ".join([*done, *(word[:60] for word in more)])
