"""Our samplers in the comparison: rows of fixed settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]

NFE_FINE = 100
"""Evaluations of the fine solution on a trained network."""


@dataclass(frozen=True)
class Ours:
    """A sampler of ours, by its name and options."""

    sampler: str
    options: Settings = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As the table says it."""
        return " ".join([self.sampler, *(f"{name} {value}" for name, value in self.options.items())])


OURS = (
    *map(Ours, ("euler", "midpoint", "heun", "rk4", "rotation", "ddim")),
    *(Ours("multistep", {"order": order}) for order in (1, 2, 3, 4)),
    Ours("multistep", {"finish": "image"}),
    Ours("multistep"),
)
GRIDS = ("angle", "octave")
"""What every sampler of ours is measured on, beside its own default grid."""
CANDIDATE = ("multistep", "octave")
"""Set against the best peer, beside the library's default."""
TUNED = Ours("multistep")
"""Measured on tuned grids too: those that lie beside a trained run, and with `--tune` those fitted to a world."""
LARGEST_TUNED = 20
"""NFE beyond which no grid is tuned: it takes long, and there is little left to gain."""

TUNED_ON = 384
"""Images that an exact world is tuned on."""
ROUGH = (("bogacki-shampine", 0.1), ("bogacki-shampine", 0.03))
FINE = (("bogacki-shampine", 0.01), ("bogacki-shampine", 1e-3), ("dormand-prince", 1e-4))
"""Pairs and tolerances of the adaptive sampler, whose NFE cannot be asked for; the fine ones for exact worlds alone."""
