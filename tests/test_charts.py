"""Text of charts, whose font is not known when they are drawn, is neither cut off nor drawn over other text."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser import CHROMIUM, Browser
from quarterarc.report import Series, responsive_chart, wide_chart, write_page
from quarterarc.report.lettering import width, wrapped

NAMES = (
    "DDPM", "DDIM", "MMMWWW %%%", "illicit film titillation", "ours", "DDIM + both estimates, gradient sampler",
    "a method whose name has everything that is known about it: order, grid, projection, start, finish and fresh noise",
    "package.with_a_long_name.in_it:ASamplerOfOneLongWordWithoutAnySpace", "held out", "学習曲線と損失の移動平均",
)  # fmt: skip
TITLE = "Frechet distance of efficientnet pool features by network evaluations per image (lower is better)"
LABEL = "Frechet distance of efficientnet pool features"

FAULTS = """(() => {
  const svg = [...document.querySelectorAll('svg')].find(one => getComputedStyle(one).display !== 'none');
  const around = svg.getBoundingClientRect(), faults = [];
  const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  for (const [text, box] of texts)
    if (box.left < around.left || box.right > around.right || box.top < around.top || box.bottom > around.bottom)
      faults.push('cut off: ' + text);
  texts.forEach(([text, one], place) => {
    for (const [other, two] of texts.slice(place + 1))
      if (one.left < two.right && two.left < one.right && one.top + 3 < two.bottom && two.top + 3 < one.bottom)
        faults.push(text + ' over ' + other);
  });
  return [svg.classList.value, texts.length, faults];
})()"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")
def test_no_text_of_a_chart_is_cut_off_or_over_another_in_a_browser(tmp_path: Path) -> None:
    for name, log in (("linear", False), ("log", True)):
        series = [Series(text, [1, 10, 1000], [1, 2, place + 3]) for place, text in enumerate(NAMES)]
        charts = responsive_chart(series, TITLE, "network evaluations per image", LABEL, log_x=log, log_y=log)
        page = tmp_path / f"{name}.html"
        write_page(page, "base.html", title=name)
        page.write_text(page.read_text(encoding="utf-8").replace("<main>", f"<main>{charts}"), encoding="utf-8")
    browser = Browser(tmp_path / "browser")
    try:
        for width, shown in ((390, "narrow"), (1280, "wide")):
            browser.show(width, 900)
            for name in ("linear", "log"):
                browser.call("Page.navigate", url=(tmp_path / f"{name}.html").as_uri())
                browser.wait(f"document.title === '{name}' && document.readyState === 'complete'")
                classes, count, faults = browser.evaluate(FAULTS)
                assert (classes, faults) == (f"chart {shown}", [])
                assert count > len(NAMES)
    finally:
        browser.close()


def test_lines_of_wrapped_text_have_all_words_and_no_more_than_their_width() -> None:
    for text in (*NAMES, TITLE, LABEL):
        for most in (60, 243, 500):
            lines = wrapped(text, most)
            assert "".join(lines).replace(" ", "") == text.replace(" ", "")
            assert max(map(width, lines)) <= most
    assert wrapped("one two", 500) == ["one two"]
    assert wrapped("", 500) == [""]
    assert wrapped("WW", 1) == ["W", "W"]  # a letter per line at least


def test_the_wide_chart_alone_is_one_element() -> None:
    both = responsive_chart([Series("a", [1, 2], [1, 2])], "t", "x", "y")
    assert both.count("<svg") == 2
    alone = wide_chart(both)
    assert (alone.count("<svg"), alone.count("</svg>"), alone.count("chart wide")) == (1, 1, 1)
