"""Give a trained network away: as a torch.export program and as ONNX, each checked against the network."""

from tenas.export.stage import export

__all__ = ["export"]
