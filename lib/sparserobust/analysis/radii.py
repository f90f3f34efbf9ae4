"""Why a network is as robust as it is: how far its logits lie apart, and how fast they can change. The radius within
which no perturbation fools it is about margin over slope (Guo et al. 2018, lemma 3.1)."""

from dataclasses import replace
from typing import Any, ClassVar

import torch

from sparserobust import imagewise
from sparserobust.analysis import lipschitz
from sparserobust.analysis.clever import clever
from sparserobust.analysis.conditioning import condition, rank
from sparserobust.attacks import CarliniWagnerL2, DeepFool, margin, predicted, runner_up
from sparserobust.config import Attack, Measurement
from sparserobust.errors import UserError
from sparserobust.evaluation import reached
from sparserobust.files import six_digits
from sparserobust.models import noise_off
from sparserobust.models.gates import acting_weight
from sparserobust.seeding import stream
from sparserobust.settings import settings


@settings
class Margins(Measurement, kind="margins"):
    """Of `images` test images, the value being the mean margin (logit of the label minus the highest other
    one) of those classified correctly:

        slope       mean, over the same images, of the largest gradient norm of the margin at `samples` random points of
                    the ball of `radius`
        bound       mean of the product of layer norms that bounds the slope (lemma 3.2)
        ratio       mean of margin over slope: how far the boundary lies, to first order; images without any slope are
                    left out, None if there is no other
        guaranteed  mean radius that the bound guarantees, no larger than the true one; None for a bound of zero

    The last two are zero for misclassified images, as r_2 is. `norm` is that of the perturbation: l2, or linf (then
    gradients are measured in l1). A noisy network has no slope: `noise: false` silences it."""

    images: int = 100
    norm: str = "l2"
    radius: float = 0.5
    samples: int = 20
    noise: bool = True
    revision: ClassVar[int] = 2  # the first one took the first images
    sampled: ClassVar[bool] = True

    def check(self):
        self.choice("norm", "l2", "linf")
        self.require(self.images > 0 and self.radius > 0 and self.samples > 0,
                     "images, radius and samples must be positive")

    @property
    def cost(self):
        return self.images * self.samples / 10_000

    def __call__(self, model, splits):
        if not self.noise:
            with noise_off(model):
                return replace(self, noise=True)(model, splits)
        split = splits.test.sample(self.images)
        right = predicted(model, split.images) == split.labels
        images, labels = split.images[right], split.labels[right]
        if not len(labels):
            raise UserError(f"none of {len(split)} images is classified correctly: there is no margin to measure")
        chance = stream(0, "slopes", self.identity, device=images.device)
        slope = lipschitz.gradient_norms(model, images, labels, self.radius, self.samples, self.norm, chance).amax(0)
        radii, logits, bounds = lipschitz.guarantee(model, images, labels, self.norm)
        margins = margin(logits, labels)
        sloping, wrong = slope > 0, len(split) - len(labels)
        ratio = float((margins / slope)[sloping].sum()) / (wrong + int(sloping.sum())) if sloping.any() else None
        guaranteed = float(radii.sum()) / len(split) if bounds.any() else None
        bound = bounds[labels, runner_up(logits, labels)]
        parts = {"slope": float(slope.mean()), "bound": float(bound.mean()), "ratio": ratio, "guaranteed": guaranteed}

        def each(values: torch.Tensor, misclassified: float = torch.nan) -> str:
            whole = torch.full((len(split),), misclassified, dtype=torch.float64)
            whole[right.cpu()] = values.double().cpu()
            return imagewise.pack(whole)

        return {"value": float(margins.mean()), "total": len(labels), "parts": parts,
                "each": {"": each(margins), "slope": each(slope), "bound": each(bound),
                         "ratio": each(torch.where(sloping, margins / slope, torch.nan), 0.0)}}


@settings
class RadiusOrder(Measurement, kind="radius_order"):
    """Bounds from both sides, image by image, in l2, of those of `images` test images that are classified correctly:
    guaranteed by Frobenius norms and by spectral norms, estimated by CLEVER, reached by C&W and by DeepFool (infinite
    where it does not fool). The true radius lies between the second and the last two; the value is the share of images
    on which these are in that order, which is 1 unless something is wrong. CLEVER bounds nothing: `clever_above` is the
    share of images on which an attack gets below it."""

    images: int = 50
    radius: float = 2.0  # of the ball in which CLEVER samples, and its largest answer
    batches: int = 20
    samples: int = 50
    cw: Attack = CarliniWagnerL2()
    deepfool: Attack = DeepFool()
    revision: ClassVar[int] = 2  # the first one took the first images
    sampled: ClassVar[bool] = True

    def check(self):
        self.require(min(self.images, self.radius, self.batches, self.samples) > 0,
                     "images, radius, batches and samples must be positive")

    @property
    def cost(self):
        per_image = self.batches * self.samples + self.cw.cost + self.deepfool.cost
        return self.images * per_image / 10_000

    def __call__(self, model, splits):
        split = splits.test.sample(self.images)
        right = predicted(model, split.images) == split.labels
        images, labels = split.images[right], split.labels[right]
        if not len(labels):
            raise UserError(f"none of {len(split)} images is classified correctly: there is no radius to measure")
        chance = stream(0, "radius order", self.identity, device=images.device)
        radii = {f"guaranteed ({norm})": lipschitz.guaranteed_radius(model, images, labels, norm)
                 for norm in ("frobenius", "l2")}
        radii["CLEVER"] = clever(model, images, labels, self.radius, "l2", self.batches, self.samples, chance)
        for name, attack in (("C&W", self.cw), ("DeepFool", self.deepfool)):
            radii[name] = reached(model, attack, images, labels, chance)
        lower, below, estimate, *above = (r.double() for r in radii.values())
        nearest = torch.minimum(*above)
        ordered = (lower <= below * (1 + 1e-9)) & (below <= nearest)
        return {"value": float(ordered.double().mean()), "count": int(ordered.sum()), "total": len(labels),
                "radii": {name: [six_digits(v) if v < float("inf") else None for v in values.tolist()]
                          for name, values in radii.items()},
                "parts": {"clever_above": float((estimate > nearest).double().mean())}}


@settings
class LayerNorms(Measurement, kind="layer_norms"):
    """Of every convolution and linear layer, as it acts on its input and without BatchNorm: the norms of
    `lipschitz.operator_norm`; and of its weight as a matrix (out, in * kernel): its rank as a share of the fullest, and
    its condition number, largest over smallest singular value that is not zero. The value is the product of the l2
    norms."""

    def __call__(self, model, splits):
        norms = {norm: lipschitz.layer_norms(model, splits.image_shape, norm) for norm in lipschitz.NORMS}
        self.require(bool(norms["l2"]), "this network calls no convolution and no linear layer as such")
        modules, layers, product = dict[str, Any](model.named_modules()), {}, 1.0
        for name in norms["l2"]:
            layer = modules[name]
            weight = acting_weight(layer).detach().double()
            if getattr(layer, "transposed", False):
                weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
            weight = weight.flatten(1)
            values = torch.linalg.svdvals(weight)
            threshold = max(weight.shape) * torch.finfo(values.dtype).eps  # that of `torch.linalg.matrix_rank`
            number = condition(values, threshold)
            layers[name] = {norm: six_digits(norms[norm][name]) for norm in norms} | {
                "rank": rank(values, threshold) / len(values), "condition": six_digits(number) if number else None}
            product *= norms["l2"][name]
        return {"value": product, "layers": layers}
