"""Write src/quarterarc/data/digits.npz from scikit-learn's copy of the handwritten digits (see data/DIGITS.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).parents[1] / "src" / "quarterarc" / "data" / "digits.npz"


def main() -> None:
    """Store the 1,797 images as uint8 (N, 8, 8), the values 0..16 spread over 0..255, with labels 0..9 (N,)."""
    digits = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)
    np.savez_compressed(TARGET, images=images, labels=digits.target.astype(np.uint8))
    print(f"{TARGET}: {len(images)} images, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
