"""One scene written in every layout: the tiny ellipsoid of tests/scenes.py through any lens."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tests.scenes import ring_cameras, trace
from utils.image import write_png

HW = (48, 64)
SCALE, CENTRE = 3.0, np.array([10.0, -20.0, 30.0])
FLIP = np.diag([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class Written:
    """What was written: K [3, 3] with pixel centres at integers, OpenCV distortion, camera to world [N, 3, 4]."""

    K: np.ndarray
    lens: tuple[float, ...]
    c2w: np.ndarray
    images: list[np.ndarray]  # RGBA [H, W, 4] in [0, 1]


def make(n_views: int = 8, fx: float = 70.0, fy: float = 73.0, cx: float = 33.1, cy: float = 21.4, lens: tuple = (), hw=HW) -> Written:
    """Views of the ellipsoid in a world that is scaled and off-centre."""
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    cameras, images = ring_cameras(n_views), []
    for c2w in cameras:
        rgb, mask = trace_lens(K, c2w, hw, lens)
        images.append(np.dstack([rgb, mask]).astype(np.float32))
    c2w = np.concatenate([cameras[:, :, :3], SCALE * cameras[:, :, 3:] + CENTRE[:, None]], 2)
    return Written(K, lens, c2w, images)


def trace_lens(K: np.ndarray, c2w: np.ndarray, hw: tuple[int, int], lens: tuple) -> tuple[np.ndarray, np.ndarray]:
    """`trace` through a distorting lens: each pixel takes the value that a pinhole has there."""
    if not lens:
        return trace(K, c2w, hw)
    big = 3
    wide = K.copy()
    wide[0, 2] += big * hw[1]
    wide[1, 2] += big * hw[0]
    rgb, mask = trace(wide, c2w, (hw[0] * (2 * big + 1), hw[1] * (2 * big + 1)))
    v, u = np.mgrid[: hw[0], : hw[1]].astype(np.float64)
    flat = np.stack([u, v], -1).reshape(-1, 1, 2)
    at = cv2.undistortPoints(
        flat, K, np.array((*lens, 0.0, 0.0, 0.0, 0.0)[: max(4, len(lens))]), R=np.eye(3), P=wide, criteria=(3, 100, 1e-12)
    )
    at = at.reshape(*hw, 2).astype(np.float32)
    return cv2.remap(rgb.astype(np.float32), at, None, cv2.INTER_LINEAR), cv2.remap(
        mask.astype(np.float32), at, None, cv2.INTER_LINEAR
    ) > 0.5


def opengl(c2w: np.ndarray) -> list:
    matrix = np.eye(4)
    matrix[:3] = np.concatenate([c2w[:, :3] @ FLIP, c2w[:, 3:]], 1)
    return matrix.tolist()


def write_dtu(folder: Path, w: Written) -> Path:
    mats, to_world = {}, np.diag([SCALE, SCALE, SCALE, 1.0])
    to_world[:3, 3] = CENTRE
    for i, (c2w, image) in enumerate(zip(w.c2w, w.images)):
        write_png(folder / f"image/{i:06d}.png", image[..., :3])
        write_png(folder / f"mask/{i:03d}.png", image[..., 3])
        world_mat = np.eye(4)
        world_mat[:3] = w.K @ np.concatenate([c2w[:, :3].T, -c2w[:, :3].T @ c2w[:, 3:]], 1)
        mats |= {f"world_mat_{i}": world_mat, f"scale_mat_{i}": to_world}
    np.savez(folder / "cameras_sphere.npz", **mats)
    return folder


def _intrinsics(w: Written) -> dict:
    h, width = w.images[0].shape[:2]
    names = ("k1", "k2", "p1", "p2", "k3")
    there = {"fl_x": w.K[0, 0], "fl_y": w.K[1, 1], "cx": w.K[0, 2] + 0.5, "cy": w.K[1, 2] + 0.5, "w": width, "h": h}
    return there | dict(zip(names, w.lens))


def write_transforms(folder: Path, w: Written, per_frame: bool = False, more: dict | None = None) -> Path:
    """instant-ngp's file; with per_frame the intrinsics stand in the frames."""
    folder.mkdir(parents=True, exist_ok=True)
    shared, frames = _intrinsics(w), []
    for i, (c2w, image) in enumerate(zip(w.c2w, w.images)):
        write_png(folder / f"images/{i:03d}.png", image)
        frames.append({"file_path": f"images/{i:03d}.png", "transform_matrix": opengl(c2w), **(shared if per_frame else {})})
    (folder / "transforms.json").write_text(json.dumps({**({} if per_frame else shared), **(more or {}), "frames": frames}))
    return folder


def write_blender(folder: Path, w: Written, test: tuple[int, ...] = (0, 4)) -> Path:
    """NeRF-synthetic, whose one number is camera_angle_x; what it cannot say is said as instant-ngp does."""
    h, width = w.images[0].shape[:2]
    plain = {"camera_angle_x": 2 * np.arctan(width / 2 / w.K[0, 0])}
    simple = w.K[0, 0] == w.K[1, 1] and (w.K[0, 2], w.K[1, 2]) == ((width - 1) / 2, (h - 1) / 2) and not w.lens
    for split, views in (("train", [i for i in range(len(w.images)) if i not in test]), ("test", [i for i in test if i < len(w.images)])):
        frames = []
        for k, i in enumerate(views):
            write_png(folder / f"{split}/r_{k}.png", w.images[i])
            frames.append({"file_path": f"./{split}/r_{k}", "transform_matrix": opengl(w.c2w[i])})
        (folder / f"transforms_{split}.json").write_text(json.dumps({**plain, **({} if simple else _intrinsics(w)), "frames": frames}))
    return folder


def _quaternion(R: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation: the eigenvector of Bar-Itzhack's matrix."""
    (a, b, c), (d, e, f), (g, h, i) = R
    K = np.array(
        [
            [a - e - i, d + b, g + c, h - f],
            [d + b, e - a - i, h + f, c - g],
            [g + c, h + f, i - a - e, d - b],
            [h - f, c - g, d - b, a + e + i],
        ]
    )
    x, y, z, w = np.linalg.eigh(K)[1][:, 3]
    return np.array([w, x, y, z])


def _colmap_camera(w: Written) -> tuple[str, int, list[float]]:
    start = [w.K[0, 0], w.K[1, 1], w.K[0, 2] + 0.5, w.K[1, 2] + 0.5]
    if not w.lens:
        return "PINHOLE", 1, start
    lens = [*w.lens, *[0.0] * 8][:8]
    return ("OPENCV", 4, start + lens[:4]) if not any(lens[4:]) else ("FULL_OPENCV", 6, start + lens)


def surface_points(n: int = 60, seed: int = 0) -> np.ndarray:
    """[n, 3] of the ellipsoid, in the world."""
    x = np.random.default_rng(seed).standard_normal((n, 3))
    return x / np.linalg.norm(x, axis=1, keepdims=True) * (0.6, 0.5, 0.4) * SCALE + CENTRE


def write_colmap(folder: Path, w: Written, text: bool = False, sub: str = "left/", points: np.ndarray | None = None) -> Path:
    """Images in a subfolder, binary or text, one camera, points [P, 3] (by default of the ellipsoid's surface)."""
    sparse = folder / "sparse/0"
    sparse.mkdir(parents=True, exist_ok=True)
    h, width = w.images[0].shape[:2]
    name, model, params = _colmap_camera(w)
    poses = [(_quaternion(c2w[:, :3].T), -c2w[:, :3].T @ c2w[:, 3]) for c2w in w.c2w]
    names, x = [f"{sub}{i:03d}.png" for i in range(len(poses))], surface_points() if points is None else points
    for file, image in zip(names, w.images):
        write_png(folder / "images" / file, image)
    if text:
        numbers = " ".join(map(repr, map(float, params)))
        (sparse / "cameras.txt").write_text(f"# cameras\n7 {name} {width} {h} {numbers}\n")
        rows = [
            f"{i + 1} {' '.join(repr(float(v)) for v in (*q, *t))} 7 {n}\n1.5 2.5 -1\n" for i, ((q, t), n) in enumerate(zip(poses, names))
        ]
        (sparse / "images.txt").write_text("# images\n" + "".join(rows))
        rows = [f"{i} {p[0]} {p[1]} {p[2]} 9 9 9 0.5 1 0 2 0 3 0\n" for i, p in enumerate(x)]
        (sparse / "points3D.txt").write_text("# points\n" + "".join(rows))
        return folder
    (sparse / "cameras.bin").write_bytes(struct.pack("<QiiQQ", 1, 7, model, width, h) + struct.pack(f"<{len(params)}d", *params))
    rows = [
        struct.pack("<i7di", i + 1, *q, *t, 7) + n.encode() + b"\0" + struct.pack("<QddQ", 1, 1.5, 2.5, 2**64 - 1)
        for i, ((q, t), n) in enumerate(zip(poses, names))
    ]
    (sparse / "images.bin").write_bytes(struct.pack("<Q", len(rows)) + b"".join(rows))
    rows = [struct.pack("<Q3d3BdQ6i", i, *p, 9, 9, 9, 0.5, 3, 1, 0, 2, 0, 3, 0) for i, p in enumerate(x)]
    (sparse / "points3D.bin").write_bytes(struct.pack("<Q", len(rows)) + b"".join(rows))
    return folder


def write_sdfstudio(folder: Path, w: Written, more: dict | None = None) -> Path:
    """sdfstudio's file: cameras around the unit sphere, and `worldtogt` to the world."""
    to_gt = np.diag([SCALE, SCALE, SCALE, 1.0])
    to_gt[:3, 3] = CENTRE
    K, frames = np.eye(4), []
    K[:3, :3] = w.K
    K[:2, 2] += 0.5
    for i, (c2w, image) in enumerate(zip(w.c2w, w.images)):
        write_png(folder / f"{i:06d}_rgb.png", image)
        pose = np.eye(4)
        pose[:3] = np.concatenate([c2w[:, :3], (c2w[:, 3:] - CENTRE[:, None]) / SCALE], 1)
        frames.append({"rgb_path": f"{i:06d}_rgb.png", "camtoworld": pose.tolist(), "intrinsics": K.tolist()})
    h, width = w.images[0].shape[:2]
    data = {"camera_model": "OPENCV", "height": h, "width": width, "has_mono_prior": False, "worldtogt": to_gt.tolist()}
    box = {"aabb": [[-1, -1, -1], [1, 1, 1]], "near": 0.5, "far": 4.5, "radius": 1.0, "collider_type": "near_far"}
    (folder / "meta_data.json").write_text(json.dumps({**data, "scene_box": box, **(more or {}), "frames": frames}))
    return folder


def write_llff(folder: Path, w: Written, images: str = "images") -> Path:
    """LLFF's array: axes down, right, backwards; one focal length, the principal point in the middle."""
    h, width = w.images[0].shape[:2]
    rows = []
    for i, (c2w, image) in enumerate(zip(w.c2w, w.images)):
        write_png(folder / images / f"image{i:03d}.png", image)
        matrix = np.stack([c2w[:, 1], c2w[:, 0], -c2w[:, 2], c2w[:, 3], [h, width, w.K[0, 0]]], 1)
        rows.append([*matrix.ravel(), 1.0, 20.0])
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder


def write_middlebury(folder: Path, w: Written) -> Path:
    """Names, K, R and t of world to camera."""
    lines = [str(len(w.images))]
    for i, (c2w, image) in enumerate(zip(w.c2w, w.images)):
        write_png(folder / f"ellipsoid{i:04d}.png", image)
        R = c2w[:, :3].T
        lines.append(" ".join([f"ellipsoid{i:04d}.png", *(repr(float(x)) for x in (*w.K.ravel(), *R.ravel(), *-(R @ c2w[:, 3])))]))
    (folder / "ellipsoid_par.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_metashape(folder: Path, w: Written, cameras: str = "", calibration: str = "") -> Path:
    """Metashape's XML: cameras in the frame of a chunk that a similarity maps to the world; more cameras and coefficients as text."""
    h, width = w.images[0].shape[:2]
    k1, k2, p1, p2, k3 = (*w.lens, *[0.0] * 5)[:5]
    values = {"f": w.K[1, 1], "cx": w.K[0, 2] + 0.5 - width / 2, "cy": w.K[1, 2] + 0.5 - h / 2, "b1": w.K[0, 0] - w.K[1, 1]}
    values |= {"b2": w.K[0, 1], "k1": k1, "k2": k2, "k3": k3, "p1": p2, "p2": p1}
    turn = cv2.Rodrigues(np.array([0.3, -0.8, 0.5]))[0]
    text = []
    for i, (c2w, image) in enumerate(zip(w.c2w, w.images)):
        write_png(folder / f"images/IMG_{i:04d}.png", image)
        pose = np.eye(4)
        pose[:3] = np.concatenate([turn.T @ c2w[:, :3], turn.T @ (c2w[:, 3:] - CENTRE[:, None]) / SCALE], 1)
        matrix = " ".join(repr(float(x)) for x in pose.ravel())
        text.append(f'<camera id="{i}" sensor_id="0" component_id="0" label="IMG_{i:04d}"><transform>{matrix}</transform></camera>')
    numbers = "".join(f"<{tag}>{float(value)!r}</{tag}>" for tag, value in values.items()) + calibration
    size = f'<resolution width="{width}" height="{h}"/>'
    rotation, shift = (" ".join(repr(float(x)) for x in array.ravel()) for array in (turn, CENTRE))
    (folder / "cameras.xml").write_text(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<document version="2.0.0"><chunk label="Chunk 1" enabled="true"><sensors next_id="1">'
        f'<sensor id="0" label="camera" type="frame">{size}<calibration type="frame" class="initial">{size}<f>1</f></calibration>'
        f'<calibration type="frame" class="adjusted">{size}{numbers}</calibration></sensor></sensors>'
        f'<cameras next_id="9" next_group_id="1">{"".join(text[:3])}<group id="0">{"".join(text[3:])}</group>{cameras}</cameras>'
        f'<transform><rotation locked="false">{rotation}</rotation><translation locked="false">{shift}</translation>'
        f'<scale locked="false">{SCALE}</scale></transform></chunk></document>\n'
    )
    return folder
