"""The file of a trained network, complete in itself: what to build, its weights, how to normalise images."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tenas.device import torch_defaults
from tenas.errors import UNFIT, TenasError, in_short
from tenas.files import finite, is_intact, sealed_bytes, whole
from tenas.networks import Network
from tenas.spaces import Genotype, parse_genotype

KEYS = {"arch", "channels", "cells", "classes", "stem", "side", "mean", "std", "weights"}


def save_network(
    path: str | os.PathLike[str],
    network: Network,
    genotype: Genotype,
    shape: Mapping[str, Any],
    side: int,
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str] = (),
    evaluation_crop: float = 1.0,
) -> None:
    """Write a network without its auxiliary head.

    ``shape``: arguments of Network besides the genotype. ``side``: of the images. ``mean`` and ``std``: of each channel, for
    values in [0, 1]. ``class_names``: of each logit, if the classes have names. ``evaluation_crop``: share of an image's shorter
    side that the middle square has which is resized to ``side``. Equal networks give equal bytes, of which the
    last ones are a hash of the others.
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
        "class_names": list(class_names),
        "evaluation_crop": evaluation_crop,
        "weights": weights,
    }
    # Through a buffer: torch.save writes the name of its file, here a temporary one, into the content.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with whole(path) as temporary:
        temporary.write_bytes(sealed_bytes(buffer.getvalue()))


def _check(content: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError for entries that no network has, before it is built."""
    for key in ("channels", "cells", "classes", "side"):
        if type(content[key]) is not int or content[key] < 1:
            raise ValueError(f"{key!r} is {in_short(content[key])}")
    if content["cells"] > len(content["weights"]):
        raise ValueError(f"it has {content['cells']:,} cells in a stage, and {len(content['weights']):,} weights")
    for key in ("mean", "std"):
        if len(list(map(finite, content[key]))) != 3:
            raise ValueError(f"{key!r} is {in_short(content[key])}, which are not three numbers")
    if not 0 < finite(content.get("evaluation_crop", 1.0)) <= 1:
        raise ValueError(f"'evaluation_crop' is {in_short(content['evaluation_crop'])}")
    names = content.get("class_names", [])
    texts = [content["arch"], content["stem"], content.get("space", ""), *names]
    if not all(isinstance(text, str) for text in texts) or (names and len(names) != content["classes"]):
        raise ValueError(f"the cell, the stem or the names of its {content['classes']} classes are none")


def load_network(path: str | os.PathLike[str], space: str | None = None) -> tuple[Network, dict[str, Any]]:
    """Load a trained network, in evaluation mode on the CPU, and the other entries of its file.

    These are ``space``, ``arch``, ``channels``, ``cells``, ``classes``, ``stem``, ``side``, ``mean``, ``std``, ``class_names``
    (empty if the classes have none), ``evaluation_crop``. The network takes images (n, 3, side, side) in [0, 1], minus ``mean``,
    over ``std``: the middle square of a picture, of ``evaluation_crop`` times its shorter side, resized. No code
    in the file is executed. A space of your own is imported by the reference in the file, or by ``space`` if it has moved. Files
    of earlier versions name neither classes nor a space, which is found by the text of the genotype.

    Raises TenasError for a missing or damaged file, and for one of another kind.
    """
    path = Path(path)
    damaged = TenasError(f"The trained network {path} cannot be read: it is damaged, or another kind of file.")
    try:
        if not is_intact(path):
            raise damaged
        content = torch.load(path, map_location="cpu", weights_only=True)
    except TenasError:
        raise
    except FileNotFoundError as error:
        raise TenasError(f"There is no trained network {path}.") from error
    except Exception as error:  # whatever pickle and zip raise for a damaged file
        raise damaged from error
    if not isinstance(content, dict) or not content.keys() >= KEYS:
        raise TenasError(f"The file {path} is not a trained network: retraining writes one as network.pt.")
    try:
        _check(content)
    except (TypeError, ValueError) as error:
        raise TenasError(f"The trained network {path} is damaged: {error}.") from error
    weights = content.pop("weights")
    genotype = parse_genotype(content["arch"], space or content.get("space"))
    older = {"class_names": [], "evaluation_crop": 1.0}
    content = {**older, **content, "space": genotype.space.reference}
    try:
        with torch_defaults():
            network = Network(genotype, **{key: content[key] for key in ("channels", "cells", "classes", "stem")})
            network.load_state_dict(weights)
    except (RuntimeError, *UNFIT) as error:
        raise TenasError(
            f"The weights in {path} do not fit the networks of {genotype.space.reference}: it has changed."
        ) from error
    return network.eval(), content
