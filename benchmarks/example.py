"""The training loop of diffusers' example `unconditional_image_generation/train_unconditional.py`, on images in memory.

As there: accelerate with mixed precision, a shuffling `DataLoader` whose images are flipped and normalised one by one,
`DDPMScheduler.add_noise`, the error of the noise, clipping, AdamW, a cosine learning rate, `EMAModel`, and the loss
read after every step. Progress bar, log files, checkpoints and pictures are left out. `tuned` is the same loop with
what its users can change: the network compiled in CUDA graphs in channels-last layout, the fused optimiser, the moving
average of all weights at once, and a batch of images prepared at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

__all__ = ["Example", "new_accelerator"]

EPOCHS = 100
"""Epochs of the example's learning rate."""


def new_accelerator(device: torch.device, precision: str = "no") -> Accelerator:
    """An accelerator of this process alone, with its own precision ("no" or "bf16").

    Accelerate has one state per process: an earlier accelerator remains usable for what it has prepared.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(mixed_precision=precision, cpu=device.type == "cpu")


class _Images(Dataset):
    """Images in memory, flipped at random and normalised one by one, as by torchvision's transforms."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = self.images[index]
        if torch.rand(1) < 0.5:
            image = image.flip(-1)
        return {"input": image.float().div(255.0).sub(0.5).div(0.5)}


class _Batches(_Images):
    """The same images, a batch at once."""

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        images = self.images[torch.tensor(indices)]
        flipped = torch.rand(len(images), 1, 1, 1) < 0.5
        return {"input": torch.where(flipped, images.flip(-1), images).float().div(255.0).sub(0.5).div(0.5)}


class Example:
    """The state of a run of the example.

    Args:
        model: diffusers' network, with as many output as input channels.
        images: uint8 (N, C, H, W) on the CPU, at least one batch.
        batch: images per step.
        device: the device.
        dtype: "fp32", or "bf16" for accelerate's mixed precision.
        tuned: the loop with what its users can change; compiled, and in CUDA graphs on a GPU.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, batch: int, device: torch.device, dtype: str, tuned: bool
    ) -> None:
        accelerator = new_accelerator(device, "bf16" if dtype == "bf16" else "no")
        self.accelerator = accelerator
        self.weight_dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
        self.scheduler, self.tuned = DDPMScheduler(num_train_timesteps=1000), tuned
        if tuned:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = EMAModel(
            model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=tuned
        )
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8, fused=tuned or None
        )
        loader: DataLoader[Any] = DataLoader(
            _Batches(images) if tuned else _Images(images),
            batch_size=batch, shuffle=True, drop_last=True, collate_fn=_same if tuned else None,
            pin_memory=tuned and device.type == "cuda",
        )  # fmt: skip
        rate = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=len(loader) * EPOCHS)
        self.model, self.optimizer, self.loader, self.rate = accelerator.prepare(model, optimizer, loader, rate)
        average.to(accelerator.device)
        self.average = average
        if tuned:  # after `prepare`, whose conversion of the output is then part of the compiled code
            self.model.compile(mode="reduce-overhead" if device.type == "cuda" else "default")
        self._batches = self._epochs()

    def steps(self, count: int) -> None:
        """Train for this many steps."""
        self.model.train()
        for _ in range(count):
            self._step(next(self._batches))

    def _epochs(self) -> Iterator[dict[str, Tensor]]:
        while True:
            yield from self.loader

    def _step(self, batch: dict[str, Tensor]) -> None:
        accelerator, model = self.accelerator, self.model
        clean = batch["input"].to(self.weight_dtype)
        noise = torch.randn(clean.shape, dtype=self.weight_dtype, device=clean.device)
        times = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(clean),), device=clean.device).long()
        noisy = self.scheduler.add_noise(clean, noise, times)
        if self.tuned:  # as ours does; otherwise CUDA graphs of this process would be captured anew at every step
            torch.compiler.cudagraph_mark_step_begin()
        with accelerator.accumulate(model):
            loss = F.mse_loss(model(noisy, times).sample.float(), noise.float())
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            self.optimizer.step()
            self.rate.step()
            self.optimizer.zero_grad()
        if accelerator.sync_gradients:
            self.average.step(model.parameters())
        self.loss = loss.detach().item()


def _same(batch: Any) -> Any:
    return batch
