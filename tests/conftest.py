"""Shared fixtures: a GPU marker that skips itself, quiet logs, a tiny scene."""

import logging

import pytest
import torch

from utils.device import missing, setup_threads, warp_available

setup_threads()

needs_warp = pytest.mark.skipif(bool(warp_available()), reason=f"Warp cannot be used: {warp_available()}")


def require(backend: str) -> None:
    """Skip a GPU test, with the reason, where a backend does not run. nerfacc compiles its kernels here the first time."""
    if reason := missing(backend, torch.device("cuda")):
        pytest.skip(f"{backend}: {reason}")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_leftover_handlers():
    yield
    logger = logging.getLogger("neus")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True


@pytest.fixture(scope="session")
def tiny_scene(tmp_path_factory):
    """A DTU-layout scene of 8 views, 24 x 32 pixels: an ellipsoid, world units scaled and off-centre."""
    from tests.scenes import write_tiny_scene

    return write_tiny_scene(tmp_path_factory.mktemp("scenes") / "tiny")
