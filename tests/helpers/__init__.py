"""What tests share: nothing here is a test, and no test imports another."""

import os
from pathlib import Path

import pytest

# Of the repository: the one place that knows how deep a test lies.
ROOT = Path(__file__).resolve().parent.parent.parent
# A folder of real tables and images.
SHARED = os.environ.get("TENAS_SHARED", "")
needs_shared = pytest.mark.skipif(not SHARED, reason="TENAS_SHARED (a folder of real tables and images) is not set")
