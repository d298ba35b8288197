"""`python -m benchmarks evaluation`: Frechet distance, precision and recall against the usual implementations.

Frechet distance: from the statistics of two Gaussians whose distance is known in closed form, with the time and the
error of each implementation. Precision and recall: from synthetic features, each measurement in a new process, with the
time and the peak memory beyond the features. Rounds are interleaved, so that other load on the machine affects all
implementations alike; processor time beside wall-clock time shows how much.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from benchmarks.report import Row, environment, markdown, number
from quarterarc.common.errors import InputError, unknown_name
from quarterarc.common.text import counted
from quarterarc.evaluation import MeanCovariance, Statistics, frechet_distance
from quarterarc.evaluation import precision_recall as our_precision_recall

PARTS = ("frechet", "precision-recall")
OURS = "quarterarc"
MIB = 2**20
INTRINSIC = 64
"""Intrinsic dimensions of the synthetic features."""
DEFICIENT = 512
"""Dimensions of the rank-deficient covariance."""
NEIGHBOURS = 3
"""The k of the k-nearest-neighbour balls of precision and recall."""
CLONE = Path(__file__).parents[1]

Times = tuple[float, float]
"""Wall-clock seconds, and processor seconds of all threads."""


def run(
    *,
    parts: Sequence[str],
    dimensions: int,
    sizes: Sequence[int],
    repeats: int,
    show: Callable[[str], None] = print,
) -> Row:
    """Measure, and show the tables.

    Args:
        parts: names in `PARTS`.
        dimensions: dimensions of the features.
        sizes: images per set for precision and recall, at least 5.
        repeats: interleaved rounds.
        show: receives each table.

    Returns:
        "settings", "environment", and the rows of "frechet" and "precision_recall".

    Raises:
        InputError: for an unknown part, or sets that are too small.
    """
    for part in parts:
        if part not in PARTS:
            raise unknown_name("part", part, PARTS)
    if min(sizes) < 5:
        raise InputError(f"precision and recall need sets of at least 5 images, got --sizes {min(sizes)}")
    settings = {"parts": list(parts), "dimensions": dimensions, "sizes": list(sizes), "repeats": repeats}
    report: Row = {"settings": settings, "environment": environment()}
    if "frechet" in parts:
        report["frechet"] = frechet(dimensions, repeats)
        show(f"\nFrechet distance of {dimensions}-dimensional statistics\n\n{_table(report['frechet'])}")
    if "precision-recall" in parts:
        report["precision_recall"] = precision_recall(sizes, dimensions, repeats)
        show(f"\nPrecision and recall of {dimensions}-dimensional features\n\n{_table(report['precision_recall'])}")
    return report


# Frechet distance


def frechet(dimensions: int, repeats: int) -> list[Row]:
    """One row per implementation: time, error, and the distance of a rank-deficient Gaussian from itself."""
    mean, first, second, exact = _known_pair(dimensions)
    samples = torch.randn(DEFICIENT // 2, DEFICIENT, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    deficient = Statistics.of(samples).covariance
    zero = torch.zeros(DEFICIENT, dtype=torch.float64)
    values = {}
    times: dict[str, list[Times]] = {name: [] for name in _FRECHET}
    for _ in range(repeats):
        for name, distance in _FRECHET.items():
            start = _now()
            values[name] = distance(mean, first, second)
            times[name].append(_since(start))
    rows = [
        {
            "implementation": name,
            **_spread(times[name]),
            "error": abs(values[name] - exact),
            "FD(X, X), rank n/2": abs(distance(zero, deficient, deficient)),
        }
        for name, distance in _FRECHET.items()
    ]
    return _with_ratio(rows)


def _known_pair(dimensions: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Difference of means, two covariances that do not commute, of condition 1e8, and the distance in closed form.

    For a symmetric positive T, x -> T x is the optimal transport from N(0, S) to N(0, T S T), so that the squared
    distance is |(T - I) S^{1/2}|^2. (The product of covariances that commute is symmetric, and its eigenvalues are
    found in no time.)
    """
    random = torch.Generator().manual_seed(0)
    shape, double = (dimensions, dimensions), torch.float64
    axes, other_axes = (torch.linalg.qr(torch.randn(shape, generator=random, dtype=double)).Q for _ in range(2))
    root = axes * torch.logspace(0.0, -4.0, dimensions, dtype=double)
    transport = (other_axes * (0.5 + torch.rand(dimensions, generator=random, dtype=double))) @ other_axes.T
    mean = torch.full((dimensions,), 0.01, dtype=double)
    exact = mean.square().sum() + (transport @ root - root).square().sum()
    first, second = (x @ x.T for x in (root, transport @ root))
    return mean, (first + first.T) / 2, (second + second.T) / 2, exact.item()


FrechetDistance = Callable[[Tensor, Tensor, Tensor], float]
"""The distance from the difference of the means and two covariances."""


def _by_trace(trace_root: Callable[[Tensor, Tensor], float]) -> FrechetDistance:
    """The distance by the trace of the square root of the product of the covariances."""
    return lambda mean, a, b: (mean.square().sum() + a.trace() + b.trace()).item() - 2.0 * trace_root(a, b)


def _our_frechet(mean: Tensor, a: Tensor, b: Tensor) -> float:
    return frechet_distance(MeanCovariance(mean, a), MeanCovariance(torch.zeros_like(mean), b))


def _eigvalsh(a: Tensor, b: Tensor) -> float:
    factor, failed = torch.linalg.cholesky_ex(a)
    if failed:
        values, vectors = torch.linalg.eigh(a)
        factor = vectors * values.clamp_min(0.0).sqrt()
    return torch.linalg.eigvalsh(factor.T @ b @ factor).clamp_min(0.0).sqrt().sum().item()


def _torch_eigvals(a: Tensor, b: Tensor) -> float:
    return torch.linalg.eigvals(a @ b).sqrt().real.sum().item()


def _numpy_eigvals(a: Tensor, b: Tensor) -> float:
    return float(np.sqrt(np.linalg.eigvals(a.numpy() @ b.numpy()).astype(np.complex128)).real.sum())


def _scipy_sqrtm(a: Tensor, b: Tensor) -> float:
    return float(sqrtm(a.numpy() @ b.numpy()).real.trace())


_FRECHET: dict[str, FrechetDistance] = {
    OURS: _our_frechet,
    "torch eigvalsh of R S R": _by_trace(_eigvalsh),
    "torch eigvals of S S": _by_trace(_torch_eigvals),
    "numpy eigvals of S S": _by_trace(_numpy_eigvals),
    "scipy sqrtm of S S": _by_trace(_scipy_sqrtm),
}
"""The published forms are written out above."""


# precision and recall


def precision_recall(sizes: Sequence[int], dimensions: int, repeats: int) -> list[Row]:
    """One row per size and implementation: time, peak memory beyond the features, and the two numbers.

    An implementation that needs more memory than is free is left out at that size, with a line on the error stream.
    """
    rows = []
    for size in sizes:
        runs: dict[str, list[Row]] = {name: [] for name in _MANIFOLD if _fits(name, size, dimensions)}
        for _ in range(repeats):
            for name in runs:
                runs[name].append(_in_process(name, size, dimensions))
        rows += _with_ratio([_manifold_row(name, size, measurements) for name, measurements in runs.items()])
    return rows


def _manifold_row(name: str, size: int, runs: list[Row]) -> Row:
    peaks = [run["peak_mib"] for run in runs if run["peak_mib"] is not None]
    return {
        "implementation": name,
        "images": size,
        **_spread([run["times"] for run in runs]),
        "peak MiB": statistics.median(peaks) if peaks else None,
        "precision": runs[0]["precision"],
        "recall": runs[0]["recall"],
    }


def _in_process(name: str, size: int, dimensions: int) -> Row:
    """`measure` in a new process, whose peak of memory is its own."""
    task = json.dumps({"name": name, "size": size, "dimensions": dimensions})
    command = [sys.executable, "-m", "benchmarks.evaluation", task]
    done = subprocess.run(command, cwd=CLONE, capture_output=True, text=True)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}, perhaps out of memory"]
        raise InputError(f"{name} could not be measured with {counted(size, 'image')}: {last[0]}")
    return dict(json.loads(done.stdout))


def measure(name: str, size: int, dimensions: int) -> Row:
    """Measure precision and recall once in this process: "times", "peak_mib", "precision" and "recall"."""
    scores = _MANIFOLD[name]
    real, fake = _features(size, dimensions, seed=0), _features(size, dimensions, seed=1)
    scores(real[:5], fake[:5])  # loads what is loaded once per process
    before, _ = _memory()
    start = _now()
    precision, recall = scores(real, fake)
    times = _since(start)
    _, peak = _memory()
    beyond = None if before is None or peak is None else (peak - before) / MIB
    return {"times": times, "peak_mib": beyond, "precision": precision, "recall": recall}


def _features(size: int, dimensions: int, seed: int) -> Tensor:
    """Rectified Gaussian features of few intrinsic dimensions, like a classifier's; seeds differ a little in mean."""
    weights = torch.randn(INTRINSIC, dimensions, generator=torch.Generator().manual_seed(0)) / INTRINSIC**0.5
    random = torch.Generator().manual_seed(1000 + seed)
    features = torch.empty(size, dimensions)
    for rows in features.split(256):  # in small parts, so that the peak of memory is not reached before the measurement
        torch.mm(torch.randn(len(rows), INTRINSIC, generator=random), weights, out=rows)
        rows.add_(0.1 * seed).relu_().add_(torch.rand(rows.shape, generator=random), alpha=0.1)
    return features


def _ours(real: Tensor, fake: Tensor) -> tuple[float, float]:
    return our_precision_recall(real, fake, k=NEIGHBOURS)


def _full_matrices(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """torch-fidelity's default: three whole distance matrices; `kthvalue` counts the image itself."""

    def distances(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([torch.cat([torch.cdist(x, y) for y in b.split(10_000)], 1) for x in a.split(10_000)])

    radii_real = distances(real, real).kthvalue(NEIGHBOURS + 1).values
    radii_fake = distances(fake, fake).kthvalue(NEIGHBOURS + 1).values
    fake_real = distances(fake, real)
    real_fake = fake_real.T
    precision = (fake_real <= radii_real).any(1).float().mean().item()
    return precision, (real_fake <= radii_fake).any(1).float().mean().item()


def _row_batches(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """torch-fidelity's form that saves memory: rows of the matrices, 10,000 at a time, those between the sets twice."""

    def rows(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([torch.cdist(a, y) for y in b.split(10_000)], 1)

    def share(a: Tensor, b: Tensor) -> float:
        radii = torch.cat([rows(x, b).kthvalue(NEIGHBOURS + 1).values for x in b.split(10_000)])
        return torch.cat([(rows(x, b) <= radii).any(1).float() for x in a.split(10_000)]).mean().item()

    return share(fake, real), share(real, fake)


_MANIFOLD: dict[str, Callable[[Tensor, Tensor], tuple[float, float]]] = {
    OURS: _ours,
    "torch-fidelity, whole matrices": _full_matrices,
    "torch-fidelity, row batches": _row_batches,
}
"""Precision and recall from the features of real and of generated images."""


_NEEDS: dict[str, Callable[[int], int]] = {
    "torch-fidelity, whole matrices": lambda size: 16 * size * size,
    "torch-fidelity, row batches": lambda size: 16 * size * min(size, 10_000),
}
"""Peak bytes beyond the features, as measured: a float32 block, its parts, and the copies that `kthvalue` makes."""


def _fits(name: str, size: int, dimensions: int) -> bool:
    """Whether an implementation fits into the free memory; True where the system does not report it."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return True
    need = _NEEDS[name](size) + 8 * size * dimensions if name in _NEEDS else 0
    if need > free:
        print(f"{name}, {counted(size, 'image')}: left out, it needs {need / 2**30:.0f} GiB", file=sys.stderr)
    return need <= free


def _memory() -> tuple[int | None, int | None]:
    """Resident memory of this process in bytes, now and at its peak; None where the system does not report it."""
    try:
        # not getrusage, whose peak starts at that of the parent process
        lines = Path("/proc/self/status").read_text().splitlines()
        sizes = {
            line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))
        }
        return sizes["VmRSS"], sizes["VmHWM"]
    except (OSError, KeyError):
        return None, None


# times and tables


def _now() -> Times:
    return time.perf_counter(), time.process_time()


def _since(start: Times) -> Times:
    now = _now()
    return now[0] - start[0], now[1] - start[1]


def _spread(times: list[Times]) -> Row:
    wall, cpu = zip(*times, strict=True)
    return {"seconds": statistics.median(wall), "least": min(wall), "most": max(wall), "cpu": statistics.median(cpu)}


def _with_ratio(rows: list[Row]) -> list[Row]:
    ours = next(row["seconds"] for row in rows if row["implementation"] == OURS)
    return [{**row, "times ours": row["seconds"] / ours} for row in rows]


def _table(rows: list[Row]) -> str:
    columns = list(rows[0])
    return markdown([columns, *([_cell(row[column]) for column in columns] for row in rows)])


def _cell(value: object) -> str:
    return number(value, 4) if value is None or isinstance(value, float) else str(value)


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
