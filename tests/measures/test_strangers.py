"""Networks as people have them: nothing of theirs is changed by a measure, and each number is that of its definition."""

import math
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.passes import Own, batch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint
from torchvision import models
from torchvision.models import swin_transformer, vision_transformer

from tenas.api import build
from tenas.errors import TenasError
from tenas.measures import (
    MEASURES,
    az_trainability,
    fisher,
    flops,
    gradient_norm,
    jacobian_covariance,
    layers,
    linear_regions,
    naswot,
    near,
    ntk_gram,
    parameters,
    snip,
    swap,
    synflow,
    zen,
)
from tenas.measures.ntk import PlainLoopWarning
from tenas.measures.regions import SmoothActivationWarning
from tenas.networks import count_flops

pytestmark = [
    pytest.mark.filterwarnings("ignore::tenas.measures.regions.SaturatedWarning"),
    pytest.mark.filterwarnings("ignore::tenas.measures.ntk.PlainLoopWarning"),
]
CELL = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def small(activation: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), activation or nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


# --- costs


def test_all_parameters_count_that_a_pass_uses():
    """Also those that a module gives to functions, and no shared one twice."""
    torch.manual_seed(0)
    swin = swin_transformer.SwinTransformer([2, 2], 8, [2], [2], [4, 4], num_classes=3)
    vit = vision_transformer.VisionTransformer(8, 4, 1, 2, 16, 32, num_classes=3)
    for network in (swin, vit):
        assert parameters(network, batch(2, 3, 8, 8)) == sum(p.numel() for p in network.parameters())
    listed = Own(lambda self, x: F.linear(x.flatten(1), self.weights[0]), weights=nn.ParameterList([torch.randn(5, 192)]))
    assert parameters(listed, batch(8, 3, 8, 8)) == 960
    tied = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
    tied[2].weight = tied[0].weight
    assert parameters(tied, batch(2, 8)) == 64
    assert flops(tied, batch(2, 8)) == 128
    assert tied[2].weight is tied[0].weight


def test_every_product_counts_one_for_each_multiplication_and_bias():
    cases = [
        (nn.Conv1d(3, 4, 3), (1, 3, 10), 8 * 4 * (3 * 3 + 1)),
        (nn.Conv3d(2, 3, 2, bias=False), (1, 2, 4, 4, 4), 27 * 3 * 2 * 8),
        (nn.Conv2d(4, 6, 3, groups=2), (1, 4, 5, 5), 9 * 6 * (2 * 9 + 1)),
        (nn.ConvTranspose2d(2, 3, 2, stride=2), (1, 2, 4, 4), 16 * 2 * 3 * 4 + 64 * 3),
        (nn.Linear(6, 2), (1, 5, 6), 5 * 2 * 7),
        # Torch multiplies and adds in two steps, by the strides; what is added next is no bias.
        (Own(lambda self, x: self.linear(x.transpose(1, 2)) + x[0, :2, 0], linear=nn.Linear(5, 2)), (1, 5, 6), 6 * 2 * 6),
        (Own(lambda self, x: self.linear(x.transpose(1, 2)), linear=nn.Linear(5, 6, bias=False)), (1, 5, 6), 6 * 6 * 5),
        (Own(lambda _, x: (x @ x.transpose(1, 2)).sum((0, 1)) + 1), (1, 5, 6), 5 * 5 * 6),
        (Own(lambda _, x: x @ x.transpose(1, 2)), (1, 5, 6), 5 * 5 * 6),
        (Own(lambda _, x: F.scaled_dot_product_attention(x, x, x)), (1, 2, 5, 6), 2 * 5 * 5 * (6 + 6)),
        # Three projections and one, with biases; scores and sums.
        (Own(lambda self, x: self.mha(x, x, x)[0], mha=nn.MultiheadAttention(8, 2, batch_first=True)), (1, 5, 8),
         5 * 24 * 9 + 5 * 8 * 9 + 2 * 5 * 5 * (4 + 4)),
    ]  # fmt: skip
    for network, shape, expected in cases:
        assert flops(network, batch(*shape)) == count_flops(network, shape[1:]) == expected, network


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_costs_do_not_depend_on_the_type_of_numbers(dtype):
    x = batch(8, 3, 8, 8)
    expected = [measure(small(), x) for measure in (parameters, flops, layers)]
    assert [measure(small().to(dtype), x.to(dtype)) for measure in (parameters, flops, layers)] == expected


def test_layers_whose_weights_are_computed_are_layers():
    normed = [torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.parametrizations.spectral_norm]
    for norm in normed:
        network = nn.Sequential(*(norm(nn.Conv2d(3, 3, 3, padding=1, bias=False)) for _ in range(3)))
        assert layers(network, batch(8, 3, 8, 8)) == 3


# --- activations


def test_the_channels_of_tokens_are_their_last_dimension():
    """A linear layer on (n, T, c) is a convolution of one pixel on (n, c, T)."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 5)
    convolution = nn.Conv1d(6, 5, 1)
    convolution.weight.data[:] = linear.weight.data[..., None]
    convolution.bias.data[:] = linear.bias.data
    head = nn.Linear(5, 3)
    tokens = Own(lambda self, x: self.head(self.body(x.transpose(1, 2)).relu().mean(1)), body=linear, head=head)
    images = Own(lambda self, x: self.head(self.body(x).relu().mean(2)), body=convolution, head=head)
    x = batch(8, 6, 7)
    assert near(tokens, x) == pytest.approx(near(images, x))
    assert fisher(tokens, x, LABELS) == pytest.approx(fisher(images, x, LABELS), rel=1e-5)


def effective_rank(output: Tensor) -> float:
    """Of (n, channels, ...)."""
    if not output.any():
        return 0.0
    values = torch.linalg.svdvals(output.movedim(1, -1).reshape(-1, output.shape[1]).double())
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def test_maps_after_a_linear_layer_have_their_channels_in_the_second_dimension():
    """A squeeze-and-excitation of linear layers; a decoder."""
    torch.manual_seed(0)
    outputs: list[Tensor] = []

    def excited(self: Own, x: Tensor) -> Tensor:
        maps = self.conv(x)
        squeezed = self.squeeze(maps.mean((2, 3)))
        bent = squeezed.relu()
        scale = self.scale(bent)
        share = scale.sigmoid()
        last = (maps * share[:, :, None, None]).relu()
        logits = self.head(last.mean((2, 3)))
        outputs[:] = [maps, squeezed, bent, scale, share, last, logits]
        return logits

    layers_ = {
        "conv": nn.Conv2d(3, 6, 3, padding=1),
        "squeeze": nn.Linear(6, 3),
        "scale": nn.Linear(3, 6),
        "head": nn.Linear(6, 3),
    }
    network = Own(excited, **layers_)
    assert near(network, batch(8, 3, 10, 9)) == pytest.approx(sum(map(effective_rank, outputs)), rel=1e-6)

    def decoded(self: Own, x: Tensor) -> Tensor:
        first = self.linear(x.flatten(1))
        maps = self.norm(first.view(-1, 5, 4, 4)).relu()
        outputs[:] = [first, maps, self.conv(maps)]
        return outputs[2].mean((2, 3))

    network = Own(decoded, linear=nn.Linear(12, 80), norm=nn.BatchNorm2d(5), conv=nn.Conv2d(5, 4, 3))
    assert near(network, batch(8, 3, 2, 2)) == pytest.approx(sum(map(effective_rank, outputs)), rel=1e-6)


def test_windows_that_are_folded_into_the_batch_count_or_are_refused():
    torch.manual_seed(0)
    outputs: list[Tensor] = []

    def windowed(self: Own, x: Tensor) -> Tensor:
        maps = self.patches(x)
        tokens = maps.flatten(2).transpose(1, 2)
        wide = self.wide(tokens.reshape(16, 8, 6))
        gated = F.glu(wide)
        narrow = self.narrow(gated)
        logits = self.head(narrow.reshape(8, 16, 6).mean(1))
        outputs[:] = [maps, *(part.flatten(0, 1) for part in (wide, gated, narrow)), logits]
        return logits

    parts = {"patches": nn.Conv2d(3, 6, 2, 2), "wide": nn.Linear(6, 24), "narrow": nn.Linear(12, 6), "head": nn.Linear(6, 3)}
    network = Own(windowed, **parts)
    assert near(network, batch(8, 3, 8, 8)) == pytest.approx(sum(map(effective_rank, outputs)), rel=1e-6)
    with pytest.raises(TenasError, match=r"one gave \(16, 8, 24\) for 8 images \(windows or tokens folded into the batch"):
        fisher(network, batch(8, 3, 8, 8), LABELS)
    with pytest.raises(TenasError, match="the last layers of this network read tokens"):
        zen(network, batch(8, 3, 8, 8))


def test_the_features_of_zen_are_no_queries():
    """(n, heads, tokens, channels) has four dimensions, too."""
    torch.manual_seed(0)

    def attended(self: Own, x: Tensor) -> Tensor:
        maps = self.conv(x).relu()
        queries = maps.reshape(8, 2, 2, 64).transpose(2, 3)
        scores = (queries * 0.5).relu() @ queries.transpose(2, 3)
        return (scores.softmax(3) @ queries).mean((2, 3))

    network = Own(attended, conv=nn.Conv2d(3, 4, 3, padding=1))
    x = batch(8, 3, 8, 8)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        f, moved = (network.conv(at).relu() for at in (x, x + 0.01 * noise))
    assert zen(network, x) == pytest.approx(math.log((f - moved).double().flatten(1).norm(dim=1).mean().item()), rel=1e-6)


def test_bilinear_layers_have_costs_and_depth():
    pair = Own(
        lambda self, x: self.head(self.both(x.flatten(1), x.flatten(1))), both=nn.Bilinear(12, 12, 5), head=nn.Linear(5, 3)
    )
    # Its bias is added by another operator.
    assert flops(pair, batch(2, 3, 2, 2)) == 12 * 12 * 5 + 5 * 3 + 3
    assert layers(pair, batch(2, 3, 2, 2)) == 2


def test_a_threshold_with_a_value_above_it_has_two_pieces():
    x = batch(8, 6)
    for network in (nn.Threshold(0.0, 1.0), Own(lambda _, x: F.threshold(x.clone(), 0.0, 1.0, inplace=True))):
        assert swap(network, x) == swap(nn.ReLU(), x)
        assert linear_regions(network, x) == linear_regions(nn.ReLU(), x)
    linear = nn.Linear(6, 4)
    assert near(nn.Sequential(linear, nn.Threshold(0.0, 0.0)), x) == near(nn.Sequential(linear, nn.ReLU()), x)


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: x.abs(),
        lambda _, x: torch.maximum(x, -x),
        lambda _, x: torch.where(x > 0, x, 0.1 * x),
        lambda _, x: x * (x > 0),
        lambda _, x: F.glu(x),
        lambda _, x: x.sin(),
    ],
    ids=["abs", "maximum", "where", "product", "glu", "sin"],
)
def test_what_bends_and_does_not_count_is_said(function):
    with pytest.warns(SmoothActivationWarning):
        assert linear_regions(Own(function), batch(8, 6)) == 1


def test_few_relus_that_tell_many_images_apart_have_no_determinant():
    """Three ReLUs, eight patterns: the kernel has rank 4. Rounding made a number of it."""
    patterns = torch.tensor([[i >> bit & 1 for bit in range(3)] for i in range(8)]) * 2.0 - 1
    assert naswot(nn.ReLU(), patterns) == -math.inf
    # No ReLU and each one alone: agreements 3 on the diagonal, 2 with the first, 1 with each other.
    kernel = np.array([[3, 2, 2, 2], [2, 3, 1, 1], [2, 1, 3, 1], [2, 1, 1, 3]])
    assert naswot(nn.ReLU(), patterns[[0, 1, 2, 4]]) == pytest.approx(math.log(np.linalg.det(kernel)))


@pytest.mark.parametrize("last", [nn.SiLU(), nn.LeakyReLU(), nn.ReLU6(), nn.GroupNorm(2, 4), nn.MaxPool2d(2)], ids=str)
def test_the_features_of_zen_are_those_before_the_pooling(last):
    network = small(last).eval()
    x = batch(8, 3, 8, 8)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    norm = network[1].train()
    first = network[0](x)
    with torch.no_grad():
        f, moved = (last(norm(network[0](at))) for at in (x, x + 0.01 * noise))
    change = (f - moved).double().flatten(1).norm(dim=1).mean().item()
    variance = first.double().transpose(0, 1).flatten(1).var(1, unbiased=False).mean().item()
    assert zen(network, x) == pytest.approx(math.log(change) + math.log(variance) / 2, rel=1e-6)


def test_a_squeeze_and_excitation_gives_channels_and_no_features():
    def excited(self: Own, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x * self.scale(x.mean((2, 3), keepdim=True)).sigmoid()
        return x.mean((2, 3))

    torch.manual_seed(0)
    network = Own(excited, conv=nn.Conv2d(3, 4, 3, padding=1), scale=nn.Conv2d(4, 4, 1))
    x = batch(8, 3, 8, 8)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = [network.conv(at) for at in (x, x + 0.01 * noise)]
        f, moved = (at * network.scale(at.mean((2, 3), keepdim=True)).sigmoid() for at in maps)
    assert zen(network, x) == pytest.approx(math.log((f - moved).double().flatten(1).norm(dim=1).mean().item()), rel=1e-6)


# --- what is left as it was


MEASURED = [
    ("ntk_gram", lambda network, x: float(ntk_gram(network, x).trace())),
    ("jacobian_covariance", jacobian_covariance),
    ("naswot", naswot),
    ("near", near),
    ("regions", linear_regions),
    ("snip", lambda network, x: snip(network, x, LABELS)),
    ("swap", swap),
    ("zen", zen),
]


@pytest.mark.parametrize(("name", "measure"), MEASURED, ids=[name for name, _ in MEASURED])
def test_a_network_that_writes_into_its_input_leaves_the_images_and_has_the_value_of_one_that_does_not(name, measure):
    torch.manual_seed(0)
    body = small()
    kept = Own(lambda self, x: self.body(x.sub(0.5).div(0.25)), body=body)
    written = Own(lambda self, x: self.body(x.sub_(0.5).div_(0.25)), body=body)
    x = batch(8, 3, 8, 8)
    before = x.clone()
    expected = measure(kept, x)
    assert measure(written, x) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(x, before)
    assert not written._forward_pre_hooks


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", sorted(MEASURES))
def test_images_that_are_no_numbers_are_refused(name, value):
    """By networks of one's own and of this package."""
    x = batch(8, 3, 8, 8)
    x[3, 0, 1, 1] = value
    x[3, 0, 1, 2] = -value
    ours = build(CELL, channels=4, cells=1, classes=3, seed=0)
    for network in (small(), ours):
        given = [x.split(4)] if MEASURES[name].inputs == "regions" else [x]
        with pytest.raises(TenasError, match="NaN or infinite"):
            MEASURES[name](network, *given, *([LABELS] if MEASURES[name].needs_labels else []))


def test_measures_of_one_network_in_several_threads_have_the_values_of_one():
    network = build(CELL, channels=4, cells=1, classes=3, seed=0)
    images = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(12)]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    expected = [(near(network, x), synflow(network, x), zen(network, x)) for x in images]
    with ThreadPoolExecutor(4) as pool:
        columns = [pool.map(lambda x, of=of: of(network, x), images) for of in (near, synflow, zen)]
        assert list(zip(*columns, strict=True)) == expected
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_a_pass_of_the_callers_own_can_still_go_backward():
    network, x = small().eval(), batch(8, 3, 8, 8)
    loss = network(x).sum()
    swap(network, x)
    zen(network, x)
    gradient_norm(network, x, LABELS)
    loss.backward()
    assert network[0].weight.grad is not None


class Positions(nn.Module):
    """Makes a table of positions at its first pass, as a buffer or as an attribute."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)
        if buffer:
            self.register_buffer("table", None)
        else:
            self.table = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(-1, 1, 8, dtype=x.dtype)
        return self.linear(x + self.table)


@pytest.mark.parametrize("buffer", [True, False])
def test_what_a_network_makes_at_its_first_pass_is_not_of_the_types_of_synflow(buffer):
    network = Positions(buffer)
    synflow(network, batch(4, 8))
    assert network.table is None
    network(batch(4, 8))


def test_a_counting_pass_of_a_network_of_ones_own_runs_to_its_end():
    def through(self: Own, x: Tensor) -> Tensor:
        self.norm.eval()
        x = self.norm(x).relu()
        self.norm.train()
        return x

    network = Own(through, norm=nn.BatchNorm1d(6))
    linear_regions(network, batch(8, 6))
    assert network.norm.training
    # And one whose hooks take back what they have done.
    scaled = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    before = scaled[0].weight.detach().clone()
    scaled.register_forward_pre_hook(lambda module, _: (module[0].weight.data.mul_(2), None)[1])
    scaled.register_forward_hook(lambda module, *_: (module[0].weight.data.div_(2), None)[1])
    linear_regions(scaled, batch(8, 6))
    assert torch.equal(scaled[0].weight, before)


def test_embeddings_that_renormalise_themselves_are_left_as_they_were():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(9, 4, max_norm=1.0), nn.Flatten(), nn.Linear(8, 3))
    before = network[0].weight.detach().clone()
    snip(network, torch.randint(9, (8, 2)), LABELS)
    assert torch.equal(network[0].weight, before)


# --- sentences


def test_labels_of_any_whole_numbers_and_no_others():
    network, x = small(), batch(8, 3, 8, 8)
    expected = snip(network, x, LABELS)
    for labels in (LABELS.int(), LABELS.to(torch.uint8), LABELS.tolist(), LABELS.numpy()):
        assert snip(network, x, labels) == expected
    for labels in (LABELS.float(), LABELS > 0):
        with pytest.raises(TenasError, match="Labels must be whole numbers"):
            snip(network, x, labels)


def test_what_a_measure_cannot_take_is_a_sentence():
    x = batch(8, 3, 8, 8)
    pair = Own(lambda self, x: (self.body(x), x), body=small())
    for measure in (synflow, jacobian_covariance):
        with pytest.raises(TenasError, match="output is a tensor, not tuple"):
            measure(pair, x)
    whole = Own(lambda _, x: x.float().flatten(1))
    for measure in (zen, jacobian_covariance):
        with pytest.raises(TenasError, match="as floats"):
            measure(whole, torch.ones(2, 3, 4, 4, dtype=torch.uint8))
    checkpointed = Own(lambda self, x: checkpoint(self.blocks[1], self.blocks[0](x), use_reentrant=True))
    checkpointed.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    with pytest.raises(TenasError, match="The block Linear runs without gradients, as in a reentrant checkpoint"):
        az_trainability(checkpointed, batch(4, 8))
    narrow = Own(lambda self, x: self.body(x.float()), body=small())
    with pytest.raises(TenasError, match="SynFlow runs in float64, and this network makes tensors of another type"):
        synflow(narrow, x)


def test_the_noise_of_zen_is_the_same_whatever_the_default_type():
    network, x = small(), batch(8, 3, 8, 8)
    expected = zen(network, x)
    torch.set_default_dtype(torch.float64)
    try:
        assert zen(network, x) == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_networks_without_surprises_are_measured_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", PlainLoopWarning)
        x = batch(16, 3, 8, 8)
        swap(small(), x)
        naswot(small(), x)


# --- the features of Zen


def features_change(network: nn.Module, module: nn.Module, x: Tensor, then=lambda features: features) -> float:
    """log of the mean change of a module's output by the noise, as in Zen."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda *given: seen.append(then(given[2]).double()))
    with torch.no_grad():
        for images in (x, x + 0.01 * noise):
            network(images)
    handle.remove()
    return math.log((seen[0] - seen[1]).flatten(1).norm(dim=1).mean().item())


def without_norms(network: nn.Module) -> nn.Module:
    """Batch normalisation has a term of its own in Zen."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return network.eval()


@pytest.mark.parametrize(
    ("name", "last", "then"),
    [
        ("resnet18", "layer4", None),
        ("mobilenet_v2", "features", None),
        ("mobilenet_v3_small", "features", None),
        ("vgg11", "features", None),
        ("densenet121", "features", torch.relu),
        ("efficientnet_b0", "features", None),
        ("regnet_y_400mf", "trunk_output", None),
        ("shufflenet_v2_x0_5", "conv5", None),
        ("convnext_tiny", "features", None),
        ("swin_t", "norm", None),
    ],
)
def test_zen_of_torchvisions_networks_is_that_of_the_features_before_the_pooling(name, last, then):
    """At 32 pixels their last maps have one."""
    torch.manual_seed(0)
    network = without_norms(getattr(models, name)(num_classes=3))
    x = batch(2, 3, 32, 32)
    expected = features_change(network, dict(network.named_modules())[last], x, then or (lambda features: features))
    assert zen(network, x) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "last",
    [
        torch.sigmoid, F.hardsigmoid, F.softplus, torch.tanh, F.celu, F.logsigmoid, F.softsign, F.hardshrink, F.instance_norm,
        lambda v: F.local_response_norm(v, 2), lambda v: F.threshold(v, 0.1, 0.0), lambda v: v**2, lambda v: v / 2,
        lambda v: F.glu(v, 1), lambda v: torch.maximum(v, v * 0.1), lambda v: torch.where(v > 0, v, v * 0.3),
        lambda v: torch.stack([v, v.relu()]).sum(0), lambda v: v - v.sigmoid(), lambda v: v.reshape(8, 2, 2, 8, 8).amax(2),
        lambda v: F.layer_norm(v.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2), lambda v: F.max_pool2d(v, 8),
        lambda v: F.pixel_shuffle(v, 2), lambda v: F.pad(v, (1, 1, 1, 1)), lambda v: v.roll(1, 2),
    ],
)  # fmt: skip
def test_whatever_ends_the_maps_is_in_the_features_of_zen(last):
    torch.manual_seed(0)
    body, end = nn.Conv2d(3, 4, 3, padding=1), Own(lambda self, x: last(x))
    network = Own(lambda self, x: self.end(self.body(x)).mean((2, 3)), body=body, end=end)
    assert zen(network, batch(8, 3, 8, 8)) == pytest.approx(features_change(network, end, batch(8, 3, 8, 8)), rel=1e-6)


def test_zen_refuses_a_network_that_goes_on_without_maps():
    torch.manual_seed(0)
    with pytest.raises(TenasError, match="the last layers of this network read tokens"):
        zen(vision_transformer.VisionTransformer(8, 4, 1, 2, 16, 32, num_classes=3), batch(2, 3, 8, 8))
    with pytest.raises(TenasError, match="needs a network with feature maps"):
        zen(Own(lambda self, x: self.head((x / 2).flatten(1)), head=nn.Linear(192, 3)), batch(8, 3, 8, 8))


# --- NEAR, and what is no number


def test_the_channels_of_a_convolution_that_was_transposed_are_where_they_went():
    torch.manual_seed(0)
    parts = {"conv": nn.Conv2d(3, 12, 2, 2), "head": nn.Linear(12, 3)}
    maps = Own(lambda self, x: self.head(F.gelu(self.conv(x)).mean((2, 3))), **parts)
    tokens = Own(lambda self, x: self.head(F.gelu(self.conv(x).flatten(2).transpose(1, 2)).mean(1)), **parts)
    last = Own(lambda self, x: self.head(F.gelu(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2))), **parts)
    assert near(tokens, batch(8, 3, 8, 8)) == pytest.approx(near(maps, batch(8, 3, 8, 8)), rel=1e-6)
    assert near(last, batch(8, 3, 8, 8)) == pytest.approx(near(maps, batch(8, 3, 8, 8)), rel=1e-6)


def test_an_activation_function_of_weights_is_none_of_features():
    torch.manual_seed(0)
    parts = {"conv": nn.Conv2d(3, 8, 3), "head": nn.Linear(8, 3)}
    bent = Own(lambda self, x: self.head(F.conv2d(x, torch.tanh(self.conv.weight)).mean((2, 3))), **parts)
    values = [near(bent, batch(n, 3, 8, 8)) for n in (7, 8, 9)]
    assert max(values) - min(values) < 0.5


@pytest.mark.parametrize("name", sorted(set(MEASURES) - {"parameters", "flops", "layers"}))
def test_networks_of_no_numbers_are_refused(name):
    network = small()
    given = [batch(8, 3, 8, 8).split(4)] if MEASURES[name].inputs == "regions" else [batch(8, 3, 8, 8)]
    given += [LABELS] if MEASURES[name].needs_labels else []
    network[1].running_var[0] = math.inf
    with pytest.raises(TenasError, match=r"The network's 1\.running_var has values that are NaN or infinite"):
        MEASURES[name](network, *given)
    network[1].running_var[0] = 1.0
    network[0].weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(TenasError, match=r"The network's 0\.weight has values that are NaN or infinite"):
        MEASURES[name](network, *given)


def test_max_pooling_is_no_operator_that_bends():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(1024, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error", SmoothActivationWarning)
        naswot(network, batch(4, 3, 32, 32))
    # The network's own still does.
    own = Own(lambda self, x: torch.maximum(self.body(x), torch.zeros(())), body=network)
    with pytest.warns(SmoothActivationWarning, match="do not count as activation functions: maximum"):
        naswot(own, batch(4, 3, 32, 32))


def test_a_child_of_a_process_that_measures_measures(tmp_path):
    """Locks of its parent's threads are not its own."""
    code = (
        "import os, sys, threading, torch, tenas\n"
        f"network = tenas.build({CELL!r}, channels=4, cells=1, classes=3, seed=0)\n"
        "x = torch.randn(8, 3, 8, 8)\n"
        "measure, done = tenas.measure('near'), threading.Event()\n"
        "measure(network, x)\n"
        "def forever():\n"
        "    while not done.is_set():\n"
        "        measure(network, x)\n"
        "thread = threading.Thread(target=forever, daemon=True)\n"
        "thread.start()\n"
        "for _ in range(3):\n"
        "    if (child := os.fork()) == 0:\n"
        "        torch.set_num_threads(1)\n"
        "        measure(network, x)\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "done.set()\n"
        "thread.join()\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True, timeout=120)
