"""What follows a training, or is asked of a checkpoint: test, mesh, video, report, in a share of the training time."""

import logging
import math
import time
from dataclasses import dataclass

import torch

from confs.schema import Config
from systems.budget import FLOOR, allowance
from systems.cameras import align_held_out, refined, write_cameras
from systems.eval_views import evaluate_whole
from systems.evaluate import evaluate, video
from systems.export import compare_with_truth
from systems.report import report_run
from utils.files import add_facts
from utils.log import MADE, RunFolder
from utils.rays import Scene

log = logging.getLogger("neus")


@dataclass(frozen=True)
class Wanted:
    """The parts that are wanted."""

    test: bool
    mesh: bool
    film: bool = True  # with the test
    whole: bool = False  # the test at full size, however long it takes, with LPIPS where its weights are here


def finish(system, scene: Scene, cfg: Config, run: RunFolder, device: torch.device, trained: float, wanted: Wanted) -> None:
    """Test, mesh, video and report of a system after `trained` seconds of training.

    Test and video take at most `trainer.test_share` of that each, or FLOOR seconds; the fit of the held-out cameras counts as test, and
    the mesh takes its time out of the video's. MADE records of which weights each part was made, for the next sweep.
    """
    allowed, began = allowance(trained, cfg.trainer.test_share), time.perf_counter()

    def left(share: float) -> float:
        """Seconds until `share` times what is allowed has passed, at least FLOOR."""
        return max(FLOOR, share * allowed - (time.perf_counter() - began))

    parts = [name for name, on in (("test", wanted.test), ("mesh", wanted.mesh), ("video", wanted.test and wanted.film)) if on]
    if parts and math.isfinite(allowed) and not wanted.whole:
        log.info("now: %s and report, in about %.0f s at most (trainer.test_share)", ", ".join(parts), len(parts[:2]) * allowed)
    fitted = align_held_out(system, scene, cfg) if wanted.test else {}
    scene = refined(system, scene)
    if system.model.pose is not None:
        write_cameras(scene, run)
    if wanted.whole:
        evaluate_whole(system, scene, cfg, run, device, math.inf, fitted)
        add_facts(run.root / MADE, test=trained)
    elif wanted.test:
        evaluate(system, scene, cfg, run, device, left(1), fitted)
        add_facts(run.root / MADE, test=trained)
    if wanted.mesh:
        compare_with_truth(system.export(scene, run), scene, cfg, run)
        add_facts(run.root / MADE, mesh=trained)
    if wanted.test and wanted.film:
        video(system, scene, cfg, run, device, min(allowed, left(2)))
        add_facts(run.root / MADE, video=trained)
    report_run(run, scene)
    log.info("done in %.0f s -> %s", time.perf_counter() - began, run.root)
