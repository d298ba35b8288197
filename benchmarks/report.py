"""Tables and settings that the benchmarks share."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

Row = dict[str, Any]
"""A row of a report, as JSON types."""


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def number(value: float | None, digits: int = 3) -> str:
    """A number with this many significant digits; a dash for None."""
    return "-" if value is None else f"{value:.{digits}g}"


def quartiles(ratios: Sequence[float]) -> Row:
    """The median "ratio" and its quartiles "low" and "high"."""
    low, high = (statistics.quantiles(ratios)[index] for index in (0, 2)) if len(ratios) > 1 else (*ratios, *ratios)
    return {"ratio": statistics.median(ratios), "low": low, "high": high}


def reason(error: Exception) -> str:
    """An error in one short line, for a cell of a table; those of compilers have many lines."""
    text = " ".join(str(error).replace("|", "/").split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."


def now(device: torch.device) -> float:
    """The time in seconds, once the device has computed everything that was submitted to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def environment(device: torch.device | None = None, **versions: str) -> Row:
    """Hardware, threads and versions of packages; `versions` of further packages by name."""
    on_gpu = device is not None and device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        **versions,
    }


def _processor() -> str:
    """The processor's name and its number of cores; the architecture where the system gives no name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} ({os.cpu_count()} cores)"
