"""The sampler benchmark: it runs, peers are driven rightly, and every number is one at the NFE of its column."""

import json
import math
from dataclasses import replace

import pytest
import torch

from benchmarks import samplers as bench
from benchmarks.samplers import _steady
from quarterarc.cli import main
from quarterarc.closed_form import MixtureData
from quarterarc.common.errors import InputError
from quarterarc.denoiser import Evaluator
from quarterarc.samplers import Multistep
from quarterarc.sampling.generation import noise
from quarterarc.sampling.trajectories import sample
from quarterarc.sampling.tuning import tune

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits() -> MixtureData:
    return MixtureData(bench.WORLDS["digits"](), bench.WIDTH)


def choice(peer: str, **settings: object) -> bench.Choice:
    """The peer's first choice with these settings."""
    prediction = settings.pop("prediction", "v_prediction")
    choices = next(each.choices for each in bench.PEERS if each.name == peer)
    wanted = [each for each in choices if each.prediction == prediction]
    return next(each for each in wanted if settings.items() <= each.settings.items())


def bench_samplers(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    line = ["bench", "samplers", *map(str, arguments)]
    monkeypatch.setattr("sys.argv", ["quarterarc", *line])
    return main(line)


def numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [value] if isinstance(value, float) else []


def ratios_are_ours_over_the_best_peer(subject: bench.Row) -> None:
    ours = next(row for row in subject["ours"] if (row["row"], row["grid"]) == bench.CANDIDATE)
    ratios = next(row for row in subject["ratios"]["error"] if row["row"] == "multistep, octave / best peer")
    for place, ratio in enumerate(ratios["values"]):
        best = min(row["cells"][place]["error"]["value"] for row in subject["peers"] if row["cells"][place])
        assert ratio == pytest.approx(ours["cells"][place]["error"] / best, rel=1e-12)


def peers_that_keep_to_one_setting_are_no_better(subject: bench.Row) -> None:
    for row in subject["peers"]:
        found = row["steady"]["error"]
        if found is not None:
            for cell, value in zip(row["cells"], found["values"], strict=True):
                assert value is None or value >= cell["error"]["value"]
    assert any(row["steady"]["error"] is not None for row in subject["peers"])


def test_a_quick_run_fills_every_table(tmp_path, capsys, monkeypatch):
    out, drawn = tmp_path / "bench.json", tmp_path / "bench.svg"
    assert bench_samplers(monkeypatch, "--quick", "--out", out, "--figure", drawn) == 0
    shown = capsys.readouterr().out
    (subject,) = json.loads(out.read_text())["subjects"]
    assert all(map(math.isfinite, numbers(subject)))
    assert {row["row"] for row in subject["peers"]} == {peer.name for peer in bench.PEERS}
    assert {row["row"] for row in subject["ours"]} == {each.label for each in bench.OURS}
    for row in subject["peers"]:
        assert f"| diffusers {row['row']} | best |" in shown
        for nfe, cell in zip(subject["nfe"], row["cells"], strict=True):
            for measure in subject["measures"] if cell else ():
                assert cell[measure]["nfe"] == nfe
                assert math.cos(cell[measure]["start"]) <= bench.PURE_NOISE
    for row in subject["ours"]:
        assert all(cell is None or cell["nfe"] == nfe for nfe, cell in zip(subject["nfe"], row["cells"], strict=True))
    # Heun and the midpoint rule take two evaluations a step, RK4 four: an odd NFE is not theirs
    cells = {(row["row"], row["grid"]): row["cells"] for row in subject["ours"]}
    assert cells["heun", "angle"][0] is None
    assert cells["heun", "angle"][1] is not None
    assert cells["rk4", "angle"] == [None, None]
    assert drawn.read_text().count("<polyline") >= 5
    ratios_are_ours_over_the_best_peer(subject)
    peers_that_keep_to_one_setting_are_no_better(subject)


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "run", None)
    for name in ("--out", "--figure"):
        assert bench_samplers(monkeypatch, name, tmp_path) == 2
        assert "it is a folder; give the file itself" in capsys.readouterr().err


def test_the_one_setting_is_the_best_from_5_to_20_of_those_run_at_most_of_them():
    def row(error: float) -> bench.Row:
        return {"error": error}

    nfes = (4, 5, 10, 50)
    errors = {
        "steady": {4: row(9.0), 5: row(2.0), 10: row(3.0), 50: row(9.0)},
        "best once": {4: row(0.1), 5: row(1.0), 10: row(9.0), 50: row(0.1)},
        "seldom": {5: row(0.1)},
    }
    assert _steady(errors, nfes, "error") == {"settings": "steady", "values": [9.0, 2.0, 3.0, 9.0]}
    del errors["steady"][4]
    assert _steady(errors, nfes, "error") == {"settings": "steady", "values": [None, 2.0, 3.0, 9.0]}
    assert _steady({}, nfes, "error") is None


@pytest.mark.parametrize("peer", bench.PEERS, ids=lambda peer: peer.name)
def test_every_choice_of_a_peer_has_a_label_of_its_own(peer):
    assert len({each.label for each in peer.choices}) == len(peer.choices)


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])
def test_ddim_by_diffusers_is_our_ddim(digits, prediction):
    """Same angles, same images, whatever the scheduler is told: so it is told the right thing at the right angle."""
    start = noise(range(8), digits.shape, dtype=torch.float64)
    chosen = choice("DDIM", timestep_spacing="leading", set_alpha_to_one=True, beta_schedule="linear")
    scheduler = replace(chosen, prediction=prediction).make(10)
    grid = [*bench.angles_of(scheduler), 0.0]
    theirs = bench.solve_by_peer(digits, start, scheduler, prediction)
    ours = sample(digits, start, "ddim", grid=grid).images
    # the scheduler's coefficients are float32
    assert (theirs - ours).square().mean().sqrt() < 1e-6


PEERS_50 = [
    ("DPM-Solver++ 2M", {"use_karras_sigmas": True}),
    ("DPM-Solver++ 3M", {"use_karras_sigmas": True}),
    ("UniPC", {"use_karras_sigmas": True}),
    ("DEIS", {"use_karras_sigmas": True}),
    ("iPNDM", {}),
    ("PNDM", {"steps_offset": 1, "skip_prk_steps": True, "prediction": "epsilon"}),
]


@pytest.mark.parametrize(("peer", "settings"), PEERS_50, ids=[peer for peer, _ in PEERS_50])
def test_peers_come_near_the_true_solution(digits, peer, settings):
    """At 50 NFE, at one good setting; told at a wrong angle, or a wrong estimate, none does."""
    world = bench.World("digits", digits, images=12, seed=0)
    chosen = choice(peer, **settings)
    scheduler = chosen.make(50)
    counted = Evaluator(digits)
    images = bench.solve_by_peer(counted, world.noise, scheduler, chosen.prediction)
    assert counted.nfe == 50
    start = bench.angles_of(scheduler)[0]
    assert world.measure(bench.Solution(images, start, 50))["error"] < 5e-3


@pytest.mark.parametrize("nfe", [4, 5, 10])
def test_every_peer_asks_as_often_as_its_column_says(digits, nfe):
    start = noise(range(2), digits.shape, dtype=torch.float64)
    for peer in bench.PEERS:
        for each in peer.choices[:6]:
            scheduler = each.make(nfe)
            if scheduler is not None:
                counted = Evaluator(digits)
                bench.solve_by_peer(counted, start, scheduler, each.prediction)
                assert counted.nfe == nfe, (each.label, nfe)


def test_a_fine_solution_is_fine(digits):
    """Far finer than the least error in the table, about 1e-5: by four times the steps of another method."""
    world = bench.World("digits", digits, images=12, seed=0)
    start = math.atan(157.0)
    other = sample(digits, world.noise, "rk4", grid=[start * (1 - i / 200) ** 1.5 for i in range(201)]).images
    assert (world.fine(start) - other).square().flatten(1).mean(1).sqrt().median() < 1e-6


def test_tuned_grids_are_a_row_where_there_are_any(digits):
    world = bench.World("digits", digits, images=8, seed=0)
    assert "tuned" not in bench._grids(world, bench.TUNED)
    world.tuned = [tune(digits, 5, images=8, progress=False)]
    assert "tuned" in bench._grids(world, bench.TUNED)
    assert "tuned" not in bench._grids(world, bench.Ours("multistep", {"order": 2}))
    made = bench._solve(world, bench.TUNED, "tuned", 5)
    assert made is not None
    assert made.nfe == 5
    fitted = world.tuned[0]
    again = sample(digits, world.noise, fitted.apply(Multistep()), grid=fitted.angles)
    assert torch.equal(made.images, again.images)
    assert bench._solve(world, bench.TUNED, "tuned", 6) is None


def test_a_trained_run_is_measured_by_the_frechet_distance_and_its_own_flow(tiny_run, tmp_path, monkeypatch):
    out = tmp_path / "bench.json"
    for module in (bench, bench.subjects):
        monkeypatch.setattr(module, "NFE_FINE", 20)
    arguments = ("--quick", "--worlds", "--run", tiny_run, "--count", 8, "--out", out)
    assert bench_samplers(monkeypatch, *arguments) == 0
    (subject,) = json.loads(out.read_text())["subjects"]
    assert subject["name"] == tiny_run.name
    assert list(subject["measures"]) == ["frechet", "error"]
    assert subject["at_100"]["nfe"] == 20
    assert subject["at_100"]["error"] == 0.0  # it is the fine solution
    errors = {(row["row"], row["grid"]): row["cells"][-1]["error"] for row in subject["ours"] if row["cells"][-1]}
    assert 0.0 < errors["multistep", "octave"] < errors["euler", "angle"]
    assert all(map(math.isfinite, numbers(subject)))


def test_bad_input_is_one_line(monkeypatch, capsys):
    assert bench_samplers(monkeypatch, "--worlds", "digit") == 2
    assert "did you mean 'digits'" in capsys.readouterr().err
    for arguments in (["--worlds"], ["--nfe", "3"], ["--images", "0"], ["--seed", "-1"]):
        assert bench_samplers(monkeypatch, *arguments) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_without_diffusers_one_line_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(InputError, match="needs diffusers"):
        bench.run(["digits"])
