"""HTML pages from the Jinja templates of this folder; all pictures are embedded, so that a page is a single file."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..storage.files import replace_file

__all__ = ["data_url", "write_page"]


def data_url(picture: Path | bytes) -> str:
    """A PNG file, given by its path or its bytes, as a data URL, which embeds it in a page."""
    content = picture if isinstance(picture, bytes) else picture.read_bytes()
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def write_page(path: Path, template: str, *, durable: bool = True, **values: Any) -> None:
    """Render a template and write the page atomically.

    Args:
        path: the HTML file.
        template: a file of `report/templates`.
        durable: as for `replace_file`.
        values: the variables of the template. Text is escaped, except SVG (text that starts with `<svg`).
    """
    safe = {
        name: Markup(value) if isinstance(value, str) and value.startswith("<svg") else value
        for name, value in values.items()
    }
    with replace_file(path, durable) as beside:
        beside.write_text(_environment().get_template(template).render(safe), encoding="utf-8")


@cache
def _environment() -> Environment:
    loader = PackageLoader("quarterarc.report")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
