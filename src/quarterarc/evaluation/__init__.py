"""How good generated images are: metrics of images by name, and the pure functions of feature arrays behind them.

Feature arrays are numpy or torch, shape (images, dimensions). What reads images (`evaluate`, `evaluate_model`,
`extractor`, `open_reference`, ...) is loaded when first used; the pure functions need torch alone.
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
from .statistics import Moments, Statistics

if TYPE_CHECKING:
    from .extractors import Extractor, extractor
    from .features import collect
    from .measure import evaluate
    from .metrics import METRICS, Settings
    from .references import Reference, open_reference, save_statistics
    from .results import differences, table
    from .sets import SampledSet, open_set

_HOME = {
    "extractors": ("Extractor", "extractor"),
    "features": ("collect",),
    "measure": ("evaluate",),
    "metrics": ("METRICS", "Settings"),
    "references": ("Reference", "open_reference", "save_statistics"),
    "results": ("differences", "table"),
    "sets": ("SampledSet", "open_set"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "INCEPTION_SCORES",
    "METRICS",
    "DensityCoverage",
    "Extractor",
    "Features",
    "Gaussian",
    "ManifoldScores",
    "MeanStd",
    "Moments",
    "PrecisionRecall",
    "Reference",
    "SampledSet",
    "Settings",
    "Statistics",
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
