"""Passes that do more than compute: write weights, make layers, call layers as functions, bend weights."""

import copy
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import pytest
import torch
from helpers.passes import Own, batch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision.ops import DeformConv2d

from tenas.errors import TenasError
from tenas.measures import (
    MEASURES,
    Measure,
    fisher,
    flops,
    jacobian_covariance,
    layers,
    linear_regions,
    log_synflow,
    naswot,
    near,
    ntk_gram,
    parameters,
    snip,
    swap,
    synflow,
    zen,
)
from tenas.measures.common import LeftOutWarning
from tenas.measures.regions import SmoothActivationWarning
from tenas.networks import Network
from tenas.spaces import CellSpace

pytestmark = [
    pytest.mark.filterwarnings("ignore::tenas.measures.regions.SaturatedWarning"),
    pytest.mark.filterwarnings("ignore::tenas.measures.ntk.PlainLoopWarning"),
]
LABELS = torch.tensor([0, 1, 2, 0])
# Those of blocks take networks that name them.
TAKEN = {name: measure for name, measure in MEASURES.items() if not name.startswith("az_")}


def conv(inputs: int = 3, outputs: int = 4) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def head() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def measured(name: str, network: nn.Module, images: Tensor) -> float:
    arguments = [LABELS] if name in ("gradient_norm", "snip", "grasp", "fisher", "zico") else []
    return float(TAKEN[name](network, images, *arguments))


# --- passes that write their own weights


def decayed(self: Own, x: Tensor) -> Tensor:
    with torch.no_grad():
        self.conv.weight.mul_(0.9)
    return self.head(F.relu(self.conv(x)))


def renormalised(self: Own, x: Tensor) -> Tensor:
    self.conv.weight.data = torch.renorm(self.conv.weight.data, 2, 0, 0.3)
    return self.head(F.relu(self.conv(x)))


class Scaled(nn.Module):
    """ActNorm: the first pass sets the scales by its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.register_buffer("is_set", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_set:
            self.scale.data.copy_(1 / x.detach().std((0, 2, 3), keepdim=True))
            self.is_set.fill_(True)
        return x * self.scale


WRITERS = {
    "in place": lambda: Own(decayed, conv=conv(), head=head()),
    "other data": lambda: Own(renormalised, conv=conv(), head=head()),
    "by the first batch": lambda: nn.Sequential(conv(), Scaled(), nn.ReLU(), head()),
}


@pytest.mark.parametrize("measure", TAKEN)
@pytest.mark.parametrize("way", WRITERS)
def test_weights_that_a_pass_writes_are_restored(way, measure):
    torch.manual_seed(0)
    network = WRITERS[way]()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    places = {name: value.data_ptr() for name, value in network.named_parameters()}
    if way == "by the first batch" and measure in ("parameters", "flops", "layers"):
        with pytest.raises(TenasError, match="Costs are counted without values"):
            measured(measure, network, batch(4, 3, 8, 8))
        return
    assert measured(measure, network, batch(4, 3, 8, 8)) == measured(measure, network, batch(4, 3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert {name: value.data_ptr() for name, value in network.named_parameters()} == places


# --- passes that make parts


def making(self: Own, x: Tensor) -> Tensor:
    if not hasattr(self, "made"):
        self.made, self.is_built = conv(4, 4), True
    return self.head(F.relu(self.made(F.relu(self.conv(x)))))


@pytest.mark.parametrize("measure", ["ntk_condition_number", "snip", "near", "linear_regions", "zen"])
def test_a_layer_made_in_the_first_pass_is_a_sentence(measure):
    torch.manual_seed(0)
    network = Own(making, conv=conv(), head=head())
    for _ in range(2):
        with pytest.raises(TenasError, match=r"makes its parameter made\.weight in a pass, unseen by the measure: run a batch"):
            measured(measure, network, batch(4, 3, 8, 8))
        assert not hasattr(network, "made")
        assert not hasattr(network, "is_built")
    network(batch(4, 3, 8, 8))
    assert measured(measure, network, batch(4, 3, 8, 8)) == measured(measure, network, batch(4, 3, 8, 8))


def tabled(self: Own, x: Tensor) -> Tensor:
    if not hasattr(self, "table"):
        self.register_buffer("table", torch.linspace(0, 1, 64).to(x).reshape(8, 8))
    return self.head(F.relu(self.conv(x) + self.table))


def test_a_buffer_made_in_the_first_pass_does_not_stay():
    """SynFlow's would be in float64."""
    torch.manual_seed(0)
    network = Own(tabled, conv=conv(), head=head())
    value = synflow(network, batch(4, 3, 8, 8))
    assert "table" not in network.state_dict()
    network(batch(4, 3, 8, 8))
    assert network.table.dtype == torch.float32
    assert synflow(network, batch(4, 3, 8, 8)) == pytest.approx(value, rel=1e-6)


def replacing(self: Own, x: Tensor) -> Tensor:
    self.conv.weight = nn.Parameter(self.conv.weight.detach() * 0.9)
    return self.head(F.relu(self.conv(x)))


def test_a_parameter_that_each_pass_makes_anew_is_a_sentence():
    network = Own(replacing, conv=conv(), head=head())
    before = network.conv.weight
    with pytest.raises(TenasError, match=r"makes its parameter conv\.weight in a pass, .* or write into the parameter"):
        snip(network, batch(4, 3, 8, 8), LABELS)
    assert network.conv.weight is before


def counting(self: Own, x: Tensor) -> Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    return self.head(F.relu(self.conv(x) * self.calls))


def test_attributes_that_a_pass_sets_are_restored():
    torch.manual_seed(0)
    network = Own(counting, conv=conv(), head=head())
    for measure in (near, lambda network, images: snip(network, images, LABELS)):
        assert measure(network, batch(4, 3, 8, 8)) == measure(network, batch(4, 3, 8, 8))
    assert not hasattr(network, "calls")


# --- layers that are not called as modules


def by_function(self: Own, x: Tensor) -> Tensor:
    return self.head(F.relu(F.conv2d(F.relu(self.conv(x)), self.more.weight, self.more.bias, padding=1)))


@pytest.mark.parametrize("measure", [near, lambda network, images: fisher(network, images, LABELS)], ids=["near", "fisher"])
def test_layers_whose_weights_functions_read_are_named(measure):
    torch.manual_seed(0)
    network = Own(by_function, conv=conv(), more=conv(4, 4), head=head())
    with pytest.warns(LeftOutWarning, match="layers that are called as modules: it leaves out more.weight, which functions read"):
        measure(network, batch(4, 3, 8, 8))
    unread = Own(lambda self, x: self.head(F.relu(self.conv(x))), conv=conv(), more=conv(4, 4), head=head())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(unread, batch(4, 3, 8, 8))


class Dropped(nn.Module):
    """A weight that is drawn whenever it is read."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.dropout(weight, 0.5)


def called_with(self: Own, x: Tensor) -> Tensor:
    values = {name: value * 1 for name, value in self.conv.named_parameters()}
    return self.head(torch.func.functional_call(self.conv, values, x))


def test_layers_are_known_whose_parameters_are_given_or_computed():
    torch.manual_seed(0)
    given = Own(called_with, conv=conv(), head=head())
    dropped = nn.Sequential(conv(), nn.ReLU(), head())
    nn.utils.parametrize.register_parametrization(dropped[0], "weight", Dropped())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near(given, batch(4, 3, 8, 8))
        torch.manual_seed(1)
        near(dropped, batch(4, 3, 8, 8))
    after = torch.rand(1)
    torch.manual_seed(1)
    dropped(batch(4, 3, 8, 8))
    assert torch.equal(torch.rand(1), after)  # nothing more was drawn than by a pass


# --- batch normalisation, however it is called


def normalised(self: Own, x: Tensor) -> Tensor:
    made = F.batch_norm(self.conv(x), None, None, self.norm.weight, self.norm.bias, training=True)
    return self.head(F.relu(made))


class Activating(nn.BatchNorm2d):
    """With the activation function, and another argument."""

    def forward(self, x: Tensor, domain: int = 0) -> Tensor:
        return F.relu(super().forward(x)) + domain


class ByHand(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        return (x - mean) / (variance + self.eps).sqrt() * self.weight[:, None, None] + self.bias[:, None, None]


def by_torch(self: Own, x: Tensor, function: Callable[..., Tensor] = torch.batch_norm) -> Tensor:
    norm = self.norm
    statistics = norm.running_mean, norm.running_var
    return self.head(F.relu(function(self.conv(x), norm.weight, norm.bias, *statistics, norm.training, 0.1, norm.eps, True)))


NAMED = {"running_mean": None, "running_var": None, "training": True, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": True}
NORMALISED = {
    "torch's": by_torch,
    "an operator": lambda self, x: by_torch(self, x, torch.ops.aten.batch_norm.default),
    "torch's, by names": lambda self, x: self.head(F.relu(torch.batch_norm(self.conv(x), bias=None, weight=None, **NAMED))),
    "by hand": lambda self, x: self.head(F.relu(self.by_hand(self.conv(x)))),
    "function": normalised,
    "by name": lambda self, x: self.head(F.relu(self.norm(input=self.conv(x)))),
    "with more": lambda self, x: self.head(Activating.forward(self.norm, self.conv(x), 0)),
    "a class of its own": lambda self, x: self.head(self.activating(self.conv(x), 0)),
}


@pytest.mark.parametrize("measure", [synflow, log_synflow, zen], ids=lambda measure: measure.__name__)
@pytest.mark.parametrize("way", NORMALISED)
def test_batch_normalisation_counts_however_it_is_called(way, measure):
    torch.manual_seed(0)
    plain = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), head())
    torch.manual_seed(0)
    network = Own(NORMALISED[way], conv=conv(), norm=nn.BatchNorm2d(4), activating=Activating(4), by_hand=ByHand(4), head=head())
    if way == "with more":
        network.norm.__class__ = Activating
    assert measure(network, batch(4, 3, 8, 8)) == pytest.approx(measure(plain, batch(4, 3, 8, 8)), rel=1e-12)


@pytest.mark.parametrize("measure", [synflow, zen], ids=["synflow", "zen"])
def test_batch_normalisation_that_cannot_be_replaced_is_a_sentence(measure):
    def normalised(self: Own, x: Tensor) -> Tensor:
        return self.head(torch.native_batch_norm(self.conv(x), None, None, None, None, True, 0.1, 1e-5)[0])

    with pytest.raises(TenasError, match="normalises by native_batch_norm, which this measure cannot replace"):
        measure(Own(normalised, conv=conv(), head=head()), batch(4, 3, 8, 8))


def test_synflow_of_activation_functions_in_place():
    """Of an identity's output; a residual reads the input, too."""
    torch.manual_seed(0)
    parts = {"conv": conv(), "norm": nn.BatchNorm2d(4), "head": head()}
    plain = Own(lambda self, x: self.head((y := self.conv(x)) + F.silu(self.norm(y))), **parts)
    in_place = Own(lambda self, x: self.head((y := self.conv(x)) + F.silu(self.norm(y), inplace=True)), **parts)
    assert synflow(in_place, batch(4, 3, 8, 8)) == synflow(plain, batch(4, 3, 8, 8))


# --- what bends


@pytest.mark.parametrize("bent", [F.relu, F.hardtanh, lambda w: w.clamp(-0.1, 0.1)], ids=["relu", "hard tanh", "clamp"])
@pytest.mark.parametrize("count", [7, 8])
def test_what_weights_bend_to_is_no_activation(bent, count):
    """8 outputs for 8 images: their rows are those of the images in number alone."""
    torch.manual_seed(0)
    network = Own(lambda self, x: self.out(F.relu(F.linear(x.flatten(1), bent(self.first.weight)))),
                   first=nn.Linear(12, 8), out=nn.Linear(8, 3))  # fmt: skip
    equal = batch(1, 3, 2, 2).repeat(count, 1, 1, 1)
    assert linear_regions(network, equal) == 1
    assert naswot(network, equal) == -torch.inf
    images = batch(count, 3, 2, 2)
    units = (F.linear(images.flatten(1), bent(network.first.weight)) > 0).T
    assert swap(network, images) == len(units.unique(dim=0))


def test_a_bound_of_a_norm_is_no_activation():
    torch.manual_seed(0)
    parts = {"first": nn.Linear(12, 8), "out": nn.Linear(8, 3)}
    plain = Own(lambda self, x: self.out((y := F.relu(self.first(x.flatten(1)))) / y.norm(dim=1, keepdim=True)), **parts)
    bounded = Own(lambda self, x: self.out(F.normalize(F.relu(self.first(x.flatten(1))), dim=1)), **parts)
    images = batch(6, 3, 2, 2)
    assert naswot(bounded, images) == naswot(plain, images)
    assert swap(bounded, images) == swap(plain, images)
    cosines = Own(lambda self, x: F.cosine_similarity(F.relu(self.first(x.flatten(1)))[:, None], self.out.weight, 2), **parts)
    assert swap(cosines, images) == swap(plain, images)


def test_other_bounds_of_a_norm_are_activations():
    torch.manual_seed(0)
    parts = {"first": nn.Linear(12, 8), "out": nn.Linear(8, 3)}
    free = Own(lambda self, x: self.out((y := self.first(x.flatten(1))) / y.norm(dim=1, keepdim=True)), **parts)
    held = Own(lambda self, x: self.out((y := self.first(x.flatten(1))) / y.norm(dim=1, keepdim=True).clamp(1.0, 2.0)), **parts)
    images = batch(30, 3, 2, 2)
    with pytest.warns(SmoothActivationWarning, match="No activation function was seen"):
        assert linear_regions(free, images) == 1
    assert linear_regions(held, images) > 1


def test_images_of_a_buffer_are_images():
    network = Own(lambda self, x: self.out(F.relu(self.first(x.flatten(1)))), first=nn.Linear(12, 8), out=nn.Linear(8, 3))
    network.register_buffer("bank", batch(8, 3, 2, 2))
    assert naswot(network, network.bank) == naswot(network, network.bank.clone()) > -torch.inf


def banked(self: Own, x: Tensor) -> Tensor:
    torch._foreach_copy_([self.bank], [x.flatten(1)])
    return self.out(F.relu(self.first(self.bank)))


def test_what_a_pass_writes_into_a_buffer_is_of_the_images():
    torch.manual_seed(0)
    parts = {"first": nn.Linear(12, 8), "out": nn.Linear(8, 3)}
    network = Own(banked, **parts)
    network.register_buffer("bank", torch.zeros(8, 12))
    plain = Own(lambda self, x: self.out(F.relu(self.first(x.flatten(1)))), **parts)
    assert naswot(network, batch(8, 3, 2, 2)) == naswot(plain, batch(8, 3, 2, 2)) > -torch.inf


def test_constants_of_a_pass_are_no_activations():
    """Coordinates, which are as many as they are."""
    table = Own(lambda self, x: self.out(x.flatten(1)) + F.relu(torch.arange(9.0) - 4).sum(), out=nn.Linear(12, 3))
    with pytest.warns(SmoothActivationWarning, match="No activation function was seen"):
        assert linear_regions(table, batch(8, 3, 2, 2)) == 1


BENDING = {
    "amax": lambda x: x.view(len(x), -1, 2).amax(2),
    "max": lambda x: x.unflatten(1, (-1, 2)).max(2).values,
    "by a comparison": lambda x: x * ~(x < 0),
    "comparisons": lambda x: x * ((x > -1) & (x < 1)),
    "a share by a comparison": lambda x: x * (1 - (x < 0).float()),
    "a comparison of sums": lambda x: x * ((x > 0).float() + (x <= 0).float()),
    "round": lambda x: x.round() + x,
    "frac": torch.frac,
    "pow": lambda x: x**3,
    "erfc": torch.erfc,
    "a comparison": lambda x: x * (x > 0),
    "comparison": lambda x: x.masked_fill(x < 0, 0),
    "fmax": lambda x: torch.fmax(x, torch.zeros(())),
    "heaviside": lambda x: x * torch.heaviside(x.detach(), torch.zeros(())),
    "hypot": lambda x: (x + torch.hypot(x, torch.zeros(()))) / 2,
}


@pytest.mark.parametrize("name", BENDING)
def test_what_bends_and_does_not_count_is_named(name):
    torch.manual_seed(0)
    parts = {"first": nn.Linear(192, 8), "out": nn.LazyLinear(3)}
    network = Own(lambda self, x: self.out(F.relu(BENDING[name](self.first(x.flatten(1))))), **parts)
    network(batch(4, 3, 8, 8))
    named = "comparison" if "comparison" in name else name
    with pytest.warns(SmoothActivationWarning, match=rf"do not count as activation functions: .*\b{named}\b"):
        linear_regions(network, batch(4, 3, 8, 8))


def test_extremes_over_positions_and_masks_by_numbers_are_not_named():
    """A pooling; a mask of tokens by their number, and by a label."""

    def pooled(self: Own, x: Tensor) -> Tensor:
        inside = torch.arange(12) < torch.full((len(x), 1), 9)
        pooled = x.flatten(2).max(-1).values + x.amax((2, 3)) + x.flatten(2).amax(2) + (x.amax() == 7)
        return self.out(F.relu(self.first(x.flatten(1) * inside))) + pooled

    network = Own(pooled, first=nn.Linear(12, 8), out=nn.Linear(8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_regions(network, torch.cat([batch(4, 3, 2, 2)] * 3))


def checked(self: Own, x: Tensor) -> Tensor:
    assert (x.amax((1, 2, 3)) > -100).all()
    shares = (y := self.first(x.flatten(1))).exp() / y.exp().sum(1, keepdim=True)
    return self.out(F.relu(shares - 0.1))


def test_a_number_by_a_comparison_and_bounds_by_tensors_are_read():
    def weighed(self: Own, x: Tensor) -> Tensor:
        y = self.first(x.flatten(1))
        return self.out(F.relu(y * ((y.sum() > -1e9) * 1.0) / y.norm(dim=1, keepdim=True).clamp_min(torch.full((1, 1), 1e-9))))

    torch.manual_seed(1)
    network = Own(weighed, first=nn.Linear(12, 8), out=nn.Linear(8, 3))
    assert 1 < linear_regions(network, batch(8, 3, 2, 2)) <= 8


def test_comparisons_that_bend_nothing_are_not_named():
    network = Own(checked, first=nn.Linear(12, 8), out=nn.Linear(8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_regions(network, torch.cat([batch(4, 3, 2, 2)] * 3))


# --- operators and networks that no measure knows


def test_products_of_other_operators_count_or_are_named():
    torch.manual_seed(0)
    deformed = Own(lambda self, x: self.head(F.relu(self.deformed(x, self.offsets(x)))),
                    offsets=conv(3, 18), deformed=DeformConv2d(3, 4, 3, padding=1), head=head())  # fmt: skip
    assert flops(deformed, batch(4, 3, 8, 8)) == 64 * 27 * (18 + 4) + 64 * (18 + 4) + 4 * 3 + 3
    assert layers(deformed, batch(4, 3, 8, 8)) == 3
    over_time = Own(lambda self, x: F.conv_tbc(x.flatten(2).permute(2, 0, 1), self.weight, torch.zeros(4)).mean(0))
    over_time.weight = nn.Parameter(torch.randn(3, 3, 4))
    assert flops(over_time, batch(4, 3, 8, 8)) == 62 * 4 * (3 * 3 + 1)
    assert layers(over_time, batch(4, 3, 8, 8)) == 1

    @torch.library.custom_op("tenas_tests::product", mutates_args=())
    def product(x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.T

    product.register_fake(lambda x, weight: x.new_empty(len(x), len(weight)))
    custom = Own(lambda self, x: product(x.flatten(1), self.out.weight), out=nn.Linear(192, 3))
    with pytest.warns(UserWarning, match="operators of other libraries do not count: tenas_tests::product"):
        assert flops(custom, batch(4, 3, 8, 8)) == 0


class Locked(Own):
    """An attribute that cannot be copied."""

    def __init__(self, function, **modules: nn.Module) -> None:
        super().__init__(function, **modules)
        self.lock = threading.Lock()


def plain_pass(self: Own, x: Tensor) -> Tensor:
    return self.head(F.relu(self.conv(x)))


def through_numpy(self: Own, x: Tensor) -> Tensor:
    return self.head((made := self.conv(x)) * float(made.detach().numpy().mean()))


@pytest.mark.parametrize(
    ("make", "measure", "sentence"),
    [
        (lambda **parts: Locked(plain_pass, **parts), parameters, "parameters cannot be measured of this network, .*lock"),
        (lambda **parts: Own(through_numpy, **parts), flops, "flops cannot be measured of this network, .*numpy"),
        (lambda **parts: Own(plain_pass, **parts).to("meta"), ntk_gram, "conv.weight has no values, as it is on the meta"),
    ],
    ids=["a lock", "values", "meta"],
)
def test_what_a_measure_cannot_do_is_a_sentence(make, measure, sentence):
    with pytest.raises(TenasError, match=sentence):
        measure(make(conv=conv(), head=head()), batch(4, 3, 8, 8))


def gradient_within(self: Own, x: Tensor) -> Tensor:
    made = self.conv(x)
    (gradient,) = torch.autograd.grad(made.square().sum(), self.conv.weight, create_graph=True)
    return self.head(F.relu(made)) + gradient.mean()


@pytest.mark.parametrize("name", ["linear_regions", "naswot", "swap", "near", "zen"])
def test_a_gradient_within_a_pass_is_taken_or_a_sentence(name):
    with pytest.raises(TenasError, match=r"cannot be measured of this network, which runs by itself: .*require grad"):
        measured(name, Own(gradient_within, conv=conv(), head=head()), batch(4, 3, 8, 8))


def test_synflow_of_complex_weights_is_a_sentence():
    network = Own(lambda self, x: self.out(x.flatten(1)) + self.scale.abs().sum(), out=nn.Linear(12, 3))
    network.scale = nn.Parameter(torch.randn(2, dtype=torch.complex64))
    with pytest.raises(TenasError, match="the network's scale is complex"):
        synflow(network, batch(4, 3, 2, 2))


@pytest.mark.parametrize("given", [conv, nn.Linear, 5], ids=["function", "class", "number"])
def test_what_is_no_module_is_a_sentence(given):
    with pytest.raises(TenasError, match=r"A network is a torch.nn.Module, and this is a (function|type|int)"):
        naswot(given, batch(4, 3, 8, 8))


# --- operators for the whole of a layer


@pytest.mark.parametrize("measure", [naswot, swap, near], ids=lambda measure: measure.__name__)
def test_a_transformers_layer_has_its_activation_functions_in_both_modes(measure):
    """Torch runs it as one operator in evaluation mode."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    network = Own(
        lambda self, x: self.out(self.layer(self.first(x)).mean(1)), first=nn.Linear(5, 8), layer=layer, out=nn.Linear(8, 4)
    )
    images = batch(16, 7, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftOutWarning)
        assert measure(network.eval(), images) == pytest.approx(measure(network.train(), images), rel=1e-6)
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_lstm_has_its_activation_functions_in_float32_too():
    """oneDNN runs it as one operator."""
    torch.manual_seed(0)
    network = Own(
        lambda self, x: self.out(F.relu(self.lstm(x)[0][:, -1])), lstm=nn.LSTM(5, 4, batch_first=True), out=nn.Linear(4, 3)
    )
    images = batch(8, 7, 5)
    with pytest.warns(LeftOutWarning, match="leaves out lstm.weight_ih_l0, lstm.weight_hh_l0"):
        found = near(network, images)
    with pytest.warns(SmoothActivationWarning, match="sigmoid, tanh"):
        naswot(network, images)
    assert torch.backends.mkldnn.enabled
    with pytest.warns(LeftOutWarning):
        assert near(network.double(), images.double()) == pytest.approx(found, rel=1e-4)


def test_torchs_switches_are_as_before_whatever_threads_measure():
    torch.manual_seed(0)
    layers_of = {"lstm": nn.LSTM(5, 8, batch_first=True), "layer": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)}
    network = Own(lambda self, x: self.out(self.layer(self.lstm(x)[0]).mean(1)), **layers_of, out=nn.Linear(8, 4)).eval()
    failing = Own(lambda self, x: self.lstm(x)[0].no_such_attribute, **layers_of)

    def measure() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(5):
                swap(copy.deepcopy(network), batch(4, 7, 5))
                with suppress(AttributeError):
                    near(copy.deepcopy(failing), batch(4, 7, 5))

    threads = [threading.Thread(target=measure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


def test_near_leaves_out_what_is_computed_of_weights_alone_without_a_word():
    """As the tables of positions of Swin V2."""

    def biased(self: Own, x: Tensor) -> Tensor:
        table = 16 * torch.sigmoid(self.table.weight[:6] @ self.table.weight.T) + self.table.weight.clamp(max=4).sum()
        return self.out(F.relu(self.first(x.flatten(1)))) + table[:, :3]

    network = Own(biased, first=nn.Linear(12, 7), table=nn.Embedding(6, 4), out=nn.Linear(7, 3))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        near(network, batch(6, 3, 2, 2))
    assert not [text for text in map(str, (warning.message for warning in said)) if "sigmoid" in text or "clamp" in text]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat([F.relu(part) for part in x.chunk(2)]),
        lambda x: F.relu(x.t()).t(),
        lambda x: x.clamp(min=0),
        lambda x: torch.maximum(x, torch.zeros(())),
    ],
    ids=["parts", "transposed", "clamp", "maximum"],
)
def test_near_names_activation_functions_that_it_leaves_out(function):
    network = Own(lambda self, x: self.out(function(self.first(x.flatten(1)))), first=nn.Linear(12, 7), out=nn.Linear(7, 3))
    with pytest.warns(LeftOutWarning, match=r"the images being the first dimension: not (relu|clamp|clamp_min|maximum)\."):
        near(network, batch(6, 3, 2, 2))


# --- what the Zen-score compares


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


AFTER_MAPS = {
    "linear": lambda self, x: F.linear(tokens(x), self.more.weight),
    "matmul": lambda self, x: tokens(x) @ self.more.weight,
    "conv1d": lambda self, x: F.conv1d(x.flatten(2), self.more.weight[:, :, None]).transpose(1, 2),
    "lstm": lambda self, x: self.lstm(tokens(x))[0],
    "attention": lambda self, x: self.attention(*[tokens(x)] * 3)[0],
}


@pytest.mark.parametrize("way", AFTER_MAPS)
def test_zen_of_layers_on_tokens_is_a_sentence_however_they_are_called(way):
    parts = {
        "more": nn.Linear(4, 4),
        "lstm": nn.LSTM(4, 4, batch_first=True),
        "attention": nn.MultiheadAttention(4, 2, batch_first=True),
    }
    network = Own(
        lambda self, x: self.out(AFTER_MAPS[way](self, F.relu(self.conv(x))).mean(1)), conv=conv(), out=nn.Linear(4, 3), **parts
    )
    with pytest.raises(TenasError, match="the last layers of this network read tokens"):
        zen(network, batch(4, 3, 8, 8))


HEADS = {
    "einsum": lambda self, x: torch.einsum("nchw,oc->no", x, self.out.weight),
    "weighed": lambda self, x: self.out((tokens(x) * self.scores(tokens(x)).softmax(1)).sum(1)),
    "kept dimensions": lambda self, x: self.out(x.mean((2, 3), keepdim=True).permute(0, 2, 3, 1))[:, 0, 0],
}


@pytest.mark.parametrize("way", HEADS)
def test_zen_of_heads_that_pool_in_other_ways(way):
    torch.manual_seed(0)
    parts = {"conv": conv(), "out": nn.Linear(4, 3), "scores": nn.Linear(4, 1)}
    images = batch(4, 3, 8, 8)
    plain = zen(nn.Sequential(parts["conv"], nn.ReLU(), head()), images)
    assert zen(Own(lambda self, x: HEADS[way](self, F.relu(self.conv(x))), **parts), images) == pytest.approx(plain, rel=1e-6)


def test_zen_of_images_that_are_its_noise():
    """The first numbers of torch's seed 0, which tests and examples draw."""
    torch.manual_seed(0)
    network = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), head())
    for shape in ((4, 3, 8, 8), (2, 3, 8, 8)):
        drawn, others = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
        assert zen(network, drawn) == pytest.approx(zen(network, others), abs=0.5)


def test_zen_compares_two_passes_with_the_same_masks():
    torch.manual_seed(0)
    network = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Dropout2d(0.5), nn.ReLU(), head())
    images = batch(8, 3, 8, 8)
    assert zen(network.train(), images) == pytest.approx(zen(network.eval(), images), abs=1)


def space_to_depth(x: Tensor) -> Tensor:
    split = x.view(len(x), x.shape[1], x.shape[2] // 2, 2, x.shape[3] // 2, 2)
    return split.permute(0, 1, 3, 5, 2, 4).reshape(len(x), -1, x.shape[2] // 2, x.shape[3] // 2)


@pytest.mark.parametrize("kernel", [1, 4])
def test_zen_of_a_map_that_is_not_followed_is_a_sentence(kernel):
    """The last convolution's result may be of one pixel, as if it read pooled channels."""
    network = Own(
        lambda self, x: self.out(self.last(space_to_depth(F.relu(self.conv(x)))).mean((2, 3))),
        conv=conv(), last=nn.Conv2d(16, 5, kernel), out=nn.Linear(5, 3),
    )  # fmt: skip
    with pytest.raises(TenasError, match="read tokens, or what is not known to be a map"):
        zen(network, batch(4, 3, 8, 8))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_zen_of_padded_maps(mode):
    """Without normalisation it is the logarithm of a difference."""
    torch.manual_seed(1)
    features = nn.Sequential(*(nn.Conv2d(inputs, 4, 3, padding=1, padding_mode=mode) for inputs in (3, 4)))
    images = batch(6, 3, 8, 8)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        change = (features(images) - features(images + 0.01 * noise)).flatten(1).norm(dim=1).mean()
    assert zen(nn.Sequential(features, head()), images) == pytest.approx(change.log().item(), abs=1e-4)


@pytest.mark.parametrize("name", ["linear_regions", "naswot", "swap", "zen"])
def test_a_pass_that_gives_no_numbers_is_a_sentence(name):
    network = Own(lambda self, x: self.head(F.relu(self.conv(x)) / 0 * 0), conv=conv(), head=head())
    with pytest.raises(TenasError, match=r"(output is|features are) not a number for these images"):
        measured(name, network, batch(4, 3, 8, 8))


def test_bounds_of_parts_of_the_batch_are_named():
    def in_parts(self: Own, x: Tensor) -> Tensor:
        return self.out(F.relu(torch.cat([part.clamp(min=0) for part in self.first(x.flatten(1)).chunk(2)])))

    network = Own(in_parts, first=nn.Linear(12, 8), out=nn.Linear(8, 3))
    with pytest.warns(SmoothActivationWarning, match="do not count as activation functions: clamp"):
        linear_regions(network, batch(8, 3, 2, 2))


# --- outputs and hooks


@dataclass
class Logits:
    logits: Tensor
    others: tuple[Tensor, ...] = ()


def test_layers_to_an_output_in_a_data_class():
    parts = {"conv": conv(), "head": head()}
    assert layers(Own(lambda self, x: Logits(self.head(F.relu(self.conv(x)))), **parts), batch(4, 3, 8, 8)) == 2
    with pytest.raises(TenasError, match="output, a Locked, has no tensor"):
        layers(Own(lambda self, x: Locked(plain_pass), **parts), batch(4, 3, 8, 8))


def test_a_kernel_whose_gradients_a_hook_changes_before_a_write_in_place():
    def halve(module: nn.Module, inputs: object, output: Tensor) -> None:
        output.register_hook(lambda gradient: gradient * 0.5)

    torch.manual_seed(0)
    network = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(inplace=True), head())
    network[1].register_forward_hook(halve)
    images = batch(4, 3, 8, 8)
    torch.testing.assert_close(ntk_gram(network, images), ntk_gram(network, images, implementation="loop"))


@pytest.mark.parametrize("implementation", ["auto", "batched"])
def test_a_kernel_of_a_convolution_with_one_number_for_its_padding(implementation):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, (1, 2), padding="valid"), nn.ReLU(), head())
    images = batch(4, 3, 8, 8)
    found = ntk_gram(network, images, implementation=implementation)
    torch.testing.assert_close(found, ntk_gram(network, images, implementation="loop"))


def test_an_error_in_a_line_of_the_network_names_it():
    """Here it is raised in passes without gradients alone."""

    def needy(self: Own, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            raise KeyError("gone")
        return plain_pass(self, x)

    with pytest.raises(TenasError, match=r"runs by itself: 'gone' \(KeyError in .*test_own_passes\.py, line \d+\)\."):
        naswot(Own(needy, conv=conv(), head=head()), batch(4, 3, 8, 8))


def test_costs_of_a_pass_that_makes_tensors_on_no_device():
    def placed(self: Own, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x) + torch.arange(8) * torch.linspace(0, 1, 8)))

    parts = {"conv": conv(), "head": head()}
    images = batch(4, 3, 8, 8)
    for cost in (parameters, flops, layers):
        assert cost(Own(placed, **parts), images) == cost(Own(plain_pass, **parts), images)


def test_a_measure_that_leaves_another_default_dtype_is_a_sentence():
    def doubled(network: nn.Module, images: Tensor) -> float:
        torch.set_default_dtype(torch.float64)
        return 1.0

    with pytest.raises(TenasError, match="The measure mine leaves torch with another default dtype"):
        Measure("mine", doubled)(nn.Linear(2, 2), torch.zeros(1, 2))
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("fails", [False, True])
def test_settings_of_torch_that_a_measure_changes_are_restored(fails):
    def careless(network: nn.Module, images: Tensor) -> float:
        torch.set_grad_enabled(False)
        torch.use_deterministic_algorithms(True)
        return 1 / (not fails)

    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        Measure("mine", careless)(nn.Linear(2, 2), torch.zeros(1, 2))
    assert torch.is_grad_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with torch.no_grad():
        Measure("mine", lambda network, images: 1.0)(nn.Linear(2, 2), torch.zeros(1, 2))
        assert not torch.is_grad_enabled()


def test_a_sparse_weight_is_a_sentence():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    network[1].weight = nn.Parameter(network[1].weight.detach().to_sparse())
    with pytest.raises(TenasError, match=r"1\.weight is sparse, which no measure takes"):
        ntk_gram(network, batch(4, 3, 2, 2))


def test_a_networks_own_error_is_its_own():
    def failing(self: Own, x: Tensor) -> Tensor:
        raise ValueError("not this time") from KeyError("its cause")

    with pytest.raises(ValueError, match="not this time") as found:
        snip(Own(failing, conv=conv(), head=head()), batch(4, 3, 8, 8), LABELS)
    assert isinstance(found.value.__cause__, KeyError)


def test_costs_take_tables_that_are_no_buffers():
    network = Own(lambda self, x: self.head(F.relu(self.conv(x) + self.table)), conv=conv(), head=head())
    network.table = torch.ones(8, 8)
    assert parameters(network, batch(4, 3, 8, 8)) == 27 * 4 + 4 + 12 + 3
    assert network.table.device.type == "cpu"


def test_the_plain_loop_draws_what_the_pass_before_it_drew():
    torch.manual_seed(0)
    # A custom function, which the tape does not follow.
    network = Own(lambda self, x: self.head(F.dropout(Doubled.apply(self.conv(x)), 0.5)), conv=conv(), head=head())
    torch.manual_seed(1)
    automatic = ntk_gram(network, batch(4, 3, 8, 8))
    torch.manual_seed(1)
    assert torch.equal(automatic, ntk_gram(network, batch(4, 3, 8, 8), implementation="loop"))
    assert jacobian_covariance(network, batch(4, 3, 8, 8)) < 0


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 2 * gradient


def test_arguments_that_a_measure_does_not_have_are_pythons_error():
    network = Own(plain_pass, conv=conv(), head=head())
    with pytest.raises(TypeError, match="missing a required argument: 'labels'"):
        snip(network, batch(4, 3, 8, 8))


# --- operators of one's own in this package's networks


def lstm_by_rows(inputs: int, outputs: int, stride: int) -> nn.Module:
    return Own(
        lambda self, x: F.avg_pool2d(self.out(self.lstm(x.mean(2).transpose(1, 2))[0][:, -1])[:, :, None, None] + x, stride),
        lstm=nn.LSTM(inputs, 4, batch_first=True), out=nn.Linear(4, outputs),
    )  # fmt: skip


def test_an_operator_of_ones_own_is_looked_at_as_a_network_of_ones_own():
    space = CellSpace("rows", {"skip": lambda *_: nn.Identity(), "rows": lstm_by_rows}, nodes=3)
    torch.manual_seed(0)
    network = Network(space.parse("|rows~0|+|skip~0|rows~1|"), channels=4, cells=1, classes=3)
    images = batch(4, 3, 8, 8)
    with pytest.warns(SmoothActivationWarning, match="sigmoid, tanh"):
        naswot(network, images)
    with pytest.warns(LeftOutWarning, match="lstm.weight_ih_l0"):
        near(network, images)
    next(network.parameters()).data.fill_(torch.nan)
    with pytest.raises(TenasError, match="has values that are NaN"):
        naswot(network, images)
