"""The system of NeRO's first stage: NeuS's, and the maps of what a picture is made of."""

from dataclasses import fields

import torch
from torch import Tensor

from models.shading import Shading
from systems.neus import NeuSSystem
from utils.colour import linear_to_srgb
from utils.rays import Rays, Render

# what the sheets show of a shaded point; colours and light are linear there and sRGB in the picture
LINEAR = {"albedo", "diffuse", "specular", "photographer"}
LABELS = {"diffuse": "diffuse light", "specular": "specular light"}


class NeROShapeSystem(NeuSSystem):
    """Shape by split-sum shading; no step of its own, the occlusion is a loss term."""

    @torch.no_grad()
    def maps(self, rays: Rays, render: Render, progress: float = 1.0, chunk: int = 4096) -> dict[str, Tensor]:
        """Lights, occlusion and materials [R, 3] at the surface points of a rendered view, on black."""
        found: dict[str, Tensor] = {}
        for start in range(0, len(rays), chunk):
            part = slice(start, start + chunk)
            piece = Render(*(getattr(render, name)[part] for name in ("rgb", "opacity", "depth", "normal")))
            hit, shading = self.model.shade(rays[part], piece, progress)
            for name, value in self._shown(shading).items():
                found.setdefault(name, torch.zeros_like(render.rgb))[start + hit] = value * piece.opacity[hit, None]
        return found

    @staticmethod
    def _shown(shading: Shading) -> dict[str, Tensor]:
        """Label -> [P, 3] in [0, 1]."""
        parts = {f.name: getattr(shading, f.name) for f in fields(Shading) if f.name != "colour"}
        parts = {name: value for name, value in parts.items() if value is not None}
        return {
            LABELS.get(name, name): linear_to_srgb(value.clamp(0, 1)) if name in LINEAR else value[:, None].expand(-1, 3)
            for name, value in parts.items()
        }
