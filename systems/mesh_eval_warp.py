"""Nearest faces of points as a Warp kernel; `systems/mesh_eval.py: nearest_numpy` is its specification."""

import warp as wp


@wp.kernel(module="unique", enable_backward=False)
def nearest(mesh: wp.uint64, points: wp.array(dtype=wp.vec3), far: float, begin: int, stop: int, run: int, face: wp.array(dtype=int)):
    first = begin + wp.tid() * run
    for i in range(first, wp.min(first + run, stop)):
        hit = wp.mesh_query_point_no_sign(mesh, points[i], far)
        if hit.result:
            face[i] = hit.face
