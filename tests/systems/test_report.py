"""report.html: one file from the files of a run folder; foreign text stays text; parts that are missing are left out."""

import base64
import hashlib
import json
import logging
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import trimesh

from systems import report, report_curves, report_mesh, report_parts, report_views
from tests.scenes import ring_cameras
from utils.errors import UserError
from utils.image import sheet, write_png
from utils.log import RunFolder
from utils.mesh import save_mesh
from utils.mesh_files import mean_normals

EVIL = "<img src=x onerror=alert(1)>.png"
VOID = {"meta", "link", "img", "input", "br"}
UP_Y = {"up": [0, 1, 0], "toward": [1, 0.2, 0], "swing": 0}


class Page(HTMLParser):
    """Checks that elements are closed in order; collects tags, attributes, text and the content of scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.scripts, self.text, self.h2 = [], [], [], [], "", []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        else:
            self.text += data
            self.h2 += [data] if self.open and self.open[-1] == "h2" else []


def ball(subdivisions=2, radius=2.0):
    """A sphere around (10, 0, 0): red where y > 0, else blue."""
    mesh = trimesh.creation.icosphere(subdivisions, radius)
    red = np.asarray(mesh.vertices)[:, 1] > 0
    colours = np.where(red[:, None], [255, 0, 0, 255], [0, 0, 255, 255]).astype(np.uint8)
    return trimesh.Trimesh(np.asarray(mesh.vertices) + [10, 0, 0], mesh.faces, vertex_colors=colours, process=False)


def write_run(root, name="000.png", scene="spoon", warning="no masks found"):
    """A run folder with everything, made by hand."""
    (root / "mesh").mkdir(parents=True)
    photo, render = np.full((24, 32, 3), 100, np.uint8), np.full((24, 32, 3), 120, np.uint8)
    rows = []
    for view in (0, 8):
        write_png(root / f"test/{view:03d}.png", sheet([photo, render, render, photo]))
        rows.append({"view": view, "name": name, "size": [32, 24], "psnr": 22.25, "ssim": 0.8125, "psnr_masked": None})
    facts = {
        "test/metrics.json": {"psnr": 21.53, "ssim": 0.9135, "psnr_cc": 23.75, "psnr_masked": None, "held_out": True, "scale": 1.0, "views": rows},
        "mesh/metrics.json": {"chamfer": 0.01234, "normal_consistency": 0.975, "unit": 2.0, "fscore": {"0.0025": 0.5, "0.005": 0.75}},
        "mesh/confidence.json": {"advice": [f"Take more photographs of {name}"], "share_by_views": {"0": 0.25, "2": 0.75}, "summary": "Good."},
        "scene.json": {"layout": "dtu", "names": [name] * 9, "train": [1] * 7, "test": [0, 8], "to_world": np.eye(4).tolist(), "viewpoint": UP_Y,
                       "mesh": {"upright": False, "units": "metres", "world_to_mesh": np.eye(4).tolist()}},
    }  # fmt: skip
    for path, content in facts.items():
        (root / path).write_text(json.dumps(content))
    (root / "config.yaml").write_text(f"seed: 7\ndataset:\n  root_dir: 'inputs/{scene}'\n  apply_mask: true\nmodel:\n  name: neus\n")
    steps = [
        {"step": 50 * k, "seconds": 60.0 * k, "loss/rgb": 1 / k, "loss/eikonal": 0.1 / k, "psnr": 10.0 + k, "inv_s": 10.0 * k}
        for k in range(1, 6)
    ]
    (root / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*steps, {"step": 100, "val/psnr": 11.5}]) + '{"step": 300, "se'
    )
    lines = ["INFO run folder x; device cuda, 4 CPU threads; seed 7; commit abc", f"WARNING {warning}", f"WARNING {warning}",
             "INFO 9 images of 32x24: 0 GiB", "INFO trained 250 steps in 5.0 minutes, 0 skipped -> x",
             "INFO run folder x; device cpu, 2 CPU threads; seed 7; commit abc"]  # fmt: skip
    (root / "log.txt").write_text("".join(f"2026-01-02 03:04:05,678 {line}\n" for line in lines))
    (root / "commit.txt").write_text("0123456789abcdef0123\n")
    for picture in ("images/scene.png", "images/progress.png", "mesh/mesh.png", "mesh/confidence.png"):
        write_png(root / picture, photo)
    (root / "video.mp4").write_bytes(b"not really a video")
    save_mesh(ball(), root / "mesh/mesh.ply")
    return root


def text_of(root):
    return report.write_report(root).read_text()


def mesh_of(page):
    return json.loads(page.scripts[0])


def decoded(mesh, key, kind):
    return np.frombuffer(base64.b64decode(mesh[key]), kind).reshape(-1, 3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return text_of(write_run(tmp_path_factory.mktemp("report") / "run"))


def test_the_page_is_whole_and_needs_no_network(whole):
    page = Page(whole)
    assert page.h2 == ["Held-out views", "Training", "What was trained", "Scene and progress", "Confidence and advice", "Video", "Make it again",
                       "Warnings of the run"]  # fmt: skip
    assert not re.search(r"https?://|@import|url\(", whole) and page.tags.count("canvas") == 1
    loaded = [value for key, value in page.attributes if key in ("src", "href", "poster", "srcset")]
    assert loaded and all(value.startswith("data:") for value in loaded)
    assert page.tags.count("h1") == 1 and "spoon" in page.text


def test_the_numbers_are_those_of_the_files(whole):
    text = re.sub(r"\s+", " ", Page(whole).text)
    for words in ("21.53 dB", "mean of 2 held-out views", "0.9135", "23.75 dB", "0.01234 radii", "0.0247 world units", "0.9750", "F-score at 0.005 radii0.750",
                  "PSNR 22.25 dB, SSIM 0.8125", "9: 7 for training, 2 held out", "9 of 32 × 24 pixels", "5.0 minutes, 250 steps", "Devicecuda", "Seed7",
                  "0123456789ab", "2026-01-02 03:04:05", "4 × 4 × 4 m", "Photographs9", "Training5.0 minutes", "162 vertices, 320 faces", "no masks found 2 times", "Take more photographs",
                  "25.0 %", "--train", "--mesh", "10 % of full scale"):  # fmt: skip
        if words == "--mesh":  # there is no checkpoint to resume from
            assert words not in text
        else:
            assert words in text, words


def test_foreign_names_stay_text(tmp_path):
    evil = '"><script>alert(1)</script>'
    page = Page(text_of(write_run(tmp_path / "run", EVIL, evil.replace("/", "|"), f"{EVIL}: {evil}")))
    assert page.tags.count("script") == 2 and len(page.scripts) == 2
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert page.text.count(EVIL) >= 4 and evil in page.text  # two views, advice, a warning
    assert all(value.startswith("data:") for key, value in page.attributes if key == "src")


def test_json_cannot_leave_its_script():
    text = report.in_script({"a": "</script><!-- &\u2028"})
    assert not set("<>&\u2028") & set(text) and json.loads(text) == {"a": "</script><!-- &\u2028"}


def test_only_the_pages_own_script_may_run(whole):
    page = Page(whole)
    policy = next(value for key, value in page.attributes if value and value.startswith("default-src"))
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()}'" in policy


def test_the_mesh_decodes_upright(whole):
    """y is up in the world: it is z in the viewer; the first camera looks from +x, so x stays."""
    mesh = mesh_of(Page(whole))
    x, normals = decoded(mesh, "positions", "<i2") / 32767, decoded(mesh, "normals", "<i2") / 32767
    faces, colours = decoded(mesh, "indices", "<u2"), decoded(mesh, "colours", np.uint8)
    assert len(x) == len(normals) == len(colours) == mesh["vertices"] == 162 and len(faces) == mesh["faces"] == 320 and faces.max() == 161
    source = (np.asarray(ball().vertices) - [10, 0, 0]) / 2
    np.testing.assert_allclose(x, np.stack([source[:, 0], -source[:, 2], source[:, 1]], 1), atol=1e-4)
    np.testing.assert_allclose(normals, x, atol=0.03)
    assert (x[colours[:, 0] > 0, 2] > 0).all()
    corners = x[faces]  # faces turn outwards still
    assert ((np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) * corners.mean(1)).sum(1) > 0).all()


@pytest.mark.parametrize("exact", [True, False])
def test_a_fine_mesh_is_thinned(exact, monkeypatch):
    if exact:
        pytest.importorskip("fast_simplification")
    else:
        monkeypatch.setitem(sys.modules, "fast_simplification", None)
    mesh = ball(5)
    x = np.asarray(mesh.vertices)
    faces = np.asarray(mesh.faces)
    shell = report_mesh.Shell(x, faces, mean_normals(x, faces), np.asarray(mesh.visual.vertex_colors)[:, :3] * 1.0)
    thin = report_mesh.thinned(shell, 1500)
    away = thin.x - [10, 0, 0]
    assert 500 < len(thin.faces) <= 1500 and thin.faces.max() == len(thin.x) - 1
    assert np.abs(np.linalg.norm(away, axis=1) - 2).max() < 0.04
    assert (thin.normals * away).sum(1).min() > 1.98  # along the radius
    sure = np.abs(away[:, 1]) > 0.2
    assert ((thin.colours[:, 0] > 127) == (away[:, 1] > 0))[sure].all()


def test_vertices_in_a_cube_become_their_mean():
    x = np.array([[0, 0, 0], [0.2, 0, 0], [1.5, 0, 0], [0, 1.5, 0]], float)
    faces = np.array([[0, 2, 3], [0, 1, 2]])
    small = report_mesh.clustered(report_mesh.Shell(x, faces, np.tile([0, 0, 1.0], (4, 1)), x * 10), 1.0)
    assert sorted(small.x.tolist()) == [[0, 1.5, 0], [0.1, 0, 0], [1.5, 0, 0]] and len(small.faces) == 1
    np.testing.assert_allclose(small.colours, small.x * 10)


def test_the_viewpoint_is_that_of_the_cameras():
    """A full ring: the cameras' z is up and the page turns the object round; half a ring: to and fro before its middle."""
    turn = np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]])  # z of the sphere's frame is y of the world
    to_world = np.eye(4)
    to_world[:3, :3], to_world[:3, 3] = 5 * turn, [7, 8, 9]
    seen = report_mesh.viewpoint(ring_cameras(12), to_world)
    np.testing.assert_allclose(seen["up"], turn[:, 2], atol=1e-6)
    assert seen["swing"] == 0
    half = report_mesh.viewpoint(ring_cameras(12)[:5], to_world)  # at 0, 30, ..., 120 degrees
    toward = turn.T @ half["toward"]
    assert half["swing"] > 0 and np.degrees(np.arctan2(toward[1], toward[0])) == pytest.approx(60, abs=16)
    assert np.linalg.norm(half["toward"]) == pytest.approx(1)
    np.testing.assert_allclose(report_mesh.viewpoint(ring_cameras(12), to_world, np.array([1.0, 0, 0]))["up"], [1, 0, 0])


def test_the_run_notes_its_viewpoint_and_an_older_one_uses_its_cameras(tmp_path):
    run = RunFolder(write_run(tmp_path / "run"))
    cameras = SimpleNamespace(c2w=torch.from_numpy(ring_cameras(8)))
    report.record_viewpoint(SimpleNamespace(cameras=cameras, to_world=torch.eye(4), up=None), run)
    facts = json.loads((run / "scene.json").read_text())
    np.testing.assert_allclose(facts["viewpoint"]["up"], [0, 0, 1], atol=1e-6)
    assert facts["layout"] == "dtu" and report.seen_from(report_parts.read_run(run.root)) == facts["viewpoint"]
    frames = [{"transform_matrix": [*(c @ np.diag([1, -1, -1, 1])).tolist(), [0, 0, 0, 1]]} for c in ring_cameras(8)]
    (run / "cameras.json").write_text(json.dumps({"frames": frames}))
    (run / "scene.json").write_text(json.dumps({key: value for key, value in facts.items() if key != "viewpoint"}))
    older = report.seen_from(report_parts.read_run(run.root))
    np.testing.assert_allclose(older["toward"], facts["viewpoint"]["toward"], atol=1e-6)
    (run / "cameras.json").unlink()
    assert report.seen_from(report_parts.read_run(run.root)) == {}
    run.close()


def test_a_sheet_is_cut_by_the_size_in_the_metrics():
    tiles = [np.full((6, 8, 3), k, np.uint8) for k in range(1, 5)]
    plain = sheet(tiles)
    maps = np.zeros((12, 40, 3), np.uint8)  # five maps below make the sheet wider than four tiles
    maps[:6, :32] = plain
    for picture, row, method in ((plain, {}, "neus"), (maps, {"size": [8, 6]}, "nero-shape"), (plain, {"size": [8, 6]}, None)):
        parts = report_views.cut_sheet(picture, row, method)
        assert [part.shape for part in parts] == [(6, 8, 3)] * 4 and [int(part.max()) for part in parts] == [1, 2, 3, 4]
    assert report_views.cut_sheet(maps, {}, "nero-shape") is None  # an older run: the size is not known
    assert report_views.cut_sheet(plain, {"size": [80, 60]}, "neus") is None


def test_at_most_eight_views_are_shown_first_and_last_among_them(tmp_path):
    root = write_run(tmp_path / "run")
    metrics = json.loads((root / "test/metrics.json").read_text())
    metrics["views"] = [{**metrics["views"][0], "view": k} for k in range(20)]
    (root / "test/metrics.json").write_text(json.dumps(metrics))
    for k in range(20):
        shutil.copy(root / "test/000.png", root / f"test/{k:03d}.png.new")
        (root / f"test/{k:03d}.png.new").replace(root / f"test/{k:03d}.png")
    found = report_parts.read_run(root)
    assert [view.row["view"] for view in report_views.view_pictures(found)] == [0, 3, 5, 8, 11, 14, 16, 19]
    assert "8 of 20, evenly chosen" in Page(text_of(root)).text


def test_the_error_map_is_the_difference_on_its_scale():
    photo = np.zeros((10, 10, 3), np.uint8)
    render = photo.copy()
    render[0] = (30, 60, 63)  # mean 51: 0.2 of the full scale
    view = report_views.ViewPictures({}, photo, render, photo, photo)
    np.testing.assert_allclose(view.error[0], 0.2)
    assert view.error[1:].max() == 0 and report_views.error_scale([view]) == 0.2
    shown = report_views.error_map(view.error, 0.2)
    ramp = cv2.applyColorMap(np.array([[0, 255]], np.uint8), cv2.COLORMAP_INFERNO)[0, :, ::-1]
    assert (shown[0] == ramp[1]).all() and (shown[1:] == ramp[0]).all()


def test_pictures_keep_to_their_size():
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    assert len(report_parts.jpeg(noise, 90)) < 1.4 * 90 * 1024 < len(report_parts.jpeg(noise, 10_000))


def test_missing_parts_are_left_out(tmp_path):
    with pytest.raises(UserError, match="no such run folder"):
        report.write_report(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert Page(text_of(tmp_path / "empty")).h2 == ["Make it again"]
    files = ["test", "mesh/mesh.ply", "mesh/mesh.png", "mesh/metrics.json", "mesh/confidence.json", "mesh/confidence.png", "scene.json", "metrics.jsonl",
             "images", "video.mp4", "log.txt", "config.yaml", "commit.txt"]  # fmt: skip
    root = write_run(tmp_path / "run")
    full = len(Page(text_of(root)).text)
    for name in files:  # each alone, then damaged
        kept = tmp_path / "kept"
        (root / name).rename(kept)
        assert len(Page(text_of(root)).text) < full or name.endswith(".png"), name
        kept.rename(root / name)
        if (root / name).is_file():
            data = (root / name).read_bytes()
            (root / name).write_bytes(b"\xff{[" + data[: len(data) // 2])
            Page(text_of(root))
            (root / name).write_bytes(data)
    assert len(Page(text_of(root)).text) == full


def test_facts_of_another_shape_are_left_out(tmp_path):
    root = write_run(tmp_path / "run")
    for name in ("test/metrics.json", "mesh/metrics.json", "mesh/confidence.json", "scene.json"):
        keys = json.loads((root / name).read_text())
        for value in (None, 3, "words", [1, {}], {"a": [1]}, float("nan")):
            (root / name).write_text(json.dumps(dict.fromkeys(keys, value)))
            Page(text_of(root))
        (root / name).write_text(json.dumps(keys))
    (root / "config.yaml").write_text("dataset: 3\nmodel: [1]\nseed: null\n")
    Page(text_of(root))


def test_a_large_video_is_linked(tmp_path, monkeypatch, whole):
    assert 'src="data:video/mp4;base64,' in whole
    root = write_run(tmp_path / "run")
    monkeypatch.setattr(report, "MOST_VIDEO", 10)
    assert 'src="video.mp4"' in text_of(root)
    assert report.video_source(root, 5) == "video.mp4" and report.video_source(tmp_path, 10**6) is None


def test_a_report_that_fails_does_not_lose_the_run(tmp_path, monkeypatch, caplog):
    run = RunFolder(write_run(tmp_path / "run"))
    monkeypatch.setattr(report, "write_report", lambda root: 1 / 0)
    scene = SimpleNamespace(cameras=SimpleNamespace(c2w=torch.from_numpy(ring_cameras(8))), to_world=torch.eye(4), up=None)
    with caplog.at_level(logging.WARNING, "neus"):
        report.report_run(run, scene)
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "report.html is not written (ZeroDivisionError" in caplog.text
    run.close()


def test_curves_are_drawn_over_the_clock():
    rows = [{"step": s, "seconds": 30.0 * s, "loss/rgb": 10.0**-s, "psnr": 20.0} for s in (1, 2, 3, 4)]
    rows += [{"step": 3, "seconds": 150.0, "loss/rgb": 1e-3, "psnr": 20.0}, {"step": 2, "val/psnr": 21.0}]  # resumed: step 3 again
    kept, steps, seconds = report_curves.by_time(rows)
    assert steps.tolist() == [1, 2, 3, 4] and seconds.tolist() == [30, 60, 150, 120] and kept[2]["loss/rgb"] == 1e-3
    losses, psnr = report_curves.curves_of(rows[:4] + rows[5:])
    x, y = np.array([p.split(",") for p in re.search(r'points="([^"]*)"', losses)[1].split()], float).T
    np.testing.assert_allclose(
        np.diff(y), np.full(3, np.diff(y)[0]), atol=0.11
    )  # a tenth each step: a straight line on the logarithmic axis
    assert x[0] == pytest.approx(report_curves.LEFT + (report_curves.WIDTH - report_curves.LEFT - report_curves.RIGHT) / 4, abs=0.1)
    assert psnr.count("<circle") == 1 and "minutes" in losses and report_curves.curves_of([{"step": 1}]) == []


def test_ticks_are_round():
    assert report_curves.ticks(0, 4.2) == [0, 1, 2, 3, 4] and report_curves.ticks(19.3, 31.0) == [20, 25, 30]
    assert report_curves.log_ticks(0.0009, 12) == pytest.approx([0.001, 0.01, 0.1, 1, 10])
    assert report_curves.log_ticks(2, 9) == pytest.approx([2, 5]) and [report_curves.label(v) for v in (0.0001, 0.3, 1500)] == [
        "1e-4",
        "0.3",
        "1500",
    ]


def test_long_curves_are_averaged():
    x, y = report_curves.shortened(np.arange(1000.0), np.tile([0.0, 2.0], 500), 100)
    assert len(x) == 100 and x[0] == 4.5 and (y == 1).all()


def test_photographs_of_several_sizes_are_told_apart(tmp_path):
    lines = ["x: photographs of 2 sizes: 19 of 1209x1612 (trained at 604x806), 4 of 1612x1209", "23 images of 806x806: 0 GiB"]
    (tmp_path / "log.txt").write_text("".join(f"2026-01-02 03:04:05,678 INFO {line}\n" for line in lines))
    assert report_parts.read_log(tmp_path / "log.txt").photographs == "19 of 1209 × 1612 (trained at 604 × 806), 4 of 1612 × 1209"


# ------------------------------------------------------------------------------------------------ in a browser
def chromium(url, folder, *flags):
    """(stdout, console lines that are errors) of a headless Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program:
        pytest.skip("chromium is not installed")
    words = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic",
             "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
             "--enable-logging=stderr", f"--user-data-dir={folder}/profile", "--virtual-time-budget=5000", *flags, url]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line and "GL Driver Message" not in line]


@pytest.mark.slow
def test_a_browser_draws_the_mesh_upright(tmp_path):
    root = write_run(tmp_path / "run")
    (root / "video.mp4").unlink()
    url = report.write_report(root).as_uri()
    _, errors = chromium(url, tmp_path, "--window-size=800,900", f"--screenshot={tmp_path}/page.png")
    assert not errors
    b, g, r = (channel.astype(int) for channel in cv2.split(cv2.imread(str(tmp_path / "page.png"))))
    red, blue = np.argwhere((r > 200) & (g < 60) & (b < 60)), np.argwhere((b > 200) & (g < 60) & (r < 60))
    assert len(red) > 10_000 and len(blue) > 10_000  # both halves of the ball
    assert (
        red[:, 0].max() < blue[:, 0].max() and red[:, 0].min() < blue[:, 0].min() and abs(np.median(red[:, 1]) - np.median(blue[:, 1])) < 20
    )


@pytest.mark.slow
def test_a_browser_moves_the_slider_and_the_mesh(tmp_path):
    """In a narrow window nothing is wider than the page; the slider moves its border, a tile takes the render's place and gives it back; a finger
    turns the mesh, two come nearer."""
    text = text_of(write_run(tmp_path / "run", EVIL))
    probe = """
      const range = document.querySelector(".compare input"), compare = range.parentElement, over = compare.querySelector(".over"), before = over.src;
      range.value = 20; range.dispatchEvent(new Event("input"));
      const tile = document.querySelector(".tiles button"), found = [compare.style.getPropertyValue("--cut")];
      tile.click(); found.push(over.src === tile.querySelector("img").src, compare.querySelector(".tag.right").textContent);
      tile.click(); found.push(over.src === before, document.documentElement.scrollWidth <= innerWidth, document.querySelectorAll("img[src=x]").length);

      const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect(), flat = document.createElement("canvas");
      canvas.setPointerCapture = () => {};  // which made-up fingers do not allow
      const finger = (name, id, x, y) => canvas.dispatchEvent(new PointerEvent(name, { pointerId: id, clientX: box.x + x, clientY: box.y + y }));
      const drawn = () => new Promise((done) => requestAnimationFrame(() => {  // after the viewer's own, in the same frame
        flat.width = canvas.width; flat.height = canvas.height;
        const pen = flat.getContext("2d", { willReadFrequently: true }); pen.drawImage(canvas, 0, 0);
        const data = pen.getImageData(0, 0, flat.width, flat.height).data;
        let covered = 0, red = 0;
        for (let k = 0; k < data.length; k += 4) if (data[k + 3] > 200) { covered++; red += data[k] > 200; }
        done([covered, red / covered]);
      }));
      (async () => {
        finger("pointerdown", 1, 100, 100); finger("pointermove", 1, 101, 100);
        const first = await drawn();
        finger("pointermove", 1, 101, 250);  // down: the eye rises, and sees more of the red upper half
        const above = await drawn();
        finger("pointerdown", 2, 200, 250); finger("pointermove", 2, 300, 250);  // apart: nearer
        const near = await drawn();
        found.push(first[0] > 5000, above[1] > first[1] + 0.2, near[0] > 1.5 * above[0]);
        document.title = found.join(" ");
      })();"""
    text = re.sub(r"<meta http-equiv[^>]*>", "", text)  # the policy would forbid the probe
    text = text.replace("</body>", f"<script>{probe}</script></body>")
    path = Path(tmp_path / "probed.html")
    path.write_text(text)
    dom, errors = chromium(path.as_uri(), tmp_path, "--window-size=500,844", "--dump-dom")
    assert not errors and "<title>20% true error true true 0 true true true</title>" in dom
