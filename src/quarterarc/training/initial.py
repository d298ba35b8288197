"""Fine-tuning: a run that starts from the weights of a trained model (`training.init`).

The new network computes what the trained one does, wherever its recipe allows it:

| difference     | the start                                                                                           |
|----------------|-----------------------------------------------------------------------------------------------------|
| schedule       | exact: the network's time stays the same function of the angle (`Denoiser.clock`)                   |
| image size     | the same weights                                                                                    |
| labels         | exact for a class of the same name, or number where there are as many; others start as "no label"   |
| labels in one  | exact: every class starts as the network without labels, or the network as that of "no label"       |
| augmentation   | exact, and so are the spans of a flow map: no effect at first                                       |
| head           | outputs that both heads have: exact; a new gate or variance: 0; other outputs: fitted               |

A head's output may be linear in the trained one's only together with x: the image (x - sin noise)/cos of a noise head,
or a velocity. No weights of the last convolution compute it exactly. The nearest ones, by least squares over training
images, are its start.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arc import mix, velocity
from ..common.errors import InputError
from ..common.streams import Purpose, torch_seed
from ..common.text import counted
from ..data import ImageData, to_float
from ..data.order import indices
from ..denoiser import Denoiser
from ..heads import Head, LearnedVariance
from ..interop.opening import is_model, load
from ..interop.pipelines import with_own_network
from ..networks import UNet
from ..storage.checkpoints import build_clock
from ..storage.checksums import DamagedFile, read_sealed
from ..storage.runs import CONFIG
from ..storage.weights import hash_of_weights
from .network import network_fields
from .recipe import Recipe

__all__ = ["Start", "clock_of", "read_start", "recipe_from"]

logger = logging.getLogger("quarterarc")

PARTS = {
    "noise": ("noise",), "image": ("image",), "velocity": ("velocity",), "both": ("image", "noise"),
    "gated": ("image", "noise", "gate"), "mean": ("mean",),
}  # fmt: skip
"""What the output channels of a head are, in their order; one gate per pixel, the others per channel of the images."""
EXAMPLES, PIXELS, BATCH = 64, 256, 8
"""Examples of the least-squares fit, pixels of each of them, and examples per evaluation."""
RIDGE = 1e-4
"""Added to the mean square of the features, relative to it: features may be linearly dependent."""


class Start:
    """The trained model that a run starts from.

    Args:
        denoise: the model, on the CPU.
        source: its place, for messages.

    Attributes:
        record: what config.json of the run's checkpoints records of it.
    """

    def __init__(self, denoise: Denoiser, source: str) -> None:
        self.denoise, self.source = denoise, source
        assert isinstance(denoise.network, nn.Module)
        place = source if denoise.checkpoint is None else str(denoise.checkpoint)
        self.record = {"source": place, "weights": hash_of_weights(denoise.network)[:16]}

    def begin(self, new: Denoiser, data: ImageData, seed: int) -> Denoiser:
        """The denoiser of a recipe, whose network gets the weights of the model, in place.

        Args:
            new: a denoiser with the recipe's new network, on any device.
            data: the training images.
            seed: `training.seed`.

        Raises:
            InputError: if the network cannot start from these weights.
        """
        old = self.denoise
        if old.shape is not None and old.shape[0] != data.channels:
            raise InputError(
                f"training.init={self.source} makes images of {counted(old.shape[0], 'channel')}, and the data have "
                f"{data.channels}: give data.channels={old.shape[0]}"
            )
        logger.info("the weights start from the moving average in %s", self.record["source"])
        clock, schedule = old.clock or old.schedule, new.schedule
        begun = replace(
            new,
            clock=None if np.array_equal(clock.angles, schedule.angles) else clock,
            time_shift=old.time_shift,
            time_scale=old.time_scale,
        )
        if type(old.network) is not UNet:
            self._copy(begun)
            return begun
        assert isinstance(new.network, UNet)
        weights = _body(old, new)
        missing = self._last(weights, begun, data.channels)
        new.network.load_state_dict(weights)
        if missing:
            _fit(begun, missing, data, seed)
        return begun

    def _copy(self, new: Denoiser) -> None:
        """Copy the weights of a network other than the U-Net, whose recipe must describe the same network."""
        assert isinstance(self.denoise.network, nn.Module)
        assert isinstance(new.network, nn.Module)
        old, own = self.denoise.network.state_dict(), new.network.state_dict()
        differ = sorted(name for name in old.keys() | own.keys() if _shape(old, name) != _shape(own, name))
        if differ or self.denoise.head.name != new.head.name:
            what = f"the tensor '{differ[0]}'" if differ else "the head"
            raise InputError(
                f"training.init={self.source} has a {type(self.denoise.network).__name__}, which differs from the "
                f"recipe's network in {what}: give the same network, labels and head={self.denoise.head.name}; only "
                "a quarterarc UNet is adapted"
            )
        new.network.load_state_dict(old)

    def _last(self, weights: dict[str, Tensor], new: Denoiser, channels: int) -> dict[str, slice]:
        """Set the weights of the last convolution; returns the channels of the outputs that are to be fitted."""
        before, after = self.denoise.head, new.head
        if before.name == after.name:
            if before.name.startswith("mean") and new.clock is not None:
                raise InputError(
                    f"training.init={self.source} has the head '{before.name}' of another schedule, whose outputs are "
                    "those of its steps: give its schedule, or another head"
                )
            return {}
        theirs, ours = self._parts(before, channels), self._parts(after, channels)
        for kind in ("weight", "bias"):
            last = weights[f"output.{kind}"]
            given = self.denoise.network.state_dict()[f"output.{kind}"]  # type: ignore[attr-defined]
            last.zero_()
            for name in ours.keys() & theirs.keys():
                last[ours[name]] = given[theirs[name]].to(last)
        return {
            name: rows for name, rows in ours.items() if name in ("image", "noise", "velocity") and name not in theirs
        }

    def _parts(self, head: Head, channels: int) -> dict[str, slice]:
        """The channels of a head's outputs by their meaning."""
        inner, variance = (head.inner, head.SUFFIX) if isinstance(head, LearnedVariance) else (head, "")
        if inner.name not in PARTS or (inner.name == "mean" and self.denoise.head.name != head.name):
            raise InputError(
                f"a network with the head '{head.name}' cannot start from one with another head: training.init="
                f"{self.source} has '{self.denoise.head.name}', give head={self.denoise.head.name}"
            )
        rows: dict[str, slice] = {}
        first = 0
        for name in (*PARTS[inner.name], *filter(None, [variance])):
            last = first + (1 if name == "gate" else channels)
            rows[name], first = slice(first, last), last
        return rows


def read_start(recipe: Recipe) -> Start | None:
    """The model that a recipe starts from; None for new weights.

    Raises:
        InputError: if there is none at that place, or it cannot be loaded.
    """
    source = recipe.training.init
    if source is None:
        return None
    if not source.strip() or not is_model(Path(source).expanduser()):
        raise InputError(
            f"there is no trained model at training.init={source}: give the folder of a run, of a checkpoint or of a "
            "diffusers pipeline"
        )
    return Start(with_own_network(load(source, projection=None)), source)


def recipe_from(recipe: Recipe, start: Start) -> Recipe:
    """The recipe with the network of the model that it starts from; its dropout is that of the recipe."""
    network, own = start.denoise.network, recipe.network
    if type(network) is not UNet:
        return recipe
    fields: dict[str, Any] = network_fields(network, recipe.data.height)
    if own.name == "unet":
        fields["dropout"] = own.dropout
    changed = recipe.model_copy(update={"network": type(own)(**fields)})
    before, after = recipe.resolved().network, changed.resolved().network
    if before.model_dump(exclude={"arguments"}) != after.model_dump(exclude={"arguments"}):
        logger.info("the network is that of %s, in place of the recipe's", start.source)
    return Recipe.model_validate(changed.model_dump())


def clock_of(checkpoints: Sequence[Path], denoise: Denoiser) -> Denoiser:
    """The denoiser of a resumed run with the times that its network takes, from the newest readable checkpoint."""
    for folder in reversed(checkpoints):
        try:
            described = read_sealed(folder / CONFIG)["denoiser"]
            return replace(
                denoise,
                clock=build_clock(described),
                time_shift=described.get("time_shift", 0.0),
                time_scale=described.get("time_scale"),
            )
        except (DamagedFile, KeyError, TypeError):
            continue  # `Trainer` has the message for a run without a readable checkpoint
    return denoise


def _shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None


def _body(old: Denoiser, new: Denoiser) -> dict[str, Tensor]:
    """The weights of a new U-Net from those of a trained one; the last convolution is as in a new network."""
    theirs, ours = old.network, new.network
    assert isinstance(theirs, UNet)
    assert isinstance(ours, UNet)
    given = theirs.state_dict()
    weights = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    for name, tensor in weights.items():
        if name in given and given[name].shape == tensor.shape and not name.startswith("labels"):
            weights[name] = given[name].to(tensor)
    constant = torch.zeros_like(given["time.2.bias"])  # what is added to the embedding whatever the input
    if theirs.labels is not None:
        unlabelled, rows = _labels(old, new, theirs.labels.weight.detach())
        if ours.labels is None:
            constant += unlabelled
        else:
            weights["labels.weight"] = rows.to(weights["labels.weight"])
    elif ours.labels is not None:
        weights["labels.weight"].zero_()
    if theirs.span is not None and ours.span is None:
        with torch.no_grad():
            constant += theirs.span(theirs._waves(given["output.weight"], 0.0, "spans"))[0]
    weights["time.2.bias"] = weights["time.2.bias"] + constant.to(weights["time.2.bias"])
    return weights


def _labels(old: Denoiser, new: Denoiser, given: Tensor) -> tuple[Tensor, Tensor]:
    """The embedding of "no label", and those of the new classes with it as the last one."""
    unlabelled = given[-1] if old.unlabelled else given[:-1].mean(dim=0)  # which was not trained
    rows = unlabelled.repeat((new.classes or 0) + 1, 1)
    if old.class_names and new.class_names:
        places = {name: place for place, name in enumerate(old.class_names)}
        known = {place: places[name] for place, name in enumerate(new.class_names) if name in places}
    else:
        known = {place: place for place in range(new.classes or 0)} if old.classes == new.classes else {}
    for place, before in known.items():
        rows[place] = given[before]
    if new.classes is not None and len(known) < new.classes:
        logger.info("%s of the data were not in training.init", counted(new.classes - len(known), "class", "classes"))
    return unlabelled, rows


@torch.no_grad()
def _fit(new: Denoiser, missing: Mapping[str, slice], data: ImageData, seed: int) -> None:
    """Fit outputs of the last convolution to training examples by least squares, in place.

    All processes fit to the same examples. A stream is not read for it: its outputs start at 0.
    """
    names = " and ".join(missing)
    if data.count is None:
        logger.info(
            "the outputs of the new head '%s' that are not in training.init start at 0: %s", new.head.name, names
        )
        return
    logger.info("the outputs of the new head '%s' are fitted to training images: %s", new.head.name, names)
    network, device = new.network, new.device
    assert isinstance(network, UNet)
    random = torch.Generator().manual_seed(torch_seed(seed, Purpose.LAST_LAYER))
    kept: list[Tensor] = []
    hook = network.output.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    gram, moments = torch.zeros(()), torch.zeros(())
    training = network.training
    network.eval()
    try:
        for first in range(0, EXAMPLES, BATCH):
            raw = data.batch(indices(range(first, first + BATCH), seed, data.count).tolist())
            image = to_float(raw.images.to(device))
            noise = torch.randn(image.shape, generator=random).to(device)
            stratified = (torch.arange(first, first + BATCH) + torch.rand(BATCH, generator=random)) / EXAMPLES
            angle = (stratified * new.largest_angle).double()
            labels = None if raw.labels is None or new.classes is None else raw.labels.to(device)
            new(mix(image, noise, angle), angle, labels)
            patches = F.unfold(kept.pop().cpu().float(), 3, padding=1)  # (B, 9 features, pixels)
            patches = F.pad(patches, (0, 0, 0, 1), value=1.0)  # the bias
            truth = {"image": image, "noise": noise, "velocity": velocity(image, noise, angle)}
            targets = torch.cat([truth[name] for name in missing], dim=1).flatten(2).cpu()
            pixels = torch.randperm(patches.shape[2], generator=random)[:PIXELS]
            x = patches[:, :, pixels].transpose(1, 2).flatten(0, 1).double()
            y = targets[:, :, pixels].transpose(1, 2).flatten(0, 1).double()
            gram, moments = gram + x.T @ x, moments + x.T @ y
    finally:
        hook.remove()
        network.train(training)
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    solution = torch.linalg.solve(gram, moments).T  # (outputs, 9 features + 1)
    weight, bias = network.output.weight, network.output.bias
    assert bias is not None
    rows = torch.cat([torch.arange(weight.shape[0])[place] for place in missing.values()])
    weight[rows] = solution[:, :-1].reshape(-1, *weight.shape[1:]).to(weight)
    bias[rows] = solution[:, -1].to(bias)
