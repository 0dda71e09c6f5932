"""Whether the confidence of a run's mesh predicts its error: `python -m tests.benchmarks.confidence RUN TRUTH`.

    python -m tests.benchmarks.confidence outputs/NAME/TRIAL data/bunny/gt_mesh.ply

RUN: a run folder whose mesh/mesh.ply has the property `confidence`, or such a file; TRUTH: the true mesh in the world. The error of a
vertex is its exact distance to the true surface, in world units. Prints the mean error by tenths of the confidence, least sure first,
the ratio of the worst tenth to the better half, the same among the vertices above a confidence of 0.3, and the rank correlation.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import trimesh
from scipy.stats import spearmanr

from systems.mesh_eval import distances, nearest_triangles
from utils.errors import UserError
from utils.mesh import in_world, load_mesh

SEEN = 0.3  # confidence below which hardly anything was seen


def vertex_confidence(path: Path) -> tuple[trimesh.Trimesh, np.ndarray]:
    """(the mesh in the world, its property `confidence` [V]). Raises UserError where it has none."""
    mesh = load_mesh(path)
    raw = mesh.metadata.get("_ply_raw", {}).get("vertex", {}).get("data")
    if raw is None or "confidence" not in (raw.dtype.names or ()) or len(raw) != len(mesh.vertices):
        raise UserError(f"{path}: no property 'confidence' of its vertices; export the mesh again with export.confidence=true")
    return in_world(mesh), np.asarray(raw["confidence"], np.float64).ravel()


def errors_of(mesh: trimesh.Trimesh, truth: trimesh.Trimesh) -> np.ndarray:
    """[V] exact distance of each vertex to the true surface."""
    triangles, x = np.asarray(truth.vertices, np.float64)[np.asarray(truth.faces)], np.asarray(mesh.vertices, np.float64)
    return distances(x, triangles[nearest_triangles(triangles, x)])


def tenths(confidence: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, float]:
    """(mean error [10] of the tenths by confidence, least sure first; ratio of the first to the mean of the better half)."""
    order = np.argsort(confidence, kind="stable")
    means = np.array([error[part].mean() for part in np.array_split(order, 10)])
    return means, float(means[0] / max(error[order[len(order) // 2 :]].mean(), 1e-300))


def table(confidence: np.ndarray, error: np.ndarray) -> str:
    """The lines that are printed."""
    lines = []
    for title, part in (("all vertices", confidence >= 0), (f"confidence above {SEEN}", confidence > SEEN)):
        if part.sum() < 20:
            continue
        c, e = confidence[part], error[part]
        order = np.array_split(np.argsort(c, kind="stable"), 10)
        means, ratio = tenths(c, e)
        lines += [f"{title}: {part.sum()}, mean error {e.mean():.5g}", "tenth  confidence       mean error"]
        lines += [f"{k + 1:5d}  {c[o].min():.3f} .. {c[o].max():.3f}   {m:.5g}" for k, (o, m) in enumerate(zip(order, means))]
        lines.append(f"worst tenth over better half: {ratio:.2f}; rank correlation of confidence and error {spearmanr(c, e)[0]:+.3f}")
    return "\n".join(lines)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder, or its mesh.ply")
    parser.add_argument("truth", help="the true mesh, in world units")
    options = parser.parse_args(words)
    path = Path(options.run)
    try:
        mesh, confidence = vertex_confidence(path / "mesh/mesh.ply" if path.is_dir() else path)
        print(table(confidence, errors_of(mesh, in_world(load_mesh(options.truth)))))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
