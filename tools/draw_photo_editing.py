"""The second picture of docs/editing.md: edits of photographs, by a network that was trained on crops of four.

pip install scikit-image scikit-learn                     # whose photographs these are
python tools/draw_photo_editing.py crops photos
quarterarc train photos --out runs/photos data.source=photos data.size=32 data.labels=true training.steps=3500
python tools/draw_photo_editing.py draw photos runs/photos docs/images/editing-photos.png
"""

from __future__ import annotations

import argparse
import importlib.util
import random
from pathlib import Path

import torch
from PIL import Image, ImageEnhance

import quarterarc as qa
from quarterarc import edit
from quarterarc.edit.pictures import read_image
from quarterarc.storage.pictures import contact_sheet, write_png

SUBJECTS = {
    "astronaut": ("skimage/data/astronaut.png", (0.44, 0.27), (0.22, 0.27)),
    "cat": ("skimage/data/chelsea.png", (0.5, 0.5), (0.47, 0.5)),
    "coffee": ("skimage/data/coffee.png", (0.48, 0.5), (0.38, 0.48)),
    "flower": ("sklearn/datasets/images/flower.jpg", (0.55, 0.45), (0.33, 0.45)),
}
"""The photographs by class: the file of the package; the centre of the subject (x, y) relative to width and height; and
the least and the largest half of a crop's shorter side, relative to the shorter side of the photograph."""
CROPS = 90
"""Crops per photograph."""
SHAPES = (1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3)
COLUMNS = 9
STEPS = 20
"""Steps of the sampler of each edit."""


def crops(folder: Path, subjects: dict[str, Path]) -> None:
    """Write crops of each photograph, turned by up to 8 degrees, of several shapes, sizes and colours, some gray."""
    drawn = random.Random(0)
    for name, path in subjects.items():
        _, (right, down), (least, largest) = SUBJECTS[name]
        photograph = Image.open(path).convert("RGB")
        width, height = photograph.size
        short = min(photograph.size)
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(CROPS):
            half, shape = drawn.uniform(least, largest) * short, drawn.choice(SHAPES)
            across, along = half * max(1.0, shape), half * max(1.0, 1 / shape)
            x = right * width + drawn.uniform(-0.06, 0.06) * short
            y = down * height + drawn.uniform(-0.06, 0.06) * short
            left, top = int(max(0, x - across)), int(max(0, y - along))
            box = (left, top, int(min(width, x + across)), int(min(height, y + along)))
            turned = photograph.rotate(drawn.uniform(-8, 8), Image.Resampling.BICUBIC, center=(x, y))
            crop = ImageEnhance.Brightness(turned.crop(box)).enhance(drawn.uniform(0.8, 1.2))
            crop = ImageEnhance.Color(crop).enhance(drawn.uniform(0.8, 1.2))
            scale = drawn.uniform(100, 640) / min(crop.size)
            size = round(crop.width * scale), round(crop.height * scale)
            crop = crop.resize(size, Image.Resampling.LANCZOS)
            if drawn.random() < 0.06:
                crop = crop.convert("L")
            ending = drawn.choice(["jpg", "jpg", "JPG", "jpeg", "png"])
            crop.save(folder / name / f"IMG_{number:04d}.{ending}", quality=88)  # of JPEG; PNG has none


def originals() -> dict[str, Path]:
    """The photographs, in the packages that come with them."""
    paths = {}
    for name, (file, *_) in SUBJECTS.items():
        package = importlib.util.find_spec(file.partition("/")[0])
        if package is None or package.origin is None:
            raise SystemExit("pip install scikit-image scikit-learn: the photographs are theirs")
        paths[name] = Path(package.origin).parents[1] / file
    return paths


def draw(folder: Path, run: Path, out: Path) -> None:
    """Write the picture: one row per edit of the first crops of each class."""
    denoise = qa.load(run)
    shape = denoise.shape
    assert shape is not None

    def crop(name: str, number: int = 0) -> torch.Tensor:
        return read_image(next((folder / name).glob(f"IMG_{number:04d}.*")), shape)

    flower, coffee, cat = crop("flower"), crop("coffee"), crop("cat", 1)
    first, second = crop("astronaut", 1), crop("astronaut", 4)
    right = torch.arange(shape[2]).expand(shape[1:]) >= shape[2] // 2
    steps = STEPS
    rows: list[tuple[list[torch.Tensor], qa.Result, list[torch.Tensor]]] = [
        (
            [flower, flower.masked_fill(right, 128)],
            edit.inpaint(denoise, flower, right, seeds=range(7), steps=steps, method="resample", labels="flower"),
            [],
        ),
        ([coffee], edit.image_to_image(denoise, coffee, 0.7, seeds=range(8), steps=steps, labels="coffee"), []),
        ([cat], edit.variations(denoise, cat, seeds=range(8), amount=0.5, steps=steps, labels="cat"), []),
        ([first], edit.interpolate(denoise, first, second, 7, steps=steps, labels="astronaut"), [second]),
    ]
    tiles = [torch.stack([*before, *qa.to_uint8(made.images), *after]) for before, made, after in rows]
    write_png(out, contact_sheet(torch.cat(tiles), COLUMNS, size=64, gap=4))


def main() -> None:
    """Write the crops, or the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("crops", help="write crops of the photographs")
    making.add_argument("folder", type=Path)
    drawing = commands.add_parser("draw", help="write the picture")
    drawing.add_argument("folder", type=Path, help="the crops")
    drawing.add_argument("run", type=Path, help="a run that was trained on them, with labels")
    drawing.add_argument("out", type=Path, metavar="PNG")
    args = parser.parse_args()
    if args.command == "crops":
        crops(args.folder, originals())
    else:
        draw(args.folder, args.run, args.out)


if __name__ == "__main__":
    main()
