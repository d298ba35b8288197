"""The U-Net: any size and channel count, time computed once, labels, precision, and a config that rebuilds it."""

import json
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from quarterarc.common.errors import InputError
from quarterarc.networks import UNet, attention_levels


def make(in_channels: int = 3, out_channels: int = 6, **options: object) -> UNet:
    """A small network whose weights are all away from zero, including the zero-initialised ones."""
    torch.manual_seed(0)
    chosen = {"channels": 16, "multipliers": (1, 2, 2), "blocks": 1, "attention": (1,), **options}
    network = UNet(in_channels, out_channels, **chosen).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return network


def test_the_output_of_a_new_network_is_zero() -> None:
    network = UNet(3, 6, 16, (1, 2), 1, (1,))
    assert torch.equal(network(torch.randn(2, 3, 8, 8), torch.tensor(5.0)), torch.zeros(2, 6, 8, 8))


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (9, 20), (1, 1), (30, 50)])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_any_size_and_any_channels(size: tuple[int, int], channels: int) -> None:
    out = make(channels, 2 * channels)(torch.randn(2, channels, *size), torch.tensor(3.0))
    assert out.shape == (2, 2 * channels, *size)
    assert out.isfinite().all()


def test_a_shared_time_equals_the_same_time_per_image() -> None:
    network, x = make(), torch.randn(5, 3, 8, 8)
    shared = network(x, torch.tensor(421.5))
    # the same sums in another order: a few float32 roundings
    torch.testing.assert_close(network(x, torch.full((5,), 421.5)), shared, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network(x, torch.full((1,), 421.5)), shared, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(network(x, torch.tensor(20.0)), shared, atol=1e-3)


def test_images_of_a_batch_do_not_affect_each_other() -> None:
    network, x, times = make(), torch.randn(6, 3, 8, 8), torch.rand(6) * 1000
    whole = network(x, times)
    for place in range(6):
        alone = network(x[place : place + 1], times[place : place + 1])
        torch.testing.assert_close(alone, whole[place : place + 1], rtol=1e-4, atol=1e-5)


def test_labels_change_the_output_and_none_is_the_last_class() -> None:
    network, x, time = make(classes=4), torch.randn(3, 3, 8, 8), torch.tensor(9.0)
    nothing = network(x, time)
    torch.testing.assert_close(network(x, time, torch.full((3,), 4)), nothing, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(network(x, time, torch.tensor([0, 1, 2])), nothing, atol=1e-3)


def test_config_builds_the_same_network_again() -> None:
    network = make(classes=3, dropout=0.1, head_channels=8)
    again = UNet(**json.loads(json.dumps(network.config)))
    again.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again.eval()(x, torch.tensor(1.0), torch.tensor([0, 1])),
                       network(x, torch.tensor(1.0), torch.tensor([0, 1])))  # fmt: skip


def test_bf16_is_close_to_fp32() -> None:
    network, x, time = make(), torch.randn(4, 3, 16, 16), torch.tensor(300.0)
    exact = network(x, time)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x, time).float()
    assert (rounded - exact).norm() < 0.05 * exact.norm()  # eight bits of mantissa through some twenty layers


def test_gradients_with_and_without_the_cpu_forms_agree() -> None:
    """The forms for the CPU in float32 agree with the general forms in float64."""
    network, x = make(), torch.randn(4, 3, 8, 8)
    times = torch.rand(4) * 1000
    network(x, times).square().sum().backward()
    single = {name: weight.grad.double() for name, weight in network.named_parameters() if weight.grad is not None}
    double = make().double()
    double(x.double(), times).square().sum().backward()
    for name, weight in double.named_parameters():
        assert weight.grad is not None
        scale = weight.grad.abs().max().clamp(min=1e-3)
        assert (single[name] - weight.grad).abs().max() < 1e-3 * scale, name  # float32 sums of some thousand terms


def test_dropout_keeps_the_mean_and_is_seeded() -> None:
    from quarterarc.networks.layers import drop

    x = torch.ones(64, 16, 16, 16).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(1)
    dropped = drop(x, 0.3, True)
    torch.manual_seed(1)
    assert torch.equal(drop(x, 0.3, True), dropped)
    kept = (dropped != 0).double().mean()
    # five standard errors of a binomial share
    assert abs(kept - 0.7) < 5 * (0.21 / x.numel()) ** 0.5 + 1 / 65536
    assert dropped[dropped != 0].unique().numel() == 1
    assert abs(dropped.double().mean() - 1) < 0.01
    assert drop(x, 0.3, False) is x
    assert drop(x, 1 - 1e-7, True).isfinite().all()


@pytest.mark.parametrize("autocast", [False, True])
def test_recomputation_keeps_less_and_changes_no_bit_of_output_and_gradients(autocast: bool) -> None:
    def step(recompute: bool) -> tuple[list[Tensor], int]:
        network, kept = make(dropout=0.3, classes=2, head_channels=8).train(), {}
        network.recompute = recompute

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
        torch.manual_seed(3)
        saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with saving, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = network(x, torch.rand(4) * 1000, labels)
        size = sum(kept.values()) - sum(4 * weight.numel() for weight in network.parameters())
        output.square().sum().backward()
        gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
        return [output.detach(), *gradients, torch.rand(3)], size

    (plain, most), (recomputed, least) = step(False), step(True)
    assert len(plain) == len(recomputed) > 60
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert least < most / 2


def test_recomputation_is_no_part_of_the_weights_or_the_description() -> None:
    network, other = make(), make()
    network.recompute = True
    assert network.config == other.config
    assert network.state_dict().keys() == other.state_dict().keys()
    assert torch.equal(deepcopy(network)(torch.ones(1, 3, 8, 8), 1.0), other(torch.ones(1, 3, 8, 8), 1.0))


def test_memory_is_channels_last_on_the_cpu_and_channels_first_elsewhere() -> None:
    network = make()
    out = network(torch.randn(2, 3, 8, 8), torch.tensor(1.0))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert all(weight.is_contiguous() for weight in network.to("meta").parameters())


def test_the_layout_can_be_chosen_and_lasts_until_the_network_moves() -> None:
    network = make()
    assert network.lay_out(last=False) is network
    out = network.to(torch.float64)(torch.randn(2, 3, 8, 8), 1.0)
    assert out.is_contiguous()
    network.load_state_dict(make().state_dict())
    assert network.output.weight.is_contiguous()
    elsewhere = network.to("meta").lay_out(last=True)
    assert elsewhere.output.weight.is_contiguous(memory_format=torch.channels_last)
    assert not elsewhere.output.weight.is_contiguous()


def test_the_output_has_the_layout_of_the_weights_and_the_same_values() -> None:
    network = make().double()
    x, time = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor(1.0)
    expected = network(x, time)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    out = network(x, time)
    assert out.is_contiguous()
    assert torch.allclose(out, expected, rtol=0, atol=1e-12)


def test_attention_levels_of_resolutions() -> None:
    assert attention_levels(32, (16,), 4) == (1,)
    assert attention_levels(256, (16,), 6) == (4,)
    assert attention_levels(8, (), 2) == ()
    with pytest.raises(InputError, match="choose from these"):
        attention_levels(32, (15,), 4)
    with pytest.raises(InputError, match="groups"):
        UNet(3, 3, 16, (1, 2), groups=5)


@pytest.mark.parametrize("multipliers", [(2, 2), (2, 1), (3, 2, 4)])
def test_the_first_level_may_be_wider_than_the_time_embedding(multipliers: tuple[int, ...]) -> None:
    network = UNet(in_channels=1, out_channels=2, channels=16, multipliers=multipliers)
    assert network(torch.randn(2, 1, 8, 8), torch.tensor(3.0)).shape == (2, 2, 8, 8)
