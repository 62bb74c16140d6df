"""The NTK's reverse pass with kernels that numba compiles, on a CPU. Importing it imports numba: do that when it is needed.

README.md in this folder says how it works, with a picture and an example.
"""

from tenas.measures.kernel.forward import FORWARD
from tenas.measures.kernel.listing import dump
from tenas.measures.kernel.plan import Plan

__all__ = ["FORWARD", "Plan", "dump"]
