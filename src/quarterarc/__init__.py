"""Diffusion models of images on the quarter arc."""

__version__ = "0.1.0"
