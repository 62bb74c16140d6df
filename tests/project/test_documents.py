"""Commands of the documents: their programs, options, targets and files exist. tests/workflow/test_pages.py runs some of them."""

import re
import tomllib
from importlib.util import find_spec

import pytest
from helpers import ROOT
from helpers.pages import commands, page

from tenas.cli import command_parser

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/*.md", "config/README.md", "examples/README.md")
    for path in ROOT.glob(pattern)
)
# What begins with one of these is a file of this repository.
FOLDERS = ("config/", "profiles/", "examples/")


@pytest.mark.parametrize("name", PAGES)
def test_commands_of_a_page_can_be_given(name, capsys):
    parser = command_parser()
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for program, *arguments in commands(page(name)):
        if program == "tenas":
            refused = None
            try:
                parser.parse_args(arguments)
            except SystemExit as end:
                refused = end.code and capsys.readouterr().err
            assert not refused, arguments
        elif program == "make":
            assert arguments[0] in targets
        elif program == "python":
            assert find_spec(arguments[1]), arguments
        elif program == "snakemake":
            named = [text for text in arguments if text.startswith(FOLDERS)]
            assert [text for text in named if not (ROOT / text).exists()] == []
        else:
            assert (ROOT / program).is_file()


def test_there_are_commands_to_look_at():
    found = [command for name in PAGES for command in commands(page(name))]
    assert len(found) > 100
    assert {command[0] for command in found} > {"tenas", "snakemake", "make", "python", "scripts/record"}


def test_every_page_is_on_the_site():
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split()
    assert [name for name in PAGES if name not in listed] == []


def test_the_picture_of_the_architecture_has_the_layers():
    layers = tomllib.loads((ROOT / "tests" / "layers.toml").read_text(encoding="utf-8"))["layer"]
    shown = re.findall(r"font-weight=\"600\">([a-z ]+)</text>", (ROOT / "docs/img/architecture.svg").read_text(encoding="utf-8"))
    assert shown[-len(layers) :] == [layer["name"] for layer in layers]
