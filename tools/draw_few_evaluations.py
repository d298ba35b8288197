"""Draw the images of a flow map and of its teacher at few evaluations, one row per rule, from the same noise.

python tools/draw_few_evaluations.py TEACHER MAP docs/images/few-evaluations.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import quarterarc as qa
from quarterarc.storage.pictures import contact_sheet, write_png

ROWS = (
    ("map, 1", "map", "jump", 1),
    ("map, 2", "map", "jump", 2),
    ("map, 4", "map", "jump", 4),
    ("multistep, 1", "teacher", "multistep", 1),
    ("multistep, 2", "teacher", "multistep", 2),
    ("multistep, 4", "teacher", "multistep", 4),
    ("multistep, 10", "teacher", "multistep", 10),
    ("ddim, 1", "teacher", "ddim", 1),
    ("ddim, 2", "teacher", "ddim", 2),
    ("ddim, 4", "teacher", "ddim", 4),
    ("ddim, 10", "teacher", "ddim", 10),
)
"""Name of the row, whose denoiser, sampler, evaluations per image."""
COLUMNS = 12


def draw(teacher: str, flow_map: str, out: Path) -> None:
    """Write the picture."""
    denoisers = {"teacher": qa.load(teacher), "map": qa.load(flow_map)}
    rows = [
        qa.generate(denoisers[whose], range(COLUMNS), sampler, steps, progress=False)
        for _, whose, sampler, steps in ROWS
    ]
    pixels = qa.to_uint8(torch.cat(rows))
    write_png(out, contact_sheet(pixels, columns=COLUMNS, size=48, smooth=True, names=[name for name, *_ in ROWS]))


if __name__ == "__main__":
    draw(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
