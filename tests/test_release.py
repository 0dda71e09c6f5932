"""Files of a release agree with each other and with the code."""

import ast
import re
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from utils.checkpoint import VERSION

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROOMS = ("confs", "encoder", "models", "process_data", "systems", "utils")
# import -> its package, where the names differ
PACKAGES = {
    "fast_simplification": "fast-simplification", "cv2": "opencv-python-headless", "mcubes": "pymcubes", "warp": "warp-lang", "yaml": "pyyaml", "OpenEXR": "openexr",
    "PIL": "pillow", "pillow_heif": "pillow-heif", "imageio_ffmpeg": "imageio",
}  # fmt: skip
ELSEWHERE = {"bpy", "mathutils", "addon_utils", "tinycudann"}  # of Blender, and not on PyPI: said in pyproject.toml


def names(requirements):
    return {re.match(r"[A-Za-z0-9_.-]+", line).group().lower().replace("_", "-") for line in requirements}


def imported():
    """Top-level names of every import of the program -> whether one stands outside of functions."""
    found = {}
    for path in [ROOT / "run.py", *(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))]:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            modules = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            )
            for module in filter(None, modules):
                top = module.partition(".")[0]
                found[top] = found.get(top, False) or node in tree.body
    return {top: first for top, first in found.items() if top not in sys.stdlib_module_names and top not in ROOMS}


def test_one_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    assert PROJECT["version"] == cited["version"] == newest == VERSION


def test_one_licence_and_no_invented_people():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["license"] == cited["license"] == "MIT" and (ROOT / "LICENSE").read_text().startswith("MIT License\n")
    (holder,) = cited["authors"]
    assert PROJECT["authors"] == [holder] and holder["name"] in (ROOT / "LICENSE").read_text()


def test_every_import_is_a_dependency():
    """A package of the first import of a file is a dependency; one that is imported in a function may be of an extra."""
    needed, extras = names(PROJECT["dependencies"]), names(line for extra in PROJECT["optional-dependencies"].values() for line in extra)
    for top, first in imported().items():
        package = PACKAGES.get(top, top).lower()
        assert package in needed or (not first and package in extras) or top in ELSEWHERE, f"{top} is in no list of pyproject.toml"


def test_the_lock_holds_every_dependency():
    locked = names((ROOT / "requirements.lock").read_text().splitlines())
    assert names(PROJECT["dependencies"]) <= locked and names(PROJECT["optional-dependencies"]["test"]) <= locked


def test_the_workflow_tests_every_python_that_is_promised():
    flow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    versions = flow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert versions == ["3.11", "3.12", "3.13"] and PROJECT["requires-python"] == ">=3.11,<3.14"
    assert [c[-4:] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)] == versions
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for job in flow["jobs"].values():
        words = job["steps"][-1]["run"].split()
        assert words[0] == "make" and words[1] in targets and 'WHEELS="$WHEELS"' in words
    assert "WHEELS" in flow["env"]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_an_image_has_what_a_run_needs(name):
    text = (ROOT / name).read_text()
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] not in "#!"]
    copied = [source for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for source in line.split() if source != "."]
    for path in [*copied, "run.py", *ROOMS]:
        assert (ROOT / path).exists() and not any(fnmatch(path, pattern) for pattern in ignored), path
    for path in (".git", ".venv", "inputs/scan65", "outputs/run"):
        assert any(fnmatch(path, pattern) for pattern in ignored), path
    tag = re.search(r"^(?:FROM|ARG BASE=)\s*(\S+)", text, re.M).group(1)
    if name == "Dockerfile.cuda":
        assert tag.startswith("pytorch/pytorch:" + re.search(r"^torch==(\S+)", (ROOT / "requirements.lock").read_text(), re.M).group(1))
    else:
        assert tag in [f"python:{line[-4:]}-slim" for line in PROJECT["classifiers"]]


def test_the_guide_names_what_is_there():
    """Paths and make targets of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"(?:[a-z_]+|\.github)/[\w/.-]+\.(?:py|md|yaml|yml)", text)
    missing = [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]
    assert len(paths) > 12 and not missing
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"^make ([a-z-]+)", text, re.M) + re.findall(r"`make ([a-z-]+)`", text)) <= set(targets)
