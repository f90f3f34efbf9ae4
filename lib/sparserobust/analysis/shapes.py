"""What goes into the convolutions and linear layers of a network, and what comes out."""

import torch
from torch import nn

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
            model(torch.zeros(1, *image_shape).to(next(model.parameters())))
    finally:
        for hook in hooks:
            hook.remove()
    return seen
