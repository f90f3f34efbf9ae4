"""Small networks without norms: linear, LeNet-300-100, and LeNet-5 as released by the group of Guo et al. 2018
(yiwenguo/Dynamic-Network-Surgery). Weights are drawn as Glorot & Bengio 2010 do, biases start at zero."""

from torch import nn

from sparserobust.config import Model
from sparserobust.errors import UserError
from sparserobust.settings import settings


@settings
class Linear(Model, kind="linear"):
    """Pixels to logits by one linear layer: softmax regression. It begins at zero, as its loss is convex: drawn weights
    of pixels that are always blank would stay, and count in every norm."""

    @property
    def cost(self) -> float:
        return 0.05

    def build(self, image_shape, classes):
        layers = Sequence(nn.Flatten(), nn.Linear(pixels(image_shape), classes))
        nn.init.zeros_(layers[1].weight)
        return layers


@settings
class LeNet300100(Model, kind="lenet_300_100"):
    """Pixels, 300 units, ReLU, 100 units, ReLU, logits: 266,610 parameters for 28x28 pixels and ten classes."""

    @property
    def cost(self) -> float:
        return 0.2

    def build(self, image_shape, classes):
        return Sequence(nn.Flatten(), nn.Linear(pixels(image_shape), 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(),
                        nn.Linear(100, classes))


@settings
class LeNet5(Model, kind="lenet5"):
    """The Caffe layout, 431,080 parameters for 28x28 pixels: two convolutions of 20 and 50 channels, each followed by
    max-pooling and by no ReLU, then 500 units, ReLU, logits. `kernel` 3 suits smaller images; with another `width` than
    20 all layers are narrower or wider alike."""

    kernel: int = 5
    width: int = 20  # channels of the first convolution

    def check(self):
        self.require(self.kernel >= 1, "kernel starts at 1")
        self.require(self.width >= 2 and self.width % 2 == 0, "width is even, and 2 at least")

    @property
    def cost(self) -> float:
        return 2.0 * self.width / 20

    def build(self, image_shape, classes):
        sides = list(image_shape[1:])
        for _ in range(2):
            sides = [(side - self.kernel + 2) // 2 for side in sides]  # convolution, then pooling rounded up, as Caffe
        if min(sides) < 1:
            raise UserError(f"{self.label()}: images of {image_shape[1]}x{image_shape[2]} pixels are too small for "
                            f"kernel {self.kernel}")
        first, second, units = self.width, self.width * 5 // 2, self.width * 25
        return Sequence(nn.Conv2d(image_shape[0], first, self.kernel), nn.MaxPool2d(2, ceil_mode=True),
                        nn.Conv2d(first, second, self.kernel), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(),
                        nn.Linear(second * sides[0] * sides[1], units), nn.ReLU(), nn.Linear(units, classes))


class Sequence(nn.Sequential):
    """Layers one after the other: images (n, c, h, w) in [0, 1] to logits (n, classes)."""

    def __init__(self, *layers: nn.Module):
        super().__init__(*layers)
        for layer in layers:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def pixels(image_shape: tuple[int, int, int]) -> int:
    """How many numbers an image (c, h, w) has."""
    channels, height, width = image_shape
    return channels * height * width
