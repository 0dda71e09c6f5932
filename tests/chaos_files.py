"""What a killed run has left: whether every file under a final name can be read, and whether two runs ended in the same bits."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml

from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.image import check_complete
from utils.mesh import load_mesh

LOADING = 4_000_000  # calls of functions before the training begins, about
ASIDE = (
    "trained_seconds",
    "seconds_before",
    "config",
    "commit",
)  # of a checkpoint: how long it took; where it was written; what others check out meanwhile
SAME = ("mesh/mesh.ply", "mesh/mesh.obj", "mesh/confidence.json", "mesh/mesh.png", "test/*.png", "test/metrics.json")


@dataclass
class Steps:
    """The phases of a process: how often each began, its calls of functions, the one in hand at the end, the step last saved."""

    entries: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)  # the mean of the entries that ended
    last: str = "start"
    saved: int | None = None


def read_steps(path: Path) -> Steps:
    """Read the file that `chaos_server.Phases` wrote. Loading lasts until the training begins; its calls are LOADING."""
    found, begun, counts = Steps(), [], {"loading": [LOADING]}
    for line in path.read_text().splitlines() if path.exists() else []:
        calls, sign, phase, note = line.split(" ", 3)
        if sign == "+":
            if phase != "loading":
                begun.append((phase, int(calls)))
            found.entries[phase] = found.entries.get(phase, 0) + 1
            found.last = phase
        elif phase != "loading":
            counts.setdefault(phase, []).append(int(calls) - begun.pop()[1])
            found.last = begun[-1][0] if begun else "end" if phase == "report" else f"after {phase}"
            found.saved = int(note) if phase == "saving" else found.saved
    found.calls = {phase: round(np.mean(values)) for phase, values in counts.items()}
    return found


def _video(path: Path) -> None:
    frames = cv2.VideoCapture(str(path))
    if not frames.isOpened() or int(frames.get(cv2.CAP_PROP_FRAME_COUNT)) != 3 or not all(frames.read()[0] for _ in range(3)):
        raise ValueError("not a video of three frames")


def _page(path: Path) -> None:
    if not path.read_text().rstrip().endswith("</html>"):
        raise ValueError("no end")


READERS = {
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
    ".yaml": lambda path: yaml.safe_load(path.read_text()),
    ".png": check_complete,
    ".ply": load_mesh,
    ".obj": load_mesh,
    ".pt": load_checkpoint,
    ".npz": lambda path: dict(np.load(path)),
    ".mp4": _video,
    ".html": _page,
    ".txt": lambda path: path.read_text(),
    ".patch": lambda path: path.read_text(),
}


def problems_of_files(root: Path) -> list[str]:
    """Files of a run folder that cannot be read, and those of an unknown kind; temporary names (`.PID.part`) and TensorBoard's are left out."""
    found = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        if re.search(r"\.\d+\.part$", path.name) or path.name.startswith("events.out.tfevents"):
            continue
        try:
            READERS[path.suffix](path)
        except KeyError:
            found.append(f"{path.relative_to(root)}: of an unknown kind")
        except (UserError, ValueError, OSError, yaml.YAMLError) as error:
            found.append(f"{path.relative_to(root)}: {str(error)[:120]}")
    return found


def differences(a, b, where: str = "") -> list[str]:
    """Dotted keys under which two checkpoints do not hold the same bits."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for k in a.keys() | b.keys() for d in differences(a.get(k), b.get(k), f"{where}.{k}".lstrip("."))]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{where}.{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        return [] if same else [where]
    return [] if type(a) is type(b) and a == b else [where]


def differences_of_runs(whole: Path, other: Path) -> list[str]:
    """What of the end of a run differs from another's: the checkpoint by its keys, files of SAME by their bytes, metrics by step."""
    try:
        a, b = load_checkpoint(whole), load_checkpoint(other)
    except UserError as error:
        return [str(error)]
    found = [f"last.pt: {d}" for d in differences(a, b) if d.partition(".")[0] not in ASIDE]
    for path in [p for pattern in SAME for p in sorted(whole.glob(pattern))]:
        name = path.relative_to(whole)
        if not (other / name).is_file() or (other / name).read_bytes() != path.read_bytes():
            found.append(f"{name} differs")
    found += [f"{name} is missing" for name in ("video.mp4", "report.html", "scene.json", "config.yaml") if not (other / name).is_file()]
    return found + [f"metrics.jsonl differs at step {step}" for step in steps_that_differ(_rows(whole), _rows(other))]


def _rows(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]


def steps_that_differ(a: list[dict], b: list[dict]) -> list[int]:
    """Steps of metrics.jsonl whose losses are not the same; of a step logged twice, each time is looked at."""

    def losses(row: dict) -> dict:
        return {key: value for key, value in row.items() if key.startswith("loss")}

    known = {row["step"]: losses(row) for row in a if "loss" in row}
    other = [(row["step"], losses(row)) for row in b if "loss" in row]
    return sorted({step for step, values in other if values != known.get(step)} | (known.keys() - {step for step, _ in other}))
