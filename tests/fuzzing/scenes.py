"""Cases of scene folders: every layout, spoilt in one or two places."""

import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests import formats
from tests.fuzzing import spoil
from tests.process_data.test_glossy import world, write_glossy

IMAGES = (".png", ".jpg")
W = dict(n_views=5)


def _small(lens: tuple = ()) -> formats.Written:
    return formats.make(5, lens=lens)


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "dtu": lambda f: formats.write_dtu(f, _small()),
    "transforms": lambda f: formats.write_transforms(f, _small((0.02, -0.01, 0.0, 0.0))),
    "frames": lambda f: formats.write_transforms(f, _small(), per_frame=True),
    "blender": lambda f: formats.write_blender(f, _small()),
    "colmap": lambda f: formats.write_colmap(f, _small()),
    "colmap text": lambda f: formats.write_colmap(f, _small(), text=True),
    "llff": lambda f: formats.write_llff(f, _small()),
    "metashape": lambda f: formats.write_metashape(f, _small()),
    "middlebury": lambda f: formats.write_middlebury(f, _small()),
    "sdfstudio": lambda f: formats.write_sdfstudio(f, _small()),
    "glossy": lambda f: write_glossy(f, world()),
}


def write_all(folder: Path) -> None:
    """A valid scene of each layout, to be copied."""
    for name, write in LAYOUTS.items():
        write(folder / name)


def _arrays(path: Path, rng: random.Random) -> str:
    """One array of an npz or npy file."""
    data = dict(np.load(path)) if path.suffix == ".npz" else {"": np.load(path)}
    key = rng.choice(list(data))
    array = data[key]
    spot = tuple(rng.randrange(n) for n in array.shape)
    one = array.astype(np.float64)
    one[spot] = rng.choice([np.nan, np.inf, 0, 1e300, -one[spot], 1e-300, one[spot] * 1e6])
    kinds = {
        f"at {spot} {one[spot]:.3g}": one, "zeros": array * 0, "turned": array.T.copy(), "negated": -array, "flat": array.ravel(), "cut": array[:-1],
        "huge": array * 1e200, "tiny": array * 1e-200, "float16": array.astype(np.float16), "ints": array.astype(np.int64), "complex": array * 1j,
        "words": array.astype(str), "objects": np.array([print, None], dtype=object), "bools": array > 0, "nothing": np.zeros((0, 17)),
        "a scalar": np.float64(3), "scaled": np.concatenate([array[:-1] * 50, array[-1:]]),
    }  # fmt: skip
    name = rng.choice(list(kinds))
    data[key] = kinds[name]
    if rng.random() < 0.15:
        data.pop(key)
        data[rng.choice(["world_mat_999", "x", "world_mat_٣", "scale_mat_0"])] = array
        name = "under another name"
    np.savez(path, **data) if path.suffix == ".npz" else np.save(path, next(iter(data.values())), allow_pickle=True)
    return f"{path.name}: {key} {name}"


class _Code:
    """Writes a file where it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return exec, (f"open({str(self.target)!r}, 'w')",)


def _pickle(path: Path, rng: random.Random) -> str:
    pose, K = (part.astype(np.float64) for part in pickle.loads(path.read_bytes()))
    kinds = {
        "code": _Code(path.parent.parent / "sentinel/was-run"), "NaN": [pose * np.nan, K], "huge": [pose * 1e200, K], "no focal length": [pose, K * 0],
        "swapped": [K, pose], "mirrored": [-pose, K], "alone": pose, "words": ["a", "b"], "objects": [np.array([None, {}], object), K],
        "nested": [[[[pose]]], K], "far": [pose * np.array([1, 1, 1, 1e9]), K], "a dict": {"pose": pose, "K": K}, "large": [np.zeros((3000, 100)), K],
    }  # fmt: skip
    name = rng.choice(list(kinds))
    path.write_bytes(pickle.dumps(kinds[name]))
    return f"{path.name}: {name}"


def _name(path: Path, rng: random.Random, outside: Path) -> str:
    """Another name of an image in the file of the cameras."""
    names = [
        "../" * 3 + "sentinel/a.txt", str(outside), "/etc/passwd", "/dev/zero", "..", ".", "images", "ü/✓.png", "a\nb.png", "a\0.png", "x" * 5000,
        "C:\\Users\\me\\000.png", "file:///000.png", "~/x.png", "error: all is well", "\x1b]0;x\x07.png", "../scene/images/001.png", "%s%n",
    ]  # fmt: skip
    new = rng.choice(names)
    data = json.loads(path.read_text())
    frame = rng.choice(data["frames"])
    frame[rng.choice([key for key in frame if key.endswith("_path")])] = new
    more = rng.choice(["", "", "ply_file_path", "test_filenames", "applied_transform", "mask_path"])
    if more:
        data[more] = [new] if more == "test_filenames" else new
    path.write_text(json.dumps(data))
    return f"{path.name}: names {new[:30]!r} {more}"


def _special(path: Path, rng: random.Random, outside: Path) -> str:
    """What the kind of a file suggests."""
    if path.suffix in IMAGES:
        return spoil.spoil_image(path, rng)
    if path.suffix == ".json":
        return _name(path, rng, outside) if rng.random() < 0.25 else spoil.spoil_json(path, rng)
    if path.suffix in (".npz", ".npy"):
        return _arrays(path, rng)
    if path.suffix == ".pkl":
        return _pickle(path, rng)
    return spoil.spoil_text(path, rng) if path.suffix in (".txt", ".xml") else spoil.spoil_bytes(path, rng)


def _strange(scene: Path, rng: random.Random) -> str:
    """A scene folder that is no folder, or one too many."""
    how = rng.choice(["empty", "a file", "images only", "masks of another scene", "all images the same", "one image left"])
    images = [p for p in sorted(scene.rglob("*.png"))]
    if how in ("empty", "a file"):
        shutil.rmtree(scene)
        scene.mkdir() if how == "empty" else scene.write_text("x")
    elif how == "images only":
        for path in scene.rglob("*"):
            if path.is_file() and path.suffix not in IMAGES:
                path.unlink()
    elif how == "masks of another scene":
        (scene / "masks").mkdir(exist_ok=True)
        for path in images[:3]:
            shutil.copy(path, scene / "masks" / path.name)
    elif how == "all images the same":
        for path in images:
            path.write_bytes(images[0].read_bytes())
    else:
        for path in images[1:]:
            path.unlink()
    return how


def spoil_one(scene: Path, rng: random.Random, box: Path) -> str:
    """Spoil one file of a scene."""
    files = [p for p in sorted(scene.rglob("*")) if p.is_file() and not p.is_symlink()]
    cameras = [p for p in files if p.suffix not in IMAGES]
    path = rng.choice(cameras if cameras and rng.random() < 0.6 else files)
    way = rng.random()
    try:
        if way < 0.55:
            return _special(path, rng, box / "sentinel/a.txt")
        if way < 0.8:
            return spoil.spoil_bytes(path, rng)
        return spoil.spoil_entry(path, rng, box / "sentinel/a.txt", files)
    except (OSError, ValueError, KeyError, IndexError, TypeError):  # spoilt before
        return spoil.spoil_bytes(path, rng) if path.is_file() else "nothing"


def spoilt(sources: Path, box: Path, rng: random.Random) -> str:
    """Copy a scene into the box and spoil it; what was done."""
    layout = rng.choice(list(LAYOUTS))
    scene = box / "scene"
    shutil.rmtree(scene)
    shutil.copytree(sources / layout, scene)
    done = []
    if rng.random() < 0.05:
        done.append(_strange(scene, rng))
    for _ in range(0 if done else rng.choice([1, 1, 2])):
        done.append(spoil_one(scene, rng, box))
    return f"{layout}: {'; '.join(done)}"


def case(sources: Path, box: Path, rng: random.Random) -> tuple[list[str], str]:
    """A spoilt scene is trained on; (words of the command line, what was done)."""
    what = spoilt(sources, box, rng)
    return ["--train", f"dataset.root_dir={box / 'scene'}", *(["dataset.masks=false"] if rng.random() < 0.1 else [])], what
