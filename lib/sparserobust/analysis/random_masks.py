"""Theorem 3.2 of Guo et al. 2018, measured: what removing weights at random does to the norms of a network's layers."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sparserobust.analysis.lipschitz import NORMS, input_shapes, operator_norm
from sparserobust.config import Measurement
from sparserobust.files import six_digits
from sparserobust.models.lenet import Sequence
from sparserobust.seeding import stream
from sparserobust.settings import settings
from sparserobust.sparsity import all_but_smallest, weights


@settings
class RandomMasks(Measurement, kind="random_masks"):
    """All convolutions and linear layers but the last of a network that is a plain stack of layers lose a share of
    their weights (`levels`), each weight by itself, `draws` times, and nothing is trained afterwards. The product of
    the layers' norms bounds the local Lipschitz constant (lemma 3.2); all results are ratios to what it is with all
    weights, by level, to six digits:

        joint       norm: of the product, mean over draws; `joint_sd` the standard deviation (0 for one draw)
        single      layer, norm: the same mean if only that layer loses weights
        magnitude   norm: of the product if each layer loses its smallest weights instead
        explicit    bounds of the mean: sqrt(1 - level)^layers for frobenius; for linf, by the sum of all absolute
                    weights in place of the norm, (1 - level)^layers times the product of these sums over that of the
                    norms, which can exceed 1

    One uniform number per weight and draw serves all levels: as the level rises, weights go and none returns. The norm
    of a convolution is that of the whole operator. `value` is the joint l2 ratio at the last level.
    """

    levels: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98, 0.99)
    draws: int = 100

    def check(self):
        self.require(bool(self.levels) and min(self.levels) >= 0 and max(self.levels) <= 1,
                     "levels are shares of weights, between 0 and 1, at least one")
        self.require(self.draws >= 1, "draws starts at 1")

    def __call__(self, model, splits):
        self.require(isinstance(model, Sequence), f"{type(model).__name__} is no plain stack of layers")
        layers = {name: m for name, m in model.named_children() if isinstance(m, nn.Conv2d | nn.Linear)}
        layers.popitem()  # the last one keeps its weights
        self.require(bool(layers), "there is no layer before the last")
        shapes = input_shapes(model, splits.image_shape)
        acting = {w.layer: w.tensor.detach() for w in weights(model, shared=True).values()}
        random, smallest, sums = [], [], []
        for name, layer in layers.items():
            weight = acting[layer]
            norms = _norms(layer, weight, shapes[layer])
            self.require(bool(norms.all()), f"all weights of layer {name} are zero")
            random.append(torch.stack([torch.stack([_norms(layer, some, shapes[layer]) for some in draw]) / norms
                                       for draw in self._masked(name, weight)]))
            smallest.append(torch.stack([_norms(layer, some, shapes[layer]) for some in self._pruned(weight)]) / norms)
            sums.append(weight.double().abs().sum().item() / norms[NORMS.index("linf")])
        random, smallest = torch.stack(random), torch.stack(smallest).prod(0)  # layer, draw, level, norm
        joint, kept = random.prod(0), 1 - torch.tensor(self.levels, dtype=torch.float64)
        explicit = {"frobenius": kept ** (len(layers) / 2), "linf": kept ** len(layers) * torch.stack(sums).prod()}
        result = {"joint": _by_norm(joint.mean(0)), "joint_sd": _by_norm(joint.std(0, correction=int(self.draws > 1))),
                  "single": {name: _by_norm(r.mean(0)) for name, r in zip(layers, random, strict=True)},
                  "magnitude": _by_norm(smallest), "explicit": {norm: _digits(b) for norm, b in explicit.items()}}
        return {"value": result["joint"]["l2"][-1], "levels": list(self.levels), **result}

    def _masked(self, name: str, weight: Tensor) -> Iterator[list[Tensor]]:
        """For each draw the weight of a layer at each level."""
        for draw in range(self.draws):
            chance = torch.rand(weight.shape, generator=stream(0, "random masks", self.identity, name, draw))
            yield [weight * (chance >= level).to(weight.device) for level in self.levels]

    def _pruned(self, weight: Tensor) -> Iterator[Tensor]:
        """The weight of a layer without its smallest entries, at each level."""
        for level in self.levels:
            kept = all_but_smallest(weight.detach().abs().flatten(), round(level * weight.numel()))
            yield weight * kept.view_as(weight)


def _norms(layer: nn.Conv2d | nn.Linear, weight: Tensor, shape: torch.Size) -> Tensor:
    return torch.tensor([operator_norm(layer, weight, shape, norm) for norm in NORMS], dtype=torch.float64)


def _by_norm(ratios: Tensor) -> dict[str, list[float]]:
    """Ratios (levels, norms) as a list for each norm."""
    return {norm: _digits(column) for norm, column in zip(NORMS, ratios.T, strict=True)}


def _digits(values: Tensor) -> list[float]:
    return [six_digits(v) for v in values.tolist()]
