"""Linear classifiers under attack, where everything is exact (Guo et al. 2018, section 3.1)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparserobust import imagewise
from sparserobust.analysis.tracing import called, linear_layer, traced
from sparserobust.config import Measurement
from sparserobust.errors import UserError
from sparserobust.settings import settings

FLATTENING = {"alias", "clone", "detach", "squeeze", "unsafe_view", "unsqueeze", "view"}  # the pixels keep their order


def balancing_bias(scores: Tensor, signs: Tensor) -> float:
    """The bias b at which sign(scores + b) is right equally often on both classes, as nearly as these (n,) scores
    allow: theorem 3.1 wants the two accuracies to be the same. `signs` (n,) are -1 and +1."""
    borders = scores.unique()  # sorted; the sign of a score changes where b passes its negative
    middles = torch.cat([borders[:1] - 1, (borders[1:] + borders[:-1]) / 2, borders[-1:] + 1])
    below = {s: torch.searchsorted(scores[signs == s].sort().values, middles) / (signs == s).sum() for s in (1, -1)}
    return -float(middles[(1 - below[1] - below[-1]).abs().argmin()])


@dataclass(frozen=True)
class Binary:
    """sign(w x + b) on balanced classes: what theorem 3.1 speaks of. `margins` (n,) are y (w x + b)."""

    weight: Tensor
    margins: Tensor
    gap: float  # w (mu_+ - mu_-), the mean difference of the correctly classified, along w

    @classmethod
    def of(cls, weight: Tensor, bias: float, images: Tensor, signs: Tensor) -> "Binary":
        """`images` (n, d), `signs` (n,) of -1 and +1 in equal numbers; `UserError` if they are not, or if there are no
        weights."""
        if (signs == 1).sum() != (signs == -1).sum():
            raise UserError("theorem 3.1 speaks of two classes of equal size: take as many images of both")
        if not weight.any():
            raise UserError("theorem 3.1 divides by the length of w, and all weights are zero: remove fewer of them")
        weight, images = weight.double(), images.double()
        scores = images @ weight
        margins = signs * (scores + bias)
        right = margins > 0
        means = [float(scores[right & (signs == s)].mean()) if (right & (signs == s)).any() else 0.0 for s in (1, -1)]
        return cls(weight, margins, means[0] - means[1])

    @property
    def accuracy(self) -> float:
        """Share of images classified correctly, t."""
        return float((self.margins > 0).double().mean())

    @property
    def radii(self) -> Tensor:
        """l2 distance (n,) to the boundary, zero for images that are misclassified."""
        return self.margins.clamp_min(0) / self.weight.norm()

    @property
    def r2(self) -> float:
        """Measured: mean l2 distance to the boundary."""
        return float(self.radii.mean())

    @property
    def r2_formula(self) -> float:
        """t / 2 w (mu_+ - mu_-) / |w|_2, equal to `r2` where both classes are classified equally well."""
        return self.accuracy / 2 * self.gap / float(self.weight.norm())

    def reaches(self, epsilon: float) -> Tensor:
        """Which images (n,) no perturbation of l-infinity size epsilon fools; the worst one is FGSM's here."""
        return self.margins > epsilon * self.weight.abs().sum()

    def r_inf(self, epsilon: float) -> float:
        """Measured: accuracy under the worst perturbation of l-infinity size epsilon."""
        return float(self.reaches(epsilon).double().mean())

    def r_inf_bound(self, epsilon: float) -> float:
        """t / (2 epsilon) w (mu_+ - mu_-) / |w|_1; vacuous where it exceeds one."""
        return self.accuracy / (2 * epsilon) * self.gap / float(self.weight.abs().sum())


@settings
class Theorem31(Measurement, kind="theorem_31"):
    """What theorem 3.1 says of a linear network of two classes, and what is measured: with w the difference of its two
    rows, the bias that balances the accuracies on the training images, and as many test images of both classes
    (or validation images, by `split`). The value is the measured r_2; the parts are its formula, r_inf and its bound at
    each radius, the norms of w, and the numerator w (mu_+ - mu_-). Perturbed images may leave the box: the theorem
    knows none."""

    radii: tuple[float, ...]
    split: str = "test"  # test | validation
    revision: ClassVar[int] = 2  # the first one took the first images of the larger class
    sampled: ClassVar[bool] = True

    def check(self):
        self.choice("split", "test", "validation")
        self.require(all(radius > 0 for radius in self.radii), "radii are positive: the bound divides by them")

    def __call__(self, model, splits):
        weight, _ = weight_and_bias(model, splits.image_shape)
        if len(weight) != 2:
            raise UserError(f"theorem 3.1 speaks of two classes, these data have {len(weight)}: set `classes`")
        weight = weight[1] - weight[0]
        images, labels = splits.train.images.flatten(1).double(), splits.train.labels
        bias = balancing_bias(images @ weight, 2 * labels - 1)
        split = getattr(splits, self.split).sample(None)
        images, labels = split.images.flatten(1), split.labels
        fewest = int(labels.bincount(minlength=2).min())
        chosen = torch.cat([(labels == c).nonzero()[:fewest, 0] for c in (0, 1)]).sort().values
        theory = Binary.of(weight, bias, images[chosen], 2 * labels[chosen] - 1)
        parts = {"formula": theory.r2_formula, "accuracy": theory.accuracy, "numerator": theory.gap,
                 "l0": float((weight != 0).sum()), "l1": float(weight.abs().sum()), "l2": float(weight.norm())}
        each = {"": imagewise.pack(theory.radii.cpu())}
        for radius in self.radii:
            parts |= {f"r_inf {radius:g}": theory.r_inf(radius), f"bound {radius:g}": theory.r_inf_bound(radius)}
            each[f"r_inf {radius:g}"] = imagewise.pack(theory.reaches(radius).cpu())
        return {"value": theory.r2, "total": 2 * fewest, "each": each, "parts": parts}


@settings
class LinearRadii(Measurement, kind="linear_radii"):
    """Exact robustness of a linear network of any number of classes on the test images (or validation images,
    by `split`): the value is r_2, the mean l2 radius with zero for misclassified images, `relative` the mean of radius
    over |x|, of images that are not black; at each linf radius, r_inf is the share of images that no perturbation
    fools, `fgsm` of those that one step along the gradient's sign does not fool. Perturbed images may leave the box."""

    radii: tuple[float, ...]
    split: str = "test"  # test | validation
    revision: ClassVar[int] = 2  # the first one kept no values of single images
    sampled: ClassVar[bool] = True

    def check(self):
        self.choice("split", "test", "validation")
        self.require(all(radius >= 0 for radius in self.radii), "radii cannot be negative")

    def __call__(self, model, splits):
        weight, bias = weight_and_bias(model, splits.image_shape)
        split = getattr(splits, self.split).sample(None)
        images, labels = split.images.flatten(1).double(), split.labels
        r2 = exact_radii(weight, bias, images, labels, "l2")
        r_inf = exact_radii(weight, bias, images, labels, "linf")
        logits = images @ weight.T + bias
        gradient = (logits.softmax(1) - torch.nn.functional.one_hot(labels, len(weight))) @ weight
        lengths = images.norm(dim=1)
        parts = {"relative": float((r2 / lengths)[lengths > 0].mean())}
        each = {"": imagewise.pack(r2.cpu())} | {f"r_inf {radius:g}": imagewise.pack((r_inf > radius).cpu())
                                                 for radius in self.radii}
        for radius in self.radii:
            fooled = (images + radius * gradient.sign()) @ weight.T + bias
            parts |= {f"r_inf {radius:g}": float((r_inf > radius).double().mean()),
                      f"fgsm {radius:g}": float((fooled.argmax(1) == labels).double().mean())}
        return {"value": float(r2.mean()), "total": len(labels), "each": each, "parts": parts}


def weight_and_bias(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Weight (classes, d) and bias (classes,), float64, of a linear network; `UserError` for any other: between image
    and logits there is one linear layer, and nothing else but flattening."""
    layer = linear_layer(traced(model, image_shape))
    node = layer[0] if layer else None
    while node and called(node) in FLATTENING:
        (node,) = node.all_input_nodes
    if layer is None or node is None or node.op != "placeholder":
        raise UserError(f"a linear network is one linear layer on flattened images, {type(model).__name__} does more")
    _, weight, bias = layer
    return weight.double(), weight.new_zeros(len(weight)).double() if bias is None else bias.double()


def exact_radii(weight: Tensor, bias: Tensor, images: Tensor, labels: Tensor, norm: str) -> Tensor:
    """The smallest perturbation (n,) in l2 or linf that changes the answer argmax(W x + b) on images (n, d): the
    smallest over the other classes of logit difference over |w_y - w_k|, in l2 or in l1. Zero for images that are
    misclassified."""
    weight, bias, images = weight.double(), bias.double(), images.double()
    logits = images @ weight.T + bias
    return smallest_radius(logits, labels, row_distances(weight, norm))


def row_distances(weight: Tensor, norm: str) -> Tensor:
    """|w_i - w_k| (classes, classes) of the rows of a weight (classes, d), in the dual norm (l1 for linf): by how much
    a logit difference can change per unit of perturbation of what the layer reads."""
    difference = weight[:, None] - weight[None]
    return difference.abs().sum(2) if norm == "linf" else difference.norm(dim=2)


def smallest_radius(logits: Tensor, labels: Tensor, constants: Tensor, rounding: Tensor | float = 0.0) -> Tensor:
    """The smallest over the other classes of logit difference (n, classes) over its Lipschitz constant (classes,
    classes), (n,); zero for images that are misclassified. Of each difference `rounding`, a number or (n, 1), is left
    out: what may come from rounding alone."""
    gaps = logits.gather(1, labels[:, None]) - logits - rounding
    radii = gaps / constants[labels].clamp_min(torch.finfo(constants.dtype).tiny)
    return radii.scatter(1, labels[:, None], torch.inf).amin(1).clamp_min(0)
