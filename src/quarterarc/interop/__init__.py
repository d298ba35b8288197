"""Models of other libraries as denoisers, and denoisers as diffusers pipelines."""

from .functions import EDM, FlowMatching, ScoreVE, ScoreVP, TrigFlow
from .importing import import_checkpoint
from .pipelines import load_pipeline, pipeline_denoiser, save_pipeline
from .schedulers import pipeline_grid, pipeline_schedule

__all__ = [
    "EDM",
    "FlowMatching",
    "ScoreVE",
    "ScoreVP",
    "TrigFlow",
    "import_checkpoint",
    "load_pipeline",
    "pipeline_denoiser",
    "pipeline_grid",
    "pipeline_schedule",
    "save_pipeline",
]
