"""A segmentation network in an ONNX file as a prior for object masks: U2-Net, IS-Net, RMBG and the like.

One image in, [1, 3, H, W]; one mask out, [1, 1, H, W] or [1, H, W]. onnxruntime runs it where it is installed, OpenCV otherwise.
The input size is read from the file (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

import importlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from utils.errors import UserError

MAX_BYTES = 1 << 31  # protobuf's limit
FREE_SIZE = 320  # pixels along a side where the file leaves it open
NORMS = {  # name -> (mean, standard deviation) of the channels, of colours in [0, 1]
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
Runner = Callable[[np.ndarray], np.ndarray]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("varint")


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of the fields of a protobuf message. Raises ValueError or IndexError for other data."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        value: int | memoryview
        if kind == 0:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = data[at : at + size], at + size
        if at > len(data):
            raise ValueError("truncated")
        yield key >> 3, value


def _all(data: memoryview, *path: int) -> list:
    """The values under a path of field numbers."""
    found: list = [data]
    for number in path:
        found = [value for message in found for key, value in _fields(message) if key == number]
    return found


def input_shape(data: bytes) -> list[int]:
    """Shape of the one image input, 0 where the file leaves it open. Raises ValueError, KeyError or IndexError unless it is an ONNX file."""
    (graph,) = _all(memoryview(data), 7)
    weights = {bytes(name) for name in _all(graph, 5, 8)}
    inputs = [entry for entry in _all(graph, 11) if bytes(_all(entry, 1)[0]) not in weights]
    if len(inputs) != 1:
        raise UserError(f"{len(inputs)} inputs, expected one image")
    return [next((int(size) for size in _all(dim, 1)), 0) for dim in _all(inputs[0], 2, 1, 2, 1)]


def _runner(path: Path, data: bytes) -> Runner:
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        net = cv2.dnn.readNetFromONNX(np.frombuffer(data, np.uint8))

        def run(blob: np.ndarray) -> np.ndarray:
            net.setInput(blob)
            return net.forward()

        return run
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda blob: session.run(None, {name: blob})[0]


class MaskNetwork:
    """uint8 [H, W, 3] -> float32 [H, W], the probability of the object. Raises UserError for a file that is no such network."""

    def __init__(self, path: str | Path, norm: str = "imagenet"):
        self.path, self.lock = Path(path), threading.Lock()
        if not self.path.is_file():
            raise UserError(f"--mask-model: {path}: no such file; give the ONNX file of a segmentation network")
        if self.path.stat().st_size > MAX_BYTES:
            raise UserError(f"--mask-model: {path}: larger than {MAX_BYTES >> 30} GiB, expected the ONNX file of a segmentation network")
        mean, deviation = NORMS[norm]
        self.mean, self.deviation = np.array(mean, np.float32), np.array(deviation, np.float32)
        try:
            data = self.path.read_bytes()
            shape = input_shape(data)
        except UserError as error:
            raise UserError(f"--mask-model: {path}: {error}; export a network with one image input") from None
        except (OSError, ValueError, IndexError, KeyError, TypeError):
            raise UserError(f"--mask-model: {path}: not a readable ONNX file; export the network again") from None
        if len(shape) != 4 or shape[0] > 1 or shape[1] not in (0, 3) or max(shape[2:]) > 4096:
            raise UserError(f"--mask-model: {path}: input of shape {shape}, expected [1, 3, height, width]; export the network again")
        self.size = (shape[3] or FREE_SIZE, shape[2] or FREE_SIZE)
        self.run = self._guarded(lambda: _runner(self.path, data))
        self(np.zeros((8, 8, 3), np.uint8))  # a wrong output is reported before the photographs are read

    def _guarded(self, function: Callable):
        try:
            return function()
        except Exception as error:  # noqa: BLE001 - the two runtimes raise types of their own
            reason = str(error).strip().splitlines()
            raise UserError(
                f"--mask-model: {self.path}: cannot be run ({(reason or ['?'])[0][:120]}); export it with a lower opset"
            ) from None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        small = cv2.resize(image, self.size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        blob = np.ascontiguousarray(((small - self.mean) / self.deviation).transpose(2, 0, 1)[None])
        with self.lock:
            out: np.ndarray = np.asarray(self._guarded(lambda: self.run(blob)), np.float32)
        if out.size == 0 or out.ndim < 2 or out.size != out.shape[-1] * out.shape[-2] or not np.isfinite(out).all():
            raise UserError(
                f"--mask-model: {self.path}: output of shape {list(out.shape)}, expected one mask [1, 1, height, width] of finite values"
            )
        p: np.ndarray = out.reshape(out.shape[-2:])
        if p.min() < -0.01 or p.max() > 1.01:  # no sigmoid at the end
            p = 1 / (1 + np.exp(-np.clip(p, -30, 30)))
        return cv2.resize(p, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
