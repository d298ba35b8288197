"""Compilation of the network that a plan samples with, for many batches of one size."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..common.compiling import Compile, compile_network, decide, first_call
from ..common.errors import InputError
from ..denoiser import Denoise, Denoiser, traits
from ..samplers import Adaptive
from ..wrappers import Clipped, Guided, Projected
from .plans import Plan

__all__ = ["compiled"]

logger = logging.getLogger("quarterarc")


def compiled(plan: Plan, setting: Compile, images: int, batch_size: int) -> Plan:
    """The plan with a compiled copy of its network, where that pays.

    Args:
        plan: a plan.
        setting: `auto` compiles on a GPU for many images, as `compiling.decide` does for many calls; the sampler
            `adaptive`, whose batches have many sizes, and denoisers without a network are not compiled.
        images: number of images to sample.
        batch_size: images per batch; smaller batches are filled up, so that nothing is compiled again.

    Raises:
        InputError: for another setting; or if it is true, and there is no network, or compilation is not possible.
    """
    if setting not in (True, False, "auto"):
        raise InputError(f"compile is true, false or 'auto', got {setting!r}")
    inner = _innermost(plan.denoise)
    network = inner.network if isinstance(inner, Denoiser) else None
    if not isinstance(network, nn.Module):
        if setting is True:
            raise InputError("compile=true needs a network: leave it out for a denoiser without one")
        return plan
    if not images or (setting == "auto" and isinstance(plan.sampler, Adaptive)):
        return plan
    batch_size, declared = min(batch_size, images), traits(plan.denoise)
    calls = math.ceil(images / batch_size) * plan.steps * plan.sampler.evaluations
    if not decide(setting, declared.device or torch.device("cpu"), calls, "compile"):
        return plan
    rows = batch_size * declared.evaluations  # guidance evaluates an image twice, in one batch
    return replace(plan, denoise=_with_network(plan.denoise, _OneSize(network, rows, setting)))


def _innermost(denoise: Denoise) -> Denoise:
    while isinstance(denoise, Clipped | Projected | Guided):
        denoise = denoise.inner
    return denoise


def _with_network(denoise: Denoise, network: nn.Module) -> Denoise:
    """A denoiser whose innermost one has another network."""
    if isinstance(denoise, Clipped | Projected | Guided):
        return replace(denoise, inner=_with_network(denoise.inner, network))
    assert isinstance(denoise, Denoiser)
    return replace(denoise, network=network)


class _OneSize(nn.Module):
    """A compiled copy of a network that is always called with batches of one size.

    Args:
        network: the network, which is not changed.
        rows: that size. Larger batches are computed without compilation.
        setting: `auto` goes on without compilation if it fails.
    """

    def __init__(self, network: nn.Module, rows: int, setting: Compile) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.rows, self.setting = rows, setting
        self._called = False
        compile_network(self.network, graphs=any(weight.is_cuda for weight in self.network.parameters()))

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None, *spans: Tensor) -> Tensor:
        """The output of the network; arguments as for `Denoiser.network`."""
        rows, missing = len(x), self.rows - len(x)
        if missing < 0:
            output: Tensor = self.network.forward(x, time, labels, *spans)
            return output
        if missing:
            x, labels = _filled(x, missing), None if labels is None else _filled(labels, missing)
            # times are one per image, or one for all
            time = time if time.numel() == 1 else _filled(time, missing)
            spans = tuple(span if span.numel() == 1 else _filled(span, missing) for span in spans)
        torch.compiler.cudagraph_mark_step_begin()  # the output of the call before was copied
        call = self.network if self._called else self._first_call
        return call(x, time, labels, *spans)[:rows].clone()  # CUDA graphs write every output to the same memory

    def _first_call(self, *arguments: Tensor | None) -> Tensor:
        """The call that compiles; where that fails, `auto` goes on without compilation."""
        self._called = True
        output: Tensor | None = first_call(
            self.network, lambda: self.network(*arguments), self.setting, "sample with compile=false"
        )
        return self.network(*arguments) if output is None else output


def _filled(values: Tensor, missing: int) -> Tensor:
    """The values with zeros after them."""
    return torch.cat([values, values.new_zeros(missing, *values.shape[1:])])
