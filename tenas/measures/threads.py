"""On how many threads a measure is computed. No torch before that."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, OpenMP and BLAS alike, afterwards on as many as before. For a block or, ``@one_thread()``, a function.

    Threads share a sum (a matrix product, a norm, a convolution's gradient, an eigenvalue solver) and each rounds its part, so
    that the last bits follow from their number. On one thread they follow from the kind of processor alone.

    Trap: BLAS has one number of threads for the whole process. Measures taken at once belong in processes, not in Python threads.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
