"""The commands: train, test, mesh, relight; systems/eval_command.py compares files."""

import itertools
import json
import logging
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from confs.load import load_config, loaded, to_yaml
from confs.recipes import CUDA_SAMPLES, PRESETS
from confs.schema import Config
from models.material import MaterialModel
from process_data.load import load_scene, recognise
from process_data.normalize import in_frame
from process_data.preview import scene_picture
from systems.begin import with_surface
from systems.build import build_system, restore_system
from systems.cameras import cameras_of_shape, refined
from systems.finish import Wanted, finish
from systems.parallel import NoFolder, Ranks, refuse, start
from systems.placement import metres_per_unit, scale_from_distance
from systems.trainer import Trainer
from systems.view import live_view, look
from utils import checkpoint
from utils.device import pick_device, setup_threads
from utils.errors import UserError
from utils.files import read_file
from utils.image import write_png
from utils.log import RunFolder, commit
from utils.rays import Scene
from utils.stop import told

log = logging.getLogger("neus")


@dataclass(frozen=True)
class Job:
    """A run's config, the way to load it again with more known of the scene, and its checkpoint where there is one."""

    cfg: Config
    load: Callable[..., Config]  # (masks=False, start="points") -> the config with this known of the scene
    state: dict | None = None
    path: Path | None = None
    folder: Path | None = None  # of the run, where it is a stage of another
    onward: str | None = None  # how that one goes on after a signal


def prepare(config: str | None, resume: str | None, overrides: list[str], preset: str | None = None) -> Job:
    """The job that the command line describes. A checkpoint brings its own config; overrides may change what a preset sets."""
    ranks = start()
    state, path, saved = None, None, None
    resume = resume or (left_behind(config, overrides) if ranks.again else None)
    if resume:
        path = checkpoint.resolve(Path(resume))
        state = checkpoint.load_checkpoint(path)
        saved = state["config"]
        whole = checkpoint.whole_run(path)
        if whole and path.parent.parent.name == "material":  # wherever the folder has been moved to
            overrides = [f"model.mesh={whole / 'shape'}", *overrides]
    if preset:
        overrides = [*preset_words(preset, load_config(config, overrides, saved)), *overrides]
    cfg = load_config(config, overrides, saved)
    if not (preset or saved):
        overrides = [*device_words(cfg, config, overrides), *overrides]
    fixed = list(overrides)
    if cfg.dataset.name == "auto":  # the checkpoint and the run folder record the layout
        fixed.append(f"dataset.name={recognise(cfg.dataset)}")
    if cfg.seed is None:
        fixed.append(f"seed={int(ranks.from_first([secrets.randbelow(2**31)])[0])}")
    load = partial(load_config, config, fixed, saved)
    return Job(load(), load, state, path)


def preset_words(preset: str, cfg: Config) -> list[str]:
    """The overrides of a preset on the config's device."""
    return PRESETS[preset][pick_device(cfg.trainer.device).type]


def device_words(cfg: Config, config: str | None, overrides: list[str]) -> list[str]:
    """The overrides that suit the device of a new run and that neither the file nor the command line decides."""
    if pick_device(cfg.trainer.device).type != "cuda":
        return []
    return [] if CUDA_SAMPLES.partition("=")[0] in loaded(config, overrides)[1] else [CUDA_SAMPLES]


def left_behind(config: str | None, overrides: list[str]) -> str | None:
    """The run folder to go on in, where torchrun has started the processes anew: that of trainer.trial_name, once it has a checkpoint."""
    cfg = load_config(config, overrides)
    folder = Path(cfg.trainer.outputs_dir) / cfg.name / (cfg.trainer.trial_name or "")
    return str(folder) if cfg.trainer.trial_name and (folder / "ckpt/last.pt").is_file() else None


def photographs(config: str | None, photos: str, masks: str | None, overrides: list[str]) -> list[str]:
    """`--photos`: a scene folder with cameras, at dataset.root_dir or inputs/<name>; returns the overrides that name it.

    The options are read first: a misspelt one is told at once, not after minutes of structure from motion.
    """
    from process_data.sfm import reconstruct, scene_folder

    refuse("--photos")
    given = [word.split("=", 1)[1] for word in overrides if word.startswith("dataset.root_dir=")]
    scene = Path(given[-1]) if given else scene_folder(Path(photos))
    overrides = [*overrides, f"dataset.root_dir={scene}"]
    load_config(config, overrides)
    reconstruct(Path(photos), scene, Path(masks) if masks else None)
    return overrides


def measured(distance: str, resume: str | None, overrides: list[str]) -> list[str]:
    """`--scale-distance`: the overrides with export.metres_per_unit."""
    if any(word.startswith("export.metres_per_unit=") for word in overrides):
        raise UserError("--scale-distance and export.metres_per_unit both set the scale; give one of them")
    return [*overrides, f"export.metres_per_unit={scale_from_distance(distance, resume)!r}"]


def auto_masks(config: str | None, overrides: list[str], model: str | None = None, norm: str | None = None) -> None:
    """`--auto-mask`: masks/ for the scene of the config; model, norm: `--mask-model`, `--mask-norm`."""
    from process_data.automask import write_masks

    refuse("--auto-mask")
    write_masks(load_config(config, overrides).dataset, log, model, norm or "imagenet")


def run_folder(cfg: Config, resume: Path | None, writes: bool = True, folder: Path | None = None) -> RunFolder:
    """The folder given; else that of a checkpoint, which goes on; else outputs/<name>/<trial>."""
    kind = RunFolder if writes else NoFolder
    if folder is not None:
        return kind(folder)
    if resume is not None and resume.parent.name == "ckpt":
        return kind(resume.parent.parent)
    runs, stamp = Path(cfg.trainer.outputs_dir) / cfg.name, time.strftime("%Y%m%d-%H%M%S")
    trial = cfg.trainer.trial_name or unused(runs, f"{cfg.tag}@{stamp}" if cfg.tag else stamp)
    return kind(runs / trial)


def unused(folder: Path, name: str) -> str:
    """The name, with -2, -3, ... where it is taken: a clock that was set back gives a time of day twice, and no run may lose its folder."""
    return next(n for n in itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2))) if not (folder / n).exists())


def trained_frame(scene: Scene, run: RunFolder) -> Scene:
    """The scene in the unit sphere that the run folder's checkpoint was trained in, by its scene.json where there is one."""
    try:
        to_world = np.array(json.loads(read_file(run / "scene.json"))["to_world"], float)
        kept = in_frame(scene, to_world)
    except FileNotFoundError:
        return scene
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError):
        log.warning("%s: damaged; the checkpoint's unit sphere is taken from the options", run / "scene.json")
        return scene
    if kept is not scene and not np.allclose(to_world, scene.to_world, rtol=1e-4, atol=1e-4 * np.abs(to_world).max()):
        log.warning(
            "the unit sphere of the checkpoint is kept (%s); other values of dataset.center and dataset.radius have no effect",
            run / "scene.json",
        )
    return kept


def record_scene(scene: Scene, cfg: Config, run: RunFolder) -> None:
    """Write scene.json (the sphere in world units, the split, the scale) and images/scene.png, to check before an hour is spent."""
    facts = {
        "layout": cfg.dataset.name,
        "to_world": scene.to_world.tolist(),
        "train": scene.train,
        "test": scene.test,
        "names": scene.names,
        "arbitrary_world": scene.arbitrary_world,
        "metres_per_unit": metres_per_unit(cfg.export, scene)[0],
    }
    run.record("scene.json", json.dumps(facts, indent=1).encode())
    write_png(run / "images/scene.png", scene_picture(scene, cfg.model.radius))
    log.info("cameras, points and sphere: %s", run / "images/scene.png")


def onward(job: Job, run: RunFolder, trainer: Trainer | None, flags: str) -> str:
    """How to go on after a signal; flags: what was asked for besides training."""
    if job.onward:
        return job.onward
    newest = run.root if trainer is not None and trainer.kept else job.path
    if newest is None:
        return "there is no checkpoint yet, start again with the same command"
    return f"go on with: python run.py --train --resume {newest}{flags}"


def trainer_of(job: Job, scene: Scene, run: RunFolder, device: torch.device, ranks: Ranks) -> Trainer:
    """The trainer of a job, at the step of its checkpoint where there is one; the run folder then says what is trained."""
    began = time.perf_counter()
    scene, cfg = ranks.in_turn(lambda: with_surface(job, scene, run, ranks.first))
    took = time.perf_counter() - began
    run.record_source(to_yaml(cfg))
    if ranks.first:
        record_scene(scene, cfg, run)
    ranks.check_same([*scene.to_world.flatten().tolist(), float(len(scene.train))], "the scene")
    trainer = Trainer(build_system(cfg, device, scene), scene, cfg, run, device, ranks)
    trainer.spent = took
    if job.state and job.path:
        trainer.load(job.state, job.path)
        log.info("resuming at step %d, %.1f minutes of training", trainer.clock.step, trainer.clock.seconds / 60)
    return trainer


def execute(job: Job, train: bool, test: bool, mesh: bool, film: bool = True, view: int | None = None, whole: bool = False) -> int:
    """Train and/or test (with a video where film is true) and/or mesh; returns the exit code (128 + signal when one stopped the training).

    view: port of a page that shows the training. whole: the test is at full size, however long it takes, with LPIPS where its weights are
    here, and ends in a table.
    """
    cfg, state, path, ranks = job.cfg, job.state, job.path, start()
    flags = "".join(f" --{name}" for name, on in (("test", test), ("mesh", mesh), ("no-video", not film)) if on)
    trainer: Trainer | None = None
    if view is not None:
        refuse("--view")
    if not (train or ranks.first):  # test and mesh are the work of one process
        return 0
    threads = setup_threads(ranks.threads(cfg.trainer.threads))
    device = ranks.device(cfg.trainer.device) if train else pick_device(cfg.trainer.device)
    run = run_folder(cfg, path, ranks.first, job.folder)
    if train and not ranks.alone:  # a name by the time of day differs between them
        name = ranks.name_from_first(run.root.name)
        run = run if ranks.first else NoFolder(run.root.parent / name)
    log.info("run folder %s; device %s, %d CPU threads; seed %s; commit %s", run.root, device, threads, cfg.seed, commit()[:10])
    try:
        scene = ranks.in_turn(lambda: load_scene(cfg.dataset, cfg.model.radius)) if train else load_scene(cfg.dataset, cfg.model.radius)
        scene = cameras_of_shape(trained_frame(scene, run) if state else scene, cfg, run, not state, ranks.first)
        if train:
            trainer = trainer_of(job, scene, run, device, ranks)
            scene, cfg = trainer.scene, trainer.cfg
            with live_view(trainer, view if ranks.first else None):
                complete = trainer.train()
            ranks.leave()
            if not ranks.first:
                return 0 if complete else 128 + trainer.stop_signal
            if not complete:
                log.info("stopped at step %d; %s", trainer.clock.step, onward(job, run, trainer, flags))
                return 128 + trainer.stop_signal
            log.info(
                "trained %d steps in %.1f minutes, %d skipped -> %s",
                trainer.clock.step,
                trainer.clock.seconds / 60,
                trainer.skipped,
                run / "ckpt/last.pt",
            )
            system, trained = trainer.system, trainer.clock.seconds
            test, mesh = test or cfg.trainer.finish, mesh or cfg.trainer.finish
        else:
            assert state is not None and path is not None
            scene, cfg = with_surface(job, scene, run, False, train=False)
            system = restore_system(cfg, device, state, path, scene)
            system.prepare(scene)
            trained = checkpoint.seconds_trained(state, path)
        finish(system, scene, cfg, run, device, trained, Wanted(test, mesh, film, whole))
        return 0
    except KeyboardInterrupt as stop:
        return told(stop, onward(job, run, trainer, flags)) if train else told(stop)
    finally:
        run.close()


def relit(
    resume: str, overrides: list[str], hdr: str | None = None, blender: str | None = None, poses: str | None = None,
    seconds: float = math.inf,
) -> int:  # fmt: skip
    """`--relight --resume CKPT --hdr LIGHT`: pictures and a video in the run folder; without a light under the recovered one and another.

    The photographs are not needed. seconds: where the pictures take longer, there are fewer of them, and they are smaller.
    """
    from systems.relight import relight
    from systems.turntable import fitted, lights

    refuse("--relight")
    job = prepare(None, resume, overrides)
    cfg, state, path = job.cfg, job.state, job.path
    assert state is not None and path is not None
    if cfg.model.name != "material":
        whole = checkpoint.whole_run(path)
        how = f"--train --resume {whole}" if whole else "--config confs/nero-material.yaml"
        raise UserError(f"--relight: {path} is of model.name={cfg.model.name}; train a material first: {how}")
    setup_threads(cfg.trainer.threads)
    device = pick_device(cfg.trainer.device)
    run = run_folder(cfg, path)
    try:
        system = restore_system(cfg, device, state, path)
        assert isinstance(system.model, MaterialModel)
        system.model.set_frame()
        found = [hdr] if hdr else lights(system.model, cfg, run)
        if math.isfinite(seconds):
            cfg = fitted(system.model, cfg, seconds / len(found), [word.partition("=")[0] for word in overrides])
        for light in found:
            relight(system.model, cfg, run, light, blender, poses)
        return 0
    finally:
        run.close()


def looked_at(resume: str, overrides: list[str], port: int) -> int:
    """`--view --resume CKPT`: a page that shows a run, until Ctrl-C."""
    job = prepare(None, resume, overrides)
    cfg, state, path = job.cfg, job.state, job.path
    assert state is not None and path is not None
    setup_threads(cfg.trainer.threads)
    device = pick_device(cfg.trainer.device)
    run = run_folder(cfg, path)
    try:
        scene = cameras_of_shape(trained_frame(load_scene(cfg.dataset, cfg.model.radius), run), cfg, run, False, False)
        system = restore_system(cfg, device, state, path, scene)
        system.prepare(scene)
        look(system, refined(system, scene), cfg, run, device, port)
        return 0
    finally:
        run.close()
