"""The front door: what can be imported from ``tenas``, searches on arrays, networks of what was found."""

import doctest
import inspect
import os
import subprocess
import sys
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT
from torch import nn

import tenas
from tenas.data.arrays import as_labels, as_pixels
from tenas.spaces import Mask, get_space
from tenas.spaces.custom import CellSpace

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(60) % 3
NASWOT = {"repeats": 1, "batch": 8, "channels": 4, "cells": 1, "weights": "kaiming_fan_in", "redraw": True}
CELLS = {"kind": "cells", "sample": 6, "keep": 2, "measures": {"naswot": NASWOT}}
TRAINING = {
    "kind": "training", "training": {"epochs": 1, "batch": 16, "channels": 2, "cells": 1, "crop_padding": 1, "warmup_epochs": 0}
}  # fmt: skip


def search(space="nas-bench-201", images=IMAGES, rounds=(CELLS,), **options) -> tenas.SearchResult:
    return tenas.search(space, images, changes={"rounds": list(rounds)}, progress=False, **options)


def own_space(name: str = "made-here", kernel: int = 3) -> CellSpace:
    def conv(inputs, outputs, stride):
        return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.BatchNorm2d(outputs))

    return CellSpace(name, {"skip": lambda inputs, outputs, stride: nn.Identity(), "conv": conv}, nodes=3)


MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "tenas").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module):
    assert "tenas.api" in MODULES
    found = doctest.testmod(import_module(module))
    assert found.attempted
    assert not found.failed


def test_all_names_are_there_and_no_others():
    assert {getattr(tenas, name) is not None for name in tenas.__all__} == {True}
    assert set(tenas.__all__) <= set(dir(tenas))
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        tenas.serach  # noqa: B018


def test_the_function_search_is_there_after_the_package_of_that_name_was_imported():
    import tenas.search.prune

    assert callable(tenas.search)
    assert inspect.signature(tenas.search) == inspect.signature(tenas.api.search)
    assert list(inspect.signature(tenas.search).parameters)[:2] == ["space", "images"]


@pytest.mark.slow
def test_a_funnel_of_every_kind_of_round(tmp_path):
    """Its result is that of the files that it leaves; the same call again measures and trains nothing."""
    measures = {"parameters": NASWOT | {"batch": 2}}
    rounds = [{"kind": "operators", "times": 1, "change": "relative", "measures": measures}, CELLS, TRAINING]
    found = search(rounds=rounds, labels=LABELS, limits={"parameters": "60%"}, out=tmp_path / "run", seed=3)
    operators, cells, training = found.rounds
    assert [round.kind for round in found.rounds] == ["operators", "cells", "training"]
    assert [len(round.table) for round in found.rounds] == [24 if "none" in found.settings["exclude"] else 30, 6, 2]
    assert isinstance(operators.kept, Mask)
    assert operators.table.pruned.sum() == 6
    assert set(cells.kept) == set(cells.table.arch[cells.table.kept == 1]) == set(training.table.arch)
    assert found.genotype.arch == training.kept[0] == training.table.arch[training.table.place == 1].item() == str(found)
    assert cells.settings["measures"] == {"naswot": {**NASWOT, "inputs": "images"}}
    # The limit is of the network that is trained in the end: 60 % of the largest one's parameters.
    largest = tenas.build("|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|",
                          channels=16, cells=5, classes=3)  # fmt: skip
    built = tenas.build(found.genotype, channels=16, cells=5, classes=3)
    assert sum(p.numel() for p in built.parameters()) <= 0.6 * sum(p.numel() for p in largest.parameters())
    assert built(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    assert found.svg().startswith("<svg")
    assert found.folder == tmp_path / "run"
    assert (found.folder / "seed3" / "genotype.svg").read_text() == found.svg()
    scores = sorted(found.folder.glob("seed3/round*/scores/*.csv")) + sorted(found.folder.glob("seed3/round3/*/*/history.csv"))
    before = [path.stat().st_mtime_ns for path in scores[:2]]
    again = search(rounds=rounds, labels=LABELS, limits={"parameters": "60%"}, out=tmp_path / "run", seed=3)
    assert [path.stat().st_mtime_ns for path in scores[:2]] == before
    assert again.genotype == found.genotype
    pd.testing.assert_frame_equal(again.rounds[1].table, cells.table)
    with pytest.raises(tenas.TenasError, match="a search of other settings"):
        search(out=tmp_path / "run", seed=3)


def test_the_form_of_the_images_makes_no_difference():
    found = search()
    assert found.folder is None
    scaled = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 255
    for images in (scaled, scaled.numpy().astype(np.float64), torch.from_numpy(IMAGES)):
        other = search(images=images)
        assert other.genotype == found.genotype
        pd.testing.assert_frame_equal(other.rounds[0].table, found.rounds[0].table)


def test_normalised_images_lose_nothing_but_the_rounding():
    scaled = IMAGES.transpose(0, 3, 1, 2) / 255
    mean, std = np.array([0.5, 0.4, 0.3])[:, None, None], 0.25
    normalised = ((scaled - mean) / std).astype(np.float32)
    pixels = as_pixels(normalised)
    assert (pixels.dtype, pixels.shape) == (np.uint8, IMAGES.shape)
    steps = (normalised.max() - normalised.min()) / 255
    back = pixels.transpose(0, 3, 1, 2) * steps + normalised.min()
    assert np.abs(back - normalised).max() <= steps / 2 + 1e-6


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 3, 8, 8), np.uint8), r"uint8 \(4, 3, 8, 8\); they must be uint8 \(n, height, width, 3\)"),
        (np.zeros((4, 8, 8, 3)), r"float64 \(4, 8, 8, 3\); they must be float \(n, 3, height, width\)"),
        (np.zeros((4, 8, 8, 3), np.int64), "uint8 .* or float"),
        (np.zeros((8, 8, 3), np.uint8), "they must be"),
        (np.zeros((0, 8, 8, 3), np.uint8), "they must be"),
        (np.zeros((4, 3, 7, 9)), "at least 8 x 8"),
        (np.full((4, 3, 8, 8), np.nan), "not finite"),
        (np.zeros((4, 8, 8, 3), np.uint8), r"1 different image\(s\)"),
    ],
)
def test_images_that_cannot_be_searched_on_are_refused_with_a_sentence(images, message):
    with pytest.raises(tenas.TenasError, match=message):
        search(images=images)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (LABELS[:5], None, r"int64 \(5,\); they must be 60 integers"),
        (LABELS.astype(float), None, r"they must be 60 integers, one for each image: astype\(int\)"),
        (LABELS.astype(str), None, r"must be 60 integers.*: numpy\.unique\(labels, return_inverse=True\)\[1\]"),
        (np.eye(3)[LABELS], None, r"must be 60 integers.*: argmax\(1\)"),
        (LABELS[:, None], None, r"must be 60 integers.*: ravel\(\)"),
        (LABELS - 1, None, "go from -1 to 1; allowed: 0 to 1"),
        (LABELS, 2, "go from 0 to 2; allowed: 0 to 1"),
        (None, 1, "at least 2 classes"),
    ],
)
def test_labels_that_no_class_has_are_refused_with_a_sentence(labels, classes, message):
    with pytest.raises(tenas.TenasError, match=message):
        search(labels=labels, classes=classes)
    assert as_labels(torch.from_numpy(LABELS), 60)[1] == 3
    assert as_labels(None, 2)[1] == 10


def test_what_needs_labels_is_left_out_or_refused_without_them():
    with pytest.warns(UserWarning, match="rounds of trainings are left out"):
        found = search(rounds=[CELLS, TRAINING])
    assert [round.kind for round in found.rounds] == ["cells"]
    assert found.genotype.arch == found.rounds[0].kept[0]
    with pytest.raises(tenas.TenasError, match="Short trainings need labels"):
        search(rounds=[CELLS, TRAINING], trainings="real")
    with pytest.raises(tenas.TenasError, match="The measure snip is loss-based and needs labels"):
        search(rounds=[CELLS | {"measures": {"snip": NASWOT}}])


def test_a_space_that_no_file_holds(tmp_path):
    """It is searched in this process alone, and nothing of another space of its name is taken for its own."""
    found = search(own_space(), out=tmp_path)
    assert found.genotype.arch.count("~") == 3
    with pytest.raises(tenas.TenasError, match=r"put it into a file and name it path/to/file\.py:object, or use one thread"):
        search(own_space(), threads=2)
    with pytest.raises(tenas.TenasError, match="the name of a built-in space"):
        search(own_space("darts"))
    with pytest.raises(tenas.TenasError, match="Unknown space 'never-made'"):
        search("never-made")
    score = tmp_path / "seed0" / "round1" / "scores" / "1.csv"
    values = score.read_text()
    other = search(own_space(kernel=5), out=tmp_path)
    assert score.read_text() != values
    assert other.genotype.space is not found.genotype.space
    # Both genotypes still build the networks of their own space.
    kernels = [
        {module.kernel_size[0] for module in tenas.build("|conv~0|+|conv~0|conv~1|", space=result.genotype.space, channels=4,
         cells=1, classes=3).body.layers[0].modules() if isinstance(module, nn.Conv2d)}
        for result in (found, other)
    ]  # fmt: skip
    assert kernels == [{3}, {5}]


@pytest.mark.slow
def test_a_space_that_a_module_holds_is_searched_in_worker_processes(tmp_path, monkeypatch):
    (tmp_path / "held_space.py").write_text((ROOT / "examples" / "own_chain.py").read_text(encoding="utf-8"))
    monkeypatch.syspath_prepend(tmp_path)
    space = import_module("held_space").SPACE
    alone, together = (search(space, threads=threads) for threads in (1, 2))
    assert space.reference == "held_space:SPACE"
    assert together.settings["space"] == "held_space:SPACE"
    assert alone.genotype == together.genotype
    assert alone.genotype.space is get_space("held_space:SPACE") is space


SCRIPT = """
import numpy as np
import tenas
images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
try:
    tenas.search("nas-bench-201", images, threads=2)
except tenas.TenasError as error:
    print(error)
"""


def test_a_script_that_its_worker_processes_would_run_again_is_refused_with_a_sentence(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert "would run it again: put its search under 'if __name__ == \"__main__\":', or use one thread" in result.stdout


def test_build_takes_every_form_of_a_genotype(tmp_path):
    found = search(out=tmp_path)
    shape = {"channels": 2, "cells": 1, "classes": 4}
    path = tmp_path / "seed0" / "genotype.json"
    for genotype in (found.genotype, found.genotype.arch, path, str(path)):
        assert tenas.build(genotype, **shape).genotype == found.genotype
    with pytest.raises(tenas.TenasError, match="not the text of a genotype of any space"):
        tenas.build("conv-conv", **shape)
    with pytest.raises(tenas.TenasError, match="no auxiliary head"):
        tenas.build(found.genotype, auxiliary=True, **shape)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threads": -1}, "'threads' is -1; it must be a whole number, at least 1"),
        ({"threads": 0}, "'threads' is 0"),
        ({"seed": 1.5}, "'seed' is 1.5; it must be a whole number, from 0 to 4294967295"),
        ({"seed": None}, "'seed' is None"),
        ({"seed": True}, "'seed' is True"),
        ({"device": "tpu"}, "Unknown device 'tpu'; known: auto, cpu, cuda"),
    ],
)
def test_arguments_that_no_search_has(given, message):
    with pytest.raises(tenas.TenasError, match=message):
        tenas.search("nas-bench-201", IMAGES, changes={"rounds": [CELLS]}, progress=False, **given)


def test_arguments_that_no_network_or_ranking_has():
    cell = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
    for given in ({"channels": True}, {"classes": 0}, {"cells": 1.5}, {"seed": 2**64}, {"seed": 1.5}):
        with pytest.raises(tenas.TenasError, match="it must be a whole number"):
            tenas.build(cell, **{"channels": 4, "cells": 1, "classes": 3} | given)
    images, networks = torch.randn(8, 12), {"one": lambda: nn.Linear(12, 3)}
    for given in ({"seed": -1}, {"repeats": 2.0}, {"batch": None}, {"repeats": 0}):
        with pytest.raises(tenas.TenasError, match="it must be a whole number"):
            tenas.rank(networks, images, measures=["parameters"], **given)
    with pytest.raises(tenas.TenasError, match="The images are a ndarray, not a tensor"):
        tenas.rank(networks, images.numpy(), measures=["parameters"])
    with pytest.raises(tenas.TenasError, match="Unknown kind of preset 'x'; known: search, retrain"):
        tenas.list_presets("x")


def test_what_surrounds_a_search_does_not_change_it():
    def found() -> tuple:
        result = tenas.search(
            "nas-bench-201", IMAGES, seed=np.int64(3), threads=np.int64(1), changes={"rounds": [CELLS]}, progress=False
        )
        return result.genotype.arch, result.rounds[0].table.to_csv()

    expected = found()
    for surrounding in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        with surrounding:
            assert found() == expected
    for set_default, value, before in (
        (torch.set_default_dtype, torch.float64, torch.float32),
        (torch.set_default_device, "meta", None),
    ):
        try:
            set_default(value)
            assert found() == expected
        finally:
            set_default(before)


def test_a_score_does_not_depend_on_the_other_measures_of_a_ranking():
    """Of a network that draws numbers."""

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))

    images, labels = torch.randn(32, 12, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3
    tables = [
        tenas.rank({"a": network, "b": network}, images, labels, measures=measures)
        for measures in (["snip"], ["swap", "snip"], ["snip", "swap"])
    ]
    assert len({tuple(table["snip_score"].sort_index()) for table in tables}) == 1
    with torch.inference_mode():
        inside = tenas.rank({"a": network, "b": network}, images, labels, measures=["snip"])
    assert inside.equals(tables[0])
