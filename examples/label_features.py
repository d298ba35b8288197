"""Features from the labels of your own images: train a small classifier, then measure Frechet distances with it.

python examples/label_features.py photos.parquet --size 32
"""

import argparse
from pathlib import Path

from quarterarc.data import DataSpec, open_data
from quarterarc.evaluation import evaluate
from quarterarc.evaluation.extractors.classifier import trained_classifier

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", nargs="?", default="digits", help="images with labels (default: %(default)s)")
parser.add_argument("--size", type=int, default=16, help="side of the images in pixels (default: %(default)s)")
parser.add_argument("--steps", type=int, default=20, help="optimiser steps; 4,000 suit CIFAR-10 (default: %(default)s)")
args = parser.parse_args()

spec = DataSpec(source=args.data, size=args.size, channels=1 if args.data == "digits" else 3)
features = trained_classifier(spec, Path("classifiers"), steps=args.steps)  # kept there, trained once
images = open_data(spec, progress=False)
count = images.count or 0
first, second = (images.batch(range(start, count, 2)).images for start in (0, 1))
print(evaluate(first, second, ["fid"], features=features)["metrics"])  # two halves of the same images: near 0
