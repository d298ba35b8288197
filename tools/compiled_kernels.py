"""What `torch.compile` makes of the U-Net and of diffusers' `UNet2DModel` of the same shape: kernels, calls and bytes.

    python -m tools.compiled_kernels

Counted in the code that inductor generates for the CPU, which is not compiled further and computes nothing. A small
network has every kind of layer. Other backends fuse by the same rules, but not all alike.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._inductor import config, metrics
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.graph import GraphLowering

from quarterarc.interop.unet_weights import to_diffusers
from quarterarc.networks import UNet

CALL = re.compile(r"^\s+(?:buf\d+ = )?(?:extern_kernels\.\w+|torch\.ops\.aten\.\w+\.\w+)\(", re.MULTILINE)
"""A call of an operation of torch (convolution, matrix product, attention) in generated code."""


@contextmanager
def _counting(code: list[str], sizes: list[int]) -> Iterator[None]:
    """Collect generated code, and the bytes that its kernels read and write, in place of compiling it."""
    build = GraphLowering.compile_to_module

    def counted(graph: GraphLowering) -> Any:
        module = build(graph)
        sizes.append(graph.count_bytes()[0])
        return module

    with (
        config.patch(fx_graph_cache=False),
        patch("torch._functorch.config.enable_autograd_cache", False),
        patch.object(AsyncCompile, "cpp_pybinding", lambda *_: lambda *_: None),
        patch.object(GraphLowering, "save_output_code", staticmethod(code.append)),
        patch.object(GraphLowering, "compile_to_module", counted),
    ):
        yield


def count(call: Callable[[Tensor, Tensor], Tensor], training: bool, bf16: bool) -> dict[str, float]:
    """Counts of one compiled forward pass with one time, or of forward and backward pass with one time per image."""
    code: list[str] = []
    sizes: list[int] = []
    torch._dynamo.reset()
    metrics.reset()
    x, times = torch.randn(4, 3, 16, 16), torch.rand(4) * 1000
    with _counting(code, sizes), torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.set_grad_enabled(training):
        output = torch.compile(call, dynamic=False)(x, times if training else times[0])
        if training:
            output.float().square().mean().backward()
    return {
        "operations": metrics.ir_nodes_pre_fusion,
        "kernels": metrics.generated_kernel_count,
        "calls": len(CALL.findall("\n".join(code))),
        "MB": sum(sizes) / 1e6,
    }


def _output(model: nn.Module, x: Tensor, time: Tensor) -> Tensor:
    output: Tensor = model(x, time, return_dict=False)[0]
    return output


def main() -> int:
    """Print the table."""
    print("| pass | dtype | network | operations | kernels | calls of torch | MB read and written |")
    print("|---|---|---|---|---|---|---|")
    for training in (False, True):
        for bf16 in (False, True):
            ours = UNet(3, 6, 32, (1, 2), 1, (1,), groups=8).lay_out(last=True).train(training)
            theirs = to_diffusers(ours).to(memory_format=torch.channels_last).train(training)
            for name, call in (("ours", ours), ("theirs", partial(_output, theirs))):
                row = count(call, training, bf16)
                print(
                    f"| {'training' if training else 'forward'} | {'bf16' if bf16 else 'float32'} | {name} | "
                    f"{row['operations']} | {row['kernels']} | {row['calls']} | {row['MB']:.1f} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
