"""A network of your own, in one file: here torchvision's MobileNetV2, narrowed for images of 8x8
pixels. Copy it and build another."""

from torch import nn
from torchvision.models.mobilenetv2 import MobileNetV2

STAGES = [[1, 16, 1, 1], [4, 24, 1, 2], [4, 32, 1, 2]]  # expansion, channels, blocks, first stride


def build(in_channels: int = 1, num_classes: int = 10) -> nn.Module:
    """Images (n, in_channels, h, w) in [0, 1] to logits (n, num_classes)."""
    net = MobileNetV2(num_classes, inverted_residual_setting=STAGES, dropout=0.0)
    net.features[0][0] = nn.Conv2d(in_channels, 32, 3, padding=1, bias=False)
    net.features[-1] = nn.Identity()  # 1280 channels, for a thousand classes
    net.classifier = nn.Linear(STAGES[-1][1], num_classes)
    return net
