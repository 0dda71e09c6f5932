"""The region of interest: the sphere of the world that becomes the unit sphere, and the up direction, for every layout.

`dataset.region`, `dataset.center`, `dataset.radius` and `dataset.up` override the estimates.
"""

from dataclasses import dataclass

import numpy as np

from confs.schema import DatasetConfig
from process_data.axes import convergence_point, up_axis
from process_data.box import Box, box_sphere
from process_data.ground import ground_normal, ground_up, standing_object, trimmed
from process_data.hull import silhouettes, visual_hull
from process_data.normalize import similarity, similarity_parts
from process_data.sight import Sight, clear_sphere, clearance, framed_above, gaze, one_sided, points_in_sight, weighted_median
from utils.errors import UserError

MARGIN = 1.05  # radius of the sphere, in radii of the ball around masks or points
STANDING = 1.2  # the same, for the ball around points above the supporting plane
ABOVE = 0.98  # share of these points inside that ball
RAISED = 0.1  # least height of the look-at point over the plane of an object that stands on it, in framed radii
WHOLE = 0.35  # least radius of an object below that height, in framed radii: smaller ones are details of a wall
TALL = 0.5  # least height of such an object, in its radii: flatter ones are reliefs
HINT = "images/scene.png of the run shows it; if the object is not inside, draw a box on a photograph: --region x0,y0,x1,y1@IMAGE"
CLEAR = 0.8  # largest radius, as a share of the distance of the nearest cameras (5 % quantile)


@dataclass(frozen=True)
class Views:
    """Cameras, points and masks in the world's frame; masks of the training views alone are used."""

    K: np.ndarray  # [N, 3, 3]
    c2w: np.ndarray  # [N, 3, 4]
    size: tuple[int, int] | np.ndarray  # width, height of all, or [N, 2] of each
    points: np.ndarray | None = None  # [P, 3]
    masks: np.ndarray | None = None  # [N, H, W] uint8
    train: tuple[int, ...] = ()
    seen: np.ndarray | None = None  # [M, 2] pairs (point, view) of the tracks, where the reader knows them
    box: Box | None = None  # drawn on a photograph by hand

    @property
    def centres(self) -> np.ndarray:
        return self.c2w[:, :, 3]

    @property
    def sizes(self) -> np.ndarray:
        """[N, 2] width, height of each view; masks lie in the top-left corner."""
        return np.broadcast_to(self.size, (len(self.c2w), 2))

    @property
    def cameras(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(K [N, 3, 3], c2w [N, 3, 4], sizes [N, 2])."""
        return self.K, self.c2w, self.sizes


# ---- estimates ----


def _clearance(views: Views, centre: np.ndarray) -> float:
    """Largest radius that leaves nearly all cameras outside."""
    return CLEAR * float(np.quantile(np.linalg.norm(views.centres - centre, axis=1), 0.05))


def framed_radius(views: Views, centre: np.ndarray) -> float | None:
    """Radius of the sphere around the centre [3] that fills the longer side of half of the images, with nearly all cameras outside it.

    None when fewer than half of the cameras have the centre in frame. The estimate is a wide one: surface outside the sphere is lost.
    """
    (w, h), one = views.sizes.T, np.ones(len(views.c2w))
    p = ((centre - views.centres)[:, None] @ views.c2w[:, :, :3])[:, 0]  # [N, 3] in camera frames
    left, right, top, bottom = -0.5 * one, w - 0.5, -0.5 * one, h - 0.5
    corners = np.array([[left, top, one], [right, top, one], [right, bottom, one], [left, bottom, one]]).transpose(2, 0, 1)  # [N, 4, 3]
    rays = (np.linalg.inv(views.K)[:, None] @ corners[..., None])[..., 0]  # [N, 4, 3]
    normals = np.cross(rays, np.roll(rays, -1, 1))
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    sides = (normals * p[:, None]).sum(2)  # [N, 4] distance to the top, right, bottom, left side of the frustum
    depth = np.where(sides.min(1) > 0, np.maximum(np.minimum(sides[:, 0], sides[:, 2]), np.minimum(sides[:, 1], sides[:, 3])), 0)
    depth = depth[depth > 0]
    if 2 * len(depth) < len(views.c2w):
        return None
    return min(float(np.median(depth)), _clearance(views, centre)) or None


def smallest_ball(x: np.ndarray) -> tuple[np.ndarray, float]:
    """(centre [3], radius) of nearly the smallest ball that contains points [P, 3] (Badoiu and Clarkson 2003)."""
    centre = (x.min(0) + x.max(0)) / 2
    for i in range(200):
        centre = centre + (x[np.linalg.norm(x - centre, axis=1).argmax()] - centre) / (i + 2)
    return centre, float(np.linalg.norm(x - centre, axis=1).max())


# ---- choices ----


def _hull(views: Views, centre: np.ndarray) -> tuple[np.ndarray, float] | None:
    """(cells [P, 3], half a cell) of the visual hull around the centre; None without masks."""
    if views.masks is None or not views.train:
        return None
    reach = float(np.median(np.linalg.norm(views.centres - centre, axis=1)))
    return visual_hull(silhouettes(views.masks, views.K, views.c2w, list(views.train), views.sizes), centre, reach)


def _need_points(views: Views, key: str) -> np.ndarray:
    if views.points is None or len(views.points) < 10:
        raise UserError(f"{key} needs the points of structure from motion, and this scene has none; choose another value")
    return trimmed(views.points)


def _framed_points(views: Views, centre: np.ndarray, reach: float | None) -> np.ndarray | None:
    """Points [P, 3] in the ball of radius `reach`, the framed radius; points beyond it belong to the surroundings. None if few."""
    if views.points is None or reach is None:
        return None
    near = views.points[np.linalg.norm(views.points - centre, axis=1) < reach]
    return near if len(near) >= 50 else None


def _centre(views: Views, choice, given: np.ndarray) -> tuple[np.ndarray, float | None, str]:
    """(centre [3], radius or None, description)."""
    if views.box is not None:
        return box_sphere(views.box, views.c2w, views.points, views.seen, convergence_point(views.c2w)[0])
    if not isinstance(choice, str):
        return np.asarray(choice, np.float64), None, "the given centre"
    if choice == "given":
        return given, None, "the origin of the files"
    if choice == "cameras":
        return views.centres.mean(0), None, "the mean of the cameras"
    if choice == "points":
        return np.median(_need_points(views, "dataset.center=points"), 0), None, "the median of the points"
    if choice == "bbox":
        x = _need_points(views, "dataset.center=bbox")
        low, high = np.quantile(x, [0.01, 0.99], axis=0)
        return (low + high) / 2, MARGIN * float(np.linalg.norm(high - low)) / 2, "the bounding box of the points"
    point, share = convergence_point(views.c2w)
    if choice == "lookat":
        return point, None, "the point nearest to the optical axes"
    return _auto(views, point, share)


def _sight(views: Views) -> Sight | None:
    """The points in sight, None with masks and where there are few."""
    if views.masks is not None or views.points is None or len(views.points) < 50:
        return None
    sight = points_in_sight(views.points, *views.cameras, views.seen)
    return sight if len(sight.points) >= 50 else None


def _in_sight(views: Views, sight: Sight | None) -> tuple[np.ndarray, float | None, str] | None:
    """As `_centre`: the sphere around the points in sight, where the cameras are on one side of them."""
    if sight is None or not one_sided(views.centres, weighted_median(sight.points, sight.weight)):
        return None
    found = clear_sphere(sight.points, sight.weight, views.centres)
    return None if found is None else (*found, "the points in sight of the cameras, which stand on one side")


def _standing(views: Views, point: np.ndarray, reach: float, sight: Sight | None) -> tuple[np.ndarray, float, str] | None:
    """As `_centre`: the sphere around the object on a supporting plane. None without one, and for a wall that is itself looked at."""
    if views.points is None:
        return None
    found = standing_object(views.points, views.centres, point, reach, gaze(views.points, *views.cameras))
    if found is None:
        return None
    raised = found.normal @ point - found.offset > RAISED * reach  # the cameras look at something above the plane
    if found.points is None or found.gaze is None:
        cells = framed_above(*views.cameras, point, reach, found.normal, found.offset)
        if not raised or len(cells) < 10:
            return None
        centre, radius = smallest_ball(cells)
        return centre, min(radius, clearance(views.centres, centre)), "what the cameras frame above the supporting plane"
    assert found.gaze is not None
    centre, radius = smallest_ball(found.points)
    whole = radius > WHOLE * reach and np.linalg.norm(point - centre) < radius and found.height > TALL * radius
    if not (raised or whole) and sight is not None and one_sided(views.centres, weighted_median(sight.points, sight.weight)):
        return None
    fitted = clear_sphere(found.points, np.maximum(found.gaze, 0.01) ** 2, views.centres, ABOVE, STANDING)
    centre, radius = fitted or (centre, min(STANDING * radius, clearance(views.centres, centre)))
    return centre, radius, "the points above the supporting plane"


def _auto(views: Views, point: np.ndarray, share: float) -> tuple[np.ndarray, float | None, str]:
    """As `_centre`, for center=auto; point, share: of `convergence_point`."""
    sight = _sight(views)
    if share < 0.6:
        found = _in_sight(views, sight)
        if found is not None:
            return found
        if views.points is not None and len(views.points) >= 10:
            return np.median(trimmed(views.points), 0), None, "the median of the points (the optical axes do not converge)"
        return views.centres.mean(0), None, "the mean of the cameras (the optical axes do not converge)"
    hull = _hull(views, point)
    if hull is not None:
        centre, radius = smallest_ball(hull[0])
        return centre, MARGIN * (radius + hull[1]), "the visual hull of the masks"
    reach = framed_radius(views, point)
    near = _framed_points(views, point, reach)
    if near is None or views.points is None or reach is None:
        return _in_sight(views, sight) or (point, None, "the point nearest to the optical axes")
    found = _standing(views, point, reach, sight) or _in_sight(views, sight)
    return found or (np.median(near, 0), None, "the median of the framed points")


def _radius(views: Views, centre: np.ndarray) -> tuple[float, str]:
    """(radius, description)."""
    hull = _hull(views, centre)
    if hull is not None:
        return MARGIN * (float(np.linalg.norm(hull[0] - centre, axis=1).max()) + hull[1]), "the visual hull of the masks"
    framed = framed_radius(views, centre)
    near = _framed_points(views, centre, framed)
    if framed is not None and near is not None:
        extent = 1.1 * float(np.quantile(np.linalg.norm(near - centre, axis=1), 0.95))
        return float(np.clip(extent, 0.4 * framed, framed)), "the framed points"
    if framed is not None:
        return framed, "the camera frustums"
    if views.points is not None and len(views.points) >= 10:
        return 1.1 * float(np.quantile(np.linalg.norm(trimmed(views.points) - centre, axis=1), 0.95)), "the points"
    spread = float(np.linalg.norm(views.centres - centre, axis=1).max())
    return max(1.2 * spread, 1e-6), "the cameras"


def estimated_up(c2w: np.ndarray, points: np.ndarray | None, middle: np.ndarray, reach: float) -> tuple[np.ndarray, str]:
    """(unit up direction [3], description): from the ground that the object around `middle` stands on, else from the cameras [N, 3, 4].

    points [P, 3] or None: of structure from motion; reach: the framed radius.
    """
    up = up_axis(c2w)
    normal = None if points is None else ground_up(points, c2w[:, :, 3], up, middle, reach)
    return (up, "up from the cameras") if normal is None else (normal, "up from the ground plane")


def _up(views: Views, choice, middle: np.ndarray, radius: float) -> tuple[np.ndarray, str]:
    """(unit up direction [3], description)."""
    if not isinstance(choice, str):
        return np.asarray(choice, np.float64) / np.linalg.norm(choice), "up as set"
    if choice == "estimated":
        return estimated_up(views.c2w, views.points, middle, framed_radius(views, middle) or radius)
    up = up_axis(views.c2w)
    if choice != "ground":
        return up, "up from the cameras"
    _need_points(views, "dataset.up=ground")
    normal = None if views.points is None else ground_normal(views.points, up)
    return (up, "up from the cameras (no ground plane in the points)") if normal is None else (normal, "up from the ground plane")


def standing(up: np.ndarray) -> np.ndarray:
    """A rotation [3, 3] whose third column is the unit vector `up` [3]: it maps the z axis to it."""
    first = np.eye(3)[np.abs(up).argmin()]
    x = np.cross(np.cross(up, first), up)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(up, x), up], 1)


def _rotation(views: Views, choice, middle: np.ndarray, radius: float) -> tuple[np.ndarray, str]:
    """(rotation [3, 3] from the unit sphere's frame, z up, to the world; description)."""
    if isinstance(choice, str) and choice == "given":
        return np.eye(3), "axes as given"
    up, words = _up(views, choice, middle, radius)
    return standing(up), words


def choose_region(
    views: Views, cfg: DatasetConfig, given: np.ndarray | None = None, auto_up: str = "given", measured_up: np.ndarray | None = None
) -> tuple[np.ndarray, str]:
    """(to_world [4, 4], a line for the log). Raises UserError when a key needs points or masks that the scene lacks.

    given: a similarity [4, 4] from the files (DTU's scale_mat), kept unless a key overrides it. auto_up: the meaning of dataset.up=auto;
    "estimated" is `measured_up` [3], else from the ground plane, else from the cameras.
    """
    origin, rotation = np.zeros(3), None
    centre_choice, radius, up_choice = cfg.center, cfg.radius, cfg.up
    if given is not None:
        scale, given_rotation, origin = similarity_parts(given)
        if views.box is None and isinstance(centre_choice, str) and centre_choice in ("auto", "given"):
            centre_choice, radius = "given", radius or scale
        if isinstance(up_choice, str) and up_choice in ("auto", "given"):
            rotation = given_rotation
    centre, found, where = _centre(views, centre_choice, origin)
    if radius is not None:
        why = "as set" if cfg.radius is not None else "as given"
    elif found is not None:
        radius, why = found, where
    else:
        radius, why = _radius(views, centre)
    if not (np.isfinite(centre).all() and np.isfinite(radius) and 1e-12 < radius < 1e12):
        raise UserError(f"no region of interest: centre {centre.tolist()}, radius {radius:g}; set dataset.center and dataset.radius")
    upright = "axes as given"
    if rotation is None:
        choice = auto_up if isinstance(up_choice, str) and up_choice == "auto" else up_choice
        if measured_up is not None and isinstance(choice, str) and choice == "estimated":
            rotation, upright = standing(measured_up), "up from the markers"
        else:
            rotation, upright = _rotation(views, choice, centre, float(radius))
    shown = ", ".join(f"{v:.4g}" for v in centre)
    words = f"from {where}" if why == where else f"centre from {where}, radius {why if why.startswith('as ') else 'from ' + why}"
    line = f"region of interest: sphere around ({shown}) of radius {radius:.4g} world units: {words}; {upright}"
    if given is None and (views.masks is None or views.box is not None):
        line += f"; {HINT}"
    return similarity(float(radius), rotation, centre), line
