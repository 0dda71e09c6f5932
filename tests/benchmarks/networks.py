"""How long the small networks take on the CPU: kernels of `models/sdf_cpu.py` and `models/mlp_cpu.py` beside torch's layers.

    python -m tests.benchmarks.networks [--threads 1] [--repeat 40]

The least of the runs, in ms; 18,000 points; SDF network 31 x 64 x 16, colour network 35 x 64 x 64 x 3.
"""

import argparse
import time
from collections.abc import Callable

import torch

from models import mlp_cpu, sdf_cpu

POINTS = 18_000


def least(run: Callable[[], object], repeat: int) -> float:
    run()
    took = []
    for _ in range(repeat):
        began = time.perf_counter()
        run()
        took.append(time.perf_counter() - began)
    return 1e3 * min(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x, y, jac = 0.3 * torch.randn(POINTS, 3), torch.randn(28, POINTS), torch.randn(28, 3, POINTS)
    weights = tuple(0.2 * torch.randn(*shape) for shape in ((64, 31), (64,), (16, 64), (16,)))
    d_out, d_grad = torch.randn(POINTS, 16), torch.randn(POINTS, 3)
    inputs = torch.randn(POINTS, 35, requires_grad=True)
    layers = [(0.2 * torch.randn(*shape)).requires_grad_() for shape in ((64, 35), (64,), (64, 64), (64,), (3, 64), (3,))]

    def twin() -> torch.Tensor:
        h = inputs
        for i in range(0, 6, 2):
            h = torch.nn.functional.linear(h if i == 0 else torch.relu(h), layers[i], layers[i + 1])
        return h

    def back(forward: Callable[[], torch.Tensor]) -> object:
        out = forward()
        return torch.autograd.grad(out, [inputs, *layers], torch.ones_like(out))

    def colour() -> torch.Tensor:
        return mlp_cpu.FusedMLP.apply(inputs, *layers)

    rows: dict[str, Callable[[], object]] = {
        "SDF, forward with normals": lambda: sdf_cpu.forward(x, y, jac, weights, "softplus", 1.0),
        "SDF, backward": lambda: sdf_cpu.backward(x, y, jac, weights, "softplus", 1.0, d_out, d_grad),
        "colour, forward": colour,
        "colour, forward and backward": lambda: back(colour),
        "torch: colour, forward": twin,
        "torch: colour, forward and backward": lambda: back(twin),
    }
    print("| part | ms |\n|---|---:|")
    for name, run in rows.items():
        print(f"| {name} | {least(run, args.repeat):.1f} |")


if __name__ == "__main__":
    main()
