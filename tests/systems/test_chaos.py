"""Runs that are killed, meet a full disk, lose their folder or their clock end as an undisturbed one, or with a sentence."""

import json
import os
import shutil
import signal
import time

import pytest

from systems.trainer import Trainer
from tests.chaos import Chaos, table
from tests.chaos_files import differences_of_runs, problems_of_files
from utils.checkpoint import load_checkpoint

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"), pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def chaos(tmp_path_factory):
    chaos = Chaos(tmp_path_factory.mktemp("chaos"), 3)
    yield chaos
    chaos.close()


def test_a_run_that_is_killed_four_times_ends_in_the_same_bits(chaos):
    plan = [("training", signal.SIGKILL), ("saving", signal.SIGTERM), ("meshing", signal.SIGTERM), ("video", signal.SIGKILL)]
    rows = chaos.kill(1, *plan)
    assert [row.code for row in rows] == [-9, 143, 143, -9] and not [row.row() for row in rows if row.problems]


def test_what_is_cut_or_differs_is_found(chaos):
    root = chaos.root("cut")
    shutil.copytree(chaos.whole, root)
    for name in ("ckpt/last.pt", "mesh/mesh.ply", "test/metrics.json", "images/scene.png", "video.mp4", "report.html"):
        data = (chaos.whole / name).read_bytes()
        (root / name).write_bytes(data[: len(data) // 2])
    assert len(problems_of_files(root)) == 6
    shutil.copy(chaos.whole / "ckpt/last.pt", root / "ckpt/last.pt")
    assert differences_of_runs(chaos.whole, root) == ["mesh/mesh.ply differs", "test/metrics.json differs"]


@pytest.mark.slow
def test_thirty_kills_in_every_phase(tmp_path):
    assert not [row.row() for row in table(tmp_path, 1, 30) if row.problems]


@pytest.mark.parametrize("size", [2000, 20_000])
def test_a_full_disk_keeps_the_checkpoint(size, chaos):
    """At the first line of the log, or at the checkpoint: one sentence, and what was saved before loads."""
    root = chaos.root("full")
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(chaos.whole, root)
    before = load_checkpoint(root)["step"]
    ended = chaos.server.run(["--train", "--resume", str(root), "trainer.max_steps=60"], most_bytes=size)
    assert ended.code == 2 and "Traceback" not in ended.output, ended.output
    assert sum(line.startswith("error: ") for line in ended.output.splitlines()) == 1 and "free some space" in ended.output
    assert load_checkpoint(root)["step"] == before and not problems_of_files(root)


def folder_goes():
    """Remove the run folder after step 20."""
    real = Trainer._after_step

    def after(self, *args):
        real(self, *args)
        if self.clock.step == 20:
            shutil.rmtree(self.run.root)

    Trainer._after_step = after


def test_a_run_whose_folder_is_removed_goes_on(chaos):
    ended = chaos.server.run(chaos.words("gone"), before=f"{__name__}:folder_goes")
    root = chaos.root("gone")
    assert ended.code == 0 and "was removed; the run goes on" in ended.output and "Traceback" not in ended.output, ended.output
    assert not problems_of_files(root) and (root / "config.yaml").is_file() and (root / "log.txt").is_file()
    found = differences_of_runs(chaos.whole, root)
    assert found == [f"metrics.jsonl differs at step {step}" for step in (5, 10, 15, 20)]
    assert json.loads((root / "scene.json").read_text())["to_world"]


def clock_goes_back():
    """From now on each look at the clock on the wall finds it an hour earlier."""
    now, looks = time.time(), []

    def earlier():
        looks.append(1)
        return now - 3600 * len(looks)

    time.time = earlier


@pytest.mark.slow
def test_a_clock_that_is_set_back_changes_nothing(chaos):
    ended = chaos.server.run(chaos.words("back"), before=f"{__name__}:clock_goes_back")
    assert ended.code == 0 and not problems_of_files(chaos.root("back")), ended.output
    assert not differences_of_runs(chaos.whole, chaos.root("back"))
