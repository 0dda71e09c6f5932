"""YAML and `key=value` overrides into frozen dataclasses; OmegaConf stops here."""

import dataclasses
import functools
import json
import logging
import math
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from confs.effects import without_effect
from confs.model import METHOD_CONFIGS, MethodConfig
from confs.recipes import MASK_FREE, METHOD_DEFAULTS, PHOTOGRAPHED, POINTS_START, SWEEP_START
from confs.schema import Config
from utils.errors import UserError, suggestion
from utils.files import read_file

log = logging.getLogger("neus")
LARGEST = 2**31 - 1  # of whole numbers

RESOLVERS: dict[str, Callable[..., typing.Any]] = {
    "basename": lambda path: Path(str(path)).resolve().name,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "idiv": lambda a, b: a // b,
    "calc_exp_lr_decay_rate": lambda factor, n: factor ** (1.0 / n),  # the rate a step that makes `factor` after n steps
}


# keys of earlier versions -> where they are now, or (no key) what became of them
MOVED = {
    "model.backdrop": "model.background_field",
    "model.background_field.see_dirs": "model.background_field.view_dependent",
    "optim.lr_backdrop": "optim.lr_background",
    "model.radiance.see_grid": "model.sdf.pass_encoding",
    "model.material.human": "model.material.photographer",
    "trainer.keep": "it never had an effect: ckpt/last.pt is the one checkpoint",
    "model.occupancy.warmup": "it never had an effect",
}


def _register() -> None:
    register = getattr(OmegaConf, "register_resolver", None) or OmegaConf.register_new_resolver
    for name, function in RESOLVERS.items():
        register(name, function, replace=True)


def known_keys(cls: type = Config, prefix: str = "", method: str = "neus") -> list[str]:
    """Every dotted key of the schema with the options of a method, sections included."""
    keys = []
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        kind = METHOD_CONFIGS[method] if hints[f.name] is MethodConfig else hints[f.name]
        keys.append(prefix + f.name)
        if dataclasses.is_dataclass(kind):
            keys += known_keys(kind, prefix + f.name + ".", method)
    return keys


def unknown_key(key: str, method: str, where: str = "", known: Sequence[str] = ()) -> UserError:
    """The error for a key that the schema lacks: where it moved, which methods have it, or the nearest one of it and of `known`."""
    front = f"{where}: " if where else ""
    for old, new in MOVED.items():
        if key == old or key.startswith(old + "."):
            now = new + key[len(old) :]
            return UserError(f"{front}'{key}' is gone: {new}" if " " in new else f"{front}'{key}' is now '{now}'")
    owners = [name for name in METHOD_CONFIGS if key in known_keys(method=name)]
    if owners:
        return UserError(f"{front}'{key}' is an option of model.name={' or '.join(owners)}, not of model.name={method}")
    return UserError(f"{front}unknown key '{key}'{suggestion(key, [*known_keys(method=method), *known])}")


def container(node: DictConfig) -> dict:
    found = OmegaConf.to_container(node, resolve=False)
    assert isinstance(found, dict)
    return found


def leaves(node: object, prefix: str = "") -> list[str]:
    """Dotted keys of nested mappings, sections without content left out."""
    if not isinstance(node, dict):
        return [prefix]
    return [leaf for key, value in node.items() for leaf in leaves(value, f"{prefix}.{key}" if prefix else str(key))]


def _check_keys(node: dict, where: str, method: str, prefix: str = "") -> None:
    known = known_keys(method=method)
    for key, value in node.items():
        full = f"{prefix}{key}"
        if full not in known:
            raise unknown_key(full, method, where)
        inside = next((k for k in known if k.startswith(f"{full}.")), None)
        if inside and not isinstance(value, dict) and value is not None:
            raise UserError(f"{where}: '{full}' is a section; expected its keys, for example {inside}, got {str(value)[:80]!r}")
        if inside and isinstance(value, dict):
            _check_keys(value, where, method, full + ".")


def _reason(error: Exception) -> str:
    """What is wrong with a text that is no YAML, with its line where that is known; the first line of other errors."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        return error.problem + (f" in line {error.problem_mark.line + 1}" if error.problem_mark else "")
    if isinstance(error, RecursionError):
        return "brackets within brackets, too deep"
    return (str(error).splitlines() or [type(error).__name__])[0]


class _Loader(yaml.SafeLoader):
    """Without aliases: a few lines of them expand to gigabytes."""

    def compose_node(self, parent, index):  # type: ignore[no-untyped-def]
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported; write the value out")
        return super().compose_node(parent, index)


def _saved(text: str) -> DictConfig:
    """The config of a checkpoint, which holds values alone. Raises UserError for interpolations, which could read the environment."""
    try:
        node = yaml.load(text, _Loader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"the checkpoint's config cannot be read: {_reason(error)}") from None
    if not isinstance(node, dict) or "${" in text:
        raise UserError("the checkpoint's config is damaged: expected plain `key: value` lines without ${...}")
    if isinstance(node.get("trainer"), dict):
        node["trainer"].pop("outputs_dir", None)  # a stranger's file does not say where to write
    try:
        return OmegaConf.create(node)
    except (ValueError, OmegaConfBaseException) as error:
        raise UserError(f"the checkpoint's config cannot be read: {_reason(error)}") from None


def read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, DictConfig]]:
    """[(file, content)] of a YAML file, below it the files that `base:` names (relative to it), lowest first."""
    if path in seen:
        raise UserError(f"{path}: `base` leads back to itself")
    try:
        node = OmegaConf.create(yaml.load(read_file(path).decode(), _Loader) or {})
    except FileNotFoundError:
        near = suggestion(path.name, [p.name for p in path.parent.glob("*.yaml")])
        raise UserError(f"config {path} does not exist{near}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = error.strerror if isinstance(error, OSError) else _reason(error)
        raise UserError(f"config {path} cannot be read: {reason}") from None
    if not isinstance(node, DictConfig):
        raise UserError(f"config {path}: expected `key: value` lines, got a list or a bare value")
    base = container(node).get("base")
    if base is not None and not (isinstance(base, str) and base):
        raise UserError(f"config {path}: base: expected the name of a YAML file, got {str(base)[:80]!r}")
    node.pop("base", None)
    below = read_yaml(path.parent / base, (*seen, path)) if base else []
    return [*below, (str(path), node)]


def _plain(word: str) -> str:
    """The override with its value in quotes where YAML would take a part of a file's name for a comment or a key: `a #2`, `a: b`."""
    key, _, value = word.partition("=")
    name = value[:1] not in ("[", "{", '"', "'") and (" #" in value or ": " in value or value.endswith(":"))
    return f"{key}={json.dumps(value)}" if name else word


def overrides_node(words: list[str]) -> DictConfig:
    for word in words:
        if "=" not in word:
            raise UserError(f"'{word}' is no override; expected key=value, for example trainer.max_steps=1000")
    try:
        return OmegaConf.from_dotlist([_plain(word) for word in words])
    except (ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:  # ValueError: a number of 5000 digits
        raise UserError(f"overrides cannot be read: {_reason(error)}") from None


def _check_overrides(words: list[str], method: str) -> None:
    known = known_keys(method=method)
    for word in words:
        key = word.partition("=")[0]
        if key not in known:
            raise unknown_key(key, method)
        inside = next((k for k in known if k.startswith(key + ".")), None)
        if inside:
            raise UserError(f"'{key}' is a section; set one of its keys, for example {inside}=...")


def method_of(layers: list[DictConfig]) -> str:
    """model.name of the topmost layer that sets it. Raises UserError for a name that is no method."""
    found = [name for layer in layers if (name := OmegaConf.select(layer, "model.name")) is not None]
    name = found[-1] if found else "neus"
    if not isinstance(name, str) or name not in METHOD_CONFIGS:
        raise UserError(
            f"model.name: unknown method '{str(name)[:80]}'{suggestion(str(name), list(METHOD_CONFIGS))} (one of {', '.join(METHOD_CONFIGS)})"
        )
    return name


def _restricted(layer: dict, method: str, prefix: str = "") -> dict:
    """The part of a layer of defaults that the method has options for."""
    known, kept = known_keys(method=method), {}
    for key, value in layer.items():
        if prefix + key in known:
            kept[key] = _restricted(value, method, prefix + key + ".") if isinstance(value, dict) else value
    return kept


def _merge(method: str, layers: list) -> DictConfig:
    schema = OmegaConf.structured(Config(model=METHOD_CONFIGS[method]()))
    merged = OmegaConf.merge(schema, OmegaConf.create(_restricted(METHOD_DEFAULTS.get(method, {}), method)), *layers)
    assert isinstance(merged, DictConfig)
    return merged


def _to_config(merged: DictConfig, method: str) -> Config:
    """The frozen config. Raises UserError that names the key."""
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        cause = error.__cause__ if isinstance(error.__cause__, ValueError) else error
        raise UserError(str(cause).splitlines()[0]) from None
    except ValueError as error:
        raise UserError(str(error)) from None
    assert isinstance(config, Config)
    _check_finite(config)
    return config


def _recipe(layer: dict, why: str, merged: DictConfig, said: DictConfig, method: str) -> list[DictConfig]:
    """A layer of recipes.py below what the user said; logs each key that takes effect."""
    recipe = _restricted(layer, method)
    taken = [key for key in leaves(recipe) if OmegaConf.select(said, key) is None]
    created = OmegaConf.create(recipe)
    if taken:
        changes = (f"{key}={OmegaConf.select(created, key)} (was {OmegaConf.select(merged, key)})" for key in taken)
        _say(f"{why}: " + ", ".join(changes))
    return [created]


@functools.cache
def _say(line: str, level: int = logging.INFO) -> None:
    log.log(level, "%s", line)


def load_config(
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    saved: str | None = None,
    masks: bool | None = None,
    start: str | None = None,
) -> Config:
    """Defaults of the schema, the method and the recipe; above them a saved config (YAML text of a checkpoint), a YAML file with
    its bases, `key=value` overrides; checked. What the user gave is never changed. Of a file with `stages:` the config of its shape.

    masks: whether the scene has masks, where it is known; without them dataset.apply_mask becomes false. start: what
    is known of its surface, where that is known: sweep, points (of structure from motion, with their views) or sphere (nothing); without
    masks model.start=auto becomes that.
    Raises UserError that names the key and, for a misspelt one, the nearest.
    """
    from confs.stages import read_stages  # it reads the configs of the stages by this module

    if path and (staged := read_stages(path, overrides)):
        path, overrides = staged.paths["shape"], staged.words["shape"]
    config, said = loaded(path, overrides, saved, masks, start)
    for key, need in without_effect(config, said).items():
        _say(f"{key} has no effect: it needs {need}", logging.WARNING)
    return config


def loaded(
    path: str | Path | None,
    overrides: Sequence[str],
    saved: str | None = None,
    masks: bool | None = None,
    start: str | None = None,
) -> tuple[Config, list[str]]:
    """`load_config`, and the dotted keys that file and overrides set. Raises UserError."""
    _register()
    words = list(overrides)
    files = read_yaml(Path(path)) if path else []
    given = overrides_node(words)
    below = [_saved(saved)] if saved else []
    method = method_of([*below, *(node for _, node in files), given])
    for where, node in [*(("the checkpoint's config", node) for node in below), *files]:
        _check_keys(container(node), where, method)
    _check_overrides(words, method)
    try:
        said = OmegaConf.merge(OmegaConf.create({}), *(node for _, node in files), given)
        assert isinstance(said, DictConfig)
        facts = []
        if masks is False:
            if OmegaConf.select(said, "dataset.apply_mask"):
                raise UserError("dataset.apply_mask=true, but the scene has no masks; remove it, or make masks: run.py --auto-mask")
            facts = [OmegaConf.create({"dataset": {"apply_mask": False}})]
        merged = _merge(method, [*below, said, *facts])
        if merged.model.background == "auto":
            facts.append(OmegaConf.create({"model": {"background": "random" if merged.dataset.apply_mask else "learned"}}))
        photographed = merged.dataset.name in PHOTOGRAPHED and not saved  # what a checkpoint does not mention, it was trained without
        for key, value in (("pose", photographed), ("appearance", "affine" if photographed else "none"), ("distractors", photographed)):
            if OmegaConf.select(merged.model, key) == "auto" and merged.dataset.name != "auto":
                facts.append(OmegaConf.create({"model": {key: value}}))
        if photographed and merged.export.texture == "auto":
            facts.append(OmegaConf.create({"export": {"texture": True}}))
        learned = OmegaConf.merge(merged, *facts).model.background == "learned"
        recipe = _recipe(MASK_FREE, "learned background", merged, said, method) if learned and not saved else []
        if OmegaConf.select(merged.model, "start") == "auto" and start is not None:
            facts.append(OmegaConf.create({"model": {"start": start if learned else "sphere"}}))
        known = OmegaConf.select(OmegaConf.merge(merged, *facts).model, "start")
        for layer, why, starts in ((POINTS_START, "start from points", ("points", "sweep")), (SWEEP_START, "plane sweep", ("sweep",))):
            if known in starts and not saved:
                below_it = OmegaConf.merge(merged, *recipe)
                assert isinstance(below_it, DictConfig)
                recipe += _recipe(layer, why, below_it, said, method)
        merged = _merge(method, [*recipe, *below, said, *facts])
    except ConfigKeyError as error:
        raise unknown_key(error.full_key or "", method) from None
    except ValidationError as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a list and a mapping under one key
        raise UserError(str(error).splitlines()[0]) from None
    return _to_config(merged, method), leaves(container(said))


def _check_finite(node: typing.Any, prefix: str = "") -> None:
    for f in dataclasses.fields(node):
        value = getattr(node, f.name)
        if dataclasses.is_dataclass(value):
            _check_finite(value, f"{prefix}{f.name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{prefix}{f.name}: must be a finite number, got {value}")
        elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST:
            raise UserError(f"{prefix}{f.name}: must be a whole number, at most {LARGEST} and at least -{LARGEST}")
        elif isinstance(value, str) and not value.isprintable():
            raise UserError(f"{prefix}{f.name}: must not hold control characters, got {value[:80]!r}")


def to_yaml(config: Config) -> str:
    """The resolved config as YAML text; `load_config(saved=...)` reads it back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
