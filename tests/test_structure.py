"""Imports point one way: run -> systems -> {models, process_data}, models -> encoder, everyone -> utils, confs."""

import ast
from pathlib import Path

ALLOWED = {
    "confs": {"utils"}, "utils": set(), "encoder": {"utils"}, "process_data": {"utils", "confs"},
    "models": {"encoder", "utils", "confs"}, "systems": {"models", "process_data", "encoder", "utils", "confs"},
}  # fmt: skip


def test_imports_point_one_way():
    root = Path(__file__).parent.parent
    for room, allowed in ALLOWED.items():
        for path in (root / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = (
                    [a.name for a in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module]
                    if isinstance(node, ast.ImportFrom) and node.module
                    else []
                )
                for name in names:
                    top = name.split(".")[0]
                    assert top not in ALLOWED or top == room or top in allowed, f"{path.relative_to(root)} imports {name}"


def test_the_command_line_stays_short():
    assert len((Path(__file__).parent.parent / "run.py").read_text().splitlines()) < 120
