"""The table of docs/labels.md: guidance on runs of labelled digits.

quarterarc train digits --out runs/labels-0 data.labels=true training.seed=0
python tools/measure_guidance.py runs/labels-0 --count 1000

Of several runs the rows have the mean and the standard deviation.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import quarterarc as qa
from quarterarc.evaluation.extractors.digits import load_digits_net
from quarterarc.storage.pictures import contact_sheet, write_png

SCALES = (None, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
"""Guidance; None for samples without labels."""
METRICS = ("fid", "precision", "recall")


def measure(run: str, scale: float | None, count: int, steps: int) -> list[float]:
    """Frechet distance, precision, recall, and the share of images that a classifier gives their label, in percent."""
    labels = None if scale is None else [seed % 10 for seed in range(count)]
    guidance = None if scale in (None, 1.0) else scale
    images = qa.generate(
        qa.load(run), range(count), steps=steps, labels=labels, guidance=guidance, batch_size=250, progress=False
    )
    pixels = qa.to_uint8(images)
    metrics = qa.evaluate(pixels, "digits", METRICS, features="digits", device="cpu", progress=False)["metrics"]
    guessed = load_digits_net()(pixels)["logits"].argmax(1)
    right = sum(guess == seed % 10 for seed, guess in enumerate(guessed.tolist()))
    accuracy = float("nan") if labels is None else 100 * right / count
    return [*(float(metrics[name]) for name in METRICS), accuracy]


def row(name: str, values: Sequence[Sequence[float]]) -> str:
    """A row of the table: mean and standard deviation over the runs."""
    cells = []
    for column, digits in zip(zip(*values, strict=True), (1, 3, 3, 1), strict=True):
        spread = f" ± {stdev(column):.{digits}f}" if len(column) > 1 else ""
        cells.append(f"{mean(column):.{digits}f}{spread}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print a table per number of steps, and write a contact sheet per scale of the first run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--count", type=int, default=2000, help="images per run and scale (default: %(default)s)")
    parser.add_argument("--steps", default="10", help="numbers of steps, such as 5,10 (default: %(default)s)")
    parser.add_argument("--sheets", type=Path, metavar="FOLDER", help="write contact sheets of the first run there")
    args = parser.parse_args()
    for steps in map(int, args.steps.split(",")):
        print(f"{steps} steps\n| guidance | Frechet distance | precision | recall | accuracy, % |")
        print("|---|---:|---:|---:|---:|")
        for scale in SCALES:
            name = "without labels" if scale is None else f"{scale:g}"
            print(row(name, [measure(run, scale, args.count, steps) for run in args.runs]), flush=True)
    if args.sheets is not None:
        args.sheets.mkdir(parents=True, exist_ok=True)
        denoise = qa.load(args.runs[0])
        labels = [label for label in range(10) for _ in range(8)]
        for scale in (1.0, 2.0, 5.0):
            images = qa.generate(denoise, range(80), steps=10, labels=labels, guidance=scale, progress=False)
            rows = [list(range(first, first + 8)) for first in range(0, 80, 8)]
            sheet = contact_sheet(qa.to_uint8(images), size=32, rows=rows, names=[str(label) for label in range(10)])
            write_png(args.sheets / f"guidance-{scale:g}.png", sheet)


if __name__ == "__main__":
    main()
