"""A default NeuS step has no more launches and waits than `budget.json` says; `python -m tests.pretend.count` shows where they come from."""

import json
from pathlib import Path

import pytest

from tests.pretend.count import KINDS, count_steps, counted_scene, places, table

BUDGET = json.loads(Path(__file__).with_name("budget.json").read_text())


@pytest.mark.parametrize("words", BUDGET)
def test_a_step_keeps_to_its_budget(words, tmp_path):
    config, *overrides = words.split()
    scene, more = counted_scene(config, tmp_path)
    steps = count_steps(config, scene, tmp_path, [*more, *overrides])
    assert [s.refreshed for s in steps].count(True) == 1 and len(steps) == 4
    shown = table(steps)
    for step in steps:
        allowed = BUDGET[words]["a step with a refresh" if step.refreshed else "a step"]
        for kind in KINDS:
            n = step.total(kind)
            assert n <= allowed[kind], (
                f"{config}: {n} {kind} in a step, budget.json allows {allowed[kind]}\n{shown}\n{places(step, kind, 30)}"
            )
            assert n >= 0.9 * allowed[kind] - 3, f"{config}: {n} {kind} in a step; lower the {allowed[kind]} of budget.json"
    located = {where.partition(":")[0] for step in steps for _, _, where in (*step.launches, *step.nodes)}
    assert {"models/neus.py", "systems/losses.py", "process_data/rays.py"} <= located
    assert not [key for step in steps if not step.refreshed for key in step.waits if key[0] in ("backward", "optimiser", "the rest")]
