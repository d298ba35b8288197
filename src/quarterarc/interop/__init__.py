"""Other people's models on the arc, and ours as theirs."""

from .functions import EDM, FlowMatching, ScoreVE, ScoreVP, TrigFlow

__all__ = ["EDM", "FlowMatching", "ScoreVE", "ScoreVP", "TrigFlow"]
