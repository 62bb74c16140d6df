"""An instruction of a program as compiled code reads it: a row of integers, of which each operation reads some.

Addresses and strides are in bytes. ``sample`` strides lead from one sample to the next, ``plane`` strides from one channel
to the next, ``row`` strides from one row of pixels to the next; 0 stands for an address that isn't there.
``tenas.measures.kernel.instructions`` has a type for each operation, with the fields that it reads.
"""

import numpy as np

FIELDS = (
    "op",
    "target", "target_sample", "target_plane", "target_row",
    "source", "source_sample", "source_plane", "source_row",
    "channels", "height", "width", "accumulate",
    "gain", "shift", "slope", "data", "data_sample", "share",
    "targets", "sources", "values", "starts", "dense",
    "offsets", "weights", "taps", "padded_taps", "runs", "group", "group_stride",
)  # fmt: skip
RECORD = np.dtype([(name, np.int64) for name in FIELDS])
ZERO, COMBINE, MASK, GATHER, BOX, SCATTER, SUM, DOT, ACCUMULATE = range(9)
