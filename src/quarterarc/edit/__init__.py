"""Editing of images: new content in a part, another version of the whole, the way between two, and variations."""

from .api import image_to_image, inpaint, interpolate, variations

__all__ = ["image_to_image", "inpaint", "interpolate", "variations"]
