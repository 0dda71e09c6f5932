"""The exception that is shown to the user as a sentence instead of a traceback."""

import difflib


class UserError(Exception):
    """An error that the user can correct. The message holds what, got, expected and the next step; `run.py` prints it and exits with 2."""


NO_MEMORY = (
    "the memory does not suffice; raise dataset.img_downscale, set dataset.on_disk=true, lower model.grid.log2_size, the widths of the networks, "
    "trainer.max_rays or trainer.target_samples, or close other programs"
)
LONGEST = 1500  # characters of an error that is shown


def one_line(text: str) -> str:
    """The text on one line, its middle left out where it is long: values of a stranger's file can be."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 300]} ... {line[-295:]}"


def out_of_memory(error: BaseException) -> bool:
    """Whether Python, numpy or torch on the CPU was refused memory, by the words that torch says it with."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "bad_alloc" in str(error)


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
