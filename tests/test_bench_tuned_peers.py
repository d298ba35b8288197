"""The benchmark's tuned peers: their schedules are optimal, their solvers have their order, and each NFE is exact."""

import itertools
import math

import numpy as np
import pytest
import torch

import quarterarc as qa
from benchmarks.samplers import tuned_peers as peers
from benchmarks.worlds import mixture
from quarterarc.closed_form import GaussianData, MixtureData
from quarterarc.wrappers import Evaluator

START = math.atan(peers.LARGEST)


@pytest.fixture(scope="module")
def world() -> MixtureData:
    return MixtureData(mixture("digits").means[:60], 0.15)


@pytest.fixture(scope="module")
def tuned(world: MixtureData) -> peers.TunedPeers:
    return peers.TunedPeers.of(world, qa.noise(range(100, 132), world.shape, dtype=torch.float64))


def error(world: MixtureData, noise: torch.Tensor, images: torch.Tensor) -> float:
    """Median distance to the end of the flow, root mean square per pixel."""
    fine = qa.sample(world, noise, "adaptive", tolerance=1e-7, grid=[START, 0.0]).images
    return float((images - fine).flatten(1).square().mean(1).sqrt().median())


def test_the_fine_trajectory_is_the_flow(world: MixtureData, tuned: peers.TunedPeers) -> None:
    noise = qa.noise(range(100, 132), world.shape, dtype=torch.float64)
    assert error(world, noise, tuned.fine.points[-1]) < 5e-5  # of 60 steps; the peers have 1e-3 and more
    assert torch.allclose(tuned.fine.points[0], peers.first_point(noise))


@pytest.mark.parametrize("factor", [1.0, 1.15])
def test_no_path_is_cheaper_than_that_of_the_dynamic_programme(factor: float) -> None:
    costs = np.random.default_rng(0).random((8, 8))
    costs[np.tril_indices(8)] = math.inf

    def cost(path: tuple[int, ...]) -> float:
        return sum(factor**k * costs[i, j] for k, (i, j) in enumerate(itertools.pairwise(path)))

    for steps in (1, 2, 4, 7):
        every = [(0, *inner, 7) for inner in itertools.combinations(range(1, 7), steps - 1)]
        assert tuple(peers.cheapest(costs, steps, factor)) == min(every, key=cost)


def test_the_cost_of_a_step_is_the_distance_of_its_euler_step(world: MixtureData, tuned: peers.TunedPeers) -> None:
    fine = tuned.fine
    x, sigma, end = fine.points[5], float(fine.sigmas[5]), float(fine.sigmas[9])
    angle = math.atan(sigma)
    # DDIM's step is Euler's on the exploding path
    stepped = qa.sample(world, x * math.cos(angle), "ddim", grid=[angle, math.atan(end)]).images
    missed = stepped / math.cos(math.atan(end)) - fine.points[9]
    assert tuned.costs[5, 9] == pytest.approx(float(missed.flatten(1).norm(dim=1).mean()), rel=1e-4)
    assert np.isinf(tuned.costs[9, 5])


def test_the_schedule_is_better_than_its_starting_grid(world: MixtureData, tuned: peers.TunedPeers) -> None:
    """On other noise, for the Euler steps by which it is chosen."""
    noise = qa.noise(range(32), world.shape, dtype=torch.float64)
    sigmas = [float(sigma) for sigma in tuned.schedule(6, 1.0)]
    chosen, rho = (peers.ipndm(world, noise, list(grid), 1) for grid in (sigmas, peers.rho_sigmas(6)))
    assert error(world, noise, chosen) < 0.8 * error(world, noise, rho)


@pytest.mark.parametrize(("solver", "order"), [(1, 1), (2, 2), (3, 3), (4, 4), (None, 2)])
def test_the_solvers_converge_with_their_order(solver: int | None, order: int) -> None:
    """On equal steps, for which iPNDM's coefficients hold, from sigma 1; the target is known in closed form."""
    data = GaussianData(torch.full((1, 2, 2), 0.3, dtype=torch.float64), 0.5)
    noise = qa.noise(range(4), (1, 2, 2), dtype=torch.float64)
    target = data.flow(noise, math.pi / 4, math.atan(0.5)) * math.sqrt(1.25)
    errors = []
    for steps in (32, 64):
        # equal steps in log sigma for DPM-Solver++
        sigmas = [float(s) for s in (np.geomspace if solver is None else np.linspace)(1.0, 0.5, steps + 1)]
        x = peers.dpm_solver(data, noise, sigmas) if solver is None else peers.ipndm(data, noise, sigmas, solver)
        errors.append(float((x - target).abs().max()))
    # the rising start of orders 3 and 4 costs one local error of order 2, which is 1 / steps^2 of a step
    assert math.log2(errors[0] / errors[1]) == pytest.approx(min(order, 2), abs=0.2)


def test_learned_steps_are_better_than_the_midpoint_rule(world: MixtureData, tuned: peers.TunedPeers) -> None:
    """A time in the geometric middle and a scale of 1 are among the candidates."""
    noise, sigmas = qa.noise(range(32), world.shape, dtype=torch.float64), peers.rho_sigmas(3)
    steps = peers.learn(tuned.fine, sigmas, free=False)
    middle = [
        peers.Learned(step.start, step.end, math.sqrt(step.start * max(step.end, peers.SMALLEST)), 1.0)
        for step in steps
    ]
    assert error(world, noise, peers.amed(world, noise, steps)) < error(world, noise, peers.amed(world, noise, middle))
    assert all(step.end < step.between < step.start for step in steps)


def test_a_scale_is_that_of_least_squares(tuned: peers.TunedPeers) -> None:
    step = peers.learn(tuned.fine, np.array([peers.LARGEST, 2.0, 0.0]), free=True)[0]
    evaluate, x = peers.Exploding(tuned.fine.denoise), tuned.fine.points[0]
    target = tuned.fine.at(np.array([peers.LARGEST, 2.0, 0.0]))[1]
    residual = step.apply(evaluate, x) - target
    direction = step.direction(evaluate, x)
    cosine = float((residual * direction).sum() / residual.norm() / direction.norm())
    assert abs(cosine) < 1e-10  # orthogonal up to rounding
    assert step.free


@pytest.mark.parametrize("nfe", [5, 6])
def test_each_setting_takes_exactly_its_evaluations(world: MixtureData, tuned: peers.TunedPeers, nfe: int) -> None:
    noise = qa.noise(range(4), world.shape, dtype=torch.float64)
    for rows in (tuned.gits, tuned.amed):
        evaluator = Evaluator(world)
        labels = []
        for count, (label, images) in enumerate(rows(evaluator, noise, nfe), 1):
            assert evaluator.nfe == count * nfe, label
            assert bool(images.isfinite().all())
            labels.append(label)
        assert len(set(labels)) == len(labels)
