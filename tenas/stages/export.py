"""Write a trained network as torch.export program and as ONNX, and check both."""

from pathlib import Path
from typing import Annotated


def export(
    *,
    network: Annotated[Path, "network.pt of a retraining"],
    out: Annotated[Path, "folder for network.pt2, network.onnx and export.json"],
) -> None:
    """Write a trained network as torch.export program and as ONNX, and check both.

    Examples:
        tenas export --network results/digits/seed0/retrain/network.pt --out results/digits/seed0/export
        tenas export --network network.pt --out exported
    """
    from tenas.export.stage import export

    export(network, out)
