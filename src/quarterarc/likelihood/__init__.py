"""Likelihood: the variational bound, rate and distortion, the probability flow's likelihood, and inversion."""

from .evaluation import MODEL_METRICS, ModelSettings, evaluate_model
from .flow import FlowLikelihood, flow_bits_per_dim, log_likelihood
from .inversion import decode, encode
from .variational import Bound, RateDistortion, bits_per_dim, rate_distortion

__all__ = [
    "MODEL_METRICS",
    "Bound",
    "FlowLikelihood",
    "ModelSettings",
    "RateDistortion",
    "bits_per_dim",
    "decode",
    "encode",
    "evaluate_model",
    "flow_bits_per_dim",
    "log_likelihood",
    "rate_distortion",
]
