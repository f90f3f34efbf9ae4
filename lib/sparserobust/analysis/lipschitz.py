"""Lipschitz constants of networks in evaluation mode: products of layer norms from above, gradients in a ball from
below, and the radius within which no attack can succeed.

`norm` names how perturbations of images are measured: l2 (spectral norms), frobenius (l2 too, with the coarser
Frobenius norm of each weight), linf (largest absolute row sums). BatchNorm is folded into the layer before it.
"""

import re
from collections.abc import Callable
from functools import partial
from math import gcd, hypot, pi, prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from sparserobust import inputs
from sparserobust.analysis.linear import row_distances, smallest_radius
from sparserobust.analysis.shapes import LAYERS, shapes_of
from sparserobust.analysis.tracing import ROUNDED, alike, called, linear_layer, run, traced, ulp
from sparserobust.answers import NotFinite, finite
from sparserobust.attacks import margin, random_in_ball, runner_up, under_attack
from sparserobust.errors import UserError, quoted
from sparserobust.models import is_noisy
from sparserobust.models.gates import acting_weight

NORMS = ("l2", "frobenius", "linf")
# Operations of ATen by their constants. First the functions of single numbers: largest absolute derivative, rounded up.
SLOPES: dict[str, float | Callable[..., float]] = {
    "relu": 1, "hardtanh": 1, "clamp": 1, "clamp_min": 1, "clamp_max": 1, "abs": 1, "neg": 1, "tanh": 1, "sin": 1,
    "cos": 1, "atan": 1, "asinh": 1, "softshrink": 1, "log_sigmoid_forward": 1, "sigmoid": 1 / 4, "hardsigmoid": 1 / 6,
    "hardswish": 1.5, "gelu": 1.1291, "silu": 1.0999, "mish": 1.0886, "erf": 2 / pi**0.5,
    "leaky_relu": lambda slope=0.01: max(1.0, abs(slope)),
    "prelu_kernel": lambda slopes: max(1.0, _largest(slopes)),
    "elu": lambda alpha=1, scale=1, inner=1:
        max(abs(scale), abs(alpha * scale * inner)) if inner >= 0 else torch.inf,  # else it grows as exp does
    "celu": lambda alpha=1: 1 if alpha > 0 else torch.inf,
    "softplus": lambda beta=1, threshold=20: 1 if beta > 0 and threshold >= 20 else torch.inf,  # else it jumps
    "threshold": lambda threshold, value: 1 if threshold == value else torch.inf,
    "softmax": 1 / 2,  # of vectors, by the row sums of its Jacobian, which is symmetric
}
# Each number goes to one place at most; or the largest of a group does, also in its smooth form, whose derivatives are
# not negative and sum to one.
MOVES = {"alias", "amax", "amin", "clone", "detach", "flip", "lift_fresh", "logsumexp", "max", "min", "permute",
         "pixel_shuffle", "pixel_unshuffle", "roll", "select", "slice", "squeeze", "t", "to_copy", "transpose",
         "unsafe_view", "unsqueeze", "view"}
PARTS = {"split", "split_with_sizes", "unbind", "unsafe_split"}  # whose results are lists
# Linear maps without negative entries, to which a constant may be added.
WEIGHTED = {"adaptive_avg_pool2d", "adaptive_avg_pool3d", "avg_pool2d", "avg_pool3d", "constant_pad_nd", "cumsum",
            "diagonal", "expand", "gather", "im2col", "index", "index_select", "mean", "reflection_pad1d",
            "reflection_pad2d", "reflection_pad3d", "repeat", "replication_pad1d", "replication_pad2d",
            "replication_pad3d", "sum", "tril", "triu", "unfold", "upsample_bilinear2d", "upsample_linear1d",
            "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_trilinear3d"}
PRODUCTS = {"addmm", "baddbmm", "bmm", "mm", "mv"}
Shapes = dict[nn.Module, torch.Size]  # of what goes into each convolution and linear layer, without the batch


def margin_bound(model: nn.Module, image_shape: tuple[int, int, int], norm: str = "l2") -> Tensor:
    """An upper bound (classes, classes), float64, of the Lipschitz constants of all differences of two logits: the
    constant of the map from images to what the last layer reads, times |w_i - w_k| (Guo et al. 2018, lemma 3.2). It is
    a product along layers, a sum where branches are added. Hooks, parametrisations and whatever
    else acts on the way is bounded, too. `UserError` for noise that is on, for an operation whose constant is not known
    here, and for a network that is no fixed function of one image or branches on its numbers."""
    return _graph_and_bound(inputs.network(model), image_shape, norm)[1]


@torch.inference_mode(False)
def _graph_and_bound(model: nn.Module, image_shape: tuple[int, int, int], norm: str,
                     dtype: torch.dtype | None = None) -> tuple[fx.Node, Tensor]:
    """The logits as a node of the network's graph, for images of this type (default: the model's), and `margin_bound`.
    """
    if is_noisy(model):
        raise UserError("a noisy network has no Lipschitz constant: ask inside models.noise_off(model)")
    _check(norm)
    logits: Any = traced(model, image_shape, dtype)
    last, rounding, spread, place = logits, *(logits.meta[key] for key in ("rounding", "spread", "ulp"))
    if called(last) == "log_softmax" and last.args[1] in (1, -1):  # which leaves differences as they are
        last = last.args[0]
    read, rows, _ = linear_layer(last) or (last, torch.eye(last.meta["shape"][1], device=last.meta["device"]), None)
    bound = _constant_at(read, norm) * row_distances(rows.double(), norm)
    others = bound[~torch.eye(len(bound), dtype=torch.bool, device=bound.device)]
    moved = 0.001 * float(others.min())  # what a move by 1/1000 of the range may do
    if rounding > max(0.01 * spread, moved, place):
        raise UserError(f"{type(model).__name__} rounds so much on its way that nothing about it could be proved")
    return logits, bound


@torch.inference_mode(False)
def layer_norms(model: nn.Module, image_shape: tuple[int, int, int], norm: str = "l2") -> dict[str, float]:
    """Operator norm of every convolution and linear layer, called as such, as it acts on its input, BatchNorm not
    folded."""
    model = inputs.network(model)
    shapes: Any = input_shapes(model, image_shape)
    return {name: operator_norm(layer, acting_weight(layer), shapes[layer], norm)
            for name, layer in model.named_modules() if layer in shapes}


def guaranteed_radius(model: nn.Module, images: Tensor, labels: Tensor, norm: str = "l2") -> Tensor:
    """For each image the radius (n,) within which the class provably stays `labels`: the smallest over the other
    classes of logit difference over its bound (lemma 3.1); zero for images that are misclassified. Of each difference
    is left out what rounding may make of it. `UserError` as from `margin_bound`, and for a network that answers to all
    images together otherwise than to two."""
    return guarantee(model, images, labels, norm)[0]


@torch.inference_mode(False)
@torch.no_grad()
def guarantee(model: nn.Module, images: Tensor, labels: Tensor, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """`guaranteed_radius` (n,) and what it comes from, all float64: the logits (n, classes) and `margin_bound`."""
    model = inputs.network(model)
    inputs.check(images, labels)
    channels, height, width = images.shape[1:]
    with inputs.watched(model, labels), under_attack(model):
        logits = finite(model(images.clone()))
    last, bound = _graph_and_bound(model, (channels, height, width), norm, images.dtype)
    for i in range(0, len(images), 2):  # the proof is about two images, as many as the graph has
        pair = torch.arange(i, i + 2).clamp_max(len(images) - 1)
        if not alike(logits[pair], run(last, images[pair]), 1e-2, last.meta["rounding"]):
            raise UserError(f"{type(model).__name__} answers to {len(images)} images together otherwise than to two of "
                            "them: it is no function of one image, of which something could be proved")
    rounding = ROUNDED * (ulp(logits).double() / 2).clamp_min(last.meta["rounding"])
    logits, bound = logits.double(), bound.to(logits.device)
    return smallest_radius(logits, labels.long(), bound, rounding), logits, bound


def gradient_norms(model: nn.Module, images: Tensor, labels: Tensor, radius: float, samples: int, norm: str = "l2",
                   generator: torch.Generator | None = None) -> Tensor:
    """Norms (samples, n) of the gradient of the margin (label against the runner-up at the clean image) at random
    points of the l2 or linf ball around each image: each is at most the local Lipschitz constant. The norm is the dual
    one: l2, or for linf the sum of absolute values."""
    _check(norm)
    model = inputs.network(model)
    inputs.check(images, labels)
    with torch.inference_mode(False), torch.enable_grad(), inputs.watched(model, labels), under_attack(model):
        images, labels, found = images.clone(), labels.clone().long(), []
        with torch.no_grad():
            rivals = runner_up(model(images), labels)
        for _ in range(samples):
            x = (images + random_in_ball(images, radius, norm, generator)).requires_grad_(True)
            logits = model(x)
            gap = logits.gather(1, labels[:, None]) - logits.gather(1, rivals[:, None])
            if not gap.requires_grad:
                raise UserError(f"{type(model).__name__} has no gradients: its answers are cut off from the image")
            (gradient,) = torch.autograd.grad(gap.sum(), x)
            if not gradient.isfinite().all():
                raise NotFinite(f"{type(model).__name__} has a gradient that is not finite, so that it tells no slope")
            found.append(gradient.flatten(1).norm(p=1 if norm == "linf" else 2, dim=1))
    return torch.stack(found)


def margins(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Logit of the label minus the highest other one, (n,). `UserError` for what are no images (n, c, h, w), no labels
    (n,), or no network that takes them."""
    model = inputs.network(model)
    inputs.check(images, labels)
    with torch.no_grad(), inputs.watched(model, labels), under_attack(model):
        return margin(finite(model(images).float()), labels.long())


def input_shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> Shapes:
    """Shape of what goes into each convolution and linear layer, without the batch. `UserError` for a layer that is
    called with several: it has a norm for each."""
    shapes: Shapes = {}
    for layer, taken, _ in shapes_of(model, image_shape):
        if shapes.setdefault(layer, taken) != taken:
            raise UserError(f"a layer of {type(model).__name__} is called with inputs of shape {tuple(shapes[layer])} "
                            f"and {tuple(taken)}: it has several norms, and none is given for it")
    return shapes


def operator_norm(layer: LAYERS, weight: Tensor, shape: torch.Size, norm: str) -> float:
    """Norm of the map x -> layer(x) without bias, with `weight` for the layer's own, on inputs of this shape; for a
    convolution that of the convolution itself, zero padding included. The spectral norm of a convolution comes from
    below, right to six digits."""
    if not isinstance(layer, nn.Linear) and layer.padding_mode != "zeros":
        raise UserError(f"no norm is known here of a convolution with padding_mode '{layer.padding_mode}'")
    if isinstance(layer, nn.Linear) and norm == "l2":
        return _matrix_norm(weight, norm)
    return _norm_of(partial(_applied, layer), weight, shape, norm)


def _norm_of(apply: Callable[[Tensor, Tensor], Tensor], weight: Tensor, shape: torch.Size, norm: str) -> float:
    """Norm of the map x -> apply(weight, x) on inputs of this shape, in whose matrix stand single weights and zeros."""
    _check(norm)
    weight = _finite(weight)
    ones = torch.ones(1, *shape, dtype=weight.dtype, device=weight.device)
    if norm == "linf":
        return float(apply(weight.abs(), ones).max())
    if norm == "frobenius":
        return float(apply(weight**2, ones).sum().sqrt())
    return _largest_singular_value(partial(apply, weight), ones)


def _matrix_norm(matrix: Tensor, norm: str) -> float:
    """The largest norm of matrices (..., out, in)."""
    matrix = _finite(matrix)
    if norm == "linf":
        return float(matrix.abs().sum(-1).max())
    if norm == "frobenius":
        return float((matrix**2).sum((-2, -1)).sqrt().max())
    gram = matrix @ matrix.mT if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT @ matrix
    return float(torch.linalg.eigvalsh(gram)[..., -1].max().clamp_min(0).sqrt())  # many times faster than an SVD


def _finite(weight: Tensor) -> Tensor:
    """The same in float64, without gradient; `UserError` if a number of it is NaN or infinite, or complex."""
    if weight.is_complex():
        raise UserError("no norm is known of weights that are complex")
    if not weight.isfinite().all():
        raise UserError("no norm is known of weights that are not finite: look at the network's weights")
    return weight.detach().double()


def _largest_singular_value(apply: Callable[[Tensor], Tensor], like: Tensor) -> float:
    """Of a linear map of tensors shaped as `like`. By Lanczos' method on A^T A, in a tenth of the steps of power
    iteration: from below, until what it leaves open is a millionth."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
    basis = x.flatten()[None] / x.norm()
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        x = basis[-1].view(like.shape).requires_grad_(True)
        with torch.enable_grad():
            image = apply(x)
            (x,) = torch.autograd.grad(image, x, image.detach())  # A^T A x
        x = x.flatten()
        diagonal.append(float(x @ basis[-1]))
        for _ in range(2):  # once leaves what rounding left
            x = x - basis.T @ (basis @ x)
        tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        tridiagonal += torch.diag(torch.tensor(beside, dtype=torch.float64), 1) if beside else 0
        values, vectors = torch.linalg.eigh(tridiagonal, UPLO="U")
        length = float(x.norm())
        if length * abs(float(vectors[-1, -1])) <= 1e-6 * abs(float(values[-1])) or len(basis) == x.numel():
            return max(float(values[-1]), 0.0) ** 0.5
        beside.append(length)
        basis = torch.cat([basis, x[None] / length])


def _applied(layer: Any, weight: Tensor, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight)
    function = getattr(functional, f"conv{'_transpose' if layer.transposed else ''}{weight.dim() - 2}d")
    last = (layer.output_padding, layer.groups, layer.dilation) if layer.transposed else (layer.dilation, layer.groups)
    return function(x, weight, None, layer.stride, layer.padding, *last)


def _check(norm: str) -> None:
    if norm not in NORMS:
        raise UserError(f"norm is one of {', '.join(NORMS)}, not '{norm}'")


def _constant_at(last: fx.Node, norm: str) -> float:
    """An upper bound of the Lipschitz constant of the map from two images, and so from one, to what a node computes."""
    constants: dict[fx.Node, float] = {}
    for node in last.graph.nodes:
        try:
            constants[node] = 1.0 if node.op == "placeholder" else _constant(node, constants, norm)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of an operation that is called as no one expected
            raise UserError(f"no Lipschitz constant is known here of {called(node)}, called like this: "
                            f"{quoted(str(error))}") from error
        if node is last:
            break
    return min(constants[last], torch.finfo(torch.float64).max)  # which leaves zero times it zero


def _constant(node: fx.Node, constants: dict[fx.Node, float], norm: str) -> float:
    args: Any = node.args
    options: dict[str, Any] = node.kwargs
    call = called(node)
    nodes = [a for a in tree_leaves((args, node.kwargs)) if isinstance(a, fx.Node)]
    if not any(constants[a] for a in nodes):
        return 0.0  # the same for all images
    if node.meta["dtype"] not in (torch.float32, torch.float64):
        raise UserError(f"no Lipschitz constant is known here of {call} to {node.meta['dtype']}")
    if call in ("add", "sub", "rsub"):
        alpha = abs(options.get("alpha", args[2] if len(args) > 2 else 1))
        scales = (alpha, 1) if call == "rsub" else (1, alpha)
        return sum(scale * constants[a] * _copies(a, node, norm) for a, scale in zip(args, scales, strict=False)
                   if isinstance(a, fx.Node))
    if call in ("cat", "stack", "maximum", "minimum"):
        each = [constants[a] * (1 if call in ("cat", "stack") else _copies(a, node, norm)) for a in nodes]
        return max(each) if norm == "linf" else hypot(*each)
    if len(nodes) == 1 and 0 <= (factor := _factor(node, call, nodes[0], norm)) < torch.inf:
        return factor * constants[nodes[0]]
    raise UserError(f"no Lipschitz constant is known here of {call}")


def _factor(node: fx.Node, call: str, source: fx.Node, norm: str) -> float:
    """The constant of an operation that reads `source` once and no other node; infinite if it is not known."""
    args: Any = node.args
    if call == "mul":
        return _copies(source, node, norm) * _largest(args[1] if args[0] is source else args[0])
    if call in PRODUCTS:
        return _product(node, call, source, norm)
    if args[0] is not source:
        return torch.inf
    if call == "div" and not node.kwargs:
        return _copies(source, node, norm) * _largest(1 / args[1])
    if call in SLOPES:
        slope = SLOPES[call]
        return _copies(source, node, norm) * (slope(*args[1:]) if callable(slope) else slope)
    if call in MOVES or call in PARTS or (call == "getitem" and (args[1] == 0 or called(source) in PARTS)):
        return 1.0
    if call in WEIGHTED:
        target: Any = node.target
        return _weighted(lambda x: target(x, *args[1:], **node.kwargs), source, norm)
    if call == "log_softmax":  # its Jacobian is I - 1 p^T, p the softmax: as long as 1 p^T is, which is a projection
        return 2.0 if norm == "linf" else source.meta["shape"][args[1]] ** 0.5
    if call == "upsample_bicubic2d":
        return _bicubic(node, source, norm)
    if call == "convolution":
        weight, _, *options = args[1:]
        follower = _norm_after(node)
        scale = 1.0 if follower is None else _scale(follower).view(-1, *[1] * (weight.dim() - 1))
        return _norm_of(partial(_convolved, options), weight * scale, source.meta["shape"][1:], norm)
    if call == "batch_norm":
        return 1.0 if _norm_after(source) is node else _largest(_scale(node))
    if found := re.fullmatch(r"max_pool(\d)d(_with_indices)?", call):
        return 1.0 if norm == "linf" else _windows(int(found[1]), *args[1:5]) ** 0.5
    if found := re.fullmatch(r"adaptive_max_pool(\d)d", call):
        axes = int(found[1])  # the last ones: there may be no images beside each other
        sizes = zip(source.meta["shape"][-axes:], node.meta["shape"][-axes:], strict=True)
        return 1.0 if norm == "linf" else prod(1 if n % m == 0 else -(-m // n) + 1 for n, m in sizes) ** 0.5
    return torch.inf


def _product(node: fx.Node, call: str, source: fx.Node, norm: str) -> float:
    """`_factor` of a product of matrices, one of which does not move."""
    args: Any = node.args
    left, right = args[1:3] if call in ("addmm", "baddbmm") else args
    scale: Any = node.kwargs.get("alpha", 1)
    if left is source:
        matrix = right.mT if right.dim() > 1 else right[None]
    elif right is source:
        matrix = left
    else:
        return torch.inf
    if linear_layer(node) and (follower := _norm_after(node)):
        matrix = matrix * _scale(follower)[:, None]
    return abs(scale) * _matrix_norm(matrix, norm)


def _copies(source: fx.Node, node: fx.Node, norm: str) -> float:
    """The constant of repeating the numbers of `source` to the shape of `node`."""
    return 1.0 if norm == "linf" else (node.meta["shape"].numel() / source.meta["shape"].numel()) ** 0.5


def _norm_after(node: fx.Node) -> fx.Node | None:
    """The BatchNorm that is to be folded into this linear layer or convolution, which is not a transposed one: no one
    else reads the layer."""
    if linear_layer(node) or (called(node) == "convolution" and not node.args[6]):
        readers = list(node.users)
        if len(readers) == 1 and called(readers[0]) == "batch_norm" and readers[0].args[0] is node:
            return readers[0]
    return None


def _scale(norm: fx.Node) -> Tensor:
    """By what a BatchNorm multiplies each channel (c,) in evaluation mode."""
    args: Any = norm.args
    _, weight, _, _, variance, training, _, eps = args
    if training or variance is None:
        raise UserError("no Lipschitz constant is known here of a norm without running statistics")
    return (1.0 if weight is None else weight) / (variance + eps).sqrt()


def _weighted(apply: Callable[[Tensor], Tensor], source: fx.Node, norm: str) -> float:
    """Of a linear map without negative entries, to which a constant may be added: its largest row sum; in l2, where
    that is an upper bound, the square root of it times the largest column sum (Schur's test). Infinite where negative
    sums show that there are negative entries after all."""
    x = torch.ones(source.meta["shape"], dtype=torch.float64, device=source.meta["device"])
    with torch.enable_grad():
        rows = apply(x.requires_grad_(True).clone()) - apply(torch.zeros_like(x))  # a copy: it may write over it
        (columns,) = torch.autograd.grad(rows.sum(), x)
    rows = rows.detach()
    if not (rows.min() >= 0 and columns.min() >= 0):
        return torch.inf
    return float(rows.max()) if norm == "linf" else float((rows.max() * columns.max()).sqrt())


def _bicubic(node: fx.Node, source: fx.Node, norm: str) -> float:
    """Of an enlargement (n, c, h, w), which is a matrix on the rows times one on the columns; weights may be negative.
    Those of each output sum to one, so that along one axis nothing happens to what is constant along it."""
    target: Any = node.target
    height, width = source.meta["shape"][2:]
    rows, columns = (torch.eye(n, dtype=torch.float64, device=source.meta["device"]) for n in (height, width))
    rows = target(rows[:, None, :, None].expand(-1, 1, -1, width), *node.args[1:])[:, 0, :, 0]
    columns = target(columns[:, None, None].expand(-1, 1, height, -1), *node.args[1:])[:, 0, 0]
    norm = "linf" if norm == "linf" else "l2"
    return _matrix_norm(rows.T, norm) * _matrix_norm(columns.T, norm)


def _convolved(options: list, weight: Tensor, x: Tensor) -> Tensor:
    return torch.convolution(x, weight, None, *options)


def _windows(axes: int, size: list[int], stride: list[int] | None = None, padding: Any = 0, dilation: Any = 1) -> int:
    """In how many windows of a max-pooling one pixel can lie: it can be the largest, and move, in all of them. One
    number alone, or in a list, is that of each of the `axes`."""
    given = [[v] if isinstance(v, int) else list(v) for v in (size, stride or size, dilation)]
    each = [v * axes if len(v) == 1 else v for v in given]
    return prod(-(-k * gcd(s, d) // s) for k, s, d in zip(*each, strict=True))


def _largest(value: Tensor | float) -> float:
    return float(value.double().abs().max()) if isinstance(value, Tensor) else abs(value)
