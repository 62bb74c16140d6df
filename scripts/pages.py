"""The pages of the documentation site, for mkdocs.yml: those of the repository where they are, and the reference of the commands.

A link is the same in the repository and on the site; files that pages link to, such as examples, are part of the site.
"""

import argparse
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from tenas.cli import HEADINGS, STAGES, command_parser

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = "docs/commands.md"
# Target of a link or an image, without its anchor; those in code, which are none, are not the names of files.
LINK = re.compile(r"\]\(([^)\s#:]+)")


def on_startup(**_: Any) -> None:
    """Drop a warning that is none: griffe reads ``__all__`` without running it, and tenas.measures has more names there."""
    known = "Unsupported item in tenas.measures.__all__"
    logging.getLogger("mkdocs.plugins.griffe").addFilter(lambda record: known not in record.getMessage())


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """List the theme's files, the pages of the navigation, and the files that they link to, in place of all in ``docs_dir``."""
    site = Files([file for file in files if file.src_dir != config.docs_dir])
    site.append(File.generated(config, COMMANDS, content=commands()))
    pages = [page for page in named(config.nav) if page != COMMANDS]
    for path in dict.fromkeys([*pages, *(link for page in pages for link in links(page))]):
        site.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return site


def named(nav: Any) -> Iterator[str]:
    """Paths of the pages of a navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from named(entry)


def links(page: str) -> Iterator[str]:
    """Files of the repository that a page links to, but for pages."""
    for target in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        path = os.path.normpath(Path(page).parent / target)
        if (ROOT / path).is_file() and not path.endswith(".md"):
            yield path


def commands() -> str:
    """The reference of the command line: the help of each command, under the headings of ``tenas --help``."""
    os.environ["COLUMNS"] = "84"  # what the theme shows of a line
    parsers = subcommands(command_parser())
    listed = [name for names in HEADINGS.values() for name in names]
    headings = {**HEADINGS, STAGES: [name for name in parsers if name not in listed]}
    parts = ["# Commands", "Each command prints what stands here with `--help`. Exit statuses: [workflow.md](workflow.md)."]
    for heading, names in headings.items():
        parts.append(f"## {heading[0].upper()}{heading[1:]}")
        for name in names:
            for parser in (parsers[name], *subcommands(parsers[name]).values()):
                parts += [f"### `{parser.prog}`", f"```text\n{parser.format_help()}```"]
    return "\n\n".join(parts) + "\n"


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Parsers of a parser's subcommands by name."""
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}
