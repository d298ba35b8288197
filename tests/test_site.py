"""The site: it builds with warnings as errors, has every public name and page, and its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mkdocs.exceptions import PluginError

import quarterarc as qa
from browser import CHROMIUM, Browser
from tools import site_hooks

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; mkdocs.yml makes every warning an error, a page outside the navigation included."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(ROOT / "mkdocs.yml"), "--site-dir"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([*command, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True,
                          timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_of_the_documentation_is_on_the_site(site: Path) -> None:
    for path in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "notebooks").glob("*.ipynb")]:
        assert (site / path.relative_to(ROOT / "docs").with_suffix(".html")).is_file(), path
    assert "Unreleased" in (site / "CHANGELOG.html").read_text(encoding="utf-8")


def test_the_python_page_has_every_public_name_with_its_docstring(site: Path) -> None:
    named = re.findall(r"^::: quarterarc\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(qa.__all__), "docs/api.md has a line `::: quarterarc.NAME` for each public name"
    page = (site / "api.html").read_text(encoding="utf-8")
    for name in [*named, *(f"edit.{function}" for function in qa.edit.__all__)]:
        assert f'id="quarterarc.{name}"' in page, name


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]+src="(https?:[^"]+)"', text)
        loaded += re.findall(r'<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="(https?:[^"]+)"', text)
        assert not loaded, page.name


SMALLEST = """Math.min(...[...document.querySelectorAll('article *')]
  .filter(one => one.offsetParent && [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()))
  .map(one => parseFloat(getComputedStyle(one).fontSize)))"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")
def test_pages_are_readable_on_a_narrow_screen(site: Path, tmp_path: Path) -> None:
    browser = Browser(tmp_path)
    try:
        browser.show(390, 900)
        for page in sorted(site.glob("*.html")):
            browser.call("Page.navigate", url=page.as_uri())
            browser.wait(f"location.href === '{page.as_uri()}' && document.readyState === 'complete'")
            assert browser.evaluate("document.documentElement.scrollWidth") <= 390, page.name  # wide tables scroll
            assert browser.evaluate(SMALLEST) >= 12, page.name
    finally:
        browser.close()


def test_links_of_the_repository_become_links_of_the_site() -> None:
    pages = {"data.md", "index.md", "CHANGELOG.md", "notebooks/learn-the-arc.md", "results/samplers.md"}

    def on_site(text: str, source: str = "samplers.md", repo_url: str = "") -> str:
        page: Any = SimpleNamespace(file=SimpleNamespace(src_uri=source))
        config: Any = SimpleNamespace(repo_url=repo_url)
        files: Any = SimpleNamespace(get_file_from_path=lambda path: path if path in pages else None)
        return site_hooks.on_page_markdown(text, page, config, files)

    for text, expected in {
        "[x](data.md#top)": "[x](data.md#top)",
        "[x](#here)": "[x](#here)",
        "[`x`](../README.md)": "[`x`](index.md)",
        "[x](../CHANGELOG.md)": "[x](CHANGELOG.md)",
        "[x](notebooks/learn-the-arc.ipynb)": "[x](notebooks/learn-the-arc.md)",
        "[x](https://arxiv.org/abs/2010.02502)": "[x](https://arxiv.org/abs/2010.02502)",
        "[x](../tests/test_site.py)": "x",
        "`[x](nothing.md)`": "`[x](nothing.md)`",
        "```\n[x](nothing.md)\n```": "```\n[x](nothing.md)\n```",
    }.items():
        assert on_site(text) == expected
    assert on_site("[x](../data.md)", "results/samplers.md") == "[x](../data.md)"
    assert on_site("[x](docs/data.md)", "CHANGELOG.md") == "[x](data.md)"
    assert on_site("[x](../LICENSE)", repo_url="https://host/o/n/") == "[x](https://host/o/n/blob/main/LICENSE)"
    with pytest.raises(PluginError, match=r"samplers\.md: the link to 'no\.md' leads to no file"):
        on_site("[x](no.md)")


def test_the_start_page_has_commands_of_the_readme_alone() -> None:
    """Those of the README are run by other tests."""
    readme, start = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/index.md"))
    blocks = re.findall(r"^```\w*\n(.*?)^```$", start, re.DOTALL | re.MULTILINE)
    commands = [
        line for block in blocks for line in block.splitlines() if line.startswith(("make", "quarterarc", "qa."))
    ]
    assert len(commands) == 4
    for command in commands:
        assert command in readme
