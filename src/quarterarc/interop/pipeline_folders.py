"""The folders of diffusers' unconditional pipelines: their files, the check of their components, and the network.

    FOLDER/model_index.json                 classes of the components
    FOLDER/unet/config.json                 UNet2DModel, with weights in diffusion_pytorch_model.safetensors
    FOLDER/scheduler/scheduler_config.json  the beta table and the prediction type

In older folders the files of the components are beside model_index.json. The folder of a network alone, such as `unet`
or `unet_ema` in the checkpoints of diffusers' training scripts, is a pipeline with the scheduler of a folder above it
or, where there is none, with DDPM's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.optional import need
from ..storage.files import read_json
from .schedulers import component

__all__ = [
    "CODE",
    "INDEX",
    "SCHEDULER",
    "check_components",
    "exported",
    "is_pipeline",
    "pipeline_files",
    "read_unet",
    "scheduler_folder",
]

logger = logging.getLogger("quarterarc")

WEIGHTS = "diffusion_pytorch_model"
CODE, OWN_PIPELINE = "pipeline", "QuarterarcPipeline"
"""The module in the folder of a pipeline of this library, and its class (`diffusers_pipeline`)."""
INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"


def pipeline_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files that decide a pipeline's function: those of the weights, and the configurations."""
    unet, scheduler = component(folder, "unet"), scheduler_folder(folder)
    configs = [unet / CONFIG, *([] if scheduler is None else [scheduler / SCHEDULER])]
    return sorted(unet.glob(f"{WEIGHTS}*.safetensors")), configs


def exported(folder: Path) -> dict[str, Any]:
    """Head, null label and names of the classes in an index that `save_pipeline` wrote; empty for other folders."""
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    own = isinstance(index, dict) and index.get("_class_name") == [CODE, OWN_PIPELINE]
    if not own:
        return {}
    head, null, names = index.get("head"), index.get("null_label"), index.get("class_names") or {}
    if not (isinstance(head, str) and isinstance(null, int | None) and isinstance(names, dict)):
        raise InputError(f"{folder / INDEX} does not describe a pipeline of quarterarc: export the model again")
    return {"head": head, "null_label": null, "class_names": [str(name) for name in names.values()]}


def is_pipeline(path: str | Path) -> bool:
    """Whether a path is a diffusers pipeline folder, of any kind, or the folder of one of its networks alone."""
    folder = Path(path)
    return (folder / INDEX).is_file() or ((folder / CONFIG).is_file() and any(folder.glob(f"{WEIGHTS}*")))


def scheduler_folder(folder: Path) -> Path | None:
    """The folder of a pipeline's scheduler; for a network alone, that of the pipeline around it, or None."""
    if (folder / INDEX).is_file():
        return component(folder, "scheduler")
    above = [parent / "scheduler" for parent in (*folder.absolute().parents,)[:2]]
    return next((path for path in above if (path / SCHEDULER).is_file()), None)


def check_components(folder: Path) -> None:
    """Raise an InputError that names the component, unless this is an unconditional pipeline in pixels."""
    if not folder.is_dir():
        raise InputError(f"no folder at {folder}: download a pipeline first (`hf download NAME --local-dir DIR`)")
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder} is not a diffusers pipeline folder: it has no {INDEX}")
    index = read_json(folder / INDEX)
    specs = index if isinstance(index, dict) else {}
    classes = {
        name: spec[1]
        for name, spec in specs.items()
        if not name.startswith("_") and isinstance(spec, list) and len(spec) == 2 and isinstance(spec[1], str)
    }
    for kind, marks in _OTHER_PIPELINES.items():
        for name, of in classes.items():
            if any(mark in name for mark in marks) or (of == "UNet2DConditionModel" and "condition" in marks):
                raise InputError(
                    f"{folder} is a {kind} pipeline (its component '{name}' is a {of}): only unconditional and "
                    "class-conditional pipelines in pixels can be read, with a UNet2DModel and a scheduler"
                )
    for name, of in classes.items():
        if name not in ("unet", "scheduler") or (name == "unet" and of != "UNet2DModel"):
            raise InputError(
                f"{folder} is a pipeline with the component '{name}', a {of}: only pipelines of a UNet2DModel and a "
                "scheduler can be read"
            )
    for name in ("unet", "scheduler"):
        if name not in classes:
            raise InputError(f"{folder / INDEX} has no component '{name}'")


_OTHER_PIPELINES = {
    "text-conditioned": ("text_encoder", "tokenizer", "bert", "condition"),
    "latent": ("vae", "vqvae", "movq"),
}


def read_unet(folder: Path) -> Any:
    """The `UNet2DModel` of a folder, from safetensors only."""
    names = sorted(entry.name for entry in folder.iterdir())
    variant = None
    variants = _variants(names)
    if not any(name in names for name in (f"{WEIGHTS}.safetensors", f"{WEIGHTS}.safetensors.index.json")):
        pickled = next((name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))), None)
        if pickled and not variants:
            raise InputError(
                f"{folder / pickled} is a pickle, which can run code when it is loaded, and is not read: if you trust "
                f"it, convert it with diffusers.UNet2DModel.from_pretrained('{folder}', use_safetensors=False)"
                f".save_pretrained('{folder}')"
            )
        if len(variants) > 1:
            raise InputError(
                f"there is no {WEIGHTS}.safetensors in {folder}, only the variants {', '.join(variants)}: copy the "
                f"pipeline with one of them, diffusers.DDPMPipeline.from_pretrained('{folder.parent}', "
                f"variant='{variants[0]}').save_pretrained(...)"
            )
        if not variants:
            raise InputError(f"there is no {WEIGHTS}.safetensors in {folder}")
        (variant,) = variants
        logger.info("the weights in %s are those of the variant '%s', converted to float32", folder, variant)
    from safetensors import SafetensorError

    library = need("diffusers", "diffusers", "a diffusers pipeline")
    configuration = logging.getLogger("diffusers.configuration_utils")
    level = configuration.level
    configuration.setLevel(logging.ERROR)  # it warns of the settings that averages of weights have in their config.json
    try:
        unet, report = library.UNet2DModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, variant=variant
        )
    except (OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        raise InputError(f"diffusers cannot read the network in {folder}: {' '.join(str(error).split())}") from None
    finally:
        configuration.setLevel(level)
    if report["missing_keys"]:
        raise InputError(
            f"the weights in {folder} lack {len(report['missing_keys'])} of the network's tensors, "
            f"first '{sorted(report['missing_keys'])[0]}'"
        )
    return unet if variant is None else unet.float()


def _variants(names: Sequence[str]) -> list[str]:
    """The variants of the weights in a folder: `fp16` for `diffusion_pytorch_model.fp16.safetensors`."""
    pattern = re.compile(
        rf"{WEIGHTS}\.(?P<whole>[^.-]+)(-\d+-of-\d+)?\.safetensors|"
        rf"{WEIGHTS}\.safetensors\.index\.(?P<index>[^.]+)\.json"
    )
    matches = [match for name in names if (match := pattern.fullmatch(name))]
    return sorted({match["whole"] or match["index"] for match in matches})
