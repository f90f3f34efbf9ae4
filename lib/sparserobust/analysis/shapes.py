"""What passes through a network: what goes into its convolutions and linear layers, and each operation it does."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from sparserobust import inputs
from sparserobust.attacks import under_attack
from sparserobust.errors import UserError, quoted
from sparserobust.models import noise_off
from sparserobust.models.unknown import ESCAPES
from sparserobust.watching import Watch, attention_in_parts

LAYERS = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear
Seen = tuple[nn.Module, torch.Size, torch.Size]


def shapes_of(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Seen]:
    """(layer, shape of its input, of its output), without the batch, for each time that one image (c, h, w) passes a
    convolution or a linear layer, called as such. The model comes back as it was. `UserError` for a network that takes
    no such images."""
    model, seen = inputs.network(model), []

    def note(layer, inputs, options, output):
        (x,) = inputs or options.values()
        seen.append((layer, x.shape[1:], output.shape[1:]))

    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in model.modules()
             if isinstance(layer, LAYERS)]
    try:
        _pass(model, image_shape)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def each_operation(model: nn.Module, image_shape: tuple[int, int, int],
                   note: Callable[[Any, tuple, Any], None]) -> None:
    """Calls `note` with each operation of ATen, its arguments and its result, while one image (c, h, w) passes the
    network; attention, also in layers of torch.nn, is taken apart into products of matrices. `UserError` for a network
    that takes no such images, or leaves PyTorch on the way."""
    model = inputs.network(model)
    with uncompiled(), attention_in_parts(), sdpa_kernel(SDPBackend.MATH), Watch(note), _Closed():
        _pass(model, image_shape)


class _Closed(TorchFunctionMode):
    """Inside the block, a network that takes numbers out of PyTorch, where nobody sees what it does, is refused."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if (name := getattr(func, "__name__", "")) in ESCAPES and isinstance(args[0], Tensor):
            raise UserError(f"the network leaves PyTorch by {name}: what it does there is not known here")
        return func(*args, **(kwargs or {}))


def uncompiled() -> AbstractContextManager:
    """Inside the block, networks from torch.compile do what they were compiled from."""
    if "torch._dynamo" not in sys.modules:  # no network is compiled, and to load what compiles takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _pass(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """One image, without noise."""
    with torch.no_grad(), under_attack(model), noise_off(model):
        try:
            model(random_images(model, image_shape, 1))
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a network's own code raises
            raise UserError(f"{type(model).__name__} takes no images of shape {image_shape}: {type(error).__name__} "
                            f"{quoted(str(error))}") from error


def random_images(model: nn.Module, image_shape: tuple[int, int, int], n: int, dtype: torch.dtype | None = None
                  ) -> Tensor:
    """(n, c, h, w) in [0, 1], always the same, of the device and, unless `dtype` is given, the precision of the model.
    """
    images = torch.rand(n, *image_shape, generator=torch.Generator().manual_seed(0))
    floating = (t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point())
    images = images.to(next(floating, images))
    return images if dtype is None else images.to(dtype)
