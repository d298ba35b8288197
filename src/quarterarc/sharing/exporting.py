"""Exports of a trained model for other programs.

    diffusers     a pipeline folder that diffusers loads
    safetensors   a checkpoint folder: config.json and tensors in safetensors files, which `quarterarc.load` reads
    onnx          model.onnx, the network alone

Each is a folder with a model card (README.md), a picture of samples, and quarterarc.json, which describes the export.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..common.devices import pick_device
from ..common.errors import InputError, unknown_name
from ..data.pixels import to_uint8
from ..denoiser import DEFAULT_PROJECTION, Denoiser
from ..interop.opening import identity, load, read_model
from ..interop.pipelines import with_own_network, write_pipeline
from ..sampling.generation import generate
from ..sampling.sheets import labels_of_sheet, rows_of
from ..storage.checkpoints import describe_denoiser, write_checkpoint
from ..storage.files import make_folder, read_json, replace_file, replace_folder, write_json
from ..storage.pictures import contact_sheet, write_png
from .card import CARD, PICTURE, about_run, model_card
from .onnx import write_onnx

__all__ = ["FORMATS", "RECORD", "export"]

RECORD = "quarterarc.json"
"""What an export is of: format, the identity of the model, the version, and the description of the denoiser."""

FORMATS: dict[str, Callable[[Denoiser, Path], None]] = {
    "diffusers": write_pipeline,
    "safetensors": write_checkpoint,
    "onnx": write_onnx,
}
"""The formats by name: functions that write a denoiser into a folder."""

STEPS = 20
"""Steps of the samples in the picture."""


def export(
    run: str | Path, out: str | Path, *, format: str = "diffusers", samples: int = 16, device: str = "auto"
) -> Path:
    """Write a trained model in the format of other programs, with a model card.

        qa.export("runs/mine", "mine", format="diffusers")

    Args:
        run: a model as for `quarterarc.load`: of a run, the moving average in its newest checkpoint.
        out: the folder. It must not exist, unless it is an export of the same model in the same format, whose card and
            samples are written again.
        format: `diffusers`, a pipeline folder; `safetensors`, a checkpoint folder, for `quarterarc.load`; `onnx`, the
            network with any number of images per batch.
        samples: images in the picture of the card; 0 for no picture.
        device: the device that makes them.

    Returns:
        The folder.

    Raises:
        InputError: for an unknown format, a model that cannot be loaded or that the format cannot represent, a library
            that is not installed, or a folder that exists.
    """
    folder = Path(out)
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if not isinstance(samples, int) or not 0 <= samples <= 1024:
        raise InputError(f"the picture of an export has 0 to 1024 samples, got {samples!r}")
    place = pick_device(device)
    checkpoint, model, denoise = read_model(run, lambda path: (path, identity(path), load(path, projection=None)))
    record = {"format": format, "model": model, "quarterarc": __version__}
    if format == "safetensors" and (mean := denoise.traits.mean_image) is not None:
        record["mean_image"] = mean.fingerprint
    exists = folder.exists()
    if exists and _record_of(folder) != record:
        raise InputError(
            f"{folder} already exists, and is not an export of {run} as {format} by this version: give the path of a "
            "new folder, or remove it"
        )
    denoise = with_own_network(denoise)
    about = about_run(Path(run), checkpoint, denoise)
    sheet = _sheet(denoise.to(place), samples) if samples else None
    card = model_card(about, format, folder.name, sheet is not None)
    if exists:
        _write_card(folder, card, sheet)
        return folder
    make_folder(folder.parent)
    with replace_folder(folder) as beside:
        FORMATS[format](denoise.to("cpu"), beside)
        _write_card(beside, card, sheet)
        write_json(beside / RECORD, {**record, "denoiser": describe_denoiser(denoise)})
    return folder


def is_export(folder: Path) -> bool:
    """Whether a folder is an export."""
    return (folder / RECORD).is_file()


def _record_of(folder: Path) -> dict[str, Any] | None:
    """What an export is of; None for another folder."""
    if not is_export(folder):
        return None
    record = read_json(folder / RECORD)
    if not isinstance(record, dict):
        return None
    further = {name: record[name] for name in ("mean_image",) if name in record}
    return {**{name: record.get(name) for name in ("format", "model", "quarterarc")}, **further}


def _sheet(denoise: Denoiser, count: int) -> Any:
    """A contact sheet of samples, uint8 (C, height, width), with one row per class."""
    denoise = replace(denoise, projection=DEFAULT_PROJECTION)
    steps = 4 if denoise.maps else STEPS
    if denoise.classes is None:
        return contact_sheet(to_uint8(generate(denoise, range(count), steps=steps)))
    labels = labels_of_sheet(denoise.classes, count)
    images = to_uint8(generate(denoise, range(len(labels)), steps=steps, labels=labels))
    rows, names = rows_of(labels, count, denoise.class_names)
    return contact_sheet(images, rows=rows, names=names)


def _write_card(folder: Path, card: str, sheet: Any) -> None:
    if sheet is not None:
        write_png(folder / PICTURE, sheet)
    with replace_file(folder / CARD) as beside:
        beside.write_text(card, encoding="utf-8")
