"""scripts/fuzz: a few of the damaged files that it makes by the thousand."""

import subprocess
import sys

import pytest
from helpers import ROOT

# Not those that need a search first, nor the slow ones: pandas, torch, and configurations as a whole.
QUICK = ("npz", "npy", "card", "folder", "pickles", "imagenet16", "preset", "texts", "states", "scores", "partial")


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_no_damaged_file_ends_in_anything_but_its_value_or_a_sentence():
    command = [sys.executable, ROOT / "scripts/fuzz", "--only", ",".join(QUICK), "--tries", "40", "--seed", "2"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.stdout.endswith(f"\n{len(QUICK)} readers, seed 2: 0 wrong\n"), found.stdout + found.stderr
    assert found.returncode == 0
