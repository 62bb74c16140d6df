"""Export: both programs agree with the network, for any number of images, and faulty files are refused in a sentence."""

import io
import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tenas.cli import main
from tenas.errors import TenasError
from tenas.export.stage import difference
from tenas.files import sealed_bytes
from tenas.networks import Network, initialise
from tenas.retrain import load_network
from tenas.retrain.stored import save_network
from tenas.spaces import load_genotype

# A cell with an edge that is empty, and all operators of the space.
NAS = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_1x1~2|"
DARTS = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1), ('dil_conv_3x3', 0), ('skip_connect', 2), ('avg_pool_3x3', 1), "
    "('skip_connect', 0), ('skip_connect', 2), ('skip_connect', 3)], normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), "
    "('skip_connect', 1), ('sep_conv_5x5', 2), ('skip_connect', 0), ('dil_conv_5x5', 1), ('skip_connect', 2), "
    "('skip_connect', 3), ('max_pool_3x3', 1)], reduce_concat=range(2, 6))"
)
CASES = {
    "nas-bench-201": (NAS, {"channels": 4, "cells": 1, "classes": 5, "stem": "cifar"}, 16, False),
    "darts": (DARTS, {"channels": 4, "cells": 3, "classes": 7, "stem": "cifar"}, 32, True),
    "darts on imagenet": (DARTS, {"channels": 4, "cells": 2, "classes": 3, "stem": "imagenet"}, 64, False),
}


def store(path: Path, case: str) -> Network:
    """A network with weights and statistics as a training might leave them, stored as retraining does."""
    arch, shape, side, auxiliary = CASES[case]
    genotype = load_genotype(arch)
    network = Network(genotype, **shape, auxiliary=auxiliary)
    initialise(network, "kaiming_fan_in", 1)
    generator = torch.Generator().manual_seed(2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    network.to(memory_format=torch.channels_last)
    names = [f"class {label}" for label in range(shape["classes"])]
    save_network(path, network, genotype, shape, side, [0.4, 0.5, 0.6], [0.2, 0.3, 0.25], names)
    return network.eval()


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory) -> tuple[Network, dict, Path]:
    """By the command line."""
    folder = tmp_path_factory.mktemp("export")
    network = store(folder / "network.pt", request.param)
    assert main(["export", "--network", str(folder / "network.pt"), "--out", str(folder / "out")]) == 0
    return network, json.loads((folder / "out" / "export.json").read_text()), folder / "out"


def test_both_programs_agree_with_the_network(exported):
    """Read back with the libraries' own functions, run on batches of other sizes than the network was traced with."""
    network, card, out = exported
    program = torch.export.load(out / "network.pt2").module()
    session = onnxruntime.InferenceSession(out / "network.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        images = torch.randn(batch, *card["input"]["shape"][1:], generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = network(images)
            traced = program(images)
        (logits,) = session.run(None, {"images": images.numpy()})
        assert expected.shape == (batch, card["classes"])
        assert expected.std() > 0.01
        assert (traced - expected).abs().max() < 1e-4
        assert np.abs(logits - expected.numpy()).max() < 1e-4


def test_what_an_export_writes(exported):
    network, card, out = exported
    assert sorted(os.listdir(out)) == ["export.json", "network.onnx", "network.pt2"]
    assert load_genotype(card["arch"]) == network.genotype
    assert (card["mean"], card["std"]) == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
    assert card["largest_difference"].keys() == {"network.pt2", "network.onnx"}
    assert max(card["largest_difference"].values()) < 1e-4
    assert {"code_sha256", "packages", "inputs"} <= card["provenance"].keys()
    model = onnx.load(out / "network.onnx")
    onnx.checker.check_model(model, full_check=True)
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("images", "logits")
    first = image.type.tensor_type.shape.dim[0]
    assert first.dim_param == logits.type.tensor_type.shape.dim[0].dim_param == card["input"]["shape"][0] == "n"
    assert not first.HasField("dim_value")
    told = {entry.key: json.loads(entry.value) for entry in model.metadata_props if entry.key in card}
    assert told == {key: card[key] for key in ("arch", "space", "side", "evaluation_crop", "mean", "std", "class_names")}
    assert card["class_names"] == [f"class {label}" for label in range(card["classes"])]


def test_equal_networks_are_equal_files_and_the_auxiliary_head_is_left_out(tmp_path):
    network = store(tmp_path / "one.pt", "darts")
    store(tmp_path / "two.pt", "darts")
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()
    loaded, card = load_network(tmp_path / "one.pt")
    shape = {"space", "arch", "channels", "cells", "classes", "stem", "side"}
    assert card.keys() == {*shape, "mean", "std", "class_names", "evaluation_crop"}
    assert not any("auxiliary" in name for name in loaded.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), network(images))


def test_a_difference_is_noticed(tmp_path):
    network = store(tmp_path / "network.pt", "nas-bench-201")
    assert difference(network, network, 16) == 0
    with pytest.raises(TenasError, match=r"differs from the trained one by 2\.0e-04 in a logit"):
        difference(network, lambda images: network(images) + 2e-4, 16)
    with pytest.raises(TenasError, match="differs from the trained one by nan"):
        difference(network, lambda images: network(images) * float("nan"), 16)


def test_faulty_files_are_refused(tmp_path, capsys):
    store(tmp_path / "network.pt", "nas-bench-201")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "network.pt").read_bytes()[:3000])
    torch.save({"history": []}, tmp_path / "checkpoint.pt")
    for name, sentence in (
        ("absent.pt", "There is no trained network"),
        ("cut.pt", "damaged, or another kind of file"),
        ("checkpoint.pt", "is not a trained network"),
    ):
        assert main(["export", "--network", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert said.startswith("tenas: ")
        assert sentence in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"arch": torch.zeros(3)}, "the cell, the stem or the names of its 5 classes are none"),
        ({"evaluation_crop": 0.0}, "'evaluation_crop' is 0.0"),
        ({"class_names": ["a", "b"]}, "the cell, the stem or the names of its 5 classes are none"),
        ({"mean": [0.5, 0.5]}, r"'mean' is \[0\.5, 0\.5\], which are not three numbers"),
        ({"std": [0.5, float("nan"), 0.5]}, "nan is no number"),
        ({"side": 0}, "'side' is 0"),
        ({"channels": True}, "'channels' is True"),
        ({"cells": 10**9}, r"it has 1,000,000,000 cells in a stage, and \d+ weights"),
        ({"weights": {1: torch.zeros(1), 2: torch.zeros(1)}}, "do not fit the networks of nas-bench-201"),
    ],
)
def test_a_sealed_file_of_no_network_is_refused(tmp_path, change, sentence):
    """As another program may write it: whole, and of entries that would fail later, or be believed."""
    path = tmp_path / "network.pt"
    store(path, "nas-bench-201")
    buffer = io.BytesIO()
    torch.save(torch.load(path, weights_only=True) | change, buffer)
    path.write_bytes(sealed_bytes(buffer.getvalue()))
    with pytest.raises(TenasError, match=sentence):
        load_network(path)
