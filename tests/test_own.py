"""Spaces and measures of a user's own: built, checked, written and read, drawn, and in the digest of the code."""

import json
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from helpers import ROOT
from torch import nn

from tenas.cli import main
from tenas.errors import TenasError
from tenas.measures import Measure, get_measure
from tenas.networks import Network, Supernet, SupernetCells, count_flops, count_parameters
from tenas.networks.costs import operator_costs
from tenas.report.drawing import PALETTE, colours, draw
from tenas.retrain import load_network
from tenas.retrain.stored import save_network
from tenas.scoring.score import Task, score
from tenas.scoring.subjects import Cell, Cells, Trials, plan
from tenas.spaces import CellSpace, ChainSpace, Layer, get_space, load_genotype
from tenas.spaces.base import WrongFormError

EXAMPLES = ROOT / "examples"
SPACES = {
    "cells": (f"{EXAMPLES}/own_cells.py:SPACE", {"channels": 4, "cells": 1}),
    "darts": (f"{EXAMPLES}/own_cells.py:DARTS_LIKE", {"channels": 4, "cells": 3}),
    "chain": (f"{EXAMPLES}/own_chain.py:SPACE", {"channels": 4, "cells": 2}),
}


def conv(inputs, outputs, stride):
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs))


def skip(inputs, outputs, stride):
    return nn.Identity()


def some(space, count=5):
    generator = np.random.default_rng(0)
    return [space.random_genotype(space.full_mask(), generator) for _ in range(count)]


# --- spaces


@pytest.mark.parametrize("name", SPACES)
def test_a_space_has_networks_texts_and_costs(name):
    reference, shape = SPACES[name]
    space = get_space(reference)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert Supernet(space, classes=5, **shape)(images).shape == (3, 5)
    assert SupernetCells(space, channels=4)(torch.randn(6, 4, 3, 3)).shape[0] == 6
    costs = operator_costs(space, side=16, classes=5, **shape)
    for genotype in some(space):
        assert space.parse(genotype.arch) == genotype
        assert space.genotype(space.mask(genotype)) == genotype
        network = Network(genotype, classes=5, **shape)
        assert network(images).shape == (3, 5)
        assert costs["parameters"].of(genotype) == count_parameters(network)
        assert costs["flops"].of(genotype) == count_flops(network, (3, 16, 16))


def test_the_size_of_a_space_counts_what_its_edges_can_choose():
    assert get_space(SPACES["chain"][0]).size(get_space(SPACES["chain"][0]).full_mask()) == 4**6
    tiny = CellSpace("tiny", {"a": skip, "b": conv, "c": conv}, nodes=3, choices={(2, 0): ("c", "a")})
    archs = [genotype.arch for genotype in tiny.genotypes()]
    assert len(set(archs)) == len(archs) == tiny.size(tiny.full_mask()) == 3 * 2 * 3
    assert not any("b~0" in arch.partition("+")[2] for arch in archs)
    assert [round.trials for round in tiny.rounds()] == [8, 4]


def test_a_supernet_averages_what_an_edge_can_choose():
    """By its definition, with the network's own modules; in evaluation mode, so that nothing depends on the batch."""
    space = ChainSpace("line", {"skip": skip, "conv": conv, "other": conv}, [Layer(1), Layer(2, 2, ("other", "conv"))])
    network = Supernet(space, channels=4, cells=1, classes=2).eval()
    x = features = torch.randn(2, 4, 8, 8)
    first, second = network.body.features.chain.layers
    x = (x + first["conv"](x) + first["other"](x)) / 3
    x = (second["conv"](x) + second["other"](x)) / 2
    assert torch.allclose(network.body.features.chain(features), x, atol=1e-6)
    assert sorted(second) == ["conv", "other"]
    cells = CellSpace("sums", {"none": lambda *_: None, "skip": skip, "conv": conv}, nodes=3)
    cell = Supernet(cells, channels=4, cells=1, classes=2).eval().body.layers[0]
    node = [(features + edge["conv"](features)) / 3 for edge in cell.edges]
    assert torch.allclose(cell(features), node[1] + (node[0] + cell.edges[2]["conv"](node[0])) / 3, atol=1e-6)


@pytest.mark.parametrize("name", ["double", "type", "training", "forward", "place", "conv.5", "__init__"])
def test_an_operator_may_have_a_name_that_modules_have(name):
    """A module registers operators under their names, which are no attributes of it and have no dots."""
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found, costs = [], []
    for called in (name, "conv"):
        space = ChainSpace("line", {"skip": skip, called: conv}, [Layer(), Layer(2, 2, (called,))])
        torch.manual_seed(0)
        found.append(Supernet(space, channels=4, cells=1, classes=2).eval()(images))
        torch.manual_seed(0)
        found.append(Network(space.parse(f"{called}-{called}"), channels=4, cells=1, classes=2).eval()(images))
        counted = operator_costs(space, side=8, classes=2, channels=4, cells=1)
        costs.append({name: (sums.base, sums.operators) for name, sums in counted.items()})
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert costs[0] == costs[1]


class Bends(nn.Module):
    """A skeleton of one's own: the chain twice, from images to logits."""

    def __init__(self, space, operators, *, channels, cells, classes):
        super().__init__()
        from tenas.networks.chain import Chain

        self.stem = nn.Conv2d(3, channels, 1)
        self.first, self.second = (Chain(space, operators, channels, channels, cells) for _ in range(2))
        self.classifier = nn.Linear(channels, classes)

    def set_mask(self, mask):
        self.first.set_mask(mask)
        self.second.set_mask(mask)

    def forward(self, images):
        return self.classifier(self.second(self.first(self.stem(images))).mean((2, 3)))

    @classmethod
    def supernet(cls, space, operators, **shape):
        return cls(space, operators, **shape)

    network = supernet

    @classmethod
    def cells(cls, space, operators, *, channels):
        return cls(space, operators, channels=channels, cells=1, classes=2)


THE_SAME = nn.Identity()


def test_a_skeleton_of_ones_own():
    space = ChainSpace("bent", {"skip": skip, "conv": conv}, [Layer(), Layer()], networks=Bends)
    genotype = space.parse("conv-skip")
    network = Network(genotype, channels=3, cells=1, classes=2)
    assert isinstance(network.body, Bends)
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 2)
    assert operator_costs(space, side=8, classes=2, channels=3, cells=1)["parameters"].of(genotype) == count_parameters(network)
    with pytest.raises(TenasError, match="have no function 'supernet'"):
        Supernet(ChainSpace("none", {"skip": skip, "conv": conv}, [Layer()], networks=nn), channels=3, cells=1, classes=2)
    missing = ChainSpace("missing", {"skip": skip, "conv": conv}, [Layer()], networks="no_such_module")
    with pytest.raises(TenasError, match="'no_such_module' cannot be imported"):
        Supernet(missing, channels=3, cells=1, classes=2)


@pytest.mark.parametrize(
    ("operators", "space", "message"),
    [
        ({"skip": skip, "conv": conv}, {"inputs": 2, "nodes": 3, "cell_types": ("a", "b")},
         r"'skip' of own, made for 8 to 8 channels with stride 2, gives \(2, 8, 8, 8\) for \(2, 8, 8, 8\), not \(2, 8, 4, 4\)"),
        ({"skip": skip, "conv": lambda i, o, s: nn.Conv2d(7, o, 1)}, {}, r"'conv' of own, .* cannot read .* of \(2, 4, 8, 8\)"),
        ({"skip": skip, "pair": lambda i, o, s: nn.LSTM(8, 8)}, {}, "'pair' of own, .* cannot read"),
        ({"skip": skip, "text": lambda i, o, s: "conv"}, {}, "'text' of own gave a str, not a module"),
        ({"skip": skip, "relu": lambda i, o, s: nn.Sequential(nn.ReLU(inplace=True), conv(i, o, s))}, {},
         "'relu' of own, .* writes into its input, which others read too: use inplace=False"),
        ({"skip": skip, "shared": lambda i, o, s: nn.Sequential(THE_SAME, conv(i, o, s))}, {},
         "'shared' of own, .* has a module that its factory gives twice"),
        ({"skip": skip, "one": lambda i, o, s: THE_SAME}, {}, "'one' of own, .* has a module that its factory gives twice"),
        ({"skip": skip, "lazy": lambda i, o, s: nn.LazyConv2d(o, 3, padding=1)}, {}, "'lazy' of own, .* no values for weight"),
        ({"skip": skip, "none": lambda i, o, s: None}, None, "'none' of own adds nothing, which would cut the chain"),
    ],
)  # fmt: skip
def test_an_operator_of_another_shape_is_refused_with_a_sentence(operators, space, message):
    own = ChainSpace("own", operators, [Layer(), Layer()]) if space is None else CellSpace("own", operators, **space)
    with pytest.raises(TenasError, match=message):
        Supernet(own, channels=4, cells=2, classes=3)


class Equal(nn.Conv2d):
    """Equal to every other one, and not to be copied."""

    def __init__(self, *given: int) -> None:
        super().__init__(*given)
        self.lock = threading.Lock()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)

    def __hash__(self) -> int:
        return 1


def test_operators_that_cannot_be_copied_or_are_equal():
    def normed(inputs: int, outputs: int, stride: int) -> nn.Module:
        return nn.utils.weight_norm(nn.Conv2d(inputs, outputs, 3, stride, 1))

    for factory in (normed, lambda i, o, s: Equal(i, o, 3, s, 1)):
        torch.manual_seed(0)
        own = ChainSpace("own", {"skip": skip, "conv": factory}, [Layer(), Layer()], channels=4, cells=1)
        network = Network(own.parse("conv-conv"), channels=4, cells=1, classes=3)
        # The module that is tried draws nothing of the others.
        torch.manual_seed(0)
        again = ChainSpace("own", {"skip": skip, "conv": factory}, [Layer(), Layer()], channels=4, cells=1)
        again._seen = own._seen
        weights = [
            dict(made.state_dict()) for made in (network, Network(again.parse("conv-conv"), channels=4, cells=1, classes=3))
        ]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o: CellSpace("a/b", o), "space's name is letters"),
        (lambda o: CellSpace("a", {"skip": skip}), "at least two operators"),
        (lambda o: CellSpace("a", {"skip-it": skip, "conv": conv}), "An operator's name .* 'skip-it'"),
        (lambda o: CellSpace("a", o, nodes=1), "at least one more node"),
        (lambda o: CellSpace("a", o, edges=[(1, 0), (2, 2)], nodes=3), "edge 2<-2"),
        (lambda o: CellSpace("a", o, edges=[(1, 0)], nodes=3), "needs edges"),
        (lambda o: CellSpace("a", o, inputs=2, nodes=3, cell_types=("n", "n")), "cell types n, n; at most 2"),
        (lambda o: CellSpace("a", o, edges_of_a_node=0), "at least one edge, not 0"),
        (lambda o: CellSpace("a", o, choices={(1, 0): ("pool",)}), "edge 1<-0: Unknown operator of a 'pool'"),
        (lambda o: CellSpace("a", o, choices={(1, 0): ()}), "needs at least one operator to choose from"),
        (lambda o: CellSpace("a", o, choices={(0, 1): ("skip",)}), "names the edge 0<-1, which a does not have"),
        (lambda o: ChainSpace("a", o, []), "needs layers"),
        (lambda o: ChainSpace("a", o, [Layer(1, 3)]), "width 1 and the stride 3"),
        (lambda o: ChainSpace("a", o, [Layer(math.inf)]), "width inf"),
        (lambda o: ChainSpace("a", o, [Layer()], channels=0), "has 0 for 'channels'"),
        (lambda o: ChainSpace("a", o, [Layer()], channels=2.5), "has 2.5 for 'channels'"),
        (lambda o: ChainSpace("a", o, [Layer()], cells=True), "has True for 'cells'"),
        (lambda o: ChainSpace("a", o, [Layer(1), Layer(operators=("pool",))]), "Layer 2: Unknown operator of a 'pool'"),
    ],
)  # fmt: skip
def test_what_is_no_space_is_refused_with_a_sentence(make, message):
    with pytest.raises(TenasError, match=message):
        make({"skip": skip, "conv": conv})


def test_a_text_that_the_space_does_not_have_is_refused_with_a_sentence(tmp_path):
    chain, cells = get_space(SPACES["chain"][0]), get_space(SPACES["darts"][0])
    good = "skip-k3_e1-skip-k5_e1-k3_e4-skip"
    assert chain.parse(f" {good}\n").arch == good
    with pytest.raises(WrongFormError, match="has 2 layers; own-chain has 6"):
        chain.parse("skip-skip")
    with pytest.raises(TenasError, match="Layer 2 of own-chain cannot be 'skip'"):
        chain.parse(good.replace("k3_e1", "skip"))
    with pytest.raises(TenasError, match="'k9' is no operator of own-chain"):
        chain.parse(good.replace("k3_e1", "k9"))
    arch = some(cells, 1)[0].arch
    with pytest.raises(TenasError, match=r"'conv_3x3' is no operator of the edge 2<-0 of own-darts \(skip, dw_5x5\)"):
        cells.parse("|conv_3x3~0|skip~1|+" + arch.partition("+")[2])
    value = chain.full_mask().to_json()
    value["active"]["chain"][1][0] = True
    path = tmp_path / "mask.json"
    path.write_text(json.dumps(value))
    with pytest.raises(TenasError, match="has 'skip' on edge 1 of 'chain', which cannot have it"):
        chain.read_mask(path)


# --- drawings


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("reference", [*(reference for reference, _ in SPACES.values()), "nas-bench-201", "darts"])
def test_a_drawing_names_every_choice(reference):
    space = get_space(reference)
    for genotype in some(space, 3):
        svg = ElementTree.fromstring(draw(genotype))
        names = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text") if element.get("class") == "op"]
        assert sorted(names) == sorted(choice.operator for cell in genotype.cells for choice in cell)
        width = float(svg.get("width"))
        assert all(0 < float(element.get("x", 1)) < width for element in svg.iter("{http://www.w3.org/2000/svg}text"))
    assert len(set(colours(space).values())) == min(len(space.operators), len(PALETTE))


def test_colours_can_be_read_on_white():
    """WCAG 2.1, contrast of text: 4.5 to 1."""
    assert all(1.05 / (luminance(colour) + 0.05) >= 4.5 for colour in PALETTE)


def test_a_long_chain_is_drawn_in_rows():
    space = ChainSpace("long", {"skip": skip, "conv": conv}, [Layer(1 + place // 4) for place in range(14)])
    svg = ElementTree.fromstring(draw(some(space, 1)[0]))
    boxes = [e for e in svg.iter("{http://www.w3.org/2000/svg}rect") if e.get("class") == "layer"]
    assert len(boxes) == 14
    assert sorted({float(box.get("y")) for box in boxes}) == sorted({float(boxes[place].get("y")) for place in (0, 6, 12)})
    assert all(float(box.get("x")) + float(box.get("width")) < float(svg.get("width")) for box in boxes)


# --- references and digests

# Torch is imported where it is needed, so that a digest is known without it.
OWN = """
from tenas import CellSpace, Measure
import helper
SPACE = CellSpace("filed", {"skip": helper.skip, "conv": helper.conv}, nodes=3)
MEASURE = Measure("mine", lambda network, images: 1.0)
NOTHING = 3
"""
HELPER = """
def skip(inputs, outputs, stride):
    from torch import nn
    return nn.Identity()
def conv(inputs, outputs, stride):
    from torch import nn
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
"""
FILES = {"own.py": OWN, "helper.py": HELPER}


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def python(folder: Path, code: str, **environment: str) -> str:
    path = os.pathsep.join([str(ROOT), *filter(None, [environment.pop("path", "")])])
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


DIGEST = (
    "from tenas.search.made_by import *\nprint(measuring_code('score', {{'space': {space!r}}}, {{'measures': [{measure!r}]}}))"
)


def test_a_digest_follows_the_file_and_what_it_imports(tmp_path):
    write(tmp_path, FILES | {"other.py": ""})
    code = DIGEST.format(space="own.py:SPACE", measure="own.py:MEASURE")
    first = python(tmp_path, code)
    write(tmp_path, {"other.py": "x = 1"})
    assert python(tmp_path, code) == first
    write(tmp_path, {"helper.py": HELPER + "x = 1"})
    second = python(tmp_path, code)
    write(tmp_path, {"own.py": OWN.replace("1.0", "2.0")})
    assert len({first, second, python(tmp_path, code)}) == 3


def test_a_digest_follows_the_modules_of_a_package(tmp_path):
    files = {
        "lab/__init__.py": "",
        "lab/own.py": OWN.replace("import helper", "from . import helper\nfrom lab.deep import nets"),
        "lab/helper.py": HELPER,
        "lab/deep/nets.py": "from ..more import x",
        "lab/more.py": "x = 1",
        "lab/unused.py": "",
    }
    write(tmp_path / "src", files)
    (tmp_path / "work").mkdir()
    code = DIGEST.format(space="lab.own:SPACE", measure="lab.own:MEASURE")

    def digest(edited: str = "lab/own.py", more: str = "") -> str:
        write(tmp_path / "src", files | {edited: files[edited] + more})
        return python(tmp_path / "work", code, path=str(tmp_path / "src"))

    first = digest()
    assert digest("lab/unused.py", "y = 2") == first
    assert len({first, *(digest(name, "\ny = 2\n") for name in list(files)[:-1])}) == 6


def test_a_reference_to_something_else_is_refused_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, FILES | {"broken.py": "import nothing_of_that_name"})
    assert get_space("own.py:SPACE") is get_space("./own.py:SPACE") is get_space(f"{tmp_path}/own.py:SPACE")
    assert get_space("own.py:SPACE").reference == "own.py:SPACE"
    for name, message in {
        "none.py:SPACE": r"is expected in none\.py, which is not a file",
        "own.py:SPCE": r"'own\.py:SPCE' does not exist: own\.py has .*SPACE",
        "own.py:NOTHING": "is a int, not a space",
        "broken.py:SPACE": r"cannot be imported .*nothing_of_that_name",
        "own.py:": "is not a reference",
    }.items():
        with pytest.raises(TenasError, match=message):
            get_space(name)
    with pytest.raises(TenasError, match="is a CellSpace, not a measure"):
        get_measure("own.py:SPACE")
    # Its tables would be looked up for other networks.
    (tmp_path / "twin.py").write_text(FILES["own.py"].replace('"filed"', '"nas-bench-201"'))
    with pytest.raises(TenasError, match=r"twin\.py:SPACE has the name 'nas-bench-201' of a built-in space: choose another one"):
        get_space("twin.py:SPACE")


# --- measures


def test_a_measure_gives_a_plain_number_or_a_sentence():
    network, images = nn.Linear(2, 2), torch.zeros(1, 2)

    def measure(value, **traits):
        return Measure("mine", lambda network, images: value, **traits)(network, images)

    for value in (torch.tensor(1.5, requires_grad=True), np.float32(1.5), np.array([1.5]), 1.5):
        assert (measure(value), type(measure(value))) == (1.5, float)
    assert type(measure(torch.tensor(3))) is int
    assert measure(-2.0, signed=True) == -2
    for value, message in ((-2.0, "gave -2; one that can be negative"), ("x", "gave a str, not a number"), (None, "a NoneType"),
                           (torch.zeros(2), "gave a Tensor"), (True, "gave a bool"), (Fraction(1, 2), "gave a Fraction"),
                           (np.bool_(True), "gave a bool"), (float("nan"), r"is not a number \(NaN\)"),
                           (10**400, "whole number too large")):  # fmt: skip
        with pytest.raises(TenasError, match=message):
            measure(value)
    with pytest.raises(TenasError, match=r"letters, digits, .* not 'a,b'"):
        Measure("a,b", len)
    # A study's table has both.
    with pytest.raises(TenasError, match="cannot be named 'rank_sum'"):
        Measure("rank_sum", len)


DRAWS = """
import torch
from torch import nn
from tenas import CellSpace, Measure

class Scale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.factor = nn.Parameter(torch.randn(channels, 1, 1))
        self.norm = nn.GroupNorm(1, channels)
        self.more = nn.Bilinear(2, 2, 2)
    def forward(self, x):
        return self.norm(x) * self.factor + self.more(x.new_ones(1, 2), x.new_ones(1, 2)).sum()

SPACE = CellSpace("draws", {"scale": lambda i, o, s: Scale(i), "skip": lambda i, o, s: nn.Identity()}, nodes=3)

def noisy(network, images):
    with torch.no_grad():
        return network(images + torch.randn_like(images)).var()
MEASURE = Measure("noisy", noisy)
"""


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
CARD = {"mean": [0.5] * 3, "std": [0.25] * 3, "classes": 3}
ONCE = {"repeats": 1, "batch": 4, "channels": 2, "cells": 1, "weights": "pytorch", "redraw": True, "inputs": "images"}


@pytest.mark.slow
def test_what_operators_and_measures_draw_follows_from_names(tmp_path, monkeypatch):
    """In any order, in worker processes too: parameters that torch draws when a module is made, noise of a measure."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"draws.py": DRAWS})
    space = get_space("draws.py:SPACE")
    settings = ONCE | {"repeats": 2, "channels": 3}
    cells = Cells(space, tuple(Cell(number, genotype.arch) for number, genotype in enumerate(space.genotypes())))
    for subjects, threads in ((cells, 2), (Trials(space.full_mask(), space.rounds()[0]), 1)):
        measurements = plan({"draws.py:MEASURE": settings}, subjects.ids)
        task = Task({"draws.py:MEASURE": settings}, subjects, (0, 1))
        plain = score(task, PIXELS, CARD, measurements)
        assert plain == score(task, PIXELS, CARD, measurements[::-1], threads=threads)
        assert len(set(plain.values())) > len(plain) // 2


SPOILS = """
import torch
from tenas import Measure

def size(network, images):
    value = sum(parameter.abs().sum() for parameter in network.parameters()) + images.abs().sum()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        images.zero_()
    network.eval()
    network.register_forward_hook(lambda *given: 1 / 0)
    return value
MEASURE = Measure("size", size)
"""


def test_a_measure_may_do_to_network_and_images_what_it_likes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"spoils.py": SPOILS})
    space = get_space("nas-bench-201")
    subjects = Trials(space.full_mask(), space.rounds()[0])
    task = Task({"spoils.py:MEASURE": ONCE}, subjects, (0, 1))
    measurements = plan(task.measures, subjects.ids)
    values = score(task, PIXELS, CARD, measurements)
    # Each trial has the weights and the images of the first.
    assert len(measurements) > 10
    assert len(set(values.values())) == 1
    assert values[measurements[0]] > 0


FAILS = """
import json
from tenas import Measure

class OddError(Exception):
    def __init__(self, one, other):
        super().__init__("odd")

def fail(what):
    def measure(network, images):
        what()
    return Measure("fails", measure)

def odd():
    raise OddError(1, 2)

def leave():
    raise GeneratorExit

KEY = fail(lambda: {}["x"])
JSON = fail(lambda: json.loads("{"))
ODD = fail(odd)
LEAVE = fail(leave)
"""


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("KEY", r"KeyError in \S*fails\.py, line 20: 'x'\. That file is not part of tenas"),
        ("JSON", r"JSONDecodeError in \S*fails\.py, line 21: Expecting property name"),
        ("ODD", r"Error in \S*fails\.py, line 15: (OddError: )?odd\. That file"),
        ("LEAVE", r"ended it by GeneratorExit\(\): a measure, a space or a source"),
    ],
)
def test_an_error_in_a_file_of_ones_own_names_its_line(tmp_path, monkeypatch, capsys, name, sentence, threads):
    monkeypatch.chdir(tmp_path)
    once = {"repeats": 1, "batch": 4, "channels": 2, "cells": 1, "weights": "pytorch", "redraw": True}
    rounds = [{"kind": "cells", "sample": 4, "keep": 2, "measures": {f"fails.py:{name}": once}}]
    write(tmp_path, {"fails.py": FAILS, "preset.yaml": json.dumps({"exclude": [], "rounds": rounds})})
    assert main(["search", "--preset", "preset.yaml", "--threads", str(threads), "--out", "out"]) == 2
    assert re.search(f"tenas: .*{sentence}", capsys.readouterr().err)


PATCHES = """
from torch import nn
from tenas.spaces import ChainSpace, Layer


def patches(inputs, outputs, stride):
    return nn.Conv2d(inputs, outputs, stride, stride)


def more(inputs, outputs, stride):
    return nn.Sequential(patches(inputs, outputs, stride), nn.Conv2d(outputs, outputs, 1))


SPACE = ChainSpace("patches", {"patches": patches, "more": more}, [Layer(1, 2), Layer(1, 2)])
"""


def test_crops_that_a_space_cannot_process_are_found_before_the_first_round(tmp_path, monkeypatch, capsys):
    """A patch of two pixels fits into 3 x 3 once."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(PATCHES)
    call = ["search", "--space", "own.py:SPACE", "--data", "digits", "--trainings", "none", "--out", "out"]
    assert main([*call, "--set", "rounds.1.sample=3", "rounds.1.keep=3", "rounds.2.keep=3", "rounds.3.keep=2"]) == 2
    said = capsys.readouterr().err
    assert (
        "Round 3: linear_regions reads crops of 3 x 3 pixels, which a cell of patches cannot process: Calculated padded" in said
    )
    assert not list(Path("out").rglob("scores/*.csv"))


def test_operators_that_are_left_out_need_no_crops(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(PATCHES.replace('"more": more}', '"more": lambda i, o, s: nn.Conv2d(i, o, 3, s, 1)}'))
    crops = {"repeats": 1, "inputs": "crops", "count": 20, "blocks": 1, "channels": 1, "weights": "pytorch", "redraw": True}
    rounds = [{"kind": "cells", "sample": "all", "keep": 1, "measures": {"linear_regions": crops}}]
    Path("preset.yaml").write_text(json.dumps({"exclude": ["patches"], "rounds": rounds}))
    assert main(["search", "--space", "own.py:SPACE", "--data", "digits", "--preset", "preset.yaml", "--out", "out"]) == 0


# --- trained networks


@pytest.mark.slow
def test_a_trained_network_knows_its_space(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, FILES)
    shape = {"channels": 3, "cells": 1, "classes": 2, "stem": "cifar"}
    genotype = get_space("own.py:SPACE").parse("|conv~0|+|skip~0|conv~1|")
    network = Network(genotype, **shape).eval()
    save_network(tmp_path / "own.pt", network, genotype, shape, 8, [0.5] * 3, [0.25] * 3)
    loaded, card = load_network(tmp_path / "own.pt")
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(images), network(images))
    assert (card["space"], card["arch"]) == ("own.py:SPACE", genotype.arch)
    # In another folder, by the reference that is right there; in a process that has not imported it.
    (tmp_path / "elsewhere").mkdir()
    code = "from tenas.retrain import load_network\nprint(load_network('../own.pt', {})[1]['space'])"
    assert python(tmp_path / "elsewhere", code.format("'../own.py:SPACE'")) == "../own.py:SPACE"
    with pytest.raises(AssertionError, match=r"is expected in own\.py, which is not a file"):
        python(tmp_path / "elsewhere", code.format(None))
    write(tmp_path, {"helper.py": HELPER.replace("bias=False", "bias=True")})
    with pytest.raises(AssertionError, match=r"do not fit the networks of own\.py:SPACE: it has changed"):
        python(tmp_path, code.format(None).replace("../own.pt", "own.pt"))
    # A file of an earlier version, which names no space.
    cell = load_genotype("|skip_connect~0|+|none~0|nor_conv_1x1~1|+|none~0|none~1|skip_connect~2|")
    save_network(tmp_path / "old.pt", Network(cell, **shape), cell, shape, 8, [0.5] * 3, [0.25] * 3)
    content = torch.load(tmp_path / "old.pt")
    del content["space"]
    torch.save(content, tmp_path / "old.pt")
    assert load_network(tmp_path / "old.pt")[1]["space"] == "nas-bench-201"
