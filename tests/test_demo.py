"""The demo end to end with a tiny recipe, and the charts and pages of its report."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from quarterarc.cli import main
from quarterarc.report import Series, data_url, line_chart, write_page


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
    tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--measure", "40", *tiny]) == 0
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
    page = (out / "report.html").read_text()
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    assert parser.fetched
    assert all(url.startswith("data:") for url in parser.fetched)  # the page is a single file
    checkpoints = sorted((out / "checkpoints").iterdir())
    stamps = [path.stat().st_mtime_ns for path in checkpoints]
    assert main(["demo", "--out", str(out), "--measure", "40", *tiny]) == 0
    assert [path.stat().st_mtime_ns for path in sorted((out / "checkpoints").iterdir())] == stamps


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


def test_a_page_with_a_missing_variable_is_not_written(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "p.png")
    assert data_url(tmp_path / "p.png").startswith("data:image/png;base64,iVBOR")
    with pytest.raises(Exception, match="undefined"):
        write_page(tmp_path / "page.html", "demo.html", title="<b>")
    assert not (tmp_path / "page.html").exists()
    assert not list(tmp_path.glob(".*"))
