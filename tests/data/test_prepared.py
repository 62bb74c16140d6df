"""Prepared images: what was hashed is what is measured; edited cards, and sides and channels that do not fit, are refused."""

import json
import os
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from helpers.engine import TINY
from PIL import Image

import tenas
from tenas.cli import main
from tenas.config import load_config
from tenas.data import DataWarning, prepare, prepare_arrays, read_images
from tenas.data.arrays import as_pixels
from tenas.data.prepared import channel_statistics, read_card, read_prepared
from tenas.errors import TenasError
from tenas.files import read_json, sha256, write_json
from tenas.spaces import CellSpace, get_space

REGIONS = """
exclude: [none]
prune: 1
change: log
ranks: average
measures:
  linear_regions: {repeats: 1, inputs: crops, count: 300, blocks: 3, channels: 1, weights: kaiming_fan_in, redraw: true}
"""


def pixels(count: int = 40, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def search(folder: Path, data: Path, preset: str = TINY) -> int:
    (folder / "preset.yaml").write_text(preset)
    return main(["search", "--data", str(data), "--preset", str(folder / "preset.yaml"), "--out", str(folder / "run")])


# --- the card

# Of numbers that another data set could have; and of those that none has, which are refused without a seal too.
EDITS = {
    "mean": lambda card: card["mean"].__setitem__(0, card["mean"][0] / 2),
    "std": lambda card: card["std"].reverse(),
    "one digit of std": lambda card: card["std"].__setitem__(1, card["std"][1] + 1e-9),
    "classes": lambda card: card.update(classes=9),
    "source": lambda card: card.update(source="cifar10"),
    "the settings": lambda card: card["provenance"]["settings"].update(classes=9),
    "a warning": lambda card: card.update(warnings=[]),
}
DAMAGE = {
    "classes as a text": lambda card: card.update(classes="ten"),
    "a side of 0": lambda card: card.update(side=0),
    "two channels": lambda card: card["mean"].pop(),
    "a mean that is none": lambda card: card["mean"].__setitem__(0, None),
    "a number for names": lambda card: card.update(class_names=4),
}


@pytest.mark.parametrize(("name", "seal"), [*((name, True) for name in EDITS | DAMAGE), *((name, False) for name in DAMAGE)])
def test_a_card_that_was_edited_is_refused(tmp_path, name, seal):
    prepare_arrays(pixels(), np.arange(40) % 4, None, tmp_path)
    card = read_json(tmp_path / "card.json", "card")
    if not seal:  # as an earlier version wrote it
        del card["record_sha256"]
    (EDITS | DAMAGE)[name](card)
    write_json(tmp_path / "card.json", card)
    with pytest.raises(TenasError, match=r"card\.json is not the one that was written\. Prepare"):
        read_images(tmp_path / "images.npy")


def test_a_card_whose_seal_has_another_name_is_none_of_an_earlier_version(tmp_path):
    """Mean and deviation of those are computed again, but had other last digits."""
    prepare_arrays(pixels(), np.arange(40) % 4, None, tmp_path)
    card = read_json(tmp_path / "card.json", "card")
    seal = card.pop("record_sha256")
    for key in ({}, {"recorc_sha256": seal}):
        write_json(tmp_path / "card.json", card | key)
        with pytest.raises(TenasError, match="is not the one that was written") if key else nullcontext():
            read_images(tmp_path / "images.npy")


def test_arrays_replace_a_card_that_was_edited(tmp_path):
    first = prepare_arrays(pixels(), None, None, tmp_path)
    written = sha256(tmp_path / "card.json")
    assert prepare_arrays(pixels(), None, None, tmp_path) == first
    assert sha256(tmp_path / "card.json") == written
    EDITS["mean"](first)
    write_json(tmp_path / "card.json", first)
    assert (
        prepare_arrays(pixels(), None, None, tmp_path)["mean"] == read_images(tmp_path / "images.npy")[1]["mean"] != first["mean"]
    )


def test_no_search_begins_with_an_edited_card(tmp_path, capsys):
    prepare_arrays(pixels(), np.arange(40) % 4, None, tmp_path / "data")
    card = read_json(tmp_path / "data/card.json", "card")
    EDITS["mean"](card)
    write_json(tmp_path / "data/card.json", card)
    assert search(tmp_path, tmp_path / "data") == 2
    assert "card.json is not the one that was written" in capsys.readouterr().err


@pytest.mark.slow
def test_a_card_as_it_was_written_passes_the_audit(tmp_path):
    prepare_arrays(pixels(), np.arange(40) % 4, None, tmp_path / "data")
    assert search(tmp_path, tmp_path / "data") == 0
    assert main(["audit", str(tmp_path / "run")]) == 0


@pytest.mark.slow
def test_a_card_without_a_seal_is_checked_by_the_audit(tmp_path, capsys):
    prepare_arrays(pixels(), np.arange(40) % 4, None, tmp_path / "data")
    card = read_json(tmp_path / "data/card.json", "card")
    del card["record_sha256"]
    write_json(tmp_path / "data/card.json", card)
    assert search(tmp_path, tmp_path / "data") == 0
    EDITS["mean"](card)
    write_json(tmp_path / "data/card.json", card)
    assert main(["audit", str(tmp_path / "run")]) == 2
    assert re.search(r"card\.json has \[.*\] for 'mean', where \[.*\] belongs", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("edit", "file"),
    [
        (EDITS["mean"], "card"),
        (EDITS["std"], "card"),
        (lambda card: card.update(class_names=["a", "b", "c", "d"], classes=9), "card"),
        (lambda card: card.update(source="cifar10", classes=100), "card"),
        (lambda card: card.update(classes=3), "labels"),
    ],
)
def test_a_card_without_a_seal_has_what_its_files_say(tmp_path, edit, file):
    prepare_arrays(pixels(), np.arange(40) % 4, None, tmp_path)
    card = read_json(tmp_path / "card.json", "card")
    del card["record_sha256"]
    write_json(tmp_path / "card.json", card)
    assert read_prepared(tmp_path / "images.npy", labels=True).card["classes"] == 4
    edit(card)
    write_json(tmp_path / "card.json", card)
    message = "card.json is not the one that was written" if file == "card" else "labels.npy are not those of their card"
    with pytest.raises(TenasError, match=re.escape(message)):
        read_prepared(tmp_path / "images.npy", labels=True)


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
@pytest.mark.parametrize(
    ("old", "new"), [(b"}", b"("), (b"(40,", b"(4000000000000,"), (b"NUMPY", b"NUMPX"), (b"descr", b"dsecr")]
)
def test_a_damaged_header_is_a_sentence_and_takes_no_memory(tmp_path, name, old, new):
    prepare_arrays(pixels(), np.arange(40) % 4, None, tmp_path)
    content = (tmp_path / name).read_bytes()
    assert content.count(old)
    (tmp_path / name).write_bytes(content.replace(old, new, 1))
    with pytest.raises(TenasError, match=rf"{name} (cannot be read|are not those of their card)"):
        read_prepared(tmp_path / "images.npy", labels=True)


# --- the hash of what was opened


def test_images_replaced_while_they_are_measured_stay_what_was_hashed(tmp_path):
    prepare_arrays(pixels(), np.arange(40) % 4, None, tmp_path / "data")
    prepare_arrays(255 - pixels(), np.arange(40) % 3, None, tmp_path / "other")
    paths = [tmp_path / "data" / name for name in ("images.npy", "card.json", "labels.npy")]
    before = {str(path): sha256(path) for path in paths}
    found = read_prepared(paths[0], labels=True)
    copy = np.load(paths[0])
    for path in paths:
        os.replace(tmp_path / "other" / path.name, path)
        assert sha256(path) != before[str(path)]
    assert found.hashes == before
    assert isinstance(found.images, np.memmap)
    np.testing.assert_array_equal(found.images, copy)
    assert sorted(set(found.labels.tolist())) == [0, 1, 2, 3]


# --- sides


@pytest.mark.parametrize(
    ("space", "side", "allowed"),
    [
        ("nas-bench-201", 9, "8 or 12"), ("nas-bench-201", 10, "8 or 12"), ("nas-bench-201", 30, "28 or 32"),
        ("nas-bench-201", 50, "48 or 52"), ("nas-bench-201", 3, "4"), ("nas-bench-201", 6, "4 or 8"),
        ("nas-bench-201", 8, None), ("nas-bench-201", 12, None), ("nas-bench-201", 32, None), ("darts", 9, None),
    ],
)  # fmt: skip
def test_the_sides_that_networks_take_are_those_that_run(space, side, allowed):
    """A residual block's branches differ at odd sides, as in the benchmark's own networks; 3 and 6 ran, by broadcasting."""
    import torch

    from tenas.networks import Supernet

    space = get_space(space)
    if allowed is None:
        space.check_side(side)
        with torch.device("meta"):
            network = Supernet(space, channels=2, cells=space.least_cells, classes=3)
            assert network(torch.empty(2, 3, side, side)).shape == (2, 3)
        return
    with pytest.raises(TenasError, match=rf"multiple of 4; it is {side}: set 'side' to {allowed}\.$"):
        space.check_side(side)


def test_own_cells_have_the_skeletons_sides_and_own_networks_theirs():
    operators = dict.fromkeys(("one", "two"), lambda inputs, outputs, stride: None)
    assert CellSpace("mine", operators).side_step == 4
    assert CellSpace("mine", operators, inputs=2).side_step == 1
    assert CellSpace("mine", operators, networks="tenas.networks.darts").side_step == 1


def config(source: dict, *, retrain: dict | None = None, search: dict | None = None) -> dict:
    run = {"space": "nas-bench-201", "dataset": "own", "preset": "pruning", "search": search or {}, "seeds": [0]}
    return {"datasets": {"own": source}, "runs": {"own": run | (retrain or {})}}


@pytest.mark.parametrize(
    ("source", "side"),
    [
        ({"source": "digits", "side": 30}, 30),
        ({"source": "folder", "path": "photos", "side": 50}, 50),
        ({"source": "npz", "path": "ten.npz"}, 10),
        ({"source": "npz", "path": "oblong.npz"}, 9),
        ({"source": "npz", "path": "ten.npz", "side": 12}, None),
        ({"source": "npz", "path": "absent.npz"}, None),
        ({"source": "prepared", "path": "ten"}, 10),
        ({"source": "digits"}, None),
    ],
)
def test_a_side_that_networks_do_not_take_is_refused_in_the_plan(tmp_path, monkeypatch, source, side):
    monkeypatch.chdir(tmp_path)
    np.savez("ten.npz", images=pixels(height=10, width=10), labels=np.arange(40) % 3)
    np.savez("oblong.npz", images=pixels(height=9, width=12), labels=np.arange(40) % 3)
    prepare({"source": "npz", "path": "ten.npz"}, tmp_path / "ten")
    if side is None:
        load_config(config(source))
        return
    with pytest.raises(TenasError, match=rf"run 'own': The networks of nas-bench-201 .* multiple of 4; it is {side}:"):
        load_config(config(source))


@pytest.mark.parametrize("height", [9, 10])
def test_a_search_on_such_images_ends_before_the_first_measurement(tmp_path, capsys, height):
    np.savez(tmp_path / "x.npz", images=pixels(height=height, width=12), labels=np.arange(40) % 3)
    assert search(tmp_path, tmp_path / "x.npz") == 2
    assert f"multiple of 4; it is {height}: set 'side' to 8 or 12" in capsys.readouterr().err
    assert not list(tmp_path.rglob("scores"))
    with pytest.raises(TenasError, match="multiple of 4"):
        tenas.search("nas-bench-201", pixels(height=height, width=12), progress=False, trainings="none")


# --- channels


@pytest.mark.parametrize("value", [0, 1, 77, 100, 254, 255])
def test_the_deviation_of_a_constant_channel_is_zero_and_not_its_rounding(value):
    images = pixels()
    images[..., 1] = value
    mean, std = channel_statistics(images)
    assert std[1] == 0.0
    assert min(std[0], std[2]) > 0.2
    assert mean[1] == pytest.approx(value / 255)


def test_a_constant_channel_is_said_and_refused_by_regions_alone(tmp_path, capsys):
    for folder in ("ant", "bee"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for number in range(5):
            image = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            image[..., 2] = 100
            Image.fromarray(image).save(tmp_path / "set" / folder / f"{folder}{number}.png")
    command = ["prepare", json.dumps({"source": "folder", "path": str(tmp_path / "set"), "side": 8}), "--out"]
    with pytest.warns(UserWarning, match="A channel of the images is constant"):
        assert main([*command, str(tmp_path / "data")]) == 0
    card, _ = read_card(tmp_path / "data/card.json")
    assert card["warnings"][-1].startswith("A channel of the images is constant")
    assert search(tmp_path, tmp_path / "data", REGIONS) == 2
    assert "A channel of the images is constant: they cannot be normalised." in capsys.readouterr().err


# --- arrays


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ([np.zeros((8, 8, 3)), np.zeros((9, 9, 3))], "are no array"),
        (np.full((4, 3, 8, 8), 7.0), "the same value everywhere, 7.0"),
        (np.array([None] * 4), "object"),
        (np.zeros((4, 3, 8, 8), complex), "complex128"),
        (np.zeros((4, 8, 8, 3), bool), "bool"),
        (np.zeros((4, 8, 8, 4), np.uint8), "they must be uint8"),
        (np.full((4, 3, 8, 8), np.inf), "not finite"),
    ],
)
def test_arrays_that_are_no_images_get_a_sentence(images, sentence):
    with pytest.raises(TenasError, match=sentence):
        as_pixels(images)


def test_images_on_another_scale_are_said(tmp_path):
    """Twelve bits in sixteen, or a mask of zeros and ones."""
    images = np.random.default_rng(0).integers(0, 17, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "dark.npz", images=images, labels=np.arange(6) % 2)
    with pytest.warns(DataWarning, match="brightest pixel of the 4 images has 16 of 255"):
        prepare({"source": "npz", "path": str(tmp_path / "dark.npz")}, tmp_path / "out")
