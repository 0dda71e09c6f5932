"""The encodings by name. A new one: a module with `width` and `forward([N, D]) -> [N, width]`, and an entry here.

An encoding of positions takes points in [0, 1]^3 and the number of open levels as second argument (`n_levels` says how many
there are, `fractional` whether they open gradually).
"""

from torch import nn

from encoder.directional import IntegratedDirectional
from encoder.frequency import Frequency, IntegratedFrequency
from encoder.hashgrid import HashGrid, HashGridSpec
from encoder.identity import Identity, WithIdentity
from encoder.spherical import SphericalHarmonics

ENCODINGS = {
    "hashgrid": HashGrid,
    "frequency": Frequency,
    "spherical": SphericalHarmonics,
    "identity": Identity,
    "ipe": IntegratedFrequency,
    "ide": IntegratedDirectional,
}


def get_encoding(name: str, **options) -> nn.Module:
    """Build an encoding; `identity+NAME` puts the input in front. Raises ValueError for an unknown name."""
    front, plus, inner = name.partition("+")
    if plus and front == "identity":
        return WithIdentity(get_encoding(inner, **options))
    if name not in ENCODINGS:
        raise ValueError(f"unknown encoding {name!r}; one of {', '.join(ENCODINGS)}, or identity+NAME")
    return ENCODINGS[name](**options)


__all__ = ["ENCODINGS", "HashGridSpec", "get_encoding"]
