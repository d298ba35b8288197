"""Write the results of experiments again from their results.json, after a change of the report's wording or layout.

    python tools/render_results.py docs/results/digits/*/ docs/results/patches16/*/

Nothing is trained or measured: the values of all cells are read from results.json. results.json, results.md and the
charts are written; contact sheets stay as they are. README.md of each parent folder is written as well.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from quarterarc.experiments import experiment
from quarterarc.experiments.base import Measurements
from quarterarc.experiments.cells import Cell, hashed_settings
from quarterarc.experiments.findings import Findings, Picture
from quarterarc.experiments.lab import Lab
from quarterarc.experiments.run import describe_setting
from quarterarc.experiments.scales import Scale, scale
from quarterarc.experiments.writing import write_index, write_markdown
from quarterarc.storage.files import read_json


class StoredMeasurements(Measurements):
    """The cells of a results.json.

    Args:
        lab: a lab of the same scale.
        folder: the folder of results.json.
    """

    def __init__(self, lab: Lab, folder: Path) -> None:
        results = read_json(folder / "results.json")
        super().__init__(lab, results["seeds"])
        arms = {(arm["name"], arm["seed"]): (arm["fields"], arm["images"]) for arm in results["arms"]}
        self._values = {
            _key(*arms[cell["arm"], cell["seed"]], cell["seed"], cell["measure"], cell["settings"]): cell["values"]
            for cell in results["cells"]
        }
        self._folder = folder

    def __getitem__(self, cell: Cell) -> dict[str, Any]:
        training = cell.arm.recipe(self.scale, cell.seed).training
        images = training.steps * training.batch
        key = _key(cell.arm.fields, images, cell.seed, cell.measure, dict(cell.settings))
        values: dict[str, Any] = self._values[key]
        return values

    @cached_property
    def floor(self) -> float | None:
        """The distance of training images that the report names, which may not be on this machine."""
        report = (self._folder / "results.md").read_text(encoding="utf-8")
        named = re.search(r"random training images have the distance ([0-9.]+)\.$", report, re.MULTILINE)
        return None if named is None else float(named[1])

    def picture(self, cell: Cell) -> Path:
        """A path that is never read: contact sheets stay as they are."""
        return self._folder / str(self[cell]["picture"])


def _key(fields: Sequence[str], images: int, seed: int, measure: str, settings: Mapping[str, Any]) -> str:
    return json.dumps([list(fields), images, seed, measure, hashed_settings(settings)], sort_keys=True)


def render(folder: Path, cache: Path) -> None:
    """Write results.json, results.md and the charts of one experiment again."""
    results = read_json(folder / "results.json")
    lab = Lab(scale_of(results), cache, progress=False)
    chosen = experiment(results["experiment"])
    findings = _keep_pictures(chosen.report(StoredMeasurements(lab, folder)), folder)
    about = {name: value for name, value in results.items() if name not in ("tables", "rule", "claims")}
    about |= {"title": chosen.title, "source": chosen.source, "setting": describe_setting(lab.scale)}
    write_markdown(folder, about, results["cells"], findings)


def scale_of(results: Mapping[str, Any]) -> Scale:
    """The scale of a results.json, by the options of its recorded command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", default="digits")
    parser.add_argument("--images", type=int)
    parser.add_argument("--features", default=results["features"])
    parser.add_argument("--norm")
    options = parser.parse_known_args(shlex.split(results["command"]))[0]
    chosen = scale(options.scale, None, options.images, options.features)
    return chosen if options.norm is None else replace(chosen, norms=(options.norm,))


def _keep_pictures(findings: Findings, folder: Path) -> Findings:
    """The same findings, with the contact sheets of the folder as their own source."""
    for section in findings.sections:
        for part in section.parts:
            if isinstance(part, Picture):
                object.__setattr__(part, "path", folder / "figures" / f"{part.name}.png")
    return findings


def main() -> None:
    """Write the results of the folders on the command line again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders with a results.json")
    folders = parser.parse_args().folders
    with tempfile.TemporaryDirectory() as cache:  # statistics of the training images
        for folder in folders:
            render(folder, Path(cache))
            print(folder / "results.md")
    for parent in dict.fromkeys(folder.resolve().parent for folder in folders):
        print(write_index(parent))


if __name__ == "__main__":
    main()
