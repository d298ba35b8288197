"""The Dockerfile, without Docker: what it copies exists and is not ignored, and it installs as the README does."""

from __future__ import annotations

import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from quarterarc.cli import COMMANDS

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COPIED = [source for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE) for source in line.split()[:-1]]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    assert COPIED
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for name in COPIED:
        assert (ROOT / name).exists(), name
        matching = [rule for rule in ignored if fnmatch(name, rule.removeprefix("!"))]
        assert matching[-1].startswith("!"), name  # the last rule that matches decides


def test_everything_that_the_package_is_built_from_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    files = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"}
    files |= {
        package.partition("/")[0] for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    }
    assert files < set(COPIED)


def test_the_install_command_is_that_of_the_readme() -> None:
    (index,) = re.findall(r"^ARG TORCH_INDEX=(\S+)$", DOCKERFILE, re.MULTILINE)
    command = re.findall(r"^RUN (pip install .+)$", DOCKERFILE, re.MULTILINE)[-1]
    options = ("--no-cache-dir", "--constraint", "constraints.txt")
    words = [word for word in shlex.split(command.replace("$TORCH_INDEX", index)) if word not in options]
    assert f"`{shlex.join(words)}`" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_commands_of_the_container_are_those_of_quarterarc() -> None:
    assert re.findall(r"^(?:ENTRYPOINT|CMD) \[(.+)\]$", DOCKERFILE, re.MULTILINE) == ['"quarterarc"', '"demo"']
    page = (ROOT / "docs" / "platforms.md").read_text(encoding="utf-8")
    runs = [shlex.split(line) for line in re.findall(r"^docker run (.+)$", page, re.MULTILINE)]
    after = [words[words.index("quarterarc") + 1 :] for words in runs]
    assert [words[:1] for words in after] == [[], ["train"]]
    assert "demo" in COMMANDS
