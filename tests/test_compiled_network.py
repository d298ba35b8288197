"""The compiled U-Net: one graph per form of call, without a break; what it computes, and that it scatters nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func  # type: ignore[attr-defined]
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from quarterarc.networks import UNet
from quarterarc.networks.blocks import Attention, Down, ResidualBlock, Run, Upsample, directly, recomputed
from quarterarc.networks.layers import GroupNorm, drop, nearest


@pytest.fixture(autouse=True)
def _compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(**options: Any) -> UNet:
    torch.manual_seed(0)
    chosen = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "dropout": 0.2, **options}
    network = UNet(1, 2, **chosen).lay_out(last=True)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return network


class Graphs:
    """A backend of `torch.compile` that keeps the graphs, and computes without further compilation."""

    def __init__(self) -> None:
        self.graphs: list[GraphModule] = []

    def __call__(self, graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward

    def boxed(self, graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        """The same for a backend of AOTAutograd."""
        return make_boxed_func(self(graph, inputs))


def test_forms_of_a_call_are_one_graph_each_and_compiled_once() -> None:
    network, graphs = make(classes=3, head_channels=4, multipliers=(1,), attention=(0,)), Graphs()
    compiled = torch.compile(network, fullgraph=True, dynamic=False, backend=graphs)
    x, times, labels = torch.randn(4, 1, 8, 8), torch.rand(4) * 1000, torch.tensor([0, 1, 2, 3])

    def training() -> None:
        network.train()
        compiled(x, times * torch.rand(4), labels).sum().backward()

    @torch.no_grad()
    def preview() -> None:
        network.eval()
        compiled(x, times[0] * torch.rand(()), labels)

    def unlabelled() -> None:
        network.train()
        compiled(x, times)

    counts = []
    for call in (training, training, preview, preview, training, unlabelled, preview, training, unlabelled):
        call()
        counts.append(len(graphs.graphs))
    assert counts == [1, 1, 2, 2, 2, 3, 3, 3, 3]


def test_autocast_and_sizes_that_halving_rounds_need_no_graph_break() -> None:
    network, graphs = make(attention=()), Graphs()
    compiled = torch.compile(network, fullgraph=True, dynamic=False, backend=graphs)
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(torch.randn(2, 1, 7, 5), torch.tensor(3.0)).shape == (2, 2, 7, 5)
    assert len(graphs.graphs) == 1


def operations(graphs: Sequence[GraphModule]) -> set[str]:
    return {str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"}


def test_the_gradient_of_compiled_upsampling_scatters_nothing_and_is_that_of_upsampling() -> None:
    """A scatter into equal places adds them one after the other, in an order that a GPU does not fix."""
    graphs, upsample, x = Graphs(), Upsample(4), torch.randn(2, 4, 4, 4, requires_grad=True)
    backend = aot_autograd(fw_compiler=graphs.boxed, bw_compiler=graphs.boxed)
    compiled = torch.compile(upsample, fullgraph=True, dynamic=False, backend=backend)
    inputs = (x, *upsample.parameters())
    ours, expected = (torch.autograd.grad(call(x, (8, 8)).square().sum(), inputs) for call in (compiled, upsample))
    for gradient, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-4)  # float32 sums of some hundred terms
    assert len(graphs.graphs) == 2
    scattering = {name for name in operations(graphs.graphs) if any(part in name for part in ("_put", "scatter"))}
    assert not scattering


def test_recomputation_compiled_changes_no_bit() -> None:
    def step(run: Run) -> list[Tensor]:
        torch.manual_seed(0)
        stage = Down([ResidualBlock(4, 8, 1, 1e-6, 0.3)], [Attention(8, 8, 1, 1e-6)], None)
        x, shift = torch.randn(2, 4, 4, 4, requires_grad=True), torch.randn(2, 8)
        for weight in stage.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        compiled = torch.compile(lambda x: stage(x, iter([shift]), run)[0], fullgraph=True, backend="aot_eager")
        output = compiled(x)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), (x, *stage.parameters()))]

    assert all(torch.equal(a, b) for a, b in zip(step(directly), step(recomputed), strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compiled_upsampling_is_interpolation(layout: torch.memory_format) -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=layout).requires_grad_()
    weights = torch.randn(2, 3, 8, 10)
    plain, compiled = nearest(x), torch.compile(nearest, fullgraph=True, dynamic=False, backend="aot_eager")(x)
    assert torch.equal(plain, compiled)
    gradients = [torch.autograd.grad((out * weights).sum(), x)[0] for out in (plain, compiled)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)  # sums of four in another order


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_dropout(dtype: torch.dtype) -> None:
    """Four channels share a random integer: each value is dropped with the probability, independently of the others."""
    compiled = torch.compile(drop, fullgraph=True, dynamic=False, backend="aot_eager")
    x = torch.ones(16, 8, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.manual_seed(1)
    dropped = compiled(x, 0.3, True)
    dropped.sum().backward()
    torch.manual_seed(1)
    assert torch.equal(compiled(x, 0.3, True), dropped)
    assert not torch.equal(compiled(x, 0.3, True), dropped)
    assert dropped.dtype == dtype
    assert x.grad is not None
    assert torch.equal(x.grad, dropped)  # of a sum: the mask, scaled
    kept = (dropped != 0.0).detach()
    assert dropped[kept].unique().tolist() == pytest.approx([1 / 0.7], rel=1e-2 if dtype == torch.bfloat16 else 1e-4)
    shares = kept.double().mean((0, 2, 3))  # of 16,384 values per channel
    assert (shares - 0.7).abs().max() < 4.5 * (0.21 / 16384) ** 0.5
    pairs = torch.corrcoef(kept.double().permute(1, 0, 2, 3).flatten(1)) - torch.eye(8)
    assert pairs.abs().max() < 4.5 / 16384**0.5
    assert compiled(x, 0.3, False) is x
    odd = compiled(torch.ones(2, 6, 8, 8), 0.3, True)  # a width that four does not divide
    assert 0.4 < (odd != 0.0).float().mean() < 0.95


def test_a_compiled_norm_copies_nothing_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients; traced on tensors without values. PyTorch's own norm copies, as a premise."""
    norm = GroupNorm(4, 16, 1e-6, activate=False)
    x = torch.randn(2, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = norm(x)

    def operations(compiling: bool) -> list[str]:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            fake = GroupNorm(4, 16, 1e-6, activate=False)
            for name, weight in list(fake.named_parameters()):
                setattr(fake, name, torch.nn.Parameter(torch.empty(weight.shape, device="cuda")))
            on_gpu = torch.empty(x.shape, device="cuda", dtype=torch.bfloat16, memory_format=torch.channels_last)
            graph = make_fx(fake, decomposition_table=select_decomp_table())(on_gpu)
        return [str(node.target) for node in graph.graph.nodes]

    assert "aten.clone.default" in operations(False)
    assert "aten.clone.default" not in operations(True)
    with torch.no_grad():  # while it appears to compile
        torch.testing.assert_close(norm(x), expected)
        assert norm(x.bfloat16()).dtype == torch.float32
