"""`evaluate`: metrics of a run, a denoiser or images, by name.

    evaluate("runs/demo", "digits", ["fid", "precision", "recall"], features="digits", count=400)

A result consists of JSON types. It contains the extractor with the hash of its weights and its resize, counts, the
reference, how the images were sampled, every setting that a metric depends on, and versions.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from .. import __version__
from ..common.compiling import Compile
from ..common.devices import pick_device, processes
from ..common.errors import InputError, unknown_name
from ..common.limits import MOST_IMAGES
from ..common.progress import working
from ..data.image_set import ImageSet
from ..denoiser import Denoise
from ..likelihood.evaluation import LIKELIHOOD_METRICS, LikelihoodSettings, evaluate_likelihood
from ..samplers import Sampler
from ..sampling.plans import GridLike, Sampling, note_missing_labels
from ..storage.files import check_writable, make_folder, write_json
from ..storage.runs import NEAREST
from ..wrappers import project
from .checks import (
    check_counts,
    check_features,
    check_kinds,
    check_pair,
    check_same_shape,
    check_sampling,
    check_saved,
    check_settings,
    check_unlabelled,
    usable_reference,
)
from .extractors import Extractor, usual_features
from .extractors import extractor as named_extractor
from .features import ImageFeatures, collect
from .image_files import held_out_images
from .metrics import METRICS, Metric, Settings, check_metrics, label, needs
from .nearest import memorisation, write_nearest
from .references import Reference, check_ending, open_reference, save_statistics
from .resume import partial_results
from .sets import SampledSet
from .sources import Model, as_set, is_model, open_model

__all__ = ["evaluate"]

FORMAT = 1
DEFAULT_METRICS = ("fid", "precision", "recall")
ENOUGH_TO_SEE = 256
"""The default number of sampled images for the metric `nearest` alone."""
LARGEST_DEFAULT = 50_000
"""The largest default number of sampled images, the usual number for FID."""


def evaluate(
    source: object,
    reference: object = None,
    metrics: str | Sequence[str] = DEFAULT_METRICS,
    *,
    count: int | None = None,
    features: str | Extractor = "auto",
    weights: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    sampler: str | Sampler | Sampling | None = None,
    steps: int | None = None,
    grid: GridLike | None = None,
    options: Mapping[str, Any] | None = None,
    labels: Sequence[int | str] | None = None,
    guidance: float | None = None,
    projection: str | None = None,
    precision: torch.dtype | None = None,
    settings: Settings | LikelihoodSettings | Mapping[str, Any] | None = None,
    batch_size: int = 64,
    device: torch.device | str = "auto",
    out: str | Path | None = None,
    cache: str | Path | None = None,
    save_to: str | Path | None = None,
    save_features: bool = False,
    progress: bool = True,
    compile: Compile = "auto",
) -> dict[str, Any]:
    """Compute metrics of a run, a denoiser or images; every image is generated or read once.

    Args:
        source: a run folder, a checkpoint folder or a denoiser, which is sampled; or images: a folder, an npz or the
            name of a data set, a tensor or array, uint8 (N, C, H, W), a list of PIL images, a `datasets.Dataset`, a
            `DataSpec` or opened data, the `Result` of `quarterarc.sample`, an iterable of batches, or an image set of
            `quarterarc.evaluation`.
        reference: the real images, in the same forms; a file of statistics; or a run folder, for its training images.
            The likelihood metrics (`bits-per-dim`, `flow-bits-per-dim`) evaluate these images, by default the training
            images of the run. So does `nearest` alone.
        metrics: names in `METRICS`, or names in `quarterarc.likelihood.LIKELIHOOD_METRICS`. Empty together with
            `save_to`, to write statistics only.
        count: number of images. By default a run or a denoiser samples as many images as the reference has, at most
            50,000; of images, all are used.
        features: a feature extractor: a name in `EXTRACTORS`, an import path, or an `Extractor`; "auto" for Inception,
            or EfficientNet-Lite0 if Inception's weights are not on this machine and the extra `imagenet` is; for the
            metric `nearest` alone `thumbnails`.
        weights: weights of the extractor, for `inception` or `dinov2`; by default the usual download.
        seeds: seeds of the sampled images; by default 0..count - 1.
        sampler, steps, grid, options, guidance, projection: as for `quarterarc.Sampling`.
        labels: classes by number or name, used in turn over `seeds`: seeds[k] has the label labels[k % len(labels)].
        precision: dtype to autocast a run's network to, such as `torch.bfloat16`.
        settings: the numbers that the metrics depend on: `quarterarc.evaluation.Settings`, or
            `quarterarc.likelihood.LikelihoodSettings` for likelihood metrics; or a mapping of their fields, such as
            `{"neighbours": 5}`.
        batch_size: images per batch.
        device: device of a run's network and of the extractor; "auto" for the fastest one available.
        out: file for the result, as JSON. Partial results are kept beside it, so that the same call continues after an
            interrupt.
        cache: folder for partial results that is kept, instead of one beside `out`.
        save_to: file for the statistics of the images, see `save_statistics`.
        save_features: whether `save_to` gets the feature vectors too.
        progress: whether to show progress: a bar, or lines in a log file.
        compile: whether to compile the network that is sampled, as for `quarterarc.generate`.

    Returns:
        The result as JSON types, with the values under `metrics`; empty in every process but the first.

    Raises:
        InputError: for unknown names; metrics that the features, the source or the reference do not support; arguments
            that do not apply to the source; images of different shapes, too few images, or floating-point images; NaN.
    """
    names = list(dict.fromkeys([metrics] if isinstance(metrics, str) else metrics))
    if names or save_to is None:
        check_metrics(names)
    likelihoods = [name for name in names if name in LIKELIHOOD_METRICS]
    if likelihoods and len(likelihoods) < len(names):
        others = ", ".join(name for name in names if name not in likelihoods)
        raise InputError(
            f"{', '.join(likelihoods)} evaluate the model on given images, {others} its samples: compute them in two "
            "evaluations"
        )
    if likelihoods and save_to is not None:
        raise InputError(f"{', '.join(likelihoods)}: there are no features to save: leave out the file of statistics")
    if count is not None and count < 1:
        raise InputError(f"count must be at least 1, got {count}")
    if count is not None and count > MOST_IMAGES and is_model(source):
        raise InputError(f"at most {MOST_IMAGES:,} images are sampled, got count={count:,} (--count)")
    if count is not None and seeds is not None:
        raise InputError("give seeds or a count, not both: a count of 100 means the seeds 0 to 99")
    if save_features and save_to is None:
        raise InputError("feature vectors are saved with the statistics: give the file of the statistics (save_to) too")
    request = Sampling.of(sampler, steps, grid, options or {}, guidance, projection)
    check_sampling(source, request, seeds, labels, precision, compile, likelihoods)
    check_features(features, weights, likelihoods)
    if isinstance(settings, Mapping):  # of an object it is not known which ones were given
        check_settings(settings, names)
    result_path, statistics_path = (None if path is None else Path(path) for path in (out, save_to))
    for path in (result_path, statistics_path):
        if path is not None:
            check_writable(path)
    folder = None if cache is None else Path(cache)
    if likelihoods:
        likelihood_settings = _of_kind(settings, LikelihoodSettings)
        model = open_model(source, device, precision, request.projection)
        check_unlabelled(model.denoise, model.what, likelihoods)
        images = _likelihood_images(source, reference, count, likelihoods, progress)
        about = {key: value for key, value in model.about.items() if key not in ("model", "guidance")}
        with partial_results(None if cache else result_path, "partial") as partial:
            result = evaluate_likelihood(
                _projected(model, request), images, likelihoods, likelihood_settings,
                batch_size=batch_size, what=str(model.about["model"]), about=about,
                cache=folder or partial, progress=progress,
            )  # fmt: skip
            _write(result, result_path)
            processes().wait()
        return result

    image_settings = _of_kind(settings, Settings)
    chosen = {name: METRICS[name] for name in names}
    alone = names == ["nearest"]
    if alone and reference is None:
        reference = _run_of(source)
    picture = _picture_path(source, result_path) if "nearest" in chosen else None
    if picture is not None:
        check_writable(picture)
    known = _reference_for(reference, chosen, progress)
    if statistics_path is not None:
        check_ending(statistics_path)
    if is_model(source):
        most = ENOUGH_TO_SEE if alone else LARGEST_DEFAULT
        number = count or min(known.count or most, most)
        model = open_model(source, device, precision, request.projection, request.guidance)
        if processes().rank == 0:
            note_missing_labels(model.denoise, labels)
        images = _sampled(model, request, range(number) if seeds is None else seeds, labels, compile)
    else:
        images = as_set(source, "the images", count)
    if features == "auto" and alone:
        features = "thumbnails"
    if features == "auto":
        features = usual_features([metric.kind for metric in chosen.values()], weights)
    network = (
        features if isinstance(features, Extractor) else named_extractor(features, pick_device(str(device)), weights)
    )
    with partial_results(None if cache else result_path or statistics_path, "features") as partial:
        result = _evaluate_images(
            images, known, chosen, network, image_settings, batch_size,
            folder or partial, statistics_path, save_features, progress,
            _held_out_of(reference, progress) if "nearest" in chosen else None, picture,
        )  # fmt: skip
        _write(result, result_path)
        processes().wait()
    return result


Kind = TypeVar("Kind", Settings, LikelihoodSettings)


def _of_kind(settings: Settings | LikelihoodSettings | Mapping[str, Any] | None, kind: type[Kind]) -> Kind:
    if settings is None:
        return kind()
    if isinstance(settings, Mapping):
        names = [field.name for field in fields(kind)]
        for name in settings:
            if name not in names:
                raise unknown_name("setting", name, names)
        return kind(**settings)
    if not isinstance(settings, kind):
        raise InputError(f"these metrics take settings of type {kind.__name__}, got {type(settings).__name__}")
    return settings


def _sampled(
    model: Model, request: Sampling, seeds: Sequence[int], labels: Sequence[int | str] | None, compile: Compile
) -> ImageSet:
    if "checkpoint" in model.about:  # a run's network is loaded with its projection
        request = replace(request, projection=None)
    return SampledSet(model.denoise, seeds, request, labels=labels, what=model.what, about=model.about, compile=compile)


def _projected(model: Model, request: Sampling) -> Denoise:
    """The denoiser of likelihood metrics; a run's network is loaded with its projection."""
    if request.projection is None or "checkpoint" in model.about:
        return model.denoise
    return project(model.denoise, request.projection)


def _likelihood_images(
    source: object, reference: object, count: int | None, names: Sequence[str], progress: bool
) -> ImageSet:
    """The images of likelihood metrics: those of the reference, by default the training images of the run."""
    if reference is None and not isinstance(source, str | Path):
        raise InputError(f"{', '.join(names)}: a denoiser has no training images: give the images as the reference")
    opened = open_reference(source if reference is None else reference, count, progress=progress)
    if opened.images is None:
        raise InputError(f"{', '.join(names)} need images, but {opened.what} holds statistics: give the images")
    return opened.images


def _reference_for(reference: object, metrics: Mapping[str, Metric], progress: bool) -> Reference:
    comparing = [name for name, metric in metrics.items() if metric.needs_reference]
    if not comparing:
        return Reference("no reference")
    if reference is None:
        raise InputError(
            f"{', '.join(comparing)}: these metrics compare with real images: give a reference (a folder, a data set, "
            "or saved statistics)"
        )
    return open_reference(reference, progress=progress)


def _evaluate_images(
    images: ImageSet,
    reference: Reference,
    metrics: Mapping[str, Metric],
    extractor: Extractor,
    settings: Settings,
    batch_size: int,
    cache: Path | None,
    save_to: Path | None,
    save_features: bool,
    progress: bool,
    held_out: ImageSet | None,
    picture: Path | None,
) -> dict[str, Any]:
    """Metrics of an image set; the result of `evaluate`."""
    comparing = [metric for metric in metrics.values() if metric.needs_reference]
    check_kinds(metrics, extractor)
    check_pair(images, reference, metrics, extractor, settings)
    reference = usable_reference(reference, images.shape or reference.shape, extractor)
    check_saved(reference, comparing)

    statistics, vectors = needs(metrics.values())
    if save_to is not None:
        statistics |= {*extractor.kinds} - {"logits"}
        vectors |= {"pool"} if save_features else set()
    computed = collect(images, extractor, statistics, vectors, batch_size=batch_size, cache=cache, progress=progress)
    compared = _reference_features(reference, comparing, extractor, batch_size, cache, progress)
    unseen = None
    if held_out is not None:
        unseen = collect(held_out, extractor, (), {"pool"}, batch_size=batch_size, cache=cache, progress=progress)
    process = processes()
    values: dict[str, float] = {}
    notes: list[str] = []
    details: dict[str, Any] = {}
    with process.raising_together():
        if not process.rank:
            if save_to is not None:
                save_statistics(
                    save_to, computed, extractor.describe(),
                    what=images.what, fingerprint=images.fingerprint, vectors=save_features,
                )  # fmt: skip
            check_same_shape(images.what, computed.shape, reference)
            check_counts(metrics, settings, (images.what, computed.count), (reference.what, compared.count))
            with working(f"computing {', '.join(metrics) or 'statistics'}", progress):
                values, notes = _compute(metrics, computed, compared, settings)
                if "nearest" in metrics:
                    further = None if unseen is None else unseen.vectors["pool"]
                    details["nearest"] = memorisation(computed.vectors["pool"], compared.vectors["pool"], further)
                    shown, training = details["nearest"]["shown"], reference.images
                    written = picture is not None and write_nearest(picture, shown, images, training, batch_size)
                    details["nearest"]["picture"] = str(picture) if written else None
    if process.rank:
        return {}
    return {
        "quarterarc": __version__,
        "format": FORMAT,
        "metrics": values,
        "labels": {name: label(name, extractor.name, settings) for name in metrics},
        **details,
        "notes": notes,
        "extractor": extractor.describe(),
        "images": {
            "what": images.what,
            "count": computed.count,
            "shape": list(computed.shape or ()),
            "fingerprint": images.fingerprint,
            "sampling": images.sampling,
        },
        "reference": {**reference.describe(), "count": compared.count} if comparing else None,
        "settings": _used_settings(metrics, settings, computed, compared),
        "batch_size": batch_size,
        "device": str(extractor.device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def _run_of(source: object) -> Path | None:
    """The run folder that a source names, or None."""
    if not isinstance(source, str | Path):
        return None
    path = Path(source).expanduser()
    return path if (path / "recipe.yaml").is_file() else None


def _held_out_of(reference: object, progress: bool) -> ImageSet | None:
    """The images held out of training, of a reference that is a run."""
    run = _run_of(reference)
    return None if run is None else held_out_images(run, progress=progress)


def _picture_path(source: object, out: Path | None) -> Path | None:
    """The picture of the metric `nearest`: beside the result, or in the run that is evaluated."""
    if out is not None:
        return out.with_name(f"{out.stem}-nearest.png")
    run = _run_of(source)
    return None if run is None else run / NEAREST


def _reference_features(
    reference: Reference,
    metrics: Sequence[Metric],
    extractor: Extractor,
    batch_size: int,
    cache: Path | None,
    progress: bool,
) -> ImageFeatures:
    """The saved features of a reference, completed from its images."""
    saved = reference.saved
    statistics, vectors = needs(metrics)
    statistics, vectors = statistics - saved.statistics.keys(), vectors - saved.vectors.keys()
    if not statistics and not vectors:
        return replace(saved, count=reference.count)
    assert reference.images is not None
    computed = collect(
        reference.images, extractor, statistics, vectors, batch_size=batch_size, cache=cache, progress=progress
    )
    return ImageFeatures(
        computed.count or reference.count,
        computed.shape,
        {**computed.statistics, **saved.statistics},
        {**computed.vectors, **saved.vectors},
    )


def _compute(
    metrics: Mapping[str, Metric], images: ImageFeatures, reference: ImageFeatures, settings: Settings
) -> tuple[dict[str, float], list[str]]:
    """The values by name, and the warnings of the computation."""
    values: dict[str, float] = {}
    computed: dict[Any, dict[str, float]] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, metric in metrics.items():
            if metric.compute not in computed:
                computed[metric.compute] = metric.compute(images, reference, settings)
            scores = computed[metric.compute]
            values |= {key: scores[key] for key in (name, f"{name}_std") if key in scores}
    return values, list(dict.fromkeys(str(warning.message) for warning in caught))


def _used_settings(
    metrics: Mapping[str, Metric], settings: Settings, images: ImageFeatures, reference: ImageFeatures
) -> dict[str, Any]:
    """The settings that the metrics depend on, with the actual subset size."""
    used = {name for metric in metrics.values() for name in metric.uses}
    values = {name: value for name, value in asdict(settings).items() if name in used}
    if "kid" in metrics:
        smaller = min(len(features.vectors["pool"]) for features in (images, reference))
        values["subset_size"] = min(settings.subset_size, smaller)
    return values


def _write(result: dict[str, Any], path: Path | None) -> None:
    if path is not None and result:
        make_folder(path.parent)
        write_json(path, result)
