"""The other commands of the program, each with what it reads spoilt. A case is (main, words of its command line, what was done)."""

import contextlib
import os
import shutil
from pathlib import Path

import run
from systems import error_cloud, eval_command
from tests.fuzzing import figures, lights, meshes, photos, sweeps
from tests.material_scenes import write_material_scene
from tests.systems.test_train import tiny_words

with contextlib.suppress(ImportError):  # --view then refuses every case
    import viser  # noqa: F401 - a slow import, once for all cases

FAMILIES = {
    "relight": lights.relight, "eval": figures.compare, "photos": photos.photos, "sweep": sweeps.case, "masks": photos.masks, "table": figures.table, "view": lights.view,
}  # fmt: skip
MATERIAL = [
    "model.material.n_diffuse=4", "model.material.n_specular=4", "model.material.n_light=4", "model.material.n_diffuse_test=4", "model.material.n_specular_test=4", "model.material.n_light_test=4",
    "model.material.light_height=8", "model.material.hidden=8", "trainer.n_rays=64", "trainer.max_rays=64", "trainer.target_samples=1024",
]  # fmt: skip


def prepare(sources: Path, limits: list[str]) -> None:
    """What the commands read, whole: a trained material, photographs, a video, surfaces, a sweep that has ended."""
    eval_command.SAMPLES, error_cloud.FINE = 2000, 500
    scene = write_material_scene(sources / "material scene", 4, 16)
    words = [
        *tiny_words("material"),
        *MATERIAL,
        *limits,
        f"dataset.root_dir={scene}",
        f"model.mesh={scene / 'ball.ply'}",
        "dataset.name=dtu",
        "name=material",
        "trainer.trial_name=t",
    ]
    words += [
        "--config",
        "confs/nero-material.yaml",
        "--train",
        "trainer.max_steps=1",
        "trainer.finish=false",
        f"trainer.outputs_dir={sources / 'runs/out'}",
    ]
    if run.main(words):
        raise SystemExit("a valid material is not trained")
    shutil.move(sources / "runs/out/material/t", sources / "runs/material")
    photos.write_photos(sources / "photos")
    photos.write_video(sources / "photos.mp4", sources / "photos")
    meshes.write_truths(sources / "truths")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sweeps.write_sweep(sources)
