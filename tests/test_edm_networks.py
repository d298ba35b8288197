"""DDPM++ and ADM: sizes, labels, memory layout, recomputation, compilation, forward mode, and training by a recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

import quarterarc as qa
from quarterarc import InputError
from quarterarc.networks import ADM, DDPMpp, build_network, describe_network

Network = ADM | DDPMpp
KINDS: dict[str, dict[str, Any]] = {
    "ddpm++": {},
    "adm": {"head_channels": 4},
    "adm-conv": {"head_channels": None, "heads": 2, "resample": "conv", "scaled": False},
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(kind: str, **options: Any) -> Network:
    """A small network whose weights are all away from zero."""
    torch.manual_seed(0)
    build: Any = DDPMpp if kind == "ddpm++" else ADM
    chosen = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "dropout": 0.0}
    network: Network = build(8, 1, 2, **{**chosen, **KINDS[kind], **options})
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return network.eval()


def test_the_defaults_have_the_published_numbers_of_parameters() -> None:
    """EDM's networks for CIFAR-10, without its 9 x 128 weights for labels of augmentation, and for ImageNet at 64."""
    with torch.device("meta"):
        counts = [sum(w.numel() for w in n.parameters()) for n in (DDPMpp(32, 3, 3), ADM(64, 3, 3, classes=1000))]
    assert counts == [55_733_891 - 9 * 128, 295_899_267]


def test_config_builds_the_same_network_again(kind: str) -> None:
    network = make(kind, classes=3)
    again = build_network(json.loads(json.dumps(describe_network(network))))
    again.load_state_dict(network.state_dict())
    x, time, labels = torch.randn(2, 1, 8, 8), torch.tensor(1.0), torch.tensor([0, 3])
    assert torch.equal(again.eval()(x, time, labels), network(x, time, labels))


def test_a_shared_time_equals_the_same_time_per_image(kind: str) -> None:
    network, x = make(kind), torch.randn(3, 1, 8, 16)
    shared = network(x, torch.tensor(421.5))
    assert shared.shape == (3, 2, 8, 16)
    # the same sums in another order: a few float32 roundings
    torch.testing.assert_close(network(x, torch.full((3,), 421.5)), shared, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(network(x, torch.tensor(20.0)), shared, atol=1e-3)


def test_none_is_the_last_class_and_labels_change_the_output(kind: str) -> None:
    network, x, time = make(kind, classes=4), torch.randn(3, 1, 8, 8), torch.tensor(9.0)
    nothing = network(x, time)
    torch.testing.assert_close(network(x, time, torch.full((3,), 4)), nothing, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(network(x, time, torch.tensor([0, 1, 2])), nothing, atol=1e-3)
    with pytest.raises(InputError, match="one per image"):
        network(x, time, torch.tensor([0]))
    with pytest.raises(InputError, match="without classes"):
        make(kind)(x, time, torch.tensor([0, 0, 0]))


def test_the_memory_layout_follows_the_device_and_changes_nothing(kind: str) -> None:
    network, x, time = make(kind), torch.randn(2, 1, 8, 8), torch.tensor(300.0)
    assert network.layout == torch.channels_last
    expected = network(x, time)
    # the same sums by other kernels
    torch.testing.assert_close(network.lay_out(last=False)(x, time), expected, rtol=1e-4, atol=1e-4)
    assert network.layout == torch.contiguous_format
    assert network.to("meta").lay_out(last=True).layout == torch.channels_last


def gradients(network: Network, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(network(x, torch.tensor(70.0)).square().sum(), list(network.parameters())))


def test_recomputation_has_the_same_gradients(kind: str) -> None:
    network, x = make(kind), torch.randn(2, 1, 8, 8)
    kept = gradients(network, x)
    network.recompute = True
    assert all(torch.equal(a, b) for a, b in zip(kept, gradients(network, x), strict=True))


def test_gradients_with_and_without_the_cpu_forms_agree(kind: str) -> None:
    network, x = make(kind), torch.randn(2, 1, 8, 8)
    fast = gradients(network, x)
    exact = gradients(network.double(), x.double())
    for one, other in zip(fast, exact, strict=True):
        scale = other.abs().max().clamp(min=1.0)
        assert (one.double() - other).abs().max() < 1e-4 * scale  # float32 sums of some thousand terms


def test_forward_mode_is_the_difference_quotient(kind: str) -> None:
    network = make(kind).double()
    x, direction = torch.randn(2, 1, 8, 8).double(), torch.randn(2, 1, 8, 8).double()

    def call(x: Tensor) -> Tensor:
        return network(x, torch.tensor(300.0))

    tangent = torch.func.jvp(call, (x,), (direction,))[1]
    step = 1e-5
    quotient = (call(x + step * direction) - call(x - step * direction)) / (2.0 * step)
    torch.testing.assert_close(tangent, quotient, rtol=1e-6, atol=1e-6)  # errors of step^2 and of rounding/step


def test_a_call_is_one_graph(kind: str) -> None:
    torch._dynamo.reset()
    graphs: list[GraphModule] = []

    def backend(graph: GraphModule, inputs: Sequence[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    network, x = make(kind, classes=3), torch.randn(2, 1, 8, 8)
    compiled = torch.compile(network, fullgraph=True, dynamic=False, backend=backend)
    expected = network(x, torch.tensor([3.0, 5.0]), torch.tensor([0, 1]))
    for _ in range(2):
        result = compiled(x, torch.tensor([3.0, 5.0]), torch.tensor([0, 1]))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)  # upsampling has another form when compiled
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_autocast_is_close_and_the_output_is_float32(kind: str) -> None:
    network, x, time = make(kind), torch.randn(2, 1, 8, 8), torch.tensor(300.0)
    exact = network(x, time)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x, time)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.05 * exact.norm()  # eight bits of mantissa through some ten layers


def test_arguments_that_contradict_each_other_are_named() -> None:
    for options, words in (
        ({"multipliers": (1, 1, 1, 1, 1)}, "cannot be halved"),
        ({"channels": 0}, "channels is a whole number"),
        ({"multipliers": (0.3,)}, "widths"),
        ({"dropout": 1.0}, "dropout"),
        ({"classes": 0}, "classes"),
    ):
        with pytest.raises(InputError, match=words):
            make("ddpm++", **options)
    with pytest.raises(InputError, match="attention heads"):
        make("adm", head_channels=7)
    with pytest.raises(InputError, match="divisible by 2"):
        make("adm")(torch.randn(1, 1, 7, 8), 1.0)
    with pytest.raises(InputError, match="out of memory"):
        build_network(
            {"name": "ddpm++", "arguments": {"size": 32, "in_channels": 3, "out_channels": 3, "channels": 10**6}}
        )


def test_a_recipe_trains_it_and_its_checkpoint_loads(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    fields = {field.partition("=")[0]: field.partition("=")[2] for field in tiny if not field.startswith("network.")}
    values: dict[str, Any] = {name: json.loads(value) for name, value in fields.items()}
    values |= {
        "network.name": "ddpm++",
        "network.arguments": {"channels": 8, "multipliers": [1, 1], "blocks": 1, "attention": [4]},
        "training.recompute": True,
        "training.steps": 2,
    }
    run = qa.train("digits", tmp_path / "run", fields=values, progress=False)
    denoise = qa.load(run)
    assert isinstance(denoise.network, DDPMpp)
    assert qa.generate(denoise, [0, 1], steps=2).isfinite().all()
