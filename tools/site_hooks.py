"""Hooks of mkdocs.yml: one set of relative links for the repository host and the site, and notebooks as pages.

On the repository host a link leads to a file; on the site to the page of that file. README.md is the start page there,
CHANGELOG.md and CONTRIBUTING.md are pages too, and a link to a file without a page, such as the source of a test, is
plain text, or leads to the host if mkdocs.yml has a `repo_url`.
"""

from __future__ import annotations

import base64
import html
import posixpath
import re
from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
BESIDE_DOCS = ("CHANGELOG.md", "CONTRIBUTING.md")
CODE_OR_LINK = re.compile(
    r"^```.*?^```$|(?<!!)\[(?P<label>[^\[\]]+)\]\((?P<target>[^)\s]+)\)|`[^`\n]+`", re.DOTALL | re.MULTILINE
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/, and replace each notebook by a page."""
    for name in BESIDE_DOCS:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        for name, content in notebook_files(ROOT / "docs" / file.src_uri).items():
            files.append(File.generated(config, f"{posixpath.dirname(file.src_uri)}/{name}", content=content))
    return files


def notebook_files(notebook: Path) -> dict[str, str | bytes]:
    """The page of a notebook, in Markdown, and its pictures, by file name."""
    parts: list[str] = []
    files: dict[str, str | bytes] = {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                name = f"{notebook.stem}-{len(files) + 1}.png"
                files[name] = base64.b64decode(data["image/png"])
                parts.append(f"![Output of the code above]({name})")
            elif "text/markdown" in data:
                parts.append(data["text/markdown"])
            elif "image/svg+xml" in data:
                parts.append(f'<div class="output">\n{data["image/svg+xml"].strip()}\n</div>')
            else:
                parts.append(f'<pre class="output">{html.escape(data["text/plain"].rstrip())}</pre>')
    return {f"{notebook.stem}.md": "\n\n".join(parts) + "\n", **files}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the links of the repository, outside code, by those of the site."""
    source = page.file.src_uri
    folder = posixpath.dirname(source)
    repository_folder = "" if source in BESIDE_DOCS else posixpath.join("docs", folder)

    def replacement(match: re.Match[str]) -> str:
        label, target = match["label"], match["target"]
        if target is None or re.match(r"#|[a-z]+:", target):
            return match[0]
        path, mark, anchor = target.partition("#")
        stored = posixpath.normpath(posixpath.join(repository_folder, path))
        if not (ROOT / stored).exists():
            raise PluginError(f"{source}: the link to '{target}' leads to no file of the repository")
        inside = "index.md" if stored == "README.md" else stored.removeprefix("docs/")
        inside = re.sub(r"\.ipynb$", ".md", inside)
        if files.get_file_from_path(inside) is not None:
            return f"[{label}]({posixpath.relpath(inside, folder or '.')}{mark}{anchor})"
        if config.repo_url:
            return f"[{label}]({config.repo_url.rstrip('/')}/blob/main/{stored}{mark}{anchor})"
        return label

    return CODE_OR_LINK.sub(replacement, markdown)
