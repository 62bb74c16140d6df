"""Pages of the documentation as a reader follows them: files are written, commands are run, in their order."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from helpers import ROOT
from helpers.runs import call, succeed

# Commands in such blocks are run by a test; those in indented blocks are not, they take long, or need what a test has not.
SHELL = "sh"


class Block(NamedTuple):
    """A fenced block. ``name``: of the file that it is, by its first line, ``# name``; empty where it is none."""

    language: str
    name: str
    text: str


def page(name: str) -> str:
    """The text of a page, by its path in the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    fences = re.compile(r"^```(\w+)\n(?:# ([\w./]+\.\w+|Snakefile)\n)?(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [Block(*found) for found in fences.findall(text)]


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a page in indented blocks and in those that are run, word by word; none that leaves something out (...)."""
    text = re.sub(r"\s*\\\n\s*", " ", text)
    shell = "".join(block.text for block in blocks(text) if block.language == SHELL)
    indented = re.findall(r"^ {4}(\S.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    for line in "\n".join([*indented, shell]).splitlines():
        # What follows a command says what it does.
        for command in re.split(r"\s+# | {2,}", line)[0].split(" && "):
            if re.match(r"(tenas|snakemake|make|python -m|scripts/\w+)( |$)", command) and "..." not in command:
                yield shlex.split(command)


def follow(name: str, folder: Path) -> str:
    """Do in ``folder`` what a page says: write its files, run its commands and its Python. Returns what the commands printed."""
    said = ""
    for block in blocks(page(name)):
        if block.name:
            (folder / block.name).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.name).write_text(block.text, encoding="utf-8")
        elif block.language == SHELL:
            said += succeed(call("bash", "-euo", "pipefail", "-c", block.text, cwd=folder))
        elif block.language == "python":
            said += succeed(call(sys.executable, "-c", block.text, cwd=folder))
    return said
