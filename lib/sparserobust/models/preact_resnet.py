"""Pre-activation CIFAR ResNets and their Feynman-Kac ensembles (Wang et al. 2019; Dinh et al. 2020).

An ensemble En_n is n copies of the net, with Gaussian noise after each residual addition, trained together; its output
is the mean of their logits. It is the discretisation of the Feynman-Kac formula: noise is the diffusion, the mean over
members the expectation.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from sparserobust.config import Model
from sparserobust.models.gates import add_gates
from sparserobust.models.noise import Noise
from sparserobust.settings import settings


@settings
class PreActResNet(Model, kind="preact_resnet"):
    """Depth 6n+2, widths w, 2w, 4w, or any three `widths`. `members` nets in an ensemble; `noise` relative to the
    standard deviation of the activations it is added to (0.1 in the papers' ensembles). `gated`: the first convolution
    of each block has gates, as in `WideResNet`; weights begin as they do without."""

    depth: int = 20
    width: int = 16
    members: int = 1
    noise: float = 0.0
    gated: bool = False
    widths: tuple[int, ...] = ()  # channels of the three stages; none given: width, 2 width, 4 width

    def check(self):
        self.require(self.depth >= 8 and self.depth % 6 == 2, f"depth must be 6n+2 (8, 14, 20, ...), not {self.depth}")
        self.require(self.width >= 1 and self.members >= 1, "width and members start at 1")
        self.require(self.noise >= 0, "noise cannot be negative")
        self.require(len(self.widths) in (0, 3) and min(self.widths, default=1) >= 1,
                     f"widths are three numbers from 1, such as (16, 32, 64), not {self.widths}")
        self.require(not self.widths or self.width == type(self).width,
                     "widths replace width: give one of the two")

    @property
    def stages(self) -> tuple[int, ...]:
        """Channels of the three stages."""
        return self.widths or (self.width, 2 * self.width, 4 * self.width)

    @property
    def cost(self) -> float:
        # each stage halves the sides of its maps: what is read and written goes by width / 2^stage
        width = sum(w / 2**stage for stage, w in enumerate(self.stages)) / 3
        return self.members * (self.depth - 2) * (1 + width / 16)

    def weights(self, channels: int, classes: int, stages: Iterable | None = None):
        """Number of convolution and linear weights for images of so many channels, in closed form.
        `stages`: three other widths to count with, numbers or integer arrays that broadcast."""
        a, b, c = self.stages if stages is None else stages
        square = 9 * ((self.depth - 2) // 3 - 1)  # of 3x3 kernels from a stage to itself, per width^2
        # the first stage has one such convolution more; 10 = 9 + 1: a 3x3 kernel, and a 1x1 shortcut
        return self.members * (9 * channels * a + (square + 9) * a**2 + 10 * a * b + square * b**2
                               + 10 * b * c + square * c**2 + classes * c)

    def build(self, image_shape, classes):
        nets = [Member(image_shape[0], classes, (self.depth - 2) // 6, self.stages, self.noise)
                for _ in range(self.members)]
        if self.gated:
            for block in (block for net in nets for block in net.blocks):
                add_gates(block.conv1)
        return Ensemble(nets)


class Ensemble(nn.Module):
    """Images (n, c, h, w) in [0, 1] to the mean of the members' logits, (n, classes)."""

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.members[0](images)
        for member in self.members[1:]:
            logits = logits + member(images)
        return logits / len(self.members)


class Member(nn.Module):
    """One net: stem without norm, three stages with strides 1, 2, 2, then norm, ReLU, global mean, linear."""

    def __init__(self, channels: int, classes: int, blocks: int, widths: Sequence[int], noise: float):
        super().__init__()
        self.stem: nn.Module = convolution(channels, widths[0], 3)
        stages, channels = [], widths[0]
        for stage, out in enumerate(widths):
            for block in range(blocks):
                stages.append(Block(channels, out, 2 if stage and not block else 1, noise))
                channels = out
        self.blocks = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.blocks(self.stem(x))))
        return self.linear(x.mean((2, 3)))


class Block(nn.Module):
    """norm, ReLU, conv, norm, ReLU, conv, plus the input (through a 1x1 convolution of the activated input where the
    shape changes), plus noise."""

    def __init__(self, channels: int, out: int, stride: int, noise: float):
        super().__init__()
        self.norm1: nn.Module = nn.BatchNorm2d(channels)
        self.conv1 = convolution(channels, out, 3, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(out), convolution(out, out, 3)
        self.shortcut = convolution(channels, out, 1, stride) if stride != 1 or channels != out else None
        self.relu, self.noise = nn.ReLU(), Noise(noise)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu(self.norm1(x))
        residual = x if self.shortcut is None else self.shortcut(active)
        out = self.conv2(self.relu(self.norm2(self.conv1(active))))
        return self.noise(out + residual)

    def inner_channels(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]]:
        """Writer, norm and reader of the channels that only this block knows."""
        return [(self.conv1, self.norm2, self.conv2)]


def convolution(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """No bias; weights from N(0, 2 / (kernel^2 out))."""
    layer = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
    nn.init.normal_(layer.weight, 0.0, (2 / (kernel**2 * out)) ** 0.5)
    return layer
