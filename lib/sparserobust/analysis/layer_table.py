"""One row for each layer of any network: its weights as they act, and which of its units do nothing."""

from collections import Counter
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sparserobust.analysis.conditioning import rank, spectrum
from sparserobust.analysis.shapes import uncompiled
from sparserobust.attacks import under_attack
from sparserobust.config import Measurement
from sparserobust.errors import UserError
from sparserobust.files import six_digits
from sparserobust.models import noise_off
from sparserobust.seeding import stream
from sparserobust.settings import settings
from sparserobust.sparsity import CHANNEL_NORM_IS_ZERO, Acting, channel_norms, check_acting, weights

BATCH = 100  # images that are passed together, as the outputs of all layers are kept


def layers(model: nn.Module, images: Tensor) -> list[dict[str, Any]]:
    """A row for each weight that counts (`sparsity.weights`, gates and noise aside), by the name of its layer, on
    `images` (n, c, h, w), two at least. The model comes back as it was. `UserError` as from `check_acting`,
    and where no unit of any layer moves the answers.

        name, kind, shape        of the layer, its class, of the weight
        weights, zeros           how many there are, and are exactly zero
        norm, largest, smallest  l2 norm; largest magnitude, and smallest that is not zero (0 if all are)
        condition, lost          condition number of the weight as matrix (out, in * kernel), in groups a block for
                                 each: infinite where singular values are `lost`, which are those of at most
                                 1e-6 times the largest
        inputs, unused           input channels or features, and those that are not read: the weights that would read
                                 them have an l2 norm below 1e-15
        units, constant,         output channels or features; those that are `constant`, the same on all images at each
        blocked, dead            position, before any norm and activation; those that are `blocked`, since the gradient
                                 of no logit reaches them on any image: what comes out of an activation that is shut,
                                 or is not read; `dead` are either. None for what is not called as a layer, as those
                                 inside attention
    """
    check_acting(model, images[:1])
    found = weights(model)
    units = _units(model, {name: w.layer for name, w in found.items()}, images)
    return [_row(name, w) | units.get(name, dict.fromkeys(("units", "constant", "blocked", "dead")))
            for name, w in found.items()]


def _row(name: str, weight: Acting) -> dict[str, Any]:
    w = weight.tensor.detach()
    size, values = w.abs(), spectrum(weight.filters, weight.groups)
    left, lost = size[size > 0], len(values) - rank(values)
    unused = channel_norms(weight.channels) < CHANNEL_NORM_IS_ZERO
    return {"name": name.removesuffix(".weight"), "kind": type(weight.layer).__name__, "shape": list(w.shape),
            "weights": w.numel(), "zeros": int((w == 0).sum()), "norm": float(w.double().norm()),
            "largest": float(size.max()), "smallest": float(left.min()) if len(left) else 0.0,
            "condition": float("inf") if lost else float(values[0] / values[-1]), "lost": lost,
            "inputs": len(unused), "unused": int(unused.sum())}


def _units(model: nn.Module, named: dict[str, nn.Module], images: Tensor) -> dict[str, dict[str, int]]:
    if len(images) < 2:
        raise UserError("which units are constant shows on two images at least")
    images = images.to(next(model.parameters(), images))
    outputs: dict[str, Tensor] = {}  # of one pass, by name and number of the call
    first: dict[str, Tensor] = {}  # of the first image
    constant: dict[str, Tensor] = {}
    blocked: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def keep(name: str, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        calls[name] += 1
        outputs[f"{name} {calls[name]}"] = output if output.requires_grad else output.requires_grad_()
        return output.clone()  # an activation in place would change what is kept

    hooks = [layer.register_forward_hook(partial(keep, name)) for name, layer in named.items()
             if isinstance(layer, _ConvNd | nn.Linear)]
    try:
        with under_attack(model), noise_off(model), torch.enable_grad(), uncompiled():
            for batch in images.split(BATCH):
                outputs.clear()
                calls.clear()
                x = batch.clone().requires_grad_()
                logits = model(x * 1)
                mixed = (logits * torch.randn(logits.shape[1:], generator=stream(0, "layers")).to(logits)).sum()
                slopes = torch.autograd.grad(mixed + 0 * x.sum(), [x, *outputs.values()], allow_unused=True)[1:]
                for (call, output), slope in zip(outputs.items(), slopes, strict=True):
                    name = call.rpartition(" ")[0]
                    values = _by_unit(output.detach(), named[name], len(batch))
                    same = values == first.setdefault(call, values[:1].clone())
                    constant[name] = constant.get(name, True) & same.flatten(0, -2).all(0)
                    flat = values.new_zeros(1, values.shape[-1]) if slope is None else _by_unit(slope, named[name], 0)
                    blocked[name] = blocked.get(name, True) & (flat == 0).all(0)
    finally:
        for hook in hooks:
            hook.remove()
    if blocked and all(shut.all() for shut in blocked.values()):
        raise UserError("nothing moves the answers of this network, as behind a softmax that is sure of itself: give "
                        "it without that, or look at its weights")
    return {name: {"units": len(shut), "constant": int(constant[name].sum()), "blocked": int(shut.sum()),
                   "dead": int((constant[name] | shut).sum())} for name, shut in blocked.items()}


def _by_unit(output: Tensor, layer: nn.Module, images: int) -> Tensor:
    """Output of a layer as (images, ..., units); as (all others together, units) if it has not one for each image."""
    moved = output.movedim(1, -1) if isinstance(layer, _ConvNd) else output
    return moved if len(moved) == images else moved.flatten(0, -2)


@settings
class LayerTable(Measurement, kind="layers"):
    """`layers` on `images` test images (all, for None): its rows under `layers`, numbers to six digits, an infinite
    condition number as None. The value is the share of dead units, None where no layer tells."""

    images: int | None = 100
    sampled: ClassVar[bool] = True
    counts_images: ClassVar[bool] = False

    def check(self):
        self.require(self.images is None or self.images > 1, "images start at 2")

    @property
    def cost(self):
        return (self.images or 10_000) / 10_000

    def __call__(self, model, splits):
        rows = layers(model, splits.test.sample(self.images).images)
        for row in rows:
            row |= {key: six_digits(row[key]) for key in ("norm", "largest", "smallest")}
            row["condition"] = None if row["lost"] else six_digits(row["condition"])
        dead, total = (sum(row[key] or 0 for row in rows) for key in ("dead", "units"))
        return {"value": dead / total if total else None, "count": dead, "total": total, "layers": rows}
