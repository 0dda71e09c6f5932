"""A tiny ONNX file, serialised by hand: mask = sigmoid(1x1 convolution of the image)."""

import struct
from pathlib import Path


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes | str) -> bytes:
    """A protobuf field: an integer, or bytes and text with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name: str, dims: list[int], values: list[float]) -> bytes:
    raw = struct.pack(f"<{len(values)}f", *values)
    return b"".join(field(1, d) for d in dims) + field(2, 1) + field(8, name) + field(9, raw)


def value(name: str, dims: list[int]) -> bytes:
    shape = b"".join(field(1, field(1, d) if d else field(2, "any")) for d in dims)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))


def node(kind: str, inputs: list[str], output: str, attribute: bytes = b"") -> bytes:
    return b"".join(field(1, name) for name in inputs) + field(2, output) + field(3, output) + field(4, kind) + attribute


def write_onnx(path: Path, weights: list[float], bias: float, size=(16, 16), channels: int = 1, sigmoid: bool = True) -> Path:
    """weights [channels * 3] of red, green and blue for each output channel."""
    kernel = field(5, field(1, "kernel_shape") + field(8, 1) + field(8, 1) + field(20, 7))
    nodes = [node("Conv", ["image", "w", "b"], "logit" if sigmoid else "mask", kernel)]
    nodes += [node("Sigmoid", ["logit"], "mask")] if sigmoid else []
    graph = b"".join(field(1, n) for n in nodes) + field(2, "tiny")
    graph += field(5, tensor("w", [channels, 3, 1, 1], weights)) + field(5, tensor("b", [channels], [bias] * channels))
    graph += field(11, value("image", [1, 3, *size])) + field(11, value("w", [channels, 3, 1, 1]))  # older files list weights as inputs
    graph += field(12, value("mask", [1, channels, *size]))
    path.write_bytes(field(1, 7) + field(7, graph) + field(8, field(1, "") + field(2, 11)))
    return path
