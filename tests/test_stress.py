"""scripts/stress: forty of what `make stress` does a thousand times."""

import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_forty_kills_and_faults():
    command = [sys.executable, ROOT / "scripts/stress", "--kills", "32", "--faults", "8", "--measurements", "20", "--seed", "1"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.stdout.endswith("\n32 kills, 8 faults, 20 measurements by each measure, seed 1: 0 ended badly\n"), (
        found.stdout + found.stderr
    )
    assert found.returncode == 0
