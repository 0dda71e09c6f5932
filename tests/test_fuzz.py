"""A sample of tests/fuzz.py, and that it sees what it looks for."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.fuzzing.box import Ended, judge, make_box, run_in_child, watched

ROOT = Path(__file__).parents[1]


def fuzz(*words: str) -> str:
    """The output of the fuzz. In a process of its own: one that forks must have no pool of threads."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-m", "tests.fuzz", *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def test_a_sample():
    text = fuzz("--seed", "11", "--cases", "24")
    assert "24 cases" in text and "seed 11: 0 failed" in text


def test_a_sample_of_the_other_commands():
    """Two cases of each."""
    text = fuzz("--kinds", "commands", "--seed", "11", "--cases", "14")
    assert "14 cases" in text and "seed 11: 0 failed" in text and "view: " in text


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_hundred_of_the_other_commands(seed):
    assert f"seed {seed}: 0 failed" in fuzz("--kinds", "commands", "--seed", str(seed), "--cases", "105")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2])
def test_two_hundred(seed):
    assert f"seed {seed}: 0 failed" in fuzz("--seed", str(seed), "--cases", "200")


def _hangs_in_a_process(words):
    subprocess.run(["sleep", "60"], check=False)
    return 0


def _refuses(words):
    print("error: no such scene")
    return 2


def _raises(words):
    raise KeyError("x")


def _hangs(words):
    time.sleep(60)
    return 0


def _crashes(words):
    os.abort()


def _writes(words):
    Path("new.txt").write_text("")
    return 0


def _changes(words):
    Path("../sentinel/link").unlink()
    Path("../scene/photo.png").write_text("other")
    return 0


def _adds_to_the_scene(words):
    Path("../scene/points.ply").write_text("")
    Path("../outputs/log.txt").write_text("")
    return 0


def _diverges(words):
    Path("../outputs/metrics.jsonl").write_text('{"step": 2, "loss": NaN}\n')
    return 0


def _says_nothing(words):
    return 2


def _talks_on(words):
    print("error: one\nand more")
    return 2


def _takes_memory(words):
    return len(np.zeros(3 << 27))  # 3 GiB, untouched


@pytest.mark.parametrize(
    ("main", "found"),
    [
        (_refuses, []), (_adds_to_the_scene, []), (_raises, ["traceback: KeyError: 'x'"]), (_hangs, ["hangs"]), (_hangs_in_a_process, ["hangs"]), (_crashes, ["killed by signal 6"]),
        (_writes, ["made cwd/new.txt"]), (_changes, ["removed sentinel/link", "changed scene/photo.png"]), (_diverges, ["step 2: loss nan"]),
        (_says_nothing, ["exit code 2 with 0 errors, last line: "]), (_talks_on, ["exit code 2 with 1 errors, last line: and more"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_seen(main, found, tmp_path):
    box = make_box(tmp_path / "box")
    (box / "scene/photo.png").write_text("one")
    before = watched(box)
    assert judge(run_in_child(main, [], box, limit=2), box, before) == found


def test_memory_is_bounded(tmp_path):
    box = make_box(tmp_path / "box")
    before = watched(box)
    (problem,) = judge(run_in_child(_takes_memory, [], box), box, before)
    assert "Unable to allocate 3.00 GiB" in problem
    assert judge(Ended(0, "", False, 3 << 30), box, before) == ["3.0 GiB of memory"]
