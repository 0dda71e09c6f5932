"""The sections of the page: each a function of what the run folder holds, "" where it holds nothing for it. All text is escaped."""

import shlex
from collections.abc import Sequence
from html import escape

from systems.report_curves import curves_of
from systems.report_parts import Found, as_dict, as_list, known, picture_of, section
from systems.report_views import NUMBERS


# ------------------------------------------------------------------------------------------------ the mesh and the numbers
def _number(name: str, value: str, unit: str = "", note: str = "", kind: str = "") -> str:
    unit, note = (f" <span>{escape(unit)}</span>" if unit else ""), (f"<small>{escape(note)}</small>" if note else "")
    return f'<div class="{kind}"><dt>{escape(name)}</dt><dd>{value}{unit}{note}</dd></div>'


def numbers(found: Found) -> str:
    """The headline: metrics of the test, and of the mesh against the truth."""
    test, truth = found.test, found.truth
    parts: list[str] = []
    views = as_list(test.get("views"))
    for key, name, unit, decimals in NUMBERS:
        if known(test.get(key)):
            note = f"mean of {len(views)} {'held-out' if test.get('held_out') else 'training'} views" if not parts else ""
            parts.append(_number(name, f"{test[key]:.{decimals}f}", unit, note, "" if parts else "main wide"))
    if known(truth.get("chamfer")):
        world = f"{truth['chamfer'] * truth['unit']:.3g} world units" if known(truth.get("unit")) else ""
        parts.append(_number("Chamfer distance to the truth", f"{truth['chamfer']:.5f}", "radii", world, "wide"))
    if known(truth.get("normal_consistency")):
        parts.append(_number("Normal consistency", f"{truth['normal_consistency']:.4f}"))
    for threshold, score in list(as_dict(truth.get("fscore")).items())[1:2]:
        if known(score):
            parts.append(_number(f"F-score at {threshold} radii", f"{score:.3f}"))
    photographs, minutes = len(as_list(found.scene.get("names"))), trained_minutes(found)
    if photographs:
        parts.append(_number("Photographs", f"{photographs}"))
    if minutes:
        parts.append(_number("Training", f"{minutes:.1f}", "minutes"))
    return f'<dl class="numbers">{"".join(parts)}</dl>' if parts else ""


def hero(found: Found, mesh: dict | None) -> str:
    """The viewer of the mesh (its picture, where the browser cannot draw it) beside the headline numbers."""
    picture = picture_of(found.root / "mesh/mesh.png", 1600, 1600, 260)
    flat = f'<img class="flat" alt="The mesh from three sides" src="{picture[0]}">' if picture else ""
    stage = ""
    if mesh:
        modes = [("0", "colour")] if mesh["colours"] else []
        buttons = "".join(
            f'<button type="button" value="{value}">{name}</button>'
            for value, name in (*modes, ("1", "shaded"), ("2", "normals"), ("wire", "wireframe"))
        )
        unit = {"metres": "m", "world": "world units"}.get(str(as_dict(found.scene.get("mesh")).get("units")), "units")
        extent = " × ".join(f"{v:.3g}" for v in mesh["extent"])
        few = f", shown with {mesh['faces']:,}" if mesh["faces"] < mesh["total_faces"] else ""
        words = (
            f"<b>{mesh['total_vertices']:,} vertices, {mesh['total_faces']:,} faces</b>{few}; {extent} {unit}. "
            '<span class="hint">Drag to turn; the wheel after a click, or two fingers, to zoom; shift-drag to move; double-click to start '
            "again.</span>"
        )
        stage = (
            f'<figure><div class="stage" id="stage"><canvas tabindex="0" aria-label="The mesh, to be turned with the mouse, a finger or the '
            f'arrow keys"></canvas>{flat}<div class="bar"><div class="modes">{buttons}</div></div></div><noscript>{flat.replace("flat", "still")}'
            f"</noscript><figcaption>{words}</figcaption></figure>"
        )
    elif flat:
        stage = f'<figure><div class="stage no-webgl">{flat}</div></figure>'
    body = stage + numbers(found)
    return f'<section class="hero">{body}</section>' if body else ""


# ------------------------------------------------------------------------------------------------ training
def curves(found: Found) -> str:
    figures = curves_of(found.rows)
    return section("Training", f'<div class="charts">{"".join(figures)}</div>') if figures else ""


def trained_minutes(found: Found) -> float:
    """Minutes of training by the log, else by the last line of metrics.jsonl; 0 where neither is known."""
    last = found.rows[-1] if found.rows else {}
    return found.log.minutes or (last["seconds"] / 60 if known(last.get("seconds")) else 0.0)


def _duration(found: Found) -> str:
    last, minutes = found.rows[-1] if found.rows else {}, trained_minutes(found)
    steps = found.log.steps or last.get("step", 0)
    skipped = f", {last['skipped']:.0f} skipped" if known(last.get("skipped")) and last["skipped"] else ""
    return f"{minutes:.1f} minutes, {steps:,} steps{skipped}" if steps else ""


def facts(found: Found) -> list[tuple[str, str]]:
    """(name, value) of what was trained, on what and how long; a value that is not known is ""."""
    scene, option = found.scene, found.option
    train, test, names = (as_list(scene.get(key)) for key in ("train", "test", "names"))
    split = f"{len(names)}: {len(train)} for training, {len(test)} held out" if names else ""
    mask = {True: "used", False: "not used"}.get(option("dataset.apply_mask"), "")
    frame = as_dict(scene.get("mesh"))
    units = "metres" if frame.get("units") == "metres" else "world units"
    placed = f"{'upright, z up' if frame.get('upright') else 'axes of the world'}; {units}"
    return [
        ("Method", " · ".join(str(v) for v in (option("model.name"), option("model.encoding")) if v)),
        ("Scene", f"{option('dataset.root_dir') or ''}"),
        ("Layout", str(scene.get("layout") or "")),
        ("Photographs", split),
        ("Trained at", found.log.photographs),
        ("Masks", mask),
        ("Background", str(option("model.background") or "")),
        ("Cameras", {True: "refined", False: "as given"}.get(option("model.pose"), "")),
        ("Training", _duration(found)),
        ("Device", found.log.device),
        ("Seed", "" if option("seed") is None else str(option("seed"))),
        ("Mesh", placed if frame else ""),
        ("Commit", found.commit[:12]),
        ("Date", found.log.began),
    ]


def trained(found: Found) -> str:
    rows = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts(found) if value)
    config = found.root / "config.yaml"
    text = escape(config.read_text(errors="replace")) if found.config else ""
    more = f"<details><summary>All options (config.yaml)</summary><pre>{text}</pre></details>" if text else ""
    return section("What was trained", f'<dl class="facts">{rows}</dl>' if rows else "", more)


def pictures(found: Found) -> str:
    """scene.png and progress.png."""
    parts = []
    for name, alt, words, size, low in (
        (
            "scene",
            "Cameras, points and the unit sphere",
            "Cameras (blue: training, orange: held out), points and the sphere that is reconstructed (green), from above, from the side and "
            "over photographs.",
            (2200, 700),
            " low",
        ),
        ("progress", "A view while training", "A view while training, with its step, first to last.", (1000, 6000), ""),
    ):
        shown = picture_of(found.root / f"images/{name}.png", *size, 520)
        if shown:
            (w, h) = shown[1]
            parts.append(
                f'<figure><div class="scroll{low}" tabindex="0"><img alt="{alt}" width="{w}" height="{h}" style="height: auto" src="{shown[0]}"></div>'
                f"<figcaption>{words}</figcaption></figure>"
            )
    return section("Scene and progress", f'<div class="pictures">{"".join(parts)}</div>') if parts else ""


# ------------------------------------------------------------------------------------------------ confidence
def _shares(shares: object) -> str:
    """Bars of {number of views: share of the surface} (or a list of shares, from 0 views on)."""
    pairs = list(shares.items()) if isinstance(shares, dict) else list(enumerate(shares)) if isinstance(shares, list) else []
    pairs = [(str(key), float(value)) for key, value in pairs if known(value)]
    if not pairs:
        return ""
    bars = "".join(
        f'<div><span>{escape(key)}{" view" if key == "1" else " views" if key.isdigit() else ""}</span><i style="width: {100 * min(max(value, 0), 1):.1f}%"></i>'
        f"<span>{100 * value:.1f} %</span></div>"
        for key, value in pairs
    )
    return f'<h3>Share of the surface by the views that see it</h3><div class="bars">{bars}</div>'


def _summary(value: object) -> str:
    if isinstance(value, str) and value:
        return f"<p>{escape(value)}</p>"
    if not isinstance(value, dict):
        return ""
    rows = "".join(
        f"<div><dt>{escape(str(key).replace('_', ' '))}</dt><dd>{escape(f'{v:.4g}' if known(v) else str(v))}</dd></div>"
        for key, v in value.items()
        if isinstance(v, str) or known(v)
    )
    return f'<dl class="facts">{rows}</dl>' if rows else ""


def confidence(found: Found) -> str:
    """mesh/confidence.json (summary, advice, share_by_views) and mesh/confidence.png."""
    c, shown = found.confidence, picture_of(found.root / "mesh/confidence.png", 1600, 1600, 320)
    advice = [escape(line) for line in as_list(c.get("advice")) if isinstance(line, str)]
    words = f'<ul class="advice">{"".join(f"<li>{line}</li>" for line in advice)}</ul>' if advice else ""
    picture = f'<figure class="scroll"><img alt="Confidence on the mesh" src="{shown[0]}"></figure>' if shown else ""
    text = _summary(c.get("summary")) + words + _shares(c.get("share_by_views"))
    return (
        section("Confidence and advice", f'<div class="split">{f"<div>{text}</div>" if text else ""}{picture}</div>')
        if text or picture
        else ""
    )


# ------------------------------------------------------------------------------------------------ the end
def film(source: str | None, poster: tuple[str, tuple[int, int]] | None = None) -> str:
    """The video; source: its address, a data URI or relative; poster: (data URI, (width, height)) of its first frame."""
    if not source:
        return ""
    first = f' poster="{poster[0]}" width="{poster[1][0]}" height="{poster[1][1]}"' if poster else ""
    tag = f'<video controls loop muted playsinline preload="metadata"{first} src="{source}"></video>'
    if source.startswith("data:image/") or source.endswith(".gif"):
        tag = f'<img alt="Video" src="{source}">'
    return section("Video", f'<figure class="film">{tag}<figcaption>Colour and normals along a camera path.</figcaption></figure>')


def _commands(lines: Sequence[tuple[str, str]]) -> str:
    return "".join(f'<p class="command-name">{words}</p><pre class="command">{escape(line)}</pre>' for words, line in lines)


def reproduce(found: Found) -> str:
    """The commands that make this run again, from the program's folder."""
    run, root = found.root, shlex.quote(str(found.root))
    checkpoint, mesh = (run / "ckpt/last.pt").is_file(), (run / "mesh/mesh.ply").is_file()
    lines = []
    if found.config:
        other = " trainer.trial_name=again" if found.option("trainer.trial_name") else ""
        lines.append(
            (
                "Train again, with the same options and seed",
                f"python run.py --config {shlex.quote(str(run / 'config.yaml'))} --train{other}",
            )
        )
    if checkpoint:
        lines.append(("Test again: held-out metrics, pictures, video", f"python run.py --test --resume {root}"))
        lines.append(("Extract the mesh again, finer", f"python run.py --mesh --resume {root} export.resolution=1024"))
    lines.append(("Make this page again", f"python -m systems.report {root}"))
    patch = " with uncommitted.patch of the run folder applied" if (run / "uncommitted.patch").is_file() else ""
    note = f'<p class="note">In the program\'s folder, at commit {escape(found.commit[:12])}{patch}:</p>' if found.commit else ""
    view = (
        f'<p class="note">The mesh is <code>{escape(str(run / "mesh/mesh.ply"))}</code>: MeshLab, Blender and CloudCompare open it.</p>'
        if mesh
        else ""
    )
    return section("Make it again", note, _commands(lines), view)


def warnings(found: Found) -> str:
    counts = found.log.warnings
    rows = "".join(f"<li>{escape(text)}{f' <small>{n} times</small>' if n > 1 else ''}</li>" for text, n in counts.items())
    return section("Warnings of the run", f'<ul class="warnings">{rows}</ul>') if rows else ""
