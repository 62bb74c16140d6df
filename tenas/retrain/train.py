"""Train a network for an epoch, evaluate it: what a step computes, and the state that steps change."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from tenas.networks import Network
from tenas.retrain.augment import augment, draw_params, normalise
from tenas.retrain.distributed import Processes, distribute
from tenas.retrain.feed import AUGMENTATION, DROP_PATH, ORDER, Feed, derived_seed
from tenas.retrain.stopping import UnfinishedError

# Steps between checks whether one of several processes was asked to stop. They must stop at the same step, and a check makes a
# GPU wait for its queue.
ASKED_EVERY = 8

# Precision of the forward and backward passes. Weights, normalisation and loss stay in float32.
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def learning_rate(step: int, steps: int, warmup: float, peak: float) -> float:
    """Learning rate at 0-based ``step`` of ``steps``: linear warm-up to ``peak``, then cosine decay to zero."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def steps_of_epoch(images: int, batch: int) -> int:
    """Steps of an epoch, with at most ``batch`` images each."""
    return math.ceil(images / batch)


def batches(indices: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Split ``indices`` into the fewest batches of at most ``most``, whose sizes differ by one at most: no small last batch.

    Batch normalisation over a handful of images would be a bad step, and over a single one impossible.
    """
    steps = steps_of_epoch(len(indices), most)
    return (indices[step * len(indices) // steps : (step + 1) * len(indices) // steps] for step in range(steps))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a network computes in ``precision``."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")


@dataclass
class Trainer:
    """A network in training, with its optimiser, and what each step needs besides a batch.

    ``model`` runs forwards and backwards: ``network`` itself until ``prepare`` distributes or compiles it. The two share their
    weights. ``mean``, ``std``: (3,) on the device, of values from 0 to 1. ``settings``: of a retraining.
    """

    network: Network
    model: nn.Module
    optimizer: Optimizer
    scaler: GradScaler
    mean: Tensor
    std: Tensor
    settings: Mapping[str, Any]
    seed: int
    processes: Processes

    @classmethod
    def of(
        cls, network: Network, mean: Tensor, std: Tensor, settings: Mapping[str, Any], seed: int, processes: Processes
    ) -> "Trainer":
        """Set up SGD with the settings' hyperparameters."""
        optimizer = torch.optim.SGD(
            network.parameters(),
            lr=settings["learning_rate"],
            momentum=settings["momentum"],
            nesterov=settings["nesterov"],
            weight_decay=settings["weight_decay"],
            # On a GPU one kernel for all parameters. On a CPU it would have other last bits.
            fused=mean.is_cuda,
        )
        # Gradients in fp16 would vanish unless the loss is scaled up; in bf16 they have the range of fp32.
        scaler = GradScaler(mean.device.type, enabled=settings["precision"] == "fp16")
        return cls(network, network, optimizer, scaler, mean, std, settings, seed, processes)

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def prepare(self, side: int) -> nn.Module:
        """Distribute the model over the processes and compile it, as the settings say; return the one to evaluate with.

        ``side``: of the images. To be called after ``load_state_dict``.
        """
        if self.settings["compile"]:
            # In place and before it is distributed: what is compiled is the network, with DDP's hooks around it.
            self.network.compile()
        self.model = distribute(self.network, self.processes, (3, side, side))
        return self.network


def _any_number(images: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Compile a network for batches of any number of images: those of an epoch differ by one."""
    if settings["compile"]:
        torch._dynamo.maybe_mark_dynamic(images, 0)
    return images


def train_step(
    network: nn.Module,
    optimizer: Optimizer,
    scaler: GradScaler,
    images: Tensor,
    labels: Tensor,
    settings: Mapping[str, Any],
    weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Take one step of the optimiser on a batch of normalised images (b, 3, h, w). Returns the mean loss and the number right.

    Both are of the main logits, without the auxiliary head, and stay on the device: reading them would make a GPU wait for
    every step. ``weight``: factor of the gradients.
    """
    with autocast(images.device, settings["precision"]):
        outputs = network(_any_number(images, settings))
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
    trainer: Trainer,
    feed: Feed,
    images: int,
    epoch: int,
    progress: Callable[[], object],
    *,
    stop: Callable[[], bool] = lambda: False,
    begun: UnfinishedError | None = None,
) -> tuple[float, float, float]:
    """Train for 0-based ``epoch`` on all ``images``. Returns its first learning rate, the mean loss, the accuracy in %.

    Loss and accuracy are of the augmented images, while the network changes. ``progress`` is called after each step. Raises
    UnfinishedError after a step if ``stop`` returns True in one of the processes; ``begun``: such an error, to resume from in a
    trainer with the same state. All random numbers follow from (seed, epoch, step), so the result is the same.

    Each process trains on its share of every batch. Gradients are averaged over the processes, so each weighs its loss by
    its share: the sum is the mean over the batch, however it is divided.
    """
    settings, seed, processes = trainer.settings, trainer.seed, trainer.processes
    order = np.random.default_rng([seed, ORDER, epoch]).permutation(images)
    plan = list(batches(order, settings["batch"]))
    shares = [indices[processes.share(len(indices))] for indices in plan]
    rates = [
        learning_rate(
            epoch * len(plan) + step,
            settings["epochs"] * len(plan),
            settings["warmup_epochs"] * len(plan),
            settings["learning_rate"],
        )
        for step in range(len(plan))
    ]
    sums = torch.zeros(2, dtype=torch.float64, device=trainer.mean.device)
    first = 0
    if begun is not None:
        first = begun.step
        if processes.first:
            sums += sums.new_tensor(begun.sums)
    trainer.model.train()
    for step, (pixels, labels) in enumerate(feed(shares[first:], epoch), start=first):
        for group in trainer.optimizer.param_groups:
            group["lr"] = rates[step]
        size = len(plan[step])
        generator = np.random.default_rng([seed, AUGMENTATION, epoch, step])
        params = draw_params(size, (pixels.shape[1], pixels.shape[2]), settings, generator).share(processes.share(size))
        inputs = augment(pixels, params, settings, trainer.mean, trainer.std)
        if settings["drop_path"]:
            # The network draws its masks, one per operator, from the default generator.
            torch.manual_seed(derived_seed(seed, DROP_PATH, epoch, step, processes.rank))
        weight = len(labels) * processes.world_size / size
        loss, right = train_step(trainer.model, trainer.optimizer, trainer.scaler, inputs, labels, settings, weight)
        sums += torch.stack((loss.double() * len(labels), right.double()))
        progress()
        asked = processes.world_size == 1 or (step + 1) % ASKED_EVERY == 0
        if step + 1 < len(plan) and asked and processes.any_says(stop(), sums.device):
            raise UnfinishedError(step + 1, processes.add_up(sums).tolist())
    loss_sum, right_sum = processes.add_up(sums).tolist()
    return rates[0], loss_sum / images, 100 * right_sum / images


class Scores(NamedTuple):
    """Result of an evaluation: mean cross entropy, accuracies in %."""

    loss: float
    accuracy: float
    top5_accuracy: float


@torch.no_grad()
def evaluate(
    network: nn.Module,
    feed: Feed,
    images: int,
    settings: Mapping[str, Any],
    mean: Tensor,
    std: Tensor,
    processes: Processes,
) -> Scores:
    """Evaluate on all ``images``, not augmented and divided among the processes, in evaluation mode."""
    network.eval()
    share = np.arange(images)[processes.share(images)]
    sums = torch.zeros(3, dtype=torch.float64, device=mean.device)
    for pixels, labels in feed(batches(share, max(1, settings["batch"] // processes.world_size)), 0):
        with autocast(pixels.device, settings["precision"]):
            logits = network(_any_number(normalise(pixels, mean, std), settings))
        logits = logits.float()
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        # Not the first of the top 5: for equal logits, topk and argmax may choose differently.
        right = logits.argmax(1) == labels
        sums += torch.stack((cross_entropy(logits, labels, reduction="sum").double(), right.sum(), best.any(1).sum()))
    loss, right_share, top5 = (processes.add_up(sums) / images).tolist()
    return Scores(loss, 100 * right_share, 100 * top5)
