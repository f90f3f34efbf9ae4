"""Which activations of a network are zero, and which of its units are dead."""

from collections import Counter
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparserobust import sparsity
from sparserobust.attacks import under_attack
from sparserobust.config import Measurement
from sparserobust.evaluation import BATCH
from sparserobust.models.winners import recorded_activations, relus_applied
from sparserobust.seeding import global_seed
from sparserobust.settings import settings


@settings
class Activations(Measurement, kind="activations"):
    """Share of activations after a ReLU that are exactly zero on `images` test images (all, for None), all
    layers together (the value). By layer: its zeros, and its dead units, which are zero on all of these images; a unit
    is one entry of the output, c*h*w of them in a map, and the second call of one ReLU is a layer `<name>#2`. A noisy
    network is passed as it is, with one fixed draw.

    `weights` tells by convolution and linear layer what no image can change: outputs that all incoming weights being
    zero leave at their bias, and inputs that are not used, since all weights they meet are zero; behind a flattened map
    an input is one entry of it. Outputs and inputs of a convolution are channels."""

    images: int | None = None
    revision: ClassVar[int] = 2  # the first one took the first images
    sampled: ClassVar[bool] = True
    counts_images: ClassVar[bool] = False

    def check(self):
        self.require(self.images is None or self.images > 0, "images must be positive")

    @property
    def cost(self):
        return 0.3 * (self.images or 10_000) / 10_000  # forward passes only

    def __call__(self, model, splits):
        layers = self._layers(model, splits.test.sample(self.images).images)
        self.require(bool(layers), "this network has no layer of type nn.ReLU")
        zero, total, dead, units = (sum(layer[key] for layer in layers.values())
                                    for key in ("zero", "total", "dead", "units"))
        return {"value": zero / total, "count": zero, "total": total, "dead_units": dead, "units": units,
                "layers": layers, "parts": {"dead": dead / units},
                "weights": {name.removesuffix(".weight"): _unused(w)
                            for name, w in sparsity.weights(model).items()}}

    @torch.no_grad()
    def _layers(self, model: nn.Module, images: Tensor) -> dict[str, dict]:
        zero: Counter[str] = Counter()
        dead: dict[str, Tensor] = {}
        with under_attack(model), global_seed(0, "activations", self.identity), recorded_activations(model) as outputs:
            for batch in images.split(BATCH):
                with relus_applied() as applied:
                    model(batch.contiguous(memory_format=torch.channels_last))
                self.require(len(applied) == sum(map(len, outputs.values())),
                             "this network calls ReLU as a function, which is not seen: make it a layer, nn.ReLU")
                for name, calls in outputs.items():
                    for call, output in enumerate(calls, 1):
                        layer, none = name if call == 1 else f"{name}#{call}", output == 0
                        zero[layer] += int(none.sum())
                        dead[layer] = none.all(0) & dead.get(layer, True)
        return {layer: {"zero": zero[layer], "total": len(images) * units.numel(), "dead": int(units.sum()),
                        "units": units.numel()} for layer, units in dead.items()}


def _unused(weight: sparsity.Acting) -> dict[str, int]:
    nonzero = weight.tensor.detach() != 0
    by_output = (weight.filters.detach() != 0).flatten(1).any(1)
    by_input = (weight.channels.detach() != 0).transpose(0, 1).flatten(1).any(1)
    return {"dead_outputs": int((~by_output).sum()), "outputs": len(by_output),
            "unused_inputs": int((~by_input).sum()), "inputs": len(by_input),
            "nonzero": int(nonzero.sum()), "total": nonzero.numel()}
