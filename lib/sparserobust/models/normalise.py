"""Images on a scale of their own, as a fixed first layer: attacks and data know nothing of it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparserobust.config import Model
from sparserobust.errors import UserError
from sparserobust.settings import settings


@settings
class NormalisedModel(Model):
    """Base of models that have a `width` and may normalise their images, with the mean and the standard deviation of
    each channel over the training images, in pixel values from 0 to 255 as papers give them; none given: no
    normalisation."""

    width: int  # channels of the first convolution
    mean_255: tuple[float, ...] = ()
    std_255: tuple[float, ...] = ()

    def check(self):
        self.require(self.width >= 1, "width starts at 1")
        self.require(len(self.mean_255) == len(self.std_255), "mean_255 and std_255 go together, a number per channel")
        self.require(min(self.std_255, default=1.0) > 0, "every number in std_255 must be positive")

    def first_layer(self, channels: int) -> nn.Module:
        """Images (n, channels, h, w) in [0, 1] to normalised ones, of the same shape."""
        given = len(self.mean_255)
        if given not in (0, channels):
            raise UserError(f"{self.label()}: the images have {channels} channels; give mean_255 and std_255 that many "
                            f"numbers each, not {given}, or leave both out")
        return Normalise(self.mean_255, self.std_255) if given else nn.Identity()


class Normalise(nn.Module):
    """(x - mean) / std, channel by channel, of images (n, c, h, w) in [0, 1]; mean and std are in 255ths."""

    mean: Tensor  # (c, 1, 1)
    std: Tensor

    def __init__(self, mean_255: Sequence[float], std_255: Sequence[float]):
        super().__init__()
        for name, values in (("mean", mean_255), ("std", std_255)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1) / 255)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std
