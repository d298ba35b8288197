"""The network of a flow map: a second time without effect until it is trained, and derivatives in forward mode."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import quarterarc as qa
from quarterarc.common.errors import InputError
from quarterarc.denoiser import Denoiser
from quarterarc.heads import head
from quarterarc.interop.unet_weights import to_diffusers
from quarterarc.networks import UNet
from quarterarc.schedules import schedule
from quarterarc.storage.checkpoints import load, save

SHAPE = (1, 8, 8)


def network(**options: Any) -> UNet:
    """A network whose weights are all random, so that its output depends on each of them."""
    torch.manual_seed(0)
    made = UNet(1, 2, 16, (1, 2), 1, (1,), **options)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.1)
    return made.eval()


def denoiser(net: UNet, **options: Any) -> Denoiser:
    table = schedule("arc", 1000)
    return Denoiser(net, table, head("both", table), SHAPE, **options)


def arguments(count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *SHAPE, generator=generator), 1000 * torch.rand(count, generator=generator)


@pytest.mark.parametrize("classes", [None, 3])
def test_a_network_with_spans_starts_as_the_one_without(classes: int | None) -> None:
    plain = network(classes=classes)
    spanned = plain.with_spans()
    x, time = arguments()
    labels = None if classes is None else torch.tensor([0, 1, 3])
    for span in (None, 0.0, 300.0, torch.tensor([0.0, 10.0, 700.0])):
        assert torch.equal(spanned(x, time, labels, span), plain(x, time, labels))
    assert spanned.span is not None
    nn.init.normal_(spanned.span.get_parameter("2.weight"))
    moved = spanned(x, time, labels, torch.tensor([0.0, 10.0, 700.0]))
    assert not torch.allclose(moved, plain(x, time, labels))
    # one span per image, independent of the others of the batch
    torch.testing.assert_close(moved[2:], spanned(x[2:], time[2:], None if labels is None else labels[2:], 700.0))
    with pytest.raises(InputError, match="a span for a network without spans"):
        plain(x, time, labels, 300.0)
    with pytest.raises(InputError, match="2 spans for 3 images"):
        spanned(x, time, labels, torch.zeros(2))
    with pytest.raises(InputError, match="also takes a span"):
        to_diffusers(spanned)


def test_a_denoiser_tells_the_network_the_span_of_the_jump() -> None:
    net = network().with_spans()
    assert net.span is not None
    nn.init.normal_(net.span.get_parameter("2.weight"))
    denoise, (x, _) = denoiser(net, maps=True), arguments()
    each = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    estimate = denoise(x, 1.0, to=each)
    spans = ((1.0 - each) * 1000 / (math.pi / 2)).float()
    expected = net(x, torch.tensor(denoise.schedule.time(1.0)).float(), None, spans)
    torch.testing.assert_close(torch.cat([estimate.image, estimate.noise], 1), expected, rtol=0, atol=1e-6)
    assert torch.equal(denoise(x, 1.0).image, denoise(x, 1.0, to=1.0).image)
    with pytest.raises(InputError, match=r"from angle 0.5 to 1 moves away"):  # of a batch, the worst one
        denoise(x, torch.tensor([1.5, 0.5, 1.0]), to=torch.tensor([1.2, 1.0, 0.9]))
    with pytest.raises(InputError, match=r"from angle 0.5 to 1 moves away"):
        denoise(x, 0.5, to=1.0)
    with pytest.raises(InputError, match=r"`to`, is for flow maps"):
        denoiser(network())(x, 1.0, to=0.5)


def test_a_flow_map_is_saved_loaded_and_sampled_by_jumps(tmp_path: Path) -> None:
    net = network().with_spans()
    assert net.span is not None
    nn.init.normal_(net.span.get_parameter("2.weight"))
    loaded = load(save(denoiser(net, maps=True), tmp_path / "map"))
    x, _ = arguments()
    assert loaded.traits.maps
    one = qa.sample(loaded, x, steps=1)
    assert one.nfe == 1
    estimate = loaded(x, loaded.largest_angle, to=0.0)
    torch.testing.assert_close(one.images, qa.rotate(x, estimate.velocity(math.pi / 2), -math.pi / 2)[0])
    assert not load(save(denoiser(network()), tmp_path / "plain")).traits.maps


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("heads", [None, 8])
def test_derivatives_in_forward_mode(last: bool, heads: int | None) -> None:
    """Of `torch.func.jvp`, dual tensors and the gradient through them, against differences in float64."""
    net = network(head_channels=heads, classes=2).with_spans().double().lay_out(last)
    assert net.span is not None
    nn.init.normal_(net.span.get_parameter("2.weight"), std=0.1)
    (points, times), labels = arguments(), torch.tensor([0, 1, 2])
    inputs = (points.double(), times.double(), torch.tensor([5.0, 100.0, 300.0], dtype=torch.float64))
    tangents = tuple(torch.randn_like(value) for value in inputs)

    def call(x: Tensor, time: Tensor, span: Tensor) -> Tensor:
        return net(x, time, labels, span)

    h = 1e-4
    above, below = (
        [value + sign * h * tangent for value, tangent in zip(inputs, tangents, strict=True)] for sign in (1, -1)
    )
    expected = (call(*above) - call(*below)) / (2 * h)
    output, derivative = torch.func.jvp(call, inputs, tangents)[:2]
    torch.testing.assert_close(derivative, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(output, call(*inputs), rtol=1e-10, atol=1e-10)
    assert expected.abs().max() > 0.01  # the premise
    with forward_ad.dual_level():
        x, time, span = (forward_ad.make_dual(*pair) for pair in zip(inputs, tangents, strict=True))
        torch.testing.assert_close(
            forward_ad.unpack_dual(call(x, time, span)).tangent, derivative, rtol=1e-9, atol=1e-10
        )
    weight = net.output.weight
    (gradient,) = torch.autograd.grad(torch.func.jvp(call, inputs, tangents)[1].square().sum(), weight)
    with torch.no_grad():
        weight[0, 0, 0, 0] += h
        more = torch.func.jvp(call, inputs, tangents)[1].square().sum()
        weight[0, 0, 0, 0] -= 2 * h
        less = torch.func.jvp(call, inputs, tangents)[1].square().sum()
    torch.testing.assert_close(gradient[0, 0, 0, 0], (more - less) / (2 * h), rtol=1e-5, atol=1e-6)
