"""The registry of data sets: what a search reads, what retraining reads, and what is refused."""

import hashlib
import json
import pickle
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import SHARED
from PIL import Image

from tenas.boundary import REFUSED, described
from tenas.data import SOURCES, load_splits, prepare, read_images, read_labels
from tenas.data.entry import entry_of
from tenas.data.official import ImageNet16
from tenas.data.parts import split_by_class
from tenas.data.prepared import channel_statistics
from tenas.errors import TenasError
from tenas.search.given import given_data


def save_npz(path: Path, *, n: int = 60, side: int = 12, classes: int = 3, **other: np.ndarray) -> Path:
    generator = np.random.default_rng(0)
    arrays = {
        "images": generator.integers(0, 256, (n, side, side, 3), dtype=np.uint8),
        "labels": np.arange(n) % classes,
        **other,
    }
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def save_folder(path: Path, names: tuple[str, ...], images: int = 5, size: tuple[int, int] = (40, 24)) -> Path:
    """Class folders of PNGs whose colour is that of their class and whose corner tells them apart."""
    for label, name in enumerate(names):
        (path / name).mkdir(parents=True)
        for i in range(images):
            pixels = np.full((size[1], size[0], 3), 40 * (label % 6), np.uint8)
            pixels[:, size[0] // 2 :, 1] = i
            Image.fromarray(pixels).save(path / name / f"{i}.png")
    return path


def listing(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_digits_are_prepared_whole_and_can_be_mapped(tmp_path):
    card = prepare({"source": "digits"}, tmp_path / "digits")
    assert listing(tmp_path / "digits") == ["card.json", "images.npy", "labels.npy", "preview.png"]
    images, read = read_images(tmp_path / "digits" / "images.npy")
    assert isinstance(images, np.memmap)
    assert images.dtype == np.uint8
    assert images.shape == (card["images"], 32, 32, 3)
    assert read == card == json.loads((tmp_path / "digits" / "card.json").read_text())
    assert card["classes"] == 10
    assert card["available"] + card["held_out_for_testing"] == 1797
    assert card["sha256"] == hashlib.sha256((tmp_path / "digits" / "images.npy").read_bytes()).hexdigest()
    # Against numpy's own mean and standard deviation of floats.
    scaled = np.asarray(images, np.float64) / 255
    np.testing.assert_allclose(card["mean"], scaled.mean((0, 1, 2)), rtol=1e-10)
    np.testing.assert_allclose(card["std"], scaled.std((0, 1, 2)), rtol=1e-10)
    with Image.open(tmp_path / "digits" / "preview.png") as preview:
        shown = np.asarray(preview)
    assert shown.shape == (512, 512, 3)
    # Enlarged twice: image 9 stands in row 1, column 1.
    np.testing.assert_array_equal(shown[64:128:2, 64:128:2], images[9])


def test_digits_are_those_of_scikit_learn(tmp_path):
    """Shrunk back to 8 x 8 by block means, training and test digits are scikit-learn's, each with its label."""
    from sklearn.datasets import load_digits

    known = load_digits()
    splits = load_splits({"source": "digits"})
    assert Counter(map(int, splits.train.labels)) + Counter(map(int, splits.test.labels)) == Counter(map(int, known.target))
    for part in (splits.train, splits.test):
        images = part.read(np.arange(20)).astype(float)
        assert (images[..., :1] == images).all()
        small = images[..., 0].reshape(20, 8, 4, 8, 4).mean((2, 4)) / 255 * 16
        distance = ((small[:, None] - known.images) ** 2).sum((2, 3))
        np.testing.assert_array_equal(known.target[distance.argmin(1)], part.labels[:20])


def test_the_sample_is_that_of_its_seed(tmp_path):
    entry = {"source": "npz", "path": str(save_npz(tmp_path / "set.npz")), "images": 20}
    first = prepare(entry, tmp_path / "a")
    assert prepare(entry, tmp_path / "b")["sha256"] == first["sha256"]
    assert prepare({**entry, "seed": 1}, tmp_path / "c")["sha256"] != first["sha256"]
    assert first["images"] == 20


def test_the_search_never_sees_a_test_image(tmp_path):
    entry = {"source": "npz", "path": str(save_npz(tmp_path / "set.npz"))}
    prepare(entry, tmp_path / "out")
    images, card = read_images(tmp_path / "out" / "images.npy")
    splits = load_splits(entry)
    as_set = [{image.tobytes() for image in part} for part in (images, splits.train.images, splits.test.images)]
    assert as_set[0] == as_set[1]
    assert not as_set[0] & as_set[2]
    assert (card["images"], card["held_out_for_testing"]) == (48, 12)


def test_duplicates_are_left_out_and_counted(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    pixels[20:] = pixels[:20]
    path = save_npz(tmp_path / "set.npz", images=pixels, labels=np.zeros(40, int))
    card = prepare({"source": "npz", "path": str(path)}, tmp_path / "out")
    images, _ = read_images(tmp_path / "out" / "images.npy")
    assert len({image.tobytes() for image in images}) == len(images) == card["images"] < 32
    assert card["images"] + card["duplicates_left_out"] == 32


def test_labels_lie_beside_their_images(tmp_path):
    """Also where repetitions are left out and the sample is in another order than the source."""
    pixels = np.random.default_rng(1).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    pixels[40:] = pixels[20:40]
    classes = np.arange(60) % 3
    classes[40:] = classes[20:40]
    prepare({"source": "npz", "path": str(save_npz(tmp_path / "set.npz", images=pixels, labels=classes))}, tmp_path / "out")
    images, labels = np.load(tmp_path / "out" / "images.npy"), read_labels(tmp_path / "out" / "images.npy")
    known = {image.tobytes(): label for image, label in zip(pixels, classes, strict=True)}
    assert [known[image.tobytes()] for image in images] == labels.tolist()
    (tmp_path / "out" / "labels.npy").write_bytes((tmp_path / "out" / "images.npy").read_bytes())
    with pytest.raises(TenasError, match="not those of their card"):
        read_labels(tmp_path / "out" / "images.npy")


def test_images_without_labels_are_enough_for_a_search(tmp_path):
    entry = {"source": "npz", "path": str(save_npz(tmp_path / "set.npz", labels=None, class_names=np.array(["a", "b", "c"])))}
    card = prepare(entry, tmp_path / "out")
    assert (card["images"], card["classes"], card["held_out_for_testing"]) == (60, 3, 0)
    with pytest.raises(TenasError, match="have no labels"):
        read_labels(tmp_path / "out" / "images.npy")
    assert load_splits(entry).test is None


def test_a_test_part_is_held_out_of_each_class():
    labels = np.repeat([0, 1, 2, 3], [100, 50, 7, 1])
    keep, held = split_by_class(labels, 0.2, 5)
    assert Counter(map(int, labels[held])) == {0: 20, 1: 10, 2: 1}
    np.testing.assert_array_equal(np.sort(np.concatenate([keep, held])), np.arange(len(labels)))
    np.testing.assert_array_equal(split_by_class(labels, 0.2, 5)[1], held)
    assert (split_by_class(labels, 0.2, 6)[1] != held).any()


@pytest.mark.data
def test_statistics_of_cifar10_are_the_known_ones(tmp_path):
    card = prepare({"source": "npz", "path": f"{SHARED}/cifar10_train_10k.npz"}, tmp_path / "cifar10")
    np.testing.assert_allclose(np.multiply(card["mean"], 255), (125.3, 123.0, 113.9), atol=1.5)
    np.testing.assert_allclose(np.multiply(card["std"], 255), (63.0, 62.1, 66.7), atol=1.5)
    assert card["classes"] == 10
    assert 7900 <= card["images"] <= 8100


def test_statistics_of_a_constant_channel():
    mean, std = channel_statistics(np.full((3, 4, 4, 3), 255, np.uint8))
    assert mean == [1.0] * 3
    assert std == [0.0] * 3


@pytest.mark.data
@pytest.mark.parametrize(("name", "side"), [("cifar100_960", 32), ("imagenet1k_1000_64px", 32)])
def test_an_npz_is_at_most_32_pixels_wide_unless_told(tmp_path, name, side):
    card = prepare({"source": "npz", "path": f"{SHARED}/{name}.npz", "images": 100}, tmp_path / "own")
    assert card["side"] == side
    card = prepare({"source": "npz", "path": f"{SHARED}/{name}.npz", "images": 100, "side": 16}, tmp_path / "small")
    images, _ = read_images(tmp_path / "small" / "images.npy")
    assert images.shape == (100, 16, 16, 3)


def test_class_names_say_how_many_classes_there_are(tmp_path):
    path = save_npz(tmp_path / "set.npz", class_names=np.array([f"c{i}" for i in range(120)]))
    assert load_splits({"source": "npz", "path": str(path)}).classes == 120


def test_a_folder_with_a_split_of_its_own(tmp_path):
    save_folder(tmp_path / "set" / "train", ("ant", "bee", "cat"))
    save_folder(tmp_path / "set" / "val", ("ant", "bee", "cat"), images=2)
    splits = load_splits({"source": "folder", "path": str(tmp_path / "set"), "side": 16})
    assert (len(splits.train.labels), len(splits.test.labels), splits.classes) == (15, 6, 3)
    images = splits.train.read(np.array([14, 0]))
    assert images.shape == (2, 16, 16, 3)
    # Red tells the class: 40 times the label. The middle square has both halves, so green goes from 40 * label to i.
    assert (images[0, ..., 0] == 80).all()
    assert (images[1, ..., 0] == 0).all()
    assert (images[0, :, 0, 1] == 80).all()
    assert (images[0, :, -1, 1] == 4).all()
    card = prepare({"source": "folder", "path": str(tmp_path / "set"), "side": 16}, tmp_path / "out")
    assert (card["available"], card["held_out_for_testing"], card["classes"]) == (15, 6, 3)


def test_class_folders_alone_are_split(tmp_path):
    save_folder(tmp_path / "set", ("ant", "bee"), images=10)
    splits = load_splits({"source": "folder", "path": str(tmp_path / "set")})
    assert Counter(map(int, splits.train.labels)) == {0: 8, 1: 8}
    assert Counter(map(int, splits.test.labels)) == {0: 2, 1: 2}
    before = splits.train.digest()
    assert load_splits({"source": "folder", "path": str(tmp_path / "set")}).train.digest() == before
    with splits.train.paths[3].open("ab") as file:
        file.write(b"more")
    assert splits.train.digest() != before


def test_imagenet_needs_its_thousand_classes(tmp_path):
    names = tuple(f"n{i:08}" for i in range(1000))
    save_folder(tmp_path / "set" / "train", names, images=1, size=(10, 9))
    save_folder(tmp_path / "set" / "val", names, images=1, size=(10, 9))
    card = prepare({"source": "imagenet-1k", "path": str(tmp_path / "set"), "images": 50}, tmp_path / "out")
    assert (card["classes"], card["available"], card["side"]) == (1000, 1000, 32)
    for part in ("train", "val"):
        (tmp_path / "set" / part / names[7] / "0.png").unlink()
        (tmp_path / "set" / part / names[7]).rmdir()
    with pytest.raises(TenasError, match="1,000 classes"):
        prepare({"source": "imagenet-1k", "path": str(tmp_path / "set")}, tmp_path / "other")


def miniature_imagenet16(folder: Path) -> ImageNet16:
    """Two training batches and a validation batch in the official form: rows of 3 x 256 bytes, labels from 1."""
    generator = np.random.default_rng(3)
    checksums = {}
    folder.mkdir(parents=True)
    for name in ("train_data_batch_1", "train_data_batch_2", "val_data"):
        batch = {
            "data": generator.integers(0, 256, (50, 768), dtype=np.uint8),
            "labels": [1, 120, 121, 1000, *map(int, generator.integers(1, 200, 46))],
        }
        content = pickle.dumps(batch)
        (folder / name).write_bytes(content)
        checksums[name] = hashlib.md5(content).hexdigest()
    return ImageNet16({n: m for n, m in checksums.items() if n != "val_data"}, {"val_data": checksums["val_data"]})


def test_imagenet16_takes_the_first_120_classes(tmp_path):
    loaded = miniature_imagenet16(tmp_path / "set")(tmp_path / "set")
    assert loaded.classes == 120
    batches = [pickle.loads((tmp_path / "set" / f"train_data_batch_{i}").read_bytes()) for i in (1, 2)]
    expected = [
        (label - 1, row) for batch in batches for label, row in zip(batch["labels"], batch["data"], strict=True) if label <= 120
    ]
    assert loaded.train.labels.tolist() == [label for label, _ in expected]
    assert loaded.train.labels.min() == 0
    assert loaded.train.labels.max() == 119
    for image, (_, row) in zip(loaded.train.images, expected, strict=True):
        for channel in range(3):
            assert image[..., channel].tobytes() == row[256 * channel : 256 * (channel + 1)].tobytes()
    assert len(loaded.test.labels) < 50


def test_imagenet16_refuses_files_that_are_not_the_official_ones(tmp_path):
    miniature_imagenet16(tmp_path / "set")
    with pytest.raises(TenasError, match=r"train_data_batch_1 is not the official one"):
        prepare({"source": "imagenet16-120", "path": str(tmp_path / "set")}, tmp_path / "out")
    (tmp_path / "set" / "train_data_batch_1").unlink()
    with pytest.raises(TenasError, match=r"train_data_batch_1 cannot be read: No such file"):
        prepare({"source": "imagenet16-120", "path": str(tmp_path / "set")}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar_is_read_as_torchvision_checks_it(tmp_path, monkeypatch, name):
    """The official files are not here, so a miniature in their form, with its own checksums, stands in for them."""
    from torchvision import datasets

    kind = getattr(datasets, name)
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    generator = np.random.default_rng(4)
    key, classes = ("labels", 10) if name == "CIFAR10" else ("fine_labels", 100)
    lists = {}
    for which, names in (("train_list", ("one", "two")), ("test_list", ("three",))):
        lists[which] = []
        for file in names:
            content = pickle.dumps(
                {
                    "data": generator.integers(0, 256, (7, 3072), dtype=np.uint8),
                    key: [int(i) for i in generator.integers(0, classes, 7)],
                }
            )
            (folder / file).write_bytes(content)
            lists[which].append([file, hashlib.md5(content).hexdigest()])
    meta = pickle.dumps({kind.meta["key"]: [f"class {i}" for i in range(classes)]})
    (folder / "meta").write_bytes(meta)
    monkeypatch.setattr(kind, "train_list", lists["train_list"])
    monkeypatch.setattr(kind, "test_list", lists["test_list"])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "filename": "meta", "md5": hashlib.md5(meta).hexdigest()})
    monkeypatch.setattr(kind, "url", (tmp_path / "nowhere.tar.gz").as_uri())
    entry = {"source": name.lower(), "path": str(tmp_path)}
    splits = load_splits(entry)
    assert (len(splits.train.labels), len(splits.test.labels), splits.classes, splits.side) == (14, 7, classes, 32)
    first = pickle.loads((folder / "one").read_bytes())
    assert splits.train.read(np.array([0]))[0, ..., 1].tobytes() == first["data"][0, 1024:2048].tobytes()
    assert splits.train.labels[:7].tolist() == first[key]
    # A damaged file is fetched again; where that fails, the reason is a sentence.
    (folder / "two").write_bytes(b"damaged")
    with pytest.raises(TenasError, match=f"{name} could not be downloaded"):
        prepare(entry, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def bad_npz(folder: Path, fault: str) -> Path:
    path = folder / "set.npz"
    match fault:
        case "absent":
            return path
        case "not an archive":
            path.write_bytes(b"this is no archive")
        case "cut off":
            save_npz(path)
            path.write_bytes(path.read_bytes()[:-200])
        case "a byte changed":
            save_npz(path)
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 255
            path.write_bytes(bytes(content))
        case "a lone array":
            with path.open("wb") as file:
                np.save(file, np.zeros(3))
        case "no labels":
            save_npz(path, labels=None)
        case "float images":
            save_npz(path, images=np.zeros((60, 8, 8, 3)))
        case "grey images":
            save_npz(path, images=np.zeros((60, 8, 8), np.uint8))
        case "no images":
            save_npz(path, images=np.zeros((0, 8, 8, 3), np.uint8), labels=np.zeros(0, int))
        case "too few labels":
            save_npz(path, labels=np.zeros(59, int))
        case "float labels":
            save_npz(path, labels=np.zeros(60))
        case "negative labels":
            save_npz(path, labels=np.arange(60) - 1)
        case "more labels than names":
            save_npz(path, class_names=np.array(["a", "b"]))
        case "pickled objects":
            save_npz(path, labels=np.array([{}] * 60, dtype=object))
        case "equal images":
            save_npz(path, images=np.zeros((60, 8, 8, 3), np.uint8))
    return path


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("absent", "There is no file"),
        ("not an archive", "not a valid .npz file"),
        ("cut off", "not a valid .npz file"),
        ("a byte changed", "not a valid .npz file"),
        ("a lone array", "a single array"),
        ("no labels", "has no array 'labels'"),
        ("float images", "must be uint8 .* it is float64"),
        ("grey images", r"must be uint8 .* \(60, 8, 8\)"),
        ("no images", "must be uint8"),
        ("too few labels", "must be 60 integers"),
        ("float labels", "must be 60 integers"),
        ("negative labels", "go from -1"),
        ("more labels than names", "allowed: 0 to 1"),
        ("pickled objects", "holds Python objects"),
        ("equal images", r"1 different image\(s\)"),
    ],
)
def test_a_faulty_npz_gets_a_sentence_and_leaves_nothing(tmp_path, fault, sentence):
    path = bad_npz(tmp_path, fault)
    with pytest.raises(TenasError, match=sentence):
        prepare({"source": "npz", "path": str(path)}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_entry_that_the_one_before_it_swallows_is_missed(tmp_path):
    """One bit in the directory: the comment of the labels' entry reaches over that of the names."""
    path = save_npz(tmp_path / "set.npz", class_names=np.array(["a", "b", "c"]))
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"labels.npy") - 46
    content[entry + 33] ^= 4
    path.write_bytes(bytes(content))
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["images.npy", "labels.npy"]
    with pytest.raises(TenasError, match=r"not a valid \.npz file: its directory has 2 files where 3 should be"):
        prepare({"source": "npz", "path": str(path)}, tmp_path / "out")


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (b"\1\0\x29\x23" + b"1**" * 3000 + b"1", "its header is no description of an array"),
        (b"\1\0\x29\x23" + b"-" * 9000 + b"1", "its header is no description of an array"),
        (b"\2\0\0\0\0\x40" + b" " * 50_000, "EOF: reading array header"),
    ],
    ids=["powers", "signs", "a gigabyte"],
)
def test_no_header_takes_memory(tmp_path, header, sentence):
    """Python's parser calls it lack of memory; NumPy asks for what the length says."""
    path = save_npz(tmp_path / "set.npz")
    with zipfile.ZipFile(path) as archive:
        labels = archive.read("labels.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY" + header)
        archive.writestr("labels.npy", labels)
    with pytest.raises(TenasError, match=f"not a valid .npz file: {sentence}") as caught:
        prepare({"source": "npz", "path": str(path)}, tmp_path / "out")
    assert described(caught.value)[1] == REFUSED


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"source": "mnist"}, r"Unknown source 'mnist'; known: digits, cifar10, .*prepared, path/to/file.py:object"),
        ({}, "needs the key 'source'"),
        ({"source": "npz"}, "needs the key 'path'"),
        ({"source": "digits", "path": "here"}, "takes no 'path'"),
        ({"source": "digits", "images": 20_000}, "at least 2 and at most 10000"),
        ({"source": "digits", "images": 1}, "at least 2 and at most 10000"),
        ({"source": "digits", "images": True}, "at least 2 and at most 10000"),
        ({"source": "digits", "side": 4}, "at least 8"),
        ({"source": "digits", "seed": -1}, "at least 0"),
        ({"source": "digits", "sides": 4}, "no key 'sides'"),
        ({"source": "folder", "path": "no/such/folder"}, "cannot be read: No such file"),
        ({"source": "imagenet-1k", "path": "no/such/folder"}, "cannot be read: No such file"),
        ({"source": "imagenet16-120", "path": "no/such/folder"}, "There is no folder"),
    ],
)
def test_a_faulty_entry_gets_a_sentence_and_leaves_nothing(tmp_path, entry, sentence):
    with pytest.raises(TenasError, match=sentence):
        prepare(entry, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_faulty_folder_gets_a_sentence(tmp_path):
    def refused(sentence: str) -> None:
        with pytest.raises(TenasError, match=sentence):
            prepare({"source": "folder", "path": str(tmp_path / "set")}, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    save_folder(tmp_path / "set", ("ant",))
    refused("neither a folder 'train' nor at least two class folders")
    (tmp_path / "set" / "bee").mkdir()
    refused("bee holds no image")
    (tmp_path / "set" / "bee" / "0.jpeg").write_bytes(b"no image")
    refused("0.jpeg cannot be read")
    save_folder(tmp_path / "set" / "train", ("ant", "bee"))
    save_folder(tmp_path / "set" / "val", ("ant", "wasp"))
    refused("'bee' is in only one of")


def test_prepared_images_that_are_damaged_are_refused(tmp_path):
    prepare({"source": "digits", "images": 40}, tmp_path)
    images, card = (tmp_path / "images.npy").read_bytes(), (tmp_path / "card.json").read_text()

    def refused(sentence: str) -> None:
        with pytest.raises(TenasError, match=sentence):
            read_images(tmp_path / "images.npy")

    changed = bytearray(images)
    changed[-1] ^= 1
    (tmp_path / "images.npy").write_bytes(changed)
    refused("not those of their card")
    (tmp_path / "images.npy").write_bytes(images[: len(images) // 2])
    refused("Prepare the data set again")
    (tmp_path / "images.npy").unlink()
    refused("cannot be read")
    (tmp_path / "images.npy").write_bytes(images)
    (tmp_path / "card.json").write_text("{}")
    refused("has no key 'images'")
    (tmp_path / "card.json").unlink()
    refused("card.json cannot be read")
    (tmp_path / "card.json").write_text(card)
    read_images(tmp_path / "images.npy")


def test_a_preparation_that_fails_half_way_leaves_no_card(tmp_path):
    """A folder where the picture should go makes the stage fail after images.npy was written."""
    prepare({"source": "digits", "images": 40}, tmp_path)
    (tmp_path / "preview.png").unlink()
    (tmp_path / "preview.png").mkdir()
    with pytest.raises(TenasError, match=r"preview\.png"):
        prepare({"source": "digits", "images": 50}, tmp_path)
    assert listing(tmp_path) == ["images.npy", "labels.npy", "preview.png"]
    with pytest.raises(TenasError, match=r"card\.json"):
        read_images(tmp_path / "images.npy")


def test_the_registry_is_light():
    """The configuration is checked against SOURCES: that must not cost the import of torch."""
    heavy = "{'torch', 'torchvision', 'sklearn', 'PIL', 'pandas'}"
    code = f"import sys, tenas.data; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert list(SOURCES) == ["digits", "cifar10", "cifar100", "imagenet16-120", "imagenet-1k", "folder", "npz", "prepared"]


# --- prepared images as a source, and sources of one's own


def test_prepared_images_are_a_source(tmp_path):
    """All of them are for training: their test part was left out when they were prepared."""
    first = prepare({"source": "digits", "images": 100, "side": 8}, tmp_path / "digits")
    entry = {"source": "prepared", "path": str(tmp_path / "digits")}
    splits = load_splits(entry)
    assert splits.test is None
    assert (splits.classes, splits.side, len(splits.train.labels)) == (10, 8, first["images"])
    np.testing.assert_array_equal(splits.train.images, np.load(tmp_path / "digits" / "images.npy"))
    np.testing.assert_array_equal(splits.train.labels, np.load(tmp_path / "digits" / "labels.npy"))
    again = prepare(entry, tmp_path / "again")
    assert (again["images"], again["held_out_for_testing"], again["mean"]) == (first["images"], 0, first["mean"])
    assert {Path(name).name for name in again["provenance"]["inputs"]} == {"images.npy", "labels.npy", "card.json"}
    (tmp_path / "digits" / "labels.npy").unlink()
    with pytest.raises(TenasError, match=r"labels\.npy cannot be read"):
        load_splits(entry)
    with pytest.raises(TenasError, match=r"card\.json cannot be read"):
        load_splits({"source": "prepared", "path": str(tmp_path)})


OWN = """
import numpy as np
from stripes import draw
from tenas.data import Arrays, Loaded, Source

def load(path):
    images = draw(int(path.name) if path else 30)
    return Loaded(Arrays(images, np.arange(len(images)) % 2), None, 2, [] if path is None else [path])

SOURCE = Source(load, side=8, needs_path=False)
NEEDS = Source(load, side=8)
WRONG = Source(lambda path: load(path).train, side=8, needs_path=False)

def given(**changes):
    images, labels = draw(30), np.arange(30) % 2
    part = Arrays(changes.get("images", images), changes.get("labels", labels))
    return Source(lambda path: Loaded(changes.get("part", part), None, changes.get("classes", 2)), side=8, needs_path=False)

FLOATS = given(images=draw(30) / 255)
FEW = given(labels=np.arange(29) % 2)
HIGH = given(labels=np.arange(30))
LISTS = given(labels=[0, 1] * 15)
EMPTY = given(images=draw(30)[:0], labels=np.arange(0))
PART = given(part=draw(30))
CLASSES = given(classes=2.0)
NUMBER = 5
"""
STRIPES = """
import numpy as np

def draw(count):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
"""


def test_a_source_of_ones_own_is_an_object_in_a_file(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "stripes.py").write_text(STRIPES)
    monkeypatch.chdir(tmp_path)
    card = prepare({"source": "own.py:SOURCE", "images": 20}, tmp_path / "out")
    assert (card["images"], card["available"], card["classes"], card["side"]) == (20, 30, 2, 8)
    assert card["source"] == "own.py:SOURCE"
    assert load_splits({"source": str(tmp_path / "own.py:SOURCE")}).classes == 2
    for name, sentence in (
        ("NEEDS", "of the source 'own.py:NEEDS' needs the key 'path'"),
        ("WRONG", r"The source 'own.py:WRONG' gave a Arrays, not a tenas.data.Loaded"),
        ("NUMBER", "is a int, not a source of images"),
        ("FLOATS", "The images of the training part of the source 'own.py:FLOATS' must be uint8 .* it is float64"),
        ("FEW", "The labels of the training part .* must be 30 integers"),
        ("HIGH", "go from 0 to 29; allowed: -1 to 1"),
        ("LISTS", "must be NumPy arrays; one is a list"),
        ("EMPTY", "must be uint8"),
        ("PART", "are a ndarray, not tenas.data.Arrays or Files"),
        ("CLASSES", "at least 1 classes .* not 2.0"),
        ("NONE", "does not exist: own.py has"),
    ):
        with pytest.raises(TenasError, match=sentence):
            prepare({"source": f"own.py:{name}"}, tmp_path / "other")
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("text", ["9" * 5000, "x" * 300 + ".json", "photos\0"])
def test_a_text_that_is_no_path_is_a_sentence(text, tmp_path):
    for read in (entry_of, lambda text: given_data(text, tmp_path)):
        with pytest.raises(TenasError, match="There are no images in "):
            read(text)
