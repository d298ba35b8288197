"""`quarterarc bench evaluation`: the evaluation numbers beside the usual ways to them, in one run.

Frechet distance: from the statistics of two Gaussians whose distance is known in closed form, so that each way shows
its time and its error. Precision and recall: from synthetic features, each measurement in a process of its own, so that
each way shows its time and its peak memory beyond the features. Rounds are interleaved: what else the machine does hits
all ways alike, and the processor time beside the wall clock says how much that is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quarterarc.common.errors import InputError
from quarterarc.storage.files import check_writable, make_folder, write_json

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["add_arguments", "main"]

PARTS = ("frechet", "precision-recall")
OURS = "quarterarc"
MIB = 2**20
INTRINSIC = 64
DEFICIENT = 512

Row = dict[str, Any]
Times = tuple[float, float]
"""Seconds by the wall clock, and of all processors together."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--dimensions", type=int, default=2048, help="of the features (default: 2048)")
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=[10_000, 20_000], help="images a set for precision and recall"
    )
    parser.add_argument("--repeats", type=int, default=3, help="interleaved rounds (default: 3)")
    parser.add_argument("--threads", type=int, help="of every library (default: their own choice)")
    parser.add_argument("--out", type=Path, help="write the table as JSON to this file")


def main(args: argparse.Namespace) -> int:
    """Measure, print the tables, write the JSON; returns 0.

    Raises:
        InputError: on sizes, dimensions, rounds or threads that nothing can be measured with.
    """
    if min(args.dimensions, args.repeats, *args.sizes, args.threads or 1) < 1 or min(args.sizes) < 5:
        raise InputError("dimensions, repeats and threads must be at least 1, and sizes at least 5")
    if args.out is not None:
        check_writable(args.out)
    settings = {name: getattr(args, name) for name in ("parts", "dimensions", "sizes", "repeats", "threads")}
    report: Row = {"settings": settings, "environment": _environment(args.threads)}
    if "frechet" in args.parts:
        report["frechet"] = frechet(args.dimensions, args.repeats)
        print(f"\nFrechet distance of {args.dimensions}-dimensional statistics")
        print(_table(report["frechet"]))
    if "precision-recall" in args.parts:
        report["precision_recall"] = precision_recall(args.sizes, args.dimensions, args.repeats, args.threads)
        print(f"\nPrecision and recall of {args.dimensions}-dimensional features")
        print(_table(report["precision_recall"]))
    if args.out is not None:
        make_folder(args.out.parent)
        write_json(args.out, report)
    return 0


# Frechet distance


def frechet(dimensions: int, repeats: int) -> list[Row]:
    """One row a way: time, error on a pair with a known distance, and distance of a rank-deficient set from itself."""
    import torch

    from quarterarc.evaluation import Statistics

    mean, first, second, exact = _known_pair(dimensions)
    few = torch.randn(DEFICIENT // 2, DEFICIENT, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    deficient = Statistics.of(few).covariance
    zero = torch.zeros(DEFICIENT, dtype=torch.float64)
    ways = _frechet_ways()
    values = {}
    times: dict[str, list[Times]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = _now()
            values[name] = way(mean, first, second)
            times[name].append(_since(start))
    own = {name: abs(way(zero, deficient, deficient)) for name, way in ways.items()}
    rows = [
        {"way": n, **_spread(times[n]), "error": abs(values[n] - exact), "FD(X, X), rank n/2": own[n]} for n in ways
    ]
    return _with_ratio(rows)


def _known_pair(dimensions: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Difference of means, two covariances that do not commute, of condition 1e8, and the distance in closed form.

    A symmetric positive T moves N(0, S) to N(0, T S T) by the shortest way, so the distance is |(T - I) S^{1/2}|^2.
    (Covariances that commute would be too easy: their product is symmetric, and its eigenvalues are found in no time.)
    """
    import torch

    random = torch.Generator().manual_seed(0)
    shape, double = (dimensions, dimensions), torch.float64
    axes, other_axes = (torch.linalg.qr(torch.randn(shape, generator=random, dtype=double)).Q for _ in range(2))
    root = axes * torch.logspace(0.0, -4.0, dimensions, dtype=double)
    move = (other_axes * (0.5 + torch.rand(dimensions, generator=random, dtype=double))) @ other_axes.T
    mean = torch.full((dimensions,), 0.01, dtype=double)
    exact = mean.square().sum() + (move @ root - root).square().sum()
    first, second = (x @ x.T for x in (root, move @ root))
    return mean, (first + first.T) / 2, (second + second.T) / 2, exact.item()


def _frechet_ways() -> dict[str, Callable[[Tensor, Tensor, Tensor], float]]:
    """Each takes the difference of the means and two covariances; the published forms are written out here."""
    import numpy as np
    import torch

    from quarterarc.evaluation import Moments, frechet_distance

    def ours(mean: Tensor, a: Tensor, b: Tensor) -> float:
        return frechet_distance(Moments(mean, a), Moments(torch.zeros_like(mean), b))

    def by_trace(root: Callable[[Tensor, Tensor], float]) -> Callable[[Tensor, Tensor, Tensor], float]:
        return lambda mean, a, b: (mean.square().sum() + a.trace() + b.trace()).item() - 2.0 * root(a, b)

    def eigvalsh(a: Tensor, b: Tensor) -> float:
        factor, failed = torch.linalg.cholesky_ex(a)
        if failed:
            values, vectors = torch.linalg.eigh(a)
            factor = vectors * values.clamp_min(0.0).sqrt()
        return torch.linalg.eigvalsh(factor.T @ b @ factor).clamp_min(0.0).sqrt().sum().item()

    def torch_eigvals(a: Tensor, b: Tensor) -> float:
        return torch.linalg.eigvals(a @ b).sqrt().real.sum().item()

    def numpy_eigvals(a: Tensor, b: Tensor) -> float:
        return float(np.sqrt(np.linalg.eigvals(a.numpy() @ b.numpy()).astype(np.complex128)).real.sum())

    ways = {
        OURS: ours,
        "torch eigvalsh of R S R": by_trace(eigvalsh),
        "torch eigvals of S S": by_trace(torch_eigvals),
        "numpy eigvals of S S": by_trace(numpy_eigvals),
    }
    try:
        from scipy.linalg import sqrtm
    except ImportError:
        print("scipy is not installed: its sqrtm is left out", file=sys.stderr)
        return ways
    return {**ways, "scipy sqrtm of S S": by_trace(lambda a, b: float(sqrtm(a.numpy() @ b.numpy()).real.trace()))}


# precision and recall


def precision_recall(sizes: Sequence[int], dimensions: int, repeats: int, threads: int | None) -> list[Row]:
    """One row a way and size: time, peak memory beyond the features, and the two numbers.

    A way that needs more memory than there is at a size is left out there, and a line says so.
    """
    rows = []
    for size in sizes:
        runs: dict[str, list[Row]] = {name: [] for name in _MANIFOLD_WAYS if _fits(name, size, dimensions)}
        for _ in range(repeats):
            for name in runs:
                runs[name].append(_in_process(name, size, dimensions, threads))
        rows += _with_ratio([_manifold_row(name, size, each) for name, each in runs.items()])
    return rows


def _manifold_row(name: str, size: int, runs: list[Row]) -> Row:
    peaks = [run["peak_mib"] for run in runs if run["peak_mib"] is not None]
    return {
        "way": name,
        "images": size,
        **_spread([run["times"] for run in runs]),
        "peak MiB": statistics.median(peaks) if peaks else None,
        "precision": runs[0]["precision"],
        "recall": runs[0]["recall"],
    }


def _in_process(name: str, size: int, dimensions: int, threads: int | None) -> Row:
    task = json.dumps({"name": name, "size": size, "dimensions": dimensions, "threads": threads})
    command = [sys.executable, "-m", "quarterarc.bench.evaluation", task]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}, out of memory perhaps"]
        raise InputError(f"{name} could not be measured with {size} images: {last[0]}")
    return dict(json.loads(done.stdout))


def measure(name: str, size: int, dimensions: int, threads: int | None) -> Row:
    """One measurement of a way to precision and recall, in this process, which should be a fresh one."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    way = _MANIFOLD_WAYS[name]
    real, fake = _features(size, dimensions, seed=0), _features(size, dimensions, seed=1)
    way(real[:5], fake[:5])  # load what is loaded once
    before, _ = _memory()
    start = _now()
    precision, recall = way(real, fake)
    times = _since(start)
    _, peak = _memory()
    beyond = None if before is None or peak is None else (peak - before) / MIB
    return {"times": times, "peak_mib": beyond, "precision": precision, "recall": recall}


def _features(size: int, dimensions: int, seed: int) -> Tensor:
    """Rectified Gaussian features of few intrinsic dimensions, like a classifier's, a little apart by seed."""
    import torch

    weights = torch.randn(INTRINSIC, dimensions, generator=torch.Generator().manual_seed(0)) / INTRINSIC**0.5
    random = torch.Generator().manual_seed(1000 + seed)
    features = torch.empty(size, dimensions)
    for rows in features.split(256):  # so that making them needs no memory to speak of
        torch.mm(torch.randn(len(rows), INTRINSIC, generator=random), weights, out=rows)
        rows.add_(0.1 * seed).relu_().add_(torch.rand(rows.shape, generator=random), alpha=0.1)
    return features


def _ours(real: Tensor, fake: Tensor) -> tuple[float, float]:
    from quarterarc.evaluation import precision_recall as scores

    return scores(real, fake, k=3)


def _full_matrices(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """torch-fidelity's default: three whole distance matrices, `kthvalue` with the image itself counted."""
    import torch

    def distances(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([torch.cat([torch.cdist(x, y) for y in b.split(10_000)], 1) for x in a.split(10_000)])

    radii_real = distances(real, real).kthvalue(4).values
    radii_fake = distances(fake, fake).kthvalue(4).values
    fake_real = distances(fake, real)
    real_fake = fake_real.T
    precision = (fake_real <= radii_real).any(1).float().mean().item()
    return precision, (real_fake <= radii_fake).any(1).float().mean().item()


def _row_batches(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """torch-fidelity's form that saves memory: rows of the matrices, 10,000 at a time, those between the sets twice."""
    import torch

    def rows(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([torch.cdist(a, y) for y in b.split(10_000)], 1)

    def share(a: Tensor, b: Tensor) -> float:
        radii = torch.cat([rows(x, b).kthvalue(4).values for x in b.split(10_000)])
        return torch.cat([(rows(x, b) <= radii).any(1).float() for x in a.split(10_000)]).mean().item()

    return share(fake, real), share(real, fake)


_MANIFOLD_WAYS: dict[str, Callable[[Tensor, Tensor], tuple[float, float]]] = {
    OURS: _ours,
    "torch-fidelity, whole matrices": _full_matrices,
    "torch-fidelity, row batches": _row_batches,
}


_NEEDS: dict[str, Callable[[int], int]] = {
    "torch-fidelity, whole matrices": lambda size: 16 * size * size,
    "torch-fidelity, row batches": lambda size: 16 * size * min(size, 10_000),
}
"""Bytes at the peak beyond the features: a float32 block, its parts, and what `kthvalue` copies; as measured."""


def _fits(name: str, size: int, dimensions: int) -> bool:
    """Whether there is memory for a way, so that a benchmark brings no machine down."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # the system does not say
        return True
    need = _NEEDS[name](size) + 8 * size * dimensions if name in _NEEDS else 0
    if need > free:
        print(f"{name}, {size} images: left out, it needs {need / 2**30:.0f} GiB", file=sys.stderr)
    return need <= free


def _memory() -> tuple[int | None, int | None]:
    """Resident memory of this process in bytes, now and at its peak; None where the system does not say."""
    try:
        # not getrusage: its peak starts at that of the process that started this one
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
    ours = next(row["seconds"] for row in rows if row["way"] == OURS)
    return [{**row, "times ours": row["seconds"] / ours} for row in rows]


def _environment(threads: int | None) -> Row:
    import platform

    if threads is not None:  # numpy's and scipy's own libraries read these when they are loaded
        os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)))

    import numpy as np
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {**versions, "machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()}


def _table(rows: list[Row]) -> str:
    heads = list(rows[0])
    cells = [heads, *([_cell(row[head]) for head in heads] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
