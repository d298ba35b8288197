"""Sampled batches on the CPU, copied from a GPU while it computes the next batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.errors import InputError
from .trajectories import Result

__all__ = ["Arrived", "arriving", "check_finite", "wait_for"]


@dataclass(frozen=True, eq=False)
class Arrived:
    """A sampled batch on the CPU.

    Attributes:
        seeds: one per image.
        images: shape (B, C, H, W), as converted on the device.
        finite: whether an image has neither NaN nor infinity, shape (B,).
        nfe: network evaluations per image.
    """

    seeds: Sequence[int]
    images: Tensor
    finite: Tensor
    nfe: float


def arriving(results: Iterator[tuple[Sequence[int], Result]], convert: Callable[[Tensor], Tensor]) -> Iterator[Arrived]:
    """The batches on the CPU, in their order.

    A batch of a GPU is yielded once the next one is queued there: the GPU computes while the batch is copied and used.
    Converted images of at most two batches are on it.

    Args:
        results: sampled batches, from `generation.batches`.
        convert: applied to the images on their device.
    """
    waiting: Callable[[], Arrived] | None = None
    for seeds, result in results:
        copied = _copied(seeds, result, convert)
        if waiting is not None:
            yield waiting()
        waiting = copied
        if result.images.device.type != "cuda":  # the batch is complete, and nothing computes meanwhile
            waiting = None
            yield copied()
    if waiting is not None:
        yield waiting()


def _copied(seeds: Sequence[int], result: Result, convert: Callable[[Tensor], Tensor]) -> Callable[[], Arrived]:
    """Queue the copy of a batch to the CPU; the returned function waits for it."""
    images, device = result.images, result.images.device
    queued = device.type == "cuda"  # into pinned memory, which torch allocates for this
    finite = images.flatten(1).isfinite().all(1).to("cpu", non_blocking=queued)
    batch = Arrived(seeds, convert(images).to("cpu", non_blocking=queued), finite, result.nfe)
    if not queued:
        return lambda: batch
    complete = torch.cuda.Event(blocking=True)
    complete.record(torch.cuda.current_stream(device))

    def wait() -> Arrived:
        complete.synchronize()
        return batch

    return wait


def check_finite(seeds: Sequence[int], finite: Tensor) -> None:
    """Raise an InputError that names the first seed whose image is not finite.

    Args:
        seeds: one per image.
        finite: whether an image has neither NaN nor infinity, shape (B,).
    """
    bad = [seed for seed, good in zip(seeds, finite.tolist(), strict=True) if not good]
    if bad:
        raise InputError(
            f"the image of seed {bad[0]} has pixels that are NaN or infinite: check the network's weights and the "
            "sampler's options"
        )


def wait_for(writing: Sequence[Future[None]]) -> None:
    """Wait for files that threads write; raise the error of the first one that could not be written."""
    for file in writing:
        file.result()
