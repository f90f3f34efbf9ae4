"""VGG-16 with batch norm for small images (Simonyan & Zisserman 2015, configuration D): with one linear layer, and as
Zagoruyko regularised it for CIFAR-10."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparserobust.models.gates import add_gates
from sparserobust.models.normalise import NormalisedModel
from sparserobust.models.preact_resnet import convolution
from sparserobust.models.resnet import classifier, cost_of_layers
from sparserobust.settings import settings

GROUPS = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # width in units of the first, and number of convolutions
DROPOUT = (0.3, 0.4, 0.4, 0.4, 0.4)  # VGGLike: rate between the convolutions of each group


@settings
class VGG16(NormalisedModel, kind="vgg16"):
    """Thirteen convolutions of widths w to 8w in five groups, each group followed by pooling. `gated`: all convolutions
    but the first have gates, as released by Feng et al. 2025 (Asia-Leee/TSCNC); weights begin as they do without."""

    width: int = 64
    gated: bool = False

    @property
    def cost(self) -> float:
        return cost_of_layers(9, self.width)  # 13 layers cost as 9 of a ResNet, as maps shrink sooner

    def build(self, image_shape, classes):
        net = VGG(self.first_layer(image_shape[0]), image_shape[0], classes, self.width)
        if self.gated:
            for layer, _, _ in net.inner_channels()[1:]:
                add_gates(layer)
        return net


@settings
class VGGLike(NormalisedModel, kind="vgg_like"):
    """The same convolutions, but with biases, dropout between them, and two linear layers (S. Zagoruyko 2015, "92.45%
    on CIFAR-10 in Torch"): 14,991,946 parameters for 3x32x32 pixels and ten classes. `dropout` false: none anywhere."""

    width: int = 64
    dropout: bool = True

    @property
    def cost(self) -> float:
        return cost_of_layers(12 if self.dropout else 9, self.width)  # measured: dropout takes a third more on a CPU

    def build(self, image_shape, classes):
        return VGGWithDropout(self.first_layer(image_shape[0]), image_shape, classes, self.width, self.dropout)


class VGG(nn.Module):
    """Images (n, c, h, w) in [0, 1] to logits (n, classes): first layer, five groups of conv, norm, ReLU, each with
    pooling at its end, global mean, linear."""

    def __init__(self, first: nn.Module, channels: int, classes: int, width: int):
        super().__init__()
        self.first = first
        self.layers = nn.Sequential(*groups(channels, width))
        self.linear = classifier(8 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.layers(self.first(images)).mean((2, 3)))

    def inner_channels(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d | nn.Linear]]:
        """Writer, norm and reader of the channels of each convolution: a column of the linear layer is a channel."""
        convolutions = [layer for layer in self.layers if isinstance(layer, nn.Conv2d)]
        norms = [layer for layer in self.layers if isinstance(layer, nn.BatchNorm2d)]
        return list(zip(convolutions, norms, [*convolutions[1:], self.linear], strict=True))


class VGGWithDropout(nn.Module):
    """Images (n, c, h, w) in [0, 1] to logits (n, classes): first layer, five groups as in `VGG`, then all that is left
    of the map (one pixel for images up to 32x32), dropout, linear, norm, ReLU, dropout, linear. Convolutions have
    biases, starting at zero; linear layers start as PyTorch has them, which is as Torch had them."""

    def __init__(self, first: nn.Module, image_shape: tuple[int, int, int], classes: int, width: int, dropout: bool):
        super().__init__()
        features, pixels = 8 * width, math.prod(math.ceil(side / 32) for side in image_shape[1:])
        self.first = first
        self.layers = nn.Sequential(
            *groups(image_shape[0], width, epsilon=1e-3, dropout=[rate * dropout for rate in DROPOUT]), nn.Flatten(),
            nn.Dropout(0.5 * dropout), nn.Linear(features * pixels, features), nn.BatchNorm1d(features), nn.ReLU(),
            nn.Dropout(0.5 * dropout))
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
        self.linear = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.layers(self.first(images)))


def groups(channels: int, width: int, epsilon: float = 1e-5, dropout: Sequence[float] = ()) -> list[nn.Module]:
    """The layers of five groups of conv, norm, ReLU, each with pooling at its end: (n, channels, h, w) to
    (n, 8 width, h', w'). `epsilon` is that of the norms; `dropout`, a rate for each group, comes after all its
    convolutions but the last."""
    layers: list[nn.Module] = []
    for group, (times, convolutions) in enumerate(GROUPS):
        for number in range(convolutions):
            if dropout and number:
                layers.append(nn.Dropout(dropout[group]))
            out = times * width
            layers += [convolution(channels, out, 3), nn.BatchNorm2d(out, epsilon), nn.ReLU()]
            channels = out
        layers.append(nn.MaxPool2d(2, ceil_mode=True))  # rounded up: 8x8 images shrink to one pixel, not to none
    return layers
