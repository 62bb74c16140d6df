"""The NTK's reverse pass with kernels compiled by numba, on a CPU. Imports numba: import it only when needed.

README.md in this folder explains it, with a picture and an example.
"""

from tenas.measures.kernel.forward import FORWARD
from tenas.measures.kernel.listing import dump
from tenas.measures.kernel.plan import Plan

__all__ = ["FORWARD", "Plan", "dump"]
