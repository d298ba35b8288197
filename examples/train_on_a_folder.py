"""Train on a folder of images, resume the run, and sample from it."""

import sys
import tempfile
from pathlib import Path

from PIL import Image

import quarterarc as qa

work = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
photos = work / "photos"
photos.mkdir(parents=True, exist_ok=True)
for number in range(12):  # images of one colour in place of photographs: use a folder of your own
    colour = tuple((60 * number + 90 * channel) % 256 for channel in range(3))
    Image.new("RGB", (40, 30), colour).save(photos / f"{number:02d}.png")

recipe = qa.Recipe(
    data={"source": str(photos), "crop": "center", "flip": True},
    size=16,
    network={"channels": 16, "multipliers": [1, 2], "blocks": 1},  # small; without these lines, DDPM's U-Net
    training={"steps": 20, "batch": 8, "checkpoint_every": 10},
)
checkpoint = qa.train(recipe, work / "run", resume=True)  # a second call continues from the newest checkpoint
denoise = qa.load(checkpoint)
result = qa.sample(denoise, qa.noise(range(8), (3, 16, 16)), steps=5)
result.sheet().save(work / "samples.png")
print(f"samples: {work / 'samples.png'}")
