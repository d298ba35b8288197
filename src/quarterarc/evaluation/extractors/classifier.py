"""Features from a small classifier trained on your own labelled images, where Inception's do not fit or are missing.

    python -m quarterarc.evaluation.extractors.classifier --data photos.parquet --out classifier.safetensors
    quarterarc evaluate RUN photos.parquet --features classifier --weights classifier.safetensors

Frechet distances in these features rank models of the same images. They are not comparable with FID or with distances
in other features.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ...common.devices import pick_device, processes
from ...common.errors import InputError
from ...common.hashes import short_hash
from ...common.progress import progress_bar
from ...common.streams import Purpose, stream, torch_seed
from ...data import DataSpec, ImageData, apply_flips, open_data, to_float
from ...data.order import indices
from ...storage.files import make_folder, replace_file
from ...storage.locks import waiting_lock
from ...storage.weights import load_weights
from .base import Extractor, FeatureNetwork

__all__ = ["Classifier", "accuracy", "fit", "load_classifier", "train_classifier", "trained_classifier"]

logger = logging.getLogger("quarterarc")

STEPS, BATCH, RATE, DECAY, SMOOTHING = 4000, 256, 2e-3, 0.05, 0.1
HELD_OUT = 10
"""Every tenth image is held out; the accuracy is measured on the held-out images."""


class Classifier(FeatureNetwork):
    """A residual network with 0.7 million weights for images with sides of 16 to 64 pixels.

    Features: `pool` (B, 128), the spatial means of the last layer; `spatial` (B, 8 * 64), its first 8 channels averaged
    to 8x8 positions; `logits` (B, classes).

    Args:
        channels: channels of the images.
        classes: number of classes.
    """

    kinds = ("pool", "spatial", "logits")
    resize = "none; spatial features averaged to 8x8"
    sides = (16, 64)

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.channels = channels
        self.first = _layer(channels, 32)
        self.blocks = nn.ModuleList(
            [_layer(32, 64), _layer(64, 64), _layer(64, 128), _layer(128, 128), _layer(128, 128)]
        )
        self.classes = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features of images (B, C, H, W) of any real dtype with values in 0..255."""
        first, halve, middle, halve_again, fourth, last = self.first, *self.blocks
        x = first(images.float() / 127.5 - 1.0)
        x = F.max_pool2d(halve(x), 2)
        x = x + middle(x)
        x = F.max_pool2d(halve_again(x), 2)
        x = x + fourth(x)
        x = x + last(x)
        pool = x.mean((2, 3))
        spatial = F.adaptive_avg_pool2d(x[:, :8], 8).flatten(1)
        return {"pool": pool, "spatial": spatial, "logits": self.classes(pool)}


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU())


# --- training -------------------------------------------------------------------------------------------------------


def fit(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    *,
    rate: float = RATE,
    decay: float = DECAY,
    smoothing: float = SMOOTHING,
    progress: bool = True,
) -> None:
    """Train a classifier by cross-entropy with AdamW and a one-cycle learning rate, in place.

    Args:
        network: images (B, C, H, W) -> a mapping with `logits` (B, classes).
        batches: augmented images and their classes (B,), both on the network's device.
        steps: number of optimiser steps; training stops earlier if `batches` ends.
        rate: the largest learning rate.
        decay: weight decay.
        smoothing: label smoothing of the cross-entropy.
        progress: whether to show progress: a bar, or lines in a log file.
    """
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, max(2, steps))
    network.train()
    with progress_bar(steps, "step", "classifier", progress) as bar:
        for _, (images, labels) in zip(range(steps), batches, strict=False):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"):
                logits = network(images)["logits"]
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
    network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The fraction of images whose largest logit is that of their class; NaN without images.

    Args:
        network: images -> a mapping with `logits`, in evaluation mode.
        batches: images (B, C, H, W) and their classes (B,).
    """
    correct = [network(images)["logits"].argmax(1) == labels for images, labels in batches]
    return float(torch.cat(correct).double().mean()) if correct else math.nan


def train_classifier(
    data: ImageData, path: Path, device: torch.device | str = "cpu", progress: bool = True, steps: int = STEPS
) -> float:
    """Train a `Classifier` on nine tenths of labelled images and write its weights.

    Args:
        data: the images, with labels.
        path: the safetensors file to write.
        device: the device to train on.
        progress: whether to show progress: a bar, or lines in a log file.
        steps: number of optimiser steps.

    Returns:
        The accuracy on the held-out tenth.

    Raises:
        InputError: if the images have no labels.
    """
    if data.classes is None:
        raise InputError(
            f"{data.description} has no labels, which a classifier is trained on: choose other --features, or give "
            "images with labels (a folder with one subfolder per class, a parquet file with a label column)"
        )
    torch.manual_seed(torch_seed(0, Purpose.WEIGHTS))
    network = Classifier(data.channels, data.classes).to(device)
    numbers = np.arange(data.count or 0)
    held_out = numbers % HELD_OUT == HELD_OUT - 1
    fit(network, _training_batches(data, numbers[~held_out], device), steps, progress=progress)
    score = accuracy(network, _batches(data, numbers[held_out].tolist(), device))
    counts = {"trained_on": str(int((~held_out).sum())), "held_out": str(int(held_out.sum()))}
    logger.info(
        "trained the classifier on %s images; accuracy %.3f on %s held-out images",
        counts["trained_on"], score, counts["held_out"],
    )  # fmt: skip
    weights = {name: weight.cpu().contiguous() for name, weight in network.state_dict().items()}
    with replace_file(path) as beside:
        save_file(weights, beside, metadata={**counts, "held_out_accuracy": f"{score:.4f}"})
    return score


def _training_batches(
    data: ImageData, numbers: np.ndarray, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches without end: each epoch is a permutation of the images."""
    batch, step = min(BATCH, len(numbers)), 0
    while True:
        rows = numbers[indices(range(step * batch, (step + 1) * batch), 0, len(numbers))]
        ((images, labels),) = _batches(data, rows.tolist(), device)
        yield (_augmented(to_float(images), step) + 1.0) * 127.5, labels
        step += 1


def _augmented(images: Tensor, step: int) -> Tensor:
    """Mirrored with probability 1/2 per image, and shifted by up to an eighth of the side, equally for all images."""
    random = stream(0, Purpose.EXAMPLE, step)
    images = apply_flips(images, torch.from_numpy(random.random(len(images)) < 0.5))
    most = images.shape[-1] // 8
    down, right = (int(shift) for shift in random.integers(-most, most + 1, 2))
    padded = F.pad(images, (most, most, most, most), mode="reflect")
    height, width = images.shape[-2:]
    return padded[:, :, most + down : most + down + height, most + right : most + right + width]


def _batches(data: ImageData, numbers: Sequence[int], device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (uint8) and classes of these numbers, `BATCH` at a time."""
    for first in range(0, len(numbers), BATCH):
        raw = data.batch(list(numbers[first : first + BATCH]))
        assert raw.labels is not None
        yield raw.images.to(device), raw.labels.to(device)


# --- as an extractor ------------------------------------------------------------------------------------------------


def load_classifier(path: Path) -> Classifier:
    """The classifier in a file that `train_classifier` wrote.

    Raises:
        InputError: if the file is missing or holds other weights.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}: quarterarc.evaluation.extractors.classifier trains one")
    try:
        weights = load_file(path)
        channels, classes = weights["first.0.weight"].shape[1], weights["classes.weight"].shape[0]
    except Exception as error:  # whatever safetensors raises for a file of another kind
        raise InputError(f"{path} does not hold the weights of a classifier: {error}") from None
    network = Classifier(channels, classes)
    load_weights(network, path)
    return network


def trained_classifier(
    spec: DataSpec, folder: Path, device: torch.device | str = "cpu", progress: bool = True, steps: int = STEPS
) -> Extractor:
    """An extractor trained on labelled images; weights in `folder` are reused.

    Args:
        spec: the images; all of them are used, whatever the `limit`.
        folder: the cache of trained weights. A file's name is the hash of the images and the training settings.
        device: the device of the extractor, and of training.
        progress: whether to show progress: a bar, or lines in a log file.
        steps: number of optimiser steps.

    Raises:
        InputError: if the images have no labels or cannot be read.
    """
    data = open_data(spec.model_copy(update={"labels": True, "flip": False, "limit": None}), progress=False)
    key = short_hash([data.fingerprint, data.classes, steps, BATCH, RATE, DECAY, SMOOTHING, HELD_OUT])
    path = make_folder(folder) / f"{key}.safetensors"
    if not processes().rank:
        with waiting_lock(path):
            if not path.is_file():
                train_classifier(data, path, device, progress, steps)
    processes().wait()
    return Extractor.of("classifier", load_classifier(path), device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a classifier from the command line."""
    parser = argparse.ArgumentParser(
        description="Train a small classifier on labelled images; its features rank models of these images."
    )
    parser.add_argument("--data", required=True, help="labelled images: a parquet file, a folder of folders, cifar10")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--channels", type=int, default=3, help="1 or 3 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the safetensors file to write")
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps (default: the fastest available)")
    args = parser.parse_args(arguments)
    data = open_data(DataSpec(source=args.data, size=args.size, channels=args.channels, labels=True))
    make_folder(args.out.parent)
    score = train_classifier(data, args.out, pick_device(args.device), True, args.steps)
    print(f"{args.out}: accuracy {score:.3f} on held-out images")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
