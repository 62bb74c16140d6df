"""The stage: a genotype and settings in, history.csv and metrics.json out, and a checkpoint between."""

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from tqdm import tqdm

from tenas.data import Part, load_splits
from tenas.data.prepared import channel_statistics
from tenas.data.sources import split_by_class
from tenas.errors import TenasError
from tenas.files import sha256, whole, write_csv, write_json
from tenas.networks import Network, count_flops, count_parameters, initialise, seeded
from tenas.provenance import Stopwatch, provenance, sealed
from tenas.retrain.distributed import Processes, distribute, joined
from tenas.retrain.feed import STATISTICS, make_feed
from tenas.retrain.stored import save_network
from tenas.retrain.train import evaluate, steps_of_epoch, train_epoch
from tenas.search.made_by import training_code
from tenas.settings.retrain import check_retraining
from tenas.spaces import Genotype

HISTORY = ("epoch", "learning_rate", "train_loss", "train_accuracy", "valid_loss", "valid_accuracy")
STATISTICS_IMAGES = 10_000
# Multiply-adds of an ImageNet network to be compared with others of its kind: DARTS's "mobile setting".
MOBILE_FLOPS = 600_000_000
# Settings that say how fast a training is, not what it computes: one that was interrupted may go on with others.
NOT_IN_DIGEST = ("workers",)


@contextmanager
def torch_set_up(threads: int, device: torch.device) -> Iterator[None]:
    """Torch on ``threads``, and with the fastest convolutions that a GPU has. Afterwards, random numbers too, as it was."""
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.benchmark = before[1]


def channel_constants(part: Part, seed: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over the training images, or 10,000 of them."""
    sample = np.random.default_rng([seed, STATISTICS]).permutation(len(part.labels))[:STATISTICS_IMAGES]
    mean, std = channel_statistics(part.read(sample))
    # A channel that never changes carries nothing, but must not become 0/0.
    return mean, [s or 1.0 for s in std]


def read_checkpoint(path: Path, digest: str) -> dict | None:
    """The state after the last epoch that ended, or None when training starts at the beginning.

    A checkpoint of other settings, code or data is not resumed: it would end in a history that nothing explains.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["digest"] == digest:
            return state
        reason = "is of other settings, data or code"
    except Exception as error:  # whatever pickle and zip think of a damaged file
        reason = f"cannot be read ({error})"
    print(f"tenas: the checkpoint {path} {reason}; training starts at the first epoch.", file=sys.stderr)
    return None


def is_better(row: Mapping, best: Mapping) -> bool:
    """Higher validation accuracy; where that is equal, lower validation loss; where both are, the earlier epoch.

    Without validation images the later epoch.
    """
    if row["valid_accuracy"] is None:
        return True
    return (row["valid_accuracy"], -row["valid_loss"]) > (best["valid_accuracy"], -best["valid_loss"])


class Data(NamedTuple):
    """What a training needs of its data set."""

    train: Part
    valid: Part | None
    test: Part | None
    classes: int
    side: int


def read_data(dataset: Mapping, settings: Mapping, seed: int, processes: Processes, *, needs_test: bool = True) -> Data:
    """The data set's parts; of the training part the share ``validation`` is held out, drawn from ``seed``.

    Raises TenasError where a part would be too small, or the images have no labels.
    """
    middle = settings["evaluation_crop"]
    with processes.one_a_machine_first():
        splits = load_splits(dataset, settings["side"], middle)
    if needs_test and splits.test is None:
        raise TenasError(
            "The data set has no test images, and no labels or too few images of a class to hold some out: it cannot be "
            "retrained on."
        )
    if (splits.train.labels < 0).any():
        raise TenasError("The data set's images have no labels: nothing can be trained on them.")
    keep, held = split_by_class(splits.train.labels, settings["validation"], seed)
    if len(keep) < 2 or (settings["validation"] and not len(held)):
        raise TenasError(
            f"'validation' {settings['validation']} of {len(splits.train.labels)} training images leaves too few "
            "to train with, or none to choose the epoch with."
        )
    if len(keep) // steps_of_epoch(len(keep), settings["batch"]) // processes.count < 2:
        raise TenasError(
            f"'batch' {settings['batch']} leaves a process fewer than two of {len(keep)} images to normalise a step over, "
            f"with {processes.count} process(es): use a larger batch, or fewer processes."
        )
    valid = splits.train.take(held).sized(splits.side, middle) if len(held) else None
    return Data(splits.train.take(keep), valid, splits.test, splits.classes, splits.side)


def check_precision(precision: str, device: torch.device) -> None:
    """Raise TenasError for a precision that the device does not compute in."""
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise TenasError(
            "'precision' bf16 needs a GPU that computes in bfloat16 (NVIDIA's since Ampere); this one doesn't: use fp16."
        )


def train(
    network: Network, data: Data, settings: Mapping, mean: Tensor, std: Tensor,
    *, seed: int, digest: str, checkpoint: Path, processes: Processes,
) -> dict:  # fmt: skip
    """Train to the last epoch, from ``checkpoint`` where that is of the same ``digest``. Returns its state.

    The state: ``history`` (a row an epoch), ``best`` (the chosen epoch's row and weights), ``network``, ``optimizer``,
    ``scaler``, ``seconds`` of training over all interruptions. Raises TenasError when the loss is not finite.
    """
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=settings["learning_rate"],
        momentum=settings["momentum"],
        nesterov=settings["nesterov"],
        weight_decay=settings["weight_decay"],
    )
    # Gradients in fp16 would vanish unless the loss is scaled up; in bf16 they have the range of fp32.
    scaler = GradScaler(mean.device.type, enabled=settings["precision"] == "fp16")
    state = processes.from_first(read_checkpoint(checkpoint, digest) if processes.first else None)
    if state is None:
        state = {"digest": digest, "history": [], "best": None, "seconds": 0.0}
    else:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
    image_shape = (3, data.side, data.side)
    trained: nn.Module = distribute(network, processes, image_shape)
    evaluated: nn.Module = network
    if settings["compile"]:
        trained, evaluated = torch.compile(trained), torch.compile(network)
    workers = settings["workers"]
    feed = make_feed(data.train, data.side, mean.device, workers=workers, seed=seed, least_area=settings["resized_crop"])
    valid_feed = None if data.valid is None else make_feed(data.valid, data.side, mean.device, workers=workers)
    images = len(data.train.labels)
    done, steps = len(state["history"]), steps_of_epoch(images, settings["batch"])
    # On a terminal a bar; in a log, where tqdm keeps silent, the lines alone.
    shown = None if processes.first else True
    with tqdm(total=settings["epochs"] * steps, initial=done * steps, unit="step", disable=shown, leave=False) as bar:
        for epoch in range(done, settings["epochs"]):
            stopwatch = Stopwatch()
            # From nothing in the first epoch on, as DARTS does: a young network needs all of its paths.
            network.set_drop_path(settings["drop_path"] * epoch / settings["epochs"])
            rate, train_loss, train_accuracy = train_epoch(
                trained, optimizer, scaler, feed, images, settings, mean, std,
                seed=seed, epoch=epoch, processes=processes, progress=bar.update,
            )  # fmt: skip
            processes.average_statistics(network)
            valid_loss = valid_accuracy = None
            if valid_feed is not None:
                valid_loss, valid_accuracy, _ = evaluate(
                    evaluated, valid_feed, len(data.valid.labels), settings, mean, std, processes
                )
            if not (math.isfinite(train_loss) and math.isfinite(valid_loss or 0)):
                raise TenasError(
                    f"The loss is no longer finite in epoch {epoch + 1}: lower 'learning_rate', or set 'clip' or 'warmup_epochs'."
                )
            row = dict(zip(HISTORY, (epoch + 1, rate, train_loss, train_accuracy, valid_loss, valid_accuracy), strict=True))
            if state["best"] is None or is_better(row, state["best"]["row"]):
                state["best"] = {"row": row, "network": {k: v.clone() for k, v in network.state_dict().items()}}
            state["history"].append(row)
            state |= {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
                "seconds": state["seconds"] + stopwatch.seconds(),
            }
            if processes.first:
                with whole(checkpoint) as temporary:
                    torch.save(state, temporary)
                validated_at = "" if valid_accuracy is None else f", {valid_accuracy:.2f} % in validation"
                tqdm.write(
                    f"epoch {epoch + 1}/{settings['epochs']}: learning rate {rate:.4f}, loss {train_loss:.4f}, "
                    f"accuracy {train_accuracy:.2f} % in training{validated_at}",
                    file=sys.stderr,
                )
    return state


class Trained(NamedTuple):
    """A network after its training, with all that its results say."""

    network: Network
    state: dict
    data: Data
    keys: dict
    shape: dict
    constants: tuple[list[float], list[float]]
    digests: dict[str, str]
    parameters: int
    flops: int


def run_training(
    settings: Mapping, genotype: Genotype, *, seed: int, place: torch.device, processes: Processes, out: Path,
    stale: Iterable[str], needs_test: bool,
) -> Trained:  # fmt: skip
    """Train the network of a genotype to the last epoch, and give it the weights of the chosen one.

    ``stale``: patterns of older results, which are removed before the first epoch.
    """
    keys = check_retraining({k: v for k, v in settings.items() if k not in ("preset", "dataset")})
    check_precision(keys["precision"], place)
    data = read_data(settings["dataset"], keys, seed, processes, needs_test=needs_test)
    shape = {"channels": keys["channels"], "cells": keys["cells"], "classes": data.classes, "stem": keys["stem"]}
    with seeded(seed):
        network = Network(genotype, **shape, auxiliary=keys["auxiliary"] > 0)
    network.set_drop_path(keys["drop_path"])  # refused here, if at all, not in the second epoch
    plain = Network(genotype, **shape)
    parameters, flops = count_parameters(plain), count_flops(plain, (3, data.side, data.side))
    digests = {}
    if processes.first:
        if keys["stem"] == "imagenet" and flops > MOBILE_FLOPS:
            print(
                f"tenas: the network has {flops / 1e6:.0f} M multiply-adds an image, more than the "
                f"{MOBILE_FLOPS / 1e6:.0f} M of the networks that it would be compared with on ImageNet.",
                file=sys.stderr,
            )
        parts = ("train", "valid", "test") if needs_test else ("train", "valid")
        digests = {part: getattr(data, part).digest() for part in parts if getattr(data, part)}
        out.mkdir(parents=True, exist_ok=True)
        # Results of another time must not stand beside a training that has not ended, nor what a killed one was writing.
        for pattern in (*stale, ".checkpoint.*.pt"):
            for path in out.glob(pattern):
                path.unlink(missing_ok=True)
    made_by = {
        "settings": {k: v for k, v in keys.items() if k not in NOT_IN_DIGEST} | {"side": data.side},
        "arch": genotype.arch,
        "seed": seed,
        "data": digests,
        "code": training_code(genotype.space),
    }
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
    initialise(network, "pytorch", seed)
    network.to(place, memory_format=torch.channels_last)
    constants = processes.from_first(channel_constants(data.train, seed) if processes.first else None)
    mean, std = (torch.tensor(constant, device=place) for constant in constants)
    state = train(
        network, data, keys, mean, std,
        seed=seed, digest=digest, checkpoint=out / "checkpoint.pt", processes=processes,
    )  # fmt: skip
    network.load_state_dict(state["best"]["network"])
    return Trained(network, state, data, keys, shape, constants, digests, parameters, flops)


def retrain(
    settings: Mapping,
    genotype: Genotype,
    *,
    seed: int,
    threads: int,
    device: str,
    out: str | os.PathLike,
    inputs: Iterable[str | os.PathLike] = (),
) -> dict:
    """Train the network of ``genotype`` from scratch and test it. Writes to the folder ``out``; returns the metrics.

    ``settings``: ``dataset`` (an entry of the configuration's ``datasets``) and the keys of a retraining preset.
    ``inputs``: files to name in the provenance. ``device``: auto, cpu or cuda. On the CPU with the same number of
    threads, a training that was killed at any moment and started again ends in the same bits as one that was not.
    Under torchrun all processes train one network, and the first of them writes.

    history.csv: one row per epoch. metrics.json: accuracies in %. network.pt: the trained network, see ``load_network``.
    The validation part, held out of the training images, chooses the epoch, or it's the last; the test images are looked
    at once, with its weights, when training has ended.

    Raises TenasError for a data set without enough images to hold some out, and for a loss that is not finite.
    """
    stopwatch = Stopwatch()
    out = Path(out)
    with joined(device) as (processes, place), torch_set_up(threads, place):
        done = run_training(
            settings, genotype, seed=seed, place=place, processes=processes, out=out, needs_test=True,
            stale=("history.csv", "metrics.json", "network.pt"),
        )  # fmt: skip
        keys, data, state = done.keys, done.data, done.state
        test_feed = make_feed(data.test, data.side, place, workers=keys["workers"])
        mean, std = (torch.tensor(constant, device=place) for constant in done.constants)
        tested = evaluate(done.network, test_feed, len(data.test.labels), keys, mean, std, processes)
    metrics = {
        "arch": genotype.arch,
        "test_accuracy": tested.accuracy,
        # With five classes or fewer it says nothing.
        **({"test_top5_accuracy": tested.top5_accuracy} if data.classes > 5 else {}),
        "test_loss": tested.loss,
        **_of_training(done),
        "provenance": provenance(
            settings=settings,
            inputs=inputs,
            stopwatch=stopwatch,
            device=place.type,
            seed=seed,
            threads=threads,
            processes=processes.count,
            data_sha256=done.digests,
            code=training_code(genotype.space),
        ),
    }
    if processes.first:
        save_network(out / "network.pt", done.network, genotype, done.shape, data.side, *done.constants)
        write_csv(out / "history.csv", HISTORY, state["history"])
        metrics = _sealed_with(metrics, out, "history.csv", "network.pt")
        write_json(out / "metrics.json", metrics)
    return metrics


def _sealed_with(metrics: Mapping, out: Path, *names: str) -> dict:
    """Metrics with the hashes of the files that were written beside them, and their own."""
    return sealed({**metrics, "files": {name: sha256(out / name) for name in names}})


def _of_training(done: Trained) -> dict:
    """What metrics.json says of a training, but for the test images."""
    best, data = done.state["best"]["row"], done.data
    return {
        "valid_accuracy": best["valid_accuracy"],
        "best_epoch": best["epoch"],
        "epochs": done.keys["epochs"],
        "parameters": done.parameters,
        "flops": done.flops,
        "images": {part: len(getattr(data, part).labels) if getattr(data, part) else 0 for part in ("train", "valid", "test")},
        "training_seconds": round(done.state["seconds"], 3),
    }


def train_finalist(
    settings: Mapping,
    genotype: Genotype | None,
    *,
    seed: int,
    threads: int,
    device: str,
    out: str | os.PathLike,
    inputs: Iterable[str | os.PathLike],
    facts: Mapping[str, int],
) -> dict:
    """A short training of a search's finalist: as ``retrain``, without the test images and without a network to keep.

    Writes history.csv and metrics.json, whose ``valid_accuracy`` the search chooses by. Without a genotype, where the
    shortlist is shorter than was planned, the metrics say so.
    """
    stopwatch = Stopwatch()
    out = Path(out)
    if genotype is None:
        metrics = {"arch": None, **facts, "reason": "The shortlist has no cell at this place."}
        write_csv(out / "history.csv", HISTORY, [])
        metrics = _sealed_with(metrics, out, "history.csv")
        write_json(out / "metrics.json", metrics)
        return metrics
    with joined(device) as (processes, place), torch_set_up(threads, place):
        done = run_training(
            settings, genotype, seed=seed, place=place, processes=processes, out=out, needs_test=False,
            stale=("history.csv", "metrics.json"),
        )  # fmt: skip
    metrics = {
        "arch": genotype.arch,
        **facts,
        **_of_training(done),
        "provenance": provenance(
            settings=settings,
            inputs=inputs,
            stopwatch=stopwatch,
            device=place.type,
            seed=seed,
            threads=threads,
            processes=processes.count,
            data_sha256=done.digests,
            code=training_code(genotype.space),
        ),
    }
    if processes.first:
        write_csv(out / "history.csv", HISTORY, done.state["history"])
        metrics = _sealed_with(metrics, out, "history.csv")
        write_json(out / "metrics.json", metrics)
    return metrics
