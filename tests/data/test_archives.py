"""A user's .npz file: what is wrong with it is a sentence before memory is taken for it."""

import io
import json
import os
import re
import resource
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tenas.cli import main
from tenas.data import prepare
from tenas.data.archives import load_npz, npz_size
from tenas.errors import TenasError
from tenas.files import LARGE, sha256

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 12, 12, 3), dtype=np.uint8)
LABELS = np.arange(60) % 3


def saved(path: Path, **arrays: object) -> None:
    given = {"images": IMAGES, "labels": LABELS, **arrays}
    np.savez_compressed(path, **{name: array for name, array in given.items() if array is not None})


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def claiming(shape: tuple[int, ...], dtype: str = "|u1", fortran: bool = False) -> bytes:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": dtype, "fortran_order": fortran, "shape": shape})
    return head.getvalue()


def zipped(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {"images": npy(IMAGES), "labels": npy(LABELS), **members}.items():
            archive.writestr(f"{name}.npy", content)


def bomb(path: Path, name: str) -> None:
    """An archive of which one array unpacks to 1,000 times its size, as its head says."""
    size = LARGE // 432 * 432 + 432 * 1024
    head = claiming((size // 432, 12, 12, 3)) if name == "images" else claiming((size // 432,), "<U108")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for other, content in {"images": npy(IMAGES), "labels": npy(LABELS)}.items():
            if other != name:
                archive.writestr(f"{other}.npy", content)
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            member.write(head)
            for start in range(0, size, 2**20):
                member.write(bytes(min(2**20, size - start)))


def patched(path: Path, offset: int, value: int) -> None:
    """Change a field of all heads of an archive; ``offset``: within a local head, two bytes more in the directory."""
    saved(path)
    content = bytearray(path.read_bytes())
    for mark, further in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
        place = content.find(mark)
        while place >= 0:
            content[place + offset + further] = value
            place = content.find(mark, place + 4)
    path.write_bytes(content)


def twice(path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        for array in (LABELS, LABELS, IMAGES):
            archive.writestr("images.npy" if array is IMAGES else "labels.npy", npy(array))


REFUSED = {
    "encrypted": (lambda path: patched(path, 6, 1), "is encrypted"),
    "unknown compression": (lambda path: patched(path, 8, 93), r"unknown to Python \(number 93\)"),
    "10^12 images": (lambda path: zipped(path, images=claiming((10**12, 12, 12, 3)) + bytes(1000)), "432,000,000,000,128 bytes"),
    "10^30 images": (lambda path: zipped(path, images=claiming((10**30, 12, 12, 3)) + bytes(1000)), "is damaged"),
    "10^12 labels": (lambda path: zipped(path, labels=claiming((10**12,), "<i8")), "'labels' in .* is damaged"),
    "10^12 names": (lambda path: zipped(path, class_names=claiming((10**12,), "<U9")), "'class_names' in .* is damaged"),
    "fewer images than there are": (lambda path: zipped(path, images=claiming((1, 12, 12, 3)) + bytes(10**5)), "is damaged"),
    "a negative length": (lambda path: zipped(path, images=claiming((-1, 12, 12, 3))), r"\.npz"),
    "a bomb of images": (lambda path: bomb(path, "images"), "would unpack from"),
    "a bomb of names": (lambda path: bomb(path, "class_names"), "would unpack from"),
    "one array twice": (twice, "two arrays with one name"),
    "no array": (lambda path: zipfile.ZipFile(path, "w").close(), "has no array 'images'; it has none"),
    "not .npy": (lambda path: zipped(path, images=b"no array"), "not a valid .npz file"),
    "a text": (lambda path: path.write_bytes(b"images"), "not a valid .npz file"),
    "nothing": (lambda path: path.write_bytes(b""), "not a valid .npz file"),
    "a name of 300 letters": (lambda path: None, "cannot be read: File name too long"),
    "a folder": (Path.mkdir, "is no file"),
    "a pipe": (os.mkfifo, "is no file"),
    "a list of names that is a text": (lambda path: saved(path, class_names=np.array("ant")), r"the shape \(\)"),
    "a number of classes": (lambda path: saved(path, class_names=np.array(3)), r"'class_names' in .* has the shape \(\)"),
    "no name": (lambda path: saved(path, class_names=np.array([], str)), r"the shape \(0,\)"),
    "names of objects": (lambda path: saved(path, class_names=np.array(["a", None], object)), "holds Python objects"),
    "channels first": (lambda path: saved(path, images=IMAGES.transpose(0, 3, 1, 2)), r"\(60, 3, 12, 12\): transpose"),
    "alpha": (lambda path: saved(path, images=np.zeros((60, 8, 8, 4), np.uint8)), r"8, 4\): leave out the alpha channel"),
    "one channel": (lambda path: saved(path, images=np.zeros((60, 8, 8, 1), np.uint8)), "repeat grey images in three channels"),
    "booleans": (lambda path: saved(path, images=IMAGES > 9), r"it is bool .*: scale to 0 to 255"),
    "integers": (lambda path: saved(path, images=IMAGES.astype(int)), "it is int64"),
    "side 2": (lambda path: saved(path, images=IMAGES[:, :2, :2]), "have 2 x 2 pixels; a search needs 8 x 8: set 'side'"),
    "side 1": (lambda path: saved(path, images=IMAGES[:, :1, :9]), "have 1 x 9 pixels"),
    "a label of 10^9": (lambda path: saved(path, labels=np.r_[LABELS[1:], 10**9]), "allowed: 0 to 99999: number the classes"),
    "a label of 2^63": (lambda path: saved(path, labels=np.r_[LABELS[1:].astype(np.uint64), np.uint64(2**63)]), "allowed: 0 to"),
    "one-hot labels": (lambda path: saved(path, labels=np.eye(3, dtype=int)[LABELS]), r"are int64 \(60, 3\); they must be 60"),
    "labels in a column": (lambda path: saved(path, labels=LABELS[:, None]), "must be 60 integers"),
    "boolean labels": (lambda path: saved(path, labels=LABELS > 0), "are bool .* must be 60 integers"),
    "labels as words": (lambda path: saved(path, labels=np.array(["ant", "bee", "cat"])[LABELS]), "must be 60 integers"),
    "a name that is no text": (lambda path: saved(path, class_names=np.array(["a", "b\ud800", "c"])), "is no text in UTF-8"),
    "labels as texts": (lambda path: saved(path, labels=LABELS.astype(str)), "must be 60 integers"),
}  # fmt: skip


@contextmanager
def little_memory() -> Iterator[None]:
    """The block may take 64 MB more than the process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**26, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_an_array_of_another_name_by_a_turned_bit_is_none_that_is_passed_over(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=pixels, labels=np.arange(40) % 4, class_names=np.array(list("abcd")))
    content = (tmp_path / "mine.npz").read_bytes()
    place = content.rindex(b"class_names.npy")
    (tmp_path / "mine.npz").write_bytes(content[:place] + b"class_nates.npy" + content[place + 15 :])
    with pytest.raises(TenasError, match=r"directory 'class_nates\.npy' and header b'class_names\.npy' differ"):
        load_npz(tmp_path / "mine.npz")


def test_names_of_classes_may_be_bytes(tmp_path):
    saved(tmp_path / "a.npz", class_names=np.array([b"ant", "b\u00e9e".encode(), b"cat"]))
    assert load_npz(tmp_path / "a.npz").class_names == ["ant", "b\u00e9e", "cat"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_is_refused_before_memory_is_taken(tmp_path, capsys, name):
    make, sentence = REFUSED[name]
    path = tmp_path / ("x" * 300 if "letters" in name else "x.npz")
    make(path)
    command = ["prepare", json.dumps({"source": "npz", "path": str(path)}), "--out", str(tmp_path / "out")]
    with little_memory():
        assert main(command) == 2
    said = capsys.readouterr().err
    assert re.search(sentence, said), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"labels": np.zeros(60, int)}, "All images are of one class"),
        ({"labels": np.zeros(60, int), "class_names": np.array(["a", "b"])}, "All images are of one class"),
        ({"labels": LABELS * 2}, "Of the 5 classes only 3 have images; without any: 1, 3"),
        (
            {"class_names": np.array([f"c{i}" for i in range(1000)])},
            "Of the 1000 classes only 3 have images; without any: 3, 4, 5",
        ),
        ({"class_names": np.array(["a", "b", "a"])}, "'class_names' in .* has a name twice"),
        ({"test_images": IMAGES, "x\ny": LABELS}, r"Arrays in .* that are not read: 'test_images', 'x\\ny'\."),
        ({"images": np.concatenate([IMAGES[:30], IMAGES[:30]])}, "of the 48 images drawn are in the test part too"),
        ({"images": np.where([True, False, True], IMAGES, 100).astype(np.uint8)}, "A channel of the images is constant"),
        ({"labels": LABELS.astype(np.int8), "class_names": np.array([1, 2, 3])}, None),
        ({"images": np.asfortranarray(IMAGES)}, None),
    ],
)
def test_what_makes_results_mean_little_is_said_in_log_and_card(tmp_path, arrays, said):
    saved(tmp_path / "x.npz", **arrays)
    assert npz_size(tmp_path / "x.npz") == (12, 12)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        card = prepare({"source": "npz", "path": str(tmp_path / "x.npz")}, tmp_path / "out")
    found = [str(warning.message) for warning in caught]
    assert found == card.get("warnings", [])
    assert len(found) == (said is not None)
    assert said is None or re.search(said, found[0]), found


def test_the_hash_is_that_of_what_was_read(tmp_path):
    """The file is replaced after its arrays were read, before the record is written."""
    path = tmp_path / "x.npz"
    saved(path)
    digest, loaded = sha256(path), load_npz(path)
    path.unlink()
    saved(path, labels=LABELS * 0)
    assert sha256(path) != digest
    assert loaded.files == {str(path): digest}


def test_a_path_that_no_record_can_hold_is_refused(tmp_path):
    for path in ("a\0b", "\udcff.npz", "", 5):
        with pytest.raises(TenasError, match="it must be a path"):
            prepare({"source": "npz", "path": path}, tmp_path / "out")
