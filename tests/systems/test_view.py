"""`--view`: what the page shows, who computes it and when; a training is the same with and without it."""

import importlib.util
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

import run as command
from process_data.load import load_scene
from process_data.rays import view_rays
from process_data.region import standing
from systems import view_mesh, view_scene
from systems.cli import parse
from systems.view_page import HOST, free_port
from systems.view_requests import Requests
from tests.systems.test_train import TINY, config, same, trainer
from utils.errors import UserError
from utils.image import read_rgb
from utils.rays import Cameras

needs_viser = pytest.mark.skipif(importlib.util.find_spec("viser") is None, reason="viser is not installed")


# ---- without viser ----


def test_without_viser_one_sentence_before_the_training(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "viser", None)
    assert command.main(["--train", "--view", f"trainer.outputs_dir={tmp_path}", "dataset.root_dir=nowhere"]) == 2
    text = "".join(capsys.readouterr())
    assert "pip install viser==1.1.1" in text and "Traceback" not in text and "nowhere" not in text and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["--view"], "--view goes with --train, or alone with --resume"),
        (["--view", "--test", "--resume", "x"], "--view goes with --train, or alone"),
        (["--view-port", "90", "--train", "dataset.root_dir=x"], "--view-port goes with --view"),
        (["--view", "--view-port", "70000", "--resume", "x"], "1..65535, got 70000"),
        (["--view", "--eval", "x", "--gt", "y"], "--eval does not go with --view"),
    ],
)
def test_flags_that_do_not_go_together(words, pattern):
    with pytest.raises(UserError, match=pattern):
        parse(words)


def test_a_visitors_camera_is_the_photographs_camera_where_it_stands_there(tiny_scene):
    """Through the page and back: the same rays, upright or not."""
    scene = load_scene(config(tiny_scene, "x").dataset)
    turn = standing(np.array([0.6, 0.0, 0.8])).T
    wxyz, position = view_scene.camera_pose(scene.cameras.c2w[3].double().numpy(), turn)
    back = view_scene.visitor_camera(wxyz, position, 0.8, 4 / 3, 30, turn)
    assert torch.allclose(back.c2w[0], scene.cameras.c2w[3], atol=1e-6) and back.size(0) == (40, 30)
    dirs = view_rays(back, 0, 1.0).dirs.view(30, 40, 3)
    vertical = torch.acos((dirs[0, 20] * dirs[-1, 20]).sum())
    assert float(vertical) == pytest.approx(2 * np.arctan(29 / 30 * np.tan(0.4)), abs=2e-3)  # from the middle of a pixel to that of another
    assert torch.allclose(torch.nn.functional.normalize(dirs.mean((0, 1)), dim=0), back.c2w[0, :, 2], atol=1e-5)


def test_the_page_stands_upright(tiny_scene):
    """Cameras on a ring around the z axis; a direction that was set is up whatever the cameras say."""
    cfg = config(tiny_scene, "x")
    turn = view_scene.upright(load_scene(cfg.dataset), cfg)
    assert (turn @ [0, 0, 1])[2] > 0.97 and np.allclose(turn @ turn.T, np.eye(3))
    cfg = config(tiny_scene, "x", "dataset.up=[1,0,0]")
    scene = load_scene(cfg.dataset)
    in_sphere = scene.to_world.numpy()[:3, :3].T @ [1, 0, 0]
    assert np.allclose(view_scene.upright(scene, cfg) @ in_sphere / np.linalg.norm(in_sphere), [0, 0, 1], atol=1e-6)


def test_a_new_run_with_the_written_options_has_the_sphere_of_the_page(tiny_scene):
    cfg = config(tiny_scene, "x", "trainer.trial_name=t")
    scene = load_scene(cfg.dataset)
    turn = view_scene.upright(scene, cfg)
    on_page, factor = turn @ [0.2, -0.1, 0.3], 0.5
    overrides = view_scene.region_overrides(*view_scene.region_in_world(on_page, factor, scene, turn), cfg)
    assert overrides == ["dataset.center=[10.6,-20.3,30.9]", "dataset.radius=1.5", "trainer.trial_name=null"]  # 3 x + (10, -20, 30)
    again = load_scene(config(tiny_scene, "x", *overrides).dataset)
    assert torch.allclose(again.to_world[:3, 3], scene.to_world[:3] @ torch.tensor([0.2, -0.1, 0.3, 1.0]).double())
    assert float(torch.det(again.to_world[:3, :3])) == pytest.approx(1.5**3)


def test_the_browsers_file_has_colours_that_the_film_curve_turns_into_those_of_the_mesh():
    box = trimesh.creation.box()
    box = trimesh.Trimesh(box.vertices, box.faces, vertex_colors=np.tile([[255, 188, 0, 255]], (8, 1)), process=False)
    data = view_mesh.glb(box, True)
    assert len(data) == int.from_bytes(data[8:12], "little") and len(data) % 4 == 0
    tree = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
    assert "KHR_materials_unlit" in tree["materials"][0]["extensions"]
    view = tree["bufferViews"][tree["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
    start = 20 + int.from_bytes(data[12:16], "little") + 8 + view["byteOffset"]
    colour = np.frombuffer(data[start : start + view["byteLength"]], np.float32).reshape(8, 3)
    x = colour / 0.6 @ view_mesh.A.T
    linear = (x * (x + 0.0245786) - 0.000090537) / (x * (0.983729 * x + 0.432951) + 0.238081) @ view_mesh.B.T
    assert np.allclose(linear, [[1, 0.5029, 0]], atol=1e-3)  # ((188 / 255 + 0.055) / 1.055) ** 2.4
    loaded = next(iter(trimesh.load(io.BytesIO(view_mesh.glb(box, False)), file_type="glb", process=False).geometry.values()))
    assert np.allclose(loaded.vertices, box.vertices) and np.array_equal(loaded.faces, box.faces)


def test_a_large_mesh_is_thinned():
    ball = trimesh.creation.icosphere(4)
    colour = np.where(ball.vertices[:, :1] > 0, [[200, 0, 0, 255]], [[0, 0, 200, 255]])
    ball = trimesh.Trimesh(ball.vertices, ball.faces, vertex_colors=colour, process=False)
    thin = view_mesh.thinned(ball, 16)
    assert len(thin.faces) < 0.6 * len(ball.faces) and thin.is_watertight
    assert np.abs(np.linalg.norm(thin.vertices, axis=1) - 1).max() < 0.02
    right = np.asarray(thin.vertices)[:, 0] > 0.2
    assert (np.asarray(thin.visual.vertex_colors)[right, 0] == 200).all()


def test_the_curve_follows_the_file_and_goes_back_with_a_resumed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    curve = view_scene.Curve(path)
    assert not curve.read() and len(curve.points()[0]) == 0

    def add(*rows, end="\n"):
        with open(path, "a") as file:
            file.write("\n".join(json.dumps(row) for row in rows) + end)

    add(*({"step": s, "loss": 1 / s, "psnr": 10.0 + s, "seconds": s} for s in (1, 2, 3)), {"step": 3, "val/psnr": 7})
    assert curve.read() and curve.points()[0].tolist() == [1, 2, 3] and not curve.read()
    add({"step": 2, "loss": 5.0, "psnr": 20.0, "seconds": 2}, {"step": 4, "loss": 1.0, "psnr": 9.0}, end="")
    assert curve.read()  # the last line is not complete
    step, loss, psnr = curve.points()
    assert step.tolist() == [1, 2] and loss.tolist() == [1, 5] and psnr.tolist() == [11, 20]
    assert curve.points(1)[1].tolist() == [3]


def test_a_request_replaces_the_older_one_of_its_key_and_waits_until_it_is_ready():
    requests, done = Requests(), []
    requests.put("a", lambda: done.append("old"))
    requests.put("b", lambda: done.append("b"))
    requests.put("a", lambda: done.append("new"), delay=0.1)
    requests.take()()
    assert done == ["b"] and requests.take() is None and requests.has("a")
    time.sleep(0.11)
    requests.take()()
    assert done == ["b", "new"] and not requests.waiting


def test_the_next_free_port_is_taken():
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) > port


# ---- with viser ----


class Visitor:
    """A browser, as far as the server can tell: it is somewhere, and clicks."""

    def __init__(self, page, aspect=(60, 40), position=(0.0, -3.0, 0.0)):
        from websockets.sync.client import connect

        self.page, before = page, set(page.visitors())
        self.socket = connect(
            page.url.replace("http", "ws"), subprotocols=[f"viser-v{importlib.import_module('viser').__version__}"], max_size=None
        )
        self.reader = threading.Thread(target=lambda: [None for _ in self.socket], daemon=True)
        self.reader.start()
        self.stand(position, aspect)
        until(lambda: set(page.visitors()) - before)
        (self.number,) = set(page.visitors()) - before

    def send(self, kind, **values):
        import msgspec

        self.socket.send(msgspec.msgpack.encode({"type": kind, **values}))

    def stand(self, position, aspect=(60, 40)):
        """Look at the middle along +y, from -y; z is up."""
        self.send(
            "ViewerCameraMessage", wxyz=[0.5**0.5, -(0.5**0.5), 0.0, 0.0], position=list(position), fov=0.8, near=0.01, far=100.0,
            image_height=aspect[1], image_width=aspect[0], look_at=[0.0, 0.0, 0.0], up_direction=[0.0, 0.0, 1.0],
        )  # fmt: skip

    def set(self, control, value=True):
        self.send("GuiUpdateMessage", uuid=control._impl.uuid, updates={"value": value})

    def leave(self):
        self.socket.close()
        until(lambda: self.number not in self.page.visitors())


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def watched(tiny_scene, tmp_path):
    """make(*overrides) -> (trainer, its view); the page is closed at the end."""
    pytest.importorskip("viser")
    from systems.view import LiveView

    made = []

    def make(*overrides):
        t = trainer(config(tiny_scene, tmp_path, "trainer.max_steps=12", *overrides), tmp_path / f"run{len(made)}")
        view = LiveView(t, 8080)
        t.between.append(view)
        made.append(view)
        return t, view

    yield make
    for view in made:
        view.page.close()


def at_step(t, step, act):
    """Let `act` run after this step, before the view looks."""
    t.between.insert(0, lambda: act() if t.clock.step == step else None)


def test_the_page_is_served_on_this_machine_alone(watched):
    t, view = watched()
    with urllib.request.urlopen(view.page.url, timeout=20) as answer:
        assert answer.status == 200 and b"<html" in answer.read(2000).lower()
    assert view.page.url.startswith("http://127.0.0.1:") and view.page.server.get_host() == "127.0.0.1"
    port = view.page.server.get_port()
    if os.path.exists("/proc/net/tcp"):
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        assert [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    scene = view.page.server.scene
    assert all(scene.get_handle_by_name(name) for name in ("/region", "/sphere", "/cameras"))
    kinds = [("held out" if i in t.scene.test else "train") for i in range(8)]
    frusta = [scene.get_handle_by_name(f"/cameras/{kind} {i:03d} {t.scene.names[i]}") for i, kind in enumerate(kinds)]
    assert all(frusta) and len({tuple(f.color) for f in frusta}) == 2 and frusta[0].image.shape == (24, 32, 3)
    assert np.allclose(frusta[3].position, view.turn @ t.scene.cameras.c2w[3, :, 3].numpy(), atol=1e-5)
    assert view.page.server.request_share_url() is None


def test_nobody_looking_nothing_is_computed(watched, monkeypatch):
    t, view = watched()
    monkeypatch.setattr("systems.view.live_mesh", lambda *a: pytest.fail("a mesh was extracted"))
    monkeypatch.setattr(view, "tell", lambda: pytest.fail("the figures were read"))
    assert t.train() and view.page.mesh is None


def test_a_training_is_the_same_with_and_without_visitors(watched):
    """A visitor from step 3 on has a mesh and a picture; the weights are bitwise those of a run that nobody saw."""
    t, view = watched()
    pictures, here = [], []
    real = view.page.put_picture
    view.page.put_picture = lambda number, picture: (pictures.append((number, picture, threading.get_ident())), real(number, picture))

    def look():
        here.append(Visitor(view.page))
        view()  # the mesh
        here[0].set(view.page.rows, 60)
        here[0].set(view.page.show, "render: colour")
        until(lambda: view.page.requests.waiting and view.page.rows.value == 60)
        time.sleep(0.3)

    at_step(t, 3, look)
    assert t.train()
    here[0].leave()
    shapes = [p.shape for _, p, _ in pictures if p is not None]
    assert shapes[:2] == [(15, 22, 3), (60, 90, 3)] and {who for *_, who in pictures} == {threading.get_ident()}
    assert view.page.server.scene.get_handle_by_name("/mesh") and len(view.page.mesh.faces) > 500
    picture = pictures[-1][1]
    assert picture[30, 45].max() > 40 and picture[2, 2].max() == 0  # the ellipsoid in the middle, nothing in the corner
    alone, _ = watched()
    assert alone.train() and same(alone.system.model.state_dict(), t.system.model.state_dict())


def test_a_picture_is_what_the_camera_of_a_photograph_renders(watched):
    t, view = watched()
    c2w = t.scene.cameras.c2w[2].double().numpy()
    wxyz, position = view_scene.camera_pose(c2w, view.turn)
    camera = type("Camera", (), {"wxyz": wxyz, "position": position, "fov": 0.7, "aspect": 1.5})
    view.page.show.value = "render: colour"
    got = view.picture(camera, 20)
    focal = 10 / np.tan(0.35)
    K = torch.tensor([[focal, 0, 14.5], [0, focal, 9.5], [0, 0, 1]], dtype=torch.float32)
    rays = view_rays(Cameras(K[None], t.scene.cameras.c2w[2:3], 20, 30), 0, 1.0)
    rgb = t.system.render_view(rays, view.background, t.progress).rgb.view(20, 30, 3)
    assert np.abs(got.astype(int) - (rgb * 255).round().numpy()).max() <= 1
    view.page.show.value = "render: normals"
    assert np.abs(view.picture(camera, 20).astype(int) - got).max() > 20


def test_pause_stops_the_steps_and_their_clock_until_go_on(watched):
    t, view = watched("trainer.max_steps=8")
    seen = []

    def click():
        visitor = Visitor(view.page)
        visitor.set(view.page.pause)
        until(lambda: view.page.paused)

        def later():
            time.sleep(0.3)
            seen.append((t.clock.step, t.clock.seconds))
            time.sleep(0.5)
            seen.append((t.clock.step, t.clock.seconds))
            seen.append(view.page.status.content)
            visitor.set(view.page.pause)

        threading.Thread(target=later).start()

    at_step(t, 4, click)
    assert t.train() and t.clock.step == 8
    assert seen[0] == seen[1] and seen[0][0] == 4 and seen[2].startswith("**paused** · step 4 of 8")


def test_sigterm_ends_a_paused_training_as_usual(watched):
    t, view = watched()
    at_step(t, 4, lambda: (view.page._set_paused(True), threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()))
    assert not t.train() and t.stop_signal == signal.SIGTERM
    assert t.clock.step == 4 and (t.run.root / "ckpt/last.pt").is_file()


def test_what_fails_in_a_look_does_not_end_the_training(watched, monkeypatch, caplog):
    t, view = watched("trainer.max_steps=6")

    def broken(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr("systems.view.live_mesh", broken)
    at_step(t, 2, lambda: Visitor(view.page))
    assert t.train() and "a request failed (RuntimeError: no memory)" in caplog.text


def test_the_region_is_written(watched):
    t, view = watched()
    visitor = Visitor(view.page)
    visitor.set(view.page.factor, 0.5)
    view.page.gizmo.position = view.turn @ [0.2, -0.1, 0.3]
    until(lambda: view.page.factor.value == 0.5 and np.isclose(view.page.sphere.scale, 0.5))
    visitor.set(view.page.write)
    until(lambda: view.page.requests.has(("write region",)))
    view()
    lines = (t.run.root / "region.txt").read_text().splitlines()
    assert lines[:2] == ["dataset.center=[10.6,-20.3,30.9]", "dataset.radius=1.5"]
    assert lines[-1].startswith(f"# python run.py --config {t.run.root}/config.yaml --train 'dataset.center=[10.6,-20.3,30.9]'")
    assert "centre (10.6, -20.3, 30.9), radius 1.5" in view.page.region_text.content and lines[-1][2:] in view.page.written.content


@pytest.fixture
def finished(tiny_scene, tmp_path):
    """A run folder with a checkpoint and no mesh."""
    words = [*TINY, f"dataset.root_dir={tiny_scene}", f"trainer.outputs_dir={tmp_path}", "trainer.trial_name=t", "name=n"]
    assert command.main(["--config", "confs/dtu-wmask.yaml", "--train", *words, "trainer.max_steps=2", "trainer.finish=false"]) == 0
    return tmp_path / "n/t"


@needs_viser
def test_a_finished_run_is_looked_at_until_ctrl_c(finished, monkeypatch, capsys):
    from systems import view

    seen, made, build = {}, [], view.Page
    monkeypatch.setattr(view, "Page", lambda *a: made.append(build(*a)) or made[0])

    def wait(*_):
        seen["answer"] = urllib.request.urlopen(made[0].url, timeout=20).status
        seen["mesh"], seen["pause"] = made[0].server.scene.get_handle_by_name("/mesh"), made[0].pause.visible
        raise KeyboardInterrupt

    monkeypatch.setattr(Requests, "wait", wait)
    assert command.main(["--view", "--resume", str(finished), "--view-port", "8123"]) == 0
    text = "".join(capsys.readouterr())
    assert seen["answer"] == 200 and seen["mesh"] and not seen["pause"]
    assert text.rstrip().endswith("view: closed") and "viser" not in text and "a coarse mesh is shown" in text


@pytest.mark.slow
def test_a_browser_shows_the_mesh_in_its_own_colours(watched, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium")
    _, view = watched()
    view.page.cameras.visible = view.page.sphere.visible = False
    ball = trimesh.creation.icosphere(3)
    view.page.put_mesh(trimesh.Trimesh(ball.vertices, ball.faces, vertex_colors=np.tile([[200, 60, 30, 255]], (len(ball.vertices), 1))))
    flags = "--headless=new --no-sandbox --disable-gpu --use-angle=swiftshader --enable-unsafe-swiftshader --disable-quic --no-first-run "
    flags += "--disable-background-networking --disable-component-update --disable-sync --window-size=640,480 --virtual-time-budget=15000"
    for _ in range(3):  # a busy machine draws late
        words = [browser, *flags.split(), f"--user-data-dir={tmp_path}/profile", f"--screenshot={tmp_path}/page.png", view.page.url]
        subprocess.run(words, capture_output=True, timeout=120, check=True)
        picture = read_rgb(tmp_path / "page.png").astype(int)
        if np.abs(picture[240, 240] - [200, 60, 30]).max() < 8:
            break
    assert np.abs(picture[230:250, 230:250] - [200, 60, 30]).max() < 8 and picture[470, 20].min() > 240
