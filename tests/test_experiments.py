"""Experiments: arms differ only in the stated point, nothing is computed twice, and verdicts follow one rule."""

from __future__ import annotations

import csv
import json
import math
import re
import runpy
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import Distributed
from quarterarc.cli import main
from quarterarc.common.errors import InputError
from quarterarc.denoiser import Denoiser
from quarterarc.evaluation import evaluate
from quarterarc.experiments import EXPERIMENTS, arms, experiment, measures
from quarterarc.experiments.arms import Arm, arm, decisive, distilled
from quarterarc.experiments.cells import Cell, hashed_settings, quality
from quarterarc.experiments.claims import Claim, Comparison, judge, spread
from quarterarc.experiments.flow_maps import few_evaluations
from quarterarc.experiments.lab import Lab, exclusive
from quarterarc.experiments.measures import image_seeds
from quarterarc.experiments.measuring import cell_folder, is_measured, measure
from quarterarc.experiments.plan import jobs_of
from quarterarc.experiments.scales import SCALES, Scale, scale
from quarterarc.experiments.zhang2023.ablation import BOTH, BY_SOLVER, NORMS, OURS, PAPER_ROWS, ROWS, solver_steps
from quarterarc.grids import PUBLISHED, grid
from quarterarc.likelihood.evaluation import LIKELIHOOD_METRICS
from quarterarc.samplers import sampler as named_sampler
from quarterarc.sampling import tuning
from quarterarc.schedules import schedule
from quarterarc.storage.files import make_folder, write_json
from quarterarc.training.distilling import distillation_recipe, recipe_of_map
from quarterarc.training.recipe import Recipe, differences
from quarterarc.training.recipe_text import read_recipe
from quarterarc.training.trainer import Diverged

TINY = {
    "name": "tiny",
    "data": {"source": "digits", "size": 8, "channels": 1, "limit": 100},
    "schedule": {"name": "arc", "steps": 12},
    "network": {"channels": 8, "multipliers": [1], "blocks": 1, "attention": []},
    "optimizer": {"warmup": 2},
    "ema": {"decay": 0.9},
    "training": {"steps": 8, "batch": 4, "log_every": 2, "checkpoint_every": 1, "keep": 1, "sample_count": 1},
}
"""A recipe that trains in a fraction of a second; its images are noise."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of arms and cells, shared by all tests of this module."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny_scale(recipe: Path) -> Scale:
    return scale(str(recipe), images=12)


def run(recipe: Path, cache: Path, out: Path, name: str, *more: str) -> int:
    return main(["experiment", name, "--scale", str(recipe), "--images", "12", "--device", "cpu", "--seeds", "0",
                 "--cache", str(cache), "--out", str(out), *more])  # fmt: skip


# --- the arms ------------------------------------------------------------------------------------------------------


def changed(one: Recipe, other: Recipe) -> set[str]:
    return {name for name, _, _ in differences(one, other)}


@pytest.mark.parametrize("name", SCALES)
def test_arms_of_table_2_differ_only_in_the_fields_that_their_rows_state(name: str) -> None:
    at = scale(name)
    recipes = {row.label: row.arm.recipe(at, 0) for row in PAPER_ROWS}
    samplers = {row.label: row.sampler for row in PAPER_ROWS}
    schedule, both = {"schedule.name"}, {"head", "objective.name"}
    stated = {
        ("DDIM", "DDIM + β*"): schedule,
        ("DDIM", "DDIM + sin"): schedule,
        ("DDIM", "DDIM + both"): both,
        ("DDIM + sin", "DDIM + sin + both"): both,
        ("DDIM + both", "DDIM + sin + both"): schedule,
        ("DDIM + β*", "DDIM + β* + both"): both,
        ("DDIM + both", "DDIM + β* + both"): schedule,
        ("DDIM + sin + both", "ours"): {"objective.name"},
    }
    for (one, other), fields in stated.items():
        heads = {recipes[one].head == "noise", recipes[other].head == "noise"}
        length = {"training.steps"} if at.noise_steps and len(heads) == 2 else set()
        assert changed(recipes[one], recipes[other]) == fields | length, (one, other)
        l2 = [row.arm.in_norm("l2").recipe(at, 0) for row in PAPER_ROWS if row.label in (one, other)]
        assert changed(*l2) == fields | length
        assert {recipe.objective.norm for recipe in l2} == {"l2"}
    names = {label: (r.head, r.schedule.name, r.objective.name) for label, r in recipes.items()}
    assert names == {
        "DDIM": ("noise", "linear", "noise"),
        "DDIM + β*": ("noise", "beta-star", "noise"),
        "DDIM + sin": ("noise", "arc", "noise"),
        "DDIM + both": ("both", "linear", "both"),
        "DDIM + sin + both": ("both", "arc", "both"),
        "DDIM + β* + both": ("both", "beta-star", "both"),
        "ours": ("both", "arc", "both+gradient"),
    }
    assert recipes["ours"].objective.gamma == 1.0
    assert samplers == {**dict.fromkeys(recipes, "ddim"), "ours": "euler"}  # Eq. 6 for all, Eq. 13 for ours


def test_arms_share_network_optimiser_data_and_training_length() -> None:
    at = scale("digits")
    for name in EXPERIMENTS:
        for job in jobs_of(experiment(name).cells(at, (0,))):
            fields = changed(at.recipe, job.arm.recipe(at, 0))
            others = {field for field in fields if field.split(".")[0] not in ("schedule", "head", "objective")}
            if job.arm.teacher is not None:  # the settings of distillation, with network and batch of the teacher
                assert not {name for name in others if name.startswith("network")} | {"training.batch"} & others
                continue
            assert others == ({"training.steps"} if job.arm.share < 1 else set()), job.arm.name
            assert "schedule.steps" not in fields


def test_a_distilled_arm_has_the_recipe_of_a_distillation_and_depends_on_its_teacher(
    tiny_scale: Scale, tmp_path: Path
) -> None:
    lab, one = Lab(tiny_scale, tmp_path, progress=False), distilled(OURS.arm, "teacher.images=8")
    teacher = lab.denoiser(OURS.arm, 0)
    assert isinstance(teacher, Denoiser)
    assert teacher.checkpoint is not None
    own, usual = one.recipe(tiny_scale, 0), distillation_recipe(teacher.checkpoint)
    differing = {name for name in changed(own, usual) if not name.startswith("network.arguments")}  # the defaults
    assert differing == {"name", "teacher.source", "teacher.images"}
    others = (one, distilled(BOTH.arm, "teacher.images=8"), distilled(OURS.arm), distilled(OURS.arm, share=0.5))
    assert len({each.hash(tiny_scale, seed) for each in others for seed in (0, 1)}) == 8
    assert others[3].recipe(tiny_scale, 0).training.steps == round(own.training.steps / 2)
    # each arm is trained where it is needed, and nothing is trained twice
    made = lab.denoiser(one, 0)
    assert isinstance(made, Denoiser)
    assert made.maps
    assert lab.images_left(one, 0) == lab.images_left(OURS.arm, 0) == 0
    assert one.evaluations(tiny_scale, 0) == pytest.approx(0.75 * 8 / 8 + 0.25 * 3)
    assert OURS.arm.evaluations(tiny_scale, 0) == 0.0


def test_the_hash_of_an_arm_depends_on_what_decides_its_weights_only(tiny_scale: Scale) -> None:
    def hash_of(*fields: str, seed: int = 0) -> str:
        return Arm("any", ("head=both", *fields)).hash(tiny_scale, seed)

    assert hash_of() == hash_of("training.log_every=7", "training.keep=5")
    different = [hash_of(), hash_of(seed=1), hash_of("optimizer.learning_rate=0.5"), hash_of("schedule.name=jsd"),
                 hash_of("data.limit=99")]  # fmt: skip
    assert len(set(different)) == len(different)
    assert arm("both").hash(tiny_scale, 0) != arm("both", share=0.5).hash(tiny_scale, 0)


def test_all_arms_sample_from_the_same_noise(tiny_scale: Scale) -> None:
    cells = [row.cell(tiny_scale, 10, seed) for row in ROWS for seed in (0, 1)]
    for seed in (0, 1):
        assert {(c["draw"], c["images"]) for c in cells if c.seed == seed} == {(0, 12)}
    blocks = [image_seeds(seed, 100_000, draw) for seed in (0, 1, 2) for draw in (0, 1, 2)]
    assert len({first for block in blocks for first in (block[0], block[-1])}) == 18  # the blocks of seeds are disjoint


def test_solvers_get_as_many_steps_as_fit_into_the_network_evaluations() -> None:
    at = scale("digits")
    for row in BY_SOLVER:
        per_step = named_sampler(row.sampler).evaluations
        for nfe in at.table_steps:
            steps = row.cell(at, nfe, 0)["steps"]
            assert steps == nfe // per_step
            assert nfe - per_step < steps * per_step <= nfe
    assert solver_steps("rk4", 3) == 1  # at least one step, even if it takes more evaluations


# --- claims --------------------------------------------------------------------------------------------------------


def test_a_verdict_needs_agreement_of_all_seeds_and_two_standard_errors() -> None:
    assert judge([1.0, 1.1, 0.9]) == "held"
    assert judge([-1.0, -1.1, -0.9]) == "not held"
    assert judge([1.0, 1.1, -0.1]) == "undecided"  # a seed disagrees
    assert judge([0.01, 2.0, 0.02]) == "undecided"  # all agree, but the mean is within two standard errors of 0
    assert judge([5.0]) == "undecided"  # one seed has no spread
    assert judge([5.0], exact=True) == "held"
    assert judge([0.0], exact=True) == "not held"
    assert judge([1.0, math.nan]) == "undecided"
    assert judge([]) == "undecided"


def test_a_claim_is_held_if_all_its_comparisons_are_held() -> None:
    good = Comparison("a", [1.0, 1.1], [2.0, 2.1])
    bad = Comparison("b", [2.0, 2.1], [1.0, 1.1])
    unclear = Comparison("c", [1.0, 2.0], [2.0, 1.0])
    more = Comparison("d", [2.0, 2.1], [1.0, 1.1], lower=False)
    assert [comparison.verdict for comparison in (good, bad, unclear, more)] == [
        "held",
        "not held",
        "undecided",
        "held",
    ]
    assert Claim("x", "y", [good, more]).verdict == "held"
    assert Claim("x", "y", [good, unclear]).verdict == "undecided"
    assert Claim("x", "y", [good, unclear, bad]).verdict == "not held"
    assert Claim("x", "y").verdict == "undecided"
    assert "1.05 ± 0.07 against 2.05 ± 0.07" in Claim("x", "y", [good]).evidence


def test_mean_and_standard_deviation_have_the_same_decimal_places() -> None:
    assert spread([9.4, 9.5, 9.6]) == "9.50 ± 0.10"
    assert spread([123.4]) == "123"
    assert spread([0.01234]) == "0.0123"
    assert spread([0.0, 0.0]) == "0.00 ± 0.00"
    assert spread([2e-33]) == "2e-33"


# --- the work ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_trains_measures_and_writes_its_report(
    name: str,
    recipe: Path,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the flow of an untrained network takes a thousand evaluations; it is tested in test_likelihood.py
    monkeypatch.setitem(LIKELIHOOD_METRICS, "flow-bits-per-dim", LIKELIHOOD_METRICS["bits-per-dim"])
    monkeypatch.setattr(measures, "INVERSION_TOLERANCE", 0.1)
    monkeypatch.setattr(few_evaluations, "EVALUATIONS", (1, 2, 10))
    monkeypatch.setattr(tuning, "TRIED", 1)
    monkeypatch.setattr(tuning, "ROUNDS", 1)
    monkeypatch.setattr(arms, "recipe_of_map", lambda *given: read_recipe(recipe_of_map(*given), ["teacher.images=8"]))
    out = tmp_path / name
    assert run(recipe, cache, out, name) == 0
    assert str(out / "report.html") in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["experiment"] == name
    assert results["command"].startswith(f"quarterarc experiment {name} --scale {recipe} --seeds 0 --images 12")
    for cell in results["cells"]:
        if cell["measure"] == "quality" and "unstable" not in cell["values"]:
            settings = cell["settings"]
            per_step = named_sampler(settings["sampler"], **dict(settings["options"])).evaluations
            nfe = cell["values"]["nfe"]
            steps = [settings["steps"]]
            if settings["grid"] in PUBLISHED:  # a noise head on the arc takes a step less: it starts below T
                own = len(grid(settings["grid"], steps[0], schedule=schedule("linear", 12))) - 1
                steps = [own - 1, own]
            # the adaptive solver chooses its number of steps
            assert nfe > per_step if settings["sampler"] == "adaptive" else nfe in [n * per_step for n in steps]
    with (out / "results.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(results["cells"])
    page, text = ((out / name).read_text(encoding="utf-8") for name in ("report.html", "results.md"))
    for claim in results["claims"]:
        assert claim["verdict"] in ("held", "not held", "undecided")
        assert claim["claim"] in text
    assert ("<h2>Claims</h2>" in page) == bool(results["claims"])
    for line in text.splitlines():
        if line.startswith("!["):
            assert (out / line.rpartition("(")[2].rstrip(")")).is_file()  # every figure of the text exists
    assert 'src="figures' not in page  # the page is a single file
    charts = [*(out / "figures").glob("*.svg")]
    assert page.count('class="chart wide"') == page.count('class="chart narrow"') == len(charts)
    assert all(chart.read_text(encoding="utf-8").count("<svg") == 1 for chart in charts)


def test_arms_and_cells_are_shared_and_never_computed_twice(
    recipe: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(recipe, cache, tmp_path / "one", "ablation") == 0

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("computed twice")

    monkeypatch.setattr("quarterarc.experiments.lab.train", fail)
    monkeypatch.setattr("quarterarc.experiments.measures.evaluate", fail)
    assert run(recipe, cache, tmp_path / "two", "ablation") == 0  # another folder, the same arms and cells
    one, two = (json.loads((tmp_path / out / "results.json").read_text())["cells"] for out in ("one", "two"))
    assert one == two
    with pytest.raises(AssertionError, match="computed twice"):  # another seed is another network
        run(recipe, cache, tmp_path / "three", "ablation", "--seeds", "1")


def test_a_changed_recipe_makes_another_arm(tiny_scale: Scale, tmp_path: Path) -> None:
    lab = Lab(tiny_scale, tmp_path, progress=False)
    cell = OURS.cell(tiny_scale, 10, 0)
    measure(lab, cell)
    changed_recipe = tiny_scale.recipe.model_copy(
        update={"ema": tiny_scale.recipe.ema.model_copy(update={"decay": 0.5})}
    )
    other = Lab(Scale("tiny", changed_recipe, "digits", images=12), tmp_path, progress=False)
    assert not is_measured(other, OURS.cell(other.scale, 10, 0))
    assert OURS.arm.steps_done(other.scale, 0, tmp_path) == 0
    assert is_measured(lab, cell)


def test_an_interrupted_run_continues_with_the_next_cell(
    tiny_scale: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quarterarc.experiments.run import run_experiment

    whole = evaluate
    calls = 0

    def killed(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return whole(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(measures, "evaluate", killed)
    training, out = experiment("training-speed"), tmp_path / "out"
    lab = Lab(tiny_scale, tmp_path / "cache", progress=False)
    cells = len({cell_folder(lab, cell) for cell in training.cells(tiny_scale, (0,))})
    with pytest.raises(KeyboardInterrupt):
        run_experiment(training, lab, (0,), out)
    assert not (out / "results.json").exists()  # no partial results
    assert {path.suffix for path in (tmp_path / "cache" / "cells").glob(".*")} == {".lock"}  # no unfinished folders
    run_experiment(training, Lab(tiny_scale, tmp_path / "cache", progress=False), (0,), out)
    assert calls == cells + 1  # only the interrupted cell was measured twice
    assert json.loads((out / "results.json").read_text())["experiment"] == "training-speed"


def test_results_do_not_depend_on_the_number_of_processes(recipe: Path, tmp_path: Path) -> None:
    cells = []
    for jobs in ("1", "2"):
        assert run(recipe, tmp_path / f"cache{jobs}", tmp_path / jobs, "reconstruction", "--jobs", jobs) == 0
        cells.append(json.loads((tmp_path / jobs / "results.json").read_text())["cells"])
    assert cells[0] == cells[1]


def test_a_cell_is_measured_by_one_of_two_experiments(
    tiny_scale: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one waits and reads the values; both would share partial results, and the first deletes them."""
    lab, cell = Lab(tiny_scale, tmp_path), quality(tiny_scale, OURS.arm, 0, "gradient", 2)
    monkeypatch.setattr("quarterarc.experiments.measuring.MEASURES", {"quality": measures.Measure(None, None)})  # type: ignore[arg-type]
    folder, values = cell_folder(lab, cell), list[object]()
    waiting = threading.Thread(target=lambda: values.append(measure(lab, cell)))
    with exclusive(folder):
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        write_json(make_folder(folder) / "cell.json", {"values": {"fid": 1.0}})
    waiting.join(30)
    assert values == [{"fid": 1.0}]


def test_two_connected_processes_write_the_report(recipe: Path, tmp_path: Path, distributed: Distributed) -> None:
    done = distributed("experiment", "seeds", "--scale", recipe, "--images", "12", "--seeds", "0", "--device", "cpu",
                       "--cache", tmp_path / "cache", "--out", tmp_path / "two")  # fmt: skip
    assert done.stdout == f"report    {tmp_path / 'two' / 'report.html'}\n"
    cells = json.loads((tmp_path / "two" / "results.json").read_text())["cells"]
    assert cells
    assert all("fid" in cell["values"] for cell in cells)
    assert json.loads((tmp_path / "two" / "experiment.json").read_text())["complete"]


def test_an_arm_that_diverges_is_reported_as_unstable(
    tiny_scale: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quarterarc.experiments import lab as module

    def diverge(*arguments: object, **options: object) -> None:
        raise Diverged("the gradient is not finite at step 3 (loss inf), on the images with indices [1, 2]: ...")

    monkeypatch.setattr(module, "train", diverge)
    lab = Lab(tiny_scale, tmp_path, progress=False)
    values = measure(lab, quality(tiny_scale, arm("mean", "linear"), 0, "ddpm", 12))
    assert values == {"unstable": "training diverged: the gradient is not finite at step 3 (loss inf)"}


def test_all_experiments_end_in_an_index(
    recipe: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {name: EXPERIMENTS[name] for name in ("schedules", "reconstruction")}
    monkeypatch.setattr("quarterarc.experiments.EXPERIMENTS", chosen)
    assert run(recipe, cache, tmp_path / "out", "all") == 0
    index = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for name in chosen:
        assert f"[{name}]({name}/results.md)" in index
        assert (tmp_path / "out" / name / "results.md").is_file()
    assert "| 4 | 0 | 0 |" in index  # the claims about schedules involve no randomness


# --- the shipped results --------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
ON_DIGITS = sorted((RESULTS / "digits").glob("*/results.json"))
SHIPPED = sorted(RESULTS.glob("*/*/results.json"))
NAMES = [f"{path.parent.parent.name}-{path.parent.name}" for path in SHIPPED]
RENDER = runpy.run_path(str(ROOT / "tools" / "render_results.py"))


@pytest.mark.parametrize("path", SHIPPED, ids=NAMES)
def test_arms_and_cells_of_the_shipped_results_keep_their_names(path: Path) -> None:
    """A change of these hashes would retrain all arms, or measure all cells again, in every existing cache."""
    results = json.loads(path.read_text(encoding="utf-8"))
    at = RENDER["scale_of"](results)
    assert at.name == path.parent.parent.name
    jobs = jobs_of(experiment(path.parent.name).cells(at, results["seeds"]))
    hashes = {job.arm.hash(at, job.seed) for job in jobs}
    shipped = {arm["hash"] for arm in results["arms"]}
    assert shipped <= hashes  # an experiment may have more arms than when its results were made


def test_the_recipe_of_the_shipped_results_is_that_of_their_scale() -> None:
    """Otherwise experiments that were begun with an earlier version could not be continued."""
    for path in SHIPPED:
        results = json.loads(path.read_text(encoding="utf-8"))
        assert decisive(read_recipe(results["recipe"])) == decisive(RENDER["scale_of"](results).recipe), path
    assert {scale(name).recipe.objective.norm for name in SCALES} == {"mse"}


@pytest.mark.parametrize(
    ("name", "number", "key"),
    [
        ("ablation", 0, "0dbe53da06f3bfe1"),
        ("solvers", 16, "21d3615bb6c73ce1"),  # an option of the sampler
        ("likelihood", 0, "a7c07d987d073b13"),
        ("likelihood", 10, "894cd1fb3d978e73"),
        ("progress", 0, "12ab50472d254abe"),
        ("interpolation", 0, "df6f009c0103cdc4"),
    ],
)
def test_cell_keys_do_not_change(name: str, number: int, key: str) -> None:
    at = scale("digits")
    assert experiment(name).cells(at, (0,))[number].key(at, {"extractor": "digits"}) == key


def test_the_shipped_results_are_those_of_all_experiments_with_three_seeds() -> None:
    assert {path.parent.name for path in ON_DIGITS} == set(EXPERIMENTS)
    for path in ON_DIGITS:
        results = json.loads(path.read_text(encoding="utf-8"))
        assert results["seeds"] == [0, 1, 2], path
        cells = experiment(path.parent.name).cells(scale("digits"), (0, 1, 2))
        shipped = {named(c["arm"], c["seed"], c["measure"], c["settings"]) for c in results["cells"]}
        assert shipped == {named(c.arm.name, c.seed, c.measure, dict(c.settings)) for c in cells}, path


def named(arm: str, seed: int, measure: str, settings: dict[str, Any]) -> str:
    return json.dumps([arm, seed, measure, hashed_settings(settings)], sort_keys=True)


@pytest.mark.parametrize("path", SHIPPED, ids=NAMES)
def test_the_shipped_reports_have_the_current_wording(path: Path, tmp_path: Path) -> None:
    """If not, run `python tools/render_results.py docs/results/digits/*/ docs/results/patches16/*/`."""
    shipped, name = path.parent, path.parent.name
    shutil.copytree(shipped, tmp_path / name)
    RENDER["render"](tmp_path / name, tmp_path / "cache")
    for file in ("results.json", "results.md"):
        assert (tmp_path / name / file).read_text(encoding="utf-8") == (shipped / file).read_text(encoding="utf-8")


# --- the plan ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "celeba64", "church256"])
def test_a_plan_of_the_papers_scales_needs_no_images(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from quarterarc.experiments import run as module
    from quarterarc.experiments.plan import Speed

    monkeypatch.setattr(module, "probe", lambda lab: Speed(1e-3, 1e-4))  # the networks are large
    assert main(["experiment", "ablation", "--scale", name, "--dry-run", "--cache", str(tmp_path / "cache")]) == 0
    shown = capsys.readouterr().out
    jobs = jobs_of(experiment("ablation").cells(scale(name), (0, 1, 2)))
    recipes = [job.arm.recipe(scale(name), job.seed) for job in jobs]
    images = sum(recipe.training.steps * recipe.training.batch for recipe in recipes)
    assert f"66 arms, {sum(len(job.cells) for job in jobs):,} measurements; {images:,} images to train on" in shown
    lengths = {recipe.training.steps for recipe in recipes}
    assert lengths == {"cifar10": {800_000}, "celeba64": {5_000_000}, "church256": {1_135_000, 4_432_000}}[name]
    assert re.search(r"about [\d.,]+ (days|years) on this machine", shown)
    assert not (tmp_path / "cache").exists()


def test_experiments_have_three_seeds_where_none_are_given(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from quarterarc.experiments import run as module
    from quarterarc.experiments.plan import Speed

    monkeypatch.setattr(module, "probe", lambda lab: Speed(1.0, 0.0))
    dry = ["--scale", str(recipe), "--dry-run", "--cache", str(tmp_path / "cache")]
    for more, seeds in (([], {"0", "1", "2"}), (["--seeds", "4"], {"4"})):
        assert main(["experiment", "few-evaluations", *dry, *more]) == 0
        assert set(re.findall(r", seed (\d): ", capsys.readouterr().out)) == seeds


def test_a_plan_counts_the_training_of_a_teacher_that_is_not_measured_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: five networks of 900 steps, and one of 600 that is distilled in 300."""
    from quarterarc.experiments import run as module
    from quarterarc.experiments.plan import Speed

    monkeypatch.setattr(module, "probe", lambda lab: Speed(1.0, 0.0))
    arguments = ["--scale", "digits", "--seeds", "0", "--dry-run", "--cache", str(tmp_path / "cache")]
    assert main(["experiment", "few-evaluations", *arguments]) == 0
    shown = capsys.readouterr().out
    assert f"7 arms, 59 measurements; {64 * (5 * 900 + 600 + 300):,} images to train on" in shown
    assert "2/3 of the training steps, seed 0: 38,400 images to train on; 0 of 0 measurements missing" in shown
    left = Lab.images_left
    monkeypatch.setattr(Lab, "images_left", lambda lab, arm, seed: left(lab, arm, seed) if arm.share != 2 / 3 else 0)
    assert main(["experiment", "few-evaluations", *arguments]) == 0  # the teacher is trained
    assert f"6 arms, 59 measurements; {64 * (5 * 900 + 300):,} images to train on" in capsys.readouterr().out


def test_the_progress_of_a_process_counts_each_measurement(
    tiny_scale: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quarterarc.experiments import run as module

    measured = list[Cell]()
    monkeypatch.setattr(module, "measure", lambda lab, cell: measured.append(cell))
    monkeypatch.setattr(Lab, "denoiser", lambda *arguments: None)
    job = jobs_of(experiment("few-evaluations").cells(tiny_scale, (0,)))[0]
    counted = module._one_job(tiny_scale, tmp_path, "cpu", job)
    assert [(next(counted), len(measured)) for _ in range(3)] == [(1, 1), (1, 2), (1, 3)]
    assert len(job.cells) > 3


def test_a_plan_counts_only_missing_work(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    assert run(recipe, cache, tmp_path / "out", "reconstruction", "--dry-run") == 0
    before = capsys.readouterr().out
    assert "8 arms, 8 measurements; 256 images to train on" in before
    assert not cache.exists()
    assert not (tmp_path / "out").exists()
    assert run(recipe, cache, tmp_path / "out", "reconstruction") == 0
    assert run(recipe, cache, tmp_path / "out", "reconstruction", "--dry-run") == 0
    assert "; 0 images to train on" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ablation", "steps", "seeds", "robustness", "training-speed", "reconstruction"])
def test_the_two_norms_are_groups_of_rows_that_can_be_measured_alone(name: str) -> None:
    def cells_in(*norms: str) -> set[Cell]:
        return set(experiment(name).cells(replace(scale("digits"), norms=norms), (0,)))

    for norm in NORMS:
        assert {cell.arm.recipe(scale("digits"), 0).objective.norm for cell in cells_in(norm)} == {norm}
    both, (one, other) = set(experiment(name).cells(scale("digits"), (0,))), map(cells_in, NORMS)
    assert both == one | other


def test_one_norm_is_chosen_on_the_command_line_and_stated(
    recipe: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(recipe, cache, tmp_path / "out", "reconstruction", "--norm", "l2") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert len(results["arms"]) == 4
    assert all(arm["name"].endswith(", l2 norm") for arm in results["arms"])
    assert "--norm l2" in results["command"]
    written = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert "All arms are trained with unsquared norms (l2), as Zhang et al. print them" in written
    assert "squared norms (mse)" not in written


# --- bad input -----------------------------------------------------------------------------------------------------


def test_bad_arguments_give_one_line_that_names_the_remedy(
    recipe: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def error_of(*arguments: object) -> str:
        assert main(["experiment", *map(str, arguments), "--cache", str(cache)]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("quarterarc: error: ")
        return error

    known = error_of("ablatoin")
    assert "did you mean 'ablation'" in known
    assert all(name in known for name in EXPERIMENTS)
    known = error_of("ablation", "--scale", "cifar")
    assert all(name in known for name in SCALES)
    assert "no recipe file" in error_of("ablation", "--scale", tmp_path / "none.yaml")
    assert "whole numbers" in error_of("ablation", "--seeds", "a")
    assert "whole numbers" in error_of("ablation", "--seeds", "0.5")
    assert "occurs twice" in error_of("ablation", "--seeds", "0,0")
    assert "--jobs" in error_of("ablation", "--jobs", "0")
    assert "has no rows by norm: leave out --norm l2" in error_of("likelihood", "--scale", recipe, "--norm", "l2")
    assert "at least 8" in error_of("ablation", "--images", "2")
    assert "no images at" in error_of("ablation", "--scale", "cifar10", "--data", tmp_path / "none")

    out = tmp_path / "out"
    assert run(recipe, cache, out, "schedules") == 0
    before = (out / "results.json").read_bytes()
    other = ["--scale", recipe, "--images", "12", "--out", out]
    assert "holds another experiment" in error_of("reconstruction", *other)
    assert "holds another experiment" in error_of("schedules", "--out", out)
    assert (out / "results.json").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear reader")
    assert "holds other files" in error_of("schedules", "--scale", recipe, "--out", tmp_path / "mine")

    (tmp_path / "empty").mkdir()
    missing = error_of("ablation", "--scale", "celeba64", "--data", tmp_path / "empty", "--out", tmp_path / "x",
                    "--features", "pixels")  # fmt: skip
    assert "img_align_celeba" in missing
    assert "--data" in missing


def test_missing_weights_raise_before_training(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_weights(name: str, device: object) -> None:
        raise InputError("the weights of 'inception' are missing: download them")

    monkeypatch.setattr("quarterarc.experiments.lab.named_extractor", no_weights)
    assert run(recipe, tmp_path / "cache", tmp_path / "out", "ablation", "--features", "inception") == 2
    assert "download them" in capsys.readouterr().err
    assert not (tmp_path / "cache" / "arms").exists()
