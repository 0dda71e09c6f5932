"""Pictures take their share of the training time: plans by hand, a test at a reduced size, validation on a clock of its own."""

import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from confs.load import load_config
from process_data.rays import view_rays
from systems import budget
from systems import evaluate as evaluation
from systems import finish as finishing
from systems import run as commands
from systems import validate as validation
from systems.budget import FLOOR, allowance, fitting_scale, plan_video, probe_scale
from systems.evaluate import evaluate, video
from systems.material import vertex_radiance
from systems.validate import Validator
from tests.process_data.test_sizes import make, write_transforms
from tests.scenes import ring_cameras
from tests.systems.test_train import ROOT, TINY
from utils.image import read_rgb
from utils.log import RunFolder
from utils.rays import Cameras, Render, Scene

CPU = torch.device("cpu")


def test_what_is_allowed():
    assert allowance(600, 1 / 6) == 100 and allowance(1, 1 / 6) == FLOOR and allowance(600, 0) == math.inf
    assert fitting_scale(400, 100, (1000, 750), 48) == 0.5 and fitting_scale(50, 100, (1000, 750), 48) == 1
    assert fitting_scale(1e9, 100, (1000, 750), 75) == pytest.approx(0.1) and fitting_scale(1e9, 100, (32, 24), 48) == 1
    assert probe_scale((1000, 750)) == 0.128 and probe_scale((32, 24)) == 1


def test_the_video_is_planned():
    size = (1000, 750)
    pixels = 640 * 480
    assert plan_video(0.0, size, None, None, 30) == (60, 0.64)  # 480 rows
    assert plan_video(0.0, (400, 300), None, None, 30) == (60, 1.0)
    assert plan_video(1 / pixels, size, None, None, 30) == (30, 0.64)  # a second each: fewer frames
    frames, scale = plan_video(5 / pixels, size, None, None, 30)  # then smaller ones
    assert frames == 24 and 24 * 5 * (scale / 0.64) ** 2 == pytest.approx(30)
    assert plan_video(5 / pixels, size, 100, 1.0, 30) == (100, 1.0)  # what the user sets is kept
    assert plan_video(5 / pixels, size, 100, None, 30)[0] == 100 and plan_video(5 / pixels, size, None, 1.0, 30) == (24, 1.0)


def test_the_second_small_picture_is_timed(monkeypatch):
    """The first, which compiles kernels, takes 9 s; the second 2 s."""
    clock, left = SimpleNamespace(now=0.0), [9.0, 2.0]
    monkeypatch.setattr(budget, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def picture(scale):
        assert scale == 0.128
        clock.now += left.pop(0)

    assert budget.seconds_per_pixel((1000, 750), picture) == pytest.approx(2 / (128 * 96)) and not left


def colour(dirs: torch.Tensor) -> torch.Tensor:
    return 0.5 + 0.5 * torch.sin(6 * dirs)


class Known:
    """Renders what the photographs show, a function of the direction."""

    def render_view(self, rays, background, progress=1.0, chunk=4096, full_background=False):
        n = len(rays)
        return Render(colour(rays.dirs), torch.ones(n), torch.ones(n), -rays.dirs)

    def maps(self, rays, render, progress=1.0, chunk=4096):
        return {}


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Landscape and portrait photographs of directions."""
    sizes = torch.tensor([[120, 90], [90, 120], [120, 90], [120, 90]])
    K = torch.stack([torch.tensor([[110.0, 0, w / 2], [0, 110, h / 2], [0, 0, 1]]) for w, h in sizes.tolist()])
    cameras = Cameras(K, torch.tensor(ring_cameras(4)).float(), 120, 120, sizes)
    images = torch.zeros(4, 120, 120, 3, dtype=torch.uint8)
    for i, (w, h) in enumerate(sizes.tolist()):
        images[i, :h, :w] = (colour(view_rays(cameras, i, 1.0).dirs) * 255).round().view(h, w, 3)
    return Scene("s", images, None, cameras, torch.eye(4, dtype=torch.float64), (2, 3), (0, 1), tuple("abcd"), "image")


def config(*more):
    return load_config(ROOT / "confs/dtu-wmask.yaml", [*TINY, "dataset.root_dir=x", *more])


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    yield folder
    folder.close()


def test_a_test_that_takes_too_long_is_reduced(scene, run, monkeypatch, caplog):
    """At half the size, with the truth reduced alike: the metrics stay those of a perfect render."""
    monkeypatch.setattr(evaluation, "UNMEASURED", 0)
    monkeypatch.setattr(evaluation, "SMALLER", 20)
    monkeypatch.setattr(evaluation, "seconds_per_pixel", lambda size, picture: 400 / (2 * 120 * 90))
    with caplog.at_level(logging.INFO):
        result = evaluate(Known(), scene, config(), run, CPU, allowed=100)
    assert result["scale"] == 0.5 and "would take about 400 s, of 100 s" in caplog.text
    assert json.loads((run / "test/metrics.json").read_text())["scale"] == 0.5
    assert all(row["psnr"] > 45 for row in result["views"]), "half a pixel off would be 35 dB"
    assert [read_rgb(run / f"test/{i:03d}.png").shape for i in (0, 1)] == [(45, 4 * 60, 3), (60, 4 * 45, 3)]
    monkeypatch.undo()
    monkeypatch.setattr(evaluation, "UNMEASURED", 0)
    assert evaluate(Known(), scene, config(), run, CPU, allowed=1e-6)["scale"] == pytest.approx(48 / 90), "no smaller than 48 pixels"
    whole = evaluate(Known(), scene, config(), run, CPU, allowed=math.inf)
    assert whole["scale"] == 1 and whole["psnr"] > 50 and read_rgb(run / "test/001.png").shape == (120, 4 * 90, 3)


def test_the_video_keeps_to_its_time(scene, run, monkeypatch, caplog):
    sizes = []
    monkeypatch.setattr(evaluation, "UNMEASURED", 0)
    monkeypatch.setattr(evaluation, "seconds_per_pixel", lambda size, picture: 2 / (120 * 90))
    monkeypatch.setattr(evaluation, "view_images", lambda render, c2w, h, w: 3 * [torch.zeros(h, w, 3, dtype=torch.uint8)])
    monkeypatch.setattr(evaluation, "write_video", lambda path, frames, fps: sizes.append((len(frames), frames[0].shape, fps)) or path)
    with caplog.at_level(logging.INFO):
        video(Known(), scene, config("dataset.test_steps=null"), run, CPU, allowed=60)
        video(Known(), scene, config("dataset.test_steps=3", "dataset.test_scale=0.5"), run, CPU, allowed=1)
        video(Known(), scene, config("dataset.test_steps=null"), run, CPU)
    assert sizes == [(30, (90, 240, 3), 12), (3, (44, 120, 3), 24), (60, (90, 240, 3), 24)]
    assert caplog.text.count("video: reduced to 30 frames of 120x90") == 1 == caplog.text.count("reduced")


@pytest.mark.parametrize("cost", [0.01, 20.0, 3000.0])
def test_pictures_while_training_take_a_tenth(scene, run, monkeypatch, cost):
    """cost: seconds of a picture at full size. An hour of training, a picture every minute where there is time."""
    clock, scales = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(validation, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    class Recorded(Validator):
        def __call__(self, step, progress, scale=1.0):
            scales.append(scale)
            clock.now += cost * scale**2

    validator = Recorded(Known(), scene, config("trainer.val_minutes=1"), run, CPU)
    validator.size = (1200, 900)
    for second in range(0, 3601, 5):
        validator.maybe(second, float(second), second / 3600)
    largest = cost * max(scales) ** 2
    assert clock.now <= 360 + largest and scales[0] == pytest.approx(96 / 900)
    assert (len(scales) == 60 and set(scales[1:]) == {1.0}) if cost < 1 else scales[1] < 1
    assert len(scales) > 50 if cost < 100 else 3 < len(scales) < 20


def test_a_run_on_photographs_of_two_orientations(tmp_path):
    """Training, test, mesh; no video with --no-video."""
    folder = write_transforms(tmp_path / "scene", make())
    words = [
        *TINY,
        f"dataset.root_dir={folder}",
        f"trainer.outputs_dir={tmp_path}",
        "name=n",
        "trainer.trial_name=t",
        "trainer.max_steps=2",
    ]
    job = commands.prepare(
        str(ROOT / "confs/dtu-wmask.yaml"), None, [*words, "dataset.name=auto", "trainer.val_minutes=0.00001", "dataset.hold_every=5"]
    )
    assert commands.execute(job, True, False, False, film=False) == 0
    run = tmp_path / "n/t"
    assert [read_rgb(run / f"test/{i:03d}.png").shape for i in (0, 5)] == [(48, 4 * 64, 3), (64, 4 * 48, 3)]
    assert json.loads((run / "test/metrics.json").read_text())["scale"] == 1
    assert (run / "mesh/mesh.png").is_file() and list((run / "images").glob("val_*.png")) and not list(run.glob("video.*"))


def test_light_of_vertices_comes_from_inside_the_photographs(scene):
    """Regression: a portrait's row is not as long as the padded one."""
    bright = torch.zeros_like(scene.images)
    for i in range(4):
        w, h = scene.cameras.size(i)
        bright[i, :h, :w] = 255
    x = torch.nn.functional.normalize(torch.randn(50, 3), dim=1) * 0.2
    free = SimpleNamespace(found=torch.zeros(0, dtype=torch.bool))
    model = SimpleNamespace(local=x, normals=x / 0.2, trace=lambda o, d: SimpleNamespace(found=free.found.new_zeros(len(o))))
    light = vertex_radiance(model, Scene(**{**vars(scene), "images": bright, "train": (0, 1)}), False)
    np.testing.assert_allclose(light, 1.0)


def test_what_follows_a_training_takes_a_share_of_it(monkeypatch, tmp_path, caplog):
    """600 s of training: 100 s each for test and video. The fit of the cameras comes out of the test's time, a slow mesh out of the video's."""
    clock, given = SimpleNamespace(now=0.0), {}
    monkeypatch.setattr(finishing, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def passing(seconds):
        clock.now += seconds

    monkeypatch.setattr(finishing, "align_held_out", lambda *_: passing(20))
    monkeypatch.setattr(finishing, "evaluate", lambda *args: (given.update(test=args[5]), passing(70)))
    monkeypatch.setattr(finishing, "compare_with_truth", lambda *_: passing(60))
    monkeypatch.setattr(finishing, "video", lambda *args: given.update(video=args[5]))
    monkeypatch.setattr(finishing, "report_run", lambda *_: given.update(report=True))
    monkeypatch.setattr(finishing, "refined", lambda system, scene: scene)
    system = SimpleNamespace(model=SimpleNamespace(pose=None), export=lambda *_: None)
    cfg = load_config(None, ["dataset.name=dtu"])
    run = SimpleNamespace(root=tmp_path)
    with caplog.at_level(logging.INFO, "neus"):
        finishing.finish(system, None, cfg, run, CPU, 600.0, finishing.Wanted(True, True))
    assert given["test"] == pytest.approx(80, abs=0.1) and given["video"] == pytest.approx(50, abs=0.1) and given["report"]
    assert "test, mesh, video and report, in about 200 s" in caplog.text and "done in 150 s" in caplog.text
    given.clear()
    finishing.finish(system, None, cfg, run, CPU, 600.0, finishing.Wanted(False, True))
    assert set(given) == {"report"}
