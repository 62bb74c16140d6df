"""Training and evaluation of one network: plain functions, no state but the network's and the optimiser's."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from tenas.retrain.augment import augment, draw, normalise
from tenas.retrain.distributed import Processes
from tenas.retrain.feed import AUGMENTATION, DROP_PATH, ORDER, Feed, derived_seed

# What a network computes in, but for its weights, normalisation and loss, which stay in float32.
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def learning_rate(step: int, steps: int, warmup: float, peak: float) -> float:
    """Of ``step`` out of ``steps``, from 0: linear up to ``peak`` over ``warmup`` steps, then half a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def steps_of_epoch(images: int, batch: int) -> int:
    """Steps of an epoch, with at most ``batch`` images each."""
    return math.ceil(images / batch)


def batches(indices: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """As few batches as ``most`` images of a batch allow, all of the same size or one more: no small one at the end.

    Batch normalisation over a handful of images would be a bad step, and over a single one none at all.
    """
    steps = steps_of_epoch(len(indices), most)
    return (indices[step * len(indices) // steps : (step + 1) * len(indices) // steps] for step in range(steps))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a network computes in ``precision``."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")


def train_step(
    network: nn.Module,
    optimizer: Optimizer,
    scaler: GradScaler,
    images: Tensor,
    labels: Tensor,
    settings: Mapping,
    weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """One step of the optimiser on a batch, images (b, 3, h, w) normalised: the mean loss, and how many were right.

    Both are of the network's own logits, without the auxiliary ones, and stay on the device: asking for their values would
    make a GPU wait for every step. ``weight``: what the gradients are multiplied by.
    """
    with autocast(images.device, settings["precision"]):
        outputs = network(images)
    logits, auxiliary = outputs if isinstance(outputs, tuple) else (outputs, None)
    loss = whole = cross_entropy(logits.float(), labels, label_smoothing=settings["label_smoothing"])
    if auxiliary is not None:
        whole = loss + settings["auxiliary"] * cross_entropy(
            auxiliary.float(), labels, label_smoothing=settings["label_smoothing"]
        )
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(whole * weight).backward()
    if settings["clip"] is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), settings["clip"])
    scaler.step(optimizer)
    scaler.update()
    return loss.detach(), (logits.detach().argmax(1) == labels).sum()


def train_epoch(
    network: nn.Module,
    optimizer: Optimizer,
    scaler: GradScaler,
    feed: Feed,
    images: int,
    settings: Mapping,
    mean: Tensor,
    std: Tensor,
    *,
    seed: int,
    epoch: int,
    processes: Processes,
    progress: Callable[[], object],
) -> tuple[float, float, float]:
    """Train for epoch ``epoch`` (from 0) on all ``images``. Returns its first learning rate, the mean loss, the accuracy in %.

    Loss and accuracy are of the augmented images, while the network changes. ``progress`` is called after each step.

    Each process trains on its share of every batch. Gradients are averaged over the processes, so each weighs its loss by
    its share: the sum is the mean over the batch, however it's divided.
    """
    order = np.random.default_rng([seed, ORDER, epoch]).permutation(images)
    plan = list(batches(order, settings["batch"]))
    shares = [indices[processes.share(len(indices))] for indices in plan]
    sums = torch.zeros(2, dtype=torch.float64, device=mean.device)
    first_rate = None
    network.train()
    for step, (pixels, labels) in enumerate(feed(shares, epoch)):
        rate = learning_rate(
            epoch * len(plan) + step,
            settings["epochs"] * len(plan),
            settings["warmup_epochs"] * len(plan),
            settings["learning_rate"],
        )
        first_rate = rate if first_rate is None else first_rate
        for group in optimizer.param_groups:
            group["lr"] = rate
        size = len(plan[step])
        generator = np.random.default_rng([seed, AUGMENTATION, epoch, step])
        draws = draw(size, tuple(pixels.shape[1:3]), settings, generator).share(processes.share(size))
        inputs = augment(pixels, draws, settings, mean, std)
        if settings["drop_path"]:
            # The network draws from the default generator, a mask an operator.
            torch.manual_seed(derived_seed(seed, DROP_PATH, epoch, step, processes.rank))
        weight = len(labels) * processes.count / size
        loss, right = train_step(network, optimizer, scaler, inputs, labels, settings, weight)
        sums += torch.stack((loss.double() * len(labels), right.double()))
        progress()
    loss_sum, right = processes.add_up(sums).tolist()
    return first_rate, loss_sum / images, 100 * right / images


class Scores(NamedTuple):
    """Of an evaluation; accuracies in %. Top 5: the right class is among the five likeliest."""

    loss: float
    accuracy: float
    top5_accuracy: float


@torch.no_grad()
def evaluate(
    network: nn.Module,
    feed: Feed,
    images: int,
    settings: Mapping,
    mean: Tensor,
    std: Tensor,
    processes: Processes,
) -> Scores:
    """Mean cross entropy and accuracies in evaluation mode, on all ``images`` as they are, divided among the processes."""
    network.eval()
    share = np.arange(images)[processes.share(images)]
    sums = torch.zeros(3, dtype=torch.float64, device=mean.device)
    for pixels, labels in feed(batches(share, max(1, settings["batch"] // processes.count)), 0):
        with autocast(pixels.device, settings["precision"]):
            logits = network(normalise(pixels, mean, std))
        logits = logits.float()
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        # Not the first of the best: where logits are equal, topk and argmax may choose differently.
        right = logits.argmax(1) == labels
        sums += torch.stack((cross_entropy(logits, labels, reduction="sum").double(), right.sum(), best.any(1).sum()))
    loss, right, top5 = (processes.add_up(sums) / images).tolist()
    return Scores(loss, 100 * right, 100 * top5)
