"""`--view`: a live look at a training, or at a finished run, through a page in the browser.

All work on the model is done here, by the thread that owns it: between training steps, or in a loop of its own.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from confs.schema import Config
from process_data.rays import view_rays
from systems.base import picture_background
from systems.cameras import refined
from systems.trainer import Trainer
from systems.validate import view_images
from systems.view_mesh import live_mesh, saved_mesh
from systems.view_page import COLOUR, DEPTH, Page
from systems.view_scene import Curve, region_command, region_in_world, region_overrides, upright, visitor_camera
from utils.errors import UserError
from utils.files import write_atomic
from utils.log import RunFolder
from utils.rays import Scene

log = logging.getLogger("neus")
EVERY = 25.0  # seconds of training between meshes
SHARE = 0.1  # most of the training time that meshes take
TOLD = 1.0  # seconds between looks at the figures
COARSE = 4  # a picture is first rendered with this part of its rows


class View:
    """Serves the visitors of a page."""

    def __init__(self, system, scene: Scene, cfg: Config, run: RunFolder, device: torch.device, port: int, live: bool = False):
        self.system, self.scene, self.cfg, self.run, self.device = system, scene, cfg, run, device
        self.turn = upright(scene, cfg)
        self.background = picture_background(cfg, scene).to(device)
        self.curve = Curve(run.root / "metrics.jsonl")
        self.page = Page(scene, self.turn, cfg.model.radius, port, run.root.name, live)
        self.page.handlers = {
            "render": self.render, "show": self.show, "region": self.region, "write region": self.write_region, "status": self.tell,
        }  # fmt: skip
        self.region()
        log.info("view: %s", self.page.url)

    def progress(self) -> float:
        """Where the run stands, for the model's schedules."""
        return 1.0

    def serve(self) -> None:
        """Do what is asked for and ready."""
        while (job := self.page.requests.take()) is not None:
            self.try_to(job)

    @staticmethod
    def try_to(job: Callable[[], None]) -> None:
        """What fails is told and forgotten: a look must not end a training."""
        try:
            job()
        except UserError as error:
            log.info("view: %s", error)
        except Exception as error:
            log.warning("view: a request failed (%s: %s)", type(error).__name__, str(error).split("\n")[0][:200])

    # ------------------------------------------------------------------ requests

    def render(self, visitor: int) -> None:
        """A picture from the visitor's camera, coarse first; given up where the camera has moved on meanwhile."""
        client = self.page.visitors().get(visitor)
        if client is None or not self.page.renders:
            return
        for rows in (self.page.rows.value // COARSE, self.page.rows.value):
            if self.page.requests.has(("render", visitor)):
                return
            self.page.put_picture(visitor, self.picture(client.camera, rows))
            client.flush()

    def picture(self, camera, rows: int) -> np.ndarray:
        """[rows, W, 3] uint8 of what the page shows, from a camera with wxyz, position, fov and aspect."""
        cameras = visitor_camera(camera.wxyz, camera.position, camera.fov, camera.aspect, rows, self.turn)
        rays = view_rays(cameras, 0, self.cfg.model.radius).to(self.device)
        render = self.system.render_view(rays, self.background, self.progress(), self.cfg.trainer.chunk)
        rgb, depth, normal = view_images(render, cameras.c2w[0], cameras.height, cameras.width)
        shown = self.page.show.value
        return (rgb if shown == COLOUR else depth if shown == DEPTH else normal).numpy()

    def show(self) -> None:
        """The mesh or rendered pictures, as the page's controls say."""
        self.page.put_mesh()
        for visitor in self.page.visitors():
            if self.page.renders:
                self.page.ask("render", visitor)
            else:
                self.page.put_picture(visitor, None)

    def region(self) -> None:
        self.page.put_region(*self._region())

    def _region(self) -> tuple[np.ndarray, float]:
        page = self.page
        return region_in_world(page.gizmo.position, page.factor.value, self.scene, self.turn)

    def write_region(self) -> None:
        """region.txt in the run folder: the options of the sphere as it stands on the page, and the command of a new run with them."""
        overrides = region_overrides(*self._region(), self.cfg)
        command, path = region_command(overrides, self.run.root), self.run / "region.txt"
        write_atomic(path, "\n".join([*overrides, "", f"# {command}", ""]).encode())
        self.page.put_written(overrides, path, command)
        log.info("view: %s -> %s; a new run with it: %s", " ".join(overrides), path, command)

    # ------------------------------------------------------------------ what is shown unasked

    def tell(self) -> None:
        """The figures and the curve."""
        if self.curve.read():
            self.page.put_curve(self.curve)
        self.page.status.content = self.words()

    def words(self) -> str:
        if not len(self.curve.rows):
            return ""
        step, _, psnr, seconds = self.curve.rows[-1]
        return f"step {step:.0f} · {seconds / 60:.1f} minutes · psnr {psnr:.1f}"

    def put_new_mesh(self) -> None:
        """Extract the mesh of the moment and show it. Raises UserError where there is no surface."""
        self.page.put_mesh(live_mesh(self.system, self.scene, self.cfg, self.device, self.progress()))

    def put_saved_mesh(self) -> None:
        """The mesh of the run folder, or a coarse one where there is none. Raises UserError."""
        path = self.run.root / "mesh/mesh.ply"
        if path.is_file():
            self.page.put_mesh(saved_mesh(path, self.scene))
        else:
            log.info("view: no mesh/mesh.ply in the run folder: a coarse mesh is shown")
            self.put_new_mesh()


class LiveView(View):
    """Looks at a training between its steps; where nobody looks it does nothing."""

    def __init__(self, trainer: Trainer, port: int):
        super().__init__(trainer.system, trainer.scene, trainer.cfg, trainer.run, trainer.device, port, live=True)
        self.trainer = trainer
        self.told = -TOLD
        self.due = 0.0  # seconds of training

    def progress(self) -> float:
        return self.trainer.progress

    def __call__(self) -> None:
        """After a step: serve, refresh, and stay while the training is paused."""
        if not (self.page.visitors() or self.page.requests.waiting or self.page.paused):
            return
        self._refresh()
        self.serve()
        if self.page.paused:
            self._stay()

    def _stay(self) -> None:
        log.info("view: paused at step %d", self.trainer.clock.step)
        while self.page.paused and not self.trainer.stop_signal:
            self.page.requests.wait(0.2)
            self.serve()
        if not self.trainer.stop_signal:
            log.info("view: going on")

    def _refresh(self) -> None:
        """Figures and mesh, where they are old and somebody looks."""
        if not self.page.visitors():
            return
        if time.monotonic() - self.told >= TOLD:
            self.try_to(self.tell)
            self.told = time.monotonic()
        seconds = self.trainer.clock.seconds
        if seconds >= self.due and not self.page.renders:
            began = time.monotonic()
            self.try_to(self.put_new_mesh)
            self.due = seconds + max(EVERY, (time.monotonic() - began) / SHARE)

    def put_new_mesh(self) -> None:
        super().put_new_mesh()
        if self.system.model.pose is not None:
            self.page.put_cameras(refined(self.system, self.scene).cameras)

    def words(self) -> str:
        t = self.trainer
        psnr = float(t.system.stats.get("psnr", float("nan")))
        state = "**paused** · " if self.page.paused else ""
        return f"{state}step {t.clock.step} of {t.cfg.trainer.max_steps} · {t.clock.seconds / 60:.1f} minutes · psnr {psnr:.1f}"


@contextlib.contextmanager
def live_view(trainer: Trainer, port: int | None) -> Iterator[None]:
    """`--train --view`: the page while the training runs; without a port nothing."""
    if port is None:
        yield
        return
    view = LiveView(trainer, port)
    trainer.between.append(view)
    try:
        yield
    finally:
        trainer.between.remove(view)
        view.page.close()
        log.info("view: closed; look at the result with: python run.py --view --resume %s", trainer.run.root)


def look(system, scene: Scene, cfg: Config, run: RunFolder, device: torch.device, port: int) -> None:
    """`--view --resume`: the page of a run, until Ctrl-C."""
    view = View(system, scene, cfg, run, device, port)
    try:
        view.try_to(view.put_saved_mesh)
        view.tell()
        log.info("view: Ctrl-C ends it")
        while True:
            view.page.requests.wait(1.0)
            view.serve()
    except KeyboardInterrupt:
        log.info("view: closed")
    finally:
        view.page.close()
