"""Image files of every kind as uint8 RGB: what white is, what is left out and said, what is refused."""

import json
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tenas.boundary import described
from tenas.cli import main
from tenas.data import prepare
from tenas.data.pixels import decode
from tenas.errors import TenasError

RAMP = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
COLOURS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
GREY = np.repeat(RAMP[..., None], 3, axis=2)
SIXTEEN = RAMP.astype(np.uint16) * 257


def pillow(array: np.ndarray, mode: str | None = None, **options: object):
    """Save an array by Pillow, converted to a mode."""

    def save(path: Path) -> None:
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(path, **options)

    return save


def text(content: bytes):
    return lambda path: path.write_bytes(content)


def white_is_zero(array: np.ndarray, bits: int, kind: int, white: int = 0):
    """A TIFF whose smallest value is white, or black with ``white`` = 1. ``kind``: 1 for integers, 2 signed ones, 3 floats."""
    tags = [(256, 8), (257, 8), (258, bits), (259, 1), (262, white)]
    tags += [(273, 8), (277, 1), (278, 8), (279, array.nbytes), (339, kind)]
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return text(
        b"II*\0" + struct.pack("<I", 8 + array.nbytes) + array.tobytes() + struct.pack("<H", len(tags)) + fields + bytes(4)
    )


# Name of a file -> how it is made, and its pixels.
READ = {
    "colour.png": (pillow(COLOURS), COLOURS),
    "colour.bmp": (pillow(COLOURS), COLOURS),
    "colour.tif": (pillow(COLOURS), COLOURS),
    "colour.webp": (pillow(COLOURS, lossless=True), COLOURS),
    "png.jpg": (pillow(COLOURS, format="PNG"), COLOURS),
    "grey.png": (pillow(RAMP), GREY),
    "grey.pgm": (text(b"P5 8 8 255\n" + RAMP.tobytes()), GREY),
    "grey16.png": (pillow(SIXTEEN), GREY),
    "grey16.tiff": (pillow(SIXTEEN), GREY),
    "grey16.pgm": (text(b"P5 8 8 65535\n" + SIXTEEN.astype(">u2").tobytes()), GREY),
    "twelve bits.pgm": (text(b"P5 8 8 4095\n" + (SIXTEEN >> 4).astype(">u2").tobytes()), GREY),
    "floats.tif": (pillow(RAMP.astype(np.float32) / 255), GREY),
    "white is 0.tif": (white_is_zero(255 - RAMP, 8, 1), GREY),
    "white is 0, 16 bits.tif": (white_is_zero(65535 - SIXTEEN, 16, 1), GREY),
    "white is 0, floats.tif": (white_is_zero(1 - RAMP.astype(np.float32) / 255, 32, 3), GREY),
    "bits.png": (pillow(RAMP, "1"), np.asarray(Image.fromarray(RAMP).convert("1").convert("RGB"))),
    "palette.gif": (pillow(RAMP), GREY),
    "alpha.png": (lambda path: Image.fromarray(np.dstack([COLOURS, RAMP])).save(path), COLOURS),
    "grey and alpha.png": (lambda path: Image.fromarray(np.dstack([RAMP, RAMP]), "LA").save(path), GREY),
    "cmyk.tif": (pillow(GREY, "CMYK"), GREY),
}  # fmt: skip

REFUSED = {
    "integers.tif": (pillow(RAMP.astype(np.int32) * 1000), "the value of white is not known"),
    "signed bytes.tif": (white_is_zero(RAMP, 8, 2, white=1), "the value of white is not known"),
    "large floats.tif": (pillow(RAMP.astype(np.float32)), "its floats are not all from 0 to 1"),
    "nan.tif": (pillow(np.full((8, 8), np.nan, np.float32)), "its floats are not all from 0 to 1"),
    "text.png": (text(b"no image"), "cannot identify"),
    "page.png": (text(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"), "cannot identify"),
    "huge.pgm": (text(b"P5 40000 40000 255\n" + bytes(64)), "decompression bomb"),
    "cut.bmp": (lambda path: (pillow(COLOURS)(path), path.write_bytes(path.read_bytes()[:100])), "truncated"),
    "cut.png": (lambda path: (pillow(COLOURS)(path), path.write_bytes(path.read_bytes()[:80])), "truncated"),
    "cut.jpg": (lambda path: (pillow(COLOURS)(path), path.write_bytes(path.read_bytes()[:650])), "truncated"),
    "head.gif": (text(b"GIF89a"), "cannot be read"),
    "head.tif": (text(b"II*\0\x08\0\0\0\xff\xff"), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_black_is_0_and_white_255_in_every_file(tmp_path, name):
    make, pixels = READ[name]
    make(tmp_path / name)
    for side in (None, 8):
        read = decode(tmp_path / name, side)
        assert (read.dtype, read.shape) == (np.uint8, (8, 8, 3))
        np.testing.assert_allclose(read.astype(int), pixels, atol=1)


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_image_is_named(tmp_path, capsys, name):
    make, sentence = REFUSED[name]
    for folder in ("ant", "bee"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for number in range(2):
            make(tmp_path / "set" / folder / f"{number}{name}")
    command = ["prepare", json.dumps({"source": "folder", "path": str(tmp_path / "set")}), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert re.search(rf"The image .*{re.escape(name)} cannot be read: .*{sentence}|{re.escape(name)} {sentence}", said), said
    assert not (tmp_path / "out").exists()


def frames(path: Path) -> None:
    Image.fromarray(RAMP).save(path, save_all=True, append_images=[Image.fromarray(RAMP.T.copy())])


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS).save(path, exif=exif)


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("x.png", READ["alpha.png"][0], "1 of the 5 images drawn have an alpha channel, which is left out"),
        ("x.gif", frames, "1 of the 5 images drawn have several frames or pages, of which the first is read"),
        ("x.tif", frames, "1 of the 5 images drawn have several frames or pages"),
        ("x.jpg", turned, "1 of the 5 images drawn have an EXIF orientation, which is not applied"),
        ("x.png", turned, "1 of the 5 images drawn have an EXIF orientation"),
        ("x.png", pillow(COLOURS), None),
    ],
)
def test_what_is_left_out_of_images_is_said(tmp_path, name, make, said):
    for number in range(4):
        folder = tmp_path / "set" / ("ant", "bee")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLOURS + np.uint8(number + 1)).save(folder / f"{number}.png")
    # Of classes of one and two images none is held out.
    (tmp_path / "set/cat").mkdir()
    make(tmp_path / "set/cat" / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        card = prepare({"source": "folder", "path": str(tmp_path / "set"), "side": 8}, tmp_path / "out")
    assert card.get("warnings", []) == ([] if said is None else [text for text in card["warnings"] if text.startswith(said)])


def test_a_size_that_no_file_of_its_bytes_has_takes_no_memory(tmp_path):
    """A damaged size, or a hostile one: 160 million pixels, which Pillow lets pass."""
    path = tmp_path / "grey.png"
    Image.fromarray(RAMP).save(path)
    content = path.read_bytes()
    kind_and_size = b"IHDR" + struct.pack(">II", 20_000, 8_000) + content[24:29]
    path.write_bytes(content[:12] + kind_and_size + struct.pack(">I", zlib.crc32(kind_and_size)) + content[33:])
    with pytest.raises(TenasError, match=r"claims to have 20,000 x 8,000 pixels in [0-9]+ bytes") as caught:
        decode(path)
    assert described(caught.value)[1] == 2


@pytest.mark.skipif(sys.platform != "linux", reason="it limits the address space")
@pytest.mark.parametrize("kind", ["png", "jp2"])
def test_a_length_that_no_file_of_its_bytes_has_takes_no_memory(tmp_path, kind):
    """A chunk of a PNG and a box of a JPEG 2000 that claim four gigabytes, with one to spend."""
    path = tmp_path / f"grey.{kind}"
    Image.fromarray(RAMP).save(path)
    content = path.read_bytes()
    place = content.index({"png": b"IDAT", "jp2": b"jp2h"}[kind]) - 4
    path.write_bytes(content[:place] + b"\xf0" + content[place + 1 :])
    code = (
        "import resource, sys; from pathlib import Path; from PIL import Image; Image.preinit(); Image.init()\n"
        "from tenas.data.pixels import decode\n"
        "size = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, resource.RLIM_INFINITY))\n"
        "try:\n    decode(Path(sys.argv[1]))\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    found = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "MemoryError" not in found.stdout
