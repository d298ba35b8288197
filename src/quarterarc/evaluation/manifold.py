"""Precision, recall, density and coverage, from balls around images (Kynkaanniemi et al. 2019, Eq. 2-3).

The radius of an image's ball is the distance to the k-th nearest other image of its own set; the ball is closed.

    precision   fraction of fake images in the ball of at least one real image
    recall      fraction of real images in the ball of at least one fake image
    density     mean number of real balls per fake image, divided by k                     (Naeem et al. 2020, Eq. 4)
    coverage    fraction of real images whose ball contains at least one fake image        (Naeem et al. 2020, Eq. 5)

Every comparison has the result that squared distances sum((x - y)^2) in float64 would have, so it does not depend on
the block size, and equal rows have distance exactly 0. Most comparisons are cheap: one float32 matrix product per block
of pairs gives |x|^2 + |y|^2 - 2 x.y of the centred features with a proven error bound,

    error <= tolerance (|x|^2 + |y|^2),       tolerance = (D + 32) u       (Higham 2002, section 3.1; u is 2^-24)

and only pairs whose distance may be on either side of a radius are computed in float64. (Exception: if more than 5
further images tie with a radius to 1e-12, the radius may be the next distance.) Peak memory beyond the features: a
float32 copy of them and a few blocks of pairs. Each pair of images is multiplied once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..common.errors import InputError
from .arrays import Features, as_pair

__all__ = [
    "DensityCoverage",
    "ManifoldScores",
    "PrecisionRecall",
    "density_coverage",
    "manifold_scores",
    "precision_recall",
]

_BLOCK = 2048
_SPARE = 5
_NUMBERS = 2**18
"""Numbers per chunk in float64: 2 MiB, which fit in the cache."""
_TINY = 1e-30
"""Larger than the underflow error of a squared distance, if the longest feature vector has a length in [1/2, 1]."""


class PrecisionRecall(NamedTuple):
    """Fractions in [0, 1]: fake images within the real manifold, and real images within the fake manifold."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density, at least 0 and possibly above 1, and coverage in [0, 1]."""

    density: float
    coverage: float


class ManifoldScores(NamedTuple):
    """The four scores of one pass."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real: Features, fake: Features, k: int = 3, block: int = _BLOCK) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019); arguments and errors as for `manifold_scores`."""
    scores = manifold_scores(real, fake, k, block)
    return PrecisionRecall(scores.precision, scores.recall)


def density_coverage(real: Features, fake: Features, k: int = 3, block: int = _BLOCK) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, who take k = 5); arguments and errors as for `manifold_scores`."""
    scores = manifold_scores(real, fake, k, block)
    return DensityCoverage(scores.density, scores.coverage)


@torch.no_grad()
def manifold_scores(real: Features, fake: Features, k: int = 3, block: int = _BLOCK) -> ManifoldScores:
    """Precision, recall, density and coverage from one pass over the pairs of images.

    Args:
        real, fake: features, shapes (N, D) and (M, D).
        k: the neighbour whose distance is a ball's radius; the image itself does not count.
        block: side of the blocks of pairs, in images; it affects time and memory, not the result.

    Raises:
        InputError: for different dimensions, fewer than k + 1 images, or NaN or infinity.
    """
    if k < 1 or block < 1:
        raise InputError(f"k and block must be at least 1, got k = {k} and block = {block}")
    real, fake = as_pair(real, fake, ("real features", "fake features"), fewest=k + 1)
    reals, fakes = _frame(real, fake)
    dtypes = _filters(real.device)
    radii_real, radii_fake = (_squared_radii(points, k, block, dtypes) for points in (reals, fakes))
    fake_in = torch.zeros(len(fake), dtype=torch.bool, device=real.device)
    real_in, covered = (torch.zeros(len(real), dtype=torch.bool, device=real.device) for _ in range(2))
    inside = 0
    for rows in _blocks(len(real), block):
        for columns in _blocks(len(fake), block):
            pair = _Block(reals, rows, fakes, columns)
            in_real, in_fake = pair.inside(radii_real[rows], radii_fake[columns], dtypes)
            covered[rows][in_real[0]] = True
            fake_in[columns][in_real[1]] = True
            real_in[rows][in_fake[0]] = True
            inside += in_real.shape[1]
    return ManifoldScores(_fraction(fake_in), _fraction(real_in), inside / (k * len(fake)), _fraction(covered))


class _Points:
    """Features; a centred, scaled float32 copy for the filter; the squared lengths of its rows in float64."""

    def __init__(self, features: Tensor, centre: Tensor, scale: float) -> None:
        self.features, self.centre, self.scale = features, centre, scale
        self.copy = torch.empty(features.shape, dtype=torch.float32, device=features.device)
        self.norms = torch.empty(len(features), dtype=torch.float64, device=features.device)
        for rows in _blocks(len(features), _chunk(features)):
            centred = self._centred(rows)
            self.copy[rows] = centred
            self.norms[rows] = centred.square_().sum(1)

    def __len__(self) -> int:
        return len(self.features)

    def part(self, rows: slice | Tensor, dtype: torch.dtype) -> Tensor:
        return self.copy[rows] if dtype == torch.float32 else self._centred(rows)

    def tolerance(self, dtype: torch.dtype) -> float:
        """The bound above with a margin of 1%; the 32 covers centring, rounding to dtype, and summation."""
        return 1.01 * (self.features.shape[1] + 32) * torch.finfo(dtype).eps / 2

    def _centred(self, rows: slice | Tensor) -> Tensor:
        return (self.features[rows].double() - self.centre).mul_(
            self.scale
        )  # not in place: double() may return the caller's array


def _frame(real: Tensor, fake: Tensor) -> tuple[_Points, _Points]:
    """Both sets, centred on the midpoint of their means and scaled by a power of 2 to lengths of at most 1."""
    centre = (_mean(real) + _mean(fake)) / 2
    parts = [rows for x in (real, fake) for rows in x.split(_chunk(x))]
    longest = max((rows.double() - centre).square_().sum(1).max().sqrt().item() for rows in parts)
    if not math.isfinite(longest):
        raise InputError("features are so large that their squares overflow float64: divide them by a constant")
    scale = 2.0 ** -math.frexp(longest)[1]
    return _Points(real, centre, scale), _Points(fake, centre, scale)


def _mean(features: Tensor) -> Tensor:
    sums = [rows.double().sum(0) for rows in features.split(_chunk(features))]
    return torch.stack(sums).sum(0) / len(features)


def _chunk(features: Tensor) -> int:
    return max(1, _NUMBERS // features.shape[1])


def _filters(device: torch.device) -> tuple[torch.dtype, ...]:
    """The dtypes of the filter, in order: float32 only if matrix products keep full float32 precision, then float64."""
    try:
        whole = torch.get_float32_matmul_precision() == "highest" and not torch.is_autocast_enabled(device.type)
    except RuntimeError:  # the precision was set per backend and has no single value
        whole = False
    return (torch.float32, torch.float64) if whole else (torch.float64,)


def _blocks(count: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, count)) for start in range(0, count, block)]


def _fraction(mask: Tensor) -> float:
    return int(mask.sum()) / len(mask)


def _lower(a: _Points, rows: slice | Tensor, b: _Points, columns: slice, dtype: torch.dtype) -> Tensor:
    """A lower bound of the scaled squared distances from a[rows] to b[columns]; it is at most `_widths` too low."""
    kept = 1.0 - a.tolerance(dtype)
    lower = torch.addmm(
        (kept * b.norms[columns] - _TINY).to(dtype), a.part(rows, dtype), b.part(columns, dtype).T, alpha=-2
    )
    return lower.add_((kept * a.norms[rows]).to(dtype)[:, None])


def _widths(norms_a: Tensor, norms_b: Tensor, tolerance: float) -> Tensor:
    return 2.0 * tolerance * (norms_a + norms_b) + 2.0 * _TINY


def _squared_distances(a: Tensor, rows: Tensor, b: Tensor, columns: Tensor) -> Tensor:
    """sum((a[row] - b[column])^2) per pair in float64, shape (pairs,).

    Chunks have a constant size, padded with other pairs, so that equal pairs give equal bits on any device.
    """
    count, chunk = len(rows), _chunk(a)
    rows, columns = (pad(index, (0, -count % chunk)) for index in (rows, columns))
    pairs = zip(rows.split(chunk), columns.split(chunk), strict=True)
    distances = [(a[i].double() - b[j].double()).square_().sum(1) for i, j in pairs] if count else []
    return torch.cat([*distances, torch.empty(0, dtype=torch.float64, device=a.device)])[:count]


class _Nearest:
    """The nearest candidates of each row so far: the smallest lower bounds, and the numbers of their images."""

    def __init__(self, count: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.lower = torch.full((count, width), math.inf, dtype=dtype, device=device)
        self.index = torch.zeros((count, width), dtype=torch.int64, device=device)

    def offer(self, rows: slice, lower: Tensor, columns: slice) -> None:
        """Add candidates for `rows`: lower bounds, shape (rows, columns), infinite for the image itself."""
        width = self.lower.shape[1]
        values, places = lower.topk(min(width, lower.shape[1]), dim=1, largest=False, sorted=False)
        values = torch.cat([self.lower[rows], values], 1)
        places = torch.cat([self.index[rows], places + columns.start], 1)
        self.lower[rows], best = values.topk(width, dim=1, largest=False, sorted=False)
        self.index[rows] = places.gather(1, best)


def _squared_radii(points: _Points, k: int, block: int, dtypes: tuple[torch.dtype, ...]) -> Tensor:
    """The squared distance of each image to its k-th nearest other image, float64, shape (N,).

    Rows with more near-ties than candidates, which float32 cannot order, are searched again in float64.
    """
    everyone = torch.arange(len(points), device=points.features.device)
    squared, settled = _kth(points, everyone, _neighbours(points, k + _SPARE, block, dtypes[0]), k, dtypes[0])
    for dtype in dtypes[1:]:
        for rows in everyone[~settled].split(block):
            squared[rows] = _kth(points, rows, _neighbours_of(points, rows, k + _SPARE, block, dtype), k, dtype)[0]
    return squared


def _neighbours(points: _Points, width: int, block: int, dtype: torch.dtype) -> _Nearest:
    """Candidates of every image; a block of pairs is used for its rows and, transposed, for its columns."""
    nearest = _Nearest(len(points), width, dtype, points.features.device)
    blocks = _blocks(len(points), block)
    for i, rows in enumerate(blocks):
        for columns in blocks[i:]:
            lower = _lower(points, rows, points, columns, dtype)
            if rows == columns:
                lower.fill_diagonal_(math.inf)
            else:
                nearest.offer(columns, lower.T, rows)
            nearest.offer(rows, lower, columns)
    return nearest


def _neighbours_of(points: _Points, rows: Tensor, width: int, block: int, dtype: torch.dtype) -> _Nearest:
    nearest = _Nearest(len(rows), width, dtype, rows.device)
    for columns in _blocks(len(points), block):
        lower = _lower(points, rows, points, columns, dtype)
        own = ((rows >= columns.start) & (rows < columns.stop)).nonzero()[:, 0]
        lower[own, rows[own] - columns.start] = math.inf
        nearest.offer(slice(0, len(rows)), lower, columns)
    return nearest


def _kth(points: _Points, rows: Tensor, nearest: _Nearest, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The k-th smallest squared distance per row among its candidates, and whether no other image can be nearer."""
    low, norms = nearest.lower.double(), points.norms
    high = low + _widths(norms[rows, None], norms[nearest.index], points.tolerance(dtype))
    nearer = high < low.kthvalue(k, dim=1, keepdim=True).values
    unsure = ~nearer & (low <= high.kthvalue(k, dim=1, keepdim=True).values)
    row, place = unsure.nonzero(as_tuple=True)
    squared = torch.full_like(low, math.inf).masked_fill_(nearer, -math.inf)
    squared[row, place] = _squared_distances(points.features, rows[row], points.features, nearest.index[row, place])
    kth = squared.kthvalue(k, dim=1).values
    return kth, kth * points.scale**2 <= low.amax(1)


class _Block:
    """A block of pairs of real and fake images."""

    def __init__(self, a: _Points, rows: slice, b: _Points, columns: slice) -> None:
        self.a, self.rows, self.b, self.columns = a, rows, b, columns

    def inside(self, radii_a: Tensor, radii_b: Tensor, dtypes: tuple[torch.dtype, ...]) -> Iterator[Tensor]:
        """The pairs (2, n) within the ball of the row's image, then those within the ball of the column's image.

        If float32 leaves many pairs undecided, the filter is repeated in float64 before distances are computed.
        """
        for dtype in dtypes:
            lower = _lower(self.a, self.rows, self.b, self.columns, dtype)
            sorted_pairs = self._sort(lower, radii_a[:, None], dtype), self._sort(lower, radii_b[None], dtype)
            if sum(open_pairs.shape[1] for _, open_pairs in sorted_pairs) <= lower.numel() // 256:
                break
        for (sure, open_pairs), radii, side in zip(sorted_pairs, (radii_a, radii_b), (0, 1), strict=True):
            yield torch.cat([sure, open_pairs[:, self._measure(open_pairs) <= radii[open_pairs[side]]]], 1)

    def _sort(self, lower: Tensor, radii: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The pairs that are certainly within the radii (which broadcast over the block), and the undecided pairs."""
        limits = radii * self.a.scale**2
        rounded_up = torch.nextafter(limits.to(dtype), torch.full_like(limits, math.inf, dtype=dtype))
        i, j = (lower <= rounded_up).nonzero(as_tuple=True)
        norms_a, norms_b = self.a.norms[self.rows], self.b.norms[self.columns]
        high = lower[i, j].double() + _widths(norms_a[i], norms_b[j], self.a.tolerance(dtype))
        sure = high <= limits.expand(lower.shape)[i, j]
        pairs = torch.stack([i, j])
        return pairs[:, sure], pairs[:, ~sure]

    def _measure(self, pairs: Tensor) -> Tensor:
        a, b = self.a.features[self.rows], self.b.features[self.columns]
        return _squared_distances(a, pairs[0], b, pairs[1])
