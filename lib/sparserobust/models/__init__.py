"""Networks."""

from sparserobust.models.compact import compact
from sparserobust.models.noise import is_noisy, noise_off
from sparserobust.models.preact_resnet import Ensemble, PreActResNet

__all__ = ["Ensemble", "PreActResNet", "compact", "is_noisy", "noise_off"]
