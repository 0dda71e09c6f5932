"""Every option is read by some part of the program: an option that nothing reads is a defect."""

import dataclasses
import sys
from pathlib import Path

import pytest

from confs.load import known_keys
from confs.model import METHOD_CONFIGS
from confs.schema import Config
from systems.run import execute, prepare, relit
from tests.systems.test_family import tiny_job
from tests.systems.test_train import ROOT

ROOMS = ("encoder", "models", "process_data", "systems", "utils")
ELSEWHERE = {  # read on CUDA, by Blender, after a non-finite step: where
    "TrainerConfig.amp": "systems/trainer.py",
    "TrainerConfig.max_skipped": "systems/trainer.py",
    "RelightConfig.device": "systems/relight.py",
    "RelightConfig.minutes": "systems/relight.py",
}
LAYOUT = ("dataset", "trainer", "export", "relight", "optim", "loss", "backend")


def sections() -> list[type]:
    """Every dataclass of the schema."""
    found, queue = [], [Config, *(cls for cls in METHOD_CONFIGS.values() if cls.__module__.startswith("confs."))]
    while queue:
        cls = queue.pop()
        if cls in found:
            continue
        found.append(cls)
        queue += [f.default_factory for f in dataclasses.fields(cls) if dataclasses.is_dataclass(f.default_factory)]
    return found


@pytest.fixture
def reads(monkeypatch):
    """{(section class, field)} read by the code of the rooms (reads of the loader and of dataclasses do not count)."""
    found = set()

    def recording(self, name):
        if Path(sys._getframe(1).f_code.co_filename).parent.name in ROOMS:
            found.add((type(self), name))
        return object.__getattribute__(self, name)

    for cls in sections():
        monkeypatch.setattr(cls, "__getattribute__", recording, raising=False)
    return found


@pytest.mark.slow
def test_every_option_is_read(reads, tiny_scene, tmp_path):
    few = ["trainer.max_steps=4", "trainer.val_minutes=0.00001", "trainer.save_every=2"]
    runs = {
        "dtu-wmask": [
            "loss.curvature=0.1",
            "loss.sparsity=0.1",
            "dataset.center=lookat",
            "export.formats=[obj,stl]",
            "export.texture=true",
        ],
        "dtu": ["loss.distortion=0.1"],
        "neuralangelo-dtu": [],
        "neus-mlp": ["model.pose=true", "model.appearance=affine", "optim.pose_begin=0"],
        "nerf-blender": ["model.sampler=proposal", "model.encoding=ipe", "model.radiance.dirs=ide"],
        "nerf-dtu": ["model.encoding=frequency", "model.radiance.dirs=frequency"],
        "nero-shape": [],
        "nero-material": ["model.material.photographer=true"],
    }
    for name, more in runs.items():
        try:
            execute(tiny_job(name, tiny_scene, tmp_path / name, *few, *more), True, False, False)
        except Exception as error:  # an untrained density has no surface to mesh
            assert "no surface" in str(error), (name, error)
    lights = ["model.material.light=mlp", "model.material.light_hidden=16", "trainer.finish=false", "trainer.trial_name=null", "tag=a"]
    execute(tiny_job("nero-material", tiny_scene, tmp_path / "tagged", *few, *lights), True, False, False)
    prepare("confs/dtu-wmask.yaml", None, [f"dataset.root_dir={tiny_scene}"], "fast")
    (tmp_path / "light.hdr").write_bytes(light())
    relit(
        str(tmp_path / "nero-material/n/t"),
        ["relight.width=8", "relight.height=8", "relight.frames=1", "relight.samples=4", f"relight.hdr={tmp_path / 'light.hdr'}"],
    )
    assert (tmp_path / "nero-material/n/t/relight/light/000.png").is_file()
    everything = {(declared_by(cls, f.name), f.name) for cls in sections() for f in dataclasses.fields(cls)}
    unread = everything - {(declared_by(cls, name), name) for cls, name in reads if any(f.name == name for f in dataclasses.fields(cls))}
    missing = {f"{cls.__name__}.{name}" for cls, name in unread} - ELSEWHERE.keys()
    assert ", ".join(sorted(missing)) == ""
    for option, path in ELSEWHERE.items():
        assert f".{option.rpartition('.')[2]}" in (ROOT / path).read_text(), option


def declared_by(cls: type, name: str) -> type:
    """The class at the root of the hierarchy that declares the field."""
    return [c for c in cls.__mro__ if name in getattr(c, "__annotations__", {})][-1]


def light() -> bytes:
    import cv2
    import numpy as np

    return cv2.imencode(".hdr", np.full((8, 16, 3), 0.5, np.float32))[1].tobytes()


def test_the_keys_are_those_of_the_sections():
    leaves = {key for method in ("neus", "nerf", "nero-shape", "material") for key in known_keys(method=method)}
    assert len(leaves) > 200 and {key.split(".")[0] for key in leaves} == {"name", "tag", "seed", "model", *LAYOUT}
