"""The metrics of features by name: what each needs, which settings it depends on, and what it is called in full."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..common.errors import InputError, unknown_name
from ..likelihood.evaluation import LIKELIHOOD_METRICS
from .frechet import frechet_distance
from .kernel import kernel_distance
from .manifold import manifold_scores
from .score import INCEPTION_SCORES, inception_score
from .statistics import Moments, Statistics

__all__ = ["METRICS", "Metric", "Settings", "Side", "check_metrics", "label", "needs"]


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


@dataclass(frozen=True, eq=False)
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
        raise InputError(f"there are no metrics: give some of {', '.join([*METRICS, *LIKELIHOOD_METRICS])}")
    for name in names:
        if name not in METRICS and name not in LIKELIHOOD_METRICS:
            raise unknown_name("metric", name, [*METRICS, *LIKELIHOOD_METRICS])


def label(name: str, extractor: str, settings: Settings | None = None) -> str:
    """What a metric is called in full: `FID` is of Inception's features only, precision says its k."""
    settings = settings or Settings()
    if name in ("fid", "sfid", "kid", "is") and extractor == "inception":
        short = {"fid": "FID", "sfid": "sFID", "kid": "KID", "is": "inception score"}[name]
        return f"{short} ({settings.inception_score})" if name == "is" else short
    k = f", k = {settings.neighbours}" if "neighbours" in METRICS[name].uses else ""
    features = "logits" if METRICS[name].kind == "logits" else f"{METRICS[name].kind} features"
    return f"{METRICS[name].summary} of {extractor} {features}{k}"


def needs(metrics: Iterable[Metric]) -> tuple[set[str], set[str]]:
    """The kinds that moments are needed of, and those that every feature vector is needed of."""
    moments: set[str] = set()
    vectors: set[str] = set()
    for metric in metrics:
        (vectors if metric.vectors else moments).add(metric.kind)
    return moments, vectors
