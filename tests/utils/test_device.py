"""Backends: the choice for each device, forced choices that are impossible, and no import of nerfacc on the CPU."""

import importlib
import logging
import shutil
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
    with pytest.raises(UserError, match=r"trainer\.device=cuda:1, but PyTorch sees no CUDA device"):
        device.pick_device("cuda:1")


def test_a_card_by_its_number(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert device.pick_device("cuda:1") == torch.device("cuda:1") == chosen[0]
    assert device.pick_device("cuda") == torch.device("cuda")
    with pytest.raises(UserError, match="trainer.device=cuda:2, but PyTorch sees 2 CUDA devices, numbered from 0"):
        device.pick_device("cuda:2")


def test_the_nerfacc_extension_is_never_loaded_on_the_cpu():
    """Building and refreshing the occupancy grid does not start the compilation of nerfacc's kernels."""
    from confs.model import OccupancyConfig
    from models.estimators import OccupancyGrid

    grid = OccupancyGrid(OccupancyConfig(resolution=8), 1.0)
    grid.refresh(0, lambda x: torch.rand(len(x)))
    assert "nerfacc.cuda._backend" not in sys.modules


@pytest.fixture
def no_cuda_needed(monkeypatch):
    """`missing` is asked for a CUDA device; what was found out before and said before is forgotten."""
    remembered = (device._cuda_library, device._say)
    for function in remembered:
        function.cache_clear()
    yield torch.device("cuda")
    for function in remembered:
        function.cache_clear()


@pytest.mark.parametrize("tool", ["nvcc", "ninja"])
def test_nerfacc_is_not_loaded_where_it_could_not_compile(tool, monkeypatch, no_cuda_needed):
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else real(name) or f"/bin/{name}")
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    assert device.missing("nerfacc", no_cuda_needed) == (f"nerfacc compiles its CUDA kernels at first use, and there is no {tool} on PATH")
    with pytest.raises(UserError, match=f"backend.march=nerfacc, but .* no {tool} on PATH; install .*nvcc.* or set backend.march=torch"):
        device.choose("march", "nerfacc", no_cuda_needed)


def test_nerfacc_whose_build_fails_is_said_and_the_twin_runs(monkeypatch, no_cuda_needed, caplog, tmp_path):
    def broken(name):
        raise RuntimeError("Error building extension 'nerfacc_cuda'\nnvcc: long output")

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.setattr(device, "warp_available", lambda: "the package warp-lang is not installed")
    with caplog.at_level(logging.INFO, "neus"):
        assert device.choose("march", "auto", no_cuda_needed) == "torch"
    assert "nvcc compiles its CUDA kernels, once, which takes minutes" in caplog.messages[0]
    assert caplog.messages[-1] == (
        "backend of march: torch (no warp: the package warp-lang is not installed; "
        "no nerfacc: it does not load (Error building extension 'nerfacc_cuda'))"
    )


def test_a_package_that_is_not_there_is_named(monkeypatch, no_cuda_needed):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert device.missing("tinycudann", no_cuda_needed) == "the package tinycudann is not installed"


def test_the_log_names_what_a_backend_leaves_to_others(monkeypatch, no_cuda_needed, caplog):
    monkeypatch.setattr(device, "_cuda_library", lambda name: "")
    with caplog.at_level(logging.INFO, "neus"):
        device.choose("composite", "nerfacc", no_cuda_needed)
    assert caplog.messages == ["backend of composite: nerfacc, weights and sums; distortion by torch (forced by the config)"]


@pytest.mark.parametrize("place", ["nerfacc_cuda", "py311_cu128/nerfacc_cuda"])
def test_compiled_kernels_of_nerfacc_are_found(place, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = f"torch_extensions/{place}"
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "lock").touch()
    assert not device.nerfacc_compiled()
    (tmp_path / place / "nerfacc_cuda.so").touch()
    assert device.nerfacc_compiled()
