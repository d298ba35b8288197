"""Conversion of weights to and from diffusers' UNet2DModel: equal outputs in both directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quarterarc.common.errors import InputError
from quarterarc.interop.unet_weights import from_diffusers, to_diffusers
from quarterarc.networks import UNet

diffusers = pytest.importorskip("diffusers")

DDPM = {
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}


def unet2d(**options: Any) -> Any:
    torch.manual_seed(0)
    settings = {
        "sample_size": 16, "in_channels": 3, "out_channels": 3, "layers_per_block": 2, "norm_num_groups": 8,
        "block_out_channels": (16, 32, 32), "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), **DDPM, **options,
    }  # fmt: skip
    model = diffusers.UNet2DModel(**settings).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.03 * torch.randn_like(weight))
    return model


@pytest.mark.parametrize("options", [{}, {"num_class_embeds": 5}, {"downsample_padding": 1, "flip_sin_to_cos": True,
                                          "freq_shift": 0, "norm_eps": 1e-5, "attention_head_dim": 8}])  # fmt: skip
def test_outputs_agree_in_both_directions(options: dict[str, Any]) -> None:
    model = unet2d(**options)
    ours = from_diffusers(model).eval()
    back = to_diffusers(ours).eval()
    x = torch.randn(3, 3, 16, 16)
    for time in (torch.tensor(17.0), torch.tensor([0.0, 400.0, 999.0])):
        labels = torch.tensor([0, 3, 4]) if options.get("num_class_embeds") else None
        with torch.no_grad():
            expected = model(x, time, class_labels=labels).sample
            scale = max(1.0, float(expected.abs().max()))
            for output in (ours(x, time, labels), back(x, time, class_labels=labels).sample):
                assert (output - expected).abs().max() < 1e-5 * scale


def test_the_weights_of_augmentation_stay_behind() -> None:
    """As for images that were not augmented, a condition of training that UNet2DModel does not have."""
    torch.manual_seed(0)
    ours = UNet(3, 3, 8, (1, 2), 1, (1,), augmentations=8).eval()
    with torch.no_grad():
        for weight in ours.parameters():
            weight.add_(0.03 * torch.randn_like(weight))
        x, time = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0])
        expected = ours(x, time)
        assert (ours(x, time, augmentation=torch.ones(2, 8)) - expected).abs().max() > 1e-3
        assert (to_diffusers(ours).eval()(x, time).sample - expected).abs().max() < 1e-5


def test_a_configuration_that_unet_cannot_represent_raises() -> None:
    with pytest.raises(InputError):
        from_diffusers(unet2d(resnet_time_scale_shift="scale_shift"))


def test_a_first_multiplier_other_than_1_raises() -> None:
    with pytest.raises(InputError, match="first multiplier is 1, this network's is 2"):
        to_diffusers(UNet(in_channels=1, out_channels=1, channels=16, multipliers=(2, 2)))
