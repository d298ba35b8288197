"""`python -m benchmarks scaling`: steps of training on many GPUs, calculated from that of one GPU; nothing is measured.

Gradients are averaged as `DistributedDataParallel` does it: in buckets, each as soon as the backward pass has computed
it, one after another, while the pass goes on. Within a node a ring over NVLink adds up shares of a bucket, rings
between the nodes, one per GPU and network card, add up each share, and a ring within the node distributes the sums. The
step is longer by what is left when the backward pass ends, since clipping needs the whole gradient. The batch per GPU
stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report import Row, markdown
from quarterarc.common.errors import InputError

__all__ = ["MEASURED", "Links", "Measured", "all_reduce", "run", "step_seconds"]

BUCKET = 25 * 2**20
"""Bytes per bucket of `DistributedDataParallel`, and its first one."""
FIRST_BUCKET = 2**20


@dataclass(frozen=True)
class Measured:
    """Training on one GPU.

    Attributes:
        batch: images per step.
        step: seconds per step.
        forward: seconds of a forward pass of the same batch.
        weights: number of weights, whose gradients have 4 bytes each.
    """

    batch: int
    step: float
    forward: float
    weights: float

    @property
    def backward(self) -> float:
        """Seconds of the backward pass: twice the forward pass, and at most the rest of the step."""
        return min(2 * self.forward, self.step - self.forward)


MEASURED = {
    "cifar10": Measured(128, 23.3e-3, 9.1e-3, 35.7e6),
    "small": Measured(256, 18.9e-3, 4.9e-3, 6.5e6),
}
"""One H200, bf16, compiled in CUDA graphs, a bare step on random images."""


@dataclass(frozen=True)
class Links:
    """Connections between GPUs.

    Attributes:
        node: GPUs per node.
        nvlink: bytes per second that a GPU sends to another one of its node.
        network: bytes per second that a GPU sends to one of another node, through a card of its own.
        nvlink_delay, network_delay: seconds of a message without content.
    """

    node: int = 8
    nvlink: float = 0.8 * 450e9
    network: float = 0.8 * 50e9
    nvlink_delay: float = 5e-6
    network_delay: float = 15e-6


def all_reduce(size: float, gpus: int, links: Links) -> float:
    """Seconds in which the sum of `size` bytes over all GPUs arrives at all of them.

    A ring of n moves (n - 1)/n of the bytes to add them up, in n - 1 messages, and as many to distribute the sums.
    """
    inside = min(gpus, links.node)
    nodes = math.ceil(gpus / links.node)

    def ring(count: int, moved: float, speed: float, delay: float) -> float:
        return 2 * (count - 1) * (moved / count / speed + delay)

    return ring(inside, size, links.nvlink, links.nvlink_delay) + ring(
        nodes, size / inside, links.network, links.network_delay
    )


def step_seconds(one: Measured, gpus: int, links: Links, overlap: bool = True) -> float:
    """Seconds per step on many GPUs, each with the batch of one.

    Args:
        one: the step of one GPU.
        gpus: number of GPUs.
        links: their connections.
        overlap: whether gradients are averaged during the backward pass; otherwise all of them after it.
    """
    if gpus == 1:
        return one.step
    size, sent, done = 4 * one.weights, 0.0, 0.0
    while sent < size:
        bucket = min(BUCKET if sent else FIRST_BUCKET, size - sent)
        sent += bucket
        computed = one.backward * (sent / size if overlap else 1.0)  # gradients are computed at a constant rate
        done = max(done, computed) + all_reduce(bucket, gpus, links)
    return one.step + max(0.0, done - one.backward)


def run(
    *, gpus: Sequence[int], node: int, nvlink: float, network: float, show: Callable[[str], None] = print
) -> dict[str, Any]:
    """Calculate the steps of the networks in `MEASURED`.

    Args:
        gpus: numbers of GPUs.
        node: GPUs per node.
        nvlink: GB/s (1e9 bytes) that a GPU sends within a node.
        network: GB/s that a GPU sends to another node.
        show: receives the table.

    Returns:
        "settings" and "rows", one per network and number of GPUs: milliseconds per step, those of it waiting for
        gradients, the rate in images per second, and the efficiency, with and "without" overlap.

    Raises:
        InputError: for a number of GPUs that fills some nodes in part.
    """
    links = Links(node, nvlink * 1e9, network * 1e9)
    rows: list[Row] = []
    for name, one in MEASURED.items():
        for count in gpus:
            if count > node and count % node:
                raise InputError(f"{count} GPUs do not fill nodes of {node}: give a multiple (--gpus, --node)")
            seconds = step_seconds(one, count, links)
            rows.append(
                {
                    "network": name,
                    "gpus": count,
                    "batch": count * one.batch,
                    "milliseconds": 1e3 * seconds,
                    "waiting": 1e3 * (seconds - one.step),
                    "rate": count * one.batch / seconds,
                    "efficiency": one.step / seconds,
                    "without": one.step / step_seconds(one, count, links, overlap=False),
                }
            )
    columns = {
        "network": "{network}",
        "GPUs": "{gpus}",
        "global batch": "{batch:,}",
        "ms per step": "{milliseconds:.1f}",
        "of it waiting": "{waiting:.2f}",
        "images/s": "{rate:,.0f}",
        "efficiency": "{efficiency:.1%}",
        "without overlap": "{without:.1%}",
    }
    cells = [[form.format(**row) for form in columns.values()] for row in rows]
    show("calculated, not measured\n\n" + markdown([list(columns), *cells]))
    return {"settings": {"node": node, "nvlink": nvlink, "network": network}, "rows": rows}
