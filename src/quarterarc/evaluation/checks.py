"""Checks that the arguments of an evaluation fit together: images, sampling, reference, features and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..common.compiling import Compile
from ..common.errors import InputError
from ..common.text import counted
from ..data.image_set import ImageSet, Shape
from ..denoiser import Denoise, traits
from ..likelihood.evaluation import LIKELIHOOD_METRICS
from ..sampling.plans import Sampling
from .extractors import EXTRACTORS, Extractor
from .features import ImageFeatures
from .metrics import METRICS, Metric, Settings, needs
from .references import Reference
from .sources import is_model, source_name

__all__ = [
    "check_counts",
    "check_features",
    "check_kinds",
    "check_pair",
    "check_same_shape",
    "check_sampling",
    "check_saved",
    "check_settings",
    "check_unlabelled",
    "usable_reference",
]


def check_sampling(
    source: object,
    request: Sampling,
    seeds: Sequence[int] | None,
    labels: Sequence[int | str] | None,
    precision: torch.dtype | None,
    compile: Compile,
    likelihoods: Sequence[str],
) -> None:
    """Raise an InputError for arguments of sampling that have no effect, or contradict each other."""
    arguments = {
        "seeds": seeds,
        "sampler": request.sampler,
        "steps": request.steps,
        "grid": request.grid,
        "options": request.options or None,
        "labels": labels,
        "guidance": request.guidance,
        "compile": None if compile == "auto" else compile,
    }
    given = [name for name, value in arguments.items() if value is not None]
    of_model = {"projection": request.projection, "precision": precision}
    if likelihoods and not is_model(source):
        raise InputError(
            f"{', '.join(likelihoods)}: the metric evaluates a model, but {source_name(source)} is not a run or a "
            "denoiser: give a run folder"
        )
    if given and likelihoods:
        raise InputError(f"{given[0]} has no effect on {', '.join(likelihoods)}, which samples no images: leave it out")
    given += [name for name, value in of_model.items() if value is not None]
    if given and not is_model(source):
        raise InputError(
            f"{given[0]} applies to sampled images, but {source_name(source)} is not a run or a denoiser: leave it out"
        )
    if request.guidance is not None and labels is None:
        raise InputError("guidance needs labels: it steers towards a class")


_USES = {
    **{name: metric.uses for name, metric in METRICS.items()},
    **{name: likelihood.uses for name, likelihood in LIKELIHOOD_METRICS.items()},
}
"""The settings that each metric depends on."""


def check_settings(given: Mapping[str, Any], metrics: Sequence[str]) -> None:
    """Raise an InputError for a setting of other metrics; unknown settings are left to the settings themselves.

    Args:
        given: the settings that were given, by name.
        metrics: names of metrics.
    """
    used = {setting for name in metrics for setting in _USES[name]}
    for name in given:
        others = [metric for metric, settings in _USES.items() if name in settings]
        if others and name not in used:
            raise InputError(
                f"{name} has no effect on {', '.join(metrics) or 'statistics'}: it belongs to {', '.join(others)}; "
                "leave it out"
            )


def check_features(features: str | Extractor, weights: object, likelihoods: Sequence[str]) -> None:
    """Raise an InputError for features, or their weights, where all metrics are likelihoods, which use none."""
    given = [
        name for name, is_given in (("features", features != "auto"), ("weights", weights is not None)) if is_given
    ]
    if given and likelihoods:
        raise InputError(
            f"{given[0]} has no effect on {', '.join(likelihoods)}, which computes no features: leave it out"
        )


def check_unlabelled(denoise: Denoise, what: str, likelihoods: Sequence[str]) -> None:
    """Raise an InputError for a model that needs a label per image: `evaluate` computes likelihoods without labels."""
    declared = traits(denoise)
    if declared.classes is not None and not declared.unlabelled:
        raise InputError(
            f"{what} was trained with one of the labels 0..{declared.classes - 1} for every image, and "
            f"{likelihoods[0]} is evaluated here without labels: in Python call "
            f"quarterarc.{LIKELIHOOD_METRICS[likelihoods[0]].function}(denoise, images, labels=labels)"
        )


def check_kinds(metrics: Mapping[str, Metric], extractor: Extractor) -> None:
    """Raise an InputError for a metric of a kind of features that the extractor does not compute."""
    for name, metric in metrics.items():
        if metric.kind not in extractor.kinds:
            known = {"spatial": "inception", "logits": "inception, efficientnet or digits"}.get(
                metric.kind, ", ".join(EXTRACTORS)
            )
            raise InputError(
                f"'{name}' needs {metric.kind} features, but '{extractor.name}' computes "
                f"{' and '.join(extractor.kinds)}: use the features of {known}, or leave '{name}' out"
            )


def check_pair(
    images: ImageSet, reference: Reference, metrics: Mapping[str, Metric], extractor: Extractor, settings: Settings
) -> None:
    """Raise an InputError if shapes or counts that are known before the first image is read do not fit."""
    check_same_shape(images.what, images.shape, reference)
    check_counts(metrics, settings, (images.what, images.count), (reference.what, reference.count))
    for what, shape in ((images.what, images.shape), (reference.what, reference.shape)):
        if shape is not None:
            extractor.check(shape, what)


def check_same_shape(what: str, shape: Shape | None, reference: Reference) -> None:
    """Raise an InputError if the images and those of the reference have different shapes."""
    if shape is None or reference.shape is None or shape == reference.shape:
        return
    raise InputError(
        f"{what} ({_shape_text(shape)}) and {reference.what} ({_shape_text(reference.shape)}) have images of different "
        "shapes: images are never resized or converted, so give sets of one shape"
    )


def _shape_text(shape: Shape) -> str:
    return f"{shape[1]}x{shape[2]} pixels and {counted(shape[0], 'channel')}"


def check_counts(
    metrics: Mapping[str, Metric],
    settings: Settings,
    images: tuple[str, int | None],
    reference: tuple[str, int | None],
) -> None:
    """Raise an InputError if the images or the reference, given by name and count, are too few for a metric."""
    for name, metric in metrics.items():
        fewest = metric.fewest(settings)
        for what, count in (images, reference) if metric.needs_reference else (images,):
            if count is not None and count < fewest:
                raise InputError(f"{what}: {counted(count, 'image')}, but '{name}' needs at least {fewest}: give more")


def usable_reference(reference: Reference, shape: Shape | None, extractor: Extractor) -> Reference:
    """The reference, without its saved features if they are of another extractor and it holds images too.

    Raises:
        InputError: if it holds only features of another extractor.
    """
    reason = _mismatch(reference, shape, extractor)
    if reason is None:
        return reference
    if reference.images is None:
        raise InputError(reason)
    return replace(reference, saved=ImageFeatures())


def _mismatch(reference: Reference, shape: Shape | None, extractor: Extractor) -> str | None:
    """Why saved features are not those of this extractor on images of that shape; None if they are."""
    saved = reference.saved
    if not saved.statistics and not saved.vectors:
        return None
    if reference.extractor is not None:
        for key, value in extractor.describe().items():
            if reference.extractor.get(key) != value:
                return (
                    f"{reference.what} holds statistics of other features: {key} is {reference.extractor.get(key)}, "
                    f"not {value}; choose the same features, or write the reference again"
                )
    if shape is not None:
        probe = extractor(torch.zeros(1, *shape, dtype=torch.uint8))
        for kind, statistics in saved.statistics.items():
            if kind in probe and probe[kind].shape[1] != len(statistics.mean):
                return (
                    f"{reference.what} holds statistics of {len(statistics.mean)} {kind} features, but "
                    f"'{extractor.name}' computes {probe[kind].shape[1]}: choose the features that they were made with"
                )
    return None


def check_saved(reference: Reference, metrics: Sequence[Metric]) -> None:
    """Raise an InputError for a reference without images whose saved features are not enough for the metrics."""
    if reference.images is not None:
        return
    statistics, vectors = needs(metrics)
    for kind in sorted(statistics - reference.saved.statistics.keys()):
        raise InputError(
            f"{reference.what} holds no statistics of {kind} features: leave out the metrics that need them"
        )
    for kind in sorted(vectors - reference.saved.vectors.keys()):
        raise InputError(
            f"{reference.what} holds no {kind} feature vectors, which precision, recall, density, coverage and kid "
            "need: give the images, or write the reference with its feature vectors (--with-features)"
        )
