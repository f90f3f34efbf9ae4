"""A network of your own, in one file: here torchvision's MobileNetV2, narrowed for images of 8x8
pixels. Copy it and build another."""

from torch import nn
from torchvision.models.mobilenetv2 import MobileNetV2

STAGES = [[1, 8, 1, 1], [4, 16, 1, 2], [4, 24, 1, 2]]  # expansion, channels, blocks, first stride


def build(in_channels: int = 1, num_classes: int = 10) -> nn.Module:
    """Images (n, in_channels, h, w) in [0, 1] to logits (n, num_classes)."""
    net = MobileNetV2(num_classes, width_mult=0.5, inverted_residual_setting=STAGES, round_nearest=4,
                      dropout=0.0)
    width = net.features[0][0].out_channels
    net.features[0][0] = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
    return net
