"""The samplers of quarterarc in the comparison: rows of fixed settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]

NFE_FINE = 100
"""Evaluations of the fine solution of a trained network."""


@dataclass(frozen=True)
class Ours:
    """A sampler of quarterarc, by name and options."""

    sampler: str
    options: Settings = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name of the row."""
        return " ".join([self.sampler, *(f"{name} {value}" for name, value in self.options.items())])


EVALUATED = Ours("multistep", {"free_start": False})
"""The default with an evaluation at its first step, as every peer has it; compared with the best peer too."""
OURS = (
    *map(Ours, ("euler", "midpoint", "heun", "rk4", "rotation", "ddim")),
    *(Ours("multistep", {"order": order}) for order in (1, 2, 3, 4)),
    Ours("multistep", {"finish": "image"}),
    EVALUATED,
    Ours("multistep"),
)
GRIDS = ("angle", "octave")
"""The grids of every sampler, beside its own default grid."""
CANDIDATE = ("multistep", "octave")
"""The sampler and grid that is compared with the best peer, beside the library's default."""
TUNED = Ours("multistep")
"""The sampler that is also measured on tuned grids: those of a trained run, and with `--tune` those of a world."""
ROUGH = (("bogacki-shampine", 0.1), ("bogacki-shampine", 0.03))
"""Pairs and tolerances of the adaptive sampler, whose NFE cannot be chosen."""
FINE = (("bogacki-shampine", 0.01), ("bogacki-shampine", 1e-3), ("dormand-prince", 1e-4))
"""Finer ones, for exact worlds only."""
