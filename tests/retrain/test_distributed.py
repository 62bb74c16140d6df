"""Two processes under torchrun, with Gloo on the CPU, against one: gradients, evaluation, and a whole retraining."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.retraining import ARCH, DARTS, FILES, TINY, rows_of, train_tiny

from tenas.data.parts import Arrays
from tenas.networks import Network, initialise
from tenas.retrain.distributed import Processes, distribute, joined
from tenas.retrain.feed import make_feed
from tenas.retrain.train import evaluate, train_step

IMAGES, CLASSES = 7, 10
# One edge carries nothing: the convolution before it gets no gradient, for which DistributedDataParallel would wait.
UNUSED = "|nor_conv_3x3~0|+|skip_connect~0|none~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"
CASES = {"nas-bench-201": (UNUSED, 8, 1, 0), "darts": (DARTS, 4, 3, 0.4)}


def compute(processes: Processes) -> dict:
    """What each process, or the only one, computes of its share of the same images; the whole, once they're put together."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, 32, 32, generator=generator)
    labels = torch.randint(CLASSES, (IMAGES,), generator=generator)
    share = processes.share(IMAGES)
    part = Arrays(
        np.random.default_rng(0).integers(0, 256, (23, 32, 32, 3), dtype=np.uint8), np.arange(23, dtype=np.int64) % CLASSES
    )
    result = {}
    for name, (arch, channels, cells, auxiliary) in CASES.items():
        network = Network(arch, channels=channels, cells=cells, classes=CLASSES, auxiliary=auxiliary > 0)
        initialise(network, "kaiming_fan_in", 0)
        settings = {"compile": False, "precision": "fp32", "label_smoothing": 0.1, "clip": None}
        settings |= {"auxiliary": auxiliary, "batch": 6}
        trained = distribute(network, processes, (3, 32, 32))
        trained.train()
        # Normalisation over the images of a batch is over those of the process; here it's over none, by fixed statistics.
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.01)
        weight = len(labels[share]) * processes.world_size / IMAGES
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        loss, right = train_step(trained, optimizer, scaler, images[share], labels[share], settings, weight)
        gradients = {k: None if p.grad is None else p.grad.clone() for k, p in network.named_parameters()}
        sums = torch.stack((loss.double() * len(labels[share]), right.double()))
        feed = make_feed(part, 32, torch.device("cpu"), workers=0)
        mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
        result[name] = {
            "gradients": gradients,
            "weights": {k: v.clone() for k, v in network.state_dict().items()},
            "loss": (processes.add_up(sums) / IMAGES).tolist(),
            "scores": tuple(evaluate(network, feed, 23, settings, mean, std, processes)),
        }
        next(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_mean.fill_(processes.rank)
        processes.average_statistics(network)
        result[name]["statistics"] = next(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_mean
    result["from_first"] = processes.from_first({"rank": processes.rank} if processes.first else None)
    return result


def torchrun(*command: object, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CUDA_")}
    # The package, and this folder for what the tests share.
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*launcher, *map(str, command)], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> tuple[dict, list[dict]]:
    """Of one process, and of each of two."""
    folder = tmp_path_factory.mktemp("distributed")
    torchrun(Path(__file__), folder, cwd=folder)
    return compute(Processes()), [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_two_processes_are_those_of_one_with_the_whole_batch(computed, case):
    """With shares of 3 and 4 images, so that a plain mean over the processes would be wrong."""
    alone, both = computed
    for result in both:
        for kind in ("gradients", "weights"):
            expected, found = alone[case][kind], result[case][kind]
            assert found.keys() == expected.keys()
            assert {k for k, v in found.items() if v is None} == {k for k, v in expected.items() if v is None}
            for name in (k for k, v in expected.items() if v is not None):
                scale = expected[name].abs().max().item() if expected[name].numel() else 0
                torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=2e-6 * max(scale, 1e-3))
        assert result[case]["loss"] == pytest.approx(alone[case]["loss"], rel=1e-6)
    assert any(gradient is None for gradient in alone["nas-bench-201"]["gradients"].values())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_an_evaluation_is_divided_and_added_up(computed, case):
    alone, both = computed
    for result in both:
        assert result[case]["scores"] == pytest.approx(alone[case]["scores"], rel=1e-5)
        assert result[case]["scores"] == both[0][case]["scores"]
        assert (result[case]["statistics"] == 0.5).all()
        assert result["from_first"] == {"rank": 0}


@pytest.mark.parametrize(("length", "count"), [(7, 2), (96, 8), (2, 3), (100, 7)])
def test_shares_are_parts_of_the_whole_and_of_nearly_equal_size(length, count):
    shares = [np.arange(length)[Processes(rank, count).share(length)] for rank in range(count)]
    assert np.array_equal(np.concatenate(shares), np.arange(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.slow
def test_a_retraining_by_two_processes(tmp_path):
    """One set of files, written once; about the losses of one process, as each normalises over its own half of a batch."""
    settings = TINY | {"epochs": 2}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    (tmp_path / "genotype.json").write_text(json.dumps({"arch": ARCH, "space": "nas-bench-201"}))
    output = torchrun(
        "-m", "tenas.cli", "retrain", "--settings", "settings.json", "--genotype", "genotype.json", "--seed", "0",
        "--device", "cpu", "--out", "both", cwd=tmp_path,
    )  # fmt: skip
    assert output.count("epoch 1/2") == output.count("epoch 2/2") == 1
    assert sorted(os.listdir(tmp_path / "both")) == FILES
    alone = train_tiny(tmp_path / "alone", epochs=2)
    metrics = json.loads((tmp_path / "both" / "metrics.json").read_text())
    assert (metrics["provenance"]["processes"], alone["provenance"]["processes"]) == (2, 1)
    assert metrics["images"] == alone["images"]
    one, other = ([float(row["train_loss"]) for row in rows_of(tmp_path / folder)] for folder in ("alone", "both"))
    assert one != other
    assert other == pytest.approx(one, rel=0.1)
    assert other[1] < other[0]


# Trains in the folder that its first argument names; every process gets a signal at the step that the second one says, if any.
STOPPED = """
import json, os, signal, sys
from helpers.retraining import ARCH, TINY
from tenas.errors import StoppedError
from tenas.retrain import retrain, train
from tenas.spaces import load_genotype

steps, take = [], train.train_step
def counted(*arguments):
    steps.append(1)
    if len(steps) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGTERM)
    return take(*arguments)
train.train_step = counted
try:
    retrain(TINY | {"epochs": 3}, load_genotype(ARCH), seed=0, threads=1, device="cpu", out=sys.argv[1])
except StoppedError as error:
    print(error)
"""


@pytest.mark.long
def test_a_retraining_by_two_processes_that_is_told_to_stop_ends_as_an_undisturbed_one(tmp_path):
    """Each goes on with statistics of its own: their mean, from the middle of an epoch on, would have other last bits."""
    (tmp_path / "stopped.py").write_text(STOPPED)
    assert "asked to stop" not in torchrun("stopped.py", "quiet", 0, cwd=tmp_path)
    assert "asked to stop, after step 8 of 18 in epoch 2" in torchrun("stopped.py", "both", 18 + 8, cwd=tmp_path)
    torchrun("stopped.py", "both", 0, cwd=tmp_path)
    for name in ("history.csv", "network.pt"):
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "quiet" / name).read_bytes()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined("cpu") as (these, _):
        torch.save(compute(these), Path(sys.argv[1]) / f"{these.rank}.pt")
