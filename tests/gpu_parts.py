"""Stand-ins for benchmarks, which `test_bench_training.py` runs in processes of their own; imports nothing slow."""

import os
import time
from collections.abc import Callable
from typing import Any

RUNNING = "running"  # a file of this name exists while a part takes its turn


def run(
    *,
    kind: str,
    show: Callable[[str], None],
    add: Callable[[dict[str, Any]], object],
    ready: Callable[[], object],
) -> None:
    """Behave as `kind` says."""
    if kind == "fails":
        raise ValueError("no such\nnetwork")
    if kind == "dies":
        os._exit(9)
    ready()
    ready()  # of a second case
    add({"kind": kind})
    show(f"| {kind} |")
    with open(RUNNING, "x"):
        time.sleep(60 if kind == "hangs" else 0.2)
        os.unlink(RUNNING)
