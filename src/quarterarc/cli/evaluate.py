"""`quarterarc evaluate`: metrics of a run or of images."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.text import counted
from .arguments import (
    a_path,
    a_text,
    add_device_argument,
    add_sampling_arguments,
    parse_labels,
    parse_seeds,
    sampling_request,
)
from .listing import grid_listing, sampler_listing
from .parser import Parser

logger = logging.getLogger("quarterarc")


def add_arguments(parser: Parser) -> None:
    """The arguments of `quarterarc evaluate`."""
    source = "a run or a diffusers pipeline (it is sampled), a folder or archive of images, or a data set"
    parser.add_argument("source", type=a_text, metavar="SOURCE", help=source)
    reference = "a folder, a data set, an npz, statistics, or a run for its training images"
    parser.add_argument("--reference", type=a_text, metavar="REF", help=reference)
    metrics = (
        "fid, sfid, precision, recall, density, coverage, is, kid; nearest: the training images nearest to samples; "
        "or bits-per-dim, flow-bits-per-dim (default: fid,precision,recall)"
    )
    parser.add_argument("--metrics", metavar="LIST", help=metrics)
    features = (
        "inception, efficientnet, dinov2, classifier, digits, pixels, thumbnails or package.module:name (default: "
        "inception, or efficientnet if Inception's weights are not on this machine; thumbnails for nearest alone)"
    )
    parser.add_argument("--features", type=a_text, default="auto", metavar="NAME", help=features)
    parser.add_argument(
        "--weights",
        type=a_text,
        metavar="PATH",
        help="the weights of inception or dinov2 (default: downloaded), or of classifier",
    )
    parser.add_argument("--out", type=a_path, metavar="FILE", help="write the complete result there, as JSON")
    save = "write the statistics of SOURCE there, .safetensors or .npz"
    parser.add_argument("--save-reference", type=a_path, metavar="FILE", help=save)
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
    neighbours = "the k of precision, recall, density and coverage (default: 3)"
    settings.add_argument("--neighbours", type=int, metavar="K", help=neighbours)
    score = "convention of the inception score, torch-fidelity or adm (default: torch-fidelity)"
    settings.add_argument("--inception-score", metavar="NAME", help=score)
    splits = "number of splits of the inception score (default: 10)"
    settings.add_argument("--splits", type=int, metavar="N", help=splits)
    variance = "reverse variance for bits-per-dim: small, large or learned (default: the model's)"
    settings.add_argument("--variance", metavar="NAME", help=variance)
    terms = "terms of the bound per image for bits-per-dim, drawn at random (default: all)"
    settings.add_argument("--terms", type=int, metavar="N", help=terms)
    parser.listing = lambda: f"{sampler_listing()}\n\n{grid_listing()}"


def run(args: argparse.Namespace) -> int:
    """Compute the metrics, and print and write them."""
    if args.with_features and args.save_reference is None:
        raise InputError("--with-features needs --save-reference: it keeps feature vectors in that file")
    seeds = None if args.seeds is None else parse_seeds(args.seeds)
    labels, request = parse_labels(args.labels), sampling_request(args)

    import torch

    from ..evaluation.measure import DEFAULT_METRICS, evaluate

    default = "" if args.save_reference else ",".join(DEFAULT_METRICS)
    text = default if args.metrics is None else args.metrics
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    of_metrics = ("neighbours", "inception_score", "splits", "variance", "terms")
    settings = {name: getattr(args, name) for name in of_metrics if getattr(args, name) is not None}
    if args.metrics is not None and not names:
        raise InputError("--metrics names no metric: give some, such as fid,precision,recall")
    result = evaluate(
        args.source,
        args.reference,
        names,
        count=args.count,
        features=args.features,
        weights=args.weights,
        seeds=seeds,
        sampler=request.sampler,
        steps=request.steps,
        grid=request.grid,
        options=request.options,
        labels=labels,
        guidance=request.guidance,
        projection=request.projection,
        precision=torch.bfloat16 if args.bf16 else None,
        settings=settings,
        batch_size=args.batch_size,
        device=args.device,
        out=args.out,
        save_to=args.save_reference,
        save_features=args.with_features,
        compile=args.compile,
    )
    if result:
        _report(result)
        _report_files(result, args.out, args.save_reference)
    return 0


def _report(result: dict[str, Any]) -> None:
    for note in result.get("notes", []):
        logger.warning("%s", note)
    labels = result.get("labels", {name: name for name in result["metrics"]})
    width = max(map(len, labels.values()), default=0)
    for name, label in labels.items():
        value, spread, kind = result["metrics"][name], result["metrics"].get(f"{name}_std"), ""
        if isinstance(value, dict):  # a likelihood metric
            value, spread, kind = value["bits_per_dim"], value["standard_error"], " (standard error)"
        error = "" if spread is None else f" +- {spread:.4g}{kind}"
        print(f"{label:{width}}  {value:.6g}{error}")
    if "nearest" in result:
        _report_nearest(result["nearest"])


def _report_nearest(details: dict[str, Any]) -> None:
    print(f"median distance to the nearest training image: {details['median']:.4g}")
    print(f"  of training images to one another: {details['training_median']:.4g}")
    if details["held_out_median"] is not None:
        print(f"  of held-out images: {details['held_out_median']:.4g}")
    if details["picture"] is not None:
        print(f"samples, each followed by its nearest training images: {details['picture']}")


def _report_files(result: dict[str, Any], out: Path | None, save_reference: Path | None) -> None:
    if out is not None:
        print(f"complete result: {out}")
    if save_reference is not None:
        images = result["images"]
        print(f"statistics of {counted(images['count'], 'image')} of {images['what']}: {save_reference}")
