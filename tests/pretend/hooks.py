"""Builds and loads `hooks.cpp`: once for each version of torch, into the cache folder of pytest, which git ignores.

torch looks for CUDA while it is imported and keeps what it finds, so this must be loaded before it: nothing here imports torch.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("hooks.cpp")
CACHE = Path(__file__).parents[2] / ".pytest_cache/pretend"


def _torch() -> tuple[Path, dict]:
    """(folder of the package, its version.py) without an import."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    return folder, runpy.run_path(str(folder / "version.py"))


def reason_against() -> str:
    """ "" where the device can be pretended, else the reason why not."""
    if _torch()[1].get("cuda") is not None:
        return "this torch is built with CUDA, whose own hooks cannot be replaced; on a card run: pytest -m gpu"
    if sys.platform != "linux":
        return f"the C++ part is built on Linux alone, this is {sys.platform}"
    return "" if shutil.which("g++") else "there is no g++ to build the C++ part with"


def build() -> Path:
    """The shared library; compiled where it is missing. Raises RuntimeError with the compiler's words."""
    folder, version = _torch()
    key = hashlib.sha256(SOURCE.read_bytes() + version["__version__"].encode()).hexdigest()[:16]
    path = CACHE / f"hooks-{key}.so"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        places = [f"-I{folder / 'include'}", f"-L{folder / 'lib'}", f"-Wl,-rpath,{folder / 'lib'}"]
        words = ["g++", "-std=c++20", "-O0", "-w", "-shared", "-fPIC", str(SOURCE), "-o", str(part), *places, "-ltorch_cpu", "-lc10"]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{SOURCE} does not compile against torch {version['__version__']}:\n{done.stderr[-3000:]}")
        part.replace(path)
    return path


@functools.cache
def load() -> ctypes.CDLL:
    """The library in this process. Raises RuntimeError after an import of torch, and where it does not build."""
    library = ctypes.CDLL(str(build()), mode=ctypes.RTLD_GLOBAL)
    if not library.pretend_cuda_heard():
        raise RuntimeError("torch was imported before the pretended device was loaded: it has looked for CUDA already")
    return library
