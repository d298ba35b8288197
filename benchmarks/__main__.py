"""The command line of the benchmarks: `python -m benchmarks COMMAND`, from a clone of the repository.

Each command is a module of this package with a function `run`, which takes the command's options as keyword arguments,
prints its tables and returns a report of JSON types. A module is imported when its command runs, so `--help` needs
neither torch nor any of the packages that are measured.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from quarterarc.common.errors import InputError
from quarterarc.storage.files import check_writable, make_folder, write_json

CASES = ("digits", "small", "cifar10")
PARTS = ("frechet", "precision-recall")
HELD_OUT = tuple(
    f"{centres}-{width}" for centres in ("digits", "patches8", "cifar16", "cifar32") for width in (0.06, 0.3)
)
WORLDS = (*HELD_OUT, "digits", "patches8", "patches16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark; returns 0, or 2 after a one-line error on the error stream."""
    options = vars(_parser().parse_args(arguments))
    command, threads, out = (options.pop(name) for name in ("command", "threads", "out"))
    # The waiting threads of GNU OpenMP spin. Where two share a processor, that is fifty times slower than a short spin.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if threads is not None:  # torch, numpy and scipy read these variables as they are loaded
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    try:
        if out is not None:
            check_writable(out)
        report = _command(command)(**options)
        if out is not None:
            make_folder(out.parent)
            write_json(out, report)
    except InputError as error:
        print(f"benchmarks: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _command(name: str) -> Callable[..., dict[str, Any]]:
    try:
        run: Callable[..., dict[str, Any]] = import_module(f"benchmarks.{name}").run
    except ModuleNotFoundError as error:
        raise InputError(f"the benchmark '{name}' needs {error.name}: pip install -e '.[dev]'") from None
    return run


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m benchmarks", description="Measurements of quarterarc, alone and against peers.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (summary, add_arguments) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        add_arguments(command)
        command.add_argument(
            "--threads", type=_positive, help="threads of torch, numpy and scipy (default: their own choice)"
        )
        command.add_argument("--out", type=Path, metavar="FILE", help="write the report as JSON to this file")
    return parser


def _network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=_names, default=",".join(CASES), help="networks (default: %(default)s)")
    parser.add_argument("--repeats", type=_positive, default=15, help="pairs of calls (default: %(default)s)")
    parser.add_argument("--batch", type=_positive, help="images per batch (default: the case's own)")
    _device(parser, "compile both networks")
    parser.add_argument(
        "--channels-last", action="store_true", help="both networks in channels-last layout, also on a GPU"
    )


def _device(parser: argparse.ArgumentParser, compile: str = "also compiled, on a GPU in CUDA graphs") -> None:
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast (default: %(default)s)"
    )
    parser.add_argument("--compile", action="store_true", help=compile)


def _training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=_names, default=",".join(CASES), help="networks (default: %(default)s)")
    _device(parser)
    parser.add_argument("--batch", type=_positive, help="images per step (default: the case's own)")
    parser.add_argument("--rounds", type=_positive, default=9, help="pairs of turns (default: %(default)s)")
    parser.add_argument("--steps", type=_positive, default=5, help="steps per turn (default: %(default)s)")
    parser.add_argument("--data", help="a folder of images or a parquet file (default: random pixels)")


def _sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=_names, default=",".join(CASES), help="networks (default: %(default)s)")
    _device(parser)
    parser.add_argument("--count", type=_positive, default=1000, help="images per call (default: %(default)s)")
    parser.add_argument("--batch", type=_positive, default=250, help="images per batch (default: %(default)s)")
    parser.add_argument("--nfe", type=_positive, default=10, help="evaluations per image (default: %(default)s)")
    parser.add_argument("--rounds", type=_positive, default=5, help="rounds of calls (default: %(default)s)")


def _gpu(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=5.0, help="time of the whole command (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the command (default: %(default)s)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16", help="default: %(default)s")
    parser.add_argument("--eager", dest="compile", action="store_false", help="measure nothing compiled")


def _scaling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus", type=_numbers, default="1,8,16,32,64", help="numbers of GPUs (default: %(default)s)")
    parser.add_argument("--node", type=_positive, default=8, help="GPUs per node (default: %(default)s)")
    parser.add_argument(
        "--nvlink", type=float, default=360.0, help="GB/s from a GPU to one of its node (default: %(default)s)"
    )
    parser.add_argument(
        "--network", type=float, default=40.0, help="GB/s from a GPU to another node (default: %(default)s)"
    )


def _overhead(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=_names, default="digits,small", help="networks (default: %(default)s)")
    parser.add_argument(
        "--samplers", type=_names, default="multistep,ddim,rotation,ddpm",
        help="samplers with one evaluation per step (default: %(default)s)",
    )  # fmt: skip
    _device(parser, "compile the network, on a GPU in CUDA graphs")
    parser.add_argument("--nfe", type=_positive, default=10, help="evaluations per image (default: %(default)s)")
    parser.add_argument("--repeats", type=_positive, default=15, help="pairs of measurements (default: %(default)s)")
    parser.add_argument("--batch", type=_positive, help="images per batch (default: the case's own)")


def _evaluation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", type=_names, default=",".join(PARTS), help="measurements (default: %(default)s)")
    parser.add_argument(
        "--dimensions", type=_positive, default=2048, help="dimensions of the features (default: %(default)s)"
    )
    parser.add_argument(
        "--sizes",
        type=_numbers,
        default="10000,20000",
        help="images per set for precision and recall (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=_positive, default=3, help="interleaved rounds (default: %(default)s)")


def _samplers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--worlds", type=_names, help=f"exact worlds (default: {','.join(WORLDS)}; none where --run is given)"
    )
    parser.add_argument(
        "--data", metavar="PATH", type=Path, help="a parquet file of CIFAR-10, for the worlds of its images"
    )
    parser.add_argument("--run", dest="trained", metavar="RUN", type=Path, help="a trained run or checkpoint")
    parser.add_argument(
        "--nfe", type=_numbers, default="4,5,6,8,10,15,20,50", help="evaluations per image (default: %(default)s)"
    )
    parser.add_argument(
        "--images", type=_positive, help="images per world (default: 48, fewer of CIFAR-10, or 6 with --quick)"
    )
    parser.add_argument("--count", type=_positive, default=200, help="images of the trained run (default: %(default)s)")
    parser.add_argument(
        "--features", help="features of the trained run's images (default: digits, or inception for colour)"
    )
    parser.add_argument("--weights", type=Path, help="weights of the features, for inception, dinov2 or classifier")
    parser.add_argument("--device", default="cpu", help="device of the trained run (default: %(default)s)")
    parser.add_argument(
        "--batch", type=_positive, default=250, help="images per batch of the feature network (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image's noise (default: %(default)s)")
    parser.add_argument("--tune", action="store_true", help="also tune multistep to each world")
    parser.add_argument("--quick", action="store_true", help="few images, evaluations and settings, as a check")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw error against NFE to this SVG file")


def _multistep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=_positive, default=48, help="images per setting (default: %(default)s)")
    parser.add_argument("--width", type=float, default=0.15, help="width of the mixtures (default: %(default)s)")
    parser.add_argument("--nfe", type=_numbers, default="5,8,10,20", help="evaluations (default: %(default)s)")


def _transfer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="trained runs, beside the exact worlds")
    parser.add_argument("--nfe", type=_positive, default=5, help="evaluations per image (default: %(default)s)")
    parser.add_argument(
        "--images", type=_positive, default=128, help="images to tune on, and to measure on (default: %(default)s)"
    )


def _agreement(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("teacher", metavar="TEACHER", help="a run, or a folder of diffusers")
    parser.add_argument("map", metavar="MAP", help="the run that was distilled from it")
    parser.add_argument("--images", type=_positive, default=256, help="images (default: %(default)s)")


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "training": ("whole training steps, data included, against diffusers' example", _training),
    "sampling": ("images per second from seeds to files, against diffusers' DDIMPipeline", _sampling),
    "gpu": ("training and sampling on a GPU, all at once and within minutes", _gpu),
    "scaling": ("training on many GPUs, calculated from the step of one", _scaling),
    "network": ("the U-Net against diffusers' UNet2DModel, with the same weights", _network),
    "overhead": ("a sampler against bare calls of its network, at equal evaluations", _overhead),
    "evaluation": ("Frechet distance, precision and recall against the usual implementations", _evaluation),
    "samplers": ("all samplers against diffusers' schedulers, at equal NFE", _samplers),
    "multistep": ("what each choice inside the multistep sampler contributes, on exact denoisers", _multistep),
    "agreement": ("how far a flow map is from its teacher's flow, and from itself", _agreement),
    "transfer": ("tuned grids on denoisers that they were not tuned to", _transfer),
}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0 (lists are written 5,8,10)")
    return number


if __name__ == "__main__":
    sys.exit(main())
