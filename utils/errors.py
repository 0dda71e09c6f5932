"""The one exception a user sees as a sentence instead of a traceback."""


class UserError(Exception):
    """Something the user can mend: says what, got, expected, next step. `run.py` prints it and exits with 2."""


def raise_all(problems: list[str], heading: str = "") -> None:
    """Raise one `UserError` that lists every problem found; nothing happens when the list is empty."""
    if problems:
        shown = problems if len(problems) <= 12 else [*problems[:12], f"... and {len(problems) - 12} more"]
        raise UserError(heading + "; ".join(shown))
