"""Baselines: each against its formula written out another way, and what goes for every measure of the registry."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchvision
from helpers.engine import CARD, IMAGES, KAPPA, NAS, ON_A_BATCH, REGIONS, first_round, take, tiny
from torch import nn
from torch.nn.functional import cross_entropy

from tenas import measures
from tenas.errors import TenasError
from tenas.files import write_csv
from tenas.measures import (
    MEASURES,
    fisher,
    flops,
    gradient_norm,
    grasp,
    jacobian_covariance,
    naswot,
    parameters,
    snip,
    synflow,
    zen,
    zico,
)
from tenas.networks import Network, Supernet, count_flops, count_parameters, initialise
from tenas.scoring.inputs import normalised
from tenas.scoring.subjects import Measurement, Trials, plan
from tenas.scoring.table import read_scores, score_columns, score_rows
from tenas.search.prune import change, mean_change, rank_round
from tenas.seeds import derive_seed
from tenas.settings import search_settings
from tenas.spaces import load_genotype

TRIALS = first_round()
ARCH = "|nor_conv_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|avg_pool_3x3~0|skip_connect~1|nor_conv_3x3~2|"
DEAD = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
pytestmark = pytest.mark.filterwarnings("ignore::tenas.measures.SaturatedWarning")


def batch(n: int = 6, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, side, side, generator=generator), torch.arange(n) % 4


def small_cnn() -> nn.Sequential:
    """Convolution, normalisation, ReLU, twice; pooling; classifier. In double, so that closed forms can be compared."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1, stride=2), nn.BatchNorm2d(5),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
    ).double()  # fmt: skip


def linear_net(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))).double()


def softmax_residual(network, x, y):
    """(softmax - one-hot): the gradient of each sample's cross-entropy with respect to its logits."""
    logits = network(x).detach()
    return torch.softmax(logits, 1) - torch.eye(logits.shape[1], dtype=logits.dtype)[y]


# --- each against its formula


def test_gradients_of_a_linear_network_in_closed_form():
    network, x, y = linear_net(5, 4), torch.randn(7, 5).double(), torch.arange(7) % 4
    gradient = softmax_residual(network, x, y).T @ x / 7
    assert gradient_norm(network, x, y) == pytest.approx(gradient.norm().item())
    assert snip(network, x, y) == pytest.approx((network[0].weight * gradient).abs().sum().item())


def test_gradient_norm_is_a_sum_over_layers_and_of_no_biases():
    network, (x, y) = small_cnn(), batch()
    cross_entropy(network(x.double()), y).backward()
    expected = sum(network[i].weight.grad.norm().item() for i in (0, 3, 8))
    assert gradient_norm(small_cnn(), x.double(), y) == pytest.approx(expected)


def test_grasp_by_finite_differences():
    """H g is the change of the gradient along the gradient."""
    network, (x, y) = small_cnn(), batch()
    weights = [network[i].weight for i in (0, 3, 8)]

    def gradients():
        return torch.autograd.grad(cross_entropy(network(x.double()), y), weights)

    start, step = gradients(), 1e-6
    original = [w.detach().clone() for w in weights]
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for w, o, g in zip(weights, original, start, strict=True):
                w.copy_(o + sign * step * g)
        sides.append(gradients())
    expected = -sum((o * (a - b)).sum().item() / (2 * step) for o, a, b in zip(original, *sides, strict=True))
    assert grasp(small_cnn(), x.double(), y) == pytest.approx(expected, rel=1e-4)


def test_synflow_counts_paths_of_absolute_weights():
    """Without biases every layer's sum is the sum of all paths, whatever the signs."""
    network = linear_net(5, 3, 4)
    a, b = (layer.weight.detach().abs() for layer in network)
    assert synflow(network, torch.randn(2, 5)) == pytest.approx(2 * (b @ a).sum().item())


def test_synflow_leaves_batch_normalisation_out_and_does_not_overflow():
    network, plain = small_cnn(), small_cnn()
    for i in (1, 4):
        plain[i] = nn.Identity()
        network[i].running_mean.fill_(3.0)
    x, _ = batch()
    assert synflow(network, x) == pytest.approx(synflow(plain, x))
    deep = nn.Sequential(*(nn.Linear(400, 400) for _ in range(40)))
    assert 1e39 < synflow(deep, torch.randn(1, 400)) < math.inf


def test_fisher_by_a_loop_over_samples_and_channels():
    """Without batch normalisation a sample's gradient is its own: one backward pass a sample."""
    network = small_cnn()
    network[1], network[4] = nn.Identity(), nn.Identity()
    network[2] = nn.ReLU(inplace=True)
    x, y = batch()
    total = 0.0
    for i in range(len(x)):
        values = [x[i : i + 1].double()]
        for layer in network:
            values.append((nn.ReLU() if isinstance(layer, nn.ReLU) else layer)(values[-1]))
        loss = cross_entropy(values[-1], y[i : i + 1])
        for place in (0, 3, 8):
            a = values[place + 1]
            (g,) = torch.autograd.grad(loss, a, retain_graph=True)
            for channel in range(a.shape[1]):
                total += (a[0, channel] * g[0, channel]).sum().item() ** 2 / (2 * len(x))
    assert fisher(network, x.double(), y) == pytest.approx(total)


def test_jacobian_covariance_by_numpy():
    network, (x, _) = small_cnn(), batch()
    x = x.double().requires_grad_()
    network(x).sum().backward()
    s = np.linalg.eigvalsh(np.corrcoef(x.grad.flatten(1).numpy()))
    expected = -np.sum(np.log(s + 1e-5) + 1 / (s + 1e-5))
    assert jacobian_covariance(small_cnn(), x.detach()) == pytest.approx(expected)


def test_naswot_by_counting():
    network, (x, _) = small_cnn(), batch()
    first = network[:3](x.double())
    second = network[3:6](first)
    patterns = torch.cat([first.flatten(1) > 0, second.flatten(1) > 0], 1)
    kernel = [[sum(int(p == q) for p, q in zip(a, b, strict=True)) for b in patterns.tolist()] for a in patterns.tolist()]
    assert naswot(small_cnn(), x.double()) == pytest.approx(math.log(abs(np.linalg.det(np.array(kernel, float)))))


def test_naswot_of_images_that_are_not_told_apart():
    x, _ = batch(2)
    assert naswot(small_cnn(), torch.cat([x, x]).double()) == -math.inf


def test_zen_by_hand():
    network, (x, _) = small_cnn(), batch()
    x = x.double()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()

    def features(images):
        """Batch normalisation written out; the variances of each channel before it."""
        variances = []
        for i in (0, 3):
            images = network[i](images)
            mean, variance = images.mean((0, 2, 3)), images.var((0, 2, 3), unbiased=False)
            variances.append(variance)
            images = torch.relu((images - mean[:, None, None]) / torch.sqrt(variance + 1e-5)[:, None, None])
        return images, variances

    (a, variances), (b, _) = features(x), features(x + 0.01 * noise)
    distance = np.mean([(a[i] - b[i]).square().sum().sqrt().item() for i in range(len(x))])
    expected = math.log(distance) + sum(math.log(math.sqrt(v.mean().item())) for v in variances)
    assert zen(small_cnn(), x) == pytest.approx(expected)
    assert zen(small_cnn().eval(), x) == pytest.approx(expected)


def test_zen_gives_the_scale_back_that_normalisation_takes():
    """Twice the weights before a normalisation: the features stay, the score grows by log 2 for each."""
    x, _ = batch()
    twice = small_cnn()
    with torch.no_grad():
        for i in (0, 3):
            twice[i].weight *= 2
            twice[i].bias *= 2
    assert zen(twice, x.double()) == pytest.approx(zen(small_cnn(), x.double()) + 2 * math.log(2), abs=1e-3)


def test_zen_needs_feature_maps():
    with pytest.raises(TenasError, match="The Zen-score needs a network with feature maps"):
        zen(nn.Linear(3, 2), torch.randn(4, 3))


def test_zen_leaves_out_a_normalisation_that_reads_a_constant():
    """Node 1 has no input, and a convolution reads it: the rest of the network is as good as without that convolution."""
    x, _ = batch()
    dead = Network("|none~0|+|nor_conv_1x1~0|nor_conv_3x3~1|+|skip_connect~0|none~1|none~2|", channels=4, cells=1, classes=4)
    assert math.isfinite(zen(dead, x))


def test_zico_by_numpy():
    network, (x, y) = small_cnn(), batch()
    halves = []
    for part in (slice(3), slice(3, None)):
        network.zero_grad()
        cross_entropy(network(x[part].double()), y[part]).backward()
        halves.append([network[i].weight.grad.numpy().copy() for i in (0, 3, 8)])
    expected = 0.0
    for pair in zip(*halves, strict=True):
        absolute = np.abs(np.stack(pair))
        mean, deviation = absolute.mean(0), absolute.std(0)
        expected += np.log((mean[deviation > 0] / deviation[deviation > 0]).sum())
    assert zico(small_cnn(), x.double(), y) == pytest.approx(expected)


def test_costs_are_those_of_the_network_and_of_what_a_mask_leaves():
    x, _ = batch(2, 32)
    network = Network(ARCH, channels=16, cells=5, classes=10)
    assert parameters(network, x) == count_parameters(network)
    assert flops(network, x) == count_flops(network, (3, 32, 32))
    mask = NAS.mask(load_genotype(ARCH))
    supernet = Supernet(NAS, mask, channels=16, cells=5, classes=10)
    assert parameters(supernet, x) == parameters(network, x) < count_parameters(supernet)
    assert flops(supernet, x) == flops(network, x)


# --- what goes for all of them


def networks():
    # Some of resnet18's feature maps are 1 x 1 at 32 pixels, which batch normalisation takes for a batch.
    torch.manual_seed(0)
    yield "supernet", Supernet(NAS, channels=3, cells=1, classes=4), 8
    yield "network", Network(ARCH, channels=4, cells=1, classes=4), 8
    resnet = torchvision.models.resnet18(num_classes=4)
    resnet.blocks = [resnet.conv1, *resnet.layer1, *resnet.layer2, *resnet.layer3, *resnet.layer4]
    yield "resnet18", resnet, 32


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.slow
def test_every_measure_is_a_number_twice_the_same_and_leaves_the_network_as_it_was(name):
    for kind, network, side in networks():
        x, y = batch(4, side)
        modules = list(network.modules())
        modules[-1].eval()
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        state = {key: value.clone() for key, value in network.state_dict().items()}
        modes = [module.training for module in modules]
        value = MEASURES[name](network, x, y)
        assert math.isfinite(value), kind
        assert MEASURES[name](network, x, y) == value, kind
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
        assert [module.training for module in modules] == modes
        assert all((p.grad == 0.5).all() and p.requires_grad for p in network.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules)
        assert not x.requires_grad


@pytest.mark.parametrize("name", MEASURES)
def test_no_measure_depends_on_threads(name):
    """By name and called as a function, bit for bit; also when it ends in an error, as many threads as before are left."""
    torch.manual_seed(0)
    network, (x, y) = Network(ARCH, channels=16, cells=1, classes=4), batch(8, 32)
    function = getattr(measures, name)
    more = (y,) if MEASURES[name].needs_labels else ()
    threads, values = torch.get_num_threads(), set()
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            values |= {MEASURES[name](network, x, y), function(network, x, *more)}
            with pytest.raises(TenasError):
                MEASURES[name](network, x[:0], y[:0])
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert len(values) == 1


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_refuses_an_empty_batch_and_missing_labels(name):
    network = Network(ARCH, channels=4, cells=1, classes=4)
    x, y = batch()
    with pytest.raises(TenasError, match=r"empty batch|no inputs"):
        MEASURES[name](network, x[:0], y[:0])
    if MEASURES[name].needs_labels:
        with pytest.raises(TenasError, match=f"{name} is loss-based: it needs image labels"):
            MEASURES[name](network, x)
        with pytest.raises(TenasError, match="outside of the network's 4 classes"):
            MEASURES[name](network, x, y + 1)
        with pytest.raises(TenasError, match="as many labels"):
            MEASURES[name](network, x, torch.cat([y, y])[None])


@pytest.mark.parametrize("name", MEASURES)
def test_of_a_disconnected_network_every_measure_is_a_number_or_the_worst(name):
    """Every operator `none`: the logits don't depend on the images, and only the classifier's bias has a gradient."""
    network = Network(DEAD, channels=4, cells=1, classes=4)
    x, y = batch()
    value = MEASURES[name](network, x, y)
    assert not math.isnan(value)
    if math.isinf(value):
        assert (value > 0) == MEASURES[name].lower_is_better


def test_the_catalogue_says_which_way_a_measure_is_good_and_what_it_needs():
    assert [name for name, measure in MEASURES.items() if measure.lower_is_better] == [KAPPA]
    assert {name for name, measure in MEASURES.items() if measure.needs_labels} == {
        "gradient_norm", "snip", "grasp", "fisher", "zico"
    }  # fmt: skip
    assert all(measure.name == name for name, measure in MEASURES.items())
    assert all(callable(measure.resolved) and measure.resolved.__module__ == measure.module for measure in MEASURES.values())


def test_a_network_without_weights_has_no_saliency():
    x, y = batch()
    with pytest.raises(TenasError, match="no convolution or linear layer"):
        snip(nn.Flatten(), x, y)


# --- and in a search

BATCHED = ON_A_BATCH | {"repeats": 2}


def of(*names: str, change: str = "relative") -> dict:
    measures = {KAPPA: None, REGIONS: None} | dict.fromkeys(names, BATCHED)
    return search_settings("nas-bench-201", "pruning", {"change": change, "measures": measures})["rounds"][0]


def test_a_search_by_kappa_and_r_measures_what_it_always_has():
    """Values of the version before the registry (commit 4b94fbe); both to the precision that kinds of processors share."""
    settings = tiny(measures={KAPPA: {"repeats": 2, "batch": 4, "channels": 2}, REGIONS: {"repeats": 2, "count": 600}})
    asked = [Measurement(trial, name, repeat) for name in (KAPPA, REGIONS) for repeat in (0, 1) for trial in (0, 5, 24)]
    values = take(asked, settings)
    kappas = [5.321839862905666, 5.336441461364543, 4.751879565982655, 7.80223693571368, 8.704962668742697, 6.866590945477544]
    assert [values[m] for m in asked[:6]] == pytest.approx(kappas, rel=1e-3)
    assert [values[m] for m in asked[6:]] == pytest.approx([591, 594, 595, 597, 599, 597], abs=2)


@pytest.mark.long
def test_any_measures_drive_a_round():
    names = [name for name in MEASURES if name not in (KAPPA, REGIONS)]
    settings = of(*names)
    card = CARD | {"labels": np.arange(60) % 4}
    two = first_round(exclude=("none", "nor_conv_1x1", "avg_pool_3x3"))
    values = take(plan(settings["measures"], two.ids), settings, two, card=card)
    columns, rows, _ = rank_round(settings, two, values)
    assert sum(row["pruned"] for row in rows) == 6
    assert {f"{name}_rank" for name in names} <= set(columns)


@pytest.mark.long
def test_parameters_alone_keep_what_has_the_most():
    """The 3x3 convolution stays, and ties go to the earlier trial."""
    settings = of("parameters", change="log")
    mask = TRIALS.mask
    for round in NAS.rounds(["none"]):
        subjects = Trials(mask, round)
        values = take(plan(settings["measures"], subjects.ids), settings, subjects)
        _, _, mask = rank_round(settings, subjects, values)
    assert {choice.operator for choice in NAS.genotype(mask).cells[0]} == {"nor_conv_3x3"}


def test_the_batch_has_the_labels_of_its_images():
    settings = of("gradient_norm")
    labels = np.random.default_rng(3).integers(0, 4, 60)
    asked = [Measurement(0, "gradient_norm", 1)]
    (value,) = take(asked, settings, card=CARD | {"labels": labels}).values()
    chosen = np.sort(
        np.random.default_rng(derive_seed(7, 1, 1, "gradient_norm", "inputs")).choice(60, 4, replace=False)
    )  # fmt: skip
    network = Supernet(NAS, TRIALS.mask, channels=2, cells=1, classes=4)
    initialise(network, "kaiming_fan_in", derive_seed(7, 1, 1, "gradient_norm", "weights"))
    expected = gradient_norm(network, normalised(IMAGES[chosen], CARD), torch.from_numpy(labels[chosen]))
    assert value == pytest.approx(expected, rel=1e-5)
    with pytest.raises(TenasError, match="needs the labels"):
        take(asked, settings)


def test_measures_that_can_be_negative_have_no_logarithm():
    for name, measure in MEASURES.items():
        if measure.signed:
            with pytest.raises(TenasError, match=f"{name} can be negative"):
                of(name, change="log")
            assert name in of(name)["measures"]


def test_negative_changes_are_relative_to_the_absolute_value():
    whole, rest = np.array([-4.0, 4.0]), np.array([[-6.0, 6.0]])
    assert change(whole, rest, "relative", None).tolist() == [[0.5, -0.5]]


def test_the_worst_of_a_measure_of_which_more_is_better_keeps_the_operator():
    changes = change(np.array([1.0, 1.0, -np.inf]), np.array([[-np.inf, 0.5, 2.0]]), "absolute", None, np.inf)
    assert changes.tolist() == [[np.inf, 0.5, -np.inf]]
    assert mean_change(changes, np.ones((1, 3)), np.inf).tolist() == [[np.inf]]
    assert mean_change(changes[:, 1:], np.ones((1, 2)), np.inf).tolist() == [[-np.inf]]
    assert mean_change(np.array([[np.nan]]), np.ones((1, 1)), np.inf).tolist() == [[np.inf]]


@pytest.mark.parametrize(
    ("name", "value", "words"), [("naswot", -1.5, None), ("naswot", math.nan, "never NaN"), ("snip", -1.5, "never negative")]
)
def test_only_signed_measures_may_be_negative_in_a_scores_file(tmp_path, name, value, words):
    measures = of(name)["measures"]
    values = dict.fromkeys(plan(measures, TRIALS.ids), value)
    write_csv(tmp_path / "1.csv", score_columns(TRIALS), score_rows(measures, TRIALS, values))
    if words is None:
        assert read_scores([tmp_path / "1.csv"], measures, TRIALS) == values
        return
    with pytest.raises(TenasError, match=words):
        read_scores([tmp_path / "1.csv"], measures, TRIALS)


class Attention(nn.Module):
    """Attention over the pixels of an image, by torch's function or written out."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.project, self.classify, self.fused = nn.Linear(3, 3 * 4), nn.Linear(4, 3), fused

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        query, key, value = self.project(images.flatten(2).transpose(1, 2)).chunk(3, dim=2)
        if self.fused:
            seen = nn.functional.scaled_dot_product_attention(query, key, value)
        else:
            seen = (query @ key.transpose(1, 2) / 2).softmax(dim=2) @ value
        return self.classify(seen.mean(1))


def test_grasp_has_attentions_second_derivatives():
    torch.manual_seed(0)
    fused, plain = Attention(True).double(), Attention(False).double()
    plain.load_state_dict(fused.state_dict())
    images = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    expected = grasp(plain, images, torch.arange(6) % 3)
    assert grasp(fused, images, torch.arange(6) % 3) == pytest.approx(expected, rel=1e-9)
