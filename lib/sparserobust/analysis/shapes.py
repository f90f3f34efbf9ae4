"""What goes into the convolutions and linear layers of a network, and what comes out."""

from itertools import chain

import torch
from torch import Tensor, nn

from sparserobust.attacks import under_attack
from sparserobust.models import noise_off

Seen = tuple[nn.Conv2d | nn.Linear, torch.Size, torch.Size]


def shapes_of(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Seen]:
    """(layer, shape of its input, of its output), without the batch, for each time that one image (c, h, w) passes a
    convolution or a linear layer. The model comes back as it was."""
    seen = []

    def note(layer, inputs, output):
        seen.append((layer, inputs[0].shape[1:], output.shape[1:]))

    hooks = [layer.register_forward_hook(note) for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    try:
        with torch.no_grad(), under_attack(model), noise_off(model):
            model(random_images(model, image_shape, 1))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def random_images(model: nn.Module, image_shape: tuple[int, int, int], n: int) -> Tensor:
    """(n, c, h, w) in [0, 1], always the same, of the device and the precision of the model."""
    images = torch.rand(n, *image_shape, generator=torch.Generator().manual_seed(0))
    floating = (t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point())
    return images.to(next(floating, images))
