"""A second pair of outputs in a flow map from scratch: the tangent of the flow where a jump starts.

    quarterarc train digits --out run head=benchmarks.tangent:TwoPairs objective.name=benchmarks.tangent:WithTangent

The first pair is the jump's estimate, as with the head `both`. The second pair is what a denoiser estimates at the same
point, and is trained on every example and not on the diagonal alone. The result is in docs/flow-maps.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from quarterarc.arc import Angle, rotate, velocity
from quarterarc.common.errors import InputError
from quarterarc.estimate import Estimate
from quarterarc.heads import Head
from quarterarc.objectives import FlowMap, Losses
from quarterarc.objectives.base import mse

__all__ = ["Pairs", "TwoPairs", "WithTangent"]


@dataclass(frozen=True, eq=False)
class Pairs(Estimate):
    """The estimate of a jump, and in `tangent` that of the denoiser where the jump starts."""

    tangent: Estimate | None = None


class TwoPairs(Head):
    """Image and noise of the jump, then image and noise of the tangent: 4C channels."""

    name = "two-pairs"

    def channels(self, image_channels: int) -> int:
        return 4 * image_channels

    def read(self, output: Tensor, x: Tensor, angle: Angle) -> Pairs:
        image, noise, tangent_image, tangent_noise = output.chunk(4, dim=1)
        return Pairs(image, noise, tangent=Estimate(tangent_image, tangent_noise))


@dataclass(frozen=True)
class WithTangent(FlowMap):
    """The objective `flow-map`, plus the velocity loss of the second pair on every example.

    Attributes:
        tangent: weight of the loss of the second pair.
        follows: whether the step to the middle angle follows the second pair, whose velocity is the flow's and has no
            variance, in the part 1 - s; the rest follows the velocity of image and noise, which is exact for any s.
    """

    tangent: float = 1.0
    follows: bool = False

    def step(
        self,
        estimate: Estimate,
        image: Tensor,
        noise: Tensor,
        x: Tensor,
        start: Tensor,
        part: Tensor,
        labels: Tensor | None,
        progress: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The step to the middle angle; see `FlowMap.step`."""
        along = velocity(image, noise, start)
        if self.follows:
            share = self.share(progress)
            along = share * along + (1.0 - share) * _tangent(estimate).velocity(start)
        return image, noise, rotate(x, along, -part)[0]

    def compare(
        self, estimate: Estimate, image: Tensor, noise: Tensor, x: Tensor, start: Tensor, ends: Tensor, part: Tensor
    ) -> Losses:
        """The losses of jumps, plus that of the second pair; see `FlowMap.compare`."""
        losses = super().compare(estimate, image, noise, x, start, ends, part)
        size = mse(_tangent(estimate).velocity(start) - velocity(image, noise, start))
        weight = (size.detach() + 1e-3) ** -self.power
        return replace(losses, total=losses.total + self.tangent * weight * size)


def _tangent(estimate: Estimate) -> Estimate:
    if not isinstance(estimate, Pairs) or estimate.tangent is None:
        raise InputError("the objective WithTangent needs a head with a second pair: head=benchmarks.tangent:TwoPairs")
    return estimate.tangent
