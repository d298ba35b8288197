"""The demo end to end with a tiny recipe, and the charts and pages of its report."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from conftest import TINY, Cli
from quarterarc.cli import main
from quarterarc.experiments import demo_map
from quarterarc.experiments.demo_map import distil_map
from quarterarc.heads import head
from quarterarc.report import Series, data_url, line_chart, write_page
from quarterarc.storage.checkpoints import load
from quarterarc.storage.runs import checkpoints


class Balanced(HTMLParser):
    """Checks that every tag is closed, and collects the URLs that a browser would fetch."""

    VOID = ("meta", "img", "br", "link", "input", "path", "circle", "line", "rect", "polyline", "polygon")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_demo_writes_its_report_and_does_not_train_twice(
    tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_map, "IMAGES", 16)
    out, few = tmp_path / "demo", ["--measure", "40", *tiny]
    assert main(["demo", "--out", str(out), "--map-steps", "0", *few]) == 0
    assert str(out / "report.html") in capsys.readouterr().out
    for name in ("samples.png", "progress.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["sampling"]["nfe"] == 10
    assert metrics["training"]["images"] == 48
    assert {row["nfe"] for row in metrics["compared"][:-1]} == {10}
    assert metrics["compared"][-1]["distance"] == 0
    quality = metrics["quality"]
    assert [line["nfe"] for line in quality["samplers"]] == [6, 10, 20] * 4
    # real digits have the smallest distance from real digits
    assert quality["floor"]["fid"] < min(line["fid"] for line in quality["samplers"])
    assert metrics["map"] is None
    page = checked_page(out)
    assert "flow map" not in page
    stamps = [path.stat().st_mtime_ns for path in sorted((out / "checkpoints").iterdir())]

    # again, with a flow map
    assert main(["demo", "--out", str(out), "--map-steps", "4", *few]) == 0
    assert [path.stat().st_mtime_ns for path in sorted((out / "checkpoints").iterdir())] == stamps
    mapped = json.loads((out / "metrics.json").read_text())["map"]
    assert [(line["sampler"], line["nfe"]) for line in mapped["map"]] == [("jump", 1), ("jump", 2), ("jump", 4)]
    assert [line["nfe"] for line in mapped["teacher"]] == [1, 2, 4, 10]
    best = min((line for line in quality["samplers"] if line["nfe"] == 10), key=lambda line: float(line["fid"]))
    assert mapped["teacher"][-1] == best
    assert f"Frechet distance {mapped['map'][0]['fid']:.1f} at 1" in capsys.readouterr().out
    page = " ".join(checked_page(out).split())
    for name, lines in (
        ("flow map", mapped["map"]),
        ("teacher", mapped["teacher"][:3]),
        ("teacher at its best", [best]),
    ):
        for line in lines:
            words = f"{line['nfe']} evaluation{'' if line['nfe'] == 1 else 's'}"
            label = (
                f"<b>{name}, {words}</b> · <code>{line['sampler']}</code> · Frechet distance <b>{line['fid']:.1f}</b>"
            )
            assert label in page


def checked_page(out: Path) -> str:
    """The report, whose tags are closed, and which is a single file."""
    page = (out / "report.html").read_text()
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    assert parser.fetched
    assert all(url.startswith("data:") for url in parser.fetched)
    return page


def test_the_flow_map_of_the_demo_is_distilled_once(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It continues with the same bits, also where the demo's folder has moved; a longer training has another map."""
    monkeypatch.setattr(demo_map, "IMAGES", 16)
    out = tmp_path / "demo"
    shutil.copytree(tiny_run, out)
    last = distil_map(load(out), out, 4)
    assert last is not None
    weights = (last / "model.safetensors").read_bytes()
    out = out.rename(tmp_path / "moved")
    run = out / "maps" / "step-00000006"
    first, last = checkpoints(run)
    stamp = first.stat().st_mtime_ns
    shutil.rmtree(last)
    for _ in range(2):
        assert distil_map(load(out), out, 4) == last
        assert (last / "model.safetensors").read_bytes() == weights
        assert first.stat().st_mtime_ns == stamp
    other = distil_map(load(out / "checkpoints" / "step-00000004"), out, 2)
    assert other == out / "maps" / "step-00000004" / "checkpoints" / "step-00000002"


def test_a_demo_whose_network_cannot_be_a_teacher_has_no_flow_map(tiny_run: Path, tmp_path: Path) -> None:
    denoise = load(tiny_run)
    assert distil_map(replace(denoise, head=head("mean", denoise.schedule)), tmp_path, 4) is None
    assert distil_map(replace(denoise, maps=True), tmp_path, 4) is None
    assert distil_map(denoise, tmp_path, 0) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("steps", [-1, 10**13])
def test_the_steps_of_the_flow_map_are_checked_before_training(steps: int, tmp_path: Path, cli: Cli) -> None:
    wrong = cli("demo", "--out", tmp_path / "demo", "--map-steps", steps)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--map-steps is the number of optimiser steps of the flow map, 0 for none" in wrong.stderr
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["data.labels=true", "training.drop_labels=0"], "the demo samples without labels"),
        (["data.size=4"], "the demo"),
        (["data.channels=3"], "the demo"),
    ],
)
def test_what_the_demo_cannot_sample_or_measure_is_an_error_before_training(
    fields: list[str], message: str, tmp_path: Path, cli: Cli, tiny: tuple[str, ...]
) -> None:
    wrong = cli("demo", "--out", tmp_path / "demo", *tiny, *fields)
    assert wrong.returncode == 2
    assert message in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1
    assert not (tmp_path / "demo").exists()


def test_fewer_steps_than_the_flow_map_has_are_an_error_before_training(
    tmp_path: Path, tiny_run: Path, cli: Cli
) -> None:
    out = tmp_path / "demo"
    shutil.copytree(checkpoints(tiny_run)[-1], out / "maps" / "step-00000006" / "checkpoints" / "step-00000004")
    wrong = cli("demo", "--out", out, "--map-steps", "3", *TINY)
    assert wrong.returncode == 2
    assert f"--map-steps 3, but the flow map in {out} is at step 4: give at least 4" in wrong.stderr
    assert not (out / "recipe.yaml").exists()


def test_too_few_images_to_compare_with_are_an_error_before_training(
    tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), *tiny, "data.limit=2"]) == 2
    assert "the demo compares samples with at least 4 images" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_points_of_a_chart_are_at_their_values() -> None:
    chart = line_chart([Series("a", [1, 10, 100], [1, 2, 3])], "t", "x", "y", log_x=True)
    (path,) = re.findall(r'<polyline points="([^"]+)"', chart)
    points = [tuple(map(float, pair.split(","))) for pair in path.split()]
    # decades have equal distances on a logarithmic axis; larger values have a smaller y
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.11)
    assert points[0][1] - points[1][1] == pytest.approx(points[1][1] - points[2][1], abs=0.11)
    assert points[0][1] > points[2][1]
    band = line_chart([Series("a", [1, 2], [1.0, 2.0], [0.5, 0.5])], "t", "x", "y")
    assert "<polygon" in band
    no_points: list[list[float]] = [[float("nan")], [-1.0], []]
    for values in no_points:
        assert "</svg>" in line_chart([Series("<&>", [1.0][: len(values)], values)], "<t>", "x", "y", log_y=True)
    assert "<t>" not in line_chart([], "<t>", "x", "y")


def test_a_chart_of_one_point_has_its_value_as_the_only_tick_and_faint_lines_have_no_markers() -> None:
    chart = line_chart(
        [Series("loss", [50], [0.25]), Series("steps", [50, 50], [0.25, 0.25], faint=True)], "t", "x", "y"
    )
    ticks = re.findall(r'text-anchor="(?:middle|end)">([0-9.]+)<', chart)
    assert ticks == ["50", "0.25"]  # 49.5 is no step
    assert chart.count("<circle") == 1


def test_a_page_with_a_missing_variable_is_not_written(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "p.png")
    assert data_url(tmp_path / "p.png").startswith("data:image/png;base64,iVBOR")
    with pytest.raises(Exception, match="undefined"):
        write_page(tmp_path / "page.html", "demo.html", title="<b>")
    assert not (tmp_path / "page.html").exists()
    assert not list(tmp_path.glob(".*"))
