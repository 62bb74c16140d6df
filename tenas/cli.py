"""The command line: one subcommand for each stage, made from the stage's signature and docstring.

An error ends in one sentence on stderr, and in an exit status: tenas/boundary.py.
"""

import argparse
import gc
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

from tenas import __version__, stages
from tenas.boundary import bounded, end
from tenas.errors import TenasError, ended_by
from tenas.files import is_utf8
from tenas.progress import say, shown

# Prefixes of stages that are subcommands of one command: benchmark_query is ``tenas benchmark query``.
GROUPS = {
    "benchmark": "import the table of a space, look cells up in it, search on it",
    "study": "measures of a sample of cells against their accuracy",
}
# Headings of the help and their commands. All other stages are for the workflow.
HEADINGS = {
    "find a network": ("search", "run", "new", "prepare", "workflow", "doctor"),
    "inspect results": ("show", "status", "audit", "archive"),
    "tables of trained cells, studies of measures": ("benchmark", "study", "claims"),
}
STAGES = "stages of the workflow"


def _shard(text: str) -> tuple[int, int]:
    index, _, shards = text.partition("/")
    if not (index.isdecimal() and shards.isdecimal() and 1 <= int(index) <= int(shards)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shard; expected I/N with I from 1 to N")
    return int(index), int(shards)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed; expected a whole number from 0 to 2^32 - 1")
    return int(text)


def _cores(text: str) -> int | str:
    return text if text == "all" else _count(text)


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return value


PARSERS: dict[str, tuple[Callable[[str], Any], str | None]] = {
    "count": (_count, "N"), "seed": (_seed, "N"), "shard": (_shard, "I/N"), "json": (_json, "JSON"), "cores": (_cores, "N"),
}  # fmt: skip


def _options(annotation: Any) -> tuple[dict[str, Any], str]:
    """Options of argparse for a parameter's type, and the help text of its annotation."""
    text = ""
    if get_origin(annotation) is Annotated:
        inner, *notes = get_args(annotation)
        parser = next((PARSERS[note] for note in notes if note in PARSERS), None)
        text = next((note for note in notes if note not in PARSERS), "")
        if parser is not None:
            return {"type": parser[0], "metavar": parser[1]}, text
        options, _ = _options(inner)
        return options, text
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return _options(next(part for part in get_args(annotation) if part is not type(None)))
    if get_origin(annotation) is list:
        options, _ = _options(get_args(annotation)[0])
        return {**options, "nargs": "+", "action": "extend"}, text
    if get_origin(annotation) is Literal:
        return {"choices": get_args(annotation)}, text
    if annotation is bool:
        return {"action": "store_true"}, text
    return {"type": _path if annotation is Path else annotation}, text


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("a path is empty: an unset variable, perhaps")
    return Path(text)


class _Formatter(argparse.HelpFormatter):
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrap paragraphs, except those with indented lines, which are commands."""
        wrap = super()._fill_text
        return "\n\n".join(part if "\n  " in part else wrap(part, width, indent) for part in text.split("\n\n"))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.default not in (None, argparse.SUPPRESS, [], False) and action.option_strings
        if not shown or action.const is not None:
            return action.help
        values = action.default if isinstance(action.default, list) else [action.default]
        text = "/".join(map(str, values[0])) if isinstance(values[0], tuple) else " ".join(map(str, values))
        return f"{action.help} (default: {text.replace('%', '%%')})"


class _Extend(argparse._ExtendAction):
    """Join the values of a repeated option, without the default."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if getattr(namespace, self.dest) is self.default:
            setattr(namespace, self.dest, [])
        super().__call__(parser, namespace, values, option_string)


def _add(parsers: Any, name: str, stage: Callable[..., Any]) -> None:
    description, _, examples = (inspect.getdoc(stage) or "").replace("``", "").partition("\n\nExamples:\n")
    epilog = f"examples:\n{examples}" if examples else None
    parser = parsers.add_parser(
        name, help=description.partition("\n")[0].rstrip("."), description=description, epilog=epilog, formatter_class=_Formatter
    )
    parser.register("action", "extend", _Extend)
    parser.set_defaults(stage=stage)
    hints = typing.get_type_hints(stage, include_extras=True)
    for parameter in inspect.signature(stage).parameters.values():
        if parameter.name == "progress":
            continue
        options, text = _options(hints[parameter.name])
        options["help"] = text
        required = parameter.default is parameter.empty
        if parameter.kind is parameter.KEYWORD_ONLY:
            options |= {"required": True} if required else {"default": parameter.default}
            parser.add_argument(f"--{parameter.name.replace('_', '-')}", dest=parameter.name, **options)
        else:
            if not required:
                options |= {"nargs": "*", "action": None, "default": parameter.default}
            parser.add_argument(parameter.name, **options)


def stage_function(module: str) -> Callable[..., Any]:
    """The function of a stage, which has the same name as its module."""
    found: Callable[..., Any] = getattr(import_module(f"tenas.stages.{module}"), module)
    return found


def _overview(summaries: Mapping[str, str]) -> str:
    """The commands under their headings, one line each."""
    listed = [name for names in HEADINGS.values() for name in names]
    headings = {**HEADINGS, STAGES: [name for name in summaries if name not in listed]}
    width = max(map(len, summaries)) + 2
    return "\n\n".join(
        "\n".join([f"{heading}:", *(f"  {name:<{width}}{summaries[name]}" for name in names)])
        for heading, names in headings.items()
    )


def command_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, made from the signatures of the stages."""
    parser = argparse.ArgumentParser(
        prog="tenas", description="TE-NAS: neural architecture search with little or no training.", formatter_class=_Formatter
    )
    parser.add_argument("--version", action="version", version=f"tenas {__version__}")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error too, as TENAS_DEBUG=1 does")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, help="one of the commands below; tenas COMMAND --help explains it"
    )
    groups = {}
    for module in sorted(info.name for info in iter_modules(stages.__path__)):
        if module == "types":
            continue
        group, _, part = module.partition("_")
        if group in GROUPS:
            if group not in groups:
                added = commands.add_parser(group, help=GROUPS[group], description=GROUPS[group])
                groups[group] = added.add_subparsers(metavar="PART", required=True)
            _add(groups[group], part, stage_function(module))
        else:
            _add(commands, module, stage_function(module))
    # argparse would list them all under one heading.
    parser.epilog = _overview({action.dest: action.help or "" for action in commands._choices_actions})
    commands._choices_actions.clear()
    return parser


def _run(arguments: Sequence[str]) -> int:
    for argument in arguments:
        if not is_utf8(argument):
            raise TenasError(
                f"The argument {argument!r} is not text in UTF-8, as the names in records are: rename the file or folder."
            )
    parsed = vars(command_parser().parse_args(arguments))
    stage = parsed.pop("stage")
    del parsed["debug"]
    if "progress" in inspect.signature(stage).parameters:
        parsed["progress"] = shown
    try:
        said = stage(**parsed)
    except (SystemExit, GeneratorExit) as error:
        raise ended_by(error) from error
    if isinstance(said, str):
        say(said)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand. Returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Declared only for the help: the option may be given anywhere.
    return bounded(lambda: _run([text for text in given if text != "--debug"]), debug="--debug" in given)


def console() -> NoReturn:
    """The command ``tenas``: ``main``, and the end of the process."""
    # Importing torch makes 270,000 objects that stay, through which Python would look for garbage 385 times.
    gc.set_threshold(10_000)
    end(main())


if __name__ == "__main__":
    console()
