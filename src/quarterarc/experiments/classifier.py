"""Features of labelled images at hand: a small classifier, trained on them, for when Inception's weights are not.

    python -m quarterarc.experiments.classifier --data cifar10.parquet --out classifier.safetensors

Distances in its features order models of the same images; they are no FID, and say nothing of other images.
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..common.devices import pick_device, processes
from ..common.errors import InputError
from ..common.streams import Purpose, stream, torch_seed
from ..data import DataSpec, ImageData, apply_flips, open_data, to_float
from ..data.order import indices
from ..evaluation.extractors import Extractor
from ..storage.files import make_folder, replace_file
from ..storage.weights import load_weights
from .arms import digest

__all__ = ["Classifier", "train_classifier", "trained_classifier"]

logger = logging.getLogger("quarterarc")

STEPS, BATCH, RATE, DECAY, SMOOTHING = 4000, 256, 2e-3, 0.05, 0.1
HELD_OUT = 10
"""Every tenth image is not trained on; the accuracy on them is reported."""


class Classifier(nn.Module):
    """A residual network of 0.7 million weights for images of 16 to 64 pixels a side.

    Takes uint8 (B, C, H, W). The pool features are the 128 means of the last layer, the spatial ones its first 8
    channels at 8x8 places, the logits those of the classes.
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
        """Features of images of any real dtype, levels 0..255."""
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


def trained_classifier(
    spec: DataSpec, folder: Path, device: torch.device | str = "cpu", progress: bool = True, steps: int = STEPS
) -> Extractor:
    """The classifier of these images as an extractor; trained if `folder` does not hold it yet.

    Raises:
        InputError: if the images have no labels, or cannot be read.
    """
    data = open_data(spec.model_copy(update={"labels": True, "flip": False, "limit": None}), progress=False)
    if data.classes is None:
        raise InputError(f"{data.description}: a classifier needs labels: choose other --features")
    key = digest([data.fingerprint, data.classes, steps, BATCH, RATE, DECAY, SMOOTHING, HELD_OUT])
    path = make_folder(folder) / f"{key}.safetensors"
    if not processes().rank:
        with FileLock(path.with_name(f".{key}.lock")):
            if not path.is_file():
                train_classifier(data, path, device, progress, steps)
    processes().wait()
    network = Classifier(data.channels, data.classes)
    load_weights(network, path)
    return Extractor.of("classifier", network, device)


def train_classifier(
    data: ImageData, path: Path, device: torch.device | str = "cpu", progress: bool = True, steps: int = STEPS
) -> float:
    """Train a classifier, write its weights, and return its accuracy on the images that it has not seen."""
    from safetensors.torch import save_file

    assert data.classes is not None
    torch.manual_seed(torch_seed(0, Purpose.WEIGHTS))
    network = Classifier(data.channels, data.classes).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, max(2, steps))
    everything = np.arange(data.count or 0)
    held = everything % HELD_OUT == HELD_OUT - 1
    trained_on = everything[~held]
    batch = min(BATCH, len(trained_on))
    bf16 = torch.device(device).type == "cuda"
    with tqdm(total=steps, unit="step", desc="classifier", disable=None if progress else True) as bar:
        for step in range(steps):
            numbers = range(step * batch, (step + 1) * batch)
            raw = data.batch(trained_on[indices(numbers, 0, len(trained_on))].tolist())
            images = _varied(to_float(raw.images.to(device)), step)
            assert raw.labels is not None
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                logits = network((images + 1.0) * 127.5)["logits"]
            loss = F.cross_entropy(logits.float(), raw.labels.to(device), label_smoothing=SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
    right = _accuracy(network, data, everything[held].tolist(), device)
    logger.info("trained the classifier on %d images; accuracy on %d others %.3f", len(trained_on), held.sum(), right)
    about = {"trained_on": str(len(trained_on)), "held_out": str(int(held.sum())), "held_out_accuracy": f"{right:.4f}"}
    weights = {name: weight.cpu().contiguous() for name, weight in network.state_dict().items()}
    with replace_file(path) as beside:
        save_file(weights, beside, metadata=about)
    return right


def _varied(images: Tensor, step: int) -> Tensor:
    """Mirrored, and shifted by up to an eighth of the side, at random."""
    random = stream(0, Purpose.EXAMPLE, step)
    images = apply_flips(images, torch.from_numpy(random.random(len(images)) < 0.5))
    most = images.shape[-1] // 8
    down, right = (int(each) for each in random.integers(-most, most + 1, 2))
    padded = F.pad(images, (most, most, most, most), mode="reflect")
    height, width = images.shape[-2:]
    return padded[:, :, most + down : most + down + height, most + right : most + right + width]


@torch.no_grad()
def _accuracy(network: Classifier, data: ImageData, numbers: list[int], device: torch.device | str) -> float:
    network.eval()
    right = 0
    for first in range(0, len(numbers), BATCH):
        raw = data.batch(numbers[first : first + BATCH])
        assert raw.labels is not None
        right += int((network(raw.images.to(device))["logits"].argmax(1).cpu() == raw.labels.cpu()).sum())
    return right / len(numbers) if numbers else math.nan


def main(arguments: Any = None) -> int:
    """Train a classifier from the command line."""
    parser = argparse.ArgumentParser(description="Train a small classifier whose features order models of its images.")
    parser.add_argument("--data", required=True, help="labelled images: a parquet file, a folder of folders, cifar10")
    parser.add_argument("--size", type=int, default=32, help="pixels a side (default: %(default)s)")
    parser.add_argument("--channels", type=int, default=3, help="1 or 3 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the weights go (.safetensors)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps (default: the best there is)")
    args = parser.parse_args(arguments)
    data = open_data(DataSpec(source=args.data, size=args.size, channels=args.channels, labels=True))
    make_folder(args.out.parent)
    right = train_classifier(data, args.out, pick_device(args.device), True, args.steps)
    print(f"{args.out}: accuracy {right:.3f} on images that it has not seen")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
