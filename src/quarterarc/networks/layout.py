"""Networks whose memory layout follows their device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

__all__ = ["LaidOut"]


class LaidOut(nn.Module):
    """A network that has channels-last weights and activations on the CPU, and channels-first ones on a GPU."""

    @property
    def last(self) -> nn.Conv2d:
        """The last convolution, whose weights have several input channels, so that their layout is unambiguous."""
        raise NotImplementedError

    @property
    def layout(self) -> torch.memory_format:
        """The current memory layout."""
        channels_last = self.last.weight.is_contiguous(memory_format=torch.channels_last)
        return torch.channels_last if channels_last else torch.contiguous_format

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """The step behind `to`, `cuda` and the like; weights on a new device get its memory layout."""
        before = self.last.weight.device
        super()._apply(fn, recurse)
        if self.last.weight.device != before:
            self.lay_out()
        return self

    def lay_out(self, last: bool | None = None) -> Self:
        """Choose the memory layout of weights and activations; a move to another device chooses its default again.

        Args:
            last: channels-last or channels-first. By default channels-last on the CPU, which oneDNN prefers, and
                channels-first on a GPU, the only layout of CUDA's own group norm. A compiled network should be
                channels-last on any device: its norms have either layout, and tensor cores compute convolutions in it.
        """
        if last is None:
            last = self.last.weight.device.type == "cpu"
        layout = torch.channels_last if last else torch.contiguous_format
        return self.to(memory_format=layout)  # type: ignore[call-overload]
