"""YAML and `key=value` overrides into frozen dataclasses; OmegaConf stops here."""

import dataclasses
import difflib
import logging
import math
import typing
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from confs.schema import Config
from utils.errors import UserError

log = logging.getLogger("neus")

RESOLVERS = {
    "basename": lambda path: Path(str(path)).resolve().name,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "idiv": lambda a, b: a // b,
    "calc_exp_lr_decay_rate": lambda factor, n: factor ** (1.0 / n),  # the rate a step that makes `factor` after n steps
}


# --preset: minutes on a CPU (two cores were measured), steps on CUDA
PRESETS = {
    "fast": {
        "cpu": ["trainer.max_minutes=3", "trainer.max_steps=1000000"],
        "cuda": ["trainer.max_steps=10000", "trainer.target_samples=262144"],
    },
    "balanced": {
        "cpu": ["trainer.max_minutes=10", "trainer.max_steps=1000000"],
        "cuda": ["trainer.max_steps=20000", "trainer.target_samples=262144"],
    },
    "best": {
        "cpu": ["trainer.max_minutes=60", "trainer.max_steps=1000000"],
        "cuda": ["trainer.max_steps=100000", "trainer.target_samples=262144"],
    },
}


# what makes a recipe with masks one without: `confs/dtu.yaml` over `confs/dtu-wmask.yaml`
MASK_FREE = {
    "dataset": {"apply_mask": False},
    "model": {
        "background": "learned",
        "variance": {"init": 0.2, "max_inv_s": [12, 20000, 0.05, 0.35]},
        "occupancy": {"threshold": 0.005, "resolution": 96},
    },
    "loss": {"mask": 0, "distortion_bg": 0.01},
}


def _changed(section: object, changes: dict) -> object:
    parts = {k: _changed(getattr(section, k), v) if isinstance(v, dict) else v for k, v in changes.items()}
    return dataclasses.replace(section, **parts)


def without_masks(config: Config) -> Config:
    """The config with the mask-free recipe in place of the masked one."""
    return _changed(config, MASK_FREE)


def _masked_after_all(layers: list, asked: object, resumed: bool) -> list:
    """`dataset.apply_mask=true` on a mask-free config asks for the masked recipe: what MASK_FREE changed, as the schema has it."""

    def original(section: object, changes: dict) -> dict:
        return {k: original(getattr(section, k), v) if isinstance(v, dict) else getattr(section, k) for k, v in changes.items()}

    below = [OmegaConf.select(layer, "model.background") for layer in layers]
    free = [b for b in below if b is not None][-1:] == ["learned"]
    wanted = OmegaConf.select(asked, "dataset.apply_mask") is True and OmegaConf.select(asked, "model.background") is None
    if resumed or not (free and wanted):
        return []
    log.info("dataset.apply_mask=true: the masked recipe in place of the learned background")
    return [OmegaConf.create(original(Config(), MASK_FREE))]


def _register() -> None:
    register = getattr(OmegaConf, "register_resolver", None) or OmegaConf.register_new_resolver
    for name, function in RESOLVERS.items():
        register(name, function, replace=True)


def known_keys(cls: type = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the schema, sections included."""
    keys = []
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        keys.append(prefix + f.name)
        if dataclasses.is_dataclass(hints[f.name]):
            keys += known_keys(hints[f.name], prefix + f.name + ".")
    return keys


def suggestion(word: str, known: list[str]) -> str:
    """ "; did you mean 'x'?" for the nearest known word, by its last part too, or nothing."""
    last = {k.rsplit(".", 1)[-1]: k for k in known}
    near = difflib.get_close_matches(word, known, 1, 0.6) or [
        last[m] for m in difflib.get_close_matches(word.rsplit(".", 1)[-1], last, 1, 0.6)
    ]
    return f"; did you mean '{near[0]}'?" if near else ""


def _check_keys(node: DictConfig, where: str, known: list[str], prefix: str = "") -> None:
    for key in node:
        full = f"{prefix}{key}"
        if full not in known:
            raise UserError(f"{where}: unknown key '{full}'{suggestion(full, known)}")
        child = OmegaConf.to_container(node, resolve=False)[key]
        if isinstance(child, dict) and any(k.startswith(full + ".") for k in known):
            _check_keys(node[key], where, known, full + ".")


def _read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> DictConfig:
    """A YAML file over the file its `base:` names (relative to it), if any."""
    if path in seen:
        raise UserError(f"{path}: `base` leads back to itself")
    try:
        node = OmegaConf.create(yaml.safe_load(path.read_text()) or {})
    except FileNotFoundError:
        near = suggestion(path.name, [p.name for p in path.parent.glob("*.yaml")])
        raise UserError(f"config {path} does not exist{near}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"config {path} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(node, DictConfig):
        raise UserError(f"config {path}: expected `key: value` lines, got a list or a bare value")
    base = node.pop("base", None)
    _check_keys(node, str(path), known_keys())
    return OmegaConf.merge(_read_yaml(path.parent / base, (*seen, path)), node) if base else node


def _overrides(words: list[str]) -> DictConfig:
    known = known_keys()
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals:
            raise UserError(f"'{word}' is no override; expected key=value, for example trainer.max_steps=1000")
        if key not in known:
            raise UserError(f"unknown key '{key}'{suggestion(key, known)}")
        if any(k.startswith(key + ".") for k in known):
            raise UserError(
                f"'{key}' is a section; set one of its keys, for example {next(k for k in known if k.startswith(key + '.'))}=..."
            )
    try:
        return OmegaConf.from_dotlist(words)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"overrides cannot be read: {str(error).splitlines()[0]}") from None


def load_config(path: str | Path | None = None, overrides: list[str] | None = None, saved: str | None = None) -> Config:
    """Schema defaults, then a saved config (YAML text of a checkpoint), a YAML file, `key=value` overrides; checked.

    Raises UserError that names the key and, for a misspelt one, the nearest.
    """
    _register()
    layers = [OmegaConf.create(yaml.safe_load(saved))] if saved else []
    layers += [_read_yaml(Path(path))] if path else []
    asked = _overrides(overrides or [])
    try:
        layers += [*_masked_after_all(layers, asked, saved is not None), asked]
        merged = OmegaConf.merge(OmegaConf.structured(Config), *layers)
        config = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise UserError(f"unknown key '{error.full_key}'{suggestion(error.full_key or '', known_keys())}") from None
    except ValidationError as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    except OmegaConfBaseException as error:
        cause = error.__cause__ if isinstance(error.__cause__, ValueError) else error
        raise UserError(str(cause).splitlines()[0]) from None
    except ValueError as error:
        raise UserError(str(error)) from None
    _check_finite(config)
    return config


def _check_finite(node: object, prefix: str = "") -> None:
    for f in dataclasses.fields(node):
        value = getattr(node, f.name)
        if dataclasses.is_dataclass(value):
            _check_finite(value, f"{prefix}{f.name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{prefix}{f.name}: must be a finite number, got {value}")


def to_yaml(config: Config) -> str:
    """The resolved config as YAML text; `load_config(saved=...)` reads it back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
