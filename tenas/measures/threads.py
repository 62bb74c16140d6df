"""Fix the settings on which the bits of a measure depend: number of threads, arithmetic of a GPU. Imports torch on use."""

from collections.abc import Iterator
from contextlib import contextmanager

# Torch's settings of precision that operators of measures read: cuDNN's convolutions and recurrent layers.
_CUDNN = (("cuda", "conv"), ("cuda", "rnn"))
_MATMUL = (("cuda", "matmul"), ("mkldnn", "matmul"))


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


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute in whole float32 and by deterministic kernels of cuDNN, within a block or, as ``@full_precision()``, a function.

    By default convolutions on a GPU since Ampere round their inputs to the 10 bits of TF32, which changes kappa by percents and
    changes decisions; cuDNN chooses the fastest kernel at the moment, among kernels that round differently. Both hold for reverse
    passes as well: autograd reads these settings when an operator runs backwards. CPUs are not affected.

    All settings are restored, those of torch's newer interface (``fp32_precision``) included.

    Trap: like the number of threads, they are global to the process. Run concurrent measures in processes, not in Python threads.
    """
    import torch

    c = torch._C
    switches = c._get_cudnn_enabled(), c._get_cudnn_benchmark(), c._get_cudnn_deterministic()
    precisions = {key: c._get_fp32_precision_getter(*key) for key in (*_CUDNN, *_MATMUL)}
    if switches == (True, False, True) and set(precisions.values()) == {"ieee"}:
        yield  # a measure within a measure: setting takes longer than checking
        return
    cudnn_tf32, matmul = _cudnn_tf32(), _matmul_precision()
    try:
        c._set_cudnn_enabled(True)
        c._set_cudnn_benchmark(False)
        c._set_cudnn_deterministic(True)
        # First the older interface, which reads False afterwards, then the newer one, to override a precision set for all of
        # torch.
        c._set_cudnn_allow_tf32(False)
        c._set_float32_matmul_precision("highest")
        for key in precisions:
            c._set_fp32_precision_setter(*key, "ieee")
        yield
    finally:
        c._set_cudnn_enabled(switches[0])
        c._set_cudnn_benchmark(switches[1])
        c._set_cudnn_deterministic(switches[2])
        c._set_cudnn_allow_tf32(cudnn_tf32)
        c._set_float32_matmul_precision(matmul)
        for key, value in precisions.items():
            if c._get_fp32_precision_getter(*key) != value:
                c._set_fp32_precision_setter(*key, value)


def _cudnn_tf32() -> bool:
    """Last value set for ``torch.backends.cudnn.allow_tf32``, which torch refuses to read if the newer interface disagrees."""
    import torch

    try:
        return bool(torch._C._get_cudnn_allow_tf32())
    except RuntimeError:
        return not all(torch._C._get_fp32_precision_getter(*key) == "tf32" for key in _CUDNN)


def _matmul_precision() -> str:
    """Last value set by ``torch.set_float32_matmul_precision``, likewise."""
    import torch

    try:
        return str(torch.get_float32_matmul_precision())
    except RuntimeError:
        return "highest"
