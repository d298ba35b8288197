"""The picture of docs/editing.md: one row per edit, of a three and an eight.

quarterarc train digits --out runs/digits
python tools/draw_editing.py runs/digits docs/images/editing.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import quarterarc as qa
from quarterarc import edit
from quarterarc.storage.pictures import contact_sheet, write_png

THREE, EIGHT = 3, 8
"""The numbers of the two digits among those that come with the package."""
COLUMNS = 9


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", metavar="RUN", help="a run of the recipe digits")
    parser.add_argument("out", type=Path, metavar="PNG")
    parser.add_argument(
        "--inputs", type=Path, metavar="FOLDER", help="also write three.png, eight.png and right.png there"
    )
    args = parser.parse_args()
    denoise = qa.load(args.run)
    digits = qa.open_data(qa.DataSpec(source="digits", size=8, channels=1), progress=False).batch(range(10)).images
    three, eight, right = digits[THREE], digits[EIGHT], torch.arange(8).expand(8, 8) >= 4
    if args.inputs:
        args.inputs.mkdir(parents=True, exist_ok=True)
        for name, pixels in (("three", three), ("eight", eight), ("right", 255 * right[None].to(torch.uint8))):
            write_png(args.inputs / f"{name}.png", pixels)
    rows = (
        (
            [three, three.masked_fill(right, 128)],
            edit.inpaint(denoise, three, right, seeds=range(7), method="resample"),
        ),
        ([three], edit.image_to_image(denoise, three, 0.6, seeds=range(8))),
        ([three], edit.variations(denoise, three, seeds=range(8), amount=0.3)),
        ([three], edit.interpolate(denoise, three, eight, 7)),
    )
    tiles = [torch.stack([*inputs, *qa.to_uint8(result.images)]) for inputs, result in rows]
    tiles[-1] = torch.cat([tiles[-1], eight[None]])
    write_png(args.out, contact_sheet(torch.cat(tiles), COLUMNS, size=64, gap=4))


if __name__ == "__main__":
    main()
