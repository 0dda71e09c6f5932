"""First hits of rays with a triangle mesh as a Warp kernel; `models/raytrace.py: trace_torch` is its specification."""

import warp as wp


@wp.kernel(module="unique", enable_backward=False)
def trace(
    mesh: wp.uint64, origins: wp.array(dtype=wp.vec3), dirs: wp.array(dtype=wp.vec3), far: float, begin: int, stop: int, run: int,
    t: wp.array(dtype=float), face: wp.array(dtype=int), weights: wp.array(dtype=wp.vec3),
):  # fmt: skip
    first = begin + wp.tid() * run
    for i in range(first, wp.min(first + run, stop)):
        hit = wp.mesh_query_ray(mesh, origins[i], dirs[i], far)
        if hit.result:
            t[i] = hit.t
            face[i] = hit.face
            weights[i] = wp.vec3(hit.u, hit.v, 1.0 - hit.u - hit.v)
