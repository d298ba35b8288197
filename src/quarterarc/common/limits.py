"""Upper limits of numbers, far above any use: a mistyped number raises an error before anything is allocated."""

from __future__ import annotations

from .errors import InputError

__all__ = ["check_batch_size"]

LARGEST_SIDE = 2**15
"""Height and width of images, in pixels."""
LARGEST_WIDTH = 2**16
"""Channels of a level of the U-Net, and the factor of each level."""
MOST_BLOCKS, MOST_LEVELS = 1000, 32
"""Residual blocks per level of the U-Net, and its levels."""
LONGEST_SCHEDULE = 1_000_000
"""Training steps of a schedule."""
LARGEST_BATCH = 1_000_000
"""Images per batch."""
LARGEST_SHEET = 10_000
"""Images per contact sheet."""
MOST_STEPS = 10**12
"""Optimiser steps of a run."""
MOST_IMAGES = 10_000_000
"""Images that one command samples: their seeds are held in memory."""


def check_batch_size(batch_size: int) -> None:
    """Raise an InputError for a number of images per batch that is no whole number in 1..1,000,000."""
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or not 1 <= batch_size <= LARGEST_BATCH:
        raise InputError(
            f"batch_size (--batch-size) is a whole number of images, at least 1 and at most {LARGEST_BATCH:,}, got "
            f"{batch_size!r}"
        )
