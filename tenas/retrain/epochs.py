"""Train over all epochs, from a checkpoint where there is one: rows of history.csv, the choice of the best epoch."""

import io
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tenas.errors import StoppedError, TenasError
from tenas.files import is_intact, sealed_bytes, whole
from tenas.networks import Network
from tenas.progress import remark
from tenas.provenance import Stopwatch
from tenas.retrain.data import Data
from tenas.retrain.distributed import Processes, set_statistics
from tenas.retrain.feed import Feed, make_feed
from tenas.retrain.stopping import UnfinishedError, stop_asked
from tenas.retrain.train import Trainer, evaluate, steps_of_epoch, train_epoch

HISTORY = ("epoch", "learning_rate", "train_loss", "train_accuracy", "valid_loss", "valid_accuracy")


def read_checkpoint(path: Path, digest: str) -> dict[str, Any] | None:
    """Read the state after the last step that was kept; None where training starts at the beginning.

    A checkpoint of other settings, code or data is not resumed: its history would follow from neither.
    """
    if not path.exists():
        return None
    try:
        if is_intact(path):
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if state["digest"] == digest:
                return state
            reason = "is of other settings, data or code"
        else:
            reason = "cannot be read (it is not the file that was written)"
    except Exception as error:  # whatever pickle and zip raise for a damaged file
        reason = f"cannot be read ({error})"
    remark(f"the checkpoint {path} {reason}; training starts at the first epoch.")
    return None


def is_better(row: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
    """Prefer the higher validation accuracy, then the lower validation loss, then the earlier epoch.

    Without validation images the later epoch.
    """
    if row["valid_accuracy"] is None:
        return True
    return bool((row["valid_accuracy"], -row["valid_loss"]) > (best["valid_accuracy"], -best["valid_loss"]))


def run_epoch(
    trainer: Trainer,
    evaluated: nn.Module,
    data: Data,
    feeds: tuple[Feed, Feed | None],
    epoch: int,
    progress: Callable[[], object],
    stop: Callable[[], bool],
    begun: UnfinishedError | None,
) -> dict[str, Any]:
    """Train for 0-based ``epoch``, then validate. Returns the row of history.csv. ``feeds``: of training, of validation.

    Raises TenasError for a loss that is not finite, UnfinishedError as ``train_epoch`` does.
    """
    feed, valid_feed = feeds
    # Rises from zero in the first epoch, as in DARTS: early in training all paths are needed.
    trainer.network.set_drop_path(trainer.settings["drop_path"] * epoch / trainer.settings["epochs"])
    rate, train_loss, train_accuracy = train_epoch(trainer, feed, len(data.train.labels), epoch, progress, stop=stop, begun=begun)
    trainer.processes.average_statistics(trainer.network)
    valid_loss = valid_accuracy = None
    if valid_feed is not None and data.valid is not None:
        valid_loss, valid_accuracy, _ = evaluate(
            evaluated, valid_feed, len(data.valid.labels), trainer.settings, trainer.mean, trainer.std, trainer.processes
        )
    if not (math.isfinite(train_loss) and math.isfinite(valid_loss or 0)):
        raise not_finite(epoch + 1)
    return dict(zip(HISTORY, (epoch + 1, rate, train_loss, train_accuracy, valid_loss, valid_accuracy), strict=True))


def not_finite(epoch: int) -> TenasError:
    """The error for a training that has gone astray in an epoch, or in the last step of it."""
    return TenasError(f"The loss is no longer finite in epoch {epoch}: lower 'learning_rate', or set 'clip' or 'warmup_epochs'.")


def _line(row: Mapping[str, Any], epochs: int) -> str:
    validated = "" if row["valid_accuracy"] is None else f", {row['valid_accuracy']:.2f} % in validation"
    return (
        f"epoch {row['epoch']}/{epochs}: learning rate {row['learning_rate']:.4f}, loss {row['train_loss']:.4f}, "
        f"accuracy {row['train_accuracy']:.2f} % in training{validated}"
    )


def train(
    network: Network, data: Data, settings: Mapping[str, Any], mean: Tensor, std: Tensor,
    *, seed: int, digest: str, checkpoint: Path, processes: Processes, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Train to the last epoch, from ``checkpoint`` if it has the same ``digest``. Returns its state.

    The state: ``history`` (one row per epoch), ``best`` (row and weights of the chosen epoch), ``network``, ``optimizer``,
    ``scaler``, ``seconds`` of training over all interruptions; within an epoch also ``begun``, its steps and their sums.

    SIGTERM and SIGUSR1 let the step end, have the state kept and a StoppedError raised: resumed from there, a training
    on a CPU ends in the same bits as an undisturbed one. Raises TenasError for a loss that is not finite.
    """
    trainer = Trainer.of(network, mean, std, settings, seed, processes)
    state = processes.from_first(read_checkpoint(checkpoint, digest) if processes.first else None)
    if state is None:
        state = {"digest": digest, "history": [], "best": None, "seconds": 0.0}
    else:
        trainer.load_state_dict(state)
    evaluated = trainer.prepare(data.side)
    workers = settings["workers"]
    feed = make_feed(data.train, data.side, mean.device, workers=workers, seed=seed, least_area=settings["resized_crop"])
    valid_feed = None if data.valid is None else make_feed(data.valid, data.side, mean.device, workers=workers)
    epochs, done, steps = settings["epochs"], len(state["history"]), steps_of_epoch(len(data.train.labels), settings["batch"])
    # A bar on a terminal; in a log only the lines, as tqdm is silent.
    hidden = None if processes.first and not quiet else True
    begun = None
    if "begun" in state:
        step, sums, *each = state.pop("begun")
        begun = UnfinishedError(step, sums)
        # With as many processes as before; otherwise all resume from the mean.
        if len(each) == processes.world_size:
            set_statistics(network, each[processes.rank])
    initial = done * steps + (begun.step if begun else 0)

    def keep(**more: object) -> None:
        nonlocal state
        state |= trainer.state_dict() | {"seconds": state["seconds"] + stopwatch.seconds()}
        if processes.first:
            content = io.BytesIO()
            torch.save(state | more, content)
            with whole(checkpoint) as temporary:
                temporary.write_bytes(sealed_bytes(content.getvalue()))

    with (
        tqdm(total=epochs * steps, initial=initial, unit="step", disable=hidden, leave=False) as bar,
        stop_asked() as stop,
    ):
        for epoch in range(done, epochs):
            stopwatch = Stopwatch()
            try:
                row = run_epoch(trainer, evaluated, data, (feed, valid_feed), epoch, bar.update, stop, begun)
            except UnfinishedError as unfinished:
                # The statistics of each process, to resume with the same number of processes; their mean, for any other number:
                # running statistics are linear, so it leads to the same mean at the end of the epoch, except for the last bits.
                each = processes.each_statistics(network) if processes.world_size > 1 else []
                processes.average_statistics(network)
                keep(begun=[unfinished.step, unfinished.sums, *each])
                raise _stopped(f"after step {unfinished.step} of {steps} in epoch {epoch + 1}", checkpoint) from None
            begun = None
            if state["best"] is None or is_better(row, state["best"]["row"]):
                state["best"] = {"row": row, "network": {k: v.clone() for k, v in network.state_dict().items()}}
            state["history"].append(row)
            keep()
            if processes.first and not quiet:
                tqdm.write(_line(row, epochs), file=sys.stderr)
            if epoch + 1 < epochs and processes.any_says(stop(), mean.device):
                raise _stopped(f"after epoch {epoch + 1}", checkpoint)
    return state


def _stopped(where: str, checkpoint: Path) -> StoppedError:
    return StoppedError(f"The training was asked to stop, {where}: the same command resumes there, from {checkpoint}.")
