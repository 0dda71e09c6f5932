"""The pretended device refuses what a card refuses and counts what costs time there; this test must be able to fail for the others to."""

import pytest
import torch
import warp as wp

from tests.pretend.device import Card, pretended_cuda
from utils import warp_launch


@wp.kernel
def _double(x: wp.array(dtype=float), y: wp.array(dtype=float)):
    i = wp.tid()
    y[i] = 2.0 * x[i]


def test_tensors_say_cuda_and_the_device_goes_when_the_block_ends():
    with pretended_cuda():
        made = [
            torch.zeros(2, device="cuda"),
            torch.ones(2).to("cuda"),
            torch.tensor([1.0], device="cuda"),
            torch.nn.Linear(2, 2).to("cuda").weight,
        ]
        assert all(isinstance(x, Card) and x.device == torch.device("cuda:0") and x.is_cuda for x in made)
        assert torch.arange(3, device="cuda:1").device.index == 1 and type(made[0].cpu()) is torch.Tensor
        assert torch.cuda.is_available() and (made[0] + made[1]).tolist() == [1, 1]
    assert not torch.cuda.is_available() and type(torch.zeros(2)) is torch.Tensor


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x + torch.ones(3), lambda x: torch.cat([x, torch.ones(3)]), lambda x: torch.ones(3)[x.long()], lambda x: x.numpy(),
        lambda x: torch.stack([x[0], torch.tensor(1.0)]), lambda x: x + torch.ones(3, device="cuda:1"),
        lambda x: torch.rand(3, device="cuda", generator=torch.Generator()), lambda x: torch.ones(3).index_add_(0, torch.arange(3), x),
        lambda x: warp_launch.launch(_double, 3, [warp_launch.array(torch.ones(3), wp.float32), warp_launch.array(x, wp.float32)], x.device),
    ],
)  # fmt: skip
def test_what_mixes_devices_is_refused(mixed):
    with pretended_cuda(), pytest.raises((RuntimeError, TypeError)):
        mixed(torch.zeros(3, device="cuda"))


WAITS = {
    "item": lambda x: x[0].item(), "float": lambda x: float(x.sum()), "if": lambda x: bool(x[0] > 0), "tolist": lambda x: x.tolist(), "cpu": lambda x: x.cpu(),
    "mask": lambda x: x[x > 0], "nonzero": torch.nonzero, "tensor": lambda x: torch.tensor([1.0], device=x.device), "index of the host": lambda x: x[torch.tensor([0])],
    "to": lambda x: torch.ones(3).to("cuda"), "synchronize": lambda x: torch.cuda.synchronize(), "put": lambda x: x.index_put_((x > 0,), x.new_zeros(())),
    "repeat": lambda x: x.repeat_interleave(x.long()), "copy": lambda x: torch.ones(3).copy_(x), "fill": lambda x: x.copy_(torch.ones(3)),
}  # fmt: skip
FREE = {
    "scalar": lambda x: x + 1, "number": lambda x: x * torch.tensor(2.0), "where": lambda x: torch.where(x > 0, x, 0.0), "view": lambda x: x[None].expand(3, 3),
    "to": lambda x: torch.ones(3).to("cuda", non_blocking=True), "full": lambda x: torch.full((3,), 2.0, device="cuda"), "cast": lambda x: x.half(),
    "select": lambda x: x.index_select(0, torch.zeros(1, dtype=torch.long, device="cuda")), "put": lambda x: x.masked_fill(x > 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", WAITS)
def test_waits_are_seen(name):
    with pretended_cuda() as tally:
        x = torch.ones(3, device="cuda")
        assert not tally.waits
        WAITS[name](x)
        assert sum(tally.waits.values()) == 1


@pytest.mark.parametrize("name", FREE)
def test_what_does_not_wait_is_not_taken_for_a_wait(name):
    with pretended_cuda() as tally:
        FREE[name](torch.ones(3, device="cuda"))
        assert not tally.waits


def test_launches_are_counted_and_located():
    with pretended_cuda(located=True) as tally, torch.autograd.set_detect_anomaly(True, check_nan=False):
        x, y = torch.ones(3, device="cuda", requires_grad=True), torch.empty(3, device="cuda")
        tally.clear()
        (x[:2] * 3).sum().backward()
        warp_launch.launch(_double, 3, [warp_launch.array(t, wp.float32) for t in (x, y)], x.device)
    names = sorted(what for _, what, _ in tally.launches.elements())
    assert names == ["mul", "mul", "ones_like", "slice_backward", "sum"] and sum(tally.kernels.values()) == 1
    assert y.held.tolist() == [2, 2, 2] and x.grad.held.tolist() == [3, 3, 0]
