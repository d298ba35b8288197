"""The record of sampled images: the settings that determine them, and the outcome, as JSON types.

In a sample folder it is the file samples.json, in an npz the array `samples`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..common.compiling import Compile
from ..common.errors import InputError
from ..samplers import current_options
from .plans import Plan

__all__ = ["ABOUT", "LABELS", "NAMES", "Job", "changed_settings", "names_of"]

ABOUT = "samples.json"
LABELS = "image_labels"
"""The key with the label of each image, by seed as text: {"0": 3, "1": 7}."""
NAMES = "class_names"
"""The key with the name of each label used, as text: {"0": "cat"}."""
RESULTS = ("complete", "count", "seeds", LABELS, NAMES, "nfe", "images_per_second", "device")
"""The keys that describe the outcome; the others are settings, which determine the images."""


@dataclass(frozen=True, eq=False)
class Job:
    """Images to sample and to write: the arguments of `write_samples`, checked and resolved.

    Attributes:
        plan: how they are sampled.
        seeds: one per image.
        labels: one per image; None without labels.
        settings: the settings to record, which determine the images.
        batch_size: images per batch.
        progress: whether to show progress: a bar, or lines in a log file.
        compile: whether to compile the network, see `compiled`.
        beside: pictures that are written beside the images and before them on the contact sheet: uint8 (C, H, W) by the
            names of their files.
    """

    plan: Plan
    seeds: Sequence[int]
    labels: Sequence[int] | None
    settings: Mapping[str, Any]
    batch_size: int
    progress: bool
    compile: Compile
    beside: Mapping[str, Tensor] = field(default_factory=dict)


def changed_settings(recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """The names of the settings that differ between a record, whose outcome is left out, and the settings of a job."""
    earlier = _current({key: value for key, value in recorded.items() if key not in RESULTS})
    if "tuned_weights" not in earlier:  # until version 0.2 only the tuned angles were recorded
        settings = {key: value for key, value in settings.items() if key != "tuned_weights"}
    names = earlier.keys() | settings.keys()
    if settings.get("checkpoint_sha256"):
        names -= {"model"}  # one run has many paths, and may have been moved
    return sorted(key for key in names if earlier.get(key) != settings.get(key))


def names_of(labels: Iterable[int], names: Sequence[str]) -> dict[str, Any]:
    """The entry with the names of labels; empty without labels or names."""
    used = sorted({*labels})
    return {NAMES: {str(label): names[label] for label in used}} if names and used else {}


def _current(settings: dict[str, Any]) -> dict[str, Any]:
    """Recorded settings with the options under their current names."""
    name, options = settings.get("sampler"), settings.get("options")
    if isinstance(name, str) and isinstance(options, dict):
        with suppress(InputError):  # the name of a class, or of a sampler that is not installed
            return {**settings, "options": current_options(name, options, warn=False)}
    return settings
