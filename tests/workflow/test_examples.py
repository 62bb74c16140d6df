"""The examples, from an empty folder outside the repository: searches in own spaces, by an own measure, on own images.

The workflow runs once, with examples/config.yaml made small, a folder of photographs, and a run whose objects lie in a package
that is only on PYTHONPATH. ``tenas search`` then finds the same.
"""

import csv
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from helpers import ROOT
from helpers.pages import blocks, page
from helpers.runs import call, expected_jobs, job_counts, snakemake, succeed, write_config
from PIL import Image

import tenas
from tenas.cli import main
from tenas.config import load_config
from tenas.networks import Network, count_flops, count_parameters
from tenas.retrain import load_network
from tenas.settings.base import merged
from tenas.spaces import get_space

pytestmark = pytest.mark.workflow
MEASURE = "examples/own_measure.py:MEASURE"
SMALL = {"repeats": 1, "batch": 8, "channels": 2}
# A chain of 8 channels has from 1,537 to 31,057 parameters.
LIMIT = 12_000
PACKAGED = {**SMALL, "cells": 1, "weights": "kaiming_fan_in", "redraw": True}
CELLS = {"rounds": [{"kind": "operators", "times": 1}, {"kind": "cells", "sample": 4, "keep": 2}]}
TINY = {
    "shards": 1,
    "device": "cpu",
    "threads": {"retrain": 1},
    "datasets": {
        "shapes": {"images": 60, "side": 8},
        "photos": {"source": "examples/own_images.py:PHOTOS", "path": "photos", "side": 16},
        "packaged": {"source": "lab.images:SHAPES", "images": 40, "side": 8},
    },
    "runs": {
        "own-cells": {"search": {"measures": {MEASURE: SMALL, "naswot": SMALL}, **CELLS}, "retrain": None},
        "own-chain": {
            "dataset": "photos",
            "limits": {"parameters": LIMIT},
            "search": {
                "measures": {MEASURE: SMALL, "naswot": SMALL},
                "rounds": [
                    {"kind": "operators", "times": 1},
                    {"kind": "cells", "sample": 4, "keep": 2},
                    {"kind": "training", "keep": 1, "training": {"epochs": 1, "validation": 0.2}},
                ],
            },
            "retraining": {"epochs": 1, "batch": 16, "channels": 8, "warmup_epochs": 0},
        },
        "packaged": {
            "space": "lab.chain:SPACE",
            "dataset": "packaged",
            "preset": "examples/quick.yaml",
            "search": {
                "measures": {MEASURE: None, "naswot": None, "lab.measure:MEASURE": PACKAGED},
                "rounds": [{"kind": "cells", "sample": 4, "keep": 1}],
            },
            "seeds": [0],
        },
    },
}


def save_photos(folder: Path) -> None:
    """48 pictures of two kinds, oblong, some of them JPEG, with a table of what is on them."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows = []
    for number in range(48):
        kind = ("dark", "light")[number % 2]
        pixels = generator.integers(0, 120, (16, 20, 3)) + (0, 130)[number % 2]
        name = f"photo-{number}.{'jpg' if number % 3 == 0 else 'png'}"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
        rows.append({"file": name, "label": kind, "part": "test" if number >= 36 else "train"})
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """A folder of a user's own after one run of the workflow; beside it ``src`` with a package that nobody has installed."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    save_photos(folder / "photos")
    package = folder / "src" / "lab"
    package.mkdir(parents=True)
    for name in ("chain", "measure", "images"):
        shutil.copy(ROOT / "examples" / f"own_{name}.py", package / f"{name}.py")
    config = yaml.safe_load((folder / "examples" / "config.yaml").read_text())
    # Its third run is searched with tenas search, below.
    del config["runs"]["own-darts"]
    write_config(folder, merged(config, TINY))
    succeed(snakemake(folder, PYTHONPATH=f"{ROOT}:{folder / 'src'}"))
    return folder


@pytest.fixture
def here(lab, monkeypatch) -> Path:
    monkeypatch.chdir(lab)
    monkeypatch.syspath_prepend(lab / "src")
    return lab


def result(run: str) -> Path:
    return Path("results") / run / "seed0"


def test_the_page_about_what_is_ones_own_can_be_followed(tmp_path, monkeypatch, capsys):
    """Its files as they stand there, its Python, and its commands."""
    text = page("docs/own.md")
    monkeypatch.chdir(tmp_path)
    found = [block for block in blocks(text) if block.language in ("python", "yaml")]
    for block in found:
        if block.name:
            Path(block.name).write_text(block.text)
    assert [block.name for block in found] == [
        "my_space.py",
        "my_measure.py",
        "my_preset.yaml",
        "my_images.py",
        "my_config.yaml",
        "",
    ]
    exec(found[-1].text, {})
    arch, table, value = re.fullmatch(r"(\S+)\n(.*)\n(\S+)\n", capsys.readouterr().out, re.DOTALL).groups()
    assert arch in table
    assert math.isfinite(float(value))
    config = load_config(yaml.safe_load(Path("my_config.yaml").read_text()))
    assert config["runs"]["mine"]["settings"]["space"] == "my_space.py:SPACE"
    commands = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("    tenas search")]
    assert len(commands) == 3
    for command in commands[1:]:
        more = ["--preset", "my_preset.yaml", "--out", "results/third"] if command[-1] == "..." else []
        assert main([*(part for part in command if part != "..."), *more]) == 0


def test_the_configuration_of_the_examples_is_planned_as_it_stands(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    planned = job_counts(succeed(snakemake(tmp_path, "--dry-run", "--configfile", "examples/config.yaml")))
    config = yaml.safe_load((tmp_path / "examples/config.yaml").read_text(encoding="utf-8"))
    assert planned == expected_jobs(config, tmp_path)
    assert {"retrain", "export", "training", "limits"} <= planned.keys()


@pytest.mark.long
def test_the_chain_keeps_its_limit_and_is_trained(here):
    space = get_space("examples/own_chain.py:SPACE")
    arch = json.loads((result("own-chain") / "genotype.json").read_text())["arch"]
    metrics = json.loads((result("own-chain") / "retrain" / "metrics.json").read_text())
    assert metrics["arch"] == arch
    assert metrics["parameters"] == count_parameters(Network(space.parse(arch), channels=8, cells=1, classes=2)) <= LIMIT
    limits = json.loads(Path("results/own-chain/limits.json").read_text())["sums"]["parameters"]
    assert limits["smallest"] < LIMIT < limits["largest"]
    for round in ("round2/cells.csv", "round3/trainings.csv"):
        for row in csv.DictReader((result("own-chain") / round).open()):
            assert count_parameters(Network(space.parse(row["arch"]), channels=8, cells=1, classes=2)) <= LIMIT
    assert metrics["images"] == {"train": 30, "valid": 6, "test": 12}


@pytest.mark.long
def test_the_chain_is_exported(here):
    """From the files of the export alone, on images as they come from the user's folder."""
    card = json.loads((result("own-chain") / "export" / "export.json").read_text())
    assert (card["space"], card["classes"], card["side"]) == ("examples/own_chain.py:SPACE", 2, 16)
    network, _ = load_network(result("own-chain") / "retrain" / "network.pt")
    session = onnxruntime.InferenceSession(result("own-chain") / "export" / "network.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).normal(size=(5, 3, 16, 16)).astype(np.float32)
    (logits,) = session.run(None, {"images": images})
    assert np.abs(logits - network(torch.from_numpy(images)).detach().numpy()).max() < 1e-4


@pytest.mark.long
@pytest.mark.parametrize("run", ["own-cells", "own-chain", "packaged"])
def test_every_run_has_its_files_and_passes_the_audit(here, run):
    genotype = json.loads((result(run) / "genotype.json").read_text())
    space = get_space(genotype["space"])
    assert space.parse(genotype["arch"]).arch == genotype["arch"]
    assert genotype["arch"] in (result(run) / "genotype.svg").read_text()
    assert json.loads((result(run) / "benchmark.json").read_text())["arch"] == genotype["arch"]
    assert (Path("results") / run / "summary.csv").read_text().count("\n") == 2
    assert (result(run).parent / f"figures/rounds-{result(run).name}.svg").read_text().startswith("<?xml")
    path = f"{ROOT}:{here / 'src'}"
    succeed(call("tenas", "audit", f"results/{run}", cwd=here, PYTHONPATH=path))


def setting(rounds: list, measures: tuple[str, ...] = (MEASURE, "naswot")) -> list[str]:
    """The changes of the preset on the command line."""
    small = [f"measures.{name}.{key}={value}" for name in measures for key, value in SMALL.items()]
    return ["--preset", "examples/quick.yaml", "--device", "cpu", "--set", *small, f"rounds={json.dumps(rounds)}"]


@pytest.mark.long
def test_tenas_search_finds_the_same_with_worker_processes(here, tmp_path):
    """Own cells and their measure in rounds of operators and of cells: the bytes of the workflow's jobs."""
    command = ["search", "--space", "examples/own_cells.py:SPACE", "--data", "data/shapes", "--threads", "2"]
    assert main([*command, *setting(CELLS["rounds"]), "--out", str(tmp_path / "run")]) == 0
    names = ["round1/scores/1.csv", "round1/ranking.csv", "round2/scores/1.csv", "round2/cells.csv", "genotype.json"]
    for name in names:
        assert (tmp_path / "run" / "seed0" / name).read_bytes() == (result("own-cells") / name).read_bytes(), name


@pytest.mark.long
def test_cells_with_two_inputs_down_to_one_operator_and_two_edges(here, tmp_path, capsys):
    """On images from an .npz file, within 70 % of the largest cell's multiply-adds."""
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(20) % 2)
    command = ["search", "--space", "examples/own_cells.py:DARTS_LIKE", "--data", str(tmp_path / "mine.npz")]
    rounds = [{"kind": "operators"}, {"kind": "edges"}]
    changes = [*setting(rounds, (MEASURE,)), "measures.naswot=null", "--limit", "flops=70%"]
    assert main([*command, *changes, "--out", str(tmp_path / "run")]) == 0
    space = get_space("examples/own_cells.py:DARTS_LIKE")
    genotype = space.parse(capsys.readouterr().out.removeprefix("seed 0: ").strip())
    assert [len(cell) for cell in genotype.cells] == [6, 6]
    limit = json.loads((tmp_path / "run" / "limits.json").read_text())
    assert limit["network"] == {"channels": 16, "cells": 8, "stem": None, "classes": 2, "side": 8}
    network = tenas.build(genotype, channels=16, cells=8, classes=2)
    assert count_flops(network, (3, 8, 8)) <= limit["sums"]["flops"]["most"] == 0.7 * limit["sums"]["flops"]["largest"]


@pytest.mark.long
def test_tenas_search_reads_a_source_with_a_path(here, tmp_path, capsys):
    entry = {"source": "examples/own_images.py:PHOTOS", "path": "photos", "side": 8}
    rounds = [{"kind": "cells", "sample": 4, "keep": 1}]
    command = ["search", "--space", "examples/own_chain.py:SPACE", "--data", json.dumps(entry), *setting(rounds)]
    assert main([*command, "--limit", "parameters=0.06e6", "--out", str(tmp_path / "run")]) == 0
    genotype = get_space("examples/own_chain.py:SPACE").parse(capsys.readouterr().out.removeprefix("seed 0: ").strip())
    assert count_parameters(tenas.build(genotype, channels=16, cells=1, classes=2)) <= 60_000
    card = json.loads((tmp_path / "run" / "data" / "card.json").read_text())
    assert (card["images"], card["held_out_for_testing"], card["side"]) == (36, 12, 8)
    assert main([*command, "--limit", "parameters=100", "--out", str(tmp_path / "other")]) == 2
    assert "No cell of own-chain has at most 100 parameters: the smallest has 5," in capsys.readouterr().err
    assert main(["search", "--data", "nowhere", "--out", str(tmp_path / "none")]) == 2
    assert "There are no images in nowhere" in capsys.readouterr().err
