"""Pages whose commands are run as they stand, in an empty folder."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.pages import blocks, follow, page
from PIL import Image

pytestmark = pytest.mark.workflow
# In the place of the preset that README.md goes by, which takes minutes: that of the present folder comes first.
MEASURED = {"repeats": 1, "batch": 4, "channels": 2, "cells": 1, "weights": "kaiming_fan_in", "redraw": True}
PRESET = {
    "exclude": ["none"],
    "measures": {"ntk_condition_number": MEASURED, "swap": MEASURED},
    "rounds": [
        {"kind": "cells", "sample": 3, "keep": 2},
        {"kind": "cells", "keep": 1},
        {"kind": "cells", "keep": 1},
        {"kind": "training", "keep": 1, "training": {"channels": 2, "cells": 1, "epochs": 1, "batch": 16, "validation": 0.2}},
    ],
}


def save_images(folder: Path) -> None:
    """Images of three classes as files below ``photos/flowers``, and in ``photos.npz``."""
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
    np.savez(folder / "photos.npz", images=images, labels=np.arange(60) % 3)
    for number, image in enumerate(images):
        path = folder / "photos" / "flowers" / f"flower-{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


@pytest.mark.long
def test_the_tutorial_can_be_followed(tmp_path):
    said = follow("docs/tutorial.md", tmp_path)
    assert "192 images to search on, 16x16 pixels, 4 classes (one, three, two, zero); 48 more are held out for testing" in said
    named = re.findall(r"^photos/(\w+)/05\.png (\w+)$", said, re.MULTILINE)
    assert [name for name, _ in named] == ["one", "three", "two", "zero"]
    assert sum(name == found for name, found in named) >= 3
    assert (tmp_path / "results/report.html").is_file()
    assert re.search(r"^\d+ files, all as recorded$", said, re.MULTILINE)


@pytest.mark.long
def test_what_the_readme_does_with_ones_own_images_can_be_followed(tmp_path):
    """Its commands and its Python, with a preset by which they take seconds."""
    save_images(tmp_path)
    (tmp_path / "config/presets").mkdir(parents=True)
    (tmp_path / "config/presets/default.yaml").write_text(yaml.safe_dump(PRESET), encoding="utf-8")
    (space,) = [block.text for block in blocks(page("docs/own.md")) if block.name == "my_space.py"]
    (tmp_path / "my_space.py").write_text(space, encoding="utf-8")
    said = follow("README.md", tmp_path)
    assert "flowers.yaml: 48 images of 3 classes" in said
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"flowers", "report.html", "quick", "try", "mine"}
    assert len(re.findall(r"^seed 0: ", said, re.MULTILINE)) == 3
    assert (tmp_path / "results/flowers/seed0/export/network.onnx").is_file()
