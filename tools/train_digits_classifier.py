"""Writes src/quarterarc/evaluation/digits_classifier.safetensors, the network behind the `digits` features.

Trained on four fifths of the embedded digits, held out by number; the accuracy on the rest is printed and kept in the
file. One thread and fixed seeds: the same torch build writes the same weights.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from quarterarc.data import DataSpec, open_data
from quarterarc.evaluation.extractors.digits import HELD_OUT, WEIGHTS, DigitsNet

EPOCHS, BATCH, RATE, DECAY, SMOOTHING = 120, 64, 3e-3, 0.02, 0.05


def main() -> None:
    """Train, measure, and write."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    random = np.random.Generator(np.random.PCG64(0))
    images, labels = digits()
    held = torch.arange(len(images)) % HELD_OUT == HELD_OUT - 1
    network = DigitsNet()
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    x, y = images[~held], labels[~held]
    steps = EPOCHS * math.ceil(len(x) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    for epoch in range(EPOCHS):
        for rows in torch.from_numpy(random.permutation(len(x))).split(BATCH):
            logits = network(vary(x[rows], random))["logits"]
            loss = F.cross_entropy(logits, y[rows], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % 20 == 19:
            print(
                f"epoch {epoch + 1}: loss {loss.item():.4f}, held out {accuracy(network, images[held], labels[held])}"
            )
    network.eval()
    right = accuracy(network, images[held], labels[held])
    about = {
        "trained_on": str(int((~held).sum())),
        "held_out": str(int(held.sum())),
        "held_out_accuracy": f"{right:.4f}",
    }
    save_file(network.state_dict(), WEIGHTS, metadata=about)
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size} bytes, {about}")


def digits() -> tuple[Tensor, Tensor]:
    """The embedded digits: uint8 (N, 1, 8, 8), and their classes (N,)."""
    data = open_data(DataSpec(source="digits", size=8, channels=1, labels=True), progress=False)
    batch = data.batch(range(data.count or 0))
    assert batch.labels is not None
    return batch.images, batch.labels


def vary(images: Tensor, random: np.random.Generator) -> Tensor:
    """Turned, scaled, sheared and shifted a little, each image otherwise, and at 8 to 32 pixels a side."""
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


def accuracy(network: DigitsNet, images: Tensor, labels: Tensor) -> float:
    """The share of images whose largest logit is their class's."""
    with torch.no_grad():
        return float((network(images)["logits"].argmax(1) == labels).double().mean())


if __name__ == "__main__":
    main()
