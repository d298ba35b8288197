"""Likelihood: the variational bound, rate and distortion, the probability flow's likelihood, and inversion."""

from .evaluation import LIKELIHOOD_METRICS, LikelihoodSettings, evaluate_likelihood
from .flow import FlowLikelihood, flow_bits_per_dim, log_likelihood
from .inversion import decode, encode
from .moments import Moments
from .variational import Bound, RateDistortion, bits_per_dim, rate_distortion

__all__ = [
    "LIKELIHOOD_METRICS",
    "Bound",
    "FlowLikelihood",
    "LikelihoodSettings",
    "Moments",
    "RateDistortion",
    "bits_per_dim",
    "decode",
    "encode",
    "evaluate_likelihood",
    "flow_bits_per_dim",
    "log_likelihood",
    "rate_distortion",
]
