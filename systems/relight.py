"""`--relight`: pictures of a recovered material under another environment map, by Blender or by the embedded renderer."""

import importlib.util
import json
import logging
import math
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from confs.schema import Config
from models.lights import EnvironmentMap
from models.material import MaterialModel
from process_data.poses import circle, move, read_poses
from systems.embedded import render_relit
from systems.evaluate import write_video
from systems.material_export import bake, gltf
from utils.errors import UserError
from utils.hdr import read_light
from utils.image import read_raster, write_png
from utils.log import RunFolder
from utils.rays import Cameras

log = logging.getLogger("neus")
SCRIPT = Path(__file__).parent.parent / "utils/blender_scene.py"


def find_blender(given: str | None) -> list[str] | None:
    """The command that runs SCRIPT: with `--blender` (Blender, or a Python with bpy), else a Blender on the path, else this Python's bpy.

    None where there is none of these. Raises UserError when `given` is not a program.
    """
    if given:
        program = shutil.which(given)
        if program is None:
            raise UserError(f"--blender {given}: no such program; give the path of Blender, or of a Python that has bpy")
        if Path(program).name.startswith("python"):
            return [program, str(SCRIPT)]
    else:
        program = shutil.which("blender")
        if program is None:
            return [sys.executable, str(SCRIPT)] if importlib.util.find_spec("bpy") else None
    return [program, "--background", "--factory-startup", "--python-exit-code", "9", "--python", str(SCRIPT), "--"]


def cameras_for(cfg: Config, model: MaterialModel, poses: str | None) -> tuple[Cameras, list[str]]:
    """Cameras in the world, float64, with their names: those of the file `poses`, else a circle around the object."""
    r, size = cfg.relight, (cfg.relight.width, cfg.relight.height)
    if poses:
        return read_poses(poses, size)
    cameras = circle(r.frames, size, r.elevation, r.distance * cfg.model.radius)
    return move(cameras, model.to_world.cpu()), [f"{i:03d}" for i in range(r.frames)]


def folder_name(hdr: str) -> str:
    """The name of the light map without its ending; "light" where that would lead elsewhere, and cut where no file may be called so."""
    name = Path(hdr).stem[:50]
    return name if name.strip(".") else "light"


def relight(model: MaterialModel, cfg: Config, run: RunFolder, hdr: str, blender: str | None, poses: str | None) -> Path:
    """Write pictures and the video relight/<light>.mp4; returns the folder of the pictures. Raises UserError."""
    light = read_light(hdr)
    poses = poses or cfg.relight.poses
    command = None if cfg.relight.engine == "embedded" and not blender else find_blender(blender)
    if cfg.relight.engine == "blender" and command is None:
        raise UserError(
            "relight.engine=blender, but no Blender was found; give --blender PATH, of Blender or of a Python 3.11 with bpy==5.0.1"
        )
    cameras, names = cameras_for(cfg, model, poses)
    folder = run / f"relight/{folder_name(hdr)}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.png").unlink(missing_ok=True)
    if command:
        by_blender(command, model, cfg, Path(hdr).resolve(), cameras, names, folder)
    else:
        log.info(
            "relighting with the embedded renderer (%s)",
            "relight.engine=embedded" if cfg.relight.engine == "embedded" else "no Blender was found; give --blender PATH to use one",
        )
        by_embedded(model, cfg, light, cameras, names, folder)
    frames = [np.asarray(_over_white(read_raster(folder / f"{name}.png"))) for name in names]
    video = write_video(folder.with_suffix(".mp4"), frames, cfg.relight.fps)
    log.info("relit: %d pictures -> %s; %s", len(names), folder, video)
    return folder


def _over_white(raster: np.ndarray) -> np.ndarray:
    """RGB or RGBA uint8 [H, W, C] -> RGB over a white background."""
    alpha = raster[..., 3:].astype(np.float32) / 255 if raster.shape[2] == 4 else 1.0
    return np.rint(raster[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def by_embedded(model: MaterialModel, cfg: Config, light: np.ndarray, cameras: Cameras, names: list[str], folder: Path) -> None:
    """Render with the embedded renderer."""
    r, device = cfg.relight, model.local.device
    rotation = model.to_world[:3, :3].cpu()
    rotation = (rotation / torch.linalg.det(rotation).abs() ** (1 / 3)).float()
    angle = math.radians(r.rotation)
    about_z = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    environment = EnvironmentMap(torch.from_numpy(light * np.float32(r.strength)).to(device), rotation.T @ about_z)
    local = move(cameras, torch.linalg.inv(model.to_world.cpu()))
    local = replace(local, K=local.K.float(), c2w=local.c2w.float())
    for i, name in enumerate(tqdm(names, desc="relight", leave=False)):
        write_png(folder / f"{name}.png", render_relit(model, environment, local, i, r.samples, r.transparent))


def blender_frame(cameras: Cameras, i: int, name: str) -> dict:
    """Camera i in the format of `utils/blender_scene.py`: OpenGL axes, focal length in pixels, shift in image widths."""
    c2w, K = cameras.c2w[i].double(), cameras.K[i].double()
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3], matrix[:3, 3] = c2w[:, :3] @ torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)), c2w[:, 3]
    shift = [float((cameras.width - 1) / 2 - K[0, 2]) / cameras.width, float(K[1, 2] - (cameras.height - 1) / 2) / cameras.width]
    return {"name": name, "camera_to_world": matrix.tolist(), "focal": float(K[0, 0]), "shift": shift}


def by_blender(command: list[str], model: MaterialModel, cfg: Config, hdr: Path, cameras: Cameras, names: list[str], folder: Path) -> None:
    """Write a job, run Blender on it and check for the pictures. Raises UserError with Blender's last message where one is missing."""
    r, folder = cfg.relight, folder.resolve()
    with tempfile.TemporaryDirectory() as work:
        temporary = Path(work)
        (temporary / "mesh.glb").write_bytes(gltf(model, bake(model, r.texture)))
        far = float((cameras.c2w[:, :, 3] - model.to_world[:3, 3].cpu()).norm(dim=1).max())
        job = {
            "mesh": str(temporary / "mesh.glb"), "hdr": str(hdr), "out": str(folder), "strength": r.strength, "rotation": r.rotation,
            "samples": r.samples, "width": cameras.width, "height": cameras.height, "transparent": r.transparent, "device": r.device,
            "threads": cfg.trainer.threads, "clip": [far * 1e-3, far * 1e3],
            "frames": [blender_frame(cameras, i, name) for i, name in enumerate(names)],
        }  # fmt: skip
        (temporary / "job.json").write_text(json.dumps(job))
        log.info("relighting with %s", Path(command[0]).name if len(command) > 2 else f"bpy of {command[0]}")
        message = _run([*command, str(temporary / "job.json")], r.minutes)
    absent = [name for name in names if not (folder / f"{name}.png").is_file()]
    if absent:
        raise UserError(
            f"{command[0]} exited without an error but left {len(absent)} of {len(names)} pictures out "
            f"({message or 'no output'}); check that it is Blender or a Python with bpy"
        )


def _run(command: list[str], minutes: float) -> str:
    """Run a command and return its last message. Raises UserError when it cannot be started, fails or exceeds the time."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60 * minutes)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{command[0]} was stopped after {minutes:g} minutes; raise relight.minutes, or lower relight.samples or relight.frames"
        ) from None
    except OSError as error:
        raise UserError(
            f"--blender {command[0]}: cannot be run ({error.strerror or error}); give the path of Blender, or of a Python that has bpy"
        ) from None
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "error" in line]
    last = (errors or lines or [""])[-1][:300]
    for line in lines:
        if line.startswith("RELIGHT blender"):
            log.info("%s", line.removeprefix("RELIGHT "))
    if done.returncode:
        raise UserError(f"{command[0]} failed with exit code {done.returncode}: {last or 'no output'}")
    return last
