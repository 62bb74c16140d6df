"""``tenas.rank``: networks of one's own, ranked as a round of cells ranks its cells."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import tenas

IMAGES = torch.randn(24, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3


def layers(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, width), nn.ReLU(), nn.Linear(width, 3))


NETWORKS = {"narrow": lambda: layers(2), "middle": lambda: layers(20), "wide": lambda: layers(200)}


def test_scores_are_means_over_draws_of_weights_and_images():
    taken: dict[str, list[float]] = {"spread": [], "error": [], "lean": []}
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def spread(network, images):
        taken["spread"].append(network(images).std().item())
        return taken["spread"][-1]

    def error(network, images, labels):
        seen.append((network[1].weight.detach().clone(), images, labels))
        taken["error"].append(nn.functional.cross_entropy(network(images), labels).item())
        return taken["error"][-1]

    def lean(network, images):
        taken["lean"].append(network(images).mean().item())
        return taken["lean"][-1]

    measures = [
        tenas.Measure("spread", spread),
        tenas.Measure("error", error, lower_is_better=True, needs_labels=True),
        tenas.Measure("lean", lean, signed=True),
    ]
    found = tenas.rank(NETWORKS, IMAGES, LABELS, measures=measures, repeats=4, batch=8).loc[list(NETWORKS)]
    for name, scale in {"spread": np.log, "error": lambda values: -np.log(values), "lean": np.asarray}.items():
        draws = scale(np.array(taken[name]).reshape(4, 3))
        assert found[f"{name}_score"].to_numpy() == pytest.approx(draws.mean(axis=0))
        assert found[f"{name}_se"].to_numpy() == pytest.approx(draws.std(axis=0, ddof=1) / 2)
        assert found[f"{name}_rank"].tolist() == found[f"{name}_score"].rank(ascending=False).tolist()
    # AZ-NAS's aggregate, from its formula.
    share = sum(np.log((4 - found[f"{measure.name}_rank"]) / 3) for measure in measures)
    assert found["log_rank_sum"].to_numpy() == pytest.approx(share.to_numpy())

    draws = [seen[place : place + 3] for place in range(0, 12, 3)]
    for draw in draws:
        assert all(torch.equal(images, draw[0][1]) and torch.equal(labels, draw[0][2]) for _, images, labels in draw)
    weights, images, labels = zip(*(draw[0] for draw in draws), strict=True)
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == 4
    assert len({tuple(image.flatten().tolist()) for image in images}) == 4
    for image, label in zip(images[0], labels[0], strict=True):
        place = next(place for place, whole in enumerate(IMAGES) if torch.equal(image, whole))
        assert label == LABELS[place]


def test_a_seed_gives_the_same_table_whatever_was_drawn_before_and_leaves_the_generator():
    first = tenas.rank(NETWORKS, IMAGES, seed=1)
    state = torch.random.get_rng_state()
    again = tenas.rank(NETWORKS, IMAGES, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    assert again.equals(first)
    assert tenas.rank(NETWORKS, IMAGES, seed=1).equals(first)
    assert not tenas.rank(NETWORKS, IMAGES, seed=2).equals(first)
    # The order is that of the aggregate, wider ones first here.
    assert list(first.index) == ["wide", "middle", "narrow"]
    assert first["log_rank_sum"].is_monotonic_decreasing


def test_a_single_draw_has_no_standard_error_and_a_collapsed_network_comes_last():
    twice = IMAGES[:1].repeat(8, 1, 1, 1)
    found = tenas.rank(NETWORKS, twice, measures=["naswot", "parameters"], repeats=1, batch=8)
    assert found[["naswot_se", "parameters_se"]].isna().all(axis=None)
    assert (found["naswot_score"] == -np.inf).all()
    assert (found["naswot_rank"] == 2).all()


@pytest.mark.parametrize(
    ("networks", "options", "said"),
    [
        ({}, {}, "at least one network and one measure"),
        (NETWORKS, {"measures": "near"}, r"'measures' is the text 'near'; it must be a list of names: \['near'\]"),
        (NETWORKS, {"measures": []}, "at least one network and one measure"),
        ([layers(2)], {}, "The networks are a list, not a dictionary from names"),
        ({"made": layers(2)}, {}, "'made' must be a function that makes it"),
        ({"text": "resnet"}, {}, "'text' must be a function that makes it"),
        ({"nothing": lambda: None}, {}, "'nothing' makes a NoneType"),
        (NETWORKS, {"measures": ["linear_regions"]}, "linear_regions is of regions"),
        (NETWORKS, {"measures": ["snip"]}, "snip is loss-based"),
        (NETWORKS, {"measures": ["naswott"]}, "Unknown measure 'naswott'"),
        (NETWORKS, {"measures": ["swap", "flops", "swap"]}, "swap is given twice"),
        (NETWORKS, {"labels": LABELS[:20]}, "20 labels for 24 images"),
        (NETWORKS, {"labels": torch.arange(30) % 3}, "30 labels for 24 images"),
        (NETWORKS, {"repeats": 0}, "'repeats' is 0"),
        (NETWORKS, {"batch": 25}, "'batch' is 25; it must be 1 to 24"),
    ],
)
def test_what_makes_no_ranking_gets_a_sentence(networks, options, said):
    with pytest.raises(tenas.TenasError, match=said):
        tenas.rank(networks, IMAGES, **options)


def test_a_network_can_be_built_from_a_seed():
    cell = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"

    def built(**options):
        return [p.detach() for p in tenas.build(cell, channels=4, cells=1, classes=3, **options).parameters()]

    state = torch.random.get_rng_state()
    first = built(seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(map(torch.equal, first, built(seed=3)))
    assert not all(map(torch.equal, first, built(seed=4)))
    assert not all(map(torch.equal, built(), built()))


def test_measures_may_draw_from_any_default_generator():
    """Of torch, NumPy and Python: seeded for each draw; the caller's go on as if nothing had drawn."""
    draws = {"torch": lambda: torch.rand(()).item(), "numpy": np.random.rand, "python": random.random}
    measures = [tenas.Measure(name, lambda network, images, draw=draw: draw()) for name, draw in draws.items()]

    def seed_all(seed: int) -> None:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # that which a measure draws from
        random.seed(seed)

    tables = []
    for start in (1, 2):
        seed_all(start)
        tables.append(tenas.rank(NETWORKS, IMAGES, measures=measures, batch=4))
        after = [draw() for draw in draws.values()]
        seed_all(start)
        assert after == [draw() for draw in draws.values()]
    pd.testing.assert_frame_equal(*tables)
    for name in draws:
        assert len(set(tables[0][f"{name}_score"])) == 1  # all networks of a draw draw the same
        assert (tables[0][f"{name}_se"] > 0).all()


def test_a_measure_that_changes_everything_changes_no_other():
    def careless(network, images):
        found = images.abs().mean().item()
        images.mul_(3)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        network.eval().requires_grad_(False)
        return found

    def rank(*measures):
        return tenas.rank(NETWORKS, IMAGES, measures=measures, batch=8)

    found = rank(tenas.Measure("careless", careless), "naswot")
    assert len(set(found["careless_score"])) == 1
    pd.testing.assert_series_equal(found["naswot_score"].sort_index(), rank("naswot")["naswot_score"].sort_index())


def test_a_ranking_does_not_follow_autocast():
    plain = tenas.rank(NETWORKS, IMAGES, measures=["synflow"], batch=8)
    with torch.autocast("cpu", torch.bfloat16):
        pd.testing.assert_frame_equal(tenas.rank(NETWORKS, IMAGES, measures=["synflow"], batch=8), plain)
