"""Train on a folder of images in Python, resume, and sample: what the command line does, step by step."""

import sys
import tempfile
from pathlib import Path

from PIL import Image

import quarterarc as qa
from quarterarc.storage.pictures import contact_sheet, write_png
from quarterarc.training.api import train
from quarterarc.training.recipe import read_recipe

work = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
photos = work / "photos"
photos.mkdir(parents=True, exist_ok=True)
for number in range(12):  # stand-ins for photographs: give a folder of your own instead
    colour = tuple((60 * number + 90 * channel) % 256 for channel in range(3))
    Image.new("RGB", (40, 30), colour).save(photos / f"{number:02d}.png")

recipe = read_recipe(
    "digits",
    [f"data.source={photos}", "data.size=16", "data.channels=3", "data.crop=center", "data.flip=true",
     "network.channels=16", "network.attention=[8]", "training.batch=8", "training.steps=20",
     "training.checkpoint_every=10", "optimizer.warmup=5"],
)  # fmt: skip
checkpoint = train(recipe, work / "run", resume=True)  # run it twice: it goes on where it stopped
images = qa.generate(qa.load(checkpoint), seeds=range(8), steps=5)
write_png(work / "samples.png", contact_sheet(qa.to_uint8(images)))
print(f"look at {work / 'samples.png'}")
