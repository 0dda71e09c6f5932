"""The program on a pretended CUDA device (`device.py`). It must be there before torch is imported, so the files case_*.py beside this one
run in processes of their own. To run one: python -m pytest -p tests.pretend.plugin tests/pretend/case_update.py"""

import contextlib
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.conftest import needs_warp
from tests.pretend import hooks

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CASES = sorted(path.stem for path in HERE.glob("case_*.py"))
SHARES = [["-k", "films or every_part_runs"], ["-k", "not films and not every_part_runs"]]  # two processes, which take about as long
pytestmark = [
    needs_warp,
    pytest.mark.slow,
    pytest.mark.skipif(bool(hooks.reason_against()), reason=hooks.reason_against()),
    pytest.mark.timeout(1200),  # a minute where two cores are free
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, list[tuple[str, str]]]:
    """File -> [(name of a case, what it failed with, or "")]."""
    hooks.build()
    folder, files = tmp_path_factory.mktemp("pretended"), [str(HERE / f"{name}.py") for name in CASES]
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in CASES}
    with contextlib.ExitStack() as stack:
        running = []
        for i, words in enumerate(SHARES):
            log = stack.enter_context(open(folder / f"{i}.txt", "w+"))
            plugins = ["-p", "tests.pretend.plugin", "-p", "no:cacheprovider"]
            command = [sys.executable, "-m", "pytest", *plugins, "-q", f"--junitxml={folder / f'{i}.xml'}", *files, *words]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(process.kill)
            running.append((process, log))
        for i, (process, log) in enumerate(running):
            process.wait()
            log.seek(0)
            assert process.returncode in (0, 1) and (folder / f"{i}.xml").is_file(), log.read()[-3000:]
            for case in ElementTree.parse(folder / f"{i}.xml").iter("testcase"):
                wrong = "".join(part.text or "" for part in case if part.tag in ("failure", "error"))
                found[case.get("classname", "").rpartition(".")[2]].append((case.get("name", ""), wrong))
    return found


@pytest.mark.parametrize("name", CASES)
def test_on_the_pretended_device(name, outcomes):
    failed = {case: wrong for case, wrong in outcomes[name] if wrong}
    shown = "\n\n".join(f"{case}\n{wrong[-3000:]}" for case, wrong in failed.items())
    assert not failed, f"{len(failed)} of {len(outcomes[name])} failed\n\n{shown}"
    assert outcomes[name], "no case was run"
