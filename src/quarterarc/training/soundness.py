"""The check of the weights before a checkpoint is kept: training and sampling can continue from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..denoiser import Denoiser
from ..sampling.generation import noise

__all__ = ["unsound"]


def unsound(denoise: Denoiser, average: nn.Module | None, optimizer: torch.optim.Optimizer) -> str | None:
    """What is not finite: weights, moments, estimates of two fixed images of noise, or the gradient; None if all is.

    Args:
        denoise: the denoiser with the weights being trained.
        average: the network with the moving average of the weights, which is exported; None in processes without it.
        optimizer: the optimiser of the weights, whose moments continue on resume.
    """
    network = denoise.network
    assert isinstance(network, nn.Module)
    tensors = {
        f"the {name} ({key})": tensor
        for name, module in (("weights", network), ("average of the weights", average))
        if module is not None
        for key, tensor in module.state_dict().items()
    }
    moments = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    if not all_finite([*tensors.values(), *moments]):
        bad = (name for name, tensor in tensors.items() if not all_finite([tensor]))
        return next(bad, "the moments of the optimiser")
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    device = weights[0].device if weights else torch.device("cpu")
    results: list[tuple[str, list[Tensor]]] = []
    x = noise(range(2), denoise.shape or (), device)
    labels = None if denoise.classes is None else torch.zeros(2, dtype=torch.long, device=device)
    training = network.training
    network.eval()
    try:
        for angle in (0.5 * denoise.largest_angle, 0.9 * denoise.largest_angle):
            # `forward` is not compiled: another batch size would compile the network a second time
            estimate = _with(denoise, network.forward)(x, angle, labels)
            results.append(("the estimates", [estimate.image, estimate.noise]))
            loss = (estimate.image.float().square() + estimate.noise.float().square()).mean()
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            norms = [gradient.norm() for gradient in gradients if gradient is not None]
            results.append(("the gradient", [torch.stack(norms).norm()] if norms else []))
            if average is not None:
                with torch.no_grad():
                    estimate = _with(denoise, average)(x, angle, labels)
                results.append(("the estimates of the averaged weights", [estimate.image, estimate.noise]))
    finally:
        network.train(training)
    if all_finite([tensor for _, tensors in results for tensor in tensors]):
        return None
    return next(name for name, tensors in results if not all_finite(tensors))


@torch.no_grad()
def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all values are finite; the one answer is read from a GPU once."""
    finite = [tensor.abs().amax().isfinite() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    return not finite or bool(torch.stack(finite).all())


def _with(denoise: Denoiser, network: object) -> Denoiser:
    return Denoiser(
        network,  # type: ignore[arg-type]
        denoise.schedule, denoise.head, denoise.shape, denoise.classes, denoise.precision,
        unlabelled=denoise.unlabelled,
    )  # fmt: skip
