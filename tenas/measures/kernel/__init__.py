"""The NTK's reverse pass with kernels that numba compiles, on a CPU. Importing it imports numba: do that when it is needed."""

from tenas.measures.kernel.forward import FORWARD
from tenas.measures.kernel.plan import Plan

__all__ = ["FORWARD", "Plan"]
