"""Networks: modules of images, times and labels that know nothing of diffusion."""

from .unet import UNet, attention_levels

__all__ = ["UNet", "attention_levels"]
