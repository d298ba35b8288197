"""`python -m benchmarks samplers`: our samplers against diffusers' schedulers; same denoiser, noise and NFE.

On exact worlds (mixtures around scikit-learn's digits, around patches of its two photographs and, with `--data`,
around images of CIFAR-10) the true solution is computable to any accuracy, so that a sampler's error is its distance
from it, both from the sampler's own starting angle. The first table is that of the held-out worlds, whose widths,
images or noise no default was searched on. On a trained network (`--run`) it is the Frechet distance of its images to
the data, and their distance from the network's own fine solution.

A peer's number in a cell is the best over all documented settings of its scheduler listed in `PEERS`, selected by the
measured error itself. Ours are rows of fixed settings. The comparison therefore favours the peers: a user cannot select
settings by an error that only a benchmark can compute. Two conditions limit the selection: a peer starts at (nearly)
pure noise, cos(starting angle) <= 0.05, because its starting state is pure noise; and its NFE is exactly that of the
column. Schedulers receive the velocity, which loses least to their float32 arithmetic near pure noise; PNDM, whose
method depends on the quantity, the noise as well. On a trained network, where a Frechet distance takes many images,
only the two settings per scheduler that come nearest to the fine solution of 16 images are measured, and since the
network's estimates need not be consistent, the nearest one also with the noise and (where the scheduler takes it) the
image.

With `--tune`, `quarterarc.tune` and two tuned peers (`tuned_peers`) are fitted to the same noise of each exact world,
and compared at equal NFE.
"""

from benchmarks.samplers.comparison import run
from benchmarks.samplers.ours import CANDIDATE, NFE_FINE, OURS, TUNED, Ours
from benchmarks.samplers.peers import PEERS, Choice, Peer, angles_of, solve_by_peer
from benchmarks.samplers.subjects import PURE_NOISE, Solution, Trained, World
from benchmarks.samplers.tuned_peers import TunedPeers

__all__ = [
    "CANDIDATE",
    "NFE_FINE",
    "OURS",
    "PEERS",
    "PURE_NOISE",
    "TUNED",
    "Choice",
    "Ours",
    "Peer",
    "Solution",
    "Trained",
    "TunedPeers",
    "World",
    "angles_of",
    "run",
    "solve_by_peer",
]
