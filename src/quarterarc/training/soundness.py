"""The check of the weights before a checkpoint is kept: training and sampling can continue from it."""

from __future__ import annotations

import torch
from torch import nn

from ..denoiser import Denoiser
from ..sampling.generation import noise

__all__ = ["unsound"]


def unsound(denoise: Denoiser, average: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """What is not finite: weights, moments, estimates of two fixed images of noise, or the gradient; None if all is.

    Args:
        denoise: the denoiser with the weights being trained.
        average: the network with the moving average of the weights, which is exported.
        optimizer: the optimiser of the weights, whose moments continue on resume.
    """
    network = denoise.network
    assert isinstance(network, nn.Module)
    for name, module in (("weights", network), ("average of the weights", average)):
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                return f"the {name} ({key})"
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    for state in optimizer.state.values():
        if not all(value.isfinite().all() for value in state.values() if isinstance(value, torch.Tensor)):
            return "the moments of the optimiser"
    device = weights[0].device if weights else torch.device("cpu")
    x = noise(range(2), denoise.shape or (), device)
    labels = None if denoise.classes is None else torch.zeros(2, dtype=torch.long, device=device)
    training = network.training
    network.eval()
    try:
        for angle in (0.5 * denoise.largest_angle, 0.9 * denoise.largest_angle):
            # `forward` is not compiled: another batch size would compile the network a second time
            estimate = _with(denoise, network.forward)(x, angle, labels)
            if not (estimate.image.isfinite().all() and estimate.noise.isfinite().all()):
                return "the estimates"
            loss = (estimate.image.float().square() + estimate.noise.float().square()).mean()
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            norms = [gradient.norm() for gradient in gradients if gradient is not None]
            if norms and not torch.stack(norms).norm().isfinite():
                return "the gradient"
            with torch.no_grad():
                estimate = _with(denoise, average)(x, angle, labels)
            if not (estimate.image.isfinite().all() and estimate.noise.isfinite().all()):
                return "the estimates of the averaged weights"
    finally:
        network.train(training)
    return None


def _with(denoise: Denoiser, network: object) -> Denoiser:
    return Denoiser(
        network,  # type: ignore[arg-type]
        denoise.schedule, denoise.head, denoise.shape, denoise.classes, denoise.precision,
        unlabelled=denoise.unlabelled,
    )  # fmt: skip
