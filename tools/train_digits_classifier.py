"""Write src/quarterarc/evaluation/digits_classifier.safetensors, the network behind the `digits` features.

It is trained on four fifths of the embedded digits; the accuracy on the rest is printed and stored in the file. One
thread and fixed seeds: the same build of torch writes the same weights. Usage: train_digits_classifier.py [FILE]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from quarterarc.data import DataSpec, open_data
from quarterarc.evaluation.extractors.classifier import accuracy, fit
from quarterarc.evaluation.extractors.digits import HELD_OUT, WEIGHTS, DigitsNet

EPOCHS, BATCH, RATE, DECAY, SMOOTHING = 120, 64, 3e-3, 0.02, 0.05


def main(path: Path = WEIGHTS) -> None:
    """Train the network, measure its accuracy, and write its weights to `path`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    data = open_data(DataSpec(source="digits", size=8, channels=1, labels=True), progress=False)
    digits = data.batch(range(data.count or 0))
    images, labels = digits.images, digits.labels
    assert labels is not None
    held_out = torch.arange(len(images)) % HELD_OUT == HELD_OUT - 1
    network = DigitsNet()
    steps = EPOCHS * math.ceil(int((~held_out).sum()) / BATCH)
    batches = augmented_batches(images[~held_out], labels[~held_out])
    fit(network, batches, steps, rate=RATE, decay=DECAY, smoothing=SMOOTHING)
    score = accuracy(network, [(images[held_out], labels[held_out])])
    about = {
        "trained_on": str(int((~held_out).sum())),
        "held_out": str(int(held_out.sum())),
        "held_out_accuracy": f"{score:.4f}",
    }
    save_file(network.state_dict(), path, metadata=about)
    print(f"{path}: {path.stat().st_size} bytes, {about}")


def augmented_batches(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, in a new order every epoch."""
    random = np.random.Generator(np.random.PCG64(0))
    while True:
        for rows in torch.from_numpy(random.permutation(len(images))).split(BATCH):
            yield augmented(images[rows], random), labels[rows]


def augmented(images: Tensor, random: np.random.Generator) -> Tensor:
    """A small random affine map per image, resampled to one random side of 8 to 32 pixels per batch."""
    count = len(images)
    angle, shear = (torch.from_numpy(random.uniform(-0.2, 0.2, count)).float() for _ in range(2))
    scale = torch.from_numpy(random.uniform(0.9, 1.1, (2, count))).float()
    shift = torch.from_numpy(random.uniform(-0.15, 0.15, (2, count))).float()
    rows = [
        torch.stack([scale[0] * angle.cos(), shear - angle.sin(), shift[0]], 1),
        torch.stack([angle.sin(), scale[1] * angle.cos(), shift[1]], 1),
    ]
    side = int(random.choice([8, 8, 12, 16, 28, 32]))
    grid = F.affine_grid(torch.stack(rows, 1), [count, 1, side, side], align_corners=False)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
