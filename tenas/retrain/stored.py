"""The file of a trained network, which needs no other to be used: what to build, its weights, how images are normalised."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tenas.errors import TenasError
from tenas.files import whole
from tenas.networks import Network
from tenas.spaces import Genotype, load_genotype

KEYS = {"arch", "channels", "cells", "classes", "stem", "side", "mean", "std", "weights"}


def save_network(
    path: str | os.PathLike,
    network: Network,
    genotype: Genotype,
    shape: Mapping,
    side: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Write a network without its auxiliary head. ``shape``: what Network takes besides the genotype. ``side``: of the images.

    ``mean`` and ``std``: of each channel, of values from 0 to 1. Equal networks are equal bytes.
    """
    weights = {
        name: value.detach().to("cpu").contiguous()
        for name, value in network.state_dict().items()
        if not name.startswith("body.auxiliary.")
    }
    content = {
        "space": genotype.space.reference,
        "arch": genotype.arch,
        **shape,
        "side": side,
        "mean": list(mean),
        "std": list(std),
        "weights": weights,
    }
    # Not straight into the file: its name, which is a temporary one, would become part of the content.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with whole(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def load_network(path: str | os.PathLike, space: str | None = None) -> tuple[Network, dict]:
    """The trained network of a file, in evaluation mode on the CPU, and what else the file says.

    That is ``space``, ``arch``, ``channels``, ``cells``, ``classes``, ``stem``, ``side``, ``mean``, ``std``. The network takes
    images (n, 3, side, side) of values from 0 to 1, minus ``mean``, over ``std``. Nothing in the file is run; a space of one's
    own is imported by the reference that stands there, or by ``space`` where its file lies elsewhere now. Files of earlier
    versions name no space: their text says which one of the package's it is of.
    Raises TenasError when the file is missing, damaged or something else.
    """
    path = Path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TenasError(f"There is no trained network {path}.") from error
    except Exception as error:  # whatever pickle and zip think of a damaged file
        raise TenasError(f"The trained network {path} cannot be read: it is damaged, or another kind of file.") from error
    if not isinstance(content, dict) or not content.keys() >= KEYS:
        raise TenasError(f"The file {path} is not a trained network: retraining writes one as network.pt.")
    weights = content.pop("weights")
    genotype = load_genotype(content["arch"], space or content.get("space"))
    content["space"] = genotype.space.reference
    network = Network(genotype, **{key: content[key] for key in ("channels", "cells", "classes", "stem")})
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise TenasError(
            f"The weights in {path} do not fit the networks of {genotype.space.reference}: it has changed."
        ) from error
    return network.eval(), content
