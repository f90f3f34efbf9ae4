"""Lipschitz constants of networks in evaluation mode: products of layer norms from above, gradients in a ball from
below, and the radius within which no attack can succeed.

`norm` names how perturbations of images are measured: l2 (spectral norms), frobenius (l2 too, with the coarser
Frobenius norm of each weight), linf (largest absolute row sums). BatchNorm is folded into the layer before it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparserobust.analysis.linear import row_distances, smallest_radius
from sparserobust.analysis.shapes import shapes_of
from sparserobust.attacks import margin, random_in_ball, under_attack
from sparserobust.errors import UserError
from sparserobust.models.lenet import Sequence
from sparserobust.models.normalise import Normalise
from sparserobust.models.resnet import Block, Padded, ResidualNet
from sparserobust.models.vgg import VGG

NORMS = ("l2", "frobenius", "linf")
HARMLESS = nn.ReLU | nn.Identity | nn.Flatten | nn.Dropout | nn.MaxPool2d | Padded  # none has a constant above one
Shapes = dict[nn.Module, torch.Size]  # of what goes into each convolution and linear layer, without the batch


def margin_bound(model: nn.Module, image_shape: tuple[int, int, int], norm: str = "l2") -> Tensor:
    """An upper bound (classes, classes), float64, of the Lipschitz constants of all differences of two logits: the
    product of the constants of what comes before the last layer, times |w_i - w_k| (Guo et al. 2018, lemma 3.2).
    `UserError` for a network of unknown make."""
    *before, last = _parts(model)
    shapes = input_shapes(model, image_shape)
    constant = 1.0
    for part, follower in _folded(before):
        constant *= _constant(part, follower, norm, shapes)
    if isinstance(model, ResidualNet | VGG) and norm != "linf":  # the mean over pixels, before the last layer
        features = model.blocks if isinstance(model, ResidualNet) else model.layers
        ((_, _, (_, height, width)),) = shapes_of(model, image_shape, [features])
        constant *= (height * width) ** -0.5
    return constant * row_distances(last.weight.detach().double(), norm)


def layer_norms(model: nn.Module, image_shape: tuple[int, int, int], norm: str = "l2") -> dict[str, float]:
    """Operator norm of every convolution and linear layer as it acts on its input, BatchNorm not folded."""
    shapes = input_shapes(model, image_shape)
    return {name: operator_norm(layer, layer.weight, shapes[layer], norm)
            for name, layer in model.named_modules() if layer in shapes}


@torch.no_grad()
def guaranteed_radius(model: nn.Module, images: Tensor, labels: Tensor, norm: str = "l2") -> Tensor:
    """For each image the radius (n,) within which the class provably stays `labels`: the smallest over the other
    classes of logit difference over its bound (lemma 3.1); zero for images that are misclassified."""
    bound = margin_bound(model, tuple(images.shape[1:]), norm).to(images.device)
    with under_attack(model):
        logits = model(images).double()
    return smallest_radius(logits, labels, bound)


def gradient_norms(model: nn.Module, images: Tensor, labels: Tensor, radius: float, samples: int, norm: str = "l2",
                   generator: torch.Generator | None = None) -> Tensor:
    """Norms (samples, n) of the gradient of the margin (label against the runner-up at the clean image) at random
    points of the l2 or linf ball around each image: each is at most the local Lipschitz constant. The norm is the dual
    one: l2, or for linf the sum of absolute values."""
    found = []
    with under_attack(model):
        with torch.no_grad():
            rivals = model(images).scatter(1, labels[:, None], -torch.inf).argmax(1)
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
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return {layer: taken for layer, taken, _ in shapes_of(model, image_shape, layers)}


def operator_norm(layer: nn.Conv2d | nn.Linear, weight: Tensor, shape: torch.Size, norm: str) -> float:
    """Norm of the map x -> layer(x) without bias, with `weight` for the layer's own, on inputs of this shape; for a
    convolution that of the convolution itself, zero padding included. The spectral norm of a convolution comes from
    power iteration: from below, right to six digits."""
    if norm not in NORMS:
        raise UserError(f"norm is one of {', '.join(NORMS)}, not '{norm}'")
    weight = weight.detach().double()
    ones = torch.ones(1, *shape, dtype=weight.dtype, device=weight.device)
    if norm == "linf":
        return float(_applied(layer, weight.abs(), ones).max())
    if norm == "frobenius":
        return float(_applied(layer, weight**2, ones).sum().sqrt())
    if isinstance(layer, nn.Linear):
        return float(torch.linalg.matrix_norm(weight, 2))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ones.shape, generator=generator, dtype=weight.dtype).to(weight.device)
    largest = 0.0
    with torch.enable_grad():
        for _ in range(2000):
            x = (x / x.norm()).requires_grad_(True)
            image = _applied(layer, weight, x)
            before, largest = largest, float(image.detach().norm())
            if largest == 0 or abs(largest - before) <= 1e-9 * largest:
                break
            (x,) = torch.autograd.grad(image, x, image.detach())  # A^T A x
    return largest


def _applied(layer: nn.Conv2d | nn.Linear, weight: Tensor, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight)
    return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def _parts(model: nn.Module) -> list[nn.Module]:
    """The layers and blocks of a network in the order in which an image passes them; the last is linear."""
    if isinstance(model, ResidualNet):
        return [model.first, model.stem, model.norm, nn.ReLU(), *model.blocks, model.linear]
    if isinstance(model, VGG):
        return [model.first, *model.layers, model.linear]
    if isinstance(model, Sequence):
        return list(model)
    raise UserError(f"no Lipschitz bound for {type(model).__name__}: known are linear networks, LeNets, ResNets, VGG")


def _folded(parts: list[nn.Module]) -> list[tuple[nn.Module, nn.BatchNorm2d | None]]:
    """Each part with the BatchNorm that follows it."""
    followers = [*parts[1:], None]
    return [(part, follower if isinstance(follower, nn.BatchNorm2d) else None)
            for part, follower in zip(parts, followers, strict=True) if not isinstance(part, nn.BatchNorm2d)]


def _constant(part: nn.Module, follower: nn.BatchNorm2d | None, norm: str, shapes: Shapes) -> float:
    if isinstance(part, HARMLESS):
        return 1.0
    if isinstance(part, Normalise):
        return float((1 / part.std).max())
    if isinstance(part, Block):
        branch = (_constant(part.conv1, part.norm1, norm, shapes) * _constant(part.conv2, part.norm2, norm, shapes))
        shortcut = part.shortcut
        direct = _constant(*shortcut, norm, shapes) if isinstance(shortcut, nn.Sequential) else 1.0
        return branch + direct
    weight = part.weight
    if follower is not None:
        scale = follower.weight / (follower.running_var + follower.eps).sqrt()
        weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    return operator_norm(part, weight, shapes[part], norm)
