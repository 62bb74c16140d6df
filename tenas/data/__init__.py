"""Images: their sources, the small sample that a search reads, and the whole data set that retraining reads.

No torch. torchvision, scikit-learn and Pillow are imported when a data set is loaded, not before.
"""

from tenas.data.parts import Arrays, Files, Loaded, Part, Paths, Splits
from tenas.data.prepared import DataWarning, prepare, prepare_arrays, read_images, read_labels
from tenas.data.sources import SOURCES, Source, load_splits

__all__ = [
    "SOURCES", "Arrays", "DataWarning", "Files", "Loaded", "Part", "Paths", "Source", "Splits", "load_splits", "prepare",
    "prepare_arrays", "read_images", "read_labels",
]  # fmt: skip
