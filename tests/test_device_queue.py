"""Sampling on a device only queues work: the host neither waits for a result nor for a copy.

The meta device stands for any other one. It has no values, so that reading one raises; what only waits on a GPU is
found by looking at every operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quarterarc.denoiser import Denoise, Denoiser
from quarterarc.heads import HEADS, head
from quarterarc.networks import UNet
from quarterarc.sampling import Sampling
from quarterarc.schedules import schedule
from quarterarc.wrappers import Clipped, Guided

SHAPE = (2, 8, 8)
READS = ("aten._local_scalar_dense", "aten.equal", "aten.nonzero", "aten.is_nonzero")


class _Operations(TorchDispatchMode):
    """Raises an AssertionError for an operation for which the host waits for the device; counts copies."""

    copies = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(function).rpartition(".")[0]
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        assert name not in READS or "meta" not in devices, f"{function} reads a value from the device"
        # which `where` copies to the device, and waits for
        assert name != "aten.where" or devices != {"cpu", "meta"}, f"{function} has an argument on the CPU"
        if name in ("aten._to_copy", "aten.copy_"):
            target = kwargs.get("device") if name == "aten._to_copy" else args[0].device
            source = args[-1 if name == "aten.copy_" and len(args) == 2 else 0].device.type
            target = source if target is None else torch.device(target).type
            if source != target:
                waits = not (kwargs.get("non_blocking") or (name == "aten.copy_" and len(args) > 2 and args[2]))
                assert not waits, f"a copy from {source} to {target} for which the host waits"
                self.copies += 1
        return function(*args, **kwargs)


class _Calls(TorchFunctionMode):
    """Raises an AssertionError for `torch.tensor(..., device=...)`, which waits for its copy to the device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor, torch.asarray):
            data, device = args[0], kwargs.get("device")
            same = isinstance(data, Tensor) and data.device.type == "meta"
            assert same or device is None or torch.device(device).type == "cpu", f"{function.__name__} on {device}"
        return function(*args, **kwargs)


@contextmanager
def queued() -> Iterator[_Operations]:
    """A block in which the host does not wait for the device."""
    autocast = patch("torch.autocast", lambda *arguments, **options: nullcontext())  # which meta does not have
    with autocast, _Calls(), _Operations() as operations:
        yield operations


class Network(nn.Module):
    """A network of few operations, which uses all of its arguments."""

    def __init__(self, channels: int, outputs: int, classes: int | None = None) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, outputs, 3, padding=1)
        self.labels = nn.Embedding(classes + 1, channels) if classes else None

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        shift = time.reshape(-1, 1)
        if labels is not None and self.labels is not None:
            shift = shift + self.labels(labels)
        output: Tensor = self.convolution(x + shift[:, :, None, None])
        return output


def denoiser(name: str = "both", classes: int | None = None, projection: str | None = "velocity") -> Denoiser:
    """A denoiser on the meta device."""
    table = schedule("arc", 100)
    reading = head(name, table)
    network = Network(SHAPE[0], reading.channels(SHAPE[0]), classes).to("meta")
    return Denoiser(network, table, reading, SHAPE, classes=classes, projection=projection)


def run(denoise: Denoise, sampler: str = "multistep", labels: Any = None, **options: Any) -> int:
    """Sample in 6 steps with noise on the meta device; returns the number of copies to it."""
    plan = Sampling(sampler, 6, options=options).plan(denoise, SHAPE)
    noise = torch.empty(3, *SHAPE, device="meta")
    with queued() as operations:
        evaluator, states = plan.states(noise, labels, range(3))
        *_, last = states
    assert last.x.device.type == "meta"
    assert evaluator.nfe >= 6
    return operations.copies


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("multistep", {}), ("multistep", {"width": 0.1}), ("multistep", {"eta": 0.5}), ("multistep", {"form": "image"}),
        ("multistep", {"start": "runge-kutta"}), ("ddim", {}), ("ddim", {"eta": 0.5}), ("rotation", {}), ("ddpm", {}),
        ("cold", {}), ("cold-improved", {}), ("heun", {}), ("rk4", {}),
    ],
)  # fmt: skip
def test_a_sampler_queues_its_steps_without_waiting(sampler: str, options: dict[str, Any]) -> None:
    run(denoiser(), sampler, **options)


@pytest.mark.parametrize("name", [*HEADS, "noise+variance"])
@pytest.mark.parametrize("projection", [None, "velocity", "image", "noise"])
def test_a_denoiser_queues_its_evaluation_without_waiting(name: str, projection: str | None) -> None:
    run(denoiser(name, projection=projection))


def test_wrappers_and_labels_do_not_wait_either() -> None:
    labelled = denoiser(classes=4)
    for wrapped in (labelled, Guided(labelled, 1.5), Clipped(labelled), Clipped(labelled, rederive=False)):
        run(wrapped, labels=[0, 3, 1])
    angles = torch.tensor([0.2, 0.4, 1.0], dtype=torch.float64)
    for angle in (angles, angles[:1], angles[0]):
        for projection in ("velocity", "image", "noise"):
            denoise, x = Clipped(denoiser(projection=projection)), torch.empty(3, *SHAPE, device="meta")
            with queued():
                denoise(x, angle)


def test_the_numbers_of_a_trajectory_are_copied_once() -> None:
    """The labels, and the weights of all steps of `multistep`; nothing is copied for each evaluation."""
    assert run(denoiser(classes=4), labels=[0, 3, 1]) == 2
    assert run(denoiser(), "ddim") == 0


def test_the_u_net_does_not_wait_either() -> None:
    unet = UNet(SHAPE[0], 2 * SHAPE[0], channels=8, multipliers=(1, 2), blocks=1, classes=4).to("meta").eval()
    assert run(replace(denoiser(classes=4), network=unet), "ddim", [0, 3, 1]) == 1


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: torch.equal(x, x),
        lambda x: x.cpu(),
        lambda x: torch.ones(2).to(x.device),
        lambda x: x.copy_(torch.ones(2)),
        lambda x: torch.where(x > 0, x, torch.tensor(0.0)),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x[x > 0],
    ],
)
def test_waiting_is_noticed(waiting: Callable[[Tensor], object]) -> None:
    x = torch.empty(2, device="meta")
    with queued():
        torch.ones(2).to("meta", non_blocking=True)
        with pytest.raises((AssertionError, RuntimeError)):
            waiting(x)
