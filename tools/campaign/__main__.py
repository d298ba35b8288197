"""`python -m tools.campaign`: run parts of the campaign in workers, print tables, and write the results."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

# before torch is imported: a process with threads could not be forked, and tiny networks gain nothing from them
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

from .disk import allowed
from .results import Outcome, summary, table

PARTS = {"kills": 500, "commands": 3000, "files": 3000, "disk": 50}
"""The parts, with the counts of docs/reliability.md."""
SHORT = {
    "kills": (20, 21, 23, 130),  # training, sampling and evaluation; training in two processes
    "commands": tuple(range(16)),
    "files": (2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15),
    "disk": (0, 1, 2),
}
"""The cases of the short form, which `make test` runs."""


def main(words: Sequence[str] | None = None) -> int:
    """Run the campaign; 1 with any failure."""
    args = _arguments(words)
    parts = list(PARTS) if args.part == "all" else [args.part]
    cases: dict[str, Sequence[int]] = {part: range(args.count or PARTS[part]) for part in parts}
    if args.short:
        cases = {part: SHORT[part] for part in parts}
    if args.only:
        cases = {part: [int(index) for index in args.only.split(",")] for part in parts}
    if args.share is not None:
        return _work(args, cases)
    if "disk" in cases and not allowed():
        print("disk: left out, a file system of one's own is not allowed here", file=sys.stderr)
        del cases["disk"]
    together = [cases] if args.short else [{part: cases[part]} for part in cases]
    results: dict[str, Any] = {}
    for some in together:
        results |= _run(args, some)
    value = {**_about(), "seed": args.seed, "parts": results}
    if args.out is not None:
        args.out.write_text(json.dumps(value, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
    return int(any(result["failed"] for result in results.values()))


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.campaign", description=__doc__)
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--count", type=int, help="number of cases (default: that of docs/reliability.md)")
    parser.add_argument("--seed", type=int, default=0, help="decides all cases (default: 0)")
    parser.add_argument("--workers", type=int, default=2, help="processes that share the cases (default: 2)")
    parser.add_argument("--minutes", type=float, help="begin no case after so long (default: no limit)")
    parser.add_argument("--only", metavar="INDEX", help="run this case only, or several, such as 3,17")
    parser.add_argument("--short", action="store_true", help="the cases of the short form, in one worker")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write counts and failures there, as JSON")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the cases")
    parser.add_argument("--sabotage", metavar="NAME", help="a fault of sabotage.py, which the campaign must find")
    parser.add_argument("--share", metavar="K/N", help=argparse.SUPPRESS)  # a worker: every N-th case from the K-th
    return parser.parse_args(words)


def _run(args: argparse.Namespace, cases: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Run parts in workers, print their tables, and return their results by name."""
    started = time.monotonic()
    workers = 1 if args.short else min(args.workers, *map(len, cases.values()))
    part = next(iter(cases)) if len(cases) == 1 else "all"
    command = [sys.executable, "-m", "tools.campaign", part, "--seed", str(args.seed)]
    command += [] if args.count is None else ["--count", str(args.count)]
    command += [] if args.minutes is None else ["--minutes", str(args.minutes)]
    command += [] if args.only is None else ["--only", args.only]
    command += [] if args.sabotage is None else ["--sabotage", args.sabotage]
    command += [option for option in ("--keep", "--short") if getattr(args, option[2:])]
    running = [
        subprocess.Popen([*command, "--share", f"{place}/{workers}"], stdout=subprocess.PIPE, encoding="utf-8")
        for place in range(workers)
    ]
    lines = [line for process in running for line in process.communicate()[0].splitlines()]  # their output is small
    outcomes: dict[str, list[Outcome]] = {part: [] for part in cases}
    for line in filter(lambda line: line.startswith("{"), lines):
        value = json.loads(line)
        outcomes[value.pop("part")].append(Outcome(**value))
    return {part: _report(args, part, cases[part], own, started) for part, own in outcomes.items()}


def _report(
    args: argparse.Namespace, part: str, cases: Sequence[int], outcomes: list[Outcome], started: float
) -> dict[str, Any]:
    """Print the table and the failures of a part, and return its results."""
    missing = set(cases) - {outcome.index for outcome in outcomes}
    if missing and args.minutes is not None and time.monotonic() - started > 60 * args.minutes:
        print(f"{part}: {len(missing)} cases were not begun: the time was up (--minutes)", file=sys.stderr)
    elif missing:
        detail = f"{len(missing)} cases have no result: a worker ended early"
        outcomes.append(Outcome(min(missing), "the campaign itself", "no result", False, detail=detail))
    result = {**summary(outcomes), "seconds": round(time.monotonic() - started)}
    print(f"\n## {part}: {result['cases']} cases, {result['failed']} failed, {result['seconds']} s\n")
    print(table(result))
    for remark, number in result["remarks"].items():
        print(f"remark: {remark}: {number}")
    for failure in result["failures"]:
        again = f"python -m tools.campaign {part} --seed {args.seed} --only {failure['index']}"
        print(f"\nFAILED {failure['kind']}: {failure['verdict']}: {again}")
        print(f"    {failure['command']!r}\n    {failure['detail']!r}", flush=True)
    return result


def _work(args: argparse.Namespace, cases: Mapping[str, Sequence[int]]) -> int:
    """A worker: run every N-th case of each part and print an outcome per line."""
    from .attempts import preload
    from .prepared import Prepared, set_caches

    base = Path(tempfile.mkdtemp(prefix="campaign-"))
    set_caches(base)
    preload()
    for name in (args.sabotage or "").split(",") if args.sabotage else ():
        getattr(import_module(".sabotage", __package__), name)()
    place, workers = map(int, args.share.split("/"))
    end = math.inf if args.minutes is None else time.monotonic() + 60 * args.minutes
    try:
        first = Prepared(base / "first")
        for part, indices in cases.items():
            module = import_module(f".{part}", __package__)
            runner = getattr(module, part.capitalize())(Prepared(base / part, first), args.seed)
            for index in indices[place::workers]:
                if time.monotonic() > end:
                    break
                try:
                    outcome = runner.case(index, keep=args.keep)
                except Exception as error:  # a fault of the campaign is a failure too
                    detail = f"{type(error).__name__}: {error}"[:2000]
                    outcome = Outcome(index, "the campaign itself", "no result", False, detail=detail)
                print(json.dumps({"part": part, **asdict(outcome)}), flush=True)
                if not outcome.good:
                    print(f"{part} {index}: {outcome.kind}: {outcome.verdict}", file=sys.stderr, flush=True)
    finally:
        if args.keep:
            print(f"folders: {base}", file=sys.stderr)
        else:
            subprocess.run(["rm", "-rf", str(base)], check=False)  # also names that Python cannot decode
    return 0


def _about() -> dict[str, Any]:
    """What was tested, and where."""
    from importlib.util import find_spec

    spec = find_spec("quarterarc")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    git = ["git", "-C", str(folder), "describe", "--always", "--abbrev=10", "--dirty", "--exclude", "*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {"commit": commit or "unknown", "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}


if __name__ == "__main__":
    sys.exit(main())
