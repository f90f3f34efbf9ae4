"""Residual networks with the activation after the addition (He et al. 2016): CIFAR ResNets, as released by He, Rakin &
Fan (2019; elliothe/CVPR_2019_PNI), and ResNet-18 for small images."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional

from sparserobust.models.normalise import NormalisedModel
from sparserobust.models.preact_resnet import convolution
from sparserobust.settings import settings


@settings
class ResNet(NormalisedModel, kind="resnet"):
    """Depth 6n+2, widths w, 2w, 4w, shortcuts without parameters."""

    depth: int = 20
    width: int = 16

    def check(self):
        super().check()
        self.require(self.depth >= 8 and self.depth % 6 == 2, f"depth must be 6n+2 (8, 14, 20, ...), not {self.depth}")

    @property
    def cost(self) -> float:
        return cost_of_layers(self.depth - 2, self.width)

    def build(self, image_shape, classes):
        widths = [self.width * 2**stage for stage in range(3)]
        return ResidualNet(self.first_layer(image_shape[0]), image_shape[0], classes, widths, (self.depth - 2) // 6,
                           Padded)


@settings
class ResNet18(NormalisedModel, kind="resnet18"):
    """Widths w, 2w, 4w, 8w, two blocks each, shortcuts by projection; 3x3 stem and no pooling, as images are small."""

    width: int = 64

    @property
    def cost(self) -> float:
        return cost_of_layers(16, self.width)

    def build(self, image_shape, classes):
        widths = [self.width * 2**stage for stage in range(4)]
        return ResidualNet(self.first_layer(image_shape[0]), image_shape[0], classes, widths, 2, projection)


class ResidualNet(nn.Module):
    """Images (n, c, h, w) in [0, 1] to logits (n, classes): first layer, stem with norm and ReLU, stages of `blocks`
    blocks with strides 1, 2, 2, ..., global mean, linear. `shortcut(channels, out, stride)` makes the shortcuts where
    the shape changes."""

    def __init__(self, first: nn.Module, channels: int, classes: int, widths: Sequence[int], blocks: int,
                 shortcut: Callable[[int, int, int], nn.Module]):
        super().__init__()
        self.first = first
        self.stem, self.norm = convolution(channels, widths[0], 3), nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        stages, channels = [], widths[0]
        for stage, out in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                same = stride == 1 and channels == out
                stages.append(Block(channels, out, stride, nn.Identity() if same else shortcut(channels, out, stride)))
                channels = out
        self.blocks = nn.Sequential(*stages)
        self.linear = classifier(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(self.first(images))))
        return self.linear(self.blocks(x).mean((2, 3)))


class Block(nn.Module):
    """conv, norm, ReLU, conv, norm, plus the shortcut of the input, then ReLU."""

    def __init__(self, channels: int, out: int, stride: int, shortcut: nn.Module):
        super().__init__()
        self.conv1, self.norm1 = convolution(channels, out, 3, stride), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = convolution(out, out, 3), nn.BatchNorm2d(out)
        self.shortcut = shortcut
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(out + self.shortcut(x))

    def inner_channels(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]]:
        """Writer, norm and reader of the channels that only this block knows."""
        return [(self.conv1, self.norm1, self.conv2)]


class Padded(nn.Module):
    """Every `stride`-th pixel of (n, channels, h, w), and zeros for the channels that are new: (n, out, h', w') without
    parameters (He et al. 2016, option A)."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.new, self.stride = out - channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, 0, self.new))

    def extra_repr(self) -> str:
        return f"{self.new} new channels, stride={self.stride}"


def projection(channels: int, out: int, stride: int) -> nn.Sequential:
    """(n, channels, h, w) to (n, out, h', w') by a 1x1 convolution and a norm (He et al. 2016, option B)."""
    return nn.Sequential(convolution(channels, out, 1, stride), nn.BatchNorm2d(out))


def classifier(channels: int, classes: int) -> nn.Linear:
    """Weights from N(0, 2 / channels), bias zero."""
    layer = nn.Linear(channels, classes)
    nn.init.kaiming_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def cost_of_layers(layers: float, width: int) -> float:
    """On the scale of `PreActResNet.cost`, which it equals at width 16. How it grows with the width, 16 to 64, was
    measured (CPU, bfloat16) and is right to a tenth: arithmetic is quadratic, reading and writing maps is linear."""
    return layers * (width / 16) * (1 + width / 16)
