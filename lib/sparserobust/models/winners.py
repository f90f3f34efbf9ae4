"""Sparse activations: k-winners-take-all in place of ReLU, and looking at what the activation layers put out."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from sparserobust.config import Model
from sparserobust.inputs import evaluated
from sparserobust.settings import settings
from sparserobust.watching import Watch, attention_in_parts


class KWinners(nn.Module):
    """ReLU of x (n, ...), of which each image keeps the largest `share` of the layer's units (all entries of a map,
    c*h*w), one at least, and the others become zero. Gradients flow through those kept."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(x)
        units = active.detach().flatten(1)
        k = max(1, round(self.share * units.shape[1]))
        # by index and not by the smallest value kept, which in bfloat16 many units have in common
        winners = units.topk(k, sorted=False).indices
        kept = torch.zeros_like(units, dtype=torch.bool).scatter_(1, winners, True)
        return active * kept.view_as(active)  # in the memory layout of `active`

    def extra_repr(self) -> str:
        return f"share={self.share:g}"


@settings
class Winners(Model, kind="winners"):
    """Any network whose every ReLU keeps only the largest `share` of its activations, image by image and layer by layer
    (k-winners-take-all, Xiao, Zhong & Zheng 2020; behind a ReLU, so that nothing negative wins and share 1 is the
    network itself). Names of parameters stay what they were.

    Such a network is discontinuous, and its gradient says nothing of the jumps: attacks by gradient overestimate its
    robustness, and Tramer et al. 2020 broke it with others. Hold their numbers against `query_attacks`."""

    model: Model
    share: float

    def check(self):
        self.require(0 < self.share <= 1, "share lies above 0 and is at most 1")

    @property
    def cost(self) -> float:
        return 2.5 * self.model.cost  # measured (CPU): 1.6 to 2.7 for ResNets and VGG, 1.2 for LeNets

    def fits(self, other: Model) -> bool:
        return self.model.fits(other.model if isinstance(other, Winners) else other)

    def build(self, image_shape, classes):
        net = self.model.build(image_shape, classes)
        self.require(every_relu_is_a_layer(net, image_shape), "this network calls ReLU as a function, which cannot be "
                     "replaced: make it a layer, nn.ReLU")
        for name, layer in list(net.named_modules(remove_duplicate=False)):
            if isinstance(layer, nn.ReLU):
                net.set_submodule(name, KWinners(self.share))
        return net


@torch.no_grad()
def every_relu_is_a_layer(net: nn.Module, image_shape: tuple[int, int, int]) -> bool:
    """Whether ReLUs are applied, to an image (c, h, w), by layers alone that `recorded_activations` sees. Torch's
    chance is left as it was."""
    like = next(net.parameters(), torch.zeros(()))
    image = torch.zeros(1, *image_shape, dtype=like.dtype, device=like.device)
    chance = torch.random.fork_rng([image.device] if image.is_cuda else [])
    with chance, evaluated(net), recorded_activations(net) as outputs, relus_applied() as applied:
        net(image)
    return len(applied) == sum(map(len, outputs.values()))


@contextmanager
def relus_applied() -> Iterator[list[str]]:
    """The ReLUs inside the block, one entry each, whether layers apply them, functions, or attention within itself."""
    found: list[str] = []

    def note(operation, *_) -> None:
        name = operation.overloadpacket.__name__
        found.extend([name] * (name in ("relu", "relu_")))

    with Watch(note), attention_in_parts():
        yield found


@contextmanager
def recorded_activations(model: nn.Module, training_only: bool = False) -> Iterator[dict[str, list[Tensor]]]:
    """What the ReLU and `KWinners` layers put out in the last forward pass inside the block: name of the layer to the
    outputs of its calls, as a block may call one layer twice. With `training_only`, passes without gradients or in eval
    mode, as attacks make them, leave no trace. The model comes back as it was."""
    outputs: dict[str, list[Tensor]] = {}

    def wanted() -> bool:
        return not training_only or (model.training and torch.is_grad_enabled())

    def begin(*_) -> None:
        if wanted():
            outputs.clear()

    def keep(name: str, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if wanted():
            outputs.setdefault(name, []).append(output)

    hooks = [model.register_forward_pre_hook(begin)]
    for name, layer in model.named_modules():
        if isinstance(layer, nn.ReLU | KWinners):
            hooks.append(layer.register_forward_hook(partial(keep, name)))
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
