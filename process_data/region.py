"""The region of interest: which sphere of the world becomes the unit sphere, and which way is up. For every layout, in one place.

`dataset.center`, `dataset.radius` and `dataset.up` override what is found here.
"""

from dataclasses import dataclass

import numpy as np

from confs.schema import DatasetConfig
from process_data.ground import ground_up, standing_object, trimmed
from process_data.hull import silhouettes, visual_hull
from process_data.normalize import similarity, similarity_parts
from process_data.path import up_axis
from utils.errors import UserError

MARGIN = 1.05  # the sphere is wider than what it holds by this factor
STANDING = 1.2  # and by this where points alone say what the object is
CLEAR = 0.8  # of the distance of all but the nearest cameras: these stay outside


@dataclass(frozen=True)
class Views:
    """What the choice rests on, in the world's frame. `inside`: training views, whose masks are looked at."""

    K: np.ndarray  # [N, 3, 3]
    c2w: np.ndarray  # [N, 3, 4]
    size: tuple[int, int]  # width, height
    points: np.ndarray | None = None  # [P, 3]
    masks: np.ndarray | None = None  # [N, H, W] uint8
    train: tuple[int, ...] = ()

    @property
    def centres(self) -> np.ndarray:
        return self.c2w[:, :, 3]


# ---- measures ----


def meeting_point(c2w: np.ndarray) -> tuple[np.ndarray, float]:
    """(point [3] nearest to the optical axes, share of the cameras that look at it within 30 degrees).

    Least squares, reweighted by 1 / distance so that cameras which look elsewhere do not count; axes that are parallel meet nowhere
    (share 0).
    """
    forward, centres = c2w[:, :, 2], c2w[:, :, 3]
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]
    weight = np.ones(len(c2w))
    for _ in range(20):
        A = (across * weight[:, None, None]).sum(0) / weight.sum()
        if np.linalg.eigvalsh(A)[0] < 1e-5:
            return centres.mean(0), 0.0
        point = np.linalg.solve(A, ((across @ centres[:, :, None])[:, :, 0] * weight[:, None]).sum(0) / weight.sum())
        off = np.linalg.norm((across @ (point - centres)[:, :, None])[:, :, 0], axis=1)
        weight = 1 / np.maximum(off, 1e-3 * max(float(np.median(np.linalg.norm(point - centres, axis=1))), 1e-12))
    toward = point - centres
    cosine = (toward * forward).sum(1) / np.maximum(np.linalg.norm(toward, axis=1), 1e-12)
    return point, float((cosine > np.cos(np.radians(30))).mean())


def framed_radius(views: Views, centre: np.ndarray) -> float | None:
    """Radius of the sphere around the centre that fills the longer side of half of the pictures, clear of nearly all cameras.

    None when few cameras see the centre. Rather too wide than too narrow: what leaves the sphere is lost.
    """
    w, h = views.size
    p = ((centre - views.centres)[:, None] @ views.c2w[:, :, :3])[:, 0]  # [N, 3] in the cameras
    corners = np.array([[-0.5, -0.5, 1], [w - 0.5, -0.5, 1], [w - 0.5, h - 0.5, 1], [-0.5, h - 0.5, 1]])
    rays = (np.linalg.inv(views.K)[:, None] @ corners[None, :, :, None])[..., 0]  # [N, 4, 3]
    normals = np.cross(rays, np.roll(rays, -1, 1))
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    sides = (normals * p[:, None]).sum(2)  # [N, 4] distance to the top, right, bottom, left side of the frustum
    depth = np.where(sides.min(1) > 0, np.maximum(np.minimum(sides[:, 0], sides[:, 2]), np.minimum(sides[:, 1], sides[:, 3])), 0)
    depth = depth[depth > 0]
    if 2 * len(depth) < len(views.c2w):
        return None
    clear = CLEAR * np.quantile(np.linalg.norm(views.centres - centre, axis=1), 0.05)
    return float(min(np.median(depth), clear)) or None


def smallest_ball(x: np.ndarray) -> tuple[np.ndarray, float]:
    """(centre, radius) of nearly the smallest ball around points [P, 3] (Badoiu and Clarkson 2003)."""
    centre = (x.min(0) + x.max(0)) / 2
    for i in range(200):
        centre = centre + (x[np.linalg.norm(x - centre, axis=1).argmax()] - centre) / (i + 2)
    return centre, float(np.linalg.norm(x - centre, axis=1).max())


# ---- choices ----


def _hull(views: Views, centre: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The visual hull around the centre, (cells [P, 3], half a cell)."""
    if views.masks is None or not views.train:
        return None
    reach = float(np.median(np.linalg.norm(views.centres - centre, axis=1)))
    return visual_hull(silhouettes(views.masks, views.K, views.c2w, list(views.train)), centre, reach)


def _need_points(views: Views, key: str) -> np.ndarray:
    if views.points is None or len(views.points) < 10:
        raise UserError(f"{key} needs the points of structure from motion, and this scene has none; choose another value")
    return trimmed(views.points)


def _seen_points(views: Views, centre: np.ndarray) -> np.ndarray | None:
    """Points within the ball around the centre that the cameras frame: what stands further back is surroundings."""
    reach = framed_radius(views, centre)
    if views.points is None or reach is None:
        return None
    near = views.points[np.linalg.norm(views.points - centre, axis=1) < reach]
    return near if len(near) >= 50 else None


def _centre(views: Views, choice, given: np.ndarray) -> tuple[np.ndarray, float | None, str]:
    """(centre, radius or None, the words for it)."""
    if not isinstance(choice, str):
        return np.asarray(choice, np.float64), None, "the given centre"
    if choice == "given":
        return given, None, "the origin of the files"
    if choice == "cameras":
        return views.centres.mean(0), None, "the middle of the cameras"
    if choice == "points":
        return np.median(_need_points(views, "dataset.center=points"), 0), None, "the middle of the points"
    if choice == "bbox":
        x = _need_points(views, "dataset.center=bbox")
        low, high = np.quantile(x, [0.01, 0.99], axis=0)
        return (low + high) / 2, MARGIN * float(np.linalg.norm(high - low)) / 2, "the box of the points"
    meet, share = meeting_point(views.c2w)
    if choice == "lookat":
        return meet, None, "the point the cameras look at"
    return _auto(views, meet, share)


def _auto(views: Views, meet: np.ndarray, share: float) -> tuple[np.ndarray, float | None, str]:
    if share < 0.6:
        if views.points is not None and len(views.points) >= 10:
            return np.median(trimmed(views.points), 0), None, "the middle of the points (the cameras look at no common point)"
        return views.centres.mean(0), None, "the middle of the cameras (they look at no common point)"
    hull = _hull(views, meet)
    if hull is not None:
        centre, radius = smallest_ball(hull[0])
        return centre, MARGIN * (radius + hull[1]), "the visual hull of the masks"
    near, reach = _seen_points(views, meet), framed_radius(views, meet)
    thing = standing_object(views.points, views.centres, meet, reach) if near is not None else None
    if thing is not None:
        centre, radius = smallest_ball(thing)
        clear = CLEAR * float(np.quantile(np.linalg.norm(views.centres - centre, axis=1), 0.05))
        return centre, min(STANDING * radius, clear), "the points that stand out from the plane of most points"
    if near is not None:
        return np.median(near, 0), None, "the points where the cameras look"
    return meet, None, "the point the cameras look at"


def _radius(views: Views, centre: np.ndarray) -> tuple[float, str]:
    hull = _hull(views, centre)
    if hull is not None:
        return MARGIN * (float(np.linalg.norm(hull[0] - centre, axis=1).max()) + hull[1]), "the visual hull of the masks"
    framed, near = framed_radius(views, centre), _seen_points(views, centre)
    if framed is not None and near is not None:
        held = 1.1 * float(np.quantile(np.linalg.norm(near - centre, axis=1), 0.95))
        return float(np.clip(held, 0.4 * framed, framed)), "the points in sight"
    if framed is not None:
        return framed, "what the cameras frame"
    if views.points is not None and len(views.points) >= 10:
        return 1.1 * float(np.quantile(np.linalg.norm(trimmed(views.points) - centre, axis=1), 0.95)), "the points"
    spread = float(np.linalg.norm(views.centres - centre, axis=1).max())
    return max(1.2 * spread, 1e-6), "the cameras"


def _rotation(views: Views, choice, auto_up: str) -> tuple[np.ndarray, str]:
    """Rotation [3, 3] from the unit sphere's frame (z up) to the world, and the words for it."""
    choice = auto_up if isinstance(choice, str) and choice == "auto" else choice
    if isinstance(choice, str) and choice == "given":
        return np.eye(3), "axes as given"
    if not isinstance(choice, str):
        up, words = np.asarray(choice, np.float64) / np.linalg.norm(choice), "up as set"
    else:
        up, words = up_axis(views.c2w), "up by the cameras"
        if choice == "ground":
            _need_points(views, "dataset.up=ground")
            plane = ground_up(views.points, up)
            up, words = (up, "up by the cameras (the points show no ground)") if plane is None else (plane, "up by the ground plane")
    first = np.eye(3)[np.abs(up).argmin()]
    x = np.cross(np.cross(up, first), up)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(up, x), up], 1), words


def choose_region(views: Views, cfg: DatasetConfig, given: np.ndarray | None = None, auto_up: str = "given") -> tuple[np.ndarray, str]:
    """(to_world [4, 4], a line for the log). `given`: the similarity the files bring (DTU's scale_mat), kept unless a key overrides it.

    auto_up: what `dataset.up=auto` means for the layout. Raises UserError when a key asks for what the scene lacks.
    """
    origin = np.zeros(3)
    centre_choice, radius, turn = cfg.center, cfg.radius, cfg.up
    if given is not None:
        scale, rotation, origin = similarity_parts(given)
        if isinstance(centre_choice, str) and centre_choice in ("auto", "given"):
            centre_choice, radius = "given", radius or scale
        if isinstance(turn, str) and turn in ("auto", "given"):
            turn = None
    centre, found, where = _centre(views, centre_choice, origin)
    if radius is not None:
        why = "as set" if cfg.radius is not None else "as given"
    elif found is not None:
        radius, why = found, where
    else:
        radius, why = _radius(views, centre)
    if not (np.isfinite(centre).all() and np.isfinite(radius) and 1e-12 < radius < 1e12):
        raise UserError(f"no region of interest: centre {centre.tolist()}, radius {radius:g}; set dataset.center and dataset.radius")
    rotation, upright = (rotation, "axes as given") if turn is None else _rotation(views, turn, auto_up)
    shown = ", ".join(f"{v:.4g}" for v in centre)
    words = f"by {where}" if why == where else f"centre by {where}, radius {why if why.startswith('as ') else 'by ' + why}"
    line = f"region of interest: sphere around ({shown}) of radius {radius:.4g} world units: {words}; {upright}"
    return similarity(float(radius), rotation, centre), line
