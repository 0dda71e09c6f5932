"""The exception that is shown to the user as a sentence instead of a traceback."""


class UserError(Exception):
    """An error that the user can correct. The message holds what, got, expected and the next step; `run.py` prints it and exits with 2."""


def raise_all(problems: list[str], heading: str = "") -> None:
    """Raise one `UserError` that lists all problems; do nothing when there are none."""
    if problems:
        listed = problems if len(problems) <= 12 else [*problems[:12], f"... and {len(problems) - 12} more"]
        raise UserError(heading + "; ".join(listed))
