"""``python -m tenas``: the command line."""

import sys

from tenas.cli import main

sys.exit(main())
