"""Results as HTML, with all pictures embedded: the server has no files to serve."""

from __future__ import annotations

from importlib.resources import files

from markupsafe import Markup, escape
from torch import Tensor
from torch.nn import functional as F

from ..common.text import counted, printable
from ..data.pixels import levels, to_float
from ..report import data_url
from ..storage.pictures import encode_png
from .player import Frame, Settings

__all__ = ["error", "escaped", "picture", "pictures", "text_of", "trajectory"]

LARGEST = 96
"""Pixels of the longer side of a picture of the trajectory."""


def text_of(name: str) -> str:
    """The text of a file of this folder."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def escaped(text: str) -> str:
    """Text without control characters, for a page."""
    return str(escape(printable(text)))


def picture(pixels: Tensor) -> str:
    """uint8 pixels, shape (C, H, W), as the data URL of a PNG."""
    return data_url(encode_png(pixels))


def pictures(images: Tensor, settings: Settings, note: str = "") -> str:
    """Images with their seeds, and the command that makes the same ones.

    Args:
        images: uint8, shape (B, C, H, W).
        settings: how they were made.
        note: a line about them; the command if empty.
    """
    figures = Markup("").join(
        Markup('<figure><img src="{}" alt="Image of seed {}"><figcaption>Seed {}</figcaption></figure>').format(
            picture(image), seed, seed
        )
        for seed, image in zip(settings.seeds, images, strict=True)
    )
    below = Markup("<p>{}</p>").format(note) if note else Markup("<code>{}</code>").format(settings.command)
    few = "few" if len(images) == 1 else "many"
    return str(Markup('<div class="qa-pictures qa-{}">{}</div>{}').format(few, figures, below))


def trajectory(frame: Frame, seed: int) -> str:
    """The trajectory of one image: at each angle the point x above the image estimate."""
    cells = Markup("").join(
        Markup("<figure>{}{}<figcaption>{}</figcaption></figure>").format(
            _small(point.x, f"x at angle {point.angle:.3f}"),
            Markup('<span class="qa-empty"></span>')
            if point.estimate is None
            else _small(point.estimate, f"image estimate at angle {point.angle:.3f}"),
            f"{point.angle:.3f}",
        )
        for point in frame.points
    )
    evaluations = counted(int(frame.nfe), "network evaluation") if not frame.nfe % 1 else f"{frame.nfe:.1f} evaluations"
    state = f"Step {frame.done} of {frame.steps}" if frame.images is None else counted(frame.steps, "step")
    title = f"Trajectory of seed {seed}: {state}, {evaluations}"
    legend = "Above x, below the image estimate of the network there; the angles go from noise (π/2) to image (0)."
    return str(Markup('<h3>{}</h3><p>{}</p><div class="qa-strip">{}</div>').format(title, legend, cells))


def error(message: str) -> str:
    """An error as one line."""
    return str(Markup('<p class="qa-error" role="alert">{}</p>').format(printable(" ".join(message.split()))))


def _small(pixels: Tensor, text: str) -> Markup:
    """A picture of the trajectory, reduced where it is large."""
    factor = LARGEST / max(pixels.shape[1:])
    if factor < 1:
        size = [max(1, round(side * factor)) for side in pixels.shape[1:]]
        pixels = levels(F.interpolate(to_float(pixels)[None], size, mode="area")[0])
    return Markup('<img src="{}" alt="{}">').format(picture(pixels), text)
