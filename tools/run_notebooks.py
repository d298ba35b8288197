"""Execute the notebooks of the documentation, and store their outputs in them.

python tools/run_notebooks.py [NAME ...]    # docs/notebooks/NAME.ipynb, by default all
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).parent.parent / "docs" / "notebooks"


def executed(path: Path, folder: Path) -> NotebookNode:
    """A notebook with the outputs of its cells, run in this order in a folder; the first error is raised."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources, record_timing=False).execute()
    return notebook


def main(names: list[str]) -> None:
    """Execute and store these notebooks, or all."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not names or path.stem in names:
            with tempfile.TemporaryDirectory() as folder:
                notebook = executed(path, Path(folder))
            notebook.metadata.language_info = {"name": "python"}  # without the version of this Python
            nbformat.write(notebook, path)
            print(path.name)


if __name__ == "__main__":
    main(sys.argv[1:])
