"""The export of a trained network: its torch.export program, its ONNX model, and a card that says what input they expect."""

import io
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenas.code import code_digest
from tenas.device import torch_defaults
from tenas.errors import TenasError
from tenas.files import sha256, whole, write_json
from tenas.locks import alone
from tenas.provenance import Stopwatch, provenance, sealed
from tenas.retrain.stored import load_network

TOLERANCE = 1e-4
# Batch sizes other than the traced one: the number of images must be dynamic.
CHECKED_BATCHES = (1, 4)
OPSET = 20
# Name of the number of images, in the card and in the ONNX model.
BATCH = "n"


def difference(network: nn.Module, exported: Callable[[Tensor], Tensor], side: int) -> float:
    """Largest absolute difference of the logits of a network and of its export, on normal random images (n, 3, side, side).

    Raises TenasError if it is 1e-4 or more, or NaN.
    """
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch in CHECKED_BATCHES:
        images = torch.randn(batch, 3, side, side, generator=generator)
        with torch.no_grad():
            found = (exported(images) - network(images)).abs().max().item()
        # Not >=, which is false for NaN.
        if not found < TOLERANCE:
            raise TenasError(
                f"The exported network differs from the trained one by {found:.1e} in a logit, with a batch of {batch}; "
                f"it must be less than {TOLERANCE}."
            )
        largest = max(largest, found)
    return largest


def to_program(network: nn.Module, side: int) -> torch.export.ExportedProgram:
    """The network as a torch.export program: images (n, 3, side, side) to logits (n, classes), with n dynamic."""
    example = torch.zeros(2, 3, side, side)
    return torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)


def to_onnx(program: torch.export.ExportedProgram, facts: Mapping[str, Any]) -> bytes:
    """The program as a serialised ONNX model, ``images`` to ``logits``, whose first dimension is ``n``.

    ``facts``: what its metadata say besides, values as JSON. Raises TenasError without onnx or onnxscript.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise _missing(error) from error
    with warnings.catch_warnings():
        # They concern the exporter's internals; the result is checked by running it.
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=["images"], output_names=["logits"], verbose=False
        )
    assert exported is not None  # with dynamo=True it never is
    model = exported.model_proto
    # The exporter names the dimension itself, after its own counter.
    made = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == made:
                dimension.dim_param = BATCH
    for key, fact in facts.items():
        model.metadata_props.add(key=key, value=json.dumps(fact, ensure_ascii=False))
    content: bytes = model.SerializeToString()
    return content


def run_onnx(model: bytes) -> Callable[[Tensor], Tensor]:
    """The model as a function, run by ONNX Runtime on the CPU. Raises TenasError if that is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing(error) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _missing(error: ImportError) -> TenasError:
    return TenasError(f"The export to ONNX needs the package {error.name}: install onnx, onnxscript and onnxruntime.")


@torch_defaults()
def export(network: str | os.PathLike[str], out: str | os.PathLike[str]) -> dict[str, Any]:
    """Export the trained network of the file ``network`` (a retraining's network.pt) to the folder ``out``; return the card.

    network.pt2: a program for torch.export.load. network.onnx: the same for ONNX runtimes. export.json: their input and output,
    and the largest difference of each from the network, in evaluation mode on the CPU, in float32. The ONNX model's metadata have
    ``side``, ``mean``, ``std`` and ``class_names`` too, as JSON.

    Both map float32 (n, 3, side, side), values from 0 to 1 minus ``mean`` over ``std``, to logits (n, classes); n is dynamic.
    Raises TenasError, with nothing written, if one of them differs by 1e-4 or more.
    """
    stopwatch = Stopwatch()
    trained, card = load_network(network)
    side = card["side"]
    program = to_program(trained, side)
    stored = io.BytesIO()
    torch.export.save(program, stored)
    # Check the saved bytes, read back as a user would.
    stored.seek(0)
    differences = {"network.pt2": difference(trained, torch.export.load(stored).module(), side)}
    model = to_onnx(
        program, {key: card[key] for key in ("arch", "space", "side", "evaluation_crop", "mean", "std", "class_names")}
    )
    differences["network.onnx"] = difference(trained, run_onnx(model), side)
    out = Path(out)
    with alone(out):
        return _write(out, {"network.pt2": stored.getvalue(), "network.onnx": model}, card, differences, network, stopwatch)


def _write(
    out: Path,
    contents: Mapping[str, bytes],
    card: Mapping[str, Any],
    differences: Mapping[str, float],
    network: str | os.PathLike[str],
    stopwatch: Stopwatch,
) -> dict[str, Any]:
    side = card["side"]
    for name, content in contents.items():
        with whole(out / name) as temporary:
            temporary.write_bytes(content)
    result = sealed(
        {
            **card,
            "input": {"name": "images", "type": "float32", "shape": [BATCH, 3, side, side]},
            "output": {"name": "logits", "type": "float32", "shape": [BATCH, card["classes"]]},
            "largest_difference": differences,
            "opset": OPSET,
            "provenance": provenance(
                settings={"tolerance": TOLERANCE}, inputs=[network], stopwatch=stopwatch, code=code_digest("tenas.export.stage")
            ),
            "files": {name: sha256(out / name) for name in contents},
        }
    )
    write_json(out / "export.json", result)
    return result
