"""VGG-16 with batch norm for small images (Simonyan & Zisserman 2015, configuration D, one linear layer)."""

from torch import Tensor, nn

from sparserobust.config import settings
from sparserobust.models.normalise import NormalisedModel
from sparserobust.models.preact_resnet import convolution
from sparserobust.models.resnet import classifier, cost_of_layers

GROUPS = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # width in units of the first, and number of convolutions


@settings
class VGG16(NormalisedModel, kind="vgg16"):
    """Thirteen convolutions of widths w to 8w in five groups, each group followed by pooling."""

    width: int = 64

    @property
    def cost(self) -> float:
        return cost_of_layers(9, self.width)  # 13 layers cost as 9 of a ResNet, as maps shrink sooner

    def build(self, image_shape, classes):
        return VGG(self.first_layer(image_shape[0]), image_shape[0], classes, self.width)


class VGG(nn.Module):
    """Images (n, c, h, w) in [0, 1] to logits (n, classes): first layer, five groups of conv, norm, ReLU, each with
    pooling at its end, global mean, linear."""

    def __init__(self, first: nn.Module, channels: int, classes: int, width: int):
        super().__init__()
        self.first = first
        layers = []
        for times, convolutions in GROUPS:
            for _ in range(convolutions):
                out = times * width
                layers += [convolution(channels, out, 3), nn.BatchNorm2d(out), nn.ReLU()]
                channels = out
            layers.append(nn.MaxPool2d(2, ceil_mode=True))  # rounded up: 8x8 images shrink to one pixel, not to none
        self.layers = nn.Sequential(*layers)
        self.linear = classifier(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.layers(self.first(images)).mean((2, 3)))
