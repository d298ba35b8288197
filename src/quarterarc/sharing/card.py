"""Model cards: README.md in the format of the Hugging Face hub, from what is in a run folder.

The recipe and the results are those of the run. Places on this machine, such as the folder of the images, are not
shown: of a path only the last name is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from .. import __version__
from ..common.errors import InputError
from ..common.plain_yaml import PlainDumper
from ..common.text import counted
from ..denoiser import Denoiser
from ..interop.opening import hash_of
from ..storage.files import parse_json, read_json, read_regular
from ..storage.runs import CONFIG, is_checkpoint, run_of

__all__ = ["CARD", "PICTURE", "About", "about_run", "model_card"]

CARD, PICTURE = "README.md", "samples.png"
PLACES = (("data", "source"), ("teacher", "source"), ("training", "init"))
"""Fields of a recipe that are places on a machine."""


@dataclass(frozen=True)
class About:
    """What a model card describes.

    Attributes:
        name: the name of the model, that of its folder.
        denoise: the model.
        step: the optimiser steps of the checkpoint; None if unknown.
        recipe: the recipe of the run, without places; None for a model without one.
        loss: the last logged loss; None if unknown.
        results: the results of `quarterarc evaluate` in the run folder for this checkpoint, by file name.
    """

    name: str
    denoise: Denoiser
    step: int | None = None
    recipe: Mapping[str, Any] | None = None
    loss: float | None = None
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def about_run(run: Path, checkpoint: Path, denoise: Denoiser) -> About:
    """What there is to say about a model.

    Args:
        run: the path of the model: a run, a checkpoint, or the folder of a pipeline.
        checkpoint: the folder of its weights.
        denoise: the denoiser.
    """
    config = read_json(checkpoint / CONFIG) if is_checkpoint(checkpoint) else {}
    root = run_of(checkpoint) or run
    recipe, step = config.get("recipe"), config.get("step")
    return About(
        root.resolve().name,
        denoise,
        step if isinstance(step, int) else None,
        _without_places(recipe) if isinstance(recipe, dict) else None,
        _last_loss(root / "metrics.jsonl", step),
        dict(_results(root, hash_of(checkpoint))),
    )


def model_card(about: About, format: str, folder: str, picture: bool) -> str:
    """The text of a model card.

    Args:
        about: the model.
        format: the format of the export.
        folder: the name of the exported folder, for the example.
        picture: whether there is a picture of samples beside the card.
    """
    header = yaml.dump(_header(about, format), Dumper=PlainDumper, sort_keys=False, allow_unicode=True)
    parts = [f"---\n{header}---\n", f"# {about.name}\n", _summary(about)]
    if picture:
        parts.append(f"![Samples of {about.name}]({PICTURE})\n")
    parts += ["## Use\n", _use(about, format, folder)]
    if about.results:
        parts += ["## Evaluation\n", _table(about.results)]
    if about.recipe is not None:
        recipe = yaml.dump(dict(about.recipe), Dumper=PlainDumper, sort_keys=False)
        parts += ["## Training\n", _training(about), f"```yaml\n{recipe}```\n"]
    parts.append(f"Made with quarterarc {__version__}.\n")
    return "\n".join(parts)


# --- what is in a run ------------------------------------------------------------------------------------------------


def _without_places(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with the last name of every path."""
    copy: dict[str, Any] = json.loads(json.dumps(recipe))
    for section, name in PLACES:
        fields = copy.get(section)
        if isinstance(fields, dict) and isinstance(fields.get(name), str):
            fields[name] = _last_name(fields[name])
    return copy


def _last_name(place: str) -> str:
    return Path(place.replace("\\", "/")).name or place


def _last_loss(log: Path, step: int | None) -> float | None:
    """The loss of the last line of a log up to a step."""
    loss = None
    try:
        lines = read_regular(log).splitlines()
    except OSError:
        return None
    for line in lines:
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("loss"), float) and entry.get("step", 0) <= (step or 0):
            loss = entry["loss"]
    return loss


def _results(run: Path, weights: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The results of evaluations of these weights in a run folder."""
    for path in sorted(run.glob("*.json")):
        try:
            result = read_json(path)
        except InputError:
            continue
        if not (isinstance(result, dict) and isinstance(result.get("metrics"), dict)):
            continue
        images = result.get("images") or {}
        sampling = images.get("sampling") if isinstance(images, dict) else None
        if isinstance(sampling, dict) and sampling.get("checkpoint_sha256") == weights:
            yield path.stem, result


# --- the parts of a card ---------------------------------------------------------------------------------------------


def _header(about: About, format: str) -> dict[str, Any]:
    classes = about.denoise.classes is not None
    task = "unconditional-image-generation"
    library = {"diffusers": "diffusers", "onnx": "onnx"}.get(format, "quarterarc")
    tags = [
        "quarterarc",
        "diffusion",
        *(["class-conditional"] if classes else []),
        *(["onnx"] if format == "onnx" else []),
    ]
    header: dict[str, Any] = {"library_name": library, "pipeline_tag": task, "tags": tags}
    if about.results:
        results = [
            {
                "task": {"type": task},
                "dataset": {"name": _reference(result), "type": "images"},
                "metrics": [
                    {
                        "type": metric,
                        "value": float(f"{value:.6g}"),
                        "name": result.get("labels", {}).get(metric, metric),
                    }
                    for metric, value in _numbers(result)
                ],
            }
            for result in about.results.values()
        ]
        header["model-index"] = [{"name": about.name, "results": results}]
    return header


def _reference(result: Mapping[str, Any]) -> str:
    reference = result.get("reference")
    what = reference.get("what") if isinstance(reference, dict) else None
    return "images" if not isinstance(what, str) else _last_name(what.removeprefix("the images of ").strip())


def _numbers(result: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The metrics of a result that are numbers, without their spreads."""
    metrics = result["metrics"]
    return [
        (name, float(value))
        for name, value in metrics.items()
        if isinstance(value, int | float) and not name.endswith("_std")
    ]


def _summary(about: About) -> str:
    denoise = about.denoise
    assert isinstance(denoise.network, nn.Module)
    weights = sum(weight.numel() for weight in denoise.network.parameters())
    shape = (
        "images"
        if denoise.shape is None
        else "images of {} channel{} and {}x{} pixels".format(
            denoise.shape[0], "" if denoise.shape[0] == 1 else "s", *denoise.shape[1:]
        )
    )
    kind = "A flow map, which makes" if denoise.maps else "A diffusion model of"
    steps = counted(denoise.schedule.steps, "step")
    lines = [
        f"{kind} {shape}: a {type(denoise.network).__name__} with {counted(weights, 'parameter')}, the head "
        f"`{denoise.head.name}`, and the schedule `{denoise.schedule.name}` with {steps}."
    ]
    if denoise.classes is not None:
        names = [f"{label} {name}" for label, name in enumerate(denoise.class_names)][:100]
        lines.append(
            f"It has {counted(denoise.classes, 'class', 'classes')}{': ' + ', '.join(names) if names else ''}."
        )
    return " ".join(lines) + "\n"


def _use(about: About, format: str, folder: str) -> str:
    denoise = about.denoise
    labelled = denoise.classes is not None
    if format == "diffusers":
        from ..interop.pipelines import needs_own_pipeline

        if needs_own_pipeline(denoise):
            labels = ", class_labels=[0, 1, 2, 3]" if (denoise.classes or 0) >= 4 else ", class_labels=0"
            code = f"""from diffusers import DiffusionPipeline

# the folder contains pipeline.py, which needs diffusers alone; read it before you trust it
pipeline = DiffusionPipeline.from_pretrained("{folder}", custom_pipeline="{folder}", trust_remote_code=True)
images = pipeline(batch_size=4, num_inference_steps={_STEPS}{labels if labelled else ""}).images"""
        else:
            code = f"""from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{folder}")
images = pipeline(batch_size=4, num_inference_steps={_STEPS}).images"""
    elif format == "onnx":
        size = list(denoise.shape or ())
        further = ', "labels": np.zeros(4, np.int64)' if labelled else ""
        further += ', "span": np.zeros(4, np.float32)' if denoise.maps else ""
        code = f"""import numpy as np
import onnxruntime

# the network alone: quarterarc.json has its head and the schedule, from which its time follows
session = onnxruntime.InferenceSession("{folder}/model.onnx")
x, time = np.random.randn(4, *{size}).astype(np.float32), np.full(4, 500.0, np.float32)
(output,) = session.run(None, {{"x": x, "time": time{further}}})"""
    else:
        labels = ", labels=0" if labelled else ""
        code = f"""import quarterarc as qa

images = qa.generate(qa.load("{folder}"), range(4), steps={4 if denoise.maps else 10}{labels})"""
    return f"```python\n{code}\n```\n"


_STEPS = 20


def _table(results: Mapping[str, Mapping[str, Any]]) -> str:
    rows = ["| metric | value | reference | images | sampling |", "|---|---|---|---|---|"]
    for result in results.values():
        images = result.get("images") or {}
        sampling = images.get("sampling") or {}
        how = f"{sampling.get('sampler', '')}, {sampling.get('nfe', 0.0):.4g} evaluations per image"
        labels = result.get("labels") or {}
        for name, value in _numbers(result):
            cells = (labels.get(name, name), f"{value:.4g}", _reference(result), images.get("count", ""), how)
            rows.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _training(about: About) -> str:
    steps = "" if about.step is None else f" after {counted(about.step, 'optimiser step')}"
    loss = "" if about.loss is None else f", with a training loss of {about.loss:.4g}"
    return f"The moving average of the weights{steps}{loss}. The recipe, for `quarterarc train`:\n"
