"""What to photograph next: where a mesh is uncertain and why, in one to three sentences.

A vertex of low confidence has one reason: seen by no view or by one, at grazing angles only, from nearly one direction, or
photographs that disagree. The vertices of a reason are grouped by where their normals point: underside, top, and sides, which are
named by the cameras. A group is told when it covers enough of the surface.
"""

from dataclasses import dataclass

import numpy as np

from confs.schema import Config
from systems.confidence import NOISE, Cues
from systems.placement import up_in_sphere
from utils.rays import Scene

LOW = 0.5  # confidence below which a vertex is looked into
SHARE = 0.03  # of the area, from which a group is worth a sentence
MOST = 3  # sentences
WELL = 0.25  # of the area below LOW, up to which all is well
GRAZING = 0.5  # cosine to the most facing view
NARROW = 0.25  # parallax (systems/confidence.py)
DISAGREE = 0.3  # agreement, where there is texture
EDGE = 0.98  # of the radius, from where a surface is the edge of the sphere
UNDER, OVER = -0.6, 0.75  # cosine between normal and up: underside, top
FACING = 30.0  # degrees between a side and the camera that it is named by
LEVEL = 0.5  # least mean of the cameras' up directions (unit vectors) for an estimated up to mean something


@dataclass(frozen=True)
class Group:
    """Vertices of one reason whose normals point to one side."""

    reason: str  # few, grazing, narrow, disagree
    place: str  # under, over, side
    direction: np.ndarray  # [3] unit, the mean normal
    share: float  # of the area
    views: float  # mean number of views


def known_up(scene: Scene, cfg: Config) -> np.ndarray | None:
    """Unit up direction [3] in the unit sphere's frame; None where it is not given and the cameras are turned all ways."""
    given = scene.up is not None or cfg.dataset.up == "given"
    level = float(scene.cameras.c2w[:, :, 1].double().mean(0).norm())
    return up_in_sphere(scene, cfg) if given or level > LEVEL else None


def reasons(cues: Cues, low: np.ndarray) -> dict[str, np.ndarray]:
    """Reason -> [P] bool, of the vertices that are `low` [P] bool; each has one at most."""
    tests = {
        "few": cues.views <= 1,
        "grazing": cues.facing < GRAZING,
        "narrow": cues.parallax < NARROW,
        "disagree": (cues.agreement < DISAGREE) & (cues.texture > 2 * NOISE),
    }
    found, left = {}, low.copy()
    for name, test in tests.items():
        found[name] = left & test
        left = left & ~test
    return found


def groups(cues: Cues, area: np.ndarray, up: np.ndarray | None) -> list[Group]:
    """The groups that cover at least SHARE of the surface, largest first; area [P] of the vertices."""
    found = []
    for reason, member in reasons(cues, cues.confidence < LOW).items():
        for place, at in _places(cues.normal, np.flatnonzero(member), area, up):
            weight = area[at] / area.sum()
            mean = (cues.normal[at] * weight[:, None]).sum(0)
            if weight.sum() >= SHARE:
                direction = mean / max(float(np.linalg.norm(mean)), 1e-12)
                found.append(Group(reason, place, direction, float(weight.sum()), float((cues.views[at] * weight).sum() / weight.sum())))
    return sorted(found, key=lambda g: -g.share)


def _places(normal: np.ndarray, at: np.ndarray, area: np.ndarray, up: np.ndarray | None) -> list[tuple[str, np.ndarray]]:
    """The vertices `at` by where their normals point: underside, top, and the sides one after another, the largest first."""
    found: list[tuple[str, np.ndarray]] = []
    if up is not None:
        height = normal[at] @ up
        found = [("under", at[height < UNDER]), ("over", at[height > OVER])]
        at = at[(height >= UNDER) & (height <= OVER)]
    while len(at):
        n = normal[at]
        flat = n if up is None else n - (n @ up)[:, None] * up
        flat = flat / np.linalg.norm(flat, axis=1, keepdims=True).clip(1e-12)
        axis = _densest(flat, area[at], up)
        near = flat @ axis > 0.5
        if not near.any():
            break
        found.append(("side", at[near]))
        at = at[~near]
    return found


def _densest(direction: np.ndarray, area: np.ndarray, up: np.ndarray | None) -> np.ndarray:
    """The direction [3] with the most area within 60 degrees, of a few dozen evenly spread ones (level ones where up is known)."""
    k = np.arange(48)
    if up is not None:
        first = np.cross(up, np.eye(3)[np.abs(up).argmin()])
        first /= np.linalg.norm(first)
        tried = np.cos(k * np.pi / 24)[:, None] * first + np.sin(k * np.pi / 24)[:, None] * np.cross(up, first)
    else:
        z, turn = 1 - (2 * k + 1) / len(k), k * np.pi * (3 - 5**0.5)
        tried = np.stack([np.cos(turn) * np.sqrt(1 - z**2), np.sin(turn) * np.sqrt(1 - z**2), z], 1)
    score = [float(area[direction @ d > 0.5].sum()) for d in tried]
    return tried[int(np.argmax(score))]


# ------------------------------------------------------------------------------------------------ words
def side_words(direction: np.ndarray, centre: np.ndarray, scene: Scene, up: np.ndarray | None) -> str:
    """A side of the object by the training cameras around its centre [3]: faced by one, between two, or turned away from the nearest."""
    views = list(scene.train)
    towards = scene.cameras.c2w[views, :, 3].double().numpy() - centre
    if up is not None:
        towards, direction = (v - (v @ up)[..., None] * up for v in (towards, direction))
    towards = towards / np.linalg.norm(towards, axis=1, keepdims=True).clip(1e-12)
    direction = direction / max(float(np.linalg.norm(direction)), 1e-12)
    angle = np.degrees(np.arccos((towards @ direction).clip(-1, 1)))
    order = np.argsort(angle, kind="stable")
    names = [scene.names[views[k]] for k in order]
    if angle[order[0]] <= FACING:
        return f"the side facing the camera of {names[0]}"
    across = [k for k in order[1:] if np.degrees(np.arccos((towards[k] @ towards[order[0]]).clip(-1, 1))) > angle[order[0]]]
    if across and angle[across[0]] < 90 and angle[order[0]] < 90:
        return f"the side between the cameras of {names[0]} and {scene.names[views[across[0]]]}"
    if angle[order[0]] > 120 or up is None:
        return f"the side away from the camera of {names[0]}"
    c2w = scene.cameras.c2w[views[order[0]]].double().numpy()
    return f"the {'right' if direction @ c2w[:, 0] > 0 else 'left'} side, seen from the camera of {names[0]},"


def sentence(group: Group, centre: np.ndarray, scene: Scene, up: np.ndarray | None) -> str:
    """One sentence on a group: where, how much, why, what to do."""
    where = {"under": "the underside", "over": "the top"}.get(group.place) or side_words(group.direction, centre, scene, up)
    if where.startswith("the side facing"):
        where = f"parts of {where}" if group.reason in ("few", "grazing") else where
    comma = "," if where.endswith(",") else ""
    where = f"{where.rstrip(',')} ({group.share:.0%} of the surface){comma}"
    add = {"under": "photograph it from below, or turned over", "over": "photograph it from above"}.get(
        group.place, "add photographs facing it"
    )
    was = "were" if where.startswith("parts") else "was"
    if group.reason == "few":
        return f"{where} {was} seen by {'no view' if group.views < 0.5 else 'one view at most'}: {add}"
    if group.reason == "grazing":
        return f"{where} {was} seen at grazing angles only: {add}"
    if group.reason == "narrow":
        return f"{where} {was} seen from nearly one direction: add photographs from further left, right, above or below"
    return f"{where}: the photographs disagree there; it shines, is moving, or its cameras are off: more photographs, in softer light"


def cut_off(cues: Cues, x: np.ndarray, radius: float) -> np.ndarray:
    """[P] bool: vertices [P, 3] at the edge of the sphere of interest that no view sees, where it cuts the object off."""
    return (np.linalg.norm(x, axis=1) > EDGE * radius) & (cues.views == 0)


def advice(cues: Cues, area: np.ndarray, x: np.ndarray, cut: np.ndarray, scene: Scene, up: np.ndarray | None) -> list[str]:
    """One to MOST sentences on vertices [P, 3] with areas [P]; up in the unit sphere's frame or None.

    What is `cut` off [P] gets a sentence of its own; the shares of the others are of the rest.
    """
    share, rest = float(area[cut].sum() / area.sum()), np.where(cut, 0.0, area)
    lines = []
    if share >= SHARE:
        lines = [
            f"{share:.0%} of the surface is the edge of the region of interest, which cuts the object off; a larger dataset.radius moves it"
        ]
    if not rest.sum() > 0:
        return lines
    centre = (x * rest[:, None]).sum(0) / rest.sum()
    found = [sentence(group, centre, scene, up) for group in groups(cues, rest, up)]
    if found:
        return (lines + found)[:MOST]
    below = float(rest[cues.confidence < LOW].sum() / rest.sum())
    if below <= WELL:
        return [*lines, f"the photographs cover the object well: {1 - below:.0%} of the surface has a confidence above a half"]
    return [*lines, f"no part stands out: the {below:.0%} of the surface below a half lies in creases and hollows, or has little texture"]
