"""Finished runs side by side: `--eval-table RUN ...`. Runs that differ in their seed alone are one row, with means and spread."""

import csv
import glob
import io
import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from confs.load import _Loader
from utils.errors import UserError
from utils.files import finite_numbers, read_file, write_atomic

log = logging.getLogger("neus")

DIGITS = {  # figures of a run, in the order of the columns -> decimals
    "minutes": 1, "steps": 0, "psnr": 2, "psnr_masked": 2, "psnr_cc": 2, "ssim": 4, "lpips": 4, "chamfer": 5, "half_px": 2,
    "normal_consistency": 4, "d2s": 3, "s2d": 3, "overall": 3, "fscore_tau": 4,
}  # fmt: skip
TEST = ("psnr", "psnr_masked", "psnr_cc", "ssim", "lpips")
MESH = ("chamfer", "half_px", "normal_consistency", "d2s", "s2d", "overall", "fscore_tau")
ASIDE = {"seed", "name", "tag"} | {  # options that name, watch or time a run, and do not change what it learns
    f"trainer.{k}" for k in ("outputs_dir", "trial_name", "threads", "log_every", "val_minutes", "save_minutes", "save_every", "finish", "test_share", "chunk")
} | {"dataset.test_steps", "dataset.test_scale", "dataset.on_disk"}  # fmt: skip
SHOWN = 4  # options named in the column of differences


@dataclass(frozen=True)
class Run:
    folder: Path
    scene: str
    method: str
    seed: int | None
    options: dict[str, Any]  # every option that may change the result
    figures: dict[str, float]  # what is known of DIGITS
    remark: str  # what the figures do not say


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {key: value for k, v in node.items() for key, value in _flat(v, f"{prefix}.{k}" if prefix else str(k)).items()}


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no such file. Raises UserError for another content."""
    try:
        found = json.loads(read_file(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({str(error)[:80]})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected an object")
    return found


def _progress(path: Path) -> dict[str, float]:
    """Minutes and steps of the last line of metrics.jsonl that has them."""
    try:
        lines = read_file(path).splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            last = finite_numbers(json.loads(line), ("step", "seconds"))
        except (ValueError, AttributeError, RecursionError):  # a line cut short
            continue
        if len(last) == 2:
            return {"minutes": last["seconds"] / 60, "steps": last["step"]}
    return {}


def read_run(folder: Path) -> Run:
    """What a run folder tells. Raises UserError where it is none."""
    path = folder / "config.yaml"
    try:
        options = _flat(yaml.load(read_file(path).decode(), _Loader))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: no config.yaml in it, not a run folder") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0][:80]})") from None
    if "model.name" not in options or "dataset.root_dir" not in options:
        raise UserError(f"{path}: no model.name or dataset.root_dir, not a run's config")
    test, mesh = _json(folder / "test/metrics.json"), _json(folder / "mesh/metrics.json")
    remarks = [f"pictures at {test['scale']:.2f}"] if isinstance(test.get("scale"), float) and test["scale"] < 1 else []
    remarks += ["training views"] if test.get("held_out") is False else []
    return Run(
        folder,
        Path(str(options["dataset.root_dir"])).name,
        str(options["model.name"]),
        options.get("seed"),
        {k: v for k, v in options.items() if k not in ASIDE},
        _progress(folder / "metrics.jsonl") | finite_numbers(test, TEST) | finite_numbers(mesh, MESH),
        ", ".join(remarks),
    )


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of one scene whose options are the same (all but ASIDE), together; by scene, then method."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.scene, run.method, json.dumps(run.options, sort_keys=True, default=str), run.remark), []).append(run)
    return [groups[key] for key in sorted(groups, key=lambda key: key[:2])]


def _differences(group: list[Run], groups: list[list[Run]]) -> str:
    """The options in which a group differs from others of its scene and method."""
    mine = group[0]
    others = [g[0].options for g in groups if (g[0].scene, g[0].method) == (mine.scene, mine.method)]
    keys = sorted({k for o in others for k in o.keys() | mine.options.keys() if any(p.get(k) != o.get(k) for p in others)})
    words = [f"{k}={mine.options.get(k)}" for k in keys]
    return ", ".join(words[:SHOWN]) + (f" and {len(words) - SHOWN} more" if len(words) > SHOWN else "")


def _row(group: list[Run], groups: list[list[Run]]) -> dict[str, Any]:
    first = group[0]
    row: dict[str, Any] = {
        "scene": first.scene, "method": first.method, "options": _differences(group, groups), "runs": len(group),
        "seed": " ".join(str(r.seed) for r in group if r.seed is not None), "remark": first.remark,
        "folders": " ".join(str(r.folder) for r in group),
    }  # fmt: skip
    for key in DIGITS:
        known = [r.figures[key] for r in group if key in r.figures]
        row[key] = statistics.fmean(known) if known else None
        row[f"{key}_spread"] = statistics.stdev(known) if len(known) > 1 else None
    return row


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table; a figure of several runs with its standard deviation; figures that no run has are left out."""
    shown = [key for key in DIGITS if any(row[key] is not None for row in rows)]
    heads = ["scene", "method", "options", "runs", "seed", *shown, *(["remark"] if any(row["remark"] for row in rows) else [])]

    def cell(row: dict[str, Any], key: str) -> str:
        if key not in DIGITS:
            return str(row[key]).replace("|", "\\|").replace("\n", " ")
        value, spread = row[key], row[f"{key}_spread"]
        if value is None:
            return ""
        return f"{value:.{DIGITS[key]}f}" + ("" if spread is None else f" ± {spread:.{DIGITS[key]}f}")

    lines = [heads, ["---"] * len(heads), *([cell(row, key) for key in heads] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The rows with all digits, every figure followed by its spread; what is not known is blank."""
    heads = ["scene", "method", "options", "runs", "seed", *(k for key in DIGITS for k in (key, f"{key}_spread")), "remark", "folders"]
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_table(words: Sequence[str], out: str | None = None) -> int:
    """Print the table of the run folders (or patterns with *) as Markdown, then as CSV; out: write table.md and table.csv there instead
    of printing the CSV. A folder that cannot be read is said in one line and left out. Raises UserError when none is left."""
    folders = [Path(found) for word in words for found in (sorted(glob.glob(word)) if "*" in word else [word])]
    runs: list[Run] = []
    for folder in dict.fromkeys(folders):
        try:
            runs.append(read_run(folder))
        except UserError as error:
            log.warning("left out: %s", error)
    if not runs:
        raise UserError(f"--eval-table: no run folder among the {len(folders)} given; give outputs/NAME/TRIAL, or outputs/*/*")
    groups = grouped(runs)
    rows = [_row(group, groups) for group in groups]
    log.info("%s", markdown(rows))
    if any(len(group) > 1 for group in groups):
        log.info("± is the standard deviation over the seeds of a row")
    if out is None:
        log.info("%s", as_csv(rows))
    else:
        write_atomic(Path(out) / "table.md", (markdown(rows) + "\n").encode())
        write_atomic(Path(out) / "table.csv", as_csv(rows).encode())
        log.info("written: %s, %s", Path(out) / "table.md", Path(out) / "table.csv")
    return 0
