"""`--eval --resume CKPT`: the held-out views at full size, whatever the test's time budget says."""

import json
import logging

import numpy as np
import pytest
import torch

from systems import eval_views, evaluate
from systems.eval_views import evaluate_whole, table
from systems.lpips import Unavailable
from tests.systems.test_budget import CPU, Known, config, run, scene  # noqa: F401 - fixtures


class Half:
    """LPIPS that tells the pictures it was given by their size and mask."""

    def __call__(self, a, b, mask=None):
        assert a.shape == b.shape and float((a - b).abs().max()) < 0.01
        return a.shape[0] / 1000 if mask is None else float(mask.mean())


@pytest.fixture
def masked(scene):  # noqa: F811
    from dataclasses import replace

    masks = torch.zeros(4, 120, 120, dtype=torch.uint8)
    masks[:, 10:60, 10:60] = 255
    return replace(scene, masks=masks)


def test_full_size_with_every_figure(masked, run, monkeypatch, caplog):  # noqa: F811
    monkeypatch.setattr(evaluate, "UNMEASURED", 0)
    for module in (evaluate, eval_views):
        monkeypatch.setattr(module, "seconds_per_pixel", lambda size, picture: 400 / (2 * 120 * 90))
    monkeypatch.setattr(eval_views, "load_lpips", lambda device: Half())
    with caplog.at_level(logging.INFO):
        result = evaluate_whole(Known(), masked, config(), run, CPU, allowed=1.0)
    assert result["scale"] == 1 and result["held_out"] and "2 views at full size, 0.02 megapixels: about 400 s" in caplog.text
    assert [row["lpips"] for row in result["views"]] == [0.09, 0.12] and result["lpips"] == pytest.approx(0.105)
    assert result["lpips_masked"] == pytest.approx(2500 / 10800)
    for key in ("psnr", "psnr_masked", "psnr_cc", "psnr_cc_masked"):
        assert result[key] > 45 and result["ssim"] > 0.99 and result["ssim_masked"] > 0.99
    assert json.loads((run / "test/metrics.json").read_text()) == result
    assert (run / "test/000.png").is_file() and (run / "test/001.png").is_file()
    lines = caplog.records[-1].getMessage().splitlines()
    assert len(lines) == 5 and lines[0] == "2 held-out views, at full size"
    assert lines[1].split() == ["view", "psnr", "masked", "cc", "cc", "masked", "ssim", "ssim", "masked", "lpips", "lpips", "masked"]
    assert lines[2].split()[0] == "a" and lines[2].split()[7] == "0.0900" and lines[4].split()[0] == "mean"
    assert float(lines[4].split()[1]) == pytest.approx(np.mean([row["psnr"] for row in result["views"]]), abs=0.006)


def test_without_weights_lpips_is_left_out_in_one_line(scene, run, monkeypatch, caplog):  # noqa: F811
    def none(device):
        raise Unavailable("put X into Y")

    monkeypatch.setattr(eval_views, "load_lpips", none)
    with caplog.at_level(logging.INFO):
        result = evaluate_whole(Known(), scene, config(), run, CPU)
    assert result["lpips"] is None and result["psnr"] > 45 and caplog.text.count("LPIPS left out: put X into Y") == 1
    head = caplog.records[-1].getMessage().splitlines()[1]
    assert head.split() == ["view", "psnr", "cc", "ssim"]  # no masks, no LPIPS


def test_a_figure_of_one_view_alone_is_shown():
    rows = [{"name": "a", "psnr": 30.0, "psnr_masked": None}, {"name": "b", "psnr": 32.0, "psnr_masked": 20.0}]
    lines = table({"views": rows, "held_out": False, "psnr": 31.0, "psnr_masked": 20.0}).splitlines()
    assert (
        lines[0] == "2 training views, at full size"
        and lines[2].split() == ["a", "30.00", "-"]
        and lines[4].split() == ["mean", "31.00", "20.00"]
    )
