"""Write patches of scikit-learn's two photographs as a folder of PNG files, for the scale `patches16` of experiments.

    python -m tools.make_patches --out patches16 [--size 16] [--count 4000]

The photographs (CC BY, by their authors; `sklearn.datasets.load_sample_images`) alternate, and each patch lies at a
random place (`benchmarks.worlds.patches`). The subfolders are the photographs, for features of a classifier.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.worlds import patches
from quarterarc.data.pixels import to_uint8
from quarterarc.storage.files import make_folder, replace_folder
from quarterarc.storage.pictures import write_png

NAMES = ("china", "flower")
"""The photographs, in the order of scikit-learn."""


def make(out: Path, size: int, count: int) -> None:
    """Write `count` patches of size x size pixels; the folder gets its name once all are there."""
    with replace_folder(out) as beside:
        for name in NAMES:
            make_folder(beside / name)
        for number, patch in enumerate(to_uint8(patches(size, count))):
            write_png(beside / NAMES[number % len(NAMES)] / f"{number:05d}.png", patch)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write patches of two photographs as a folder of PNG files.")
    parser.add_argument("--out", type=Path, required=True, help="the folder, which must not exist")
    parser.add_argument("--size", type=int, default=16, help="side in pixels (default: %(default)s)")
    parser.add_argument("--count", type=int, default=4000, help="number of patches (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.out.exists():
        parser.error(f"{args.out} exists: give the path of a new folder")
    make(args.out, args.size, args.count)
    print(f"{args.count:,} patches in {args.out}")


if __name__ == "__main__":
    main()
