"""The kit for the first card (`tests/benchmarks/gpu_check.py`) on the pretended device, at a tiny size: every part runs its CUDA lines."""

from tests.benchmarks import gpu_check
from tests.benchmarks.gpu_check import Options, check, here, markdown
from tests.pretend.device import pretended_cuda
from tests.test_gpu_check import SMALL, scene_with_truth


def test_every_part_runs(tmp_path, monkeypatch):
    scene = scene_with_truth(tmp_path / "scene")
    monkeypatch.setattr("process_data.demo.make_demo", lambda folder: folder)
    monkeypatch.setattr(gpu_check, "MANY_SAMPLES", ())
    monkeypatch.setattr("tests.benchmarks.step.rates", lambda device: (1e12, 1e11))  # large products and copies, which take long here
    options = Options("cuda", 8, tmp_path / "out", scene, timed_steps=2, warm_steps=2, quick=True, overrides=SMALL)
    with pretended_cuda():
        rows = check(options, ("operations", "step", "training"), here)
    by_name = {row.part: row for row in rows}
    wrong = [row for row in rows if row.holds is False and "no error" in row.expected]
    assert not wrong, markdown(wrong)
    assert by_name["training: steps"].holds and by_name["training: steps skipped"].holds
    assert {"backends", "nerfacc", "tiny-cuda-nn", "step", "step: backward", "training: Chamfer", "all"} <= set(by_name)
