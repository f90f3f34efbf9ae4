"""Lipschitz constants of networks in evaluation mode: products of layer norms from above, gradients in a ball from
below, and the radius within which no attack can succeed.

`norm` names how perturbations of images are measured: l2 (spectral norms), frobenius (l2 too, with the coarser
Frobenius norm of each weight), linf (largest absolute row sums). BatchNorm is folded into the layer before it.
"""

from collections.abc import Callable
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from sparserobust.analysis.linear import row_distances, smallest_radius
from sparserobust.analysis.shapes import shapes_of
from sparserobust.attacks import margin, random_in_ball, runner_up, under_attack
from sparserobust.errors import UserError
from sparserobust.models import is_noisy
from sparserobust.models.compact import Pick
from sparserobust.models.gates import GatedConv2d, acting_weight
from sparserobust.models.noise import Noise, NoisyConv2d, NoisyLinear
from sparserobust.models.normalise import Normalise
from sparserobust.models.resnet import Padded

NORMS = ("l2", "frobenius", "linf")
OWN = (GatedConv2d, Noise, NoisyConv2d, NoisyLinear, Normalise, Padded, Pick)  # this library's, each taken as a whole
HARMLESS = nn.ReLU | nn.Identity | nn.Flatten | nn.Dropout | Noise | Padded | Pick  # none has a constant above one
HARMLESS_CALLS = ("relu", "flatten", "view", "reshape")
BATCH_NORM = nn.BatchNorm1d | nn.BatchNorm2d
AVERAGES = nn.AvgPool2d | nn.AdaptiveAvgPool2d
AVERAGE_CALLS = ("avg_pool2d", "adaptive_avg_pool2d", "mean")
Shapes = dict[nn.Module, torch.Size]  # of what goes into each convolution and linear layer, without the batch


def margin_bound(model: nn.Module, image_shape: tuple[int, int, int], norm: str = "l2") -> Tensor:
    """An upper bound (classes, classes), float64, of the Lipschitz constants of all differences of two logits: the
    constant of the map from images to what the last layer reads, times |w_i - w_k| (Guo et al. 2018, lemma 3.2). It is
    a product along layers, a sum where branches are added. For all networks that torch.fx can trace; `UserError` for
    noise that is on, and for an operation whose constant is not known here."""
    if is_noisy(model):
        raise UserError("a noisy network has no Lipschitz constant: ask inside models.noise_off(model)")
    graph = _Graph(model, image_shape, norm)
    last, layer = graph.last, graph.layer(graph.last)
    if isinstance(layer, nn.Linear):
        return graph.constants[last.all_input_nodes[0]] * row_distances(layer.weight.detach().double(), norm)
    logits = graph.values[last][0]
    return graph.constants[last] * row_distances(torch.eye(len(logits), device=logits.device).double(), norm)


def layer_norms(model: nn.Module, image_shape: tuple[int, int, int], norm: str = "l2") -> dict[str, float]:
    """Operator norm of every convolution and linear layer as it acts on its input, BatchNorm not folded."""
    shapes = input_shapes(model, image_shape)
    return {name: operator_norm(layer, acting_weight(layer), shapes[layer], norm)
            for name, layer in model.named_modules() if layer in shapes}


@torch.no_grad()
def guaranteed_radius(model: nn.Module, images: Tensor, labels: Tensor, norm: str = "l2") -> Tensor:
    """For each image the radius (n,) within which the class provably stays `labels`: the smallest over the other
    classes of logit difference over its bound (lemma 3.1); zero for images that are misclassified."""
    channels, height, width = images.shape[1:]
    bound = margin_bound(model, (channels, height, width), norm).to(images.device)
    with under_attack(model):
        logits = model(images).double()
    return smallest_radius(logits, labels, bound)


def gradient_norms(model: nn.Module, images: Tensor, labels: Tensor, radius: float, samples: int, norm: str = "l2",
                   generator: torch.Generator | None = None) -> Tensor:
    """Norms (samples, n) of the gradient of the margin (label against the runner-up at the clean image) at random
    points of the l2 or linf ball around each image: each is at most the local Lipschitz constant. The norm is the dual
    one: l2, or for linf the sum of absolute values."""
    _check(norm)
    found = []
    with under_attack(model):
        with torch.no_grad():
            rivals = runner_up(model(images), labels)
        for _ in range(samples):
            x = (images + random_in_ball(images, radius, norm, generator)).requires_grad_(True)
            logits = model(x)
            gap = logits.gather(1, labels[:, None]) - logits.gather(1, rivals[:, None])
            (gradient,) = torch.autograd.grad(gap.sum(), x)
            found.append(gradient.flatten(1).norm(p=1 if norm == "linf" else 2, dim=1))
    return torch.stack(found)


def margins(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Logit of the label minus the highest other one, (n,)."""
    with torch.no_grad(), under_attack(model):
        return margin(model(images).float(), labels)


def input_shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> Shapes:
    """Shape of what goes into each convolution and linear layer, without the batch."""
    return {layer: taken for layer, taken, _ in shapes_of(model, image_shape)}


def operator_norm(layer: nn.Conv2d | nn.Linear, weight: Tensor, shape: torch.Size, norm: str) -> float:
    """Norm of the map x -> layer(x) without bias, with `weight` for the layer's own, on inputs of this shape; for a
    convolution that of the convolution itself, zero padding included. The spectral norm of a convolution comes from
    below, right to six digits."""
    _check(norm)
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise UserError(f"no norm is known here of a convolution with padding_mode '{layer.padding_mode}'")
    weight = weight.detach().double()
    ones = torch.ones(1, *shape, dtype=weight.dtype, device=weight.device)
    if norm == "linf":
        return float(_applied(layer, weight.abs(), ones).max())
    if norm == "frobenius":
        return float(_applied(layer, weight**2, ones).sum().sqrt())
    if isinstance(layer, nn.Linear):
        gram = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
        return float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt())  # many times faster than an SVD
    return _largest_singular_value(layer, weight, ones.shape)


def _largest_singular_value(layer: nn.Conv2d, weight: Tensor, shape: torch.Size) -> float:
    """By Lanczos' method on A^T A, in a tenth of the steps of power iteration: from below, until what it leaves open is
    a millionth."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=weight.dtype).to(weight.device)
    basis = x.flatten()[None] / x.norm()
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        x = basis[-1].view(shape).requires_grad_(True)
        with torch.enable_grad():
            image = _applied(layer, weight, x)
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


def _applied(layer: nn.Conv2d | nn.Linear, weight: Tensor, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight)
    return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def _check(norm: str) -> None:
    if norm not in NORMS:
        raise UserError(f"norm is one of {', '.join(NORMS)}, not '{norm}'")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        return isinstance(module, OWN) or super().is_leaf_module(module, name)


class _Graph:
    """A network in eval mode as a graph of operations (nodes): for each what it computes from a black image (`values`),
    and an upper bound of the Lipschitz constant of the map from the image to that (`constants`)."""

    def __init__(self, model: nn.Module, image_shape: tuple[int, int, int], norm: str):
        self.model, self.norm = model, norm
        self.constants: dict[fx.Node, float] = {}
        with torch.no_grad(), under_attack(model):
            try:
                graph = _Tracer().trace(model)
            except (ValueError, TypeError, RuntimeError) as error:  # torch.fx raises one or the other
                raise UserError(f"torch.fx cannot trace {type(model).__name__}: {str(error).splitlines()[0]}") from None
            run = fx.Interpreter(fx.GraphModule(model, graph), garbage_collect_values=False)
            run.run(torch.zeros(1, *image_shape).to(next(model.parameters())))
            self.values: dict[fx.Node, Any] = run.env
            *nodes, output = graph.nodes
            for node in nodes:
                self.constants[node] = self._constant(node)
        self.last = output.args[0]
        if not isinstance(self.last, fx.Node):
            raise UserError(f"{type(model).__name__} does not return logits only")

    def layer(self, node: fx.Node) -> nn.Module | None:
        """The layer that a node calls; None if it calls a function or a method."""
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _constant(self, node: fx.Node) -> float:
        if node.op == "placeholder":
            return 1.0
        layer = self.layer(node)
        args: tuple[Any, ...] = node.args
        call = type(layer).__name__ if layer is not None else getattr(node.target, "__name__", str(node.target))
        sources = [source for source in node.all_input_nodes if self.constants[source]]
        if not sources or call == "size" or (call, *args[1:]) == ("getattr", "shape"):
            return 0.0  # the same for all images
        if call in ("add", "sub") and not node.kwargs:
            return sum(self._broadcast(source, node) for source in args if source in sources)
        if call == "cat":
            found = [self.constants[source] for source in args[0]]
            return max(found) if self.norm == "linf" else sum(c**2 for c in found) ** 0.5
        if call in ("mul", "truediv") and not node.kwargs:
            moving, fixed = reversed(args) if call == "mul" and args[1] in sources else args
            if moving in sources and fixed not in sources:
                scale = self.values.get(fixed, fixed)
                return self._broadcast(moving, node) * _largest(scale if call == "mul" else 1 / scale)
        elif len(sources) == 1 and (factor := self._factor(node, layer, call, sources[0])) is not None:
            return factor * self.constants[sources[0]]
        raise UserError(f"no Lipschitz constant is known here of {call}")

    def _broadcast(self, source: fx.Node, node: fx.Node) -> float:
        """The constant of `source` once its numbers are repeated to the shape of `node`."""
        copies = self.values[node].numel() / self.values[source].numel()
        return self.constants[source] * (1.0 if self.norm == "linf" else copies**0.5)

    def _factor(self, node: fx.Node, layer: nn.Module | None, call: str, source: fx.Node) -> float | None:
        """The constant of one operation that reads `source`; None if it is not known."""
        args: tuple[Any, ...] = fx.node.map_arg(node.args[1:], self.values.get)
        options: dict[str, Any] = fx.node.map_arg(node.kwargs, self.values.get)
        silent = call == "dropout" and options.get("training") is False
        if silent or isinstance(layer, HARMLESS) or call in HARMLESS_CALLS:
            return 1.0
        if isinstance(layer, Normalise):
            return _largest(1 / layer.std)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            norm = self._norm_after(node)
            scale = 1.0 if norm is None else _scale(norm).view(-1, *[1] * (layer.weight.dim() - 1))
            return operator_norm(layer, acting_weight(layer) * scale, self.values[source].shape[1:], self.norm)
        if isinstance(layer, BATCH_NORM):
            return 1.0 if self._norm_after(source) is layer else _largest(_scale(layer))
        if call == "max_pool2d" or isinstance(layer, nn.MaxPool2d):
            pool = layer if isinstance(layer, nn.MaxPool2d) else nn.MaxPool2d(*args, **options)
            return 1.0 if self.norm == "linf" else _windows(pool) ** 0.5
        if call in AVERAGE_CALLS or isinstance(layer, AVERAGES):
            average: Any = layer or (getattr(Tensor, call) if node.op == "call_method" else node.target)
            return self._averaging(lambda x: average(x, *args, **options), self.values[source])
        return None

    def _norm_after(self, node: fx.Node) -> BATCH_NORM | None:
        """The BatchNorm that is to be folded into this convolution or linear layer: no one else reads the layer."""
        layer, readers = self.layer(node), [self.layer(user) for user in node.users]
        by_channel = isinstance(layer, nn.Conv2d | nn.Linear) and self.values[node].dim() == layer.weight.dim()
        return readers[0] if by_channel and len(readers) == 1 and isinstance(readers[0], BATCH_NORM) else None

    def _averaging(self, average: Callable[[Tensor], Tensor], like: Tensor) -> float | None:
        """Largest row sum of a linear map without negative entries; in l2, where that is an upper bound, the square
        root of it times the largest column sum (Schur's test). None if the map mixes images."""
        x = torch.zeros(2, *like.shape[1:], dtype=torch.float64, device=like.device)
        x[0] = 1
        with torch.enable_grad():
            rows = average(x.requires_grad_(True))
            (columns,) = torch.autograd.grad(rows.sum(), x)
        if rows.shape[:1] != (2,) or rows[1].any():
            return None
        return float(rows.max()) if self.norm == "linf" else float((rows.max() * columns.max()).sqrt())


def _scale(norm: BATCH_NORM) -> Tensor:
    """By what each channel (c,) is multiplied in evaluation mode."""
    if norm.running_var is None:
        raise UserError("no Lipschitz constant is known here of BatchNorm without running statistics")
    return (1.0 if norm.weight is None else norm.weight) / (norm.running_var + norm.eps).sqrt()


def _windows(pool: nn.MaxPool2d) -> int:
    """In how many windows one pixel can lie: it can be the largest, and move, in all of them."""
    sizes = [(v, v) if isinstance(v, int) else v for v in (pool.kernel_size, pool.stride, pool.dilation)]
    return prod(-(-k * gcd(s, d) // s) for k, s, d in zip(*sizes, strict=True))


def _largest(value: Tensor | float) -> float:
    return float(value.abs().max()) if isinstance(value, Tensor) else abs(value)
