"""The kit for the first card, on the CPU at a tiny size: its parts run, and what does not hold is said and ends with 1."""

import json
import time

import numpy as np
import pytest
import torch
import trimesh

from tests.benchmarks import gpu_check, ops
from tests.benchmarks.gpu_check import Options, Row, apart, check, here, main, markdown, row_of_tests, training_rows
from tests.benchmarks.launches import count
from tests.scenes import AXES, write_tiny_scene
from tests.systems.test_train import TINY

SMALL = tuple(word for word in TINY if word.partition("=")[0] not in ("seed", "trainer.device")) + ("dataset.test_scale=null",)


def scene_with_truth(folder):
    """8 small views and the true mesh."""
    scene = write_tiny_scene(folder)
    truth = trimesh.creation.icosphere(3)
    truth.vertices = truth.vertices * AXES * 3 + (10.0, -20.0, 30.0)
    truth.export(scene / "gt_mesh.ply")
    return scene


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Options for a scene of 8 small views with its true mesh, which stands for the demo scene."""
    scene = scene_with_truth(tmp_path / "scene")
    monkeypatch.setattr("process_data.demo.make_demo", lambda folder: folder)
    monkeypatch.setattr(ops, "GROUPS", {"composite": ops.composite_ops})
    return Options("cpu", 20, tmp_path / "out", scene, timed_steps=2, warm_steps=2, quick=True, overrides=SMALL)


@pytest.mark.slow
def test_every_part_gives_its_rows(small):
    rows = {row.part: row for row in check(small, ("operations", "step", "training"), here)}
    assert not [row for row in rows.values() if row.holds is False]
    assert any(part.startswith("weights of densities") for part in rows)
    assert {"step", "step: backward", "step: operations", "training: held-out PSNR", "training: Chamfer", "training: peak memory"} <= set(
        rows
    )
    assert rows["training: steps"].measured.startswith("20 in ") and rows["training: Chamfer"].holds is None  # too few steps to be judged
    assert rows["all"].holds and "| step: backward |" in markdown(list(rows.values()))


def test_a_part_that_fails_is_a_row_and_the_rest_goes_on(small, monkeypatch):
    monkeypatch.setitem(gpu_check.PARTS, "step", lambda options: 1 // 0)
    monkeypatch.setitem(gpu_check.PARTS, "training", lambda options: [Row("training", "went on")])
    rows = check(small, ("step", "training"), here)
    assert Row("step", "ZeroDivisionError: integer division or modulo by zero", "no error", False) in rows
    assert Row("training", "went on") in rows


def test_a_kernel_that_fails_or_is_slower_than_its_twin_does_not_hold(small, monkeypatch):
    """Judged on a card alone; here one is claimed."""

    def broken():
        raise RuntimeError("no kernel image")

    sleep = lambda ms: lambda: time.sleep(ms / 1000)  # noqa: E731
    groups = {
        "a": lambda device, quick: {
            "march, slow": {"torch": sleep(1), "warp": sleep(20)},
            "march, fast": {"torch": sleep(20), "warp": sleep(1)},
        },
        "b": lambda device, quick: {"march, broken": {"torch": sleep(1), "warp": broken}},
        "c": lambda device, quick: broken(),
    }
    monkeypatch.setattr(ops, "GROUPS", groups)
    monkeypatch.setattr(ops, "missing", lambda column, device: "")
    monkeypatch.setattr("utils.device.missing", lambda column, device: "")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    rows = {row.part: row for row in gpu_check.check_operations(Options("cuda", quick=True))}
    assert [rows[name].holds for name in ("march, slow", "march, fast", "march, broken", "c")] == [False, True, False, False]
    assert "warp failed: RuntimeError: no kernel image" in rows["march, broken"].measured


def test_tests_are_counted_and_a_part_that_hangs_is_stopped(tmp_path, monkeypatch):
    (tmp_path / "test_some.py").write_text(
        "import pytest\npytestmark = pytest.mark.gpu\ndef test_good(): pass\ndef test_bad(): assert 0\n"
        "def test_nerfacc(): assert 0\n@pytest.mark.skip\ndef test_left(): pass\n"
    )
    options = Options("cuda", folder=tmp_path / "out", tests=(str(tmp_path / "test_some.py"),))
    (row,) = apart("tests", options)
    assert row == Row("pytest -m gpu", "1 passed, 1 failed, 1 skipped: test_some::test_bad", "all pass", False)
    (tmp_path / "test_some.py").write_text("import time, pytest\n@pytest.mark.gpu\ndef test_long(): time.sleep(100)\n")
    monkeypatch.setitem(gpu_check.LIMITS, "tests", 0.5)
    began = time.perf_counter()
    assert apart("tests", options) == [Row("tests", "stopped after 0.5 s", "0.5 s", False)]
    assert time.perf_counter() - began < 50


def test_tests_that_were_all_skipped_do_not_hold_on_a_card(tmp_path):
    report = tmp_path / "tests.xml"
    report.write_text('<testsuites><testsuite><testcase name="a"><skipped/></testcase></testsuite></testsuites>')
    assert row_of_tests(report, "cuda").holds is False and row_of_tests(report, "cpu").holds is None
    assert row_of_tests(tmp_path / "none.xml", "cuda").holds is False


@pytest.mark.parametrize(
    ("psnr", "chamfer", "steps", "want"),
    [(33.0, 0.0014, 20000, (True, True)), (31.0, 0.0030, 20000, (False, False)), (20.0, 0.1, 20, (None, None))],
)
def test_a_training_is_judged_beside_the_cpu(psnr, chamfer, steps, want, tmp_path):
    for name, found in (("test", {"psnr": psnr}), ("mesh", {"chamfer": chamfer})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(found))
    (tmp_path / "ckpt").mkdir()
    state = {"format": 2, "config": "", "model": {}, "step": steps, "trained_seconds": 60.0, "skipped": 0}
    torch.save(state, tmp_path / "ckpt/last.pt")
    rows = {row.part: row.holds for row in training_rows(tmp_path, steps, 70.0, "1 GiB")}
    assert (rows["training: held-out PSNR"], rows["training: Chamfer"]) == want and rows["training: steps"]
    short = {row.part: row.holds for row in training_rows(tmp_path, steps + 1, 70.0, "1 GiB")}
    assert short["training: steps"] is False


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_card_it_says_so_and_ends_with_1(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "table.md")]) == 1
    table = (tmp_path / "table.md").read_text()
    assert "sees no CUDA device | a CUDA device | **NO** |" in table and table in capsys.readouterr().out


def test_the_exit_status_is_that_of_the_rows(tmp_path, monkeypatch):
    for holds, want in ((True, 0), (None, 0), (False, 1)):
        monkeypatch.setattr(gpu_check, "check", lambda options, parts, holds=holds: [Row("a|b", "1", "2", holds)])
        assert main(["--device", "cpu", "--out", str(tmp_path / "table.md")]) == want
    assert "| a\\|b | 1 | 2 | **NO** |" in (tmp_path / "table.md").read_text()


def test_options_survive_the_way_to_another_process(small):
    assert Options.read(small.words()) == small


def test_operations_are_counted_without_views():
    x = torch.ones(3, 3)
    found = count(lambda: x.t()[0].add(1).mul_(2), torch.device("cpu"), 4)
    assert found["operations"] == 2 and found["Warp launches"] == 0
    assert np.isfinite(list(found.values())).all()


def test_launches_that_were_not_counted_do_not_hold(small, monkeypatch):
    """Where the profiler sees no launch, 0 must not pass for at most 60."""
    found = {"ms": 3.0, "parts": {}, "samples": 1.0, "samples_per_s": 1.0, "floor_ms": 1.0, "floor": "", "counts": {"operations": 9.0}}
    monkeypatch.setattr("tests.benchmarks.step.measure", lambda *a: found)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for counts in ({"operations": 9.0}, {"launches": 61.0, "waits": 1.0}, {"launches": 60.0, "waits": 0.0}):
        found["counts"] = counts
        rows = {row.part: row.holds for row in gpu_check.check_step(Options("cuda", scene=small.scene))}
        want = {f"step: {what}": ("launches" in counts and counts[what] in (0, 60)) for what in ("launches", "waits")}
        assert want.items() <= rows.items()
