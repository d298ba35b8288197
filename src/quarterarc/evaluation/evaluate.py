"""Metrics by name, from one pass over the images: what was computed, on what, by what, and whether two may be compared.

    evaluate("made/", "digits", ["fid", "precision", "recall"], extractor="digits")

A result is JSON types alone. It names the extractor, a hash of its weights and its resize, counts, the reference, how
the images were sampled, every number that a metric depends on, and the versions that computed it.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..devices import processes
from ..errors import InputError, unknown_name
from .extractors import EXTRACTORS, Extractor
from .extractors import extractor as named_extractor
from .features import Collected, collect
from .frechet import frechet_distance
from .kernel import kernel_distance
from .manifold import manifold_scores
from .models import MODEL_METRICS
from .references import Reference, check_ending, open_reference, save_statistics
from .score import INCEPTION_SCORES, inception_score
from .sets import ImageSet, Shape, as_set
from .statistics import Moments, Statistics

__all__ = [
    "METRICS",
    "Metric",
    "Settings",
    "Side",
    "check_metrics",
    "differences",
    "evaluate",
    "label",
    "table",
]

FORMAT = 1


@dataclass(frozen=True)
class Settings:
    """The numbers that metrics depend on.

    Attributes:
        neighbours: k of precision, recall, density and coverage.
        inception_score: how the images are split, one of `INCEPTION_SCORES`.
        splits: into how many, for `torch-fidelity`.
        subsets: how many subsets KID takes the mean over.
        subset_size: images in each; a smaller set is one subset, and the result says so.
        seed: of the shuffle for the inception score and of KID's subsets.
    """

    neighbours: int = 3
    inception_score: str = "torch-fidelity"
    splits: int = 10
    subsets: int = 100
    subset_size: int = 1000
    seed: int = 2020

    def __post_init__(self) -> None:
        if self.inception_score not in INCEPTION_SCORES:
            raise unknown_name("inception score", self.inception_score, INCEPTION_SCORES)
        for name, least in (("neighbours", 1), ("splits", 1), ("subsets", 1), ("subset_size", 2)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Side:
    """The images, or the reference, as metrics see them: moments and feature vectors by kind, and how many images."""

    moments: Mapping[str, Statistics | Moments] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)
    count: int | None = None


@dataclass(frozen=True)
class Metric:
    """A metric of features.

    Attributes:
        summary: what it is, after which features it is of.
        kind: the kind of features.
        vectors: whether it needs every feature vector, not only mean and covariance.
        against: whether it needs a reference.
        uses: the settings that it depends on.
        fewest: the fewest images of either side.
        compute: (images, reference, settings) -> values by name; several metrics may share one.
    """

    summary: str
    kind: str
    vectors: bool
    against: bool
    uses: tuple[str, ...]
    fewest: Callable[[Settings], int]
    compute: Callable[[Side, Side, Settings], dict[str, float]]


def _frechet(kind: str, name: str) -> Callable[[Side, Side, Settings], dict[str, float]]:
    def compute(images: Side, reference: Side, settings: Settings) -> dict[str, float]:
        return {name: frechet_distance(reference.moments[kind], images.moments[kind])}

    return compute


def _manifold(images: Side, reference: Side, settings: Settings) -> dict[str, float]:
    scores = manifold_scores(reference.features["pool"], images.features["pool"], settings.neighbours)
    return scores._asdict()


def _kernel(images: Side, reference: Side, settings: Settings) -> dict[str, float]:
    real, fake = reference.features["pool"], images.features["pool"]
    size = min(settings.subset_size, len(real), len(fake))
    found = kernel_distance(fake, real, settings.subsets, size, settings.seed)
    return {"kid": found.mean, "kid_std": found.std}


def _inception_score(images: Side, reference: Side, settings: Settings) -> dict[str, float]:
    logits = images.features["logits"]
    if settings.inception_score == "torch-fidelity":
        found = inception_score(logits, settings.splits, settings.seed)
    else:
        found = INCEPTION_SCORES[settings.inception_score](logits)
    return {"is": found.mean, "is_std": found.std}


def _near(summary: str) -> Metric:
    return Metric(summary, "pool", True, True, ("neighbours",), lambda settings: settings.neighbours + 1, _manifold)


METRICS: dict[str, Metric] = {
    "fid": Metric("Frechet distance", "pool", False, True, (), lambda settings: 2, _frechet("pool", "fid")),
    "sfid": Metric("spatial Frechet distance", "spatial", False, True, (), lambda s: 2, _frechet("spatial", "sfid")),
    "precision": _near("precision"),
    "recall": _near("recall"),
    "density": _near("density"),
    "coverage": _near("coverage"),
    "is": Metric(
        "inception score", "logits", True, False, ("inception_score", "splits", "seed"),
        lambda settings: settings.splits if settings.inception_score == "torch-fidelity" else 1, _inception_score,
    ),
    "kid": Metric(
        "kernel distance", "pool", True, True, ("subsets", "subset_size", "seed"), lambda settings: 2, _kernel
    ),
}  # fmt: skip
"""The metrics of features, by name."""


def check_metrics(names: Sequence[str]) -> None:
    """Refuse names that no metric has.

    Raises:
        InputError: naming the known ones.
    """
    if not names:
        raise InputError(f"there are no metrics: give some of {', '.join([*METRICS, *MODEL_METRICS])}")
    for name in names:
        if name not in METRICS and name not in MODEL_METRICS:
            raise unknown_name("metric", name, [*METRICS, *MODEL_METRICS])


def label(name: str, extractor: str, settings: Settings | None = None) -> str:
    """What a metric is called in full: `FID` is of Inception's features only, precision says its k."""
    settings = settings or Settings()
    if name in ("fid", "sfid", "kid", "is") and extractor == "inception":
        short = {"fid": "FID", "sfid": "sFID", "kid": "KID", "is": "inception score"}[name]
        return f"{short} ({settings.inception_score})" if name == "is" else short
    k = f", k = {settings.neighbours}" if "neighbours" in METRICS[name].uses else ""
    features = "logits" if METRICS[name].kind == "logits" else f"{METRICS[name].kind} features"
    return f"{METRICS[name].summary} of {extractor} {features}{k}"


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
        if name in MODEL_METRICS:
            raise InputError(f"'{name}' asks a model, not its images: evaluate the run with it")
    chosen = {name: METRICS[name] for name in dict.fromkeys(metrics)}
    found = named_extractor(extractor, device) if isinstance(extractor, str) else extractor
    _check_kinds(chosen, found)
    against = [metric for metric in chosen.values() if metric.against]
    known = _reference_for(reference, against, found)
    given = as_set(images)
    _check_pair(given, known, chosen, found, settings)

    moments, vectors = _needs(chosen.values())
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


def _needs(metrics: Iterable[Metric]) -> tuple[set[str], set[str]]:
    """The kinds that moments are needed of, and those that every feature vector is needed of."""
    moments: set[str] = set()
    vectors: set[str] = set()
    for metric in metrics:
        (vectors if metric.vectors else moments).add(metric.kind)
    return moments, vectors


def _reference_for(reference: object, against: Sequence[Metric], extractor: Extractor) -> Reference:
    """The reference, which can give what the metrics need of it."""
    if not against:
        return Reference("no reference")
    if reference is None:
        raise InputError(
            "these metrics compare with real images: give a reference (a folder, a data set, or saved statistics)"
        )
    known = open_reference(reference)
    made_by, ours = known.extractor, extractor.describe()
    if made_by is not None and (known.moments or known.features):
        other = [key for key in ours if made_by.get(key) != ours[key]]
        if other:
            key = other[0]
            raise InputError(
                f"{known.what} holds statistics of other features, {key} {made_by.get(key)} where these have "
                f"{ours[key]}: choose --features, or write the reference again"
            )
    if known.images is not None:
        return known
    moments, vectors = _needs(against)
    for kind in sorted(moments):
        if kind not in known.moments:
            raise InputError(
                f"{known.what} holds no statistics of {kind} features: leave out the metrics that need them"
            )
    for kind in sorted(vectors):
        if kind not in known.features:
            raise InputError(
                f"{known.what} holds no {kind} feature vectors, which precision, recall, density, coverage and kid "
                "need: give the images, or write the reference with --with-features"
            )
    return known


def _check_pair(
    images: ImageSet, reference: Reference, chosen: Mapping[str, Metric], extractor: Extractor, settings: Settings
) -> None:
    """Everything that can be told before the first image is read."""
    _check_alike(images.what, images.shape, reference)
    _check_counts(chosen, settings, (images.what, images.count), (reference.what, reference.count))
    for what, shape in ((images.what, images.shape), (reference.what, reference.shape)):
        if shape is not None:
            extractor.check(shape, what)
    shape = images.shape or reference.shape
    if shape is not None and reference.moments:
        probe = extractor(torch.zeros(1, *shape, dtype=torch.uint8))
        for kind, moments in reference.moments.items():
            if kind in probe and probe[kind].shape[1] != len(moments.mean):
                raise InputError(
                    f"{reference.what} holds statistics of {len(moments.mean)} {kind} features, but '{extractor.name}' "
                    f"gives {probe[kind].shape[1]}: they were made by another extractor"
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
    moments, vectors = _needs(against)
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


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Why two results may not stand side by side: one line each, none if they may.

    Extractor, weights, resize, counts, reference and the settings of metrics must agree; how images were sampled need
    not, because that is what is compared.
    """
    pairs: list[tuple[str, Any, Any]] = [
        *(
            (f"extractor {key}", a["extractor"][key], b["extractor"][key])
            for key in ("name", "weights_sha256", "resize")
        ),
        ("number of images", a["images"]["count"], b["images"]["count"]),
        ("shape of images", a["images"]["shape"], b["images"]["shape"]),
    ]
    if a["reference"] and b["reference"]:
        # saved statistics and the images that they are of are the same reference
        pairs += [(f"reference {key}", a["reference"][key], b["reference"][key]) for key in ("fingerprint", "count")]
    shared = a["settings"].keys() & b["settings"].keys()
    pairs += [(key, a["settings"][key], b["settings"][key]) for key in sorted(shared)]
    return [f"{name}: {one} and {other}" for name, one, other in pairs if one != other]


def table(results: Mapping[str, Mapping[str, Any]], anyway: bool = False) -> str:
    """Results side by side, one a row, in Markdown.

    Args:
        results: by the name that a row gets.
        anyway: put even those side by side that are not comparable; a line below the table then says why they are not.

    Raises:
        InputError: if two of them are not comparable, or there are none.
    """
    if not results:
        raise InputError("there are no results: give at least one")
    for name, result in results.items():
        if "extractor" not in result or "images" not in result:
            raise InputError(f"{name} is no result of metrics of images: a table takes what `evaluate` returns")
    (first, base), *others = results.items()
    wrong = [f"{name} and {first} differ in {line}" for name, result in others for line in differences(base, result)]
    if wrong and not anyway:
        raise InputError(
            f"these results are not comparable: {'; '.join(wrong)}: compute them alike, or say anyway=True"
        )
    names = list(dict.fromkeys(name for result in results.values() for name in result["metrics"]))
    rows = [["", *names], ["---"] * (len(names) + 1)]
    for name, result in results.items():
        values = (result["metrics"].get(column) for column in names)
        rows.append([name, *("" if value is None else f"{value:.4g}" for value in values)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines + [f"\nNot comparable: {line}." for line in wrong])
