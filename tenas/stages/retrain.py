"""Train the network of a genotype from scratch."""

from pathlib import Path
from typing import Annotated

from tenas.stages.types import Count, Device, Seed


def retrain(
    *,
    settings: Annotated[Path, "retrain.json of the run"],
    genotype: Annotated[Path, "JSON file of the genotype"],
    card: Annotated[Path | None, "card.json of the images that were searched on: they must not have changed since"] = None,
    seed: Annotated[Seed, "seed of the search, and of the training"],
    threads: Annotated[Count, "processor threads to use"] = 1,
    device: Annotated[Device, "auto is a GPU if there is one"] = "auto",
    out: Annotated[Path, "folder for history.csv, metrics.json, network.pt and the checkpoint"],
) -> None:
    """Train the network of a genotype from scratch and test it."""
    from tenas.files import read_json
    from tenas.retrain.stage import retrain
    from tenas.spaces import load_genotype

    retrain(
        read_json(settings, "retraining settings"),
        load_genotype(genotype),
        seed=seed,
        threads=threads,
        device=device,
        out=out,
        inputs=[settings, genotype],
        card=card,
    )
