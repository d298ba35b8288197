"""Scores of generated images: pure functions of feature arrays, numpy or torch, shape (images, dimensions)."""

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

__all__ = [
    "INCEPTION_SCORES",
    "DensityCoverage",
    "Features",
    "Gaussian",
    "ManifoldScores",
    "MeanStd",
    "Moments",
    "PrecisionRecall",
    "Statistics",
    "density_coverage",
    "frechet_distance",
    "full_kernel_distance",
    "inception_score",
    "inception_score_adm",
    "kernel_distance",
    "manifold_scores",
    "precision_recall",
]
