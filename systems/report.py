"""report.html of a run, one file that needs no network: `python -m systems.report outputs/NAME/TRIAL`.

Everything on the page comes from files of the run folder (systems/report_parts.py); its look lies in systems/report_page/.
"""

import base64
import hashlib
import json
import logging
import sys
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from process_data.normalize import to_sphere
from systems import report_sections as sections
from systems.report_mesh import viewer_mesh, viewpoint
from systems.report_parts import Found, data_uri, first_frame, read_run
from systems.report_views import held_out
from utils.errors import UserError
from utils.files import add_facts, read_facts, write_atomic
from utils.log import RunFolder, setup_logging
from utils.rays import Scene

log = logging.getLogger("neus")
PAGE = Path(__file__).parent / "report_page"
MIB = 1 << 20
MOST = 12 * MIB  # of the page; a video that does not fit is linked
MOST_VIDEO = 6 * MIB  # of a video that is embedded


def report_run(run: RunFolder, scene: Scene) -> None:
    """Write report.html at the end of a run. What goes wrong with it is a warning: the run is worth more than its page."""
    try:
        record_viewpoint(scene, run)
        write_report(run.root)
    except Exception as error:
        log.warning("report.html is not written (%s: %s); the run is complete without it", type(error).__name__, error)


def record_viewpoint(scene: Scene, run: RunFolder) -> None:
    """Note in scene.json, under `viewpoint`, how the cameras look at the object; the other facts are kept."""
    c2w = scene.cameras.c2w.detach().cpu().double().numpy()
    seen = viewpoint(c2w, scene.to_world.double().numpy(), None if scene.up is None else scene.up.numpy())
    add_facts(run / "scene.json", viewpoint=seen)


def seen_from(found: Found) -> dict:
    """`viewpoint` of a run folder: of scene.json, or from cameras.json in the folder of an older run; {} without either."""
    if isinstance(found.scene.get("viewpoint"), dict):
        return found.scene["viewpoint"]
    frames = read_facts(found.root / "cameras.json").get("frames")
    if not frames:
        return {}
    try:
        world, to_world = (np.array([f["transform_matrix"][:3] for f in frames]) * [1, -1, -1, 1]), np.array(found.scene["to_world"])
        return viewpoint(to_sphere(world, to_world), to_world)
    except (KeyError, TypeError, ValueError, UserError):
        return {}


def _viewer_mesh(found: Found) -> dict | None:
    """The mesh for the viewer; None where there is none or it cannot be read, which is logged."""
    path = found.root / "mesh/mesh.ply"
    if not path.is_file():
        return None
    frame = found.scene.get("mesh")
    try:
        return viewer_mesh(path, seen_from(found), frame if isinstance(frame, dict) else {})
    except UserError as error:
        log.warning("report: without the mesh (%s)", error)
        return None


def video_source(root: Path, room: int) -> str | None:
    """The address of the run's video: a data URI where it fits into `room` characters, else relative; None without a video."""
    for name, kind in (("video.mp4", "video/mp4"), ("video.gif", "image/gif")):
        path = root / name
        if path.is_file():
            size = path.stat().st_size
            return data_uri(path.read_bytes(), kind) if size <= MOST_VIDEO and size * 4 / 3 <= room else name
    return None


def in_script(facts: dict) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(facts)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def page(found: Found, body: str, mesh: dict | None) -> str:
    """The whole page. Only our own script runs in it (by its hash), and it may load nothing from a network."""
    script = (PAGE / "viewer.js").read_text() + (PAGE / "page.js").read_text()
    title = Path(str(found.option("dataset.root_dir") or found.root)).name or "run"
    who = [found.option("model.name"), f"{found.root.parent.name}/{found.root.name}", found.log.began[:10]]
    data = {key: value for key, value in (mesh or {}).items() if key not in ("total_vertices", "total_faces", "extent")}
    return Template((PAGE / "template.html").read_text()).substitute(
        title=escape(title),
        lead=escape(" · ".join(str(word) for word in who if word)),
        style=(PAGE / "style.css").read_text(),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        body=body,
        data=f'<script type="application/json" id="mesh">{in_script(data)}</script>' if mesh else "",
        footer=escape(f"Made from the files in {found.root}."),
    )


def write_report(root: Path) -> Path:
    """Write report.html into a run folder and return its path. Raises UserError when the folder does not exist."""
    found = read_run(root)
    mesh = _viewer_mesh(found)
    first = [
        sections.hero(found, mesh), held_out(found), sections.curves(found), sections.trained(found), sections.pictures(found),
        sections.confidence(found),
    ]  # fmt: skip
    last = [sections.reproduce(found), sections.warnings(found)]
    shown = len(page(found, "".join([*first, *last]), mesh))
    film = sections.film(video_source(root, MOST - shown), first_frame(root / "video.mp4"))
    path = root / "report.html"
    write_atomic(path, page(found, "\n".join(part for part in [*first, film, *last] if part), mesh).encode())
    log.info("report: %s (%.1f MB, one file, no network)", path, path.stat().st_size / 1e6)
    return path


if __name__ == "__main__":
    setup_logging()
    try:
        write_report(Path(sys.argv[1]))
    except (UserError, IndexError) as error:
        log.error("error: %s", error if isinstance(error, UserError) else "give a run folder: python -m systems.report outputs/NAME/TRIAL")
        sys.exit(2)
