"""The encodings by name. A new one: an `Encoding` and an entry here."""

from encoder.directional import IntegratedDirectional
from encoder.encoding import Encoding
from encoder.frequency import Frequency, IntegratedFrequency
from encoder.hashgrid import HashGrid, HashGridSpec
from encoder.identity import Identity, WithIdentity
from encoder.spherical import SphericalHarmonics

ENCODINGS: dict[str, type[Encoding]] = {
    "hashgrid": HashGrid,
    "frequency": Frequency,
    "spherical": SphericalHarmonics,
    "identity": Identity,
    "ipe": IntegratedFrequency,
    "ide": IntegratedDirectional,
}


def get_encoding(name: str, **options) -> Encoding:
    """Build an encoding; `identity+NAME` puts the input in front. Raises ValueError for an unknown name."""
    front, plus, inner = name.partition("+")
    if plus and front == "identity":
        return WithIdentity(get_encoding(inner, **options))
    if name not in ENCODINGS:
        raise ValueError(f"unknown encoding {name!r}; one of {', '.join(ENCODINGS)}, or identity+NAME")
    return ENCODINGS[name](**options)


__all__ = ["ENCODINGS", "Encoding", "HashGridSpec", "get_encoding"]
