"""Linear classifiers under attack, where everything is exact (Guo et al. 2018, section 3.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparserobust.errors import UserError


def balancing_bias(scores: Tensor, signs: Tensor) -> float:
    """The bias b at which sign(scores + b) is right equally often on both classes, as nearly as these (n,) scores
    allow: theorem 3.1 wants the two accuracies to be the same. `signs` (n,) are -1 and +1."""
    candidates = (-scores).unique()
    middles = torch.cat([candidates[:1] - 1, (candidates[1:] + candidates[:-1]) / 2, candidates[-1:] + 1])
    right = (scores + middles[:, None]) * signs > 0  # (biases, n)
    positive, negative = ((right & (signs == s)).double().sum(1) / (signs == s).sum() for s in (1, -1))
    return float(middles[(positive - negative).abs().argmin()])


@dataclass(frozen=True)
class Binary:
    """sign(w x + b) on balanced classes: what theorem 3.1 speaks of. `margins` (n,) are y (w x + b)."""

    weight: Tensor
    margins: Tensor
    gap: float  # w (mu_+ - mu_-), the mean difference of the correctly classified, along w

    @classmethod
    def of(cls, weight: Tensor, bias: float, images: Tensor, signs: Tensor) -> "Binary":
        """`images` (n, d), `signs` (n,) of -1 and +1 in equal numbers; `UserError` if they are not."""
        if (signs == 1).sum() != (signs == -1).sum():
            raise UserError("theorem 3.1 speaks of two classes of equal size: take as many images of both")
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
    def r2(self) -> float:
        """Measured: mean l2 distance to the boundary, zero for images that are misclassified."""
        return float(self.margins.clamp_min(0).mean() / self.weight.norm())

    @property
    def r2_formula(self) -> float:
        """t / 2 w (mu_+ - mu_-) / |w|_2, equal to `r2` where both classes are classified equally well."""
        return self.accuracy / 2 * self.gap / float(self.weight.norm())

    def r_inf(self, epsilon: float) -> float:
        """Measured: accuracy under the worst perturbation of l-infinity size epsilon, which is FGSM's here."""
        return float((self.margins > epsilon * self.weight.abs().sum()).double().mean())

    def r_inf_bound(self, epsilon: float) -> float:
        """t / (2 epsilon) w (mu_+ - mu_-) / |w|_1; vacuous where it exceeds one."""
        return self.accuracy / (2 * epsilon) * self.gap / float(self.weight.abs().sum())


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


def smallest_radius(logits: Tensor, labels: Tensor, constants: Tensor) -> Tensor:
    """The smallest over the other classes of logit difference (n, classes) over its Lipschitz constant (classes,
    classes), (n,); zero for images that are misclassified."""
    gaps = logits.gather(1, labels[:, None]) - logits
    radii = gaps / constants[labels].clamp_min(torch.finfo(constants.dtype).tiny)
    return radii.scatter(1, labels[:, None], torch.inf).amin(1).clamp_min(0)
