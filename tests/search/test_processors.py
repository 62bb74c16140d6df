"""Other instructions of the processor change last digits, and no decision of a small search."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.engine import TINY

# What torch, oneDNN and MKL are made to do without. Numba's kernel, compiled anew for another processor, takes longer than all.
KINDS = {
    "as it is": {},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "none": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}


def decisions(run: Path) -> object:
    """The genotype of a search, and of each trial whether it went and its ranks."""
    rows = [row for path in sorted(run.glob("seed0/round*/ranking.csv")) for row in csv.DictReader(path.open())]
    ranks = [{key: value for key, value in row.items() if "rank" in key or key in ("round", "trial", "pruned")} for row in rows]
    return json.loads((run / "seed0/genotype.json").read_text())["arch"], ranks


@pytest.mark.long
def test_a_search_decides_the_same_whatever_the_processors_instructions(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    found = {}
    for place, (kind, environment) in enumerate(KINDS.items()):
        out = tmp_path / f"run{place}"
        command = [
            "search",
            "--data",
            tmp_path / "run0/data" if place else "digits",
            "--preset",
            tmp_path / "tiny.yaml",
            "--out",
            out,
        ]
        subprocess.run(
            [sys.executable, "-m", "tenas.cli", *command],
            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | os.environ | environment, check=True, capture_output=True,
        )  # fmt: skip
        found[kind] = decisions(out)
    assert len(found["as it is"][1]) == 24 + 18 + 12
    assert found["AVX2"] == found["as it is"]
    assert found["none"] == found["as it is"]
