"""The inception score, exp E KL(p(y|x) || p(y)) (Salimans et al. 2016, section 4), from a classifier's logits.

Two published conventions for splitting the images are available by name. Logarithms of probabilities are computed from
the logits in float64, so that none underflows to log 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from ..common.errors import InputError
from .arrays import Features, MeanStd, as_features

__all__ = ["INCEPTION_SCORES", "inception_score", "inception_score_adm"]


def inception_score(logits: Features, splits: int = 10, seed: int = 2020) -> MeanStd:
    """The inception score by torch-fidelity's convention: shuffle, divide into equal splits, average their scores.

    Args:
        logits: unnormalised log probabilities, shape (N, classes); FID's Inception has 1008, without biases.
        splits: number of splits, in 1..N; split i starts at shuffled image i N // splits.
        seed: seed of numpy's `RandomState`, whose permutation shuffles the images.

    Returns:
        Mean and standard deviation over the splits; each score lies in [1, classes].

    Raises:
        InputError: for a wrong shape, NaN or infinity, or fewer images than splits.
    """
    if splits < 1:
        raise InputError(f"the inception score needs at least 1 split, got {splits}")
    tensor = as_features(logits, "logits", fewest=splits)
    count = len(tensor)
    order = torch.from_numpy(np.random.RandomState(seed).permutation(count)).to(tensor.device)
    return _mean_std(tensor[order[i * count // splits : (i + 1) * count // splits]] for i in range(splits))


def inception_score_adm(logits: Features, split_size: int = 5000) -> MeanStd:
    """The inception score by the convention of ADM's evaluator: splits of 5000 images in the given order.

    The last split has the remaining images. ADM reports only the mean.

    Args:
        logits: as for `inception_score`.
        split_size: images per split, at least 1.

    Raises:
        InputError: for a wrong shape, or NaN or infinity.
    """
    if split_size < 1:
        raise InputError(f"a split of the inception score needs at least 1 image, got {split_size}")
    return _mean_std(as_features(logits, "logits").split(split_size))


INCEPTION_SCORES: dict[str, Callable[[Features], MeanStd]] = {
    "torch-fidelity": inception_score,
    "adm": inception_score_adm,
}
"""The conventions for splitting the images, by name."""


def _mean_std(splits: Iterable[Tensor]) -> MeanStd:
    scores = [_score(logits) for logits in splits]
    return MeanStd(float(np.mean(scores)), float(np.std(scores)))


def _score(logits: Tensor) -> float:
    log_p = logits.double().log_softmax(1)
    log_marginal = log_p.logsumexp(0) - math.log(len(log_p))
    return (log_p.exp() * (log_p - log_marginal)).sum(1).mean().exp().item()
