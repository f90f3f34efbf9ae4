"""Weights that are set to zero and held there: the smallest ones, a random choice, or those a run inherits as zeros."""

import torch

from sparserobust.config import Sparsifier
from sparserobust.settings import settings
from sparserobust.sparsifiers.rates import erk
from sparserobust.sparsifiers.targets import acted_on
from sparserobust.sparsity import all_but_smallest, mask_weights, prunable, same_share


@settings
class FixedMask(Sparsifier, kind="fixed_mask"):
    """Fine-tuning: convolution and linear weights that are zero in the run it starts from (its `start`) stay zero."""

    def start(self, model):
        acted_on(self, model)
        return {name: (w.detach() != 0).to(w.dtype) for name, w in prunable(model).items()}

    def after_step(self, model, state, lr):
        mask_weights(model, state)


@settings
class Magnitude(FixedMask, kind="magnitude"):
    """Prunes the weights a run starts with (its `start`), then trains what is left at a fixed mask; with a recipe of 0
    epochs it only prunes. Convolution and linear weights; `scope` global ranks them together, layerwise and erk each
    layer, of which layerwise removes the same share (but leaves one weight), erk less the smaller and narrower it is
    (`rates.erk`). With `keep_last` the last layer keeps its weights; sparsity is then the share removed of all others.

    The mask keeps so many weights, zero or not: of a start that is sparser than asked, zeros are among those kept, the
    last in the order of memory, and training takes them up again. `FixedMask` is what keeps the zeros of a start."""

    sparsity: float  # share of weights to remove
    scope: str = "global"  # global | layerwise | erk
    keep_last: bool = False

    def check(self):
        self.require(0 <= self.sparsity < 1, f"sparsity is a share in [0, 1), got {self.sparsity:g}")
        self.choice("scope", "global", "layerwise", "erk")

    @torch.no_grad()
    def start(self, model):
        found = acted_on(self, model)
        scored = {name: w.tensor.abs() for name, w in found.items()}
        spared = dict([scored.popitem()]) if self.keep_last else {}
        self.require(bool(scored), "keep_last leaves nothing to prune in a network of one layer")
        sizes = [s.numel() for s in scored.values()]
        if self.scope == "global":
            kept = all_but_smallest(torch.cat([s.flatten() for s in scored.values()]), self._removed(sum(sizes)))
            masks = {name: part.view_as(s) for (name, s), part in zip(scored.items(), kept.split(sizes), strict=True)}
        else:
            removed = (erk([found[name].filters.shape for name in scored], self._removed(sum(sizes)))
                       if self.scope == "erk" else same_share(self.sparsity, sizes))
            masks = {name: all_but_smallest(s.flatten(), count).view_as(s)
                     for (name, s), count in zip(scored.items(), removed, strict=True)}
        masks |= {name: torch.ones_like(w) for name, w in spared.items()}
        self.after_step(model, masks, 0.0)
        return masks

    def _removed(self, size: int) -> int:
        return round(self.sparsity * size)


@settings
class RelativeThreshold(FixedMask, kind="relative_threshold"):
    """As `Magnitude`, but prunes what lies below `threshold` times the largest magnitude of its own layer: how much
    goes is found, not told."""

    threshold: float

    def check(self):
        self.require(0 <= self.threshold <= 1, f"threshold is a share of a layer's largest weight, in [0, 1], "
                     f"got {self.threshold:g}")

    @torch.no_grad()
    def start(self, model):
        acted_on(self, model)
        masks = {name: ((w != 0) & (w.abs() >= self.threshold * w.abs().max())).to(w.dtype)
                 for name, w in prunable(model).items()}
        self.after_step(model, masks, 0.0)
        return masks


@settings
class RandomMask(FixedMask, kind="random_mask"):
    """As `Magnitude` with scope global, but which weights go is drawn uniformly, from the run's seed: what every rule
    of choice is to be compared with. Weights that are zero already are drawn like all others."""

    sparsity: float  # share of weights to remove

    def check(self):
        self.require(0 <= self.sparsity < 1, f"sparsity is a share in [0, 1), got {self.sparsity:g}")

    def start(self, model):
        acted_on(self, model)
        weights = prunable(model)
        counts = [w.numel() for w in weights.values()]
        # drawn on the CPU: the same on every device
        kept = torch.randperm(sum(counts)) >= round(self.sparsity * sum(counts))
        parts = kept.split(counts)
        masks = {name: part.view_as(w).to(w) for (name, w), part in zip(weights.items(), parts, strict=True)}
        self.after_step(model, masks, 0.0)
        return masks
