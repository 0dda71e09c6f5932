"""Backends: the choice for each device, forced choices that are impossible, and no import of nerfacc on the CPU."""

import sys

import pytest
import torch

from utils import device
from utils.errors import UserError

CPU = torch.device("cpu")


def test_auto_takes_warp_where_it_runs():
    want = "torch" if device.warp_available() else "warp"
    assert all(device.choose(op, "auto", CPU) == want for op in device.BACKENDS)


def test_the_twin_is_chosen_without_warp(monkeypatch, caplog):
    monkeypatch.setattr(device, "warp_available", lambda: "the package warp-lang is not installed")
    device._say.cache_clear()
    assert device.choose("march", "auto", CPU) == "torch"


@pytest.mark.parametrize(("op", "backend"), [("march", "nerfacc"), ("composite", "nerfacc"), ("hashgrid", "tinycudann")])
def test_cuda_libraries_are_refused_on_the_cpu_without_importing_them(op, backend, monkeypatch):
    monkeypatch.setattr(device, "_cuda_library", lambda name: pytest.fail(f"{name} was imported on the CPU"))
    with pytest.raises(UserError, match=f"backend.{op}={backend}, but {backend} runs on CUDA alone"):
        device.choose(op, backend, CPU)


def test_forced_warp_that_is_missing_names_the_package(monkeypatch):
    monkeypatch.setattr(device, "warp_available", lambda: "the package warp-lang is not installed")
    with pytest.raises(UserError, match="install warp-lang"):
        device.choose("hashgrid", "warp", CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_forced_cuda_that_is_missing():
    with pytest.raises(UserError, match=r"trainer\.device=cuda"):
        device.pick_device("cuda")
    assert device.pick_device("auto") == CPU


def test_the_nerfacc_extension_is_never_loaded_on_the_cpu():
    """Building and refreshing the occupancy grid does not start the compilation of nerfacc's kernels."""
    from confs.model import OccupancyConfig
    from models.estimators import OccupancyGrid

    grid = OccupancyGrid(OccupancyConfig(resolution=8), 1.0)
    grid.refresh(0, lambda x: torch.rand(len(x)))
    assert "nerfacc.cuda._backend" not in sys.modules
