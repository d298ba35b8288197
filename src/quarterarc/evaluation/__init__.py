"""Evaluation: metrics of models and images by name, and the functions of feature arrays that compute them.

Feature arrays are numpy or torch, shape (images, dimensions). The functions of feature arrays require torch only;
everything that reads images (`evaluate`, `extractor`, `open_reference`, ...) is imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .arrays import Features, MeanStd
from .frechet import Gaussian, frechet_distance
from .kernel import full_kernel_distance, kernel_distance
from .manifold import (
    DensityCoverage,
    ManifoldScores,
    PrecisionRecall,
    density_coverage,
    manifold_scores,
    precision_recall,
)
from .score import INCEPTION_SCORES, inception_score, inception_score_adm
from .statistics import MeanCovariance, Statistics

if TYPE_CHECKING:
    from .extractors import EXTRACTORS, Extractor, FeatureNetwork, extractor
    from .features import ImageFeatures, collect
    from .image_files import open_set
    from .measure import evaluate
    from .metrics import METRICS, Settings
    from .references import Reference, open_reference, save_statistics
    from .results import differences, table
    from .sets import BatchSet, SampledSet, TensorSet

_HOME = {
    "extractors": ("EXTRACTORS", "Extractor", "FeatureNetwork", "extractor"),
    "features": ("ImageFeatures", "collect"),
    "image_files": ("open_set",),
    "measure": ("evaluate",),
    "metrics": ("METRICS", "Settings"),
    "references": ("Reference", "open_reference", "save_statistics"),
    "results": ("differences", "table"),
    "sets": ("BatchSet", "SampledSet", "TensorSet"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "EXTRACTORS",
    "INCEPTION_SCORES",
    "METRICS",
    "BatchSet",
    "DensityCoverage",
    "Extractor",
    "FeatureNetwork",
    "Features",
    "Gaussian",
    "ImageFeatures",
    "ManifoldScores",
    "MeanCovariance",
    "MeanStd",
    "PrecisionRecall",
    "Reference",
    "SampledSet",
    "Settings",
    "Statistics",
    "TensorSet",
    "collect",
    "density_coverage",
    "differences",
    "evaluate",
    "extractor",
    "frechet_distance",
    "full_kernel_distance",
    "inception_score",
    "inception_score_adm",
    "kernel_distance",
    "manifold_scores",
    "open_reference",
    "open_set",
    "precision_recall",
    "save_statistics",
    "table",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'quarterarc.evaluation' has no attribute '{name}'")
    value = getattr(import_module(f".{_MODULE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE])
