"""How a judge ends: one JSON object on the output, or one sentence of what is wrong."""

import json
import sys
from collections.abc import Callable

from utils.errors import UserError


def report(judge: Callable[[], dict], indent: int | None = None) -> int:
    """Exit status: 0, or 2 where the judge raised a UserError."""
    try:
        print(json.dumps(judge(), indent=indent))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
