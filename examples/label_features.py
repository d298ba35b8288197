"""Features for Frechet distances from the labels of your own images, where Inception's are not at hand or do not fit.

    python examples/label_features.py photos.parquet --size 32 --out photos.safetensors
    PYTHONPATH=examples LABEL_FEATURES=photos.safetensors quarterarc evaluate RUN --features label_features:load

The first line trains a small classifier on the images and their labels, nine tenths of them, and prints how many of
the others it gets right; the second measures with the 64 numbers before its last layer. Distances on features of your
own say which of two sets is nearer to your images, and nothing about any other network's numbers.
"""

import argparse
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from quarterarc.data import DataSpec, open_data

HELD_OUT = 10  # every tenth image is not trained on
BATCH, RATE, DECAY = 128, 3e-3, 0.02


class LabelNet(nn.Module):
    """A convolutional network of 300,000 weights for small colour images; shapes as `quarterarc.evaluation` asks."""

    kinds = ("pool", "logits")
    resize = "none"
    channels = 3

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 128)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=1 if before == 3 or before == after else 2, padding=1, bias=False)
            for before, after in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.features = nn.Linear(widths[-1] * 4, 64)
        self.classes = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Pool features (B, 64) and logits (B, classes) of uint8 images (B, 3, H, W)."""
        x = images.float() / 127.5 - 1.0
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.silu(norm(layer(x)))
        pool = F.silu(self.features(F.adaptive_avg_pool2d(x, 2).flatten(1)))
        return {"pool": pool, "logits": self.classes(pool)}


def load() -> LabelNet:
    """The network in the file that the environment variable LABEL_FEATURES names."""
    path = os.environ.get("LABEL_FEATURES")
    if path is None or not Path(path).is_file():
        raise SystemExit(f"LABEL_FEATURES is to name a file that label_features.py has written, got {path!r}")
    with safe_open(path, "pt") as file:
        network = LabelNet(int(file.metadata()["classes"]))
    network.load_state_dict(load_file(path))
    return network


def train(images: Tensor, labels: Tensor, classes: int, epochs: int, seed: int = 0) -> tuple[LabelNet, float]:
    """A classifier of uint8 images (N, 3, H, W), and its share of right answers on those held out."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    held = torch.arange(len(images)) % HELD_OUT == HELD_OUT - 1
    x, y = images[~held], labels[~held]
    network = LabelNet(classes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    for epoch in range(epochs):
        for rows in torch.from_numpy(random.permutation(len(x))).split(BATCH):
            seen = shift(x[rows], random)
            loss = F.cross_entropy(network(seen)["logits"], y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}", flush=True)
    network.eval()
    with torch.no_grad():
        right = sum(
            int((network(part)["logits"].argmax(1) == said).sum())
            for part, said in zip(images[held].split(500), labels[held].split(500), strict=True)
        )
    return network, right / int(held.sum())


def shift(images: Tensor, random: np.random.Generator, most: int = 2) -> Tensor:
    """Moved by up to two pixels and mirrored half of the time, all of a batch alike."""
    down, right = (int(random.integers(-most, most + 1)) for _ in range(2))
    moved = F.pad(images.float(), [most] * 4, mode="reflect")
    moved = moved[..., most + down :, most + right :][..., : images.shape[-2], : images.shape[-1]]
    return moved.flip(-1) if random.integers(2) else moved


def main() -> None:
    """Train on what the command line names, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", nargs="?", default="digits", help="images with labels, as data.source in a recipe (default: digits)"
    )
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--limit", type=int, help="of the images, the first ones")
    parser.add_argument("--out", type=Path, default=Path("label_features.safetensors"))
    asked = parser.parse_args()
    data = open_data(DataSpec(source=asked.data, size=asked.size, labels=True, limit=asked.limit), progress=False)
    batch = data.batch(range(data.count or 0))
    assert batch.labels is not None
    assert data.classes is not None
    if len(batch.images) < 10 * HELD_OUT:
        raise SystemExit(f"{len(batch.images)} images are too few to train on nine tenths of: give at least 100")
    network, right = train(batch.images, batch.labels, data.classes, asked.epochs)
    about = {"classes": str(data.classes), "held_out_accuracy": f"{right:.3f}"}
    save_file({name: weight.contiguous() for name, weight in network.state_dict().items()}, asked.out, about)
    print(f"{asked.out}: {right:.1%} of the held-out images right")


if __name__ == "__main__":
    main()
