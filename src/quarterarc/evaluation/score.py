"""The inception score, exp E KL(p(y|x) || p(y)) (Salimans et al. 2016, section 4), from a classifier's logits.

Two published ways to split the images are here by name; both take the logarithms from the logits in float64, so that
no probability underflows to log 0.
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
    """The inception score as torch-fidelity defines it: shuffle, cut into equal splits, score each.

    Args:
        logits: unnormalised log probabilities, shape (N, classes); FID's Inception gives 1008, without biases.
        splits: how many, at least 1 and at most N; split i holds the shuffled images from i N // splits.
        seed: of numpy's `RandomState`, whose permutation shuffles the images.

    Returns:
        Mean and standard deviation over the splits; each score lies in [1, classes].

    Raises:
        InputError: on a wrong shape, NaN or infinity, or fewer images than splits.
    """
    if splits < 1:
        raise InputError(f"the inception score needs at least 1 split, got {splits}")
    tensor = as_features(logits, "logits", fewest=splits)
    count = len(tensor)
    order = torch.from_numpy(np.random.RandomState(seed).permutation(count)).to(tensor.device)
    return _mean_std(tensor[order[i * count // splits : (i + 1) * count // splits]] for i in range(splits))


def inception_score_adm(logits: Features, split_size: int = 5000) -> MeanStd:
    """The inception score as ADM's evaluator defines it: in the order given, cut every 5000 images.

    The last split is as long as what is left. ADM reports the mean alone.

    Args:
        logits: as for `inception_score`.
        split_size: images a split, at least 1.

    Raises:
        InputError: on a wrong shape, or NaN or infinity.
    """
    if split_size < 1:
        raise InputError(f"a split of the inception score holds at least 1 image, got {split_size}")
    return _mean_std(as_features(logits, "logits").split(split_size))


INCEPTION_SCORES: dict[str, Callable[[Features], MeanStd]] = {
    "torch-fidelity": inception_score,
    "adm": inception_score_adm,
}
"""The ways to split, by name."""


def _mean_std(splits: Iterable[Tensor]) -> MeanStd:
    scores = [_score(logits) for logits in splits]
    return MeanStd(float(np.mean(scores)), float(np.std(scores)))


def _score(logits: Tensor) -> float:
    log_p = logits.double().log_softmax(1)
    log_marginal = log_p.logsumexp(0) - math.log(len(log_p))
    return (log_p.exp() * (log_p - log_marginal)).sum(1).mean().exp().item()
