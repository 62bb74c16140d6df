"""The stage: a trained network in, its torch.export program, its ONNX model and what they expect of an image out."""

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenas.code import code_digest
from tenas.errors import TenasError
from tenas.files import sha256, whole, write_json
from tenas.provenance import Stopwatch, provenance, sealed
from tenas.retrain.stored import load_network

TOLERANCE = 1e-4
# Other batches than the one that the network is traced with: the number of images must be free.
CHECKED_BATCHES = (1, 4)
OPSET = 20


def difference(network: nn.Module, exported: Callable[[Tensor], Tensor], side: int) -> float:
    """The largest difference of a logit between a network and what was exported from it, on normal random images.

    Raises TenasError where it's 1e-4 or more, or no number.
    """
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch in CHECKED_BATCHES:
        images = torch.randn(batch, 3, side, side, generator=generator)
        with torch.no_grad():
            found = (exported(images) - network(images)).abs().max().item()
        # A NaN is no smaller either.
        if not found < TOLERANCE:
            raise TenasError(
                f"The exported network differs from the trained one by {found:.1e} in a logit, with a batch of {batch}; "
                f"it must be less than {TOLERANCE}."
            )
        largest = max(largest, found)
    return largest


def to_program(network: nn.Module, side: int) -> torch.export.ExportedProgram:
    """The network as a torch.export program: images (n, 3, side, side) to logits (n, classes), n free."""
    example = torch.zeros(2, 3, side, side)
    return torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)


def to_onnx(program: torch.export.ExportedProgram) -> bytes:
    """The program as an ONNX model, of the input ``images`` and the output ``logits``. Raises TenasError without onnxscript."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise _missing(error) from error
    with warnings.catch_warnings():
        # About the exporter's own insides; the result is checked by running it.
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=["images"], output_names=["logits"], verbose=False
        )
    assert exported is not None  # with dynamo=True it never is
    model: bytes = exported.model_proto.SerializeToString()
    return model


def run_onnx(model: bytes) -> Callable[[Tensor], Tensor]:
    """The model, run by ONNX Runtime on the CPU. Raises TenasError where that's not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing(error) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _missing(error: ImportError) -> TenasError:
    return TenasError(f"To export to ONNX, the package {error.name} is needed: install onnx, onnxscript and onnxruntime.")


def export(network: str | os.PathLike[str], out: str | os.PathLike[str]) -> dict[str, Any]:
    """Export the trained network of the file ``network`` (a retraining's network.pt) to the folder ``out``; returns the card.

    network.pt2: a program for torch.export.load. network.onnx: the same for ONNX runtimes. export.json: what they take and
    give, and by how much each differs from the network, in evaluation mode on the CPU, in float32.

    Both take float32 (n, 3, side, side): values from 0 to 1, minus ``mean``, over ``std``; n is free. Both give logits
    (n, classes). Raises TenasError, with nothing written, where one of them differs by 1e-4 or more.
    """
    stopwatch = Stopwatch()
    trained, card = load_network(network)
    side = card["side"]
    program = to_program(trained, side)
    stored = io.BytesIO()
    torch.export.save(program, stored)
    # What was saved, not what is to be saved: read back as a user would.
    stored.seek(0)
    differences = {"network.pt2": difference(trained, torch.export.load(stored).module(), side)}
    model = to_onnx(program)
    differences["network.onnx"] = difference(trained, run_onnx(model), side)
    out = Path(out)
    for name, content in (("network.pt2", stored.getvalue()), ("network.onnx", model)):
        with whole(out / name) as temporary:
            temporary.write_bytes(content)
    result = sealed(
        {
            **card,
            "input": {"name": "images", "type": "float32", "shape": ["n", 3, side, side]},
            "output": {"name": "logits", "type": "float32", "shape": ["n", card["classes"]]},
            "largest_difference": differences,
            "opset": OPSET,
            "provenance": provenance(
                settings={"tolerance": TOLERANCE}, inputs=[network], stopwatch=stopwatch, code=code_digest("tenas.export.stage")
            ),
            "files": {name: sha256(out / name) for name in ("network.pt2", "network.onnx")},
        }
    )
    write_json(out / "export.json", result)
    return result
