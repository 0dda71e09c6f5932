"""Point clouds from PLY files."""

from pathlib import Path

import numpy as np

from utils.errors import UserError

MAX_BYTES = 1 << 30  # larger files are not point clouds of structure from motion


def read_ply_points(path: Path) -> np.ndarray:
    """The finite vertices [P, 3] float64 of a PLY file, P >= 1; other vertices are dropped. Raises UserError."""
    if path.suffix.lower() != ".ply":
        raise UserError(f"{path}: expected a point cloud in a .ply file; convert it to PLY")
    import trimesh

    try:
        n_bytes = path.stat().st_size
        if n_bytes > MAX_BYTES:
            raise UserError(f"{path}: {n_bytes / 2**30:.1f} GiB, expected at most {MAX_BYTES / 2**30:.0f} GiB; reduce the point cloud")
        loaded = trimesh.load(path, file_type="ply", process=False, maintain_order=True)
        x = np.asarray(getattr(loaded, "vertices", np.zeros((0, 3))), np.float64).reshape(-1, 3)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check that the file exists and may be read") from None
    except Exception as error:  # noqa: BLE001 - trimesh raises many types on damaged files
        raise UserError(f"{path}: not a readable PLY file ({type(error).__name__}: {str(error)[:80]}); export it again") from None
    x = x[np.isfinite(x).all(1) & (np.abs(x) < 1e12).all(1)]
    if not len(x):
        raise UserError(f"{path}: no finite vertices, expected a point cloud; export it again")
    return x
