"""One bit turned in any file of a finished run, with training and export, is found: by the audit or by what opens the file."""

import json
import random
import zipfile
from contextlib import chdir
from pathlib import Path

import pytest
import torch
import yaml
from helpers.runs import copied

from tenas.audit import audit
from tenas.cli import main
from tenas.files import is_intact, sealed_bytes
from tenas.provenance import has_seal
from tenas.settings import retrain_settings
from tenas.settings.search import search_settings
from tenas.stages.search import search_seed

RUN, SEED = Path("found"), Path("found/seed0")
SMALL = {"repeats": 2, "batch": 8, "channels": 2, "cells": 1, "weights": "kaiming_fan_in", "redraw": True}
TRAINED = {"epochs": 1, "channels": 2, "cells": 1, "batch": 128}
PRESET = {
    "exclude": ["none"],
    "change": "relative",
    "measures": {"naswot": SMALL, "snip": SMALL},
    "rounds": [
        {"kind": "operators"},
        {"kind": "cells", "sample": 6, "keep": 2},
        {"kind": "training", "training": TRAINED},
    ],
}
# Positions at which a bit is turned in each file, besides the first and the last.
POSITIONS = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with prepared images, a search by operators, cells and trainings within a limit, and all that follows it."""
    folder = tmp_path_factory.mktemp("run")
    with chdir(folder):
        assert main(["prepare", json.dumps({"source": "digits", "images": 200}), "--out", "data/digits"]) == 0
        Path("tiny.yaml").write_text(yaml.safe_dump(PRESET))
        found = search_seed(
            search_settings("nas-bench-201", "tiny.yaml", limits={"parameters": "80%"}), Path("data/digits"), 0, RUN, device="cpu"
        )
        assert main(["benchmark", "query", str(found), "--out", str(SEED / "benchmark.json")]) == 0
        settings = {"dataset": {"source": "digits", "side": 8}, **retrain_settings("digits", TRAINED)}
        assert main(["settings", "retrain", json.dumps(settings), "--out", str(RUN / "retrain.json")]) == 0
        own = ["--settings", str(RUN / "retrain.json"), "--genotype", str(found), "--seed", "0", "--device", "cpu"]
        assert main(["retrain", *own, "--out", str(SEED / "retrain")]) == 0
        assert main(["export", "--network", str(SEED / "retrain/network.pt"), "--out", str(SEED / "export")]) == 0
        gathered = ["--out", str(RUN / "summary.csv"), "--metrics", str(RUN / "metrics.json")]
        assert main(["summary", str(RUN), "--seeds", "0", *gathered]) == 0
    return folder


@pytest.fixture
def copy(run, tmp_path, monkeypatch) -> Path:
    """A copy of the run, as the working directory."""
    monkeypatch.chdir(copied(run, tmp_path))
    return tmp_path


def turned(content: bytes, position: int, bit: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]


@pytest.mark.long
def test_a_bit_turned_in_any_file_is_found(copy):
    assert audit(RUN).faults == {}
    generator, unnoticed = random.Random(0), []
    for path in sorted(path for path in RUN.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for position in (0, len(content) - 1, *generator.sample(range(len(content)), POSITIONS)):
            bit = generator.randrange(8)
            path.write_bytes(turned(content, position, bit))
            if not audit(RUN).faults:
                unnoticed.append(f"{path}: bit {bit} of byte {position}, in {content[max(0, position - 20) : position + 20]!r}")
        path.write_bytes(content)
    assert unnoticed == []
    assert audit(RUN).faults == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retrain/network.pt", "retrain/checkpoint.pt", "round5/trainings/1/checkpoint.pt"])
def test_no_bit_of_a_network_or_a_checkpoint_is_lost_on_its_reader(copy, name):
    path, generator = SEED / name, random.Random(1)
    content = path.read_bytes()
    assert is_intact(path)
    torch.load(path, weights_only=True)  # the seal is in nobody's way
    for position in (0, len(content) - 1, *generator.sample(range(len(content)), 60), *range(len(content) - 73, len(content))):
        path.write_bytes(turned(content, position, generator.randrange(8)))
        assert not is_intact(path), position
    # Of an earlier version: the checksums of the archive.
    path.write_bytes(content[:-73])
    assert sealed_bytes(content[:-73]) == content
    assert is_intact(path)
    with zipfile.ZipFile(path) as archive:
        weights = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
    path.write_bytes(turned(content[:-73], content.index(weights) + len(weights) // 2, 3))
    assert not is_intact(path)


@pytest.mark.slow
def test_stages_refuse_what_has_a_bit_turned(copy, capsys):
    network, scores, training = (
        SEED / "retrain/network.pt",
        SEED / "round1/scores/1.csv",
        SEED / "round5/trainings/1/metrics.json",
    )
    prune = ["prune", "--settings", RUN / "search.json", "--mask", SEED / "round0/mask.json", "--round", "1", "--scores", scores]
    prune += ["--limits", RUN / "limits.json", "--ranking", "ranking.csv", "--out", "out"]
    finalists = ["finalists", "--settings", RUN / "search.json", "--shortlist", SEED / "round4/shortlist.json", "--round", "5"]
    finalists += ["--trainings", training, training.parents[1] / "2/metrics.json", "--ranking", "trainings.csv", "--out", "out"]
    digit = next(place for place, byte in reversed(list(enumerate(scores.read_bytes()))) if chr(byte).isdigit())
    seconds, accuracy = (
        path.read_bytes().index(b".", path.read_bytes().index(key)) + 1  # the first decimal
        for path, key in ((scores.with_suffix(".json"), b'"wall_seconds": '), (training, b'"valid_accuracy": '))
    )
    for path, position, command, sentence in (
        (network, 5000, ["export", "--network", network, "--out", "out"], "cannot be read: it is damaged"),
        (scores, digit, prune, "has changed since it was written"),
        (scores.with_suffix(".json"), seconds, prune, "is not what was written"),
        (training, accuracy, finalists, "is not what was written"),
    ):
        content = path.read_bytes()
        path.write_bytes(turned(content, position, 0))
        assert main(list(map(str, command))) == 2, path
        assert sentence in capsys.readouterr().err
        assert not Path("out").exists()
        path.write_bytes(content)


@pytest.mark.parametrize("key", ["record_sha255556", "record_d_d_d_sha256", "record_sha<<: ", "resord_~0|sha256"])
def test_a_seal_of_which_key_and_hash_are_damaged_is_one(key):
    """Else the record would be taken for one of an earlier version, which has none, with whatever else was changed."""
    assert has_seal({"arch": "a", key: "3b0`42809f9d"})
    assert not has_seal({"arch": "a", "provenance": {"wall_seconds": 2.5}})
    assert not has_seal({"measurements": 4, "scores_sha256": "3b" * 32})
    assert has_seal({"arch": "a", "re~0|": f"{'3b' * 15}-0.0{'3b' * 15}"})
