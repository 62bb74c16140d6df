"""Print the tables of benchmarks.gpu for docs/gpu.md. Exit status: 2 without a GPU, 1 where a kernel is not the CPU's."""

import sys

import torch

from benchmarks.gpu import failed, proofs
from benchmarks.side_by_side import table
from tenas.device import choose_device, own_device
from tenas.errors import TenasError
from tenas.machine import driver_version


def main() -> int:
    try:
        choose_device("cuda")
        own_device("cuda")
    except TenasError as error:
        print(f"benchmarks.gpu: {error} Nothing was run.", file=sys.stderr)
        return 2
    major, minor = torch.cuda.get_device_capability()
    print(
        f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}, driver {driver_version()}, "
        f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}\n"
    )
    tables = proofs("cuda")
    for columns, rows in tables:
        print(table(columns, rows), end="\n\n")
    if wrong := failed(tables):
        print(
            f"benchmarks.gpu: not the kernels of the CPU in float64, or not the same twice: {'; '.join(wrong)}.", file=sys.stderr
        )
        return 1
    return 0


sys.exit(main())
