"""``python -m tenas``: the command line."""

from tenas.cli import console

console()
