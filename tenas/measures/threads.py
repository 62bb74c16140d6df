"""The number of threads of a measure. Imports torch on use."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, in OpenMP and BLAS, within a block or, as ``@one_thread()``, a function.

    Threads split sums (matrix products, norms, gradients of convolutions, eigenvalue solvers) and each rounds its part, so the
    last bits depend on the number of threads. On one thread they depend on the kind of processor only.

    Trap: the number of threads of BLAS is global to the process. Run concurrent measures in processes, not in Python threads.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
