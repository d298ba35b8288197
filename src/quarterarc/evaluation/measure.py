"""Metrics by name, from one pass over the images: what was computed, on what, by what.

    evaluate("made/", "digits", ["fid", "precision", "recall"], extractor="digits")

A result is JSON types alone. It names the extractor, a hash of its weights and its resize, counts, the reference, how
the images were sampled, every number that a metric depends on, and the versions that computed it.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..common.devices import processes
from ..common.errors import InputError
from ..data.image_set import ImageSet, Shape
from ..likelihood.evaluation import LIKELIHOOD_METRICS
from .extractors import EXTRACTORS, Extractor
from .extractors import extractor as named_extractor
from .features import Collected, collect
from .metrics import METRICS, Metric, Settings, Side, check_metrics, label, needs
from .references import Reference, check_ending, open_reference, save_statistics
from .sets import as_set

__all__ = ["evaluate"]

FORMAT = 1


def evaluate(
    images: object,
    reference: object = None,
    metrics: Sequence[str] = ("fid", "precision", "recall"),
    extractor: str | Extractor = "inception",
    *,
    settings: Settings | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
    save_to: Path | None = None,
    save_features: bool = False,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Compute metrics of images, each image seen once.

    Args:
        images: a set of `quarterarc.evaluation.sets`, a path or name, an array uint8 (N, C, H, W), or an iterable of
            such batches.
        reference: what they are compared with: the same, a file of statistics, or a run folder for its training images.
        metrics: names of `METRICS`.
        extractor: what makes the features, by name or made already.
        settings: the numbers that metrics depend on.
        batch_size: images at once.
        device: where the extractor runs, if it is given by name.
        cache: a folder for the features of finished batches, see `collect`.
        save_to: a file that the statistics of the images are written to as well, see `save_statistics`.
        save_features: whether the feature vectors go there too.
        progress: whether to show a progress bar; None for one on a terminal and none in a pipe.

    Returns:
        The result as JSON types; empty in every process but the first.

    Raises:
        InputError: for unknown names, metrics that the features cannot give, a missing or unfitting reference, images
            of different channels or sizes, too few of them, or NaN.
    """
    settings = settings or Settings()
    check_metrics(metrics)
    for name in metrics:
        if name in LIKELIHOOD_METRICS:
            raise InputError(f"'{name}' asks a model, not its images: evaluate the run with it")
    chosen = {name: METRICS[name] for name in dict.fromkeys(metrics)}
    found = named_extractor(extractor, device) if isinstance(extractor, str) else extractor
    _check_kinds(chosen, found)
    against = [metric for metric in chosen.values() if metric.against]
    known = _reference_for(reference, against)
    given = as_set(images)
    _check_pair(given, known, chosen, found, settings)
    known = _fitting(known, given.shape or known.shape, found)
    _check_holds(known, against)

    moments, vectors = needs(chosen.values())
    if save_to is not None:
        check_ending(save_to)
        moments |= {*found.kinds} - {"logits"}
        vectors |= {"pool"} if save_features else set()
    collected = collect(given, found, moments, vectors, batch_size=batch_size, cache=cache, progress=progress)
    other = _reference_side(known, against, found, batch_size, cache, progress)
    if processes().rank:
        return {}
    if save_to is not None:
        save_statistics(
            save_to, collected, found.describe(), what=given.what, fingerprint=given.fingerprint, features=save_features
        )
    _check_alike(given.what, collected.shape, known)
    mine = Side(collected.statistics, collected.features, collected.count)
    _check_counts(chosen, settings, (given.what, mine.count), (known.what, other.count))
    values, notes = _compute(chosen, mine, other, settings)
    return {
        "quarterarc": __version__,
        "format": FORMAT,
        "metrics": values,
        "labels": {name: label(name, found.name, settings) for name in chosen},
        "notes": notes,
        "extractor": found.describe(),
        "images": {
            "what": given.what,
            "count": collected.count,
            "shape": list(collected.shape or ()),
            "fingerprint": given.fingerprint,
            "sampling": given.sampling,
        },
        "reference": {**known.describe(), "count": other.count} if against else None,
        "settings": _used(chosen, settings, mine, other),
        "batch_size": batch_size,
        "device": str(found.device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def _check_kinds(chosen: Mapping[str, Metric], extractor: Extractor) -> None:
    for name, metric in chosen.items():
        if metric.kind not in extractor.kinds:
            giving = {"spatial": "inception", "logits": "inception or digits"}.get(metric.kind, ", ".join(EXTRACTORS))
            raise InputError(
                f"'{name}' needs {metric.kind} features, but '{extractor.name}' gives {' and '.join(extractor.kinds)}: "
                f"take the features of {giving}, or leave '{name}' out"
            )


def _reference_for(reference: object, against: Sequence[Metric]) -> Reference:
    if not against:
        return Reference("no reference")
    if reference is None:
        raise InputError(
            "these metrics compare with real images: give a reference (a folder, a data set, or saved statistics)"
        )
    return open_reference(reference)


def _check_pair(
    images: ImageSet, reference: Reference, chosen: Mapping[str, Metric], extractor: Extractor, settings: Settings
) -> None:
    """What can be told of images and reference before the first image is read."""
    _check_alike(images.what, images.shape, reference)
    _check_counts(chosen, settings, (images.what, images.count), (reference.what, reference.count))
    for what, shape in ((images.what, images.shape), (reference.what, reference.shape)):
        if shape is not None:
            extractor.check(shape, what)


def _fitting(reference: Reference, shape: Shape | None, extractor: Extractor) -> Reference:
    """The reference as it is if its statistics are of these features, else its images alone."""
    wrong = _misfit(reference, shape, extractor)
    if wrong is None:
        return reference
    if reference.images is None:
        raise InputError(wrong)
    return replace(reference, moments={}, features={})


def _misfit(reference: Reference, shape: Shape | None, extractor: Extractor) -> str | None:
    """Why statistics are not of the features that this extractor makes of images of that shape, if they are not."""
    if not reference.moments and not reference.features:
        return None
    made_by, ours = reference.extractor, extractor.describe()
    if made_by is not None:
        for key in ours:
            if made_by.get(key) != ours[key]:
                return (
                    f"{reference.what} holds statistics of other features, {key} {made_by.get(key)} where these have "
                    f"{ours[key]}: choose --features, or write the reference again"
                )
    if shape is not None:
        probe = extractor(torch.zeros(1, *shape, dtype=torch.uint8))
        for kind, moments in reference.moments.items():
            if kind in probe and probe[kind].shape[1] != len(moments.mean):
                return (
                    f"{reference.what} holds statistics of {len(moments.mean)} {kind} features, but '{extractor.name}' "
                    f"gives {probe[kind].shape[1]}: they were made by another extractor"
                )
    return None


def _check_holds(reference: Reference, against: Sequence[Metric]) -> None:
    """Refuse saved statistics that lack what the metrics need."""
    if reference.images is not None:
        return
    moments, vectors = needs(against)
    for kind in sorted(moments):
        if kind not in reference.moments:
            raise InputError(
                f"{reference.what} holds no statistics of {kind} features: leave out the metrics that need them"
            )
    for kind in sorted(vectors):
        if kind not in reference.features:
            raise InputError(
                f"{reference.what} holds no {kind} feature vectors, which precision, recall, density, coverage and kid "
                "need: give the images, or write the reference with --with-features"
            )


def _check_alike(what: str, shape: Shape | None, reference: Reference) -> None:
    if shape is None or reference.shape is None or shape == reference.shape:
        return
    raise InputError(
        f"{what} has images of {_in_words(shape)}, the reference {reference.what} of {_in_words(reference.shape)}: "
        "nothing is resized or converted unseen, so make them alike first"
    )


def _in_words(shape: Shape) -> str:
    return f"{shape[1]}x{shape[2]} pixels and {shape[0]} channel{'s' if shape[0] > 1 else ''}"


def _check_counts(
    chosen: Mapping[str, Metric], settings: Settings, images: tuple[str, int | None], reference: tuple[str, int | None]
) -> None:
    for name, metric in chosen.items():
        fewest = metric.fewest(settings)
        for what, count in (images, reference) if metric.against else (images,):
            if count is not None and count < fewest:
                there = "1 image" if count == 1 else f"{count} images"
                raise InputError(f"{what} has {there}, but '{name}' needs at least {fewest}: give more")


def _reference_side(
    reference: Reference,
    against: Sequence[Metric],
    extractor: Extractor,
    batch_size: int,
    cache: Path | None,
    progress: bool | None,
) -> Side:
    """Saved statistics where there are any, and what is missing from the images."""
    moments, vectors = needs(against)
    moments, vectors = moments - reference.moments.keys(), vectors - reference.features.keys()
    collected = Collected()
    if moments or vectors:
        assert reference.images is not None
        collected = collect(
            reference.images, extractor, moments, vectors, batch_size=batch_size, cache=cache, progress=progress
        )
    return Side(
        {**collected.statistics, **reference.moments},
        {**collected.features, **reference.features},
        collected.count or reference.count,
    )


def _compute(
    chosen: Mapping[str, Metric], images: Side, reference: Side, settings: Settings
) -> tuple[dict[str, float], list[str]]:
    """The values by name, and what the computation warned of."""
    values: dict[str, float] = {}
    done: dict[Any, dict[str, float]] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, metric in chosen.items():
            if metric.compute not in done:
                done[metric.compute] = metric.compute(images, reference, settings)
            found = done[metric.compute]
            values |= {key: found[key] for key in (name, f"{name}_std") if key in found}
    return values, list(dict.fromkeys(str(warning.message) for warning in caught))


def _used(chosen: Mapping[str, Metric], settings: Settings, images: Side, reference: Side) -> dict[str, Any]:
    """The settings that the chosen metrics depend on, as they came out."""
    used = {name for metric in chosen.values() for name in metric.uses}
    values = {name: value for name, value in asdict(settings).items() if name in used}
    if "kid" in chosen:
        smaller = min(len(side.features["pool"]) for side in (images, reference))
        values["subset_size"] = min(settings.subset_size, smaller)
    return values
