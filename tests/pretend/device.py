"""A pretended CUDA device: tensors that say `cuda` and hold their values on the CPU, so that CUDA lines run without a card.

Data-dependent code runs, as the values are real. What a card would refuse is refused: operations that mix devices, a CPU
generator for numbers on the card. What costs time there is counted: launches, and waits of the host for the device.
Not pretended: speed, memory, streams that run side by side, CUDA graphs, the order of a card's additions.

A launch is an ATen operation that is neither a view nor an allocation; some of these are more than one kernel on a card.
A wait is what makes the host stand until the device is done: a value read, a shape that depends on values, a copy from
pageable memory that is not `non_blocking`, `torch.cuda.synchronize`.
"""

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests.pretend import hooks

library = hooks.load()  # before torch

import torch  # noqa: E402
import warp as wp  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map_only  # noqa: E402

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
ALLOCATES = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_efficientzerotensor"}
NO_KERNEL = {
    "lift_fresh",
    "is_pinned",
    "_has_compatible_shallow_copy_type",
    "is_same_size",
    "set_",
    "resize_",
    "sym_size",
    "_unsafe_view",
    "stride",
    "record_stream",
}
READS = {"_local_scalar_dense", "equal", "is_nonzero"}
SHAPED_BY_VALUES = {"nonzero", "masked_select", "bincount", "unique_dim", "unique_consecutive", "_unique2", "_linalg_svd", "_linalg_eigh"}
NO_SCALARS_OF_THE_CPU = {"cat", "stack", "mm", "addmm", "bmm", "gather", "scatter", "index_select", "searchsorted"}


@dataclass
class Tally:
    """What was asked of the device; keys are (phase, what, file:line)."""

    launches: Counter = field(default_factory=Counter)
    kernels: Counter = field(default_factory=Counter)  # of Warp
    waits: Counter = field(default_factory=Counter)
    copies: Counter = field(default_factory=Counter)  # from the host, without a wait
    nodes: Counter = field(default_factory=Counter)  # launches and kernels within a CUDA graph: no work of the host
    phase: str = ""
    located: bool = False  # find the lines, which takes time
    replayed: list | None = None  # what a graph has done so far in this replay

    def note(self, counter: Counter, what: str) -> None:
        if self.replayed is not None:
            if counter is self.waits or counter is self.copies:
                raise RuntimeError(f"{what} at {_where()}: not permitted in a CUDA graph")
            counter = self.nodes
        counter[(self.phase, what, _where() if self.located else "")] += 1

    def clear(self) -> None:
        for counter in (self.launches, self.kernels, self.waits, self.copies, self.nodes):
            counter.clear()


def _line(path: str, number: object) -> str:
    """file:line of a line of the project, else ""."""
    if not path.startswith(f"{ROOT}/") or "/.venv/" in path or "/tests/pretend/" in path or path.endswith("/utils/warp_launch.py"):
        return ""
    return f"{path[len(str(ROOT)) + 1 :]}:{number}"


def _where() -> str:
    """The innermost line of the project; in a backward pass of torch's own the forward line, where anomaly mode has kept it."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if frame.f_code.co_name == "_engine_run_backward":
            node = torch._C._current_autograd_node()
            if node is not None:
                return _made_at(node)
        elif found := _line(path, frame.f_lineno):
            return found
        frame = frame.f_back
    return "?"


def _made_at(node: Any) -> str:
    lines = re.findall(r'File "([^"]+)", line (\d+)', "".join(node.metadata.get("traceback_", [])))
    found = [line for path, number in lines if (line := _line(path, number))]
    return f"{found[-1] if found else 'the end of the graph'} ({node.name()})"


class Card(Tensor):
    """A tensor on a pretended device; `held` are its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> "Card":
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype, "layout": held.layout}
        card = torch.Tensor._make_wrapper_subclass(cls, held.size(), device=device, requires_grad=False, **shape)  # type: ignore[attr-defined]
        card.held = held
        return card

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Card({self.held})"

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A checkpoint holds what a card's would when it is read with map_location=cpu."""
        return self.held.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> "Card":
        return self.detach().clone().requires_grad_(self.requires_grad)  # type: ignore[return-value]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def, override]
        return _answer(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sends what makes a tensor on the device to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if _on_card(kwargs.get("device")) or any(isinstance(x, Card) for x in tree_leaves((args, kwargs))):
            return _answer(func, args, kwargs)
        if func._schema.name in ("aten::_pin_memory", "aten::pin_memory"):
            return args[0]
        return func(*args, **kwargs)


_tally = Tally()


def _on_card(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _indexed(device: Any) -> torch.device:
    device = torch.device(device)
    return device if device.index is not None else torch.device("cuda", 0)


def _held(tree: Any) -> Any:
    return tree_map_only(Card, lambda card: card.held, tree)


def _to_copy(func: Any, source: Tensor, kwargs: dict) -> Tensor:
    """Copies between host and device, and casts."""
    target = kwargs.get("device")
    words = {**kwargs, "device": CPU} if target is not None else dict(kwargs)
    words.pop("pin_memory", None)
    out = func(_held(source), **words)
    to_card = isinstance(source, Card) if target is None else _on_card(target)
    if not to_card:
        if isinstance(source, Card):
            _tally.note(_tally.waits, "read (to the host)")
        return out
    if isinstance(source, Card):
        _tally.note(_tally.launches, "_to_copy")
        return Card(out, source.device if target is None else _indexed(target))
    _note_upload(bool(kwargs.get("non_blocking")))
    return Card(out, _indexed(target))


def _note_upload(non_blocking: bool) -> None:
    _tally.note(*((_tally.copies, "copy from the host") if non_blocking else (_tally.waits, "copy from the host, blocking")))


def _refuse_mixes(name: str, func: Any, args: tuple, kwargs: dict) -> torch.device | None:
    """The device of the tensors among the arguments. Raises RuntimeError where a card would."""
    leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    devices = {x.device for x in leaves if isinstance(x, Card)}
    own = [x for x in leaves if not isinstance(x, Card)]
    if name.startswith("index") and name not in ("index_select", "index_add", "index_add_", "index_copy", "index_copy_", "index_fill_"):
        # a list of indices may lie on the host; it is copied
        indices = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor) and not isinstance(x, Card)] if len(args) > 1 else []
        if isinstance(args[0], Card):
            for index in indices:
                own = [x for x in own if x is not index]
                _note_upload(False)
    if devices and name != "copy_":
        wrong = own if name in NO_SCALARS_OF_THE_CPU else [x for x in own if x.dim()]
        if wrong or len(devices) > 1:
            raise RuntimeError(f"{func}: all tensors must be on one device, got {sorted(map(str, devices | {x.device for x in wrong}))}")
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu" and (devices or _on_card(kwargs.get("device"))):
        raise RuntimeError(f"{func}: expected a generator of the card, got one of the CPU")
    return next(iter(devices), None)


def _note(name: str, func: Any, args: tuple, kwargs: dict) -> None:
    if name in READS:
        _tally.note(_tally.waits, f"read ({name})")
    elif name in SHAPED_BY_VALUES or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        _tally.note(_tally.waits, name)
    elif name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        if any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in tree_leaves(args[1])):
            _tally.note(_tally.waits, f"{name} with a mask")
    if name in READS - {"equal"} or name in ALLOCATES or name in NO_KERNEL:
        return
    views = [r for r in func._schema.returns if r.alias_info is not None and not r.alias_info.is_write]
    if not views:
        _tally.note(_tally.launches, name)


def _answer(func: Any, args: tuple, kwargs: dict) -> Any:
    """The operation on the held values, its results on the device."""
    name = func._schema.name.split("::")[1]
    if name == "_to_copy":
        return _to_copy(func, args[0], kwargs)
    device = _refuse_mixes(name, func, args, kwargs)
    if name == "copy_" and not (isinstance(args[0], Card) and isinstance(args[1], Card)):
        if not isinstance(args[0], Card):
            _tally.note(_tally.waits, "read (copy_)")
        elif args[1].dim() or not isinstance(args[1], Card):
            _note_upload(bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking")))
    else:
        _note(name, func, args, kwargs)
    if _on_card(kwargs.get("device")):
        device = _indexed(kwargs["device"])
    words = {k: v for k, v in _held(kwargs).items() if k != "pin_memory"}
    if "device" in words:
        words["device"] = CPU
    out = func(*_held(args), **words)
    if name == "_efficientzerotensor":
        out = torch.zeros(tuple(out.shape), dtype=out.dtype)
    if not _on_card(device):
        return args[0] if name == "copy_" else out
    if _tally.replayed is not None:
        _tally.replayed.append((name, [tuple(x.shape) for x in tree_leaves(out) if isinstance(x, Tensor)]))
    out = tree_map_only(Tensor, lambda x: x if isinstance(x, Card) else Card(x, device), out)
    aliases = func._schema.is_mutable or any(r.alias_info is not None for r in func._schema.returns)
    return return_and_correct_aliasing(func, args, kwargs, out) if aliases else out


# ------------------------------------------------------------------ Warp


def _warp_patches() -> dict[str, Any]:
    real_array, real_launch = wp.from_torch, wp.launch

    def from_torch(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        found = real_array(tensor.held if isinstance(tensor, Card) else tensor, *args, **kwargs)
        with contextlib.suppress(AttributeError):
            found.pretended = tensor.device if isinstance(tensor, Card) or not tensor.numel() else CPU
        return found

    def launch(kernel: Any, dim: Any, inputs: Any = (), outputs: Any = (), device: Any = None, stream: Any = None, **kwargs: Any) -> Any:
        at = getattr(device, "pretended", None)
        if at is None:
            return real_launch(kernel, dim=dim, inputs=inputs, outputs=outputs, device=device, **kwargs)
        wrong = [k for k, x in enumerate([*inputs, *outputs]) if getattr(x, "pretended", at) != at]
        if wrong:
            raise RuntimeError(f"kernel {kernel.key}: arguments {wrong} do not lie on {at}")
        _tally.note(_tally.kernels, kernel.key)
        return real_launch(kernel, dim=dim, inputs=list(inputs), outputs=list(outputs), device="cpu", **kwargs)

    class Device(str):
        """Warp's CPU, which remembers what it stands for."""

        pretended: torch.device

    def device_from_torch(device: Any) -> Any:
        found = Device("cpu")
        found.pretended = _indexed(device)
        return found if _on_card(device) else "cpu"

    def stream_from_torch(stream: Any = None) -> Any:
        return SimpleNamespace(device=device_from_torch(getattr(stream, "device", stream)), cuda_stream=0)

    return {"from_torch": from_torch, "launch": launch, "device_from_torch": device_from_torch, "stream_from_torch": stream_from_torch}


# ------------------------------------------------------------------ CUDA graphs


def capture(step: Callable[[], object]) -> Callable[[], None]:
    """`systems.graph.capture`: each replay takes the step again. What a card would not record is refused, and so are operations or
    shapes that differ from those of the first replay, which on a card would be done as they were."""
    first: list = []

    def replay() -> None:
        _tally.note(_tally.launches, "a CUDA graph")
        _tally.replayed = []
        try:
            step()
            done = _tally.replayed
        finally:
            _tally.replayed = None
        first[:] = first or done
        for k, (a, b) in enumerate(zip(first, done)):
            if a != b:
                raise RuntimeError(f"operation {k} of a CUDA graph was {a} at its first replay and is {b}")
        if len(first) != len(done):
            raise RuntimeError(f"a CUDA graph had {len(first)} operations at its first replay and has {len(done)}")

    return replay


# ------------------------------------------------------------------ the device, switched on


def _cuda_patches() -> dict[str, Any]:
    def synchronize(device: Any = None) -> None:
        _tally.note(_tally.waits, "torch.cuda.synchronize")

    def stream(device: Any = None) -> Any:
        return SimpleNamespace(device=_indexed(device or "cuda"), cuda_stream=0, is_capturing=lambda: False)

    return {
        "is_available": lambda: True, "device_count": lambda: 2, "is_initialized": lambda: True, "current_device": lambda: 0,
        "_lazy_init": lambda: None, "get_device_name": lambda *_: "a pretended card", "is_bf16_supported": lambda *_, **__: True,
        "synchronize": synchronize, "empty_cache": lambda: None, "current_stream": stream, "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8), "set_rng_state": lambda *_: None, "manual_seed_all": lambda _: None,
        "max_memory_allocated": lambda *_: 0, "memory_allocated": lambda *_: 0, "reset_peak_memory_stats": lambda *_: None,
        "get_device_capability": lambda *_: (9, 0), "mem_get_info": lambda *_: (1 << 34, 1 << 34),
    }  # fmt: skip


@contextlib.contextmanager
def pretended_cuda(located: bool = False) -> Iterator[Tally]:
    """Two pretended cards, cuda:0 and cuda:1, while the block runs; yields what is counted. located: with the lines."""
    global _tally
    before, _tally = _tally, Tally(located=located)
    with contextlib.ExitStack() as stack:
        import systems.graph

        for owner, patches in ((torch.cuda, _cuda_patches()), (wp, _warp_patches()), (systems.graph, {"capture": capture})):
            for name, new in patches.items():
                stack.enter_context(mock.patch.object(owner, name, new, create=True))
        library.pretend_cuda(1)
        stack.callback(library.pretend_cuda, 0)
        lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda"): the copy to the device is seen
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifted)
        moved = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # else Module.to keeps the object of the host
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, moved)
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(_Mode())
        try:
            yield _tally
        finally:
            _tally = before
