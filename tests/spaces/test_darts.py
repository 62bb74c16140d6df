"""The DARTS space: its texts, its schedule, its networks, and a whole small search."""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tenas.benchmark import read_index
from tenas.config import load_config
from tenas.data import prepare
from tenas.errors import TenasError
from tenas.measures import linear_regions
from tenas.networks import Network, Supernet, SupernetCells, count_flops, count_parameters, initialise
from tenas.networks.darts import FactorisedReduce
from tenas.networks.edge import drop_path
from tenas.report.drawing import draw
from tenas.scoring.subjects import Measurement, Trials
from tenas.search.prune import rank_round
from tenas.settings import read_yaml, schedule, search_settings
from tenas.spaces import Mask, Trial, get_space, load_genotype
from tenas.stages.search import search_seed

DARTS = get_space("darts")
# Published genotypes: TE-NAS's two, and DARTS's second-order one as its code has it, line breaks included.
TENAS_CIFAR = (
    "Genotype(normal=[('dil_conv_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 2), "
    "('skip_connect', 0), ('dil_conv_5x5', 1), ('sep_conv_3x3', 1), ('sep_conv_5x5', 3)], normal_concat=range(2, 6), "
    "reduce=[('sep_conv_5x5', 0), ('sep_conv_5x5', 1), ('sep_conv_5x5', 1), ('sep_conv_5x5', 2), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 3), ('sep_conv_5x5', 2), ('sep_conv_3x3', 4)], reduce_concat=range(2, 6))"
)
TENAS_IMAGENET = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1), ('dil_conv_5x5', 1), ('sep_conv_3x3', 2), "
    "('sep_conv_3x3', 0), ('dil_conv_5x5', 3), ('sep_conv_3x3', 0), ('dil_conv_3x3', 4)], normal_concat=range(2, 6), "
    "reduce=[('dil_conv_3x3', 0), ('sep_conv_5x5', 1), ('dil_conv_3x3', 0), ('sep_conv_3x3', 2), "
    "('sep_conv_3x3', 0), ('dil_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_5x5', 4)], reduce_concat=range(2, 6))"
)
DARTS_V2 = """DARTS_V2 = Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
    ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5],
    reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0),
    ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])
"""
PUBLISHED = [TENAS_CIFAR, TENAS_IMAGENET, DARTS_V2]


def random_genotype(generator: np.random.Generator):
    cells = [
        [
            (str(generator.choice(DARTS.operators[1:])), int(source))
            for target in range(2, 6)
            for source in generator.choice(target, 2, replace=False)
        ]
        for _ in range(2)
    ]
    return DARTS.parse(f"Genotype(normal={cells[0]}, normal_concat=range(2,6), reduce={cells[1]}, reduce_concat=range(2,6))")


# Text


def test_a_genotype_is_read_as_it_is_written():
    normal, reduction = DARTS.parse(TENAS_CIFAR).cells
    assert normal[:3] == ((2, 0, "dil_conv_3x3"), (2, 1, "sep_conv_5x5"), (3, 0, "sep_conv_3x3"))
    assert reduction[-2:] == ((5, 2, "sep_conv_5x5"), (5, 4, "sep_conv_3x3"))
    assert len(normal) == len(reduction) == 8


def test_texts_masks_and_files_round_trip(tmp_path):
    generator = np.random.default_rng(0)
    for genotype in [*map(DARTS.parse, PUBLISHED), *(random_genotype(generator) for _ in range(50))]:
        assert DARTS.parse(genotype.arch) == genotype == load_genotype(genotype.arch)
        assert DARTS.genotype(DARTS.mask(genotype)) == genotype
        path = tmp_path / "genotype.json"
        path.write_text(json.dumps(genotype.to_json()))
        assert load_genotype(path) == genotype
    assert DARTS.parse(TENAS_CIFAR).arch == TENAS_CIFAR


@pytest.mark.parametrize(
    "pasted",
    [
        TENAS_CIFAR.replace("range(2, 6)", "[2, 3, 4, 5]"),
        TENAS_CIFAR.replace("range(2, 6)", "(2,3,4,5)"),
        TENAS_CIFAR.replace("range(2, 6)", "range(2, 6, 1)"),
        TENAS_CIFAR.replace("'", '"'),
        re.sub(r"\(('\w+', \d)\)", r"[\1]", TENAS_CIFAR),
        TENAS_CIFAR.replace("[(", "((").replace(")]", "))"),
        TENAS_CIFAR.replace(", ", ",\n\t"),
        f"\n  TENAS = genotypes.{TENAS_CIFAR};\n",
        f"{TENAS_CIFAR},",
        f"03/15 10:52:14 AM genotype = {TENAS_CIFAR}",
        f"<<<--->>> End: {TENAS_CIFAR}",
        # Inputs of a node in the other order, and fields by place or in another order.
        TENAS_CIFAR.replace("('dil_conv_3x3', 0), ('sep_conv_5x5', 1)", "('sep_conv_5x5', 1), ('dil_conv_3x3', 0)"),
        re.sub(r"\b(normal|reduce)(_concat)?=", "", TENAS_CIFAR),
        re.sub(r"\((normal=.*), (reduce=.*)\)$", r"(\2, \1)", TENAS_CIFAR),
    ],
)  # fmt: skip
def test_what_papers_code_and_logs_say_loads(pasted):
    assert load_genotype(pasted) == DARTS.parse(TENAS_CIFAR)


def changed(old: str, new: str) -> str:
    assert old in TENAS_CIFAR
    return TENAS_CIFAR.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the form Genotype"),
        ("nonsense", "expected the form Genotype"),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", "expected the form Genotype"),
        (TENAS_CIFAR[:-1], "expected the form Genotype"),
        (TENAS_CIFAR + "\n" + TENAS_CIFAR, "expected the form Genotype"),
        ("Genotype(" * 300 + ")" * 300, "has normal, normal_concat, reduce, reduce_concat|expected the form Genotype"),
        (TENAS_CIFAR.replace("range(2, 6)", "__import__('os').getcwd()"), "must be range"),
        (changed("normal=[('dil_conv_3x3', 0)", "normal=[exit()"), "'normal' must be a list of pairs"),
        (changed("normal=[('dil_conv_3x3', 0)", "normal=[('dil_conv_3x3', True)"), "'normal' must be a list of pairs"),
        (changed("normal=[('dil_conv_3x3', 0)", "normal=[('dil_conv_3x3', 0, 1)"), "'normal' must be a list of pairs"),
        (changed(", reduce_concat=range(2, 6)", ""), "needs normal, normal_concat, reduce, reduce_concat, each exactly once"),
        (changed("reduce_concat", "steps"), "needs normal, normal_concat, reduce, reduce_concat, each exactly once"),
        (changed("('sep_conv_5x5', 1), ", ""), "'normal' has 7 pairs, not 8"),
        (changed("reduce=[", "reduce=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "), "'reduce' has 10 pairs, not 8"),
        (changed("dil_conv_3x3", "nor_conv_3x3"), "'nor_conv_3x3' is no operator of darts"),
        (changed("('dil_conv_3x3', 0)", "('dil_conv_3x3', 2)"), "no edge 2<-2"),
        (changed("('dil_conv_3x3', 0)", "('dil_conv_3x3', -1)"), "no edge 2<--1"),
        (changed("('dil_conv_3x3', 0)", "('dil_conv_3x3', 1)"), "Edge 2<-1 is given twice"),
        (changed("normal_concat=range(2, 6)", "normal_concat=range(3, 6)"), "'normal_concat' must be range"),
        (changed("reduce_concat=range(2, 6)", "reduce_concat=[4, 5, 6]"), "'reduce_concat' must be range"),
        (changed("reduce_concat=range(2, 6)", "reduce_concat=range(2, 10**9)"), "'reduce_concat' must be range"),
        (changed("reduce_concat=range(2, 6)", "reduce_concat=range(2, 6, 0)"), "'reduce_concat' must be range"),
        (changed("reduce_concat=range(2, 6)", "reduce_concat={2: 3}"), "'reduce_concat' must be range"),
    ],
)
def test_a_text_that_is_no_genotype_is_refused_with_a_sentence(text, message):
    with pytest.raises(TenasError, match=message):
        DARTS.parse(text)


def test_the_fault_of_a_darts_text_is_named_without_naming_the_space():
    with pytest.raises(TenasError, match="'normal' has 7 pairs, not 8"):
        load_genotype(changed("('sep_conv_5x5', 1), ", ""))
    with pytest.raises(TenasError, match="is of darts, not nas-bench-201"):
        load_genotype(DARTS.parse(TENAS_CIFAR), "nas-bench-201")


# The schedule


@pytest.mark.parametrize(
    ("exclude", "prune", "trials"),
    [
        (["none"], 3, [196, 112, 24]),  # 332 in all: the released code on CIFAR-10
        (["none"], 2, [196, 140, 84, 24]),  # 444: on ImageNet
        ([], 1, [224, 196, 168, 140, 112, 84, 56, 24]),
        (["none"], 9, [196, 24]),
        (list(DARTS.operators[1:]), 1, [24]),
    ],
)
def test_any_search_of_the_schedule_ends_in_a_genotype(exclude, prune, trials):
    generator = np.random.default_rng(3)
    rounds = DARTS.rounds(exclude, prune)
    assert [round.trials for round in rounds] == trials
    assert [round.stage for round in rounds] == ["operators"] * (len(rounds) - 1) + ["edges"]
    mask = DARTS.full_mask(exclude)
    for round in rounds:
        candidates = DARTS.trials(mask, round)
        assert len(set(candidates)) == round.trials
        for trial in candidates:  # each is a network that can be built
            mask.without([trial])
        groups = DARTS.rivals(candidates, round)
        assert sorted(index for group, _ in groups for index in group) == list(range(round.trials))
        mask = mask.without(candidates[i] for group, quota in groups for i in generator.permutation(group)[:quota])
    for cell in DARTS.genotype(mask).cells:
        assert Counter(choice.target for choice in cell) == {2: 2, 3: 2, 4: 2, 5: 2}


def one_operator_an_edge(operator: str = "sep_conv_3x3") -> Mask:
    return DARTS.full_mask([other for other in DARTS.operators if other != operator])


def test_the_last_round_keeps_the_two_edges_whose_removal_does_most_harm():
    """Both measures agree on each edge's worth, which is made up here; the expected edges are written down by hand."""
    mask, round = one_operator_an_edge(), DARTS.rounds(["none"], 3)[-1]
    trials = DARTS.trials(mask, round)
    assert [trial[:2] for trial in trials[:4]] == [("normal", 2), ("normal", 3), ("normal", 4), ("normal", 5)]
    assert {DARTS.edges[trial.edge].target for trial in trials} == {3, 4, 5}
    worth = {
        ("normal", 3): (5, 1, 9), ("normal", 4): (1, 2, 3, 4), ("normal", 5): (9, 1, 1.5, 7, 2),
        ("reduction", 3): (1, 2, 3), ("reduction", 4): (8, 7, 1, 2), ("reduction", 5): (1, 5, 2, 6, 3),
    }  # fmt: skip
    settings = {
        "change": "log", "decimals": None, "ranks": "average", "aggregate": "rank_sum",
        "measures": {"ntk_condition_number": {"repeats": 1}, "linear_regions": {"repeats": 1}},
    }  # fmt: skip
    values = {Measurement(0, "ntk_condition_number", 0): 1e3, Measurement(0, "linear_regions", 0): 1e3}
    for number, trial in enumerate(trials, start=1):
        target, source = DARTS.edges[trial.edge]
        # Without a worthy edge kappa is higher and there are fewer regions.
        values[Measurement(number, "ntk_condition_number", 0)] = 1e3 * worth[trial.cell, target][source]
        values[Measurement(number, "linear_regions", 0)] = 1e3 / worth[trial.cell, target][source]
    _, rows, after = rank_round(settings, Trials(mask, round), values)
    kept = {(cell, 2): [0, 1] for cell in DARTS.cell_types} | {
        ("normal", 3): [0, 2], ("normal", 4): [2, 3], ("normal", 5): [0, 3],
        ("reduction", 3): [1, 2], ("reduction", 4): [0, 1], ("reduction", 5): [1, 3],
    }  # fmt: skip
    for cell, choices in zip(DARTS.cell_types, DARTS.genotype(after).cells, strict=True):
        for target in range(2, 6):
            assert [choice.source for choice in choices if choice.target == target] == kept[cell, target]
    assert sum(row["pruned"] for row in rows) == 12


def test_a_mask_that_makes_no_network_is_refused():
    full, single = DARTS.full_mask(["none"]), one_operator_an_edge()
    with pytest.raises(TenasError, match="no operator on edge 3<-1 of the darts cell type 'reduction'"):
        full.without(Trial("reduction", 3, operator) for operator in DARTS.operators)
    with pytest.raises(TenasError, match="leaves 1 edges into node 2 of the darts cell type 'normal'; it needs 2"):
        single.without([Trial("normal", 0, "sep_conv_3x3")])
    with pytest.raises(TenasError, match="no operator on edge 2<-0"):
        DARTS.full_mask(DARTS.operators)
    with pytest.raises(TenasError, match="168 edges to try, but round 3 of this search has 24"):
        DARTS.trials(full, DARTS.rounds(["none"], 3)[-1])
    with pytest.raises(TenasError, match="0 operators to try, but round 2 of this search has 112"):
        DARTS.trials(single, DARTS.rounds(["none"], 3)[1])
    ended = DARTS.mask(DARTS.parse(TENAS_CIFAR))
    with pytest.raises(TenasError, match="0 edges to try, but round 3 of this search has 24"):
        DARTS.trials(ended, DARTS.rounds(["none"], 3)[-1])
    with pytest.raises(TenasError, match="still has 7 operators"):
        DARTS.genotype(full)
    with pytest.raises(TenasError, match="node 3 of the cell type 'normal' still has 3 edges"):
        DARTS.genotype(single)


# Networks


def normalised(x, bn):
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (var + bn.eps).sqrt() * bn.weight[:, None, None] + bn.bias[:, None, None]


def windows(x, stride, fill):
    """All 3x3 windows with padding 1, (n, c, 9, h, w)."""
    x = functional.pad(x, (1, 1, 1, 1), value=fill)
    height, width = x.shape[2] - 2, x.shape[3] - 2
    return torch.stack([x[:, :, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)], 2)


def separable(module, x, kernel, stride, dilation=1):
    depthwise, pointwise, bn = module
    padding = dilation * (kernel - 1) // 2
    x = functional.conv2d(x.clamp(min=0), depthwise.weight, stride=stride, padding=padding, dilation=dilation, groups=x.shape[1])
    return normalised(functional.conv2d(x, pointwise.weight), bn)


def reduced(module, x):
    x = x.clamp(min=0)
    odd = functional.pad(x, (0, 1, 0, 1))[:, :, 1::2, 1::2][:, :, : (x.shape[2] + 1) // 2, : (x.shape[3] + 1) // 2]
    parts = [functional.conv2d(odd, module.odd.weight)]
    if module.even is not None:
        parts = [functional.conv2d(x[:, :, ::2, ::2], module.even.weight), *parts]
    return normalised(torch.cat(parts, 1), module.bn)


def run(name, modules, x, stride):
    if name == "none":
        return 0 * x[:, :, ::stride, ::stride]
    if name == "skip_connect":
        return x if stride == 1 else reduced(modules[name], x)
    if name == "max_pool_3x3":
        return windows(x, stride, -torch.inf).amax(2)
    if name == "avg_pool_3x3":
        return windows(x, stride, 0).sum(2) / windows(torch.ones_like(x), stride, 0).sum(2)
    kernel = int(name[-1])
    if name.startswith("dil"):
        return separable(modules[name], x, kernel, stride, dilation=2)
    return separable(modules[name].second, separable(modules[name].first, x, kernel, stride), kernel, 1)


def cells_by_definition(stack, mask, before, now):
    """The cells from their definition, each operator with a ReLU of its own, with a network's weights, in training mode."""
    halved = False
    for index, cell in enumerate(stack.cells):
        reduction = index in stack.reductions
        first, second = cell.preprocess
        nodes = [
            reduced(first, before) if halved else normalised(functional.conv2d(before.clamp(min=0), first[0].weight), first[1]),
            normalised(functional.conv2d(now.clamp(min=0), second[0].weight), second[1]),
        ]  # fmt: skip
        for target in range(2, 6):
            total = 0
            for source in range(target):
                edge = DARTS.edges.index((target, source))
                names = mask.operators("reduction" if reduction else "normal", edge)
                stride = 2 if reduction and source < 2 else 1
                if names:
                    outs = [run(name, cell.edges[edge], nodes[source], stride) for name in names]
                    total = total + sum(outs) / len(outs)
            nodes.append(total)
        before, now, halved = now, torch.cat(nodes[2:], 1), reduction
    return now


def random_mask(seed: int) -> Mask:
    generator = np.random.default_rng(seed)
    rows = generator.random((2, 14, 8)) < 0.4
    rows[..., 0] |= ~rows.any(-1)
    return Mask(DARTS, tuple(tuple(tuple(map(bool, row)) for row in cell) for cell in rows))


@pytest.mark.parametrize(
    "mask",
    [
        DARTS.full_mask(),
        DARTS.full_mask(["none"]),
        random_mask(0),
        random_mask(1),
        DARTS.mask(DARTS.parse(TENAS_CIFAR)),
        DARTS.mask(DARTS.parse(DARTS_V2)),
        DARTS.mask(DARTS.parse(DARTS_V2.replace("max_pool_3x3", "none").replace("sep_conv_3x3", "none"))),
        one_operator_an_edge("skip_connect").without([Trial("reduction", 6, "skip_connect")]),
        one_operator_an_edge("none"),
    ],
)
@pytest.mark.parametrize(("channels", "cells", "side"), [(1, 2, 8), (2, 5, 9)])
def test_the_supernet_is_what_its_definition_says(mask, channels, cells, side):
    network = Supernet("darts", mask, channels=channels, cells=cells, classes=5).double().train()
    initialise(network, "kaiming_fan_out", 0)
    body = network.body
    x = torch.randn(3, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stem = normalised(functional.conv2d(x, body.stem[0].weight, padding=1), body.stem[1])
    out = cells_by_definition(body.cells.stack, mask, stem, stem)
    features = normalised(out, body.cells.bn).clamp(min=0).mean((2, 3))
    expected = features @ body.classifier.weight.T + body.classifier.bias
    assert torch.allclose(network(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("text", PUBLISHED)
def test_the_discrete_network_is_what_its_definition_says(text):
    network = Network(text, channels=4, cells=6, classes=5).double().train()
    body = network.body
    assert [cell.cell_type for cell in body.stack.cells] == ["normal", "normal", "reduction", "normal", "reduction", "normal"]
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    stem = normalised(functional.conv2d(x, body.stem[0].weight, padding=1), body.stem[1])
    assert stem.shape[1] == 12
    out = cells_by_definition(body.stack, DARTS.mask(DARTS.parse(text)), stem, stem)
    expected = out.mean((2, 3)) @ body.classifier.weight.T + body.classifier.bias
    assert torch.allclose(network(x), expected, rtol=1e-9, atol=1e-9)


def test_the_search_network_has_the_released_codes_parameters():
    # 5,655 in the released code, 224 of them architecture parameters, one an edge and operator, which we don't have.
    network = Supernet("darts", channels=1, cells=2, classes=10)
    assert count_parameters(network) == 5_655 - 2 * 14 * 8
    assert [cell.cell_type for cell in network.body.cells.stack.cells] == ["normal", "reduction"]


def test_the_cells_take_crops_of_three_pixels():
    network = SupernetCells("darts", DARTS.full_mask(["none"]), channels=1)
    initialise(network, "kaiming_fan_in", 0)
    generator = torch.Generator().manual_seed(0)
    # Smooth, as crops of images are.
    crops = torch.randn(1000, 1, 1, 1, generator=generator) + 0.1 * torch.randn(1000, 1, 3, 3, generator=generator)
    features = network(crops)
    assert features.shape == (1000, 8, 2, 2)
    assert features.isfinite().all()
    whole = linear_regions(network, crops)
    network.set_mask(DARTS.mask(DARTS.parse(DARTS_V2)))
    assert 1 < linear_regions(network, crops) < whole < 1000


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
@pytest.mark.parametrize("side", [3, 4, 5, 8])
def test_factorised_reduction_of_any_number_of_channels_and_any_size(channels, side):
    module = FactorisedReduce(3, channels).double().train()
    x = torch.randn(4, 3, side, side + 1, dtype=torch.float64).clamp(min=0)
    out = module(x)
    assert out.shape == (4, channels, (side + 1) // 2, (side + 2) // 2)
    assert torch.allclose(out, reduced(module, x))
    assert sum(p.numel() for p in module.parameters()) == 3 * channels + 2 * channels
    weights = [conv.weight for conv in (module.even, module.odd) if conv is not None]
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(out.square().sum() + out.sum(), weights))


@pytest.mark.parametrize(
    ("text", "cifar", "imagenet", "cifar_flops", "imagenet_flops"),
    [
        (TENAS_CIFAR, 4_137_526, 5_868_640, 637_568_650, 641_416_168),  # published: 4.14 M
        (TENAS_IMAGENET, 3_779_398, 5_420_416, 580_254_346, 590_415_400),  # 3.78 M, 5.42 M
        (DARTS_V2, 3_349_342, 4_718_752, 528_359_050, 529_912_552),  # 3.3 M, 4.7 M
    ],
)
def test_the_published_networks_have_their_parameters(text, cifar, imagenet, cifar_flops, imagenet_flops):
    network = Network(text, channels=36, cells=20, classes=10)
    assert count_parameters(network) == cifar
    assert count_flops(network, (3, 32, 32)) == cifar_flops
    network = Network(text, channels=48, cells=14, classes=1000, stem="imagenet")
    assert count_parameters(network) == imagenet
    assert count_flops(network, (3, 224, 224)) == imagenet_flops


@pytest.mark.parametrize(
    ("text", "channels", "cells", "classes", "stem", "side"),
    [(TENAS_CIFAR, 36, 20, 10, "cifar", 32), (TENAS_IMAGENET, 48, 14, 1000, "imagenet", 224)],
)
def test_the_published_networks_train_at_full_size(text, channels, cells, classes, stem, side):
    network = Network(text, channels=channels, cells=cells, classes=classes, stem=stem, auxiliary=True).train()
    network.set_drop_path(0.2)
    logits, auxiliary = network(torch.randn(2, 3, side, side))
    assert logits.shape == auxiliary.shape == (2, classes)
    labels = torch.tensor([0, classes - 1])
    (functional.cross_entropy(logits, labels) + 0.4 * functional.cross_entropy(auxiliary, labels)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    network.eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, side, side)).shape == (1, classes)


def test_a_larger_image_or_fewer_channels_are_no_trouble():
    network = Network(TENAS_IMAGENET, channels=3, cells=3, classes=7, stem="imagenet", auxiliary=True)
    assert [out.shape for out in network(torch.randn(2, 3, 300, 257))] == [(2, 7), (2, 7)]
    assert Network(TENAS_IMAGENET, channels=1, cells=1, classes=7, stem="imagenet")(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_flops_are_those_that_torch_counts_and_leave_the_network_as_it_is():
    network = Network(TENAS_CIFAR, channels=6, cells=5, classes=10, auxiliary=True).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flops = count_flops(network, (3, 32, 32))
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.randn(1, 3, 32, 32))
    assert flops == counter.get_total_flops() // 2 + 10  # it counts a multiply-accumulate as two, and no bias


@pytest.mark.slow
def test_flops_are_those_of_the_benchmark():
    table = read_index("builtin")
    largest = table.loc[[table.flops_cifar10.idxmax()]]
    assert largest.flops_cifar10.item() == 220_119_690
    for row in pd.concat([table.sample(6, random_state=0), largest]).itertuples():
        for classes, side, expected in (
            (10, 32, row.flops_cifar10), (100, 32, row.flops_cifar100), (120, 16, row.flops_imagenet16)
        ):  # fmt: skip
            network = Network(row.arch, channels=16, cells=5, classes=classes)
            assert count_flops(network, (3, side, side)) == expected


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.rand(20_000, 2, 1, 1) + 1
    out = drop_path(x, torch.tensor(0.3))
    dropped = (out == 0).all(1).flatten()
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.allclose(out[~dropped], x[~dropped] / 0.7)
    assert out.mean().item() == pytest.approx(x.mean().item(), rel=0.02)


def test_drop_path_is_for_training_and_can_be_drawn_again():
    network = Network(TENAS_CIFAR, channels=4, cells=3, classes=10).train()
    x = torch.randn(8, 3, 16, 16)

    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return network(x)

    assert torch.equal(logits(1), logits(2))
    network.set_drop_path(0.5)
    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    network.eval()
    assert torch.equal(logits(1), logits(2))
    network.train().set_drop_path(0)
    assert torch.equal(logits(1), logits(2))
    assert "body.drop_probability" not in network.state_dict()


def test_drop_path_spares_identities():
    identities = DARTS_V2.replace("max_pool_3x3", "skip_connect").replace("sep_conv_3x3", "skip_connect")
    network = Network(identities.replace("dil_conv_3x3", "skip_connect"), channels=4, cells=1, classes=10).train()
    network.set_drop_path(0.9)
    x = torch.randn(8, 3, 16, 16)
    assert torch.equal(network(x), network(x))


def test_what_a_network_does_not_have_is_refused_with_a_sentence():
    nas = "|none~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3~2|"
    size = {"channels": 4, "cells": 1, "classes": 10}
    with pytest.raises(TenasError, match="Unknown stem of a network of darts 'mnist'; known: cifar, imagenet"):
        Network(TENAS_CIFAR, **size, stem="mnist")
    with pytest.raises(TenasError, match="Unknown stem of a network of nas-bench-201 'imagenet'; known: cifar"):
        Network(nas, **size, stem="imagenet")
    with pytest.raises(TenasError, match="networks of nas-bench-201 have no auxiliary head"):
        Network(nas, **size, auxiliary=True)
    with pytest.raises(TenasError, match="network of 1 cells has none: use at least 3"):
        Network(TENAS_CIFAR, **size, auxiliary=True)
    with pytest.raises(TenasError, match="features of 8x8 at least, and these images leave 4x4"):
        Network(TENAS_CIFAR, channels=4, cells=3, classes=10, auxiliary=True)(torch.randn(2, 3, 16, 16))
    with pytest.raises(TenasError, match="networks of nas-bench-201 have no drop-path"):
        Network(nas, **size).set_drop_path(0.1)
    Network(nas, **size).set_drop_path(0)
    for probability in (-0.1, 1, float("nan")):
        with pytest.raises(TenasError, match="must be at least 0 and below 1"):
            Network(TENAS_CIFAR, **size).set_drop_path(probability)
    with pytest.raises(TenasError, match=r"mask is of nas-bench-201, the supernet of darts"):
        Supernet("darts", get_space("nas-bench-201").full_mask(), channels=1, cells=2, classes=10)


# Drawing


def boxes(root: ElementTree.Element, kind: str) -> list[tuple[float, float, float, float]]:
    found = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("class") == kind]
    sizes = [tuple(float(r.get(key)) for key in ("x", "y", "width", "height")) for r in found]
    return [(x, y, x + width, y + height) for x, y, width, height in sizes]


def test_a_drawing_shows_each_operator_where_nothing_hides_it():
    generator = np.random.default_rng(1)
    for genotype in [*map(DARTS.parse, PUBLISHED), *(random_genotype(generator) for _ in range(60))]:
        root = ElementTree.fromstring(draw(genotype))
        texts = Counter(text.text for text in root.iter("{http://www.w3.org/2000/svg}text"))
        operators = Counter(choice.operator for cell in genotype.cells for choice in cell)
        nodes = dict.fromkeys(["in 0", "in 1", "2", "3", "4", "5", "out"], 2)
        assert texts == operators + Counter(nodes) + Counter({"normal cell": 1, "reduction cell": 1})
        labels = boxes(root, "ground")
        assert len(labels) == 16
        places = labels + boxes(root, "node")
        for i, a in enumerate(places):
            assert a[0] >= 0
            assert a[1] >= 0
            assert a[2] <= float(root.get("width"))
            assert a[3] <= float(root.get("height"))
            assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in places[:i])


# The whole flow


@pytest.mark.parametrize(("run_name", "trials", "batch"), [("darts-cifar10", 332, 14), ("darts-imagenet", 444, 24)])
@pytest.mark.slow
def test_the_example_configuration_is_the_released_search(run_name, trials, batch):
    path = ROOT / "config" / "darts.yaml"
    settings = load_config(read_yaml(path, "configuration"))["runs"][run_name]["settings"]
    assert sum(round.trials for round in schedule(settings)) == trials
    measures = settings["rounds"][0]["measures"]
    assert all(entry["measures"] == measures for entry in settings["rounds"])
    kernel, regions = measures["ntk_condition_number"], measures["linear_regions"]
    assert (kernel["batch"], kernel["channels"], kernel["cells"]) == (batch, 1, 2)
    assert (regions["channels"], regions["inputs"], regions["count"]) == (1, "crops", 3000)


@pytest.mark.long
def test_a_small_search_from_images_to_genotype(tmp_path):
    prepare({"source": "digits", "images": 100, "side": 8}, tmp_path / "data")
    changes = {
        # 4 operators are enough, and cheap.
        "exclude": ["none", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_5x5"],
        "prune": 3,
        "measures": {
            "ntk_condition_number": {"repeats": 1, "batch": 4, "channels": 1, "cells": 2},
            "linear_regions": {"repeats": 1, "count": 100, "blocks": 1},
        },
    }
    settings = search_settings("darts", "released", changes)
    genotype = load_genotype(search_seed(settings, tmp_path / "data", 0, tmp_path / "out", device="cpu"))
    for cell in genotype.cells:
        assert Counter(choice.target for choice in cell) == {2: 2, 3: 2, 4: 2, 5: 2}
        assert {choice.operator for choice in cell}.isdisjoint(changes["exclude"])
    rankings = [pd.read_csv(tmp_path / f"out/seed0/round{round}/ranking.csv") for round in (1, 2)]
    assert [len(ranking) for ranking in rankings] == [112, 24]
    assert [ranking.pruned.sum() for ranking in rankings] == [84, 12]
    # By hand: the two edges of a node with the largest sums of ranks are left, those of its genotype.
    for (cell, target), group in rankings[1].groupby(["cell", "target"]):
        kept = group[group.pruned == 0]
        assert kept.rank_sum.min() >= group[group.pruned == 1].rank_sum.max()
        choices = genotype.cells[DARTS.cell_types.index(cell)]
        assert sorted(kept.source) == [choice.source for choice in choices if choice.target == target]
    assert (tmp_path / "out/seed0/genotype.svg").read_text().startswith("<svg")
