"""The page of `--view`: a viser server on this machine alone, its scene and its controls.

viser calls back from threads of its own. A callback leaves a note in `Requests` and returns; the thread that owns the model serves it.
"""

import contextlib
import io
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from systems.view_mesh import glb, vertex_colours
from systems.view_requests import SETTLED, Requests
from systems.view_scene import Curve, camera_pose, thumbnail
from utils.errors import UserError
from utils.rays import Cameras, Scene

HOST = "127.0.0.1"
TRIED = 100  # ports
MESH, SHAPE, COLOUR, NORMAL, DEPTH = SHOWN = ("mesh", "mesh without colours", "render: colour", "render: normals", "render: depth")
TRAIN_COLOUR, TEST_COLOUR = (70, 110, 200), (230, 120, 20)
ACCENT = "#2f6fdb"


def free_port(first: int) -> int:
    """The first port from `first` on that is free on this machine. Raises UserError."""
    last = min(first + TRIED - 1, 65535)
    for port in range(first, last + 1):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port
    raise UserError(f"--view-port: none of the ports {first} to {last} of {HOST} is free; give another one")


def start_server(port: int, label: str) -> Any:
    """A viser server on 127.0.0.1 that prints nothing and offers no public link to itself."""
    import viser

    with contextlib.redirect_stdout(io.StringIO()):
        server = viser.ViserServer(host=HOST, port=free_port(port), label=label, verbose=False)
    setattr(server, "request_share_url", lambda *_, **__: None)  # noqa: B010  a visitor could ask for a public address of the page
    server.gui.configure_theme(show_share_button=False, show_logo=False)
    server.scene.configure_default_lights(cast_shadow=False)
    return server


class Page:
    """The server with what it shows. asked: where callbacks leave their requests, by name:

    "render" (visitor's number), "show", "region", "write region".
    """

    def __init__(self, scene: Scene, turn: np.ndarray, radius: float, port: int, label: str, live: bool):
        self.turn, self.radius, self.requests = turn, radius, Requests()
        self.handlers: dict[str, Callable[..., None]] = {}
        self.server = start_server(port, label)
        self.url = f"http://{HOST}:{self.server.get_port()}"
        self.mesh: trimesh.Trimesh | None = None
        self.mesh_node: Any = None
        self.coloured = True
        self.paused = False
        self._controls(live)
        self._cameras(scene)
        self._region()
        self._first_look(scene)
        self.server.on_client_connect(self._arrived)

    def ask(self, name: str, *values: int, delay: float = 0.0) -> None:
        """Leave the request `name` for the thread that owns the model."""
        self.requests.put((name, *values), lambda: self.handlers[name](*values), delay)

    def visitors(self) -> dict[int, Any]:
        """The connected browsers, by number."""
        return self.server.get_clients()

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()

    # ------------------------------------------------------------------ what is built once

    def _controls(self, live: bool) -> None:
        gui = self.server.gui
        self.status = gui.add_markdown("")
        self.pause = gui.add_button("Pause", visible=live)
        self.pause.on_click(lambda _: self._set_paused(not self.paused))
        self.show = gui.add_dropdown("Show", SHOWN, initial_value=MESH)
        self.show.on_update(lambda _: self.ask("show"))
        self.rows = gui.add_slider("Rows of a render", 60, 720, 20, 240, hint="height of the picture in pixels; more takes longer")
        self.rows.on_update(lambda _: self._ask_renders())
        self.again = gui.add_button("Render again", hint="with the model of this moment")
        self.again.on_click(lambda _: self._ask_renders())
        photographs = gui.add_checkbox("Cameras", True, hint="blue: trained on; orange: held out. A click on one looks through it")
        photographs.on_update(lambda _: setattr(self.cameras, "visible", photographs.value))
        with gui.add_folder("Curves", expand_by_default=live):
            self.curves = {name: self._curve(name) for name in ("psnr", "loss")}
        with gui.add_folder("Region of interest", expand_by_default=live):
            self.region_shown = gui.add_checkbox("Sphere", True)
            self.region_moved = gui.add_checkbox("Move it", False, hint="arrows on the page that drag the sphere")
            self.factor = gui.add_slider("Radius", 0.1, 3.0, 0.01, 1.0, hint="over the radius of the sphere in use")
            self.region_text = gui.add_markdown("")
            self.write = gui.add_button("Write dataset.center, dataset.radius")
            self.written = gui.add_markdown("")

    def _curve(self, name: str) -> Any:
        empty = np.zeros(0)
        scales = {"x": {"time": False}, **({"y": {"distr": 3}} if name == "loss" else {})}
        series = ({"label": "step"}, {"label": name, "stroke": ACCENT, "width": 2})
        return self.server.gui.add_uplot((empty, empty), series, scales=scales, aspect=2.4, title=name)

    def _cameras(self, scene: Scene) -> None:
        distance = float(np.median(np.linalg.norm(scene.cameras.c2w[:, :, 3].numpy(), axis=1)))
        self.cameras = self.server.scene.add_frame("/cameras", show_axes=False)
        self.frusta = []
        for i, name in enumerate(scene.names):
            (w, h), K = scene.cameras.size(i), scene.cameras.K[i].numpy()
            wxyz, position = camera_pose(scene.cameras.c2w[i].double().numpy(), self.turn)
            fov = 2 * np.arctan(h / 2 / K[1, 1])
            frustum = self.server.scene.add_camera_frustum(
                f"/cameras/{'held out' if i in scene.test else 'train'} {i:03d} {name.replace('/', '_')}",
                fov=float(fov), aspect=w / h * float(K[1, 1] / K[0, 0]), scale=0.045 * distance, thickness=1.5, thickness_units="screen",
                color=TEST_COLOUR if i in scene.test else TRAIN_COLOUR, image=thumbnail(scene, i), jpeg_quality=80,
                wxyz=wxyz, position=position, cast_shadow=False, receive_shadow=False,
            )  # fmt: skip
            frustum.on_click(lambda event, pose=(wxyz, position, float(fov)): self._look_through(event.client, *pose))
            self.frusta.append(frustum)

    def _region(self) -> None:
        scene = self.server.scene
        self.gizmo = scene.add_transform_controls(
            "/region", scale=0.5 * self.radius, disable_rotations=True, depth_test=False, visible=False
        )
        # not below the gizmo, which hides with all below it
        self.sphere = scene.add_icosphere(
            "/sphere", self.radius, (120, 120, 120), subdivisions=3, wireframe=True, opacity=0.25, cast_shadow=False, receive_shadow=False
        )
        self.gizmo.on_update(lambda _: self._region_changed())
        self.factor.on_update(lambda _: self._region_changed())
        self.region_shown.on_update(lambda _: setattr(self.sphere, "visible", self.region_shown.value))
        self.region_moved.on_update(lambda _: setattr(self.gizmo, "visible", self.region_moved.value))
        self.write.on_click(lambda _: self.ask("write region"))

    def _region_changed(self) -> None:
        self.sphere.position = self.gizmo.position
        self.sphere.scale = self.factor.value
        self.ask("region")

    def _first_look(self, scene: Scene) -> None:
        centres = scene.cameras.c2w[:, :, 3].double().numpy() @ self.turn.T
        start = self.server.initial_camera
        x, y, z = 1.3 * centres[np.argsort(centres[:, 2])[len(centres) // 2]]  # of a middle height
        start.position = (0.9 * x - 0.43 * y, 0.9 * y + 0.43 * x, z + 0.3)  # 25 degrees beside it: its photograph hides nothing
        start.look_at, start.fov = (0.0, 0.0, 0.0), 0.9

    # ------------------------------------------------------------------ callbacks, in viser's threads

    def _arrived(self, client: Any) -> None:
        number = client.client_id
        client.camera.on_update(lambda _: self._ask_render(number))
        self._ask_render(number)

    def _set_paused(self, paused: bool) -> None:
        self.paused = paused
        self.pause.label = "Go on" if paused else "Pause"
        self.ask("status")

    def _ask_render(self, visitor: int) -> None:
        if self.renders:
            self.ask("render", visitor, delay=SETTLED)

    def _ask_renders(self) -> None:
        for visitor in self.visitors():
            self._ask_render(visitor)

    @staticmethod
    def _look_through(client: Any, wxyz: np.ndarray, position: np.ndarray, fov: float) -> None:
        if client is not None:
            with client.atomic():
                client.camera.position, client.camera.wxyz, client.camera.fov = position, wxyz, fov

    # ------------------------------------------------------------------ called by the thread that owns the model

    @property
    def renders(self) -> bool:
        """Whether rendered pictures are shown, not the mesh."""
        return self.show.value not in (MESH, SHAPE)

    def put_mesh(self, mesh: trimesh.Trimesh | None = None) -> None:
        """Show this mesh, in the unit sphere's frame, or again the one before, as the controls say."""
        coloured = self.show.value != SHAPE
        if self.mesh_node is not None and mesh is None and (coloured == self.coloured or self.renders):
            self.mesh_node.visible = not self.renders
            return
        self.mesh, self.coloured = mesh or self.mesh, coloured
        if self.mesh is None:
            return
        turn = np.eye(4)
        turn[:3, :3] = self.turn
        placed = trimesh.Trimesh(self.mesh.vertices @ self.turn.T, self.mesh.faces, vertex_colors=vertex_colours(self.mesh), process=False)
        data = glb(placed, coloured)
        self.mesh_node = self.server.scene.add_glb("/mesh", data, cast_shadow=False, receive_shadow=False, visible=not self.renders)

    def put_picture(self, visitor: int, picture: np.ndarray | None) -> None:
        """Behind the scene of one visitor: a picture [H, W, 3] uint8 seen from its camera, or none."""
        client = self.visitors().get(visitor)
        if client is not None:
            client.scene.set_background_image(picture, format="jpeg", jpeg_quality=85)

    def put_cameras(self, cameras: Cameras) -> None:
        """Move the frusta to cameras that were refined."""
        for frustum, c2w in zip(self.frusta, cameras.c2w.double().cpu().numpy()):
            frustum.wxyz, frustum.position = camera_pose(c2w, self.turn)

    def put_curve(self, curve: Curve) -> None:
        step, loss, psnr = curve.points()
        if len(step):
            self.curves["psnr"].data, self.curves["loss"].data = (step, psnr), (step, loss)

    def put_region(self, centre: np.ndarray, radius: float) -> None:
        shown = ", ".join(f"{v:.4g}" for v in centre)
        self.region_text.content = f"centre ({shown}), radius {radius:.4g} in the world's units"

    def put_written(self, overrides: list[str], path: Path, command: str) -> None:
        words = "\n".join(overrides)
        self.written.content = (
            f"Written to `{path}`. A new run with it:\n```\n{command}\n```\nor add to your command line:\n```\n{words}\n```"
        )
