"""Export a trained network as a torch.export program and as ONNX, each checked against the original."""

from tenas.export.stage import export

__all__ = ["export"]
