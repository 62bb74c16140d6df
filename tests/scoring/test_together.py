"""Measurements taken many at a time, as on a GPU: the values of one by one, to rounding."""

from collections.abc import Mapping

import pytest
import torch
from helpers.engine import CARD, DARTS, IMAGES, KAPPA, NAS, ON_A_BATCH, REGIONS, cells_of, conv, first_round, take, tiny
from torch import Tensor, nn

from tenas.measures import ntk_grouped
from tenas.scoring.score import Scorer, Task
from tenas.scoring.subjects import Measurement, Subjects, plan, trials_of
from tenas.scoring.together import SmallerGroupWarning, alike, taken_together
from tenas.search.made_by import measuring_code
from tenas.settings import search_settings
from tenas.spaces import CellSpace

pytestmark = pytest.mark.filterwarnings("ignore::tenas.measures.SaturatedWarning")
OF_CELLS = {
    KAPPA: {**ON_A_BATCH, "repeats": 3, "weights": "kaiming_fan_out"},
    "naswot": {**ON_A_BATCH},
    REGIONS: {
        "repeats": 2,
        "inputs": "crops",
        "count": 90,
        "blocks": 3,
        "channels": 1,
        "weights": "kaiming_fan_in",
        "redraw": True,
    },
}


def together(measures: Mapping, subjects: Subjects, measurements: list[Measurement]) -> tuple[dict, list[int]]:
    """The values of what is taken together, here on the CPU, and how many were each time."""
    task = Task(measures, subjects, (7, 1))
    drawer, scorer = (Scorer(task, IMAGES, CARD, "cpu") for _ in range(2))
    values, numbers = {}, []
    for group in alike(drawer, measurements)[0]:
        for results in taken_together(drawer, scorer, group):
            values |= {result.measurement: result.value for result in results}
            numbers.append(len(results))
            assert all(result.cost >= 0 for result in results)
    return values, numbers


def assert_same(found: Mapping[Measurement, float], expected: Mapping[Measurement, float]) -> None:
    assert found.keys() == expected.keys()
    for measurement, value in expected.items():
        if measurement.measure == KAPPA:
            assert found[measurement] == pytest.approx(value, rel=3e-6 * max(1, value / 10))  # the compiled kernel rounds too
        else:
            assert found[measurement] == pytest.approx(value, abs=1)  # a unit may lie within rounding of zero


def of_every(measurements: list[Measurement], step: int) -> list[Measurement]:
    return [measurement for measurement in measurements if measurement.subject % step == 1]


def test_trials_and_repeats_go_together():
    trials, measures = first_round(), tiny()["measures"]
    some = of_every(plan(measures, trials.ids), 6)
    values, numbers = together(measures, trials, some)
    assert numbers == [len(some) // 2] * 2
    assert_same(values, take(some))


def test_trials_with_images_and_weights_of_their_own_go_together():
    entry = tiny() | {"images": "own", "own_weights": [REGIONS]}
    trials = trials_of(first_round().mask, first_round().round, entry)
    some = of_every(plan(entry["measures"], trials.ids), 7)
    values, numbers = together(entry["measures"], trials, some)
    assert len(numbers) == 2
    assert_same(values, take(some, entry, trials))


@pytest.mark.parametrize("space", [NAS, DARTS], ids=lambda space: space.name)
def test_a_cells_repeats_go_together_and_the_crops_of_all_cells(space):
    cells = cells_of(space, 2)
    everything = plan(OF_CELLS, cells.ids)
    values, numbers = together(OF_CELLS, cells, everything)
    assert numbers == [3, 3, 4]
    expected = take([m for m in everything if m.measure != "naswot"], {"measures": OF_CELLS}, cells)
    assert_same(values, expected)


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def test_what_cannot_be_grouped_is_taken_one_by_one_with_the_same_bits():
    space = CellSpace("own", {"own": lambda inputs, outputs, stride: Own(), "conv": conv(3)}, channels=4)
    cells = cells_of(space, 2)
    measures = {KAPPA: OF_CELLS[KAPPA]}
    everything = plan(measures, cells.ids)
    values, numbers = together(measures, cells, everything)
    # A cell may be without the strange operator.
    assert set(numbers) <= {1, 3}
    assert 1 in numbers
    expected = take(everything, {"measures": measures}, cells)
    assert sum(values[measurement] == expected[measurement] for measurement in everything) >= numbers.count(1)
    assert_same(values, expected)


def test_fewer_go_together_when_the_memory_runs_out(monkeypatch):
    trials, measures = first_round(), {KAPPA: tiny()["measures"][KAPPA]}
    some = of_every(plan(measures, trials.ids), 6)
    whole, _ = together(measures, trials, some)

    def values(network: nn.Module, inputs: tuple[Tensor, ...], count: int, of=ntk_grouped.values) -> list[float]:
        if count > 3:
            raise torch.OutOfMemoryError
        return of(network, inputs, count)

    monkeypatch.setattr(ntk_grouped, "values", values)
    with pytest.warns(SmallerGroupWarning, match="memory ran out: 4 measurements of ntk_condition_number at a time instead of 8"):
        found, numbers = together(measures, trials, some)
    assert sum(numbers) == len(some) == 8
    assert max(numbers) <= 3
    assert_same(found, whole)


def test_the_code_of_grouped_measures_is_in_the_digest():
    settings = search_settings("nas-bench-201", "pruning")
    for name, module in ((KAPPA, "ntk_grouped"), (REGIONS, "regions_grouped")):
        from tenas.measures import get_measure

        assert f"tenas.measures.{module}" in get_measure(name).modules
    assert measuring_code("score", settings, {"measures": {KAPPA: {}}}) != measuring_code("score", settings, {"measures": {}})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gives_the_values_of_the_cpu():
    some = of_every(plan(tiny()["measures"], first_round().ids), 6)
    found, expected = take(some, device="cuda"), take(some)
    assert take(some, device="cuda") == found
    for measurement, value in expected.items():
        assert found[measurement] == pytest.approx(value, rel=1e-5 * max(1, value / 10) if measurement.measure == KAPPA else 0.05)
