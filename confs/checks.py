"""What the sections of the schema check their values with; a message names the key."""

from utils.schedule import ramp


def check(section: str, **rules: tuple[bool, str]) -> None:
    for key, (ok, want) in rules.items():
        if not ok:
            raise ValueError(f"{section}.{key}: {want}")


def schedules(section: str, owner: object, *keys: str, log: bool = False) -> None:
    for key in keys:
        try:
            ramp(getattr(owner, key), log)
        except ValueError as error:
            raise ValueError(f"{section}.{key}: {error}") from None
