"""Sample from a diffusers pipeline folder in fewer evaluations, and save it as a pipeline again.

    python examples/adapt_pipeline.py [FOLDER]

FOLDER is any unconditional checkpoint, for example from `hf download google/ddpm-cifar10-32 --local-dir FOLDER`.
Without it the example makes a small untrained pipeline.
"""

import sys
import tempfile
from pathlib import Path

import torch

import quarterarc as qa
from quarterarc.interop import load_pipeline, pipeline_grid, save_pipeline


def untrained(folder: Path) -> Path:
    """Write a pipeline with random weights."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder


def main(folder: Path | None = None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder or untrained(Path(scratch) / "pipeline")
        denoise = load_pipeline(folder)
        print(f"images of {denoise.shape}, head '{denoise.head.name}', {denoise.schedule.steps} training steps")

        # the same 50 training steps as diffusers' DDIM; and a sampler of quarterarc in 10 steps
        for name, steps, grid in (("ddim", 50, pipeline_grid(folder, 50)), ("heun", 10, "angle")):
            images = qa.generate(denoise, seeds=range(4), sampler=name, steps=steps, grid=grid)
            print(f"{name:5s} {steps} steps: mean {float(images.mean()):+.3f}, deviation {float(images.std()):.3f}")

        print("saved as the pipeline", save_pipeline(denoise, Path(scratch) / "again").name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
