"""The sampler benchmark: peers are driven correctly, and every number has exactly the NFE of its column."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import quarterarc as qa
from benchmarks import samplers as bench
from benchmarks.__main__ import main
from benchmarks.report import Row
from benchmarks.samplers import comparison, subjects, tables
from benchmarks.worlds import HELD_OUT_SEED, WORLDS, mixture
from quarterarc.closed_form import MixtureData
from quarterarc.samplers import Multistep
from quarterarc.sampling.tuning import FIRST_SEED
from quarterarc.wrappers import Evaluator


@pytest.fixture(scope="module")
def digits() -> MixtureData:
    return mixture("digits")


def choice(peer: str, prediction: str = "v_prediction", **settings: object) -> bench.Choice:
    """The peer's first choice with this prediction and these settings."""
    choices = next(row.choices for row in bench.PEERS if row.name == peer)
    return next(
        choice
        for choice in choices
        if choice.prediction == prediction and settings.items() <= dict(choice.settings).items()
    )


def run(*arguments: object) -> int:
    return main(["samplers", *map(str, arguments)])


def numbers(value: object) -> list[float]:
    """All floating-point numbers in a report."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, float) else []


def ratios_are_ours_over_the_best_peer(subject: Row) -> None:
    ours = next(row for row in subject["ours"] if (row["row"], row["grid"]) == bench.CANDIDATE)
    ratios = next(row for row in subject["ratios"]["error"] if row["row"] == "multistep, octave / best peer")
    for column, ratio in enumerate(ratios["values"]):
        best = min(row["cells"][column]["error"]["value"] for row in subject["peers"] if row["cells"][column])
        assert ratio == pytest.approx(ours["cells"][column]["error"] / best, rel=1e-12)


def one_setting_per_peer_is_no_better_than_the_best_per_cell(subject: Row) -> None:
    steady = [(row["cells"], row["steady"]["error"]) for row in subject["peers"] if row["steady"]["error"]]
    assert steady
    for cells, setting in steady:
        for cell, value in zip(cells, setting["values"], strict=True):
            assert value is None or value >= cell["error"]["value"]


def test_a_quick_run_fills_every_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, figure = tmp_path / "bench.json", tmp_path / "bench.svg"
    assert run("--quick", "--out", out, "--figure", figure) == 0
    printed = capsys.readouterr().out
    (subject,) = json.loads(out.read_text())["subjects"]
    assert all(map(math.isfinite, numbers(subject)))
    assert {row["row"] for row in subject["peers"]} == {peer.name for peer in bench.PEERS}
    assert {row["row"] for row in subject["ours"]} == {ours.label for ours in bench.OURS}
    for row in subject["peers"]:
        assert f"| diffusers {row['row']} | best |" in printed
        for nfe, cell in zip(subject["nfe"], row["cells"], strict=True):
            for measure in subject["measures"] if cell else ():
                assert cell[measure]["nfe"] == nfe
                assert math.cos(cell[measure]["start"]) <= bench.PURE_NOISE
    for row in subject["ours"]:
        assert all(cell is None or cell["nfe"] == nfe for nfe, cell in zip(subject["nfe"], row["cells"], strict=True))
    # Heun and the midpoint rule take two evaluations per step, RK4 four: 5 NFE are not a multiple
    cells = {(row["row"], row["grid"]): row["cells"] for row in subject["ours"]}
    assert cells["heun", "angle"][0] is None
    assert cells["heun", "angle"][1] is not None
    assert cells["rk4", "angle"] == [None, None]
    assert figure.read_text().count("<polyline") >= 5
    ratios_are_ours_over_the_best_peer(subject)
    one_setting_per_peer_is_no_better_than_the_best_per_cell(subject)


def test_the_held_out_worlds_are_the_first_table_and_those_of_the_search_have_their_own() -> None:
    def subject(name: str, ratio: float, **more: object) -> Row:
        rows = [{"row": f"multistep, octave / {peer}", "values": [ratio]} for peer in ("best peer", "another")]
        return {"name": name, "nfe": [5], "ratios": {"error": rows}, **more}

    subjects = [subject("digits", 0.2, held_out=False), subject("digits-0.3", 0.4, held_out=True), subject("run", 0.6)]
    lines = [line for line in tables.headline(subjects).splitlines() if line.startswith(("##", "| "))]
    assert lines == [
        *("## Held-out worlds", "|  |  | 5 NFE |", "| digits-0.3 | multistep, octave / best peer | 0.4 |"),
        *("## Worlds of the search", "|  |  | 5 NFE |", "| digits | multistep, octave / best peer | 0.2 |"),
        *("## Trained networks", "|  |  | 5 NFE |", "| run | multistep, octave / best peer | 0.6 |"),
    ]


def test_held_out_worlds_have_the_noise_of_no_search(digits: MixtureData) -> None:
    searched, held_out = (bench.World(name, digits, WORLDS[name], 3) for name in ("digits", "digits-0.3"))
    assert torch.equal(searched.noise[:1], qa.noise([3], digits.shape, dtype=torch.float64))
    assert torch.equal(held_out.noise[:1], qa.noise([HELD_OUT_SEED + 3], digits.shape, dtype=torch.float64))
    assert 48 <= HELD_OUT_SEED <= FIRST_SEED - 1000  # between the noise of the searches and that of tuning
    for setting in WORLDS.values():
        assert setting.held_out == (setting.width != 0.15)


def test_without_data_the_worlds_of_cifar10_are_left_out_with_a_line() -> None:
    lines: list[str] = []
    names = comparison._worlds(None, None, lines.append)
    assert names == [name for name in WORLDS if "cifar" not in name]
    (line,) = lines
    assert "cifar16-0.06, cifar16-0.3, cifar32-0.06, cifar32-0.3" in line
    assert comparison._worlds(None, Path("cifar10.parquet"), lines.append) == list(WORLDS)
    assert len(lines) == 1


def test_unwritable_files_are_an_error_before_the_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "_measured", None)
    for option in ("--out", "--figure"):
        assert run(option, tmp_path) == 2
        assert str(tmp_path) in capsys.readouterr().err


def test_the_one_setting_has_the_smallest_mean_from_5_to_20_of_those_with_the_most_columns() -> None:
    def row(error: float) -> Row:
        return {"error": error}

    nfes = (4, 5, 10, 50)
    errors = {
        "steady": {4: row(9.0), 5: row(2.0), 10: row(3.0), 50: row(9.0)},
        "best once": {4: row(0.1), 5: row(1.0), 10: row(9.0), 50: row(0.1)},
        "seldom": {5: row(0.1)},
    }
    assert comparison._steady(errors, nfes, "error") == {"settings": "steady", "values": [9.0, 2.0, 3.0, 9.0]}
    del errors["steady"][4]
    assert comparison._steady(errors, nfes, "error") == {"settings": "steady", "values": [None, 2.0, 3.0, 9.0]}
    assert comparison._steady({}, nfes, "error") is None


@pytest.mark.parametrize("peer", bench.PEERS, ids=lambda peer: peer.name)
def test_every_choice_of_a_peer_has_its_own_label(peer: bench.Peer) -> None:
    assert len({choice.label for choice in peer.choices}) == len(peer.choices)


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])
def test_ddim_by_diffusers_equals_ddim(digits: MixtureData, prediction: str) -> None:
    """Equal angles and equal images, so that the scheduler receives the right quantity at the right angle."""
    noise = qa.noise(range(8), digits.shape, dtype=torch.float64)
    setting = choice("DDIM", timestep_spacing="leading", set_alpha_to_one=True, beta_schedule="linear")
    scheduler = replace(setting, prediction=prediction).make(10)
    grid = [*bench.angles_of(scheduler), 0.0]
    theirs = bench.solve_by_peer(digits, noise, scheduler, prediction)
    ours = qa.sample(digits, noise, "ddim", grid=grid).images
    # the scheduler's coefficients are float32
    assert (theirs - ours).square().mean().sqrt() < 1e-6


PEERS_50 = [
    choice("DPM-Solver++ 2M", use_karras_sigmas=True),
    choice("DPM-Solver++ 3M", use_karras_sigmas=True),
    choice("UniPC", use_karras_sigmas=True),
    choice("DEIS", use_karras_sigmas=True),
    choice("iPNDM"),
    choice("PNDM", "epsilon", steps_offset=1, skip_prk_steps=True),
]


@pytest.mark.parametrize("setting", PEERS_50, ids=lambda setting: f"{setting.scheduler} {setting.label}")
def test_peers_converge_to_the_true_solution(digits: MixtureData, setting: bench.Choice) -> None:
    """At 50 NFE, with one good setting; with a wrong angle or a wrong estimate none of them does."""
    world = bench.World("digits", digits, WORLDS["digits"]._replace(images=12))
    scheduler = setting.make(50)
    evaluator = Evaluator(digits)
    images = bench.solve_by_peer(evaluator, world.noise, scheduler, setting.prediction)
    assert evaluator.nfe == 50
    start = bench.angles_of(scheduler)[0]
    assert world.measure(bench.Solution(images, start, 50))["error"] < 5e-3


@pytest.mark.parametrize("nfe", [4, 5, 10])
def test_every_peer_evaluates_as_often_as_its_column_claims(digits: MixtureData, nfe: int) -> None:
    noise = qa.noise(range(2), digits.shape, dtype=torch.float64)
    for peer in bench.PEERS:
        for setting in peer.choices[:6]:
            scheduler = setting.make(nfe)
            if scheduler is not None:
                evaluator = Evaluator(digits)
                bench.solve_by_peer(evaluator, noise, scheduler, setting.prediction)
                assert evaluator.nfe == nfe, (setting.label, nfe)


def test_the_fine_solution_agrees_with_another_method(digits: MixtureData) -> None:
    """To far less than the smallest error in the table, about 1e-5."""
    world = bench.World("digits", digits, WORLDS["digits"]._replace(images=12))
    start = math.atan(157.0)
    rk4 = qa.sample(digits, world.noise, "rk4", grid=[start * (1 - i / 200) ** 1.5 for i in range(201)]).images
    assert (world.fine(start) - rk4).square().flatten(1).mean(1).sqrt().median() < 1e-6


def test_a_tuned_grid_is_a_row_of_its_own_sampler(digits: MixtureData) -> None:
    world = bench.World("digits", digits, WORLDS["digits"]._replace(images=8))
    assert "tuned" not in comparison._grids(world, bench.TUNED)
    world.tuned = [qa.tune(digits, 5, images=8, progress=False)]
    assert "tuned" in comparison._grids(world, bench.TUNED)
    assert "tuned" not in comparison._grids(world, bench.Ours("multistep", {"order": 2}))
    solution = comparison._solve(world, bench.TUNED, "tuned", 5)
    assert solution is not None
    assert solution.nfe == 5
    tuned = world.tuned[0]
    expected = qa.sample(digits, world.noise, tuned.apply(Multistep()), grid=tuned.angles)
    assert torch.equal(solution.images, expected.images)
    assert comparison._solve(world, bench.TUNED, "tuned", 6) is None


def test_tuned_peers_are_rows_up_to_the_largest_tuned_nfe(digits: MixtureData) -> None:
    small = MixtureData(digits.means[:30], 0.3)
    world = bench.World("digits", small, WORLDS["digits"]._replace(images=8, tuned_on=8, largest_tuned=4))
    noise = qa.noise(range(50, 58), small.shape, dtype=torch.float64)
    world.peers = bench.TunedPeers.of(small, noise)
    rows = comparison._tuned_peers(world, (4, 6), lambda cell: None)
    assert [row["row"] for row in rows] == ["GITS", "AMED"]
    for row in rows:
        at_4, at_6 = row["cells"]
        assert at_6 is None
        settings = dict(world.solutions_of_tuned(row["row"], 4))
        errors = {label: world.measure(solution)["error"] for label, solution in settings.items()}
        assert at_4["error"]["value"] == min(errors.values())
        assert at_4["tried"] == len(errors)
    ours = [{"row": "multistep", "grid": "octave", "cells": [{"error": 1e-3}, {"error": 1e-3}]}]
    ratio = comparison._ratios(ours, rows, rows, [bench.CANDIDATE], "error")[-1]
    assert ratio["row"] == "multistep, octave / best tuned peer"
    assert ratio["values"] == [1e-3 / min(row["cells"][0]["error"]["value"] for row in rows), None]


def test_a_trained_run_is_measured_by_the_frechet_distance_and_its_own_flow(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bench.json"
    for module in (comparison, subjects):
        monkeypatch.setattr(module, "NFE_FINE", 20)
    assert run("--quick", "--run", tiny_run, "--count", 8, "--out", out) == 0
    (subject,) = json.loads(out.read_text())["subjects"]
    assert subject["name"] == tiny_run.name
    assert list(subject["measures"]) == ["frechet", "error"]
    assert subject["at_100"]["nfe"] == 20
    assert subject["at_100"]["error"] == 0.0  # it is the fine solution itself
    errors = {(row["row"], row["grid"]): row["cells"][-1]["error"] for row in subject["ours"] if row["cells"][-1]}
    assert 0.0 < errors["multistep", "octave"] < errors["euler", "angle"]
    assert all(map(math.isfinite, numbers(subject)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--worlds", "digit"], "did you mean 'digits'"),
        (["--worlds", ""], "nothing to measure on"),
        (["--worlds", "cifar16-0.06"], "give their parquet file with --data"),
        (["--nfe", "3"], "give 4 or more"),
        (["--seed", "-1"], "whole number from 0"),
    ],
)
def test_unusable_arguments_are_a_one_line_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
