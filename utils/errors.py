"""The exception that is shown to the user as a sentence instead of a traceback."""

import difflib


class UserError(Exception):
    """An error that the user can correct. The message holds what, got, expected and the next step; `run.py` prints it and exits with 2."""


def raise_all(problems: list[str], heading: str = "") -> None:
    """Raise one `UserError` that lists all problems; do nothing when there are none."""
    if problems:
        listed = problems if len(problems) <= 12 else [*problems[:12], f"... and {len(problems) - 12} more"]
        raise UserError(heading + "; ".join(listed))


def suggestion(word: str, known: list[str]) -> str:
    """ "; did you mean 'x'?" for the nearest known word, compared by its last part too; "" without one."""
    last = {k.rsplit(".", 1)[-1]: k for k in known}
    near = difflib.get_close_matches(word, known, 1, 0.6) or [
        last[m] for m in difflib.get_close_matches(word.rsplit(".", 1)[-1], last, 1, 0.6)
    ]
    return f"; did you mean '{near[0]}'?" if near else ""
