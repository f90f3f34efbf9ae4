"""Networks."""

from sparserobust.models.compact import compact
from sparserobust.models.foreign import Foreign, Pretrained
from sparserobust.models.gates import GatedConv2d, gated
from sparserobust.models.lenet import LeNet5, LeNet300100, Linear
from sparserobust.models.noise import NoisyWeights, is_noisy, noise_off, noise_scales, one_draw_a_pass
from sparserobust.models.preact_resnet import Ensemble, PreActResNet
from sparserobust.models.resnet import ResNet, ResNet18
from sparserobust.models.vgg import VGG16, VGGLike
from sparserobust.models.wide_resnet import WideResNet
from sparserobust.models.winners import Winners

__all__ = ["VGG16", "Ensemble", "Foreign", "GatedConv2d", "LeNet5", "LeNet300100", "Linear", "NoisyWeights",
           "PreActResNet", "Pretrained", "ResNet", "ResNet18", "VGGLike", "WideResNet", "Winners", "compact", "gated",
           "is_noisy", "noise_off", "noise_scales", "one_draw_a_pass"]
