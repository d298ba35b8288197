"""The metrics of features by name: the features and settings that each depends on, and its full name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..common.errors import InputError, unknown_name
from ..likelihood.evaluation import LIKELIHOOD_METRICS
from .features import ImageFeatures
from .frechet import frechet_distance
from .kernel import kernel_distance
from .manifold import manifold_scores
from .nearest import copies
from .score import INCEPTION_SCORES, inception_score

__all__ = ["METRICS", "Metric", "Settings", "check_metrics", "label", "needs"]


@dataclass(frozen=True)
class Settings:
    """The numbers that metrics of features depend on.

    Attributes:
        neighbours: k of precision, recall, density and coverage.
        inception_score: convention for splitting the images, one of `INCEPTION_SCORES`.
        splits: number of splits, for `torch-fidelity`.
        subsets: number of subsets of the kernel distance.
        subset_size: images per subset; a smaller set is one subset, which the result records.
        seed: seed of the shuffle of the inception score and of the subsets of the kernel distance.
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
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Metric:
    """A metric of features.

    Attributes:
        summary: name of the metric without the features.
        meaning: definition and source, in one line.
        kind: the kind of features.
        needs_vectors: whether it needs feature vectors, not only mean and covariance.
        needs_reference: whether it compares with a reference.
        uses: the settings that it depends on.
        fewest: settings -> smallest valid number of images, of the set and of the reference.
        compute: (features of the images, features of the reference, settings) -> values by name; metrics may share one.
    """

    summary: str
    meaning: str
    kind: str
    needs_vectors: bool
    needs_reference: bool
    uses: tuple[str, ...]
    fewest: Callable[[Settings], int]
    compute: Callable[[ImageFeatures, ImageFeatures, Settings], dict[str, float]]


def _frechet(kind: str, name: str) -> Callable[[ImageFeatures, ImageFeatures, Settings], dict[str, float]]:
    def compute(images: ImageFeatures, reference: ImageFeatures, settings: Settings) -> dict[str, float]:
        return {name: frechet_distance(reference.statistics[kind], images.statistics[kind])}

    return compute


def _manifold(images: ImageFeatures, reference: ImageFeatures, settings: Settings) -> dict[str, float]:
    scores = manifold_scores(reference.vectors["pool"], images.vectors["pool"], settings.neighbours)
    return scores._asdict()


def _kernel(images: ImageFeatures, reference: ImageFeatures, settings: Settings) -> dict[str, float]:
    real, fake = reference.vectors["pool"], images.vectors["pool"]
    size = min(settings.subset_size, len(real), len(fake))
    distance = kernel_distance(fake, real, settings.subsets, size, settings.seed)
    return {"kid": distance.mean, "kid_std": distance.std}


def _inception_score(images: ImageFeatures, reference: ImageFeatures, settings: Settings) -> dict[str, float]:
    logits = images.vectors["logits"]
    if settings.inception_score == "torch-fidelity":
        score = inception_score(logits, settings.splits, settings.seed)
    else:
        score = INCEPTION_SCORES[settings.inception_score](logits)
    return {"is": score.mean, "is_std": score.std}


def _copies(images: ImageFeatures, reference: ImageFeatures, settings: Settings) -> dict[str, float]:
    return {"nearest": float(copies(images.vectors["pool"], reference.vectors["pool"]).double().mean())}


def _near(summary: str, meaning: str) -> Metric:
    def fewest(settings: Settings) -> int:
        return settings.neighbours + 1

    return Metric(summary, meaning, "pool", True, True, ("neighbours",), fewest, _manifold)


METRICS: dict[str, Metric] = {
    "fid": Metric(
        "Frechet distance", "between Gaussians with the mean and covariance of the features (Heusel et al. 2017)",
        "pool", False, True, (), lambda settings: 2, _frechet("pool", "fid"),
    ),
    "sfid": Metric(
        "spatial Frechet distance", "the same with spatial features (Nash et al. 2021)",
        "spatial", False, True, (), lambda settings: 2, _frechet("spatial", "sfid"),
    ),
    "precision": _near("precision", "share of images on the manifold of the reference (Kynkaanniemi et al. 2019)"),
    "recall": _near("recall", "share of the reference on the manifold of the images (Kynkaanniemi et al. 2019)"),
    "density": _near("density", "mean number of reference neighbourhoods around an image, over k (Naeem et al. 2020)"),
    "coverage": _near("coverage", "share of reference neighbourhoods that contain an image (Naeem et al. 2020)"),
    "is": Metric(
        "inception score", "exp of the mean KL divergence of an image's classes from all (Salimans et al. 2016)",
        "logits", True, False, ("inception_score", "splits", "seed"),
        lambda settings: settings.splits if settings.inception_score == "torch-fidelity" else 1, _inception_score,
    ),
    "kid": Metric(
        "kernel distance", "unbiased squared maximum mean discrepancy, cubic kernel (Binkowski et al. 2018)",
        "pool", True, True, ("subsets", "subset_size", "seed"), lambda settings: 2, _kernel,
    ),
    "nearest": Metric(
        "share of copies", "share of images much nearer to one image of the reference than to all others (Yoon 2023)",
        "pool", True, True, (), lambda settings: 2, _copies,
    ),
}  # fmt: skip
"""The metrics of features, by name."""


TITLES = {"efficientnet": "EfficientNet-Lite0"}
"""Extractors whose name in labels is not their name in the command line."""


def check_metrics(names: Sequence[str]) -> None:
    """Raise an InputError for an empty list or an unknown name, which lists the known names."""
    known = [*METRICS, *LIKELIHOOD_METRICS]
    if not names:
        raise InputError(f"there are no metrics: give some of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise unknown_name("metric", name, known)


def label(name: str, extractor: str, settings: Settings | None = None) -> str:
    """The full name of a metric: `FID` only on Inception features, otherwise "Frechet distance of ... features"."""
    settings = settings or Settings()
    if name in ("fid", "sfid", "kid", "is") and extractor == "inception":
        short = {"fid": "FID", "sfid": "sFID", "kid": "KID", "is": "inception score"}[name]
        return f"{short} ({settings.inception_score})" if name == "is" else short
    k = f", k = {settings.neighbours}" if "neighbours" in METRICS[name].uses else ""
    features = "logits" if METRICS[name].kind == "logits" else f"{METRICS[name].kind} features"
    return f"{METRICS[name].summary} of {TITLES.get(extractor, extractor)} {features}{k}"


def needs(metrics: Iterable[Metric]) -> tuple[set[str], set[str]]:
    """The kinds of features whose statistics are needed, and those whose vectors are needed."""
    statistics: set[str] = set()
    vectors: set[str] = set()
    for metric in metrics:
        (vectors if metric.needs_vectors else statistics).add(metric.kind)
    return statistics, vectors
