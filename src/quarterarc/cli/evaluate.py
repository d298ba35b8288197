"""`quarterarc evaluate`: how good images are, by metrics that say exactly what they are of."""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import InputError
from ..storage.files import check_writable
from ..storage.runs import is_run
from .listing import grid_listing, sampler_listing
from .model import add_device_argument, add_sampling_arguments, load_model, parse_seeds
from .parser import Parser

if TYPE_CHECKING:
    from ..data.image_set import ImageSet
    from ..evaluation.extractors import Extractor

logger = logging.getLogger("quarterarc")

_MOST = 50_000  # images that a run samples unless it is told how many: the field's usual number


def add_arguments(parser: Parser) -> None:
    """The arguments of `quarterarc evaluate`."""
    source = "a run (it is sampled), a folder or npz of images, or a data set"
    parser.add_argument("source", metavar="SOURCE", help=source)
    reference = "a folder, a data set, an npz, statistics, or a run for its training images"
    parser.add_argument("--reference", metavar="REF", help=reference)
    metrics = (
        "fid, sfid, precision, recall, density, coverage, is, kid; or bits-per-dim, flow-bits-per-dim "
        "(default: fid,precision,recall)"
    )
    parser.add_argument("--metrics", metavar="LIST", help=metrics)
    features = "inception, dinov2, digits, pixels or package.module:name (default: %(default)s)"
    parser.add_argument("--features", default="inception", metavar="NAME", help=features)
    parser.add_argument("--weights", metavar="PATH", help="the weights of inception or dinov2 (default: downloaded)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the complete result there, as JSON")
    save = "write the statistics of SOURCE there, .safetensors or .npz"
    parser.add_argument("--save-reference", type=Path, metavar="FILE", help=save)
    parser.add_argument("--with-features", action="store_true", help="keep feature vectors in --save-reference")
    count = "number of images (default: all; for a run as many as REF has, at most 50,000)"
    parser.add_argument("--count", type=int, metavar="N", help=count)
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="images per batch (default: %(default)s)"
    )
    add_device_argument(parser)
    run = parser.add_argument_group("how a run is sampled")
    seeds = "one per image: 0-9999 or 1,5,10-19 (default: --count of them, from 0)"
    run.add_argument("--seeds", metavar="LIST", help=seeds)
    add_sampling_arguments(run)
    settings = parser.add_argument_group("settings of the metrics")
    neighbours = "the k of precision, recall, density and coverage (default: %(default)s)"
    settings.add_argument("--neighbours", type=int, default=3, metavar="K", help=neighbours)
    score = "convention of the inception score, torch-fidelity or adm (default: %(default)s)"
    settings.add_argument("--inception-score", default="torch-fidelity", metavar="NAME", help=score)
    splits = "number of splits of the inception score (default: %(default)s)"
    settings.add_argument("--splits", type=int, default=10, metavar="N", help=splits)
    variance = "reverse variance for bits-per-dim: small, large or learned (default: the model's)"
    settings.add_argument("--variance", metavar="NAME", help=variance)
    terms = "terms of the bound per image for bits-per-dim, drawn at random (default: all)"
    settings.add_argument("--terms", type=int, metavar="N", help=terms)
    parser.listing = lambda: f"{sampler_listing()}\n\n{grid_listing()}"


def run(args: argparse.Namespace) -> int:
    """Compute the metrics, write and print them."""
    if args.metrics is None and args.save_reference is None:
        args.metrics = "fid,precision,recall"
    names = [name.strip().lower() for name in (args.metrics or "").split(",") if name.strip()]
    if args.count is not None and args.count < 1:
        raise InputError(f"--count is at least 1, got {args.count}")
    if args.with_features and args.save_reference is None:
        raise InputError("--with-features goes with --save-reference: it keeps feature vectors in that file")

    from ..evaluation.metrics import check_metrics
    from ..likelihood.evaluation import LIKELIHOOD_METRICS

    if args.metrics is not None:
        check_metrics(names)
    asked = [name for name in names if name in LIKELIHOOD_METRICS]
    if asked and len(asked) < len(names):
        others = ", ".join(name for name in names if name not in asked)
        raise InputError(f"{', '.join(asked)} ask the model, {others} its images: evaluate them in two commands")
    if args.out is not None:
        check_writable(args.out)
    if asked:
        return _run_model_metrics(args, asked)
    return _run_image_metrics(args, names)


def _run_image_metrics(args: argparse.Namespace, names: list[str]) -> int:
    from ..common.devices import pick_device, processes
    from ..evaluation.extractors import extractor as named_extractor
    from ..evaluation.measure import evaluate
    from ..evaluation.metrics import METRICS, Settings
    from ..evaluation.references import Reference, check_ending, open_reference

    settings = Settings(args.neighbours, args.inception_score, args.splits)
    reference: Reference | None = None
    if any(METRICS[name].against for name in names):
        if args.reference is None:
            raise InputError("these metrics compare with real images: give --reference (a folder, a data set, "
                             "or saved statistics)")  # fmt: skip
        reference = open_reference(args.reference)
    if args.save_reference is not None:
        check_ending(args.save_reference)
        check_writable(args.save_reference)
    images = _images(args, reference)
    extractor = named_extractor(args.features, pick_device(args.device), args.weights)
    if not names:
        _save_reference(args, images, extractor)
        return 0
    with _kept_for_later(args.out, "features") as cache:
        result = evaluate(
            images, reference, names, extractor, settings=settings, batch_size=args.batch_size, cache=cache,
            save_to=args.save_reference, save_features=args.with_features,
        )  # fmt: skip
        if result:
            _report(result, args.out)
        processes().wait()
    return 0


@contextmanager
def _kept_for_later(out: Path | None, what: str) -> Iterator[Path | None]:
    """A folder beside `out` for what an interrupted command goes on with; gone once it is done, or was refused."""
    from ..common.devices import processes

    if out is None:
        yield None
        return
    folder = out.with_name(f"{out.name}.{what}")
    new = [parent for parent in folder.parents if not parent.exists()]
    try:
        yield folder
    except (InputError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # not empty: somebody else's
            for parent in new:
                parent.rmdir()
        raise
    if processes().rank == 0:
        shutil.rmtree(folder, ignore_errors=True)


def _images(args: argparse.Namespace, reference: Any) -> ImageSet:
    """The images that SOURCE stands for."""
    from ..evaluation.sets import open_set

    if is_run(Path(args.source)):
        return _sampled(args, None if reference is None else reference.count)
    given = [
        name for name in ("seeds", "sampler", "steps", "grid", "labels", "guidance") if getattr(args, name) is not None
    ]
    if given:
        raise InputError(f"--{given[0]} says how a run is sampled, but {args.source} is no run: leave it out")
    return open_set(args.source, args.count)


def _sampled(args: argparse.Namespace, count: int | None) -> ImageSet:
    from ..evaluation.sets import SampledSet

    if args.seeds is not None and args.count is not None:
        raise InputError("give --seeds or --count, not both: --count 100 is --seeds 0-99")
    seeds = parse_seeds(args.seeds) if args.seeds else range(args.count or min(count or _MOST, _MOST))
    model = load_model(args, args.source)
    return SampledSet(
        model.denoise, seeds, model.sampling, labels=model.labels,
        what=f"the run {args.source}", about=model.about,
    )  # fmt: skip


def _save_reference(args: argparse.Namespace, images: ImageSet, extractor: Extractor) -> None:
    from ..common.devices import processes
    from ..evaluation.features import collect
    from ..evaluation.references import save_statistics

    path: Path = args.save_reference
    kinds = [kind for kind in extractor.kinds if kind != "logits"]
    vectors = ["pool"] if args.with_features else []
    with _kept_for_later(path, "features") as cache:
        collected = collect(images, extractor, kinds, vectors, batch_size=args.batch_size, cache=cache)
        if collected.count:
            save_statistics(path, collected, extractor.describe(), what=images.what, fingerprint=images.fingerprint)
        processes().wait()
    if collected.count:
        print(f"statistics of {collected.count} images of {images.what} in {path}")


def _report(result: dict[str, Any], out: Path | None) -> None:
    for note in result["notes"]:
        logger.warning("%s", note)
    width = max(len(text) for text in result["labels"].values())
    for name, text in result["labels"].items():
        spread = result["metrics"].get(f"{name}_std")
        more = "" if spread is None else f" +- {spread:.4g}"
        print(f"{text:{width}}  {result['metrics'][name]:.6g}{more}")
    _write(result, out)


def _write(result: dict[str, Any], out: Path | None) -> None:
    from ..storage.files import make_folder, write_json

    if out is not None:
        make_folder(out.parent)
        write_json(out, result)
        print(f"the whole result is in {out}")


def _run_model_metrics(args: argparse.Namespace, names: list[str]) -> int:
    """Metrics that ask a run's network about images: those of --reference, else its training images."""
    from ..common.devices import pick_device, processes
    from ..evaluation.references import open_reference
    from ..likelihood.evaluation import LikelihoodSettings, evaluate_likelihood
    from ..storage.checkpoints import hash_of, load
    from ..storage.runs import newest_checkpoint

    if not is_run(Path(args.source)):
        raise InputError(f"{', '.join(names)} ask a model, but {args.source} is no run: give a run folder")
    images = open_reference(args.reference or args.source, args.count).images
    if images is None:
        raise InputError(f"{', '.join(names)} need images, but {args.reference} holds statistics: give the images")
    checkpoint = newest_checkpoint(args.source)
    denoise = load(checkpoint, pick_device(args.device), projection=args.projection)
    about = {
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": hash_of(checkpoint),
        "projection": args.projection,
    }
    settings = LikelihoodSettings(args.variance, args.terms)
    with _kept_for_later(args.out, "partial") as cache:
        result = evaluate_likelihood(
            denoise,
            images,
            names,
            settings,
            batch_size=args.batch_size,
            what=str(args.source),
            about=about,
            cache=cache,
        )
        for name, found in result.get("metrics", {}).items():
            error = found["standard_error"]
            more = "" if error is None else f" +- {error:.2g} (standard error)"
            print(f"{name}  {found['bits_per_dim']:.6g}{more}")
        if result:
            _write(result, args.out)
        processes().wait()
    return 0
