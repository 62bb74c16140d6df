"""Retraining: augmentation, schedule, what the stage writes, and that an interruption leaves no trace."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, SHARED
from helpers.gpu import pretended
from helpers.retraining import ARCH, DARTS, FILES, TINY, rows_of, train_tiny
from PIL import Image
from torch.amp import GradScaler
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from tenas.data import load_splits
from tenas.data.parts import TEST_SEED, TEST_SHARE, Arrays, split_by_class
from tenas.errors import TenasError
from tenas.networks import Network
from tenas.retrain import feed, load_network, retrain
from tenas.retrain.augment import augment, crop_and_flip, cut_out, draw_params, jitter_colours, normalise
from tenas.retrain.data import channel_constants, read_data
from tenas.retrain.distributed import Processes
from tenas.retrain.feed import FromMemory, Pictures, make_feed
from tenas.retrain.train import Trainer, batches, evaluate, learning_rate, train_epoch, train_step
from tenas.settings import retrain_settings
from tenas.spaces import load_genotype

CPU = torch.device("cpu")

# What the images of TINY become in training, with all that this can do to them.
EVERYTHING = {
    "crop_padding": 2, "flip": True, "cutout": 3,
    "colour_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2},
}  # fmt: skip


TINY_DRAWS = {"crop_padding": 0, "flip": False, "cutout": 0, "colour_jitter": None}


def random_images(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (2, False), (0, True), (3, True)])
def test_crops_are_those_of_a_padded_image(padding, flip):
    """Every result is one of the windows of the padded image, mirrored or not; over many images all of them are met."""
    image = random_images(1, 7)
    batch = torch.from_numpy(image).expand(1500, -1, -1, -1)
    draws = draw_params(1500, (7, 7), TINY_DRAWS | {"crop_padding": padding, "flip": flip}, np.random.default_rng(0))
    crops = crop_and_flip(batch, draws.shift, draws.mirrored).numpy()
    padded = np.pad(image[0], ((padding, padding), (padding, padding), (0, 0)))
    windows = set()
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            window = padded[top : top + 7, left : left + 7]
            windows |= {window.tobytes(), window[:, ::-1].tobytes()} if flip else {window.tobytes()}
    assert {crop.tobytes() for crop in crops} == windows
    assert len(windows) == (2 * padding + 1) ** 2 * (2 if flip else 1)


def test_images_of_a_batch_are_augmented_apart():
    batch = torch.from_numpy(random_images(1, 9)).expand(20, -1, -1, -1)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.ones(3)
    for key, value in EVERYTHING.items():
        settings = TINY_DRAWS | {key: value}
        results = augment(batch, draw_params(20, (9, 9), settings, np.random.default_rng(0)), settings, mean, std)
        assert results.shape == (20, 3, 9, 9)
        assert len({result.numpy().tobytes() for result in results}) > (10 if key != "flip" else 1)
    plain = augment(batch, draw_params(20, (9, 9), TINY_DRAWS, np.random.default_rng(0)), TINY_DRAWS, mean, std)
    assert torch.equal(plain, normalise(batch, mean, std))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_augmentation_does_not_depend_on_the_number_of_processes(count):
    images = torch.from_numpy(random_images(20, 9))
    settings, mean, std = TINY_DRAWS | EVERYTHING, torch.tensor([0.4, 0.5, 0.6]), torch.ones(3)
    draws = draw_params(20, (9, 9), settings, np.random.default_rng(0))
    shares = [Processes(rank, count).share(20) for rank in range(count)]
    parts = [augment(images[share], draws.share(share), settings, mean, std) for share in shares]
    torch.testing.assert_close(torch.cat(parts), augment(images, draws, settings, mean, std))


def test_colours_are_jittered_as_by_torchvision():
    images = torch.from_numpy(random_images(30, 6)).float() / 255
    images[0] = 0.5  # grey: no hue
    generator = torch.Generator().manual_seed(0)
    factors = torch.empty(30, 4).uniform_(-1, 1, generator=generator) * torch.tensor([0.9, 0.9, 0.9, 0.5])
    factors[:, :3] += 1
    result = jitter_colours(images, factors)
    for image, (brightness, contrast, saturation, hue), found in zip(images, factors.tolist(), result, strict=True):
        expected = functional.adjust_brightness(image.permute(2, 0, 1), brightness)
        expected = functional.adjust_contrast(expected, contrast)
        expected = functional.adjust_saturation(expected, saturation)
        expected = functional.adjust_hue(expected, hue)
        # torchvision's weights of grey have four digits, with a sum of 0.9999.
        torch.testing.assert_close(found.permute(2, 0, 1), expected, rtol=0, atol=1e-3)


def test_normalised_images_have_the_layout_of_a_network():
    images = random_images(5, 6)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    result = normalise(torch.from_numpy(images), mean, std)
    expected = (images.transpose(0, 3, 1, 2) / 255 - mean.numpy()[:, None, None]) / std.numpy()[:, None, None]
    assert result.shape == (5, 3, 6, 6)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_cutout_blanks_one_square_that_may_hang_over_the_border():
    images = torch.ones(400, 3, 10, 8)
    draws = draw_params(400, (10, 8), TINY_DRAWS, np.random.default_rng(0))
    blank = (cut_out(images, 4, draws.hole) == 0).numpy()
    assert (blank == blank[:, :1]).all()
    sizes = set()
    for holes in blank[:, 0]:
        rows, columns = np.flatnonzero(holes.any(1)), np.flatnonzero(holes.any(0))
        assert holes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert holes.sum() == len(rows) * len(columns)
        sizes.add((len(rows), len(columns)))
    # Centres lie in the image, so that at least half of the square does.
    assert sizes == {(h, w) for h in (2, 3, 4) for w in (2, 3, 4)}
    assert blank[:, 0].any(0).all()


def test_the_schedule_is_pytorchs_cosine_after_a_linear_rise():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    for step in range(50):
        assert learning_rate(step, 50, 0, 0.3) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        assert learning_rate(step + 10, 60, 10, 0.3) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        schedule.step()
    rise = np.diff([learning_rate(step, 60, 10, 0.3) for step in range(11)])
    np.testing.assert_allclose(rise, 0.3 / 11)


@pytest.mark.parametrize(("count", "most"), [(100, 100), (101, 100), (5, 2), (97, 10), (3, 64)])
def test_batches_are_equal_but_for_one_image(count, most):
    parts = list(batches(np.arange(count), most))
    assert np.array_equal(np.concatenate(parts), np.arange(count))
    sizes = [len(part) for part in parts]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == math.ceil(count / most)


PLAIN_STEP = {"compile": False, "precision": "fp32", "label_smoothing": 0.0, "clip": None, "auxiliary": 0.0}
NO_SCALER = GradScaler("cpu", enabled=False)


class TwoHeads(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main, self.auxiliary = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.main(x), self.auxiliary(x)


def test_the_auxiliary_loss_is_weighed_and_not_reported():
    torch.manual_seed(0)
    network, x, labels = TwoHeads(), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 1])
    logits, auxiliary = network(x)
    settings = PLAIN_STEP | {"label_smoothing": 0.1, "auxiliary": 0.4}
    losses = [torch.nn.functional.cross_entropy(out, labels, label_smoothing=0.1) for out in (logits, auxiliary)]
    expected = torch.autograd.grad(losses[0] + 0.4 * losses[1], list(network.parameters()))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    loss, right = train_step(network, optimizer, NO_SCALER, x, labels, settings)
    assert loss.item() == pytest.approx(losses[0].item())
    assert right.item() == (logits.argmax(1) == labels).sum()
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_step_is_that_of_sgd_on_the_smoothed_and_clipped_loss():
    """Against the formulas: cross entropy of smoothed targets, gradient cut to a largest norm, Nesterov's momentum."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).double()
    images, labels = torch.randn(5, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    weight, bias = (p.detach().clone() for p in network.parameters())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9, nesterov=True, weight_decay=0.01)
    loss, right = train_step(network, optimizer, NO_SCALER, images, labels, PLAIN_STEP | {"label_smoothing": 0.3, "clip": 0.1})

    flat = images.flatten(1)
    logits = flat @ weight.T + bias
    targets = torch.nn.functional.one_hot(labels, 3) * 0.7 + 0.1
    assert loss.item() == pytest.approx(-(targets * logits.log_softmax(1)).sum(1).mean().item())
    assert right.item() == (logits.argmax(1) == labels).sum()
    slope = (logits.softmax(1) - targets) / 5
    gradients = [slope.T @ flat, slope.sum(0)]
    norm = math.sqrt(sum((g**2).sum().item() for g in gradients))
    assert norm > 0.1
    for before, gradient, after in zip((weight, bias), gradients, network.parameters(), strict=True):
        decayed = gradient * 0.1 / norm + 0.01 * before
        torch.testing.assert_close(after.detach(), before - 0.5 * 1.9 * decayed, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("trained") / "retrain"
    return out, train_tiny(out)


def test_what_a_retraining_writes(trained):
    out, metrics = trained
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert json.loads((out / "metrics.json").read_text()) == metrics
    rows = rows_of(out)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    best = max(rows, key=lambda row: (float(row["valid_accuracy"]), -float(row["valid_loss"])))
    assert metrics["best_epoch"] == int(best["epoch"])
    assert metrics["valid_accuracy"] == float(best["valid_accuracy"])
    assert metrics["parameters"] == sum(p.numel() for p in Network(ARCH, channels=4, cells=1, classes=10).parameters())
    assert metrics["flops"] > metrics["parameters"]
    assert sum(metrics["images"].values()) == 1797
    assert metrics["test_top5_accuracy"] > metrics["test_accuracy"] > 50
    assert metrics["provenance"]["settings"] == TINY
    assert {"wall_seconds", "packages", "code_sha256", "seed", "machine"} <= metrics["provenance"].keys()


def test_the_reported_accuracy_is_that_of_the_chosen_weights(trained):
    """Computed again from the checkpoint, one image at a time, without the package's own evaluation."""
    out, metrics = trained
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    network = Network(ARCH, channels=4, cells=1, classes=10)
    network.load_state_dict(state["best"]["network"])
    network.eval()
    splits = load_splits(TINY["dataset"])
    keep, _ = split_by_class(splits.train.labels, TINY["validation"], 0)
    training = splits.train.images[keep] / 255
    mean, std = training.mean((0, 1, 2)), training.std((0, 1, 2))
    right = 0
    with torch.no_grad():
        for image, label in zip(splits.test.images, splits.test.labels, strict=True):
            normal = torch.from_numpy((image / 255 - mean) / std).float().permute(2, 0, 1)[None]
            right += network(normal).argmax().item() == label
    assert metrics["test_accuracy"] == pytest.approx(100 * right / len(splits.test.labels))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(trained, tmp_path):
    out, metrics = trained
    again = train_tiny(tmp_path / "again")
    assert (tmp_path / "again" / "history.csv").read_bytes() == (out / "history.csv").read_bytes()
    assert again["test_loss"] == metrics["test_loss"]
    train_tiny(tmp_path / "other", seed=1)
    assert (tmp_path / "other" / "history.csv").read_bytes() != (out / "history.csv").read_bytes()


def assert_equal_states(one: object, other: object) -> None:
    """Bit for bit, all but the seconds."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            if key != "seconds":
                assert_equal_states(one[key], other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_equal_states(a, b)
    else:
        assert one == other


def start(settings: dict, arch: str, out: Path) -> subprocess.Popen:
    code = (
        "import json, sys; from tenas.retrain import retrain; from tenas.spaces import load_genotype; "
        "retrain(json.loads(sys.argv[1]), load_genotype(sys.argv[2]), seed=0, threads=1, device='cpu', out=sys.argv[3])"
    )
    return subprocess.Popen([sys.executable, "-c", code, json.dumps(settings), arch, str(out)], stderr=subprocess.PIPE, text=True)


def assert_killed_ends_as_undisturbed(settings: dict, arch: str, undisturbed: Path, out: Path, after: int, pause: float) -> None:
    """Kill a training ``pause`` seconds after the end of epoch ``after``, start it again, compare it with one that has ended."""
    with start(settings, arch, out) as process:
        for line in process.stderr:
            if line.startswith(f"epoch {after}/"):
                # The next epoch is running by now, or its checkpoint is being written.
                time.sleep(pause)
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert not set(os.listdir(out)) & {"history.csv", "metrics.json", "network.pt"}
    killed_at = len(torch.load(out / "checkpoint.pt", weights_only=True)["history"])
    assert after <= killed_at < settings["epochs"]
    with start(settings, arch, out) as process:
        assert process.stderr.read().count("epoch ") == settings["epochs"] - killed_at
    assert process.returncode == 0
    assert_equal_trainings(out, undisturbed)


def assert_equal_trainings(out: Path, undisturbed: Path) -> None:
    """All that they have written, but for times and places."""
    assert (out / "history.csv").read_bytes() == (undisturbed / "history.csv").read_bytes()
    assert (out / "network.pt").read_bytes() == (undisturbed / "network.pt").read_bytes()
    resumed, metrics = (json.loads((folder / "metrics.json").read_text()) for folder in (out, undisturbed))
    for key in ("provenance", "training_seconds", "record_sha256"):
        del resumed[key], metrics[key]
    assert resumed == metrics
    assert_equal_states(
        torch.load(out / "checkpoint.pt", weights_only=True),
        torch.load(undisturbed / "checkpoint.pt", weights_only=True),
    )
    assert sorted(path.name for path in out.iterdir()) == FILES


@pytest.mark.slow
def test_a_killed_training_ends_as_an_undisturbed_one(trained, tmp_path):
    assert_killed_ends_as_undisturbed(TINY, ARCH, trained[0], tmp_path / "retrain", 3, 0)


@pytest.mark.long
def test_a_killed_training_in_fp16_ends_as_an_undisturbed_one(tmp_path):
    settings = TINY | {"precision": "fp16", "epochs": 3}
    train_tiny(tmp_path / "undisturbed", precision="fp16", epochs=3)
    # The factor by which the loss is scaled is a state of the training too.
    assert torch.load(tmp_path / "undisturbed" / "checkpoint.pt", weights_only=True)["scaler"]["scale"] > 1
    assert_killed_ends_as_undisturbed(settings, ARCH, tmp_path / "undisturbed", tmp_path / "retrain", 1, 0)


@pytest.mark.long
@pytest.mark.data
def test_a_killed_training_of_a_darts_network_ends_as_an_undisturbed_one(tmp_path):
    """With drop-path and auxiliary head, on images of CIFAR-10; the loss falls."""
    with np.load(SHARED / "cifar10_train_10k.npz") as file:
        np.savez(tmp_path / "cifar.npz", images=file["images"][:500], labels=file["labels"][:500])
    settings = retrain_settings("darts-cifar10", {"channels": 2, "cells": 3, "epochs": 4, "batch": 24, "learning_rate": 0.1})
    assert settings["drop_path"] > 0
    assert settings["auxiliary"] == 0.4
    settings["dataset"] = {"source": "npz", "path": str(tmp_path / "cifar.npz")}
    undisturbed = tmp_path / "undisturbed"
    with start(settings, DARTS, undisturbed) as process:
        process.stderr.read()
    losses = [float(row["train_loss"]) for row in rows_of(undisturbed)]
    assert losses[-1] < losses[0]
    assert any("auxiliary" in name for name in torch.load(undisturbed / "checkpoint.pt", weights_only=True)["network"])
    assert_killed_ends_as_undisturbed(settings, DARTS, undisturbed, tmp_path / "retrain", 2, 0.2)


def test_a_checkpoint_of_other_settings_is_not_resumed(trained, tmp_path, capsys):
    train_tiny(tmp_path, epochs=1, batch=32)
    capsys.readouterr()
    train_tiny(tmp_path)
    noted = capsys.readouterr().err
    assert "is of other settings, data or code; training starts at the first epoch" in noted
    assert (tmp_path / "history.csv").read_bytes() == (trained[0] / "history.csv").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:5000], lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]],
    ids=["cut off", "a bit turned"],
)
def test_a_damaged_checkpoint_is_not_resumed(trained, tmp_path, capsys, damage):
    (tmp_path / "checkpoint.pt").write_bytes(damage((trained[0] / "checkpoint.pt").read_bytes()))
    (tmp_path / ".checkpoint.abcd1234.pt").write_bytes(b"left by a killed training")
    train_tiny(tmp_path)
    assert "cannot be read" in capsys.readouterr().err
    assert (tmp_path / "history.csv").read_bytes() == (trained[0] / "history.csv").read_bytes()
    assert not (tmp_path / ".checkpoint.abcd1234.pt").exists()


@pytest.mark.slow
def test_a_second_training_into_the_same_folder_waits_for_the_first(trained, tmp_path):
    both = [start(TINY, ARCH, tmp_path / "out") for _ in range(2)]
    said = "".join(process.communicate(timeout=300)[1] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert said.count(f"{tmp_path}/out is being written by process ") <= 1
    assert said.count("epoch 4/4") == 1
    for name in ("history.csv", "network.pt"):
        assert (tmp_path / "out" / name).read_bytes() == (trained[0] / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


def test_a_training_that_has_ended_is_not_done_again(trained, tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_bytes((trained[0] / "checkpoint.pt").read_bytes())
    metrics = train_tiny(tmp_path)
    assert "epoch" not in capsys.readouterr().err
    assert metrics["test_loss"] == trained[1]["test_loss"]


def test_test_images_have_no_say_in_the_training(tmp_path):
    """Other test images: the same history, the same chosen epoch, another test loss."""
    images, labels = random_images(200, 8), np.arange(200) % 4
    _, test = split_by_class(labels, TEST_SHARE, TEST_SEED)
    changed = images.copy()
    changed[test] = 255 - changed[test]
    found = []
    for name, pixels in (("a", images), ("b", changed)):
        np.savez(tmp_path / f"{name}.npz", images=pixels, labels=labels)
        dataset = {"source": "npz", "path": str(tmp_path / f"{name}.npz")}
        found.append(train_tiny(tmp_path / name, dataset=dataset, epochs=2))
    assert (tmp_path / "a" / "history.csv").read_bytes() == (tmp_path / "b" / "history.csv").read_bytes()
    assert found[0]["test_loss"] != found[1]["test_loss"]


def test_a_folder_of_images_can_be_trained_on(tmp_path):
    generator = np.random.default_rng(5)
    for part, count in (("train", 40), ("val", 10)):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(100 * label, 100 * label + 100, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    dataset = {"source": "folder", "path": str(tmp_path), "side": 8}
    metrics = train_tiny(tmp_path / "out", dataset=dataset, epochs=6, batch=16, cutout=0)
    assert metrics["images"] == {"train": 64, "valid": 16, "test": 20}
    assert metrics["test_accuracy"] == 100
    assert "test_top5_accuracy" not in metrics


@pytest.fixture
def coordinates(tmp_path) -> tuple[Path, Arrays]:
    """A folder of images whose red says which column a pixel is in, and whose green says which row; blue says which image."""
    rows, columns = np.mgrid[0:60, 0:90]
    for label in range(2):
        (tmp_path / "train" / f"class{label}").mkdir(parents=True)
        for i in range(8):
            image = np.stack((2 * columns, 2 * rows, np.full_like(rows, 10 * (8 * label + i))), 2).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / "train" / f"class{label}" / f"{i}.png")
        (tmp_path / "val" / f"class{label}").mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "val" / f"class{label}" / "0.png")
    return tmp_path, load_splits({"source": "folder", "path": str(tmp_path)}, 24).train


def read_epoch(part, epoch: int, workers: int, order: np.ndarray) -> np.ndarray:
    feed = make_feed(part, 24, CPU, workers=workers, seed=3, least_area=0.2)
    images, labels = zip(*feed(list(batches(order, 5)), epoch), strict=True)
    assert np.array_equal(torch.cat(labels).numpy(), part.labels[order])
    images = torch.cat(images).numpy()
    assert images.dtype == np.uint8
    assert images.shape == (len(order), 24, 24, 3)
    assert np.array_equal(images[:, 0, 0, 2], 10 * order)
    return images


# Reads an epoch of the images of a folder with two worker processes, one of which is killed if the text says so.
READER = """
import hashlib, os, signal, sys
import numpy as np, torch
from tenas.data import load_splits
from tenas.errors import TenasError
from tenas.retrain.feed import make_feed

part = load_splits({"source": "folder", "path": sys.argv[1]}, 24).train
feed = make_feed(part, 24, torch.device("cpu"), workers=2, seed=3, least_area=0.2)
try:
    for epoch in range(3):
        read = [images for images, _ in feed(np.split(np.arange(16), 4), epoch)]
        if sys.argv[2] == "kill" and not epoch:
            os.kill(feed.loader._iterator._workers[0].pid, signal.SIGKILL)
    print(hashlib.sha256(torch.cat(read).numpy().tobytes()).hexdigest())
except TenasError as error:
    print(f"tenas: {error}")
"""


def read_elsewhere(folder: Path, what: str, shared_memory: str = "") -> subprocess.CompletedProcess:
    """Run READER, in a mount namespace of its own where ``shared_memory`` has options of a tmpfs in its place."""
    command = [sys.executable, "-c", READER, str(folder), what]
    if shared_memory:
        mounted = f'mount -t tmpfs -o {shared_memory} none /dev/shm && exec "$@"'
        command = ["unshare", "--map-root-user", "--mount", "bash", "-c", mounted, "bash", *command]
        if subprocess.run([*command[:5], mounted, "bash", "true"], capture_output=True).returncode:
            pytest.skip("no mount namespaces here")
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.long
def test_without_shared_memory_images_are_read_by_the_training_itself(coordinates):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor: one worker")
    usual = read_elsewhere(coordinates[0], "read")
    assert (len(usual.stdout), usual.stderr) == (65, "")
    for options, free in (("ro", "0 MB"), ("size=8k", "0 MB")):
        found = read_elsewhere(coordinates[0], "read", options)
        assert found.stdout == usual.stdout
        assert (
            found.stderr.count(f"tenas: note: /dev/shm has {free} free, which is enough for the batches of 0 workers, not of 2")
            == 1
        )


@pytest.mark.slow
def test_a_killed_reader_of_images_ends_the_training_with_a_sentence(coordinates):
    found = read_elsewhere(coordinates[0], "kill")
    assert found.stdout.startswith("tenas: A process that reads images has ended (DataLoader worker")


def test_crops_of_image_files_depend_on_seed_epoch_and_image_alone(coordinates):
    _, part = coordinates
    order = np.random.default_rng(0).permutation(16)
    first = read_epoch(part, 0, 0, order)
    assert np.array_equal(first, read_epoch(part, 0, 2, order))
    assert np.array_equal(first, read_epoch(part, 0, 0, np.arange(16))[order])
    assert not np.array_equal(first, read_epoch(part, 1, 0, order))
    # From the colours of opposite corners, where in the image a crop was: RandomResizedCrop's area and proportions.
    boxes = []
    for epoch in range(12):
        crops = read_epoch(part, epoch, 0, order).astype(float)
        width, height = (np.abs(crops[:, -1, -1, c] - crops[:, 0, 0, c]) / 2 * 24 / 23 for c in (0, 1))
        boxes.append(np.stack((width, height), 1))
    width, height = np.concatenate(boxes).T
    share = width * height / (60 * 90)
    assert 0.15 < share.min() < 0.4
    assert 0.8 < share.max() < 1.05
    assert 0.6 < (width / height).min() < 0.9
    assert 1.1 < (width / height).max() < 1.6


@pytest.mark.parametrize("sides", [(60, 90), (10, 300), (300, 10), (1, 5), (2, 3)])
def test_boxes_of_crops_are_those_of_torchvision(sides):
    transform = v2.RandomResizedCrop(24, scale=(0.2, 1), antialias=True)
    for seed in range(20):
        torch.manual_seed(seed)
        params = transform.make_params([torch.empty(3, *sides, dtype=torch.uint8)])
        found = feed.draw_box(*sides, 0.2, torch.Generator().manual_seed(seed))
        assert found == (params["top"], params["left"], params["height"], params["width"])


@pytest.fixture
def torch_otherwise() -> Iterator[None]:
    """Torch with other defaults, and its generator anywhere: forked workers inherit them, others do not."""
    dtype, threads, state = torch.get_default_dtype(), torch.get_num_threads(), torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.manual_seed(1)
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.mark.parametrize("otherwise", [False, True], ids=["", "with other defaults of torch"])
@pytest.mark.long
def test_crops_do_not_depend_on_how_many_workers_there_are_and_how_they_start(coordinates, otherwise, monkeypatch, request):
    _, part = coordinates
    order = np.random.default_rng(0).permutation(16)
    expected = [read_epoch(part, epoch, 0, order) for epoch in range(2)]
    if otherwise:
        request.getfixturevalue("torch_otherwise")
        assert np.array_equal(read_epoch(part, 1, 0, order), expected[1])
    monkeypatch.setattr(feed, "processors", lambda: 4)
    for method, workers in (("fork", 1), ("fork", 3), ("forkserver", 1), ("forkserver", 2)):
        monkeypatch.setattr(feed, "start_method", lambda device, method=method: method)
        reader = make_feed(part, 24, CPU, workers=workers, seed=3, least_area=0.2)
        for epoch in range(2):
            found = torch.cat([images for images, _ in reader(list(batches(order, 5)), epoch)]).numpy()
            assert np.array_equal(found, expected[epoch])
        assert reader.loader.num_workers == workers


# Reads an epoch by a worker of the fork server, in a process that has another `tenas` than its PYTHONPATH leads to.
FROM_A_SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
import hashlib
import numpy as np, torch
from tenas.data import load_splits
from tenas.retrain import feed

torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
part = load_splits({"source": "folder", "path": sys.argv[2]}, 24).train
for workers in range(2):
    reader = feed.make_feed(part, 24, torch.device("cpu"), workers=workers, least_area=0.2)
    read = [images for images, _ in reader([np.arange(16)])]
    print(hashlib.sha256(torch.cat(read).numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_workers_of_the_fork_server_run_the_code_of_their_parent(coordinates, tmp_path):
    shutil.copytree(ROOT / "tenas", tmp_path / "other/tenas", ignore=shutil.ignore_patterns("__pycache__"))
    module = tmp_path / "other/tenas/retrain/feed.py"
    module.write_text(module.read_text().replace("AUGMENTATION, CROP", "CROP, AUGMENTATION"))
    command = [sys.executable, "-c", FROM_A_SERVER, str(ROOT), str(coordinates[0])]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "other")}
    result = subprocess.run(command, env=environment, cwd=tmp_path / "other", capture_output=True, text=True, timeout=300)
    assert len(result.stdout.split()) == 2, result.stderr
    assert len(set(result.stdout.split())) == 1


def test_images_of_an_evaluation_are_the_middle(coordinates):
    folder, _ = coordinates
    test = load_splits({"source": "folder", "path": str(folder)}, 40, 0.5).test
    ((images, labels),) = make_feed(test, 40, CPU, workers=0)([np.arange(2)], 0)
    assert labels.tolist() == [0, 1]
    # Half of the shorter side, 60: rows 15 to 45, columns 30 to 60, in 40 pixels.
    pixels = (np.arange(40) + 0.5) * 30 / 40 - 0.5
    np.testing.assert_allclose(images[0, 5, :, 0], 2 * (30 + pixels), atol=1.5)
    np.testing.assert_allclose(images[0, :, 5, 1], 2 * (15 + pixels), atol=1.5)
    arrays = Arrays(np.ascontiguousarray(images.numpy()), labels.numpy()).sized(20, 0.5)
    np.testing.assert_allclose(arrays.images[0, 5, :, 0], images[0, 10, 10:30, 0], atol=1.5)
    assert isinstance(make_feed(arrays, 20, CPU, workers=0), FromMemory)


@pytest.mark.long
def test_a_network_for_imagenet_is_trained_on_image_files(coordinates, tmp_path):
    """The whole preset on a few small images: stem, crops, colours, worker processes, bfloat16."""
    folder, _ = coordinates
    changes = {"channels": 4, "cells": 3, "epochs": 1, "batch": 8, "warmup_epochs": 0, "workers": 2}
    settings = retrain_settings("darts-imagenet", changes)
    settings["dataset"] = {"source": "folder", "path": str(folder)}
    metrics = retrain(settings, load_genotype(DARTS), seed=0, threads=1, device="cpu", out=tmp_path / "out")
    assert metrics["images"] == {"train": 16, "valid": 0, "test": 2}
    network, card = load_network(tmp_path / "out" / "network.pt")
    assert (card["stem"], card["side"], card["classes"]) == ("imagenet", 224, 2)
    assert metrics["parameters"] == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_in_a_sentence(coordinates, workers):
    folder, part = coordinates
    (folder / "train" / "class1" / "3.png").write_bytes(b"no image")
    feed = make_feed(part, 24, CPU, workers=workers, least_area=0.2)
    with pytest.raises(TenasError, match=r"^The image .*class1/3\.png cannot be read: "):
        list(feed([np.arange(16)], 0))


def test_without_validation_images_all_train_and_the_last_epoch_is_taken(tmp_path):
    metrics = train_tiny(tmp_path, validation=0, epochs=2)
    assert metrics["images"] == {"train": 1438, "valid": 0, "test": 359}
    assert metrics["best_epoch"] == 2
    assert metrics["valid_accuracy"] is None
    assert {(row["valid_loss"], row["valid_accuracy"]) for row in rows_of(tmp_path)} == {("", "")}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.slow
def test_lower_precision_learns_the_same(trained, tmp_path, precision):
    metrics = train_tiny(tmp_path, precision=precision)
    losses, expected = ([float(row["train_loss"]) for row in rows_of(out)] for out in (tmp_path, trained[0]))
    assert losses != expected
    np.testing.assert_allclose(losses, expected, rtol=0.1)
    assert abs(metrics["test_accuracy"] - trained[1]["test_accuracy"]) < 15
    # Weights stay in float32.
    network, _ = load_network(tmp_path / "network.pt")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_the_trained_network_is_in_a_file_of_its_own(trained):
    out, metrics = trained
    network, card = load_network(out / "network.pt")
    best = torch.load(out / "checkpoint.pt", weights_only=True)["best"]["network"]
    assert not network.training
    assert_equal_states(dict(network.state_dict()), dict(best))
    assert card["arch"] == metrics["arch"] == ARCH
    splits = load_splits(TINY["dataset"])
    images = normalise(torch.from_numpy(splits.test.images), *(torch.tensor(card[key]) for key in ("mean", "std")))
    with torch.no_grad():
        right = (network(images).argmax(1).numpy() == splits.test.labels).mean()
    assert metrics["test_accuracy"] == pytest.approx(100 * right)


@pytest.mark.slow
def test_a_large_network_for_imagenet_is_warned_of(tmp_path, capsys):
    np.savez(tmp_path / "set.npz", images=random_images(10, 64), labels=np.arange(10) % 2)
    changes = {"channels": 288, "cells": 1, "auxiliary": 0, "side": 128, "epochs": 1, "batch": 4, "precision": "fp32"}
    settings = retrain_settings("darts-imagenet", changes | {"workers": 0})
    settings["dataset"] = {"source": "npz", "path": str(tmp_path / "set.npz")}
    metrics = retrain(settings, load_genotype(DARTS), seed=0, threads=1, device="cpu", out=tmp_path / "out")
    assert metrics["flops"] > 600e6
    assert f"the network has {metrics['flops'] / 1e6:.0f} M multiply-adds" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_said_in_a_sentence(tmp_path):
    train_tiny(tmp_path, epochs=1)
    with pytest.raises(TenasError, match=r"no longer finite in epoch 1: lower 'learning_rate'"):
        train_tiny(tmp_path, learning_rate=1e30, clip=None, warmup_epochs=0)
    # Nothing of the earlier training stands for this one.
    assert not (tmp_path / "history.csv").exists()
    assert not (tmp_path / "metrics.json").exists()


def test_a_last_step_that_breaks_the_weights_is_said_in_a_sentence(tmp_path):
    """Without a validation part the loss is that of before the step."""
    once = {"epochs": 1, "batch": 2000, "learning_rate": 1e30, "clip": None, "warmup_epochs": 0, "validation": 0}
    with pytest.raises(TenasError, match=r"no longer finite in epoch 1: lower 'learning_rate'"):
        train_tiny(tmp_path, **once)
    assert not (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "network.pt").exists()


SOURCE_OF_TEST_IMAGES_WITHOUT_LABELS = """
import numpy as np
from tenas.data import Arrays, Loaded, Source
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
TEST = np.array([0, 1, -1, 0])
SOURCE = Source(lambda path: Loaded(Arrays(IMAGES, np.arange(40) % 2), Arrays(IMAGES[:4], TEST), 2), needs_path=False)
"""


def test_test_images_without_labels_are_refused_before_the_training(tmp_path):
    (tmp_path / "own.py").write_text(SOURCE_OF_TEST_IMAGES_WITHOUT_LABELS)
    with pytest.raises(TenasError, match="test images without labels"):
        train_tiny(tmp_path / "out", dataset={"source": f"{tmp_path}/own.py:SOURCE"}, batch=8)
    assert not list((tmp_path / "out").glob("*.pt"))


def test_arrays_are_cropped_in_their_own_size_as_files_are(tmp_path):
    smooth = [np.asarray(Image.fromarray(image).resize((60, 40), Image.Resampling.BICUBIC)) for image in random_images(20, 8)]
    pictures, labels = np.stack(smooth), np.arange(20) % 2
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        path = tmp_path / "folder" / f"{label}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    np.savez(tmp_path / "set.npz", images=pictures[np.argsort(labels, kind="stable")], labels=np.sort(labels))
    keys = {"side": 16, "evaluation_crop": 0.5, "validation": 0.3, "batch": 4}
    for crop in (None, 0.3):
        found = [
            read_data({"source": source, "path": str(tmp_path / name)}, keys | {"resized_crop": crop}, 0, Processes())
            for source, name in (("folder", "folder"), ("npz", "set.npz"))
        ]
        for part in ("valid", "test"):
            files, arrays = (getattr(data, part) for data in found)
            assert np.array_equal(files.read(np.arange(len(files.labels))), arrays.read(np.arange(len(arrays.labels))))
        trains = [data.train for data in found]
        assert channel_constants(trains[0], 16, 0) == channel_constants(trains[1], 16, 0)
        pictures_ = [Pictures(train, 16, 3, crop) for train in trains]
        (one, _), (other, _) = (of[np.arange(8), 1] for of in pictures_)
        assert torch.equal(one, other)


@pytest.mark.slow
def test_what_surrounds_a_training_does_not_change_it(tmp_path):
    expected = train_tiny(tmp_path / "plain", epochs=1)["test_loss"]
    network = (tmp_path / "plain/network.pt").read_bytes()
    for number, surrounding in enumerate((torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16))):
        with surrounding:
            assert train_tiny(tmp_path / str(number), epochs=1)["test_loss"] == expected
            load_network(tmp_path / str(number) / "network.pt")
    for set_default, value, before in (
        (torch.set_default_dtype, torch.float64, torch.float32),
        (torch.set_default_device, "meta", None),
    ):
        try:
            set_default(value)
            assert train_tiny(tmp_path / str(value), epochs=1)["test_loss"] == expected
            loaded, _ = load_network(tmp_path / str(value) / "network.pt")
            assert {(p.dtype, p.device.type) for p in loaded.parameters()} == {(torch.float32, "cpu")}
            assert torch.get_default_dtype() == (value if value is torch.float64 else torch.float32)
        finally:
            set_default(before)
        assert (tmp_path / str(value) / "network.pt").read_bytes() == network


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, r"retraining: 'epochs'"),
        ({"epoch": 1}, r"unknown key 'epoch'"),
        ({"momentum": 0}, r"'nesterov' needs a 'momentum' above 0"),
        ({"validation": 0.001}, r"none to choose the epoch with"),
        ({"validation": 1}, r"'validation'"),
        ({"batch": 2}, r"'batch' 2 with 1 process\(es\) leaves fewer than 2 of 1151 images per process"),
        ({"resized_crop": 0.5}, r"only one of 'resized_crop' and 'crop_padding'"),
        ({"colour_jitter": {"hue": 0.7}}, r"'colour_jitter.hue'"),
        ({"precision": "fp8"}, r"allowed: fp32, bf16, fp16"),
        ({"auxiliary": 0.4}, r"no auxiliary head"),
        ({"drop_path": 0.2}, r"no drop-path"),
        ({"stem": "imagenet"}, r"Unknown stem"),
        ({"validation": 0.999}, r"too few to train with"),
        ({"dataset": {"source": "npz", "path": "absent.npz"}}, r"There is no file absent\.npz"),
    ],
)
def test_faulty_settings_get_a_sentence_and_leave_nothing(tmp_path, changes, sentence):
    with pytest.raises(TenasError, match=sentence):
        train_tiny(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_a_data_set_without_test_images_is_refused(tmp_path):
    np.savez(tmp_path / "set.npz", images=random_images(30, 8), labels=np.arange(30))
    with pytest.raises(TenasError, match="no test images"):
        train_tiny(tmp_path / "out", dataset={"source": "npz", "path": str(tmp_path / "set.npz")})
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(TenasError, match="finds no GPU"):
        retrain(TINY, load_genotype(ARCH), seed=0, threads=1, device="cuda", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"device": "tpu"}, "The device is 'tpu'; allowed: auto, cpu, cuda"),
        ({"device": None}, "The device is None"),
        ({"seed": -1}, "'seed' is -1; it must be a whole number, from 0 to 4294967295"),
        ({"seed": True}, "'seed' is True"),
        ({"seed": 2**64}, "'seed' is 18446744073709551616"),
        ({"threads": 0}, "'threads' is 0; it must be a whole number, at least 1"),
    ],
)
def test_arguments_that_no_training_has(tmp_path, given, sentence):
    with pytest.raises(TenasError, match=sentence):
        retrain(TINY, load_genotype(ARCH), **{"seed": 0, "threads": 1, "device": "cpu", "out": tmp_path / "out"} | given)


def test_threads_of_torch_are_left_as_they_were(tmp_path):
    before = torch.get_num_threads()
    np.savez(tmp_path / "set.npz", images=random_images(40, 8), labels=np.arange(40) % 2)
    dataset = {"source": "npz", "path": str(tmp_path / "set.npz")}
    train_tiny(tmp_path / "out", dataset=dataset, batch=16, epochs=1, threads=before + 1)
    assert torch.get_num_threads() == before


def test_presets_are_valid():
    benchmark = retrain_settings("nas-bench-201")
    assert {key: benchmark[key] for key in ("channels", "cells", "epochs", "batch", "learning_rate", "momentum")} == {
        "channels": 16, "cells": 5, "epochs": 200, "batch": 256, "learning_rate": 0.1, "momentum": 0.9,
    }  # fmt: skip
    assert (benchmark["weight_decay"], benchmark["crop_padding"], benchmark["flip"]) == (0.0005, 4, True)
    assert retrain_settings("digits")["cutout"] == 0
    cifar, imagenet = retrain_settings("darts-cifar10"), retrain_settings("darts-imagenet")
    assert {key: cifar[key] for key in ("channels", "cells", "epochs", "batch", "learning_rate", "momentum", "weight_decay")} == {
        "channels": 36, "cells": 20, "epochs": 600, "batch": 96, "learning_rate": 0.025, "momentum": 0.9, "weight_decay": 0.0003,
    }  # fmt: skip
    assert [cifar[key] for key in ("clip", "cutout", "drop_path", "auxiliary", "stem", "side")] == [
        5,
        16,
        0.2,
        0.4,
        "cifar",
        None,
    ]
    assert retrain_settings("darts-cifar100") == cifar
    assert {key: imagenet[key] for key in ("channels", "cells", "epochs", "batch", "learning_rate", "weight_decay", "side")} == {
        "channels": 48, "cells": 14, "epochs": 250, "batch": 768, "learning_rate": 0.5, "weight_decay": 0.00003, "side": 224,
    }  # fmt: skip
    assert [imagenet[key] for key in ("label_smoothing", "drop_path", "auxiliary", "stem")] == [0.1, 0, 0.4, "imagenet"]
    with pytest.raises(
        TenasError,
        match=r"Unknown retrain preset 'mnist'; known: darts-cifar10, darts-cifar100, darts-imagenet, digits, nas-bench-201",
    ):
        retrain_settings("mnist")
    with pytest.raises(TenasError, match="learning_rat"):
        retrain_settings("digits", {"learning_rat": 1})


@pytest.mark.long
def test_the_preset_for_digits_reaches_95_percent(tmp_path):
    """With a cell that has one kind of convolution only, 1x1: what a search finds has more."""
    arch = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    settings = {"preset": "digits", "dataset": {"source": "digits"}, **retrain_settings("digits")}
    metrics = retrain(settings, load_genotype(arch), seed=0, threads=1, device="cpu", out=tmp_path)
    assert metrics["test_accuracy"] >= 95


# --- told to stop

STOPPED = """
import os, signal, sys
from helpers.retraining import train_tiny
from pathlib import Path
from tenas.errors import StoppedError
from tenas.retrain import epochs, train

# The signal comes from this process itself, hence at a known step: a real one, and to the handler that waits for it.
steps, take = [], train.train_step
def counted(*arguments):
    steps.append(1)
    if len(steps) == int(sys.argv[2]):
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
    return take(*arguments)
train.train_step = counted
try:
    train_tiny(Path(sys.argv[1]), **eval(sys.argv[4]))
except StoppedError as error:
    print(error, len(steps))
    sys.exit(error.status)
"""


def stopped(out: Path, step: int, name: str = "SIGTERM", **changes: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-c", STOPPED, str(out), str(step), name, repr(changes)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("step", "name"), [(5, "SIGTERM"), (31, "SIGUSR1")])
@pytest.mark.slow
def test_a_training_that_is_told_to_stop_goes_on_within_its_epoch(trained, tmp_path, step, name):
    """18 steps an epoch: in the first one, and in the second with its momentum and statistics."""
    result = stopped(tmp_path / "retrain", step, name)
    assert result.returncode == 75, result.stdout + result.stderr
    where = f"after step {(step - 1) % 18 + 1} of 18 in epoch {(step - 1) // 18 + 1}"
    assert f"The training was asked to stop, {where}: the same command resumes there" in result.stdout
    assert result.stdout.split()[-1] == str(step)
    assert sorted(path.name for path in (tmp_path / "retrain").iterdir()) == ["checkpoint.pt"]
    state = torch.load(tmp_path / "retrain/checkpoint.pt", weights_only=True)
    assert len(state["history"]) == (step - 1) // 18
    assert state["begun"][0] == (step - 1) % 18 + 1
    before = signal.getsignal(signal.SIGTERM)
    train_tiny(tmp_path / "retrain")
    assert signal.getsignal(signal.SIGTERM) is before
    assert_equal_trainings(tmp_path / "retrain", trained[0])


@pytest.mark.slow
def test_a_training_that_is_told_to_stop_at_the_end_of_an_epoch(trained, tmp_path):
    result = stopped(tmp_path / "retrain", 18)
    assert result.returncode == 75
    assert "asked to stop, after epoch 1: " in result.stdout
    train_tiny(tmp_path / "retrain")
    assert_equal_trainings(tmp_path / "retrain", trained[0])


def test_nobody_is_stopped_outside_of_the_main_thread(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(train_tiny(tmp_path, epochs=1)))
    thread.start()
    thread.join()
    assert found[0]["epochs"] == 1


# --- on a GPU that is none


def test_an_epoch_and_an_evaluation_stay_on_their_device(monkeypatch):
    """All but the reverse pass, whose gradients are zeros: augmentation, steps of the optimiser, sums."""
    settings = retrain_settings("darts-cifar10", {**EVERYTHING, "batch": 6})
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    with pretended(monkeypatch) as gpu:
        network = Network(load_genotype(DARTS), channels=4, cells=3, classes=10, auxiliary=True).to("cuda")
        mean, std = (torch.full((3,), value, device="cuda") for value in (0.5, 0.25))
        trainer = Trainer.of(network, mean, std, settings, 0, Processes())
        assert trainer.optimizer.defaults["fused"]
        trainer.prepare(32)

        def backward(loss: torch.Tensor) -> None:
            assert loss.device.type == "cuda"
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter)

        def reader(batches, epoch):
            for indices in batches:
                yield (
                    torch.zeros(len(indices), 32, 32, 3, dtype=torch.uint8, device="cuda"),
                    torch.zeros(len(indices), dtype=torch.int64, device="cuda"),
                )

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        network.set_drop_path(settings["drop_path"])
        train_epoch(trainer, reader, 12, 0, lambda: None)
        evaluate(network, reader, 12, settings, mean, std, Processes())
    assert gpu.made > 1000


# --- what a machine has to have


def test_workers_share_the_processors(coordinates, monkeypatch):
    monkeypatch.setattr(feed, "processors", lambda: 4)
    for processes, workers in ((1, 4), (2, 2), (8, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        found = make_feed(coordinates[1], 24, CPU, workers=48, least_area=0.2)._started(1)
        assert found.num_workers == workers


def test_compiling_without_a_compiler_gets_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(TenasError, match="'compile' needs a C compiler, and there is none in PATH"):
        train_tiny(tmp_path / "out", compile=True)
