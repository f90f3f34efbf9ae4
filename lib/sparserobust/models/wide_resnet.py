"""Wide residual networks (Zagoruyko & Komodakis 2016) as released by Feng et al. 2025 (Asia-Leee/TSCNC)."""

from torch import Tensor, nn

from sparserobust.models.gates import add_gates
from sparserobust.models.normalise import NormalisedModel
from sparserobust.models.resnet import classifier, cost_of_layers
from sparserobust.settings import settings


@settings
class WideResNet(NormalisedModel, kind="wide_resnet"):
    """Depth 6n+4: a stem of w channels, then three groups of n blocks with k w, 2 k w, 4 k w channels, where w is
    `width` and k is `widen`. As released: the stride of a block is that of its second convolution, not of its first as
    in the original; weights begin Kaiming normal by fan-in, the bias of the linear layer as N(0, 0.01^2). `gated`: the
    first convolution of each block has gates; weights begin as they do without."""

    depth: int = 28
    widen: int = 10
    width: int = 16
    gated: bool = False

    def check(self):
        super().check()
        self.require(self.depth >= 10 and self.depth % 6 == 4,
                     f"depth must be 6n+4 (10, 16, 22, ...), not {self.depth}")
        self.require(self.widen >= 1, "widen starts at 1")

    @property
    def cost(self) -> float:
        # of depth - 4 layers two cost double: the first of a block with a stride, as it runs on the larger map
        return cost_of_layers(self.depth - 2, self.width * self.widen)

    def build(self, image_shape, classes):
        net = WideResidualNet(self.first_layer(image_shape[0]), image_shape[0], classes, (self.depth - 4) // 6,
                              self.width, self.widen)
        if self.gated:
            for block in net.blocks:
                add_gates(block.conv1)
        return net


class WideResidualNet(nn.Module):
    """Images (n, c, h, w) in [0, 1] to logits (n, classes): first layer, stem without norm, three groups of `blocks`
    blocks with strides 1, 2, 2, then norm, ReLU, global mean, linear."""

    def __init__(self, first: nn.Module, channels: int, classes: int, blocks: int, width: int, widen: int):
        super().__init__()
        self.first, self.stem = first, fan_in_convolution(channels, width, 3)
        groups, channels = [], width
        for group in range(3):
            for block in range(blocks):
                out = width * widen * 2**group
                groups.append(Block(channels, out, 2 if group and not block else 1))
                channels = out
        self.blocks = nn.Sequential(*groups)
        self.norm, self.relu = nn.BatchNorm2d(channels), nn.ReLU()
        self.linear = classifier(channels, classes)
        nn.init.normal_(self.linear.bias, 0.0, 0.01)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.stem(self.first(images)))
        return self.linear(self.relu(self.norm(x)).mean((2, 3)))


class Block(nn.Module):
    """norm, ReLU, conv, norm, ReLU, conv with the stride, plus the input (through a 1x1 convolution of the activated
    input where the channels change)."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), fan_in_convolution(channels, out, 3)
        self.norm2, self.conv2 = nn.BatchNorm2d(out), fan_in_convolution(out, out, 3, stride)
        self.shortcut = fan_in_convolution(channels, out, 1, stride) if channels != out else None
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu(self.norm1(x))
        residual = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(self.relu(self.norm2(self.conv1(active)))) + residual

    def inner_channels(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]]:
        """Writer, norm and reader of the channels that only this block knows."""
        return [(self.conv1, self.norm2, self.conv2)]


def fan_in_convolution(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """No bias; weights from N(0, 2 / (kernel^2 channels))."""
    layer = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight)
    return layer
