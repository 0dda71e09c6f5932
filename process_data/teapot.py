"""The demo's object: a teapot with a bird as a signed distance function, its materials and how light falls on it.

Unit sphere's frame, z up. `sdf` bounds distance from below within the share STEP.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BOUND = 0.82  # radius that holds the object
STEP = 0.7  # share of the sdf that is safe to advance: grooves and smooth unions make it steeper than 1
LOBES, TWIST = 7, 4.0  # of the spiral grooves round the belly


# ---- shape ------------------------------------------------------------------------------------------------------------------


def _smin(a: Tensor, b: Tensor, k: float) -> Tensor:
    """Minimum of two distances, blended over the width k."""
    h = (k - (a - b).abs()).clamp_min(0)
    return torch.minimum(a, b) - h * h * (0.25 / k)


def _ellipsoid(p: Tensor, centre: tuple, radii: tuple) -> Tensor:
    """First-order distance to an ellipsoid, [P]."""
    r = p.new_tensor(radii)
    q = (p - p.new_tensor(centre)) / r
    k0 = q.norm(dim=-1)
    return k0 * (k0 - 1) / (q / r).norm(dim=-1).clamp_min(1e-9)


def _disc(rho: Tensor, z: Tensor, height: float, radius: float, half: float, rounding: float) -> Tensor:
    """Upright cylinder with rounded rims; rho, z: cylindrical coordinates."""
    dr, dz = rho - (radius - rounding), (z - height).abs() - (half - rounding)
    return torch.hypot(dr.clamp_min(0), dz.clamp_min(0)) + torch.maximum(dr, dz).clamp_max(0) - rounding


def _cone(p: Tensor, a: tuple, b: tuple, ra: float, rb: float) -> Tensor:
    """Capsule from a to b whose radius runs from ra to rb."""
    a_, ab = p.new_tensor(a), p.new_tensor(b) - p.new_tensor(a)
    t = ((p - a_) @ ab / (ab @ ab)).clamp(0, 1)
    return (p - a_ - t[:, None] * ab).norm(dim=-1) - torch.lerp(torch.full_like(t, ra), torch.full_like(t, rb), t)


def _curve(p: Tensor, a: tuple, b: tuple, c: tuple) -> tuple[Tensor, Tensor]:
    """Distance to the quadratic Bezier a, b, c of the plane y = 0 and its parameter, [P] each: three Newton steps from the chord."""
    a_, b_, c_ = (p.new_tensor(v) for v in (a, b, c))
    u, v = b_ - a_, a_ - 2 * b_ + c_  # curve(t) = a + 2 t u + t^2 v
    d = a_ - p
    c0, c1, c2, c3 = d @ u, 2 * (u @ u) + d @ v, 3 * (u @ v), v @ v  # half the derivative of the squared distance
    t = ((p - a_) @ (c_ - a_) / ((c_ - a_) @ (c_ - a_))).clamp(0, 1)
    for _ in range(4):
        slope = c1 + t * (2 * c2 + 3 * t * c3)
        t = (t - (c0 + t * (c1 + t * (c2 + t * c3))) / slope.clamp_min(0.05)).clamp(0, 1)
    q = d + t[:, None] * (2 * u + t[:, None] * v)
    return q.norm(dim=-1), t


def _groove(p: Tensor) -> Tensor:
    """0 in the creases of the belly, 1 on the crests, [P]."""
    phase = LOBES * torch.atan2(p[:, 1], p[:, 0]) + TWIST * p[:, 2] * 2
    return torch.cos(phase).square().add(1e-3).sqrt()  # |cos|, a little rounded


SPOUT = ((0.28, 0.0, -0.24), (0.60, 0.0, -0.20), (0.66, 0.0, 0.24))


def _belly(p: Tensor, rho: Tensor) -> Tensor:
    """Fluted body on a foot."""
    z = p[:, 2]
    window = (1 - ((z + 0.13) / 0.31).square()).clamp_min(0)
    body = _ellipsoid(p, (0, 0, -0.12), (0.42, 0.42, 0.37)) - 0.045 * window * (_groove(p) - 0.5)
    return _smin(body, _disc(rho, z, -0.50, 0.25, 0.045, 0.012), 0.06)


def _limbs(p: Tensor) -> Tensor:
    """Spout (bent, tapered, cut, hollow at its mouth) and handle with a thumb rest."""
    distance, t = _curve(p, *SPOUT)
    tip, bend = p.new_tensor(SPOUT[2]), p.new_tensor(SPOUT[1])
    along = (p - tip) @ F.normalize(tip - bend, dim=0)
    spout = torch.maximum(distance - (0.115 - 0.12 * t + 0.058 * t * t), along)
    spout = torch.maximum(spout, -(_ellipsoid(p, SPOUT[2], (0.036, 0.036, 0.07))))
    ring = torch.hypot((p[:, 0] + 0.43), (p[:, 2] + 0.07) * 0.92) - 0.25
    handle = torch.hypot(ring, p[:, 1] * 0.8) - 0.042
    handle = _smin(handle, _ellipsoid(p, (-0.54, 0, 0.215), (0.055, 0.04, 0.035)), 0.04)
    return torch.minimum(spout, handle)


def _trim(p: Tensor, rho: Tensor) -> Tensor:
    """Collar and lid, with a ring cut into the lid."""
    z = p[:, 2]
    collar = _disc(rho, z, 0.215, 0.225, 0.04, 0.006)
    lid = _ellipsoid(p, (0, 0, 0.235), (0.20, 0.20, 0.115))
    return torch.maximum(_smin(collar, lid, 0.012), 0.014 - torch.hypot(rho - 0.145, z - 0.318))


def _bird(p: Tensor) -> Tensor:
    """The knob of the lid: a small bird that faces +x."""
    trunk = _ellipsoid(p, (0, 0, 0.405), (0.12, 0.085, 0.085))
    head = _ellipsoid(p, (0.085, 0, 0.50), (0.066, 0.06, 0.06))
    side = torch.stack((p[:, 0], p[:, 1].abs(), p[:, 2]), dim=-1)
    wing = _ellipsoid(side, (-0.035, 0.075, 0.425), (0.095, 0.022, 0.05))
    tail = _cone(p, (-0.08, 0, 0.42), (-0.215, 0, 0.50), 0.042, 0.022)
    bird = _smin(_smin(_smin(trunk, head, 0.05), tail, 0.05), wing, 0.008)
    return _smin(bird, _cone(p, (0.13, 0, 0.503), (0.193, 0, 0.487), 0.026, 0.005), 0.01)


def _parts(p: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distances to belly, limbs, trim and bird, [P] each."""
    rho = torch.hypot(p[:, 0], p[:, 1])
    return _belly(p, rho), _limbs(p), _trim(p, rho), _bird(p)


def sdf(p: Tensor) -> Tensor:
    """Signed distance bound at p [P, 3] in the unit sphere's frame, negative inside: [P]. Its gradient is at most 1 / STEP long."""
    belly, limbs, trim, bird = _parts(p)
    return _smin(_smin(_smin(belly, limbs, 0.05), trim, 0.015), bird, 0.025)


def normals(p: Tensor, eps: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Gradient of the sdf by central differences on a tetrahedron's corners: unit normals [P, 3] and length [P]."""
    corners = p.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    grad = sum(corner * sdf(p + eps * corner)[:, None] for corner in corners) / (4 * eps)
    return F.normalize(grad, dim=-1), grad.norm(dim=-1)


# ---- colour -----------------------------------------------------------------------------------------------------------------


def noise_volume(seed: int, size: int = 48) -> Tensor:
    """Periodic smooth noise in about [-1, 1] of three channels, [1, 3, size+1, size+1, size+1]: one bump every 3 cells."""
    rng = np.random.default_rng(seed)
    v = torch.from_numpy(rng.standard_normal((1, 3, size, size, size)).astype(np.float32))
    for axis in (2, 3, 4):
        v = (v.roll(-1, axis) + 2 * v + v.roll(1, axis)) / 4
        v = (v.roll(-1, axis) + v + v.roll(1, axis)) / 3
    v = v / (2 * v.std())
    for axis in (2, 3, 4):
        v = torch.cat((v, v.narrow(axis, 0, 1)), dim=axis)
    return v


def _noise(volume: Tensor, p: Tensor, frequency: float) -> Tensor:
    """[P, 3] noise with about `frequency` bumps per unit."""
    cells = (volume.shape[-1] - 1) / (3 * frequency)
    x = torch.remainder(p / cells, 1.0) * 2 - 1
    return F.grid_sample(volume, x[None, None, None], align_corners=True)[0, :, 0, 0].T


def _mix(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    return a + (b - a) * w[:, None]


def _smooth(x: Tensor, low: float, high: float) -> Tensor:
    """0 below low, 1 above high, smooth in between."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _glaze(p: Tensor, n1: Tensor, n2: Tensor, n3: Tensor) -> Tensor:
    """Blue and cream marble with gold in the grooves."""
    cream, blue, teal, gold = (p.new_tensor(c) for c in ((0.70, 0.57, 0.36), (0.02, 0.06, 0.22), (0.03, 0.24, 0.29), (0.72, 0.36, 0.05)))
    vein = torch.sin(9 * p[:, 2] + 4 * p[:, 0] + 3.0 * n1[:, 0] + 1.6 * n2[:, 0] + 0.8 * n3[:, 0])
    crackle = torch.minimum((n2[:, 2] + 0.35 * n3[:, 0]).abs() * 1.4, (n3[:, 2] + 0.3 * n2[:, 0]).abs() * 2.5)  # thin lines in the cream
    pale = _mix(teal * 0.8, cream, 0.35 + 0.65 * _smooth(crackle, 0.05, 0.28))
    sea = _mix(blue, teal, _smooth(n1[:, 1] + 0.6 * n2[:, 1] + 0.35 * n3[:, 1], -0.5, 0.6))
    sea = _mix(sea, teal + 0.25, 0.7 * _smooth(n3[:, 1] - 0.5 * n2[:, 0], 0.5, 0.8))
    colour = _mix(sea, pale, _smooth(vein, 0.1, 0.45))
    belt = _smooth(_groove(p), 0.14, 0.26) + _smooth((p[:, 2] + 0.13).abs(), 0.22, 0.26)
    return _mix(gold.expand_as(p), colour, belt.clamp(0, 1))


def _clay(p: Tensor, n1: Tensor, n2: Tensor, n3: Tensor) -> Tensor:
    """Terracotta with slanting dark and pale bands."""
    red, dark, pale = (p.new_tensor(c) for c in ((0.55, 0.14, 0.06), (0.10, 0.025, 0.02), (0.85, 0.50, 0.22)))
    band = torch.sin(34 * (p[:, 2] + 0.45 * p[:, 1] + 0.3 * p[:, 0]) + 0.9 * n2[:, 2] + 0.6 * n3[:, 1])
    return _mix(_mix(red, dark, _smooth(band, 0.35, 0.75)), pale.expand_as(p), _smooth(-band + 0.3 * n2[:, 0], 0.75, 0.95))


def _jade(p: Tensor, n1: Tensor, n2: Tensor, n3: Tensor) -> Tensor:
    """Green stone with dark clouds and pale specks."""
    green, dark, pale = (p.new_tensor(c) for c in ((0.10, 0.38, 0.16), (0.01, 0.10, 0.07), (0.72, 0.80, 0.45)))
    cloudy = _mix(green, dark, _smooth(n2[:, 1] + 0.7 * n1[:, 0], -0.1, 0.6))
    return _mix(cloudy, pale.expand_as(p), _smooth(n3[:, 2] + 0.5 * n2[:, 0], 0.45, 0.7))


def _plumage(p: Tensor, n1: Tensor, n2: Tensor, n3: Tensor) -> Tensor:
    """Orange back, pale belly, dark flecks, yellow beak, black eyes."""
    orange, pale, dark, yellow = (p.new_tensor(c) for c in ((0.80, 0.20, 0.03), (0.90, 0.72, 0.48), (0.16, 0.03, 0.03), (0.95, 0.60, 0.04)))
    chest = _smooth(p[:, 0] * 1.2 - p[:, 2] + 0.40 + 0.03 * n2[:, 0], 0.0, 0.05)
    colour = _mix(_mix(orange, pale, chest), dark.expand_as(p), _smooth(n3[:, 0] + 0.4 * n2[:, 1], 0.35, 0.6) * 0.9)
    colour = _mix(colour, yellow.expand_as(p), _smooth(p[:, 0], 0.142, 0.15))
    eye = torch.stack((p[:, 0] - 0.112, p[:, 1].abs() - 0.048, p[:, 2] - 0.52), dim=-1).norm(dim=-1)
    colour = _mix(p.new_tensor((0.95, 0.93, 0.88)), colour, _smooth(eye, 0.022, 0.027))
    return _mix(colour, dark.expand_as(p) * 0.1, _smooth(-eye, -0.018, -0.014))


def albedo(p: Tensor, volume: Tensor) -> Tensor:
    """Linear colour at surface points [P, 3], in [0, 1]: materials blend where the parts join."""
    n1, n2, n3, n4 = (_noise(volume, p, f) for f in (4.0, 11.0, 27.0, 55.0))
    weights = torch.softmax(-torch.stack(_parts(p), dim=-1) / 0.004, dim=-1)  # [P, 4]
    colours = torch.stack([f(p, n1, n2, n3) for f in (_glaze, _clay, _jade, _plumage)], dim=1)  # [P, 4, 3]
    grain = 1 + 0.20 * n4[:, :1] + 0.16 * n3[:, 1:2] + 0.10 * n2[:, 2:3]  # no area is without texture at any scale
    return ((weights[..., None] * colours).sum(1) * grain).clamp(0, 1)


LIGHTS = (((0.5, -0.6, 0.75), (1.20, 1.10, 0.95)), ((-0.8, 0.25, 0.45), (0.42, 0.50, 0.62)), ((0.25, 0.9, 0.1), (0.38, 0.34, 0.32)))


def _occlusion(p: Tensor, n: Tensor) -> Tensor:
    """How open the surface is, 0 to 1, [P]: the sdf a little way out compared with that way."""
    closed = torch.zeros_like(p[:, 0])
    for step, weight in ((0.03, 6.0), (0.08, 3.0), (0.18, 1.5)):
        closed += weight * (step - sdf(p + step * n)).clamp_min(0)
    return (1 - 0.9 * closed).clamp(0.15, 1)


def shade(p: Tensor, dirs: Tensor, volume: Tensor) -> Tensor:
    """sRGB [P, 3] of surface points viewed along dirs: sky, three lights fixed in the world, Blinn-Phong highlights."""
    n, _ = normals(p)
    base, opened = albedo(p, volume), _occlusion(p, n)[:, None]
    sky = p.new_tensor((0.26, 0.29, 0.33)) + n[:, 2:] * p.new_tensor((0.13, 0.13, 0.13))
    diffuse, gloss = sky * opened, torch.zeros_like(p)
    for direction, rgb in LIGHTS:
        towards, colour = F.normalize(p.new_tensor(direction), dim=0), p.new_tensor(rgb)
        facing = (n @ towards).clamp_min(0)
        half = (n * F.normalize(towards - dirs, dim=-1)).sum(-1).clamp_min(0)
        diffuse = diffuse + (facing * (0.4 + 0.6 * opened[:, 0]))[:, None] * colour * 0.9
        gloss = gloss + (0.22 * half**48 * _smooth(facing, 0, 0.2))[:, None] * colour * opened
    linear = (base * diffuse + gloss).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(1e-6) ** (1 / 2.4) - 0.055)
