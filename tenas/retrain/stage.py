"""Train and test the network of a genotype: writes history.csv and metrics.json, and a checkpoint in between."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tenas.data.prepared import read_card
from tenas.device import torch_defaults
from tenas.errors import LARGEST_SEED, TenasError, whole_number
from tenas.files import clear_leftovers, sha256, write_csv, write_json
from tenas.layout import CHECKPOINT
from tenas.locks import alone
from tenas.machine import c_compiler
from tenas.networks import Network, count_flops, count_parameters, initialise, seeded
from tenas.progress import remark
from tenas.provenance import Stopwatch, provenance, sealed
from tenas.retrain.data import Data, channel_constants, read_data
from tenas.retrain.distributed import Processes, joined
from tenas.retrain.epochs import HISTORY, not_finite, train
from tenas.retrain.feed import make_feed
from tenas.retrain.stored import save_network
from tenas.retrain.train import evaluate
from tenas.search.made_by import training_code
from tenas.settings.retrain import check_retraining
from tenas.spaces import Genotype

# Multiply-adds of an ImageNet network to be compared with others of its kind: DARTS's "mobile setting".
MOBILE_FLOPS = 600_000_000
# Settings of a training's speed, not of its result: an interrupted one may be resumed with others.
NOT_IN_DIGEST = ("workers",)


@contextmanager
def torch_set_up(threads: int, device: torch.device) -> Iterator[None]:
    """Run torch on ``threads``, with the fastest convolutions of the GPU. Restores both, and the random numbers, afterwards."""
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    try:
        with torch_defaults(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.benchmark = before[1]


def check_precision(precision: str, device: torch.device) -> None:
    """Raise TenasError for a precision that the device does not support."""
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise TenasError("'precision' bf16 needs a GPU with bfloat16 (NVIDIA since Ampere), unlike this one: use fp16.")


def check_compiler() -> None:
    """Raise TenasError without a C compiler, with which ``torch.compile`` builds its kernels and their driver."""
    if c_compiler() is None:
        raise TenasError(
            "'compile' needs a C compiler, and there is none in PATH: install gcc (in a container too), or set compile: false."
        )


class Request(NamedTuple):
    """A training to be done: ``settings`` as they are recorded, ``inputs`` to name in the provenance, ``out``: its folder.

    ``card``: file of the card of the images that were searched on, which are checked to be those of the training. ``quiet``:
    whether nothing is shown of the epochs.
    """

    settings: Mapping[str, Any]
    genotype: Genotype
    seed: int
    threads: int
    inputs: Iterable[str | os.PathLike[str]]
    out: Path
    card: str | os.PathLike[str] | None = None
    quiet: bool = False


class Trained(NamedTuple):
    """A network after its training, with the facts for its results.

    ``keys``: the retraining's settings, checked. ``shape``: arguments of Network. ``constants``: mean and standard deviation of
    each channel. ``digests``: of the images, by part.
    """

    network: Network
    state: dict[str, Any]
    data: Data
    keys: dict[str, Any]
    shape: dict[str, Any]
    constants: tuple[list[float], list[float]]
    digests: dict[str, str]
    parameters: int
    flops: int


def _warn_of_size(flops: int) -> None:
    if flops > MOBILE_FLOPS:
        remark(
            f"the network has {flops / 1e6:.0f} M multiply-adds per image, more than the "
            f"{MOBILE_FLOPS / 1e6:.0f} M of the networks that it would be compared with on ImageNet."
        )


def _as_writer(out: Path, processes: Processes) -> AbstractContextManager[object]:
    """The folder for this training alone; the first process of several writes in it."""
    return alone(out) if processes.first else nullcontext()


def _remove_stale(out: Path, results: Iterable[str]) -> None:
    """Remove ``results`` of an earlier training, which must not be next to an unfinished one, and leftovers of killed writers."""
    for name in results:
        (out / name).unlink(missing_ok=True)
    for name in (CHECKPOINT, *results):
        clear_leftovers(out / name)


def _digest(request: Request, keys: Mapping[str, Any], side: int, images: Mapping[str, str]) -> str:
    """Digest of all that a training depends on: a checkpoint with the same digest can be resumed. ``images``: their digests."""
    made_by = {
        "settings": {k: v for k, v in keys.items() if k not in NOT_IN_DIGEST} | {"side": side},
        "arch": request.genotype.arch,
        "seed": request.seed,
        "data": images,
        "code": training_code(request.genotype.space),
    }
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()


def run_training(
    request: Request, *, device: torch.device, processes: Processes, stale: Iterable[str], needs_test: bool
) -> Trained:
    """Train the network of a genotype to the last epoch, then load the weights of the chosen epoch.

    ``stale``: names of older results, which are removed before the first epoch.
    """
    settings, genotype, seed = request.settings, request.genotype, request.seed
    keys = check_retraining({k: v for k, v in settings.items() if k not in ("preset", "dataset")})
    check_precision(keys["precision"], device)
    if keys["compile"]:
        check_compiler()
    card = None if request.card is None else read_card(request.card)[0]
    data = read_data(settings["dataset"], keys, seed, processes, card=card, needs_test=needs_test)
    genotype.space.check_side(data.side)
    shape = {"channels": keys["channels"], "cells": keys["cells"], "classes": data.classes, "stem": keys["stem"]}
    with seeded(seed):
        network = Network(genotype, **shape, auxiliary=keys["auxiliary"] > 0)
    network.set_drop_path(keys["drop_path"])  # raises an error here, if at all, and not in the second epoch
    plain = Network(genotype, **shape)
    parameters, flops = count_parameters(plain), count_flops(plain, (3, data.side, data.side))
    digests = {}
    if processes.first:
        if keys["stem"] == "imagenet":
            _warn_of_size(flops)
        digests = {name: part.digest() for name, part in data.parts.items() if part and (needs_test or name != "test")}
        _remove_stale(request.out, stale)
    initialise(network, "pytorch", seed)
    network.to(device).to(memory_format=torch.channels_last)
    constants = processes.from_first(channel_constants(data.train, data.side, seed) if processes.first else None)
    assert constants is not None
    mean, std = (torch.tensor(constant, device=device) for constant in constants)
    state = train(
        network, data, keys, mean, std, seed=seed, digest=_digest(request, keys, data.side, digests),
        checkpoint=request.out / CHECKPOINT, processes=processes, quiet=request.quiet,
    )  # fmt: skip
    network.load_state_dict(state["best"]["network"])
    return Trained(network, state, data, keys, shape, constants, digests, parameters, flops)


def retrain(
    settings: Mapping[str, Any],
    genotype: Genotype,
    *,
    seed: int,
    threads: int,
    device: str,
    out: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]] = (),
    card: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Train the network of ``genotype`` from scratch and test it. Writes to the folder ``out``; returns the metrics.

    ``settings``: ``dataset`` (an entry of the configuration's ``datasets``) and the keys of a retraining preset.
    ``inputs``: files to name in the provenance. ``card``: as of a Request. ``device``: auto, cpu or cuda. On the CPU with the
    same number of threads, a training that was killed at any moment and started again ends in the same bits as one that was not.
    Under torchrun all processes train one network, and the first of them writes.

    history.csv: one row per epoch. metrics.json: accuracies in %. network.pt: the trained network, see ``load_network``.
    The epoch is chosen on the validation part, which is held out of the training images; without one it is the last. The test
    images are used once, with its weights, after training.

    Raises TenasError for a data set with too few images to hold some out, and for a loss that is not finite.
    """
    stopwatch = Stopwatch()
    seed, threads = whole_number(seed, "seed", 0, LARGEST_SEED), whole_number(threads, "threads")
    request = Request(settings, genotype, seed, threads, inputs, Path(out), card)
    with (
        joined(device) as (processes, torch_device),
        _as_writer(request.out, processes),
        torch_set_up(threads, torch_device),
    ):
        done = run_training(
            request,
            device=torch_device,
            processes=processes,
            needs_test=True,
            stale=("history.csv", "metrics.json", "network.pt"),
        )
        keys, data = done.keys, done.data
        assert data.test is not None
        test_feed = make_feed(data.test, data.side, torch_device, workers=keys["workers"])
        mean, std = (torch.tensor(constant, device=torch_device) for constant in done.constants)
        tested = evaluate(done.network, test_feed, len(data.test.labels), keys, mean, std, processes)
        if not math.isfinite(tested.loss):
            raise not_finite(keys["epochs"])
        metrics = {
            "arch": genotype.arch,
            "test_accuracy": tested.accuracy,
            # With five classes or fewer it is always 100 %.
            **({"test_top5_accuracy": tested.top5_accuracy} if data.classes > 5 else {}),
            "test_loss": tested.loss,
            **_training_metrics(request, done, stopwatch, torch_device, processes),
        }
        if processes.first:
            constants = (data.side, *done.constants, data.class_names, keys["evaluation_crop"])
            save_network(request.out / "network.pt", done.network, genotype, done.shape, *constants)
            metrics = _write(request.out, metrics, done.state["history"], "network.pt")
    return metrics


def _training_metrics(
    request: Request, done: Trained, stopwatch: Stopwatch, device: torch.device, processes: Processes
) -> dict[str, Any]:
    """Entries of metrics.json common to all trainings: chosen epoch, network, images, time and provenance."""
    best = done.state["best"]["row"]
    return {
        "valid_accuracy": best["valid_accuracy"],
        "best_epoch": best["epoch"],
        "epochs": done.keys["epochs"],
        "parameters": done.parameters,
        "flops": done.flops,
        "images": {name: len(part.labels) if part else 0 for name, part in done.data.parts.items()},
        "training_seconds": round(done.state["seconds"], 3),
        "provenance": provenance(
            settings=request.settings,
            inputs=request.inputs,
            stopwatch=stopwatch,
            device=device.type,
            precision="float32, TF32 in convolutions" if done.keys["precision"] == "fp32" else done.keys["precision"],
            seed=request.seed,
            threads=request.threads,
            processes=processes.world_size,
            data_sha256=done.digests,
            code=training_code(request.genotype.space),
        ),
    }


def _write(out: Path, metrics: Mapping[str, Any], history: list[dict[str, Any]], *others: str) -> dict[str, Any]:
    """Write history.csv and metrics.json. Returns the metrics, with the hashes of the history, of ``others``, and their own."""
    write_csv(out / "history.csv", HISTORY, history)
    written = sealed({**metrics, "files": {name: sha256(out / name) for name in ("history.csv", *others)}})
    write_json(out / "metrics.json", written)
    return written


def train_finalist(
    settings: Mapping[str, Any],
    genotype: Genotype | None,
    *,
    seed: int,
    threads: int,
    device: str,
    out: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]],
    facts: Mapping[str, int],
    card: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a finalist of a search for a few epochs: as ``retrain``, without the test images and without a network to keep.

    Writes history.csv and metrics.json, whose ``valid_accuracy`` the search chooses by. Without a genotype, where the
    shortlist is shorter than planned, the metrics say so.
    """
    stopwatch = Stopwatch()
    if genotype is None:
        return _write(Path(out), {"arch": None, **facts, "reason": "The shortlist has no cell at this place."}, [])
    request = Request(settings, genotype, seed, threads, inputs, Path(out), card, quiet)
    with (
        joined(device) as (processes, torch_device),
        _as_writer(request.out, processes),
        torch_set_up(threads, torch_device),
    ):
        done = run_training(
            request, device=torch_device, processes=processes, needs_test=False, stale=("history.csv", "metrics.json")
        )
        metrics = {"arch": genotype.arch, **facts, **_training_metrics(request, done, stopwatch, torch_device, processes)}
        return _write(request.out, metrics, done.state["history"]) if processes.first else metrics
