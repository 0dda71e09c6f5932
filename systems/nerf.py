"""The NeRF system: a density in place of a surface; the mesh is where the density passes a level."""

from torch import Tensor

from models.traced import Traced
from systems.base import RaySystem
from utils.rays import RayBatch, Rays, Render


class NeRFSystem(RaySystem):
    """Colour and density; terms on a surface (eikonal, curvature, ...) have nothing to say here."""

    def trace(self, batch: RayBatch, background: Tensor, jitter: Tensor, extra: Tensor | None, progress: float) -> Traced:
        return self.model.render(batch.rays, progress, background, jitter)

    def view(self, rays: Rays, background: Tensor, progress: float, everywhere: bool) -> Render:
        return self.model.render(rays, progress, background, None, self.model.test_step, everywhere, normals=True).render

    def surface(self, progress: float = 1.0):
        """(points [P, 3] -> [P], negative where the density exceeds `model.density.level`)."""
        return lambda x: self.model.distance(x, progress)

    def diagnosis(self) -> str:
        """One clause on the state of the geometry, for errors."""
        return f"density level {self.model.level:g} (model.density.level), occupied {self.model.occupancy.share:.2%}"
