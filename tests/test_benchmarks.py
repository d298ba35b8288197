"""The benchmarks are run from a clone, beside the package and not in it."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import quarterarc
from benchmarks import __main__ as benchmarks
from benchmarks import agreement, evaluation, multistep, network, transfer, worlds
from benchmarks.__main__ import main
from quarterarc.closed_form import MixtureData
from quarterarc.common.errors import InputError
from quarterarc.denoiser import traits
from quarterarc.flow_map import SolvedMap
from quarterarc.wrappers import Projected

CLONE = Path(__file__).parents[1]


def test_help_needs_no_torch_and_no_peer() -> None:
    code = (
        "import sys; from benchmarks.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: assert not {'torch', 'numpy', 'diffusers', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    for arguments in (["--help"], *([command, "--help"] for command in benchmarks._COMMANDS)):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=CLONE, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_no_module_of_the_package_imports_the_benchmarks() -> None:
    for path in Path(quarterarc.__file__).parent.rglob("*.py"):
        assert not re.search(r"^\s*(from|import) benchmarks", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_the_options_list_the_names_that_the_benchmarks_have() -> None:
    assert tuple(network.CASES) == benchmarks.CASES
    assert benchmarks.PARTS == evaluation.PARTS
    assert tuple(worlds.WORLDS) == benchmarks.WORLDS


@pytest.mark.parametrize("arguments", [["network", "--repeats", "0"], ["samplers", "--nfe", "5 8"], ["network", "-x"]])
def test_errors_of_options_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_missing_peer_is_named_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.network")
    monkeypatch.setitem(sys.modules, "diffusers", None)  # importing it raises ModuleNotFoundError
    assert main(["network"]) == 2
    assert capsys.readouterr().err == (
        "benchmarks: error: the benchmark 'network' needs diffusers: pip install -e '.[dev]'\n"
    )


def test_patches_come_from_everywhere_in_both_photographs() -> None:
    patches = worlds.patches(8, 100)
    assert patches.shape == (100, 3, 8, 8)
    assert patches.dtype == torch.float64
    assert -1.0 <= float(patches.min()) < -0.9
    assert 0.9 < float(patches.max()) <= 1.0
    assert torch.equal(patches[:10], worlds.patches(8, 10))  # more patches add to fewer
    photographs = [torch.from_numpy(pixels / 127.5 - 1.0) for pixels in load_sample_images().images]
    for number, patch in enumerate(patches[:4]):
        places = photographs[number % 2].unfold(0, 8, 1).unfold(1, 8, 1)
        assert bool((places == patch).flatten(2).all(2).any())


def test_patches_of_a_file_lie_in_images_from_all_of_it(tmp_path: Path) -> None:
    pixels = torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    images = pixels.double() / 127.5 - 1.0
    assert torch.allclose(worlds.cifar(tmp_path, 32, 3), images[[0, 2, 4]], atol=1e-6)  # converted in float32
    for patch, image in zip(worlds.cifar(tmp_path, 16, 2), images[[0, 3]], strict=True):
        places = image.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4)
        assert bool(((places - patch).abs() < 1e-6).flatten(2).all(2).any())
    with pytest.raises(InputError, match="has 7 images"):
        worlds.cifar(tmp_path, 16, 8)


def test_every_choice_inside_multistep_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multistep, "WORLDS", ("digits",))
    assert main(["multistep", "--images", "4", "--nfe", "5,10"]) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = {cells[1]: [float(value) for value in cells[2:-1]] for line in printed[3:] if (cells := split(line))}
    assert list(rows) == list(multistep.CHOICES)
    for at_5, at_10 in rows.values():
        assert 0.0 < at_10 < at_5


def test_tuned_grids_are_measured_on_every_denoiser(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_run: Path
) -> None:
    monkeypatch.setattr(transfer, "WORLDS", ("digits",))
    assert main(["transfer", str(tiny_run), "--images", "8", "--nfe", "4"]) == 0
    head, _, *lines = capsys.readouterr().out.strip().splitlines()
    names = ["digits", str(tiny_run)]
    assert split(head)[1:-1] == ["tuned to", *names]
    assert [split(line)[1] for line in lines] == names
    # on the denoiser that a grid was tuned to it is better than the default, or the default was kept
    assert float(split(lines[0])[2]) <= 1.0


def test_an_exact_map_agrees_with_its_teacher_and_with_itself() -> None:
    exact = worlds.mixture("digits")
    teacher = Projected(MixtureData(exact.means[:40], 0.3))
    distances = agreement.measure(teacher, SolvedMap(teacher, steps=24), 8)
    assert max(distances["flow"]["map"].values()) < 2e-3 < min(distances["flow"]["teacher"].values())
    assert max(distances["semigroup"].values()) < 2e-3
    assert distances["another"] > 0.3
    assert max(value for values in distances["inversion"].values() for value in values.values()) < 1e-2
    untrained = agreement.measure(teacher, _Still(teacher), 8)  # a jump by the estimate at its start
    assert untrained["flow"]["map"]["1"] > 0.1
    assert max(untrained["semigroup"].values()) > 0.1
    assert min(untrained["inversion"][what]["1"] for what in ("noise", "images")) > 0.1


class _Still:
    """A denoiser that calls itself a flow map."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.traits = inner, replace(traits(inner), maps=True, reverses=True)

    def __call__(self, x: Any, angle: Any, labels: Any = None, to: Any = None) -> Any:
        return self.inner(x, angle)


def test_agreement_of_a_run(capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path) -> None:
    run = quarterarc.distill(
        tiny_run, tmp_path / "map", progress=False,
        fields={"training.steps": 1, "teacher.images": 8, "teacher.trajectories": 64, "teacher.reversed": 0.5},
    )  # fmt: skip
    assert main(["agreement", str(tiny_run), str(run), "--images", "4", "--out", str(tmp_path / "report.json")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"\| evaluations \| 1 \| 2 \| 4 \| 8 \|", shown)
    assert re.search(r"\| evaluations each way \| 1 \| 2 \| 4 \| 8 \|", shown)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["flow"]["map"].keys() == report["inversion"]["noise"].keys() == {"1", "2", "4", "8"}


def split(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.split("|")]


def test_the_factors_of_the_documentation_are_those_of_the_measurement() -> None:
    results = json.loads((CLONE / "docs" / "results" / "samplers.json").read_text(encoding="utf-8"))
    page = (CLONE / "docs" / "results" / "samplers.md").read_text(encoding="utf-8")
    readme, own = (
        " ".join((CLONE / name).read_text(encoding="utf-8").split()) for name in ("README.md", "docs/samplers.md")
    )
    subjects = {held: [each for each in results["subjects"] if each.get("held_out") is held] for held in (False, True)}
    assert [subject["name"] for subject in subjects[False]] == [
        name for name, world in worlds.WORLDS.items() if not world.held_out
    ]
    assert all(worlds.WORLDS[subject["name"]].held_out for subject in subjects[True])

    def factors(label: str, held_out: bool, against: str = "best peer") -> list[float]:
        return [1.0 / ratio for subject in subjects[held_out] for ratio in ratios(subject, label, against)]

    held_out, evaluated, default, tuned, of_tuned = (
        factors("multistep, octave", True), factors("multistep free_start False, octave", True),
        factors("multistep, octave", False), factors("multistep, tuned", True),
        factors("multistep, tuned", True, "best tuned peer"),
    )  # fmt: skip
    times = f"are {min(held_out):.1f} to {max(held_out):.0f} times as close"
    behind, missed, evaluated_missed = (
        sum(factor < least for factor in values)
        for values, least in ((held_out, 1), (held_out, 1 / 0.35), (evaluated, 1 / 0.35))
    )
    met, cells = len(held_out) - missed, len(held_out)
    grids = f"{min(tuned):.0f} to {max(tuned):.0f} times as close in all {len(tuned)} cells"
    assert min(tuned) >= 1 / 0.35
    for text in (readme, own):
        assert times in text
        assert f"behind in {behind} of {cells} cells" in text
        assert f"is met in {met}" in text
        assert grids in text
    assert f"the search {min(default):.1f} to {max(default):.1f} times" in own
    written = " ".join(page.split())
    assert f"It is met in {met} of {cells} cells, and in {cells - evaluated_missed} with the first step" in written
    assert f"by a factor of {min(default):.1f} to {max(default):.1f} from 5 to 20" in written
    assert f"{min(of_tuned):.1f} to {max(of_tuned):.0f} times as near as the best tuned peer" in written
    for subject in subjects[True]:
        assert subject["nfe"] == [5, 6, 8, 10, 15, 20]
        row = " | ".join(f"{ratio:.2f}" for ratio in ratios(subject, "multistep, octave"))
        assert f"| {subject['name']} | default | {row} |" in page


def test_the_tables_of_the_page_of_samplers_are_those_of_the_measurement() -> None:
    """If not, run `python tools/render_samplers.py`."""
    done = subprocess.run([sys.executable, CLONE / "tools" / "render_samplers.py", "--check"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_the_speeds_of_the_readme_are_those_of_the_benchmarks() -> None:
    page, readme = ((CLONE / name).read_text(encoding="utf-8") for name in ("docs/benchmarks.md", "README.md"))
    measured: dict[tuple[str, str], float] = {}
    for line in page[page.index("| `cifar10`, batch |") :].splitlines()[2:11]:
        _, _, task, *setting, _, _, ratio, _ = split(line)
        measured[task, " ".join(setting)] = float(ratio.partition(" ")[0])
    images = "1,000 images in memory, 10 evaluations"
    (figures,) = re.findall(
        r"trains ([\d.]+) times as fast as in diffusers' example and ([\d.]+) times as fast as in that compiled by "
        r"hand \(targets 3 and 1.3, reached\), and samples ([\d.]+) times as fast as its pipeline \(target 3, missed\) "
        r"and ([\d.]+) times as fast as that compiled",
        " ".join(readme.split()),
    )
    against = ("compiled eager", "compiled compiled")
    expected = [measured[task, setting] for task in ("training", images) for setting in against]
    assert [float(figure) for figure in figures] == [round(ratio, 1) for ratio in expected]
    assert expected[0] >= 3 > expected[2]
    assert expected[1] >= 1.3


def ratios(subject: dict[str, Any], label: str, against: str = "best peer") -> list[float]:
    """Errors of our row relative to the best peer's, from 5 to 20 evaluations; none if the row was not measured."""
    rows = [row for row in subject["ratios"]["error"] if row["row"] == f"{label} / {against}"]
    return [
        ratio
        for row in rows
        for nfe, ratio in zip(subject["nfe"], row["values"], strict=True)
        if ratio is not None and 5 <= nfe <= 20
    ]
