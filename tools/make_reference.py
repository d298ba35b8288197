"""Write docs/reference.md from the code: recipe fields, sampler options, every registry, and the command line.

python tools/make_reference.py           # writes docs/reference.md
python tools/make_reference.py --check   # exit status 1 if docs/reference.md is out of date
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from quarterarc.cli import COMMANDS, command_parser
from quarterarc.cli.listing import paragraph, written
from quarterarc.evaluation.extractors import EXTRACTORS
from quarterarc.evaluation.metrics import METRICS
from quarterarc.grids import GRIDS
from quarterarc.heads import HEADS
from quarterarc.likelihood import LIKELIHOOD_METRICS
from quarterarc.networks import NETWORKS
from quarterarc.objectives import NORMS, OBJECTIVES
from quarterarc.samplers import SAMPLERS
from quarterarc.samplers.options import options_of
from quarterarc.schedules import SCHEDULES
from quarterarc.training.recipe import Recipe

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"

HEADER = """\
# Reference

Generated from the code by `python tools/make_reference.py`; a test fails when it is out of date. In every family a name
is a registered one, as listed below, or an import path, `package.module:name` ([how to write one](extending.md)).
"""


def reference() -> str:
    """The text of docs/reference.md."""
    parts = [
        HEADER,
        *_recipe(),
        "## Samplers\n",
        "`--sampler NAME --option NAME=VALUE`, or `qa.sample(denoise, noise, NAME, option=value)`.\n",
        *_entries(SAMPLERS),
        "## Grids\n",
        "`--grid NAME`. Also `tuned`, the grid that `quarterarc tune` fitted to the network, or the angles themselves, "
        "`--grid 1.57,1.2,0.6,0`.\n",
        _summaries(GRIDS),
        "## Schedules\n",
        "`schedule.name=NAME` in a recipe, `qa.schedule(NAME, steps)`.\n",
        _summaries(SCHEDULES),
        "## Heads\n",
        "`head=NAME` in a recipe. `NAME+variance` adds the learned variance of Nichol & Dhariwal (2021), "
        "`NAME+log-variance` that of Ho et al. (2020).\n",
        _summaries(HEADS),
        "## Objectives\n",
        "`objective.name=NAME` in a recipe. The options of these objectives are fields of the same section, those "
        "of others are in `objective.options`.\n",
        *_entries(OBJECTIVES),
        "## Norms\n",
        "`objective.norm=NAME` in a recipe: the norm of an error, one number per image.\n",
        _summaries(NORMS),
        "## Networks\n",
        "`network.name=NAME` in a recipe. The U-Net has the fields of the section `network`, other networks are "
        "built with `network.arguments`.\n",
        _summaries(NETWORKS),
        "## Feature extractors\n",
        "`quarterarc evaluate --features NAME`.\n",
        _summaries(EXTRACTORS),
        "## Metrics\n",
        "`quarterarc evaluate --metrics NAME,NAME`.\n",
        _metrics(),
        *_command_line(),
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


# ---------------------------------------------------------------------------------------------------- recipe fields


def _recipe() -> Iterator[str]:
    yield "## Recipe fields\n"
    yield (
        "A recipe is a YAML file of these sections. `quarterarc train RECIPE section.field=value` sets one field, "
        "`quarterarc train RECIPE --show` prints the fields of the recipe's own network and objective.\n"
    )
    plain = []
    sections: list[tuple[str, type[BaseModel]]] = []
    documented = field_docstrings(Recipe)
    for name, field in Recipe.model_fields.items():
        section = _section_of(field.annotation)
        if section is None:
            plain.append(_field_row(name, field, documented.get(name, "")))
        else:
            sections.append((name, section))
    yield _table(("field", "type", "default", "meaning"), plain)
    for name, section in sections:
        yield f"### `{name}`\n"
        yield f"{' '.join(paragraph(section).split())}\n"
        documented = field_docstrings(section)
        yield _table(
            ("field", "type", "default", "meaning"),
            [
                _field_row(f"{name}.{field_name}", field, documented.get(field_name, ""))
                for field_name, field in section.model_fields.items()
            ],
        )


def field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The docstrings below the fields of a pydantic model, each in one line, by field; those of base classes too."""
    documented: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls is BaseModel:
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                documented[field.target.id] = " ".join(text.value.value.split())
    return documented


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field of a recipe holds, or None for a plain value."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    sections = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
    return sections[0] if sections else None


def _field_row(name: str, field: Any, meaning: str) -> tuple[str, ...]:
    default = "required" if field.is_required() else f"`{_yaml(field.get_default(call_default_factory=True))}`"
    return (f"`{name}`", type_text(field.annotation, field.metadata), default, field.description or meaning)


def _yaml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value:g}" if isinstance(value, float) else written(value)


def type_text(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """A type in the words of a YAML file: "whole number >= 1", "`small` or `large`", "list of text", "text or null"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0], [*arguments[1:], *metadata])
    if origin is Literal:
        return " or ".join(f"`{written(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if option is types.NoneType else type_text(option) for option in arguments)
    if origin in (tuple, list):
        if (len(arguments) == 2 and arguments[1] is Ellipsis) or origin is list:
            return f"list of {type_text(arguments[0])}"
        return f"[{', '.join(type_text(argument) for argument in arguments)}]"
    if origin in (dict, Mapping) or annotation is dict:
        return "mapping"
    names = {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "any value"}
    name = names.get(annotation, getattr(annotation, "__name__", str(annotation)))
    limits = " and ".join(limit for entry in metadata for limit in _limits(entry))
    return f"{name} {limits}" if limits else name


def _limits(entry: Any) -> Iterator[str]:
    for constraint in getattr(entry, "metadata", [entry]):
        for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            value = getattr(constraint, attribute, None)
            if value is not None:
                yield f"{sign} {value:g}"


# -------------------------------------------------------------------------------------------------------- registries


def _entries(registry: Mapping[str, Callable[..., Any]]) -> Iterator[str]:
    """Per entry a heading, the summary, and a table with one row per option."""
    for name, entry in registry.items():
        yield f"### `{name}`\n"
        yield f"{_summary(entry)}\n"
        options = options_of(entry)
        if options:
            rows = [
                (
                    f"`{option.name}`",
                    _code(option.type),
                    "required" if option.required else f"`{option.shown_default}`",
                    option.description,
                )
                for option in options
            ]
            yield _table(("option", "type", "default", "meaning"), rows)


def _summaries(registry: Mapping[str, Any]) -> str:
    return _table(("name", "meaning"), [(f"`{name}`", _summary(entry)) for name, entry in registry.items()])


def _summary(entry: Any) -> str:
    return " ".join(paragraph(entry).split())


def _metrics() -> str:
    rows = []
    for name, metric in METRICS.items():
        needs = "images and a reference" if metric.needs_reference else "images"
        settings = ", ".join(f"`{setting}`" for setting in metric.uses) or "-"
        rows.append(
            (f"`{name}`", f"{metric.summary}: {metric.meaning}", f"{metric.kind} features of {needs}", settings)
        )
    rows += [
        (f"`{name}`", _summary(metric.compute), "images and the network of a run", "-")
        for name, metric in LIKELIHOOD_METRICS.items()
    ]
    return _table(("name", "meaning", "computed from", "settings"), rows)


# ------------------------------------------------------------------------------------------------------ command line


def _command_line() -> Iterator[str]:
    yield "## Command line\n"
    yield "A list is numbers and ranges, or names, separated by commas: `5,8,10`, `0-63`, `fid,recall`.\n"
    parser = command_parser(list(COMMANDS))
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in {"": parser, **commands.choices}.items():
        yield f"### `{f'quarterarc {name}'.strip()}`\n"
        yield f"{command.description}\n"
        formatter = command._get_formatter()
        rows = [
            (f"`{_invocation(action)}`", formatter._expand_help(action))
            for action in command._actions
            if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        ]
        yield _table(("argument", "meaning"), rows)
    yield (
        "Shell completion (`pip install 'quarterarc[completion]'`): `quarterarc --print-completion bash > "
        "~/.local/share/bash-completion/completions/quarterarc`, or `quarterarc --print-completion zsh > "
        "FOLDER/_quarterarc` with a FOLDER of zsh's `$fpath`.\n"
    )


def _invocation(action: argparse.Action) -> str:
    value = action.metavar or action.dest.upper()
    if not action.option_strings:
        return str(value)
    return action.option_strings[-1] if action.nargs == 0 else f"{action.option_strings[-1]} {value}"


# ------------------------------------------------------------------------------------------------------------ tables


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description="Write docs/reference.md from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if the page is out of date")
    text, current = reference(), PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    if parser.parse_args().check:
        print("docs/reference.md is current" if text == current else "docs/reference.md is out of date")
        return int(text != current)
    PAGE.write_text(text, encoding="utf-8")
    print(f"docs/reference.md: {len(text.splitlines())} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
