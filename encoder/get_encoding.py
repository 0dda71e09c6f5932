"""The encodings by name. A new one: a module with `width` and `forward([N, D]) -> [N, width]`, and an entry here."""

from torch import nn

from encoder.frequency import Frequency
from encoder.hashgrid import HashGrid, HashGridSpec
from encoder.spherical import SphericalHarmonics

ENCODINGS = {"hashgrid": HashGrid, "frequency": Frequency, "spherical": SphericalHarmonics}


def get_encoding(name: str, **options) -> nn.Module:
    """Build an encoding; raises ValueError for an unknown name."""
    if name not in ENCODINGS:
        raise ValueError(f"unknown encoding {name!r}; one of {', '.join(ENCODINGS)}")
    return ENCODINGS[name](**options)


__all__ = ["ENCODINGS", "HashGridSpec", "get_encoding"]
