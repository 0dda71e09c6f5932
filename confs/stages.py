"""Configs with `stages:`: a shape and then a material on its mesh, in one run (confs/nero.yaml, systems/stages.py)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from confs.effects import without_effect
from confs.load import container, known_keys, loaded, method_of, overrides_node, read_yaml, unknown_key
from utils.checkpoint import STAGES
from utils.errors import UserError, suggestion

MESH = "the material takes the mesh of the shape; to give another: --config confs/nero-material.yaml"
MINUTES = "trainer.max_minutes is the time of the whole run; stages.shape_share and stages.finish_share divide it"
REFUSED = {  # options that are not a stage's own
    "stages": "is a section; set one of its keys, for example stages.shape_share=0.4",
    "model.name": "each stage has its own; to take another config: stages.shape=YAML",
    **{"model.mesh": MESH, "material.model.mesh": MESH},
    **{f"{stage}.trainer.max_minutes": MINUTES for stage in STAGES},
}


@dataclass(frozen=True)
class StagesConfig:
    shape: str  # config of the first stage, which extracts a mesh; in a file: relative to it
    material: str  # config of the second, model.name=material
    shape_share: float = 0.5  # of trainer.max_minutes, the time of the whole run: for training the shape; the material has the rest
    finish_share: float = 0.1  # of trainer.max_minutes: kept for what follows the training of the material, its test and the turntable


@dataclass(frozen=True)
class Staged:
    """The stages of a config under overrides."""

    options: StagesConfig
    paths: dict[str, Path]  # the config of each
    words: dict[str, list[str]]  # and its overrides
    minutes: float | None  # trainer.max_minutes: of the whole run


def _words(node: dict, prefix: str = "") -> Iterator[str]:
    """Nested mappings as overrides."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _words(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value)}"


def _key(word: str) -> str:
    return word.partition("=")[0]


def _options(layers: list[dict]) -> StagesConfig:
    """The section `stages` from its layers, lowest first. Raises UserError."""
    known, found = [f"stages.{f.name}" for f in fields(StagesConfig)], {key: value for layer in layers for key, value in layer.items()}
    for key in found:
        if f"stages.{key}" not in known:
            raise UserError(f"unknown key 'stages.{key}'{suggestion(f'stages.{key}', known)} (there are {', '.join(known)})")
    for f in fields(StagesConfig):
        got = found.get(f.name, f.default)
        if f.default is MISSING and not isinstance(got, str):
            raise UserError(f"stages.{f.name}: expected the name of a YAML file, got {'nothing' if got is MISSING else repr(got)[:80]}")
        if f.default is not MISSING and not (type(got) in (int, float) and 0 < got <= 0.8):
            raise UserError(f"stages.{f.name}: must lie in (0, 0.8], got {str(got)[:80]}")
    options = StagesConfig(**found)
    if options.shape_share + options.finish_share > 0.9:
        raise UserError(
            f"stages.shape_share + stages.finish_share leave the material less than a tenth of the time: {options.shape_share} + "
            f"{options.finish_share}"
        )
    return options


def route(words: Sequence[str], methods: dict[str, str]) -> dict[str, list[str]]:
    """The overrides of each stage: those with its name in front, and those that its method has an option for.

    methods: model.name of each stage. Raises UserError for an option that no stage has.
    """
    known = {name: known_keys(method=method) for name, method in methods.items()}
    found: dict[str, list[str]] = {name: [] for name in methods}
    for word in words:
        key = _key(word)
        stage, _, rest = key.partition(".")
        owners = [name for name in methods if key in known[name]]
        if key in REFUSED:
            raise UserError(f"{key}: {REFUSED[key]}")
        if stage in found and rest:
            found[stage].append(word[len(stage) + 1 :])
        elif not owners:
            raise unknown_key(key, methods["shape"], known=known["material"])
        for name in owners:
            found[name].append(word)
    return found


def read_stages(path: str | Path, overrides: Sequence[str] = ()) -> Staged | None:
    """The stages of a YAML file with its bases, under overrides; None for a file without `stages:`.

    What the file says besides goes to the stages as the overrides do, and before them. Raises UserError for what is wrong in any stage.
    """
    layers = [(where, container(node)) for where, node in read_yaml(Path(path))]
    if not any("stages" in node for _, node in layers):
        return None
    sections: list[dict[str, Any]] = []
    for where, node in layers:
        section = node.pop("stages", None) or {}
        if not isinstance(section, dict):
            raise UserError(f"{where}: 'stages' is a section; expected its keys, for example stages.shape, got {str(section)[:80]!r}")
        sections.append({k: str(Path(where).parent / v) if k in STAGES and isinstance(v, str) else v for k, v in section.items()})
    overrides_node(list(overrides))  # raises where a word is not key=value
    said = [word for word in overrides if word.startswith("stages.")]
    options = _options([*sections, container(overrides_node(said)).get("stages", {})])
    paths = {name: Path(getattr(options, name)) for name in STAGES}
    words = [*(word for _, node in layers for word in _words(node)), *(word for word in overrides if word not in said)]
    methods = {}
    for name, file in paths.items():
        own = [word[len(name) + 1 :] for word in words if word.startswith(f"{name}.")]
        methods[name] = method_of([*(node for _, node in read_yaml(file)), overrides_node(own)])
    if methods["material"] != "material":
        raise UserError(f"stages.material: {paths['material']} is of model.name={methods['material']}, expected one of model.name=material")
    routed = route(words, methods)
    configs = {name: loaded(paths[name], routed[name])[0] for name in STAGES}
    keys = {name: {_key(word) for word in routed[name]} for name in STAGES}
    useful = {name: keys[name] - set(without_effect(configs[name], sorted(keys[name]))) for name in STAGES}
    for name, other in (STAGES, STAGES[::-1]):  # what has an effect in the other stage alone goes there alone
        dropped = {"trainer.max_minutes"} | keys[name] & (useful[other] - useful[name])
        routed[name] = [word for word in routed[name] if _key(word) not in dropped]
    return Staged(options, paths, routed, configs["shape"].trainer.max_minutes)
