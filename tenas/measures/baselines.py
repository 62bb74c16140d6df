"""Baseline measures: gradient saliencies, activation kernels, Zen and ZiCo.

Each is a function of (network, images[, labels]) for any module, with batches (n, ...) and integer labels (n,). MORE IS BETTER
in all of them. The network is measured in its current mode and not modified: weights, gradients, buffers, mode.

Traps of all of them: batch normalisation in training mode couples the samples and hides the scale of the preceding weights;
nearly all grow with width and depth, so that within a space they follow the number of parameters or FLOPs; values are comparable
only for equal batches and initialisations. "Weights" are those of convolutions and linear layers that require a gradient;
batch normalisation and biases are excluded, as in the papers' pruning criteria.

-inf is the worst value of logarithmic measures: that of a network which does not distinguish its inputs.
"""

import math
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import batch_norm, cosine_similarity
from torch.random import fork_rng

from tenas.errors import TenasError
from tenas.measures.common import (
    LAYERS,
    PRODUCTS,
    BatchNorms,
    batch_loss,
    by_channel,
    check_batch,
    check_eager,
    gradients_of,
    hooked,
    layers_called,
    measuring,
    output_of,
    undisturbed,
    weights_of,
)
from tenas.measures.regions import relu_signs
from tenas.networks.observer import ByStorage, Marks, Observer, by_parts, plain_name, tensors_in

ALPHA = 0.01  # Zen-NAS, algorithm 1: size of the perturbation of the inputs
# Images of so many numbers have the direction of noise, or nearly, if they are that noise.
SEVERAL, PARALLEL = 16, 0.9
SHIFT = 1e-5  # Mellor et al. 2020: keeps the logarithm of an eigenvalue finite


@measuring
def gradient_norm(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """sum over layers of ||dL/dW||_2, L the mean cross-entropy of the batch ("grad_norm").

    Source: Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, ICLR 2021, section 3.2.
    Traps: batch normalisation makes the gradient of a weight inversely proportional to the weight's scale, so the
    initialisation determines the balance of layers; skip connections raise it whether or not they help.
    """
    with undisturbed(network), torch.enable_grad():
        gradients = gradients_of(batch_loss(network, images, labels), weights_of(network))
        return float(sum(gradient.double().norm().item() for gradient in gradients))


@measuring
def snip(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """sum over weights of |w dL/dw|, L the mean cross-entropy of the batch.

    Source: Lee, Ajanthan and Torr, SNIP, ICLR 2019, equation 4 (a connection's sensitivity, there normalised to sum 1);
    summed over a network by Abdelfattah et al. 2021. Unlike the gradient norm, it is invariant to the scale of a
    weight before batch normalisation. Trap: a sum over weights, so it grows with their number.
    """
    weights = weights_of(network)
    with undisturbed(network), torch.enable_grad():
        gradients = gradients_of(batch_loss(network, images, labels), weights)
    return sum((w.detach() * g).abs().double().sum().item() for w, g in zip(weights, gradients, strict=True))


@measuring
def grasp(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """sum over weights of -w (H g), g the gradient and H the Hessian of the mean cross-entropy of the batch.

    Source: Wang, Zhang and Grosse, GraSP, ICLR 2020, equation 8, without its temperature; summed over a network by
    Abdelfattah et al. 2021, whose orientation this is. The sign: -w (H g) is, to first order, half of what removing a weight adds
    to the squared norm of the gradient. As a criterion for single weights, the largest are pruned; as a score of
    networks the literature treats more as better, and so do we. It can be negative.
    Traps: the noisiest of the gradient measures, small batches change its sign; it needs second derivatives.
    """
    weights = weights_of(network)
    # Torch's fast kernels of attention have no second derivative.
    with undisturbed(network), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        gradients = gradients_of(batch_loss(network, images, labels), weights, create_graph=True)
        product = reduce(add, ((g.detach() * g).sum() for g in gradients))
        try:
            curvature = gradients_of(product, weights)
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            raise TenasError(f"GraSP needs second derivatives, and torch lacks one: {str(error).splitlines()[0]}.") from error
    return -sum((w.detach() * h).double().sum().item() for w, h in zip(weights, curvature, strict=True))


@measuring
def fisher(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """sum over layers and their output channels c of 1/(2n) sum_i (sum over positions of a_ic dL_i/da_ic)^2.

    a is the output of a convolution or linear layer, L_i the cross-entropy of sample i.
    Source: Theis et al., Faster gaze prediction with dense networks and Fisher pruning, 2018, section 2.2; Turner et al.,
    BlockSwap, ICLR 2020, equation 4; summed over a network by Abdelfattah et al. 2021, whose gradients are those of the
    mean loss: their value is this one divided by n^2. Traps: batch normalisation in training mode mixes the samples'
    gradients; a square of gradients, so a few layers near the output dominate.
    """
    outputs: list[tuple[nn.Module, Tensor]] = []
    seen: set[nn.Module] = set()

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        seen.add(module)
        if torch._C._functorch.is_functorch_wrapped_tensor(output):
            raise TenasError("Fisher needs the outputs of layers, which torch.vmap and torch.func hide: call them on batches.")
        if len(output) != len(images):
            raise TenasError(
                f"Fisher takes layers with one row for each image; one gave {tuple(output.shape)} for {len(images)} images "
                "(windows or tokens folded into the batch, or experts)."
            )
        if output.requires_grad:  # else its gradient is 0: under no_grad, or of a frozen layer
            outputs.append((module, output))
        return output.clone()  # a ReLU in place changes the copy

    with undisturbed(network), torch.enable_grad():
        with layers_called(network, note):
            loss = batch_loss(network, images, labels, reduction="sum")
        weights_of(network)
        if not seen:
            raise TenasError("Fisher saw no layer run, as within a compiled network: measure the one that was compiled.")
        total = 0.0
        gradients = gradients_of(loss, [output for _, output in outputs]) if outputs else []
        for (module, output), gradient in zip(outputs, gradients, strict=True):
            products = by_channel((output.detach() * gradient).double(), module).sum(2)
            total += products.square().sum().item() / (2 * len(images))
    return total


@measuring
def jacobian_covariance(network: nn.Module, images: Tensor) -> float:
    """-sum_i (log(s_i + k) + 1 / (s_i + k)), k = 1e-5, s the eigenvalues of the samples' correlation matrix of Jacobians.

    Row i of the Jacobian is the gradient of the sum of the logits with respect to image i.
    Source: Mellor et al., Neural Architecture Search without Training, first version (arXiv 2006.04647v1, 2020), section 3
    ("jacob_cov"). Largest, about -n, if the rows are uncorrelated; comparable only between batches of one size.
    -inf if an image's gradient is constant, as in a disconnected network: its correlation is undefined.
    Trap: dominated by 1 / (s + k), i.e. by the smallest eigenvalue.
    """
    check_batch(images)
    if not images.is_floating_point():
        raise TenasError("The covariance of Jacobians needs gradients with respect to images: give them as floats.")
    images = images.detach().clone().requires_grad_()
    with undisturbed(network), torch.enable_grad():
        # Of a copy: a network may write into its input, which a leaf of the graph refuses.
        (jacobian,) = gradients_of(output_of(network, images.clone()).sum(), [images])
    rows = jacobian.reshape(len(images), -1).to("cpu", torch.float64)
    rows = rows - rows.mean(1, keepdim=True)
    norms = rows.norm(dim=1, keepdim=True)
    if (norms == 0).any():
        return -math.inf
    eigenvalues = torch.linalg.eigvalsh((rows / norms) @ (rows / norms).T).clamp(min=0) + SHIFT
    return float(-(eigenvalues.log() + 1 / eigenvalues).sum().item())


@measuring
def naswot(network: nn.Module, images: Tensor) -> float:
    """log |det K|, K[i, j] the number of ReLUs that are in the same state for images i and j.

    Source: Mellor et al., Neural Architecture Search without Training, ICML 2021, equation 2 (K = N_A - Hamming distance).
    Every ReLU that runs counts, module or function. -inf if K is singular: two images share a pattern, or few ReLUs tell many
    images apart. The published code gives the logarithm of a rounding error there.
    Traps: grows as n log(number of ReLUs), so within a space it mostly counts ReLUs; the determinant needs float64.
    """
    check_batch(images)
    with undisturbed(network):
        signs = relu_signs(network, images)
    kernel = torch.from_numpy(_agreements(signs)).double()
    # The determinant is a whole number: below 1 it is 0.
    if signs.shape[1] == 0 or torch.linalg.matrix_rank(kernel, hermitian=True) < len(kernel):
        return -math.inf
    return float(torch.linalg.slogdet(kernel).logabsdet.item())


def _agreements(signs: np.ndarray) -> np.ndarray:
    """How many columns of (n, units) booleans are the same in rows i and j: (n, n) integers."""
    n, units = signs.shape
    packed = np.packbits(signs, axis=1)
    words = np.zeros((n, -(-packed.shape[1] // 8)), np.uint64)
    words.view(np.uint8)[:, : packed.shape[1]] = packed
    differ = np.zeros((n, n), np.int64)
    for i in range(n - 1):
        differ[i, i + 1 :] = np.bitwise_count(words[i + 1 :] ^ words[i]).sum(axis=1, dtype=np.int64)
    agree: np.ndarray = units - differ - differ.T
    return agree


class _LastFeatures(Observer):
    """Keeps the features before pooling: the last feature map (n, c, h, w), or (n, h, w, c), that an operator gives.

    The images are a map, and so is what an operator makes of a map if it has the map's height and width, or if the operator is a
    convolution, a pooling or a slice; but for the one pixel of a global pooling. So what reads pooled channels alone, in a
    squeeze-and-excitation, is none, nor are the queries (n, heads, tokens, channels) of attention.
    """

    RESIZE = frozenset({"convolution", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d",
                        "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "pixel_shuffle", "pixel_unshuffle",
                        "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "_upsample_nearest_exact2d",
                        "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "max_unpool2d", "fractional_max_pool2d",
                        "slice"})  # fmt: skip
    GLOBAL = frozenset({"mean", "sum", "amax", "max", "logsumexp", "_adaptive_avg_pool2d", "adaptive_max_pool2d"})
    # Poolings, which the features are before, and parts of a map.
    NONE = frozenset({"avg_pool2d", "_adaptive_avg_pool2d", "slice", "split", "chunk"})

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.samples = len(images)
        self.weights = Marks()
        self.weights.add(list(network.parameters()))
        self.features: Tensor | None = None
        self.strayed: Tensor | None = None
        self.convolved = False
        # Heights and widths.
        self.sizes = ByStorage[set[torch.Size]]()
        self._add(images, images.shape[2:])

    def _add(self, tensor: Tensor, size: torch.Size) -> None:
        self.sizes[tensor] = (self.sizes.get(tensor) or set()) | {size}

    def size(self, tensor: object) -> torch.Size | None:
        """Height and width of a tensor that is a map, in the one order of dimensions or the other; None for another tensor."""
        if not isinstance(tensor, Tensor) or tensor.ndim < 4:
            return None
        sizes = self.sizes.get(tensor) or ()
        return next((size for size in (tensor.shape[-2:], tensor.shape[1:3]) if size in sizes), None)

    def saw(self, operator: OpOverload, read: object, out: Any) -> None:
        name, tensors = plain_name(operator), tensors_in(read)
        if tensors and self.weights.has(tensors):
            self.weights.add(out)
            return
        # What a map was written into, as for circular padding, is one for a convolution.
        read = [t for t in tensors if self.size(t) is not None or (name == "convolution" and t.ndim == 4 and t in self.sizes)]
        # Of several results the others are for the way back, but for those of a split.
        for made in (out if isinstance(out, list) else out[:1] if isinstance(out, tuple) else [out]) if read else ():
            if isinstance(made, Tensor) and made.ndim >= 4 and made.is_floating_point():
                self._made(name, read, made)
        if name in PRODUCTS and any(map(self.weights.has, tensors)) and not self._is_map(tensors[0], out):
            self.strayed = self.features

    def _is_map(self, read: Tensor, out: Any) -> bool:
        """Whether the result of a layer is a map or of pooled channels; not of pixels or tokens, in rows or side by side.

        One number for each position is a weight of a pooling.
        """
        made = out[0] if isinstance(out, tuple | list) else out
        if made.ndim == 3 and len(made) == 1 != self.samples:  # of einsum
            made = made[0]
        if made.ndim < 2 or (made.ndim == 2 and made.shape[1] == 1) or (made.ndim == 4 and self.size(made) is not None):
            return True
        return len(made) == self.samples and (made.ndim == 2 or made[0, 0].numel() == read[0, 0].numel() == 1)

    def _made(self, name: str, read: Sequence[Tensor], made: Tensor) -> None:
        sizes = [self.size(tensor) for tensor in read]
        last = made.shape[-2:], made.shape[1:3]
        if name in self.RESIZE:
            size: torch.Size | None = last[sizes[0] not in (None, read[0].shape[-2:])]
        else:
            size = next((size for size in sizes if size in last), None)
        if size is None or (name in self.GLOBAL and size.numel() == 1):
            return
        self._add(made, size)
        self.convolved |= name == "convolution"
        # Instance normalisation has one row for all images, and then a view of that.
        if self.convolved and name not in self.NONE and made.ndim == 4 and len(made) == self.samples:
            self.features = made

    def after_layer(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """A linear layer of a map (n, h, w, c) gives a map; another layer's output of pixels or tokens is none."""
        if isinstance(module, nn.Linear) and inputs and (size := self.size(inputs[0])) is not None:
            self._add(output, size)
            self.features = output
            return
        # A linear layer's last dimension has the channels, a convolution's second.
        positions = output.shape[1:-1] if isinstance(module, nn.Linear) else output.shape[2:]
        if output.ndim > 2 and positions.numel() > 1 and min(output.shape[1], output.shape[-1]) > 1 and self.size(output) is None:
            self.strayed = self.features


def _features(network: nn.Module, images: Tensor) -> Tensor:
    check_eager(network)
    last = _LastFeatures(network, images := images.clone())
    with by_parts(network), hooked(network, LAYERS, last.after_layer), last:
        network(images)
    if last.features is None:
        raise TenasError("The Zen-score needs a network with feature maps (n, channels, height, width).")
    # The last features would be those of the first layer.
    if last.strayed is last.features:
        raise TenasError(
            "The Zen-score needs feature maps before the pooling; the last layers of this network read tokens, or what is not "
            "known to be a map."
        )
    return last.features.double()


def _noise_for(images: Tensor) -> Tensor:
    """Standard Gaussian noise of the images' shape and type, the same each time, in another direction than each image's.

    Images that were drawn with torch's seed 0 are the first noise, which would scale them, and normalisation removes scales.
    """
    generator = torch.Generator().manual_seed(0)
    while True:
        noise = torch.randn(images.shape, generator=generator, dtype=torch.float32, device="cpu").to(images)
        angles = cosine_similarity(images.flatten(1).float(), noise.flatten(1).float())
        if images[0].numel() < SEVERAL or not (angles.abs() > PARALLEL).any():
            return noise


@measuring
def zen(network: nn.Module, images: Tensor) -> float:
    """log mean_i ||f(x_i) - f(x_i + 0.01 e_i)||_F + sum over batch normalisations of log sqrt(mean over channels of variance).

    f: the features before global pooling, the last map (n, channels, height, width), or (n, height, width, channels). e: standard
    Gaussian noise, the same for every network. The second term restores the scale that batch normalisation removes: the
    variances are those of its inputs over batch and positions.
    Source: Lin et al., Zen-NAS, ICCV 2021, algorithm 1; its released code takes the L1 norm of the difference instead.
    Batch normalisation always runs in training mode here, so that these variances are the ones it divides by.
    The paper's x and weights are standard Gaussian (``normal`` of ``tenas.networks.initialise``); with other weights the
    second term holds the initialisation's scale, layer by layer. Traps: skip connections count although the paper removes
    them; every layer adds a logarithm, so it follows depth. A normalisation of a constant, as after a node without inputs, has
    no scale to restore and is left out. -inf if the features do not depend on the images.
    """
    check_batch(images)
    if not images.is_floating_point():
        raise TenasError("The Zen-score adds noise to images: give them as floats.")
    noise = _noise_for(images)
    scales: list[Tensor] = []

    def normalise(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        return batch_norm(input, None, None, weight, bias, training=True, eps=eps)

    def note(input: Tensor, *others: Any) -> Tensor:
        variances = input.double().transpose(0, 1).flatten(1).var(1, unbiased=False)
        if variances.any():
            scales.append(variances.mean().log() / 2)
        return normalise(input, *others)

    with undisturbed(network), torch.no_grad():
        # The same masks of dropout in both passes.
        devices = [images.device] if images.is_cuda and torch.cuda.is_available() else []
        with fork_rng(devices), BatchNorms(network, note):
            features = _features(network, images)
        with BatchNorms(network, normalise):
            moved = _features(network, images + ALPHA * noise)
    change = (features - moved).flatten(1).norm(dim=1).mean().item()
    scale = sum(s.item() for s in scales)
    if math.isnan(change):
        raise TenasError("The network's features are not a number for these images: they have no Zen-score.")
    return math.log(change) + scale if change > 0 else -math.inf


@measuring
def zico(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """sum over layers of log sum over weights of mean(|g|) / std(|g|), g the gradients of the batch's two halves.

    Source: Li et al., ZiCo, ICLR 2023, definition 1, with two batches, which it calls sufficient. With two, the mean over the
    (population) standard deviation of a weight is (|a| + |b|) / ||a| - |b||.
    The released code uses the deviation of g instead of |g|. Weights with equal |g| are left out, and so are layers without
    remaining weights, as there; -inf if no layer remains. Traps: a ratio with small denominators, so the few steadiest weights
    dominate a layer's sum; grows with the number of layers.
    """
    if len(images) < 2:
        check_batch(images)
        raise TenasError("ZiCo compares the gradients of two halves of a batch: it needs at least 2 images.")
    weights = weights_of(network)
    half = len(images) // 2
    with undisturbed(network), torch.enable_grad():
        first, second = (
            [g.abs().double() for g in gradients_of(batch_loss(network, images[part], labels[part]), weights)]
            for part in (slice(half), slice(half, None))
        )
    logarithms = []
    for a, b in zip(first, second, strict=True):
        differ = a != b
        if differ.any():
            logarithms.append(((a + b)[differ] / (a - b)[differ].abs()).sum().log().item())
    return sum(logarithms) if logarithms else -math.inf
