"""What tests share: nothing here is a test, and no test imports another."""

import os
from pathlib import Path

# Of the repository: the one place that knows how deep a test lies.
ROOT = Path(__file__).resolve().parent.parent.parent
# The folder of real tables and images that tests marked `data` read.
SHARED = Path(os.environ.get("TENAS_SHARED", ""))
