"""Folders of images as people have them: what is read, what is passed over and said, what is refused."""

import json
import os
import re
import shutil
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tenas.cli import main
from tenas.data import DataWarning, load_splits, prepare

IMAGES = 5
GENERATOR = np.random.default_rng(0)


def save(path: Path, *, side: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(GENERATOR.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


def classes(folder: Path, *names: str, images: int = IMAGES) -> None:
    for name in names or ("ant", "bee"):
        for number in range(images):
            save(folder / name / f"{number}.png")


def parts(folder: Path, *names: str) -> None:
    for name in names:
        classes(folder / name)


def flat(folder: Path, *names: str) -> None:
    for name in names:
        for number in range(IMAGES):
            save(folder / name / f"{number}.JPEG")


def prepared_inside(folder: Path) -> None:
    classes(folder)
    prepare({"source": "digits", "images": 10}, folder / "data")


def renamed(folder: Path, *names: bytes) -> None:
    """Class folders, the first images of which get other names."""
    classes(folder)
    for number, name in enumerate(names):
        os.rename(folder / "ant" / f"{number}.png", os.fsencode(folder / "ant") + b"/" + name)


def linked(folder: Path, name: str, target: str) -> None:
    classes(folder)
    (folder / name).symlink_to(target)


def empty(folder: Path) -> None:
    classes(folder)
    (folder / "bee" / "4.png").write_bytes(b"")


def pipe(folder: Path) -> None:
    classes(folder)
    os.mkfifo(folder / "ant" / "x.png")


def beside(folder: Path, *names: str) -> None:
    """Class folders, and further images of one of them."""
    classes(folder)
    for name in names:
        save(folder / name)


def with_file(folder: Path, name: str) -> None:
    classes(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"\0\5\x16\7")


def copied(folder: Path, source: str, target: str) -> None:
    classes(folder)
    shutil.copytree(folder / source, folder / target)


def in_forms(folder: Path) -> None:
    """Names in train as they are typed, in val as macOS stores them."""
    classes(folder / "train", "été", "ant")
    classes(folder / "val", unicodedata.normalize("NFD", "été"), "ant")


def both_forms(folder: Path) -> None:
    classes(folder, "été", unicodedata.normalize("NFD", "été"))


def each(*steps):
    return lambda folder: [step(folder, *names) for step, *names in steps]


# What is in a folder -> number of classes, of images for training and for testing, and what is said of it.
READ = {
    "class folders": (classes, 2, 8, 2, None),
    "a hidden folder in a class": (lambda f: copied(f, "ant", "ant/.ipynb_checkpoints"), 2, 8, 2, "system files"),
    "a hidden copy of an image": (lambda f: with_file(f, "ant/._0.png"), 2, 8, 2, r"system files .*\(\._0\.png\)"),
    "what macOS zips": (lambda f: with_file(f, "__MACOSX/ant/._0.png"), 2, 8, 2, "__MACOSX"),
    "thumbnails of a NAS": (lambda f: copied(f, "ant", "ant/@eaDir"), 2, 8, 2, "@eaDir"),
    "a hidden name that is no UTF-8": (lambda f: renamed(f, b".\xff.png"), 2, 7, 2, "system files"),
    "a name that is no UTF-8": (lambda f: renamed(f, b"\xff\xe9.png"), 2, 8, 2, None),
    "suffixes in capitals": (lambda f: renamed(f, b"a.PNG", b"b.Png"), 2, 8, 2, None),
    "files that are no images": (lambda f: with_file(f, "ant/Thumbs.db"), 2, 8, 2, r"without an image suffix .* 1 \(1 \.db\)"),
    "a file without a suffix": (lambda f: with_file(f, "ant/LICENSE"), 2, 8, 2, r"1 without a suffix"),
    "TIFF beside PNG": (lambda f: beside(f, *(f"ant/{i}.tif" for i in range(5))), 2, 12, 3, None),
    "folders below a class": (lambda f: beside(f, *(f"ant/more/{i}.png" for i in range(5))), 2, 12, 3, None),
    "a folder called like an image": (lambda f: beside(f, *(f"ant/a.png/{i}.png" for i in range(5))), 2, 12, 3, None),
    "a class that is a link": (lambda f: linked(f, "cat", "ant"), 3, 12, 3, "are in the test part too"),
    "a link to a folder below a class": (lambda f: linked(f, "ant/more", "../bee"), 2, 12, 3, "are in the test part too"),
    "an image in no class": (lambda f: beside(f, "loose.png"), 2, 8, 2, "lie in no class folder are not read: 1"),
    "a prepared data set": (prepared_inside, 2, 8, 2, r"system files .*\(data\)"),
    "classes that differ in case": (lambda f: classes(f, "Ant", "ant"), 2, 8, 2, "differ in case only"),
    # Parts.
    "train": (lambda f: parts(f, "train"), 2, 8, 2, None),
    "train and val": (lambda f: parts(f, "train", "val"), 2, 10, 10, None),
    "train, valid and test": (lambda f: parts(f, "train", "valid", "test"), 2, 10, 10, "valid is not read: .*test is the"),
    "training and testing": (lambda f: parts(f, "training", "testing"), 2, 10, 10, None),
    "Train and Val": (lambda f: parts(f, "Train", "Val"), 2, 10, 10, None),
    "seg_train and seg_test": (lambda f: parts(f, "seg_train", "seg_test"), 2, 10, 10, None),
    "train2017 and val2017": (lambda f: parts(f, "train2017", "val2017"), 2, 10, 10, None),
    "a test part without classes": (each((parts, "train"), (flat, "test")), 2, 8, 2, "test is not read: it has no class folders"),
    "labelled test, flat val": (each((parts, "train", "test"), (flat, "val")), 2, 10, 10, "val is not read: it has no class"),
    "folders beside the parts": (each((parts, "train", "val"), (flat, "extra")), 2, 10, 10, "not read: extra"),
    "val that is train": (lambda f: (parts(f, "train"), (f / "val").symlink_to("train")), 2, 10, 10, "10 of the 10 .* test part"),
    "names in other Unicode forms": (in_forms, 2, 10, 10, None),
    # Names of parts that are names of classes.
    "bus, car and train": (lambda f: classes(f, "bus", "car", "train"), 3, 12, 3, "train is taken for a class"),
    "valid and invalid": (lambda f: classes(f, "valid", "invalid"), 2, 8, 2, "valid is taken for a class"),
    "two trains": (lambda f: classes(f, "bullet_train", "steam_train"), 2, 8, 2, None),
    "trainset and testset": (lambda f: parts(f, "TrainSet", "TestSet"), 2, 10, 10, None),
    "trn and tst": (lambda f: parts(f, "trn", "tst"), 2, 10, 10, None),
    "folds": (lambda f: parts(f, "fold1", "fold2"), 2, 16, 4, r"fold1, fold2\) all have the same folders in them \(ant, bee\)"),
    "classes below a class": (each((classes, "ant", "bee"), (lambda f: classes(f / "2023"),)), 3, 16, 4, "2023 has folders"),
    "the bin of a NAS": (lambda f: classes(f, "ant", "bee", "#recycle", "@Recycle"), 2, 8, 2, "#recycle, @Recycle"),
    "a packed class": (lambda f: with_file(f, "cat.zip"), 2, 8, 2, r"Archives in .* are not read: cat\.zip"),
    "parts and classes in one name": (lambda f: classes(f, "trainA", "testA"), 2, 8, 2, "testA, trainA .* parts of a data set"),
    "classes and parts in one name": (lambda f: classes(f, "cat-train", "cat-test"), 2, 8, 2, "like parts of a data set"),
    "parts of a class": (lambda f: (parts(f, "ant", "bee"), os.rename(f / "ant/ant", f / "ant/train")), 2, 16, 4, "together"),
}  # fmt: skip

REFUSED = {
    "a dead link": (lambda f: linked(f, "ant/x.png", "/nowhere.png"), "x.png cannot be read: it is a link that leads nowhere"),
    "a class that is gone": (lambda f: linked(f, "cat", "/nowhere"), "cat cannot be read: it is a link that leads nowhere"),
    "a link to itself": (lambda f: linked(f, "ant/x.png", "x.png"), "x.png cannot be read: "),
    "a folder in itself": (lambda f: linked(f, "ant/more", "../ant"), "more is a link to a folder that contains it"),
    "an empty file": (empty, "4.png cannot be read: it is empty"),
    "a pipe": (pipe, "x.png cannot be read: it is no file"),
    "one class": (lambda f: classes(f, "ant"), "neither a folder 'train' nor at least two class folders"),
    "a class without images": (lambda f: with_file(f, "cat/a.txt"), "cat holds no image"),
    "a class of hidden images": (lambda f: with_file(f, "cat/.a.png"), "cat holds no image"),
    "flat val": (each((parts, "train"), (flat, "val")), "val has no class folders with images"),
    "val without anything": (lambda f: (parts(f, "train"), (f / "val").mkdir()), "val has no class folders with images"),
    "flat parts": (lambda f: flat(f, "train", "val"), "train has no class folders with images"),
    "no train": (lambda f: parts(f, "test", "val"), "'test' and 'val', but no folder 'train'"),
    "two trains": (lambda f: parts(f, "train", "Training", "val"), "'Training' and 'train', which are the same part"),
    "a train with folders, a bus": (each((parts, "train"), (classes, "bus")), "'train', with class folders in it, and .* bus"),
    "another class in val": (
        each((parts, "train"), (lambda f: classes(f / "val", "ant", "wasp"),)), "'bee' is in only one of"),
    "a class twice, in two Unicode forms": (both_forms, "in two Unicode forms"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_is_read_of_a_folder(tmp_path, name):
    make, count, train, test, said = READ[name]
    make(tmp_path / "set")
    entry = {"source": "folder", "path": str(tmp_path / "set"), "side": 8}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        card = prepare(entry, tmp_path / "out")
    assert (card["classes"], card["available"], card["held_out_for_testing"]) == (count, train, test)
    # The log and the card say the same.
    assert [str(warning.message) for warning in caught if warning.category is DataWarning] == card.get("warnings", [])
    if said is None:
        assert "warnings" not in card
    else:
        assert any(re.search(said, text) for text in card["warnings"]), card["warnings"]
    # And a training can read all of it.
    splits = load_splits(entry)
    for part, images in ((splits.train, train), (splits.test, test)):
        assert len(part.read(np.arange(len(part.labels)))) == images
        part.digest()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_of_a_folder(tmp_path, capsys, name):
    make, sentence = REFUSED[name]
    make(tmp_path / "set")
    entry = {"source": "folder", "path": str(tmp_path / "set")}
    assert main(["prepare", json.dumps(entry), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert re.search(sentence, said), said
    assert not (tmp_path / "out").exists()


def test_imagenets_flat_val_is_named(tmp_path, capsys):
    classes(tmp_path / "train")
    flat(tmp_path, "val")
    assert main(["prepare", json.dumps({"source": "imagenet-1k", "path": str(tmp_path)}), "--out", str(tmp_path / "out")]) == 2
    assert f"{tmp_path / 'val'} has no class folders" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize(
    ("name", "sentence"), [("3.png", "3.png cannot be read: permission denied"), (".", "bee cannot be read")]
)
def test_what_may_not_be_read_is_found_at_once(tmp_path, capsys, name, sentence):
    classes(tmp_path / "set")
    closed = tmp_path / "set/bee" / name
    mode = closed.stat().st_mode
    closed.chmod(0)
    try:
        command = ["prepare", json.dumps({"source": "folder", "path": str(tmp_path / "set")}), "--out", str(tmp_path / "out")]
        assert main(command) == 2
    finally:
        closed.chmod(mode)
    assert sentence in capsys.readouterr().err
