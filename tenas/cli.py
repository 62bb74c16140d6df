"""The command line: one subcommand for each stage of the workflow, made from the stage's signature, and ``tenas search``.

Exit status: 0; 2 for an error of the user, described by one sentence on stderr.
"""

import argparse
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated, Any, Literal, get_args, get_origin

from tenas import __version__, stages
from tenas.errors import TenasError, lacks_memory
from tenas.progress import say, shown

# Stages whose name begins with one of these are parts of a command: benchmark_query is ``tenas benchmark query``.
GROUPS = {
    "benchmark": "import the table of a space, look cells up in it, search on it",
    "study": "measures of a sample of cells against their accuracy",
}


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


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return value


PARSERS: dict[str, tuple[Callable[[str], Any], str | None]] = {
    "count": (_count, "N"), "seed": (_seed, "N"), "shard": (_shard, "I/N"), "json": (_json, "JSON"),
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
    return {"type": annotation}, text


class _Formatter(argparse.HelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.default not in (None, argparse.SUPPRESS, []) and action.option_strings
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
    summary = (inspect.getdoc(stage) or "").partition("\n")[0].rstrip(".")
    parser = parsers.add_parser(name, help=summary, description=summary, formatter_class=_Formatter)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tenas", description=__doc__.split("\n\n")[0].replace("``", ""))
    parser.add_argument("--version", action="version", version=f"tenas {__version__}")
    commands = parser.add_subparsers(metavar="STAGE", required=True)
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
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand. Returns its exit status."""
    parsed = vars(_parser().parse_args(arguments))
    stage = parsed.pop("stage")
    if "progress" in inspect.signature(stage).parameters:
        parsed["progress"] = shown
    try:
        said = stage(**parsed)
    except TenasError as error:
        print(f"tenas: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if isinstance(error, OSError) and not lacks_memory(error):
            print(f"tenas: {error.filename or 'A file'} cannot be read or written: {error.strerror or error}.", file=sys.stderr)
            return 2
        if not lacks_memory(error):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        print(
            f"tenas: The memory is not enough ({said}): use a smaller 'batch' or fewer threads, or allow more (ulimit -v, the "
            "job's limit).",
            file=sys.stderr,
        )
        return 2
    if isinstance(said, str):
        say(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
