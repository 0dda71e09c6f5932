"""Every Warp kernel compiles to PTX for the cards of Turing, Ampere and Hopper, which needs no driver. A new kernel is found by itself."""

import ast
import functools
import importlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import needs_warp

ROOT = Path(__file__).parents[2]
ARCHITECTURES = [75, 80, 90]
# functions that make kernels, with the arguments they are called with: features of a level and half tables; channels of a sample.
# The first are compiled for every architecture, the others for the oldest.
FACTORIES: dict[str, list[tuple]] = {
    "kernels": [(2,), (2, True), (1,), (4,), (8,), (8, True)],
    "accumulators": [(8,), (1,), (3,)],
    "compositors": [(8,), (3,)],
    "_kernel": [()],
}
FIRST = {"kernels": 2}


def _is_kernel(node: ast.AST) -> bool:
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return any(ast.unparse(d).partition("(")[0] in ("wp.kernel", "warp.kernel") for d in decorators)


@functools.cache
def sources() -> dict[str, set[tuple[str, str]]]:
    """Module -> {(name of a kernel, the function that makes it, or "")} by the text of the project's files."""
    found: dict[str, set[tuple[str, str]]] = {}
    for room in ("encoder", "models", "process_data", "systems", "utils"):
        for path in sorted((ROOT / room).glob("*.py")):
            if path.stem.endswith("_cpu"):  # by their name never launched on a card: C++ of the CPU's
                continue
            tree = ast.parse(path.read_text())
            inside = {(node.name, "") for node in tree.body if _is_kernel(node)}
            for maker in (node for node in tree.body if isinstance(node, ast.FunctionDef) and not _is_kernel(node)):
                inside |= {(node.name, maker.name) for node in ast.walk(maker) if _is_kernel(node)}
            if inside:
                found[f"{room}.{path.stem}"] = inside
    return found


def kernels_of(module: str) -> dict[str, tuple[Any, list[int]]]:
    """Label -> (kernel, architectures) of all that a module holds and makes. Raises KeyError for a factory that FACTORIES lacks."""
    import warp as wp

    home, found = importlib.import_module(module), {}
    for maker in sorted({maker for _, maker in sources()[module]}):
        if not maker:
            found |= {name: (k, ARCHITECTURES) for name, k in vars(home).items() if isinstance(k, wp.Kernel)}
            continue
        for i, given in enumerate(FACTORIES[maker]):
            made = getattr(home, maker)(*given)
            archs = ARCHITECTURES if i < FIRST.get(maker, 1) else ARCHITECTURES[:1]
            found |= {f"{k.key}{given}": (k, archs) for k in (made if isinstance(made, tuple) else (made,))}
    return found


@needs_warp
@pytest.mark.slow
@pytest.mark.parametrize("module", list(sources()))
def test_every_kernel_compiles_for_cuda(module, tmp_path):
    import warp as wp

    found = kernels_of(module)
    for name, _ in sources()[module]:
        assert any(name in label for label in found), f"{module}: no kernel {name} among {list(found)}"

    def compiled(item):
        number, (label, (kernel, archs)) = item
        folder = tmp_path / str(number)
        folder.mkdir()
        made = wp.compile_aot_module(kernel.module, arch=archs, module_dir=str(folder), use_ptx=True)
        return label, {p.read_text().partition(".target sm_")[2][:2] for p in map(Path, made) if p.suffix == ".ptx"}

    with ThreadPoolExecutor(2) as pool:
        targets = dict(pool.map(compiled, enumerate(found.items())))
    assert targets == {label: {str(a) for a in archs} for label, (_, archs) in found.items()}


def test_kernels_are_found_by_the_text_of_the_files():
    assert {
        "encoder.hashgrid_kernels",
        "models.march_warp",
        "models.volrend_warp",
        "models.raytrace_warp",
        "systems.optim_warp",
    } <= sources().keys()
    assert ("bend", "kernels") in sources()["encoder.hashgrid_kernels"] and ("walk", "") in sources()["models.march_warp"]
