"""TSCNC (Feng, Lin, Gao & Wei 2025): two constraints that training adds to its loss, so that what is pruned afterwards
is sparse and well-conditioned. Formulas are those of the released code (Asia-Leee/TSCNC)."""

import math

import torch
from torch import Tensor

from sparserobust.config import Sparsifier
from sparserobust.models.gates import gated
from sparserobust.models.noise import noise_scales
from sparserobust.settings import settings
from sparserobust.sparsity import weights

FORMS = ("released", "slogdet", "scale_invariant", "size")  # of the condition number constraint


@settings
class TSCNC(Sparsifier, kind="tscnc"):
    """Transformed sparse constraint joint with condition number constraint. Added to the loss is

        sparse / images * sum over gated filters j of T(p_j c_j)   +   condition * sum over layers of C(W)
            +   weight_decay / 2 * |w|^2 over all weights, biases, scales and shifts that are not gated filters

    with p_j the probability that gate j is open, c_j of `filter_costs`, whose decay is images * weight_decay /
    (1 - drop_rate), T of `transformed_l1` and C of `condition_penalty`. All decay is in the loss, so the recipe's
    weight_decay should be 0. Without the sparse constraint gated filters are decayed like all other weights.

    Both act on weights as they are stored, before gate and mask. With sign `released`, a filter that costs more than
    `a` (its pole) is rewarded; as a grows, T(x) becomes x, the plain expected L0 and L2 penalty."""

    sparse: float = 1.0  # weight of the sparse constraint (lambda); 0: none, and the network needs no gates
    condition: float = 1.0  # weight of the condition number constraint (eta); 0: none
    a: float = 100.0  # of the transform
    sign: str = "literature"  # of the transform: literature | released
    form: str = "scale_invariant"  # of the condition number constraint: `condition_penalty` lists them
    layers: str = "linear"  # that it constrains: linear (as released) | all, convolutions too (our extension)
    l0: float = 1e-3  # cost of a weight that its gate lets through (lambda_0)
    images: int = 50_000  # of the training set (N)
    weight_decay: float = 5e-4
    drop_rate: float = 0.3  # in the decay of gated filters, as released for wide ResNets; for VGG it was 0

    def check(self):
        self.require(min(self.sparse, self.condition, self.l0, self.weight_decay) >= 0,
                     "sparse, condition, l0 and weight_decay cannot be negative")
        self.require(self.a > 0 and self.images > 0, "a and images must be positive")
        self.require(0 <= self.drop_rate < 1, "drop_rate must lie in [0, 1)")
        self.choice("sign", "literature", "released")
        self.choice("layers", "linear", "all")
        self.choice("form", *FORMS)

    def start(self, model):
        self.require(not self.sparse or bool(gated(model)),
                     "this network has no gated filters: choose a model with gates, or sparse 0")
        self.require(not self.condition or bool(self._constrained(model)), "this network has no "
                     f"{'linear' if self.layers == 'linear' else 'convolution or linear'} weights to constrain: "
                     "choose layers all, or condition 0")
        return {}

    def _constrained(self, model) -> dict[str, Tensor]:
        """Name to weight as a matrix (out, in * kernel)."""
        return {name: w.filters.flatten(1) for name, w in weights(model).items()
                if not w.convolves or self.layers == "all"}

    def added_loss(self, model, state):
        gates = gated(model).values()
        spared = {*(gate.log_alpha for gate in gates), *noise_scales(model).values()}  # never decayed
        loss = 0.0
        if self.sparse:
            spared |= {gate.weight for gate in gates}
            decay = self.images * self.weight_decay / (1 - self.drop_rate)
            costs = [gate.open_probability() * filter_costs(gate.weight, decay, self.l0) for gate in gates]
            loss = self.sparse / self.images * transformed_l1(torch.cat(costs), self.a, self.sign).sum()
        if self.condition:
            penalties = {name: condition_penalty(w, self.form) for name, w in self._constrained(model).items()}
            for name, penalty in penalties.items():
                self.require(not penalty.isinf(), f"the condition number of {name} is infinite: start from a network "
                             "without zero or linearly dependent rows, or choose form released")
            loss = loss + self.condition * sum(penalties.values())
        return loss + self.weight_decay / 2 * sum(p.square().sum() for p in model.parameters() if p not in spared)

    @torch.no_grad()
    def after_step(self, model, state, lr):
        for gate in gated(model).values():
            gate.clamp_()


def transformed_l1(x: Tensor, a: float, sign: str) -> Tensor:
    """T(x) of costs x >= 0, of any shape. `literature`: (a + 1) x / (a + x), the transformed l1 penalty, which rises
    towards a + 1 (Zhang & Xin 2017). `released`: (a + 1) x / (a - x), since the released code hands over -x: it rises
    ever faster, has a pole at a, and is negative beyond it."""
    return (a + 1) * x / (a + x if sign == "literature" else a - x)


def filter_costs(weight: Tensor, decay: float, l0: float) -> Tensor:
    """c_j = sum over i of (decay / 2 w_ji^2 + l0), (out,), of a convolution weight (out, in, k, k): what filter j costs
    if its gate is open (Louizos et al. 2018)."""
    return decay / 2 * weight.square().sum((1, 2, 3)) + weight[0].numel() * l0


def condition_penalty(weight: Tensor, form: str) -> Tensor:
    """C(W), a scalar, of a weight (out, in):

    - `released`: (log(1e-5 + det(W W^T / out)))^2, in float32. It pulls the geometric mean of the singular values to
      sqrt(out), all of their squares by the same amount. The determinant underflows for 100 classes, and is zero where
      out > in: then this is the constant (log 1e-5)^2 and has no gradient. So it is here where rounding makes the
      determinant negative or NaN (the released code goes on with NaN); where it overflows, its logarithm is taken.
    - `slogdet`: (log det(W W^T / n))^2 in float64, which does not underflow. Its gradient is large at first: with lr
      0.1 and momentum 0.9, a weight of 1 in the loss diverges for 10 and for 100 classes, one of 0.001 does not.
    - `scale_invariant`: n log(|W|_F^2 / n) - log det(W W^T) in float64, our reading of the paper's name for it: zero if
      and only if all singular values are equal, and the same for all multiples of W.
    - `size`: (n log(|W|_F^2 / n) - n log n)^2, a control that knows nothing of conditioning. The logarithm in `slogdet`
      is this one's minus `scale_invariant`: where the singular values are equal, `size` and `slogdet` agree, so that
      both pull |W|_F to n.

    All but the first take the smaller Gram matrix, n x n, W^T W where out > in; `slogdet` and `scale_invariant` are
    infinite where a singular value is zero, `size` where all are."""
    if weight.device.type == "mps":  # without float64, and without determinants
        return condition_penalty(weight.cpu(), form).to(weight)
    if form == "released":
        return _released_penalty(weight.float())
    weight = (weight if weight.shape[0] <= weight.shape[1] else weight.T).double()
    n = len(weight)
    if form == "size":
        return (n * (weight.square().sum() / n).log() - n * math.log(n)).square()
    logdet = torch.linalg.slogdet(weight @ weight.T).logabsdet
    if form == "slogdet" or logdet.isinf():  # infinite in either form; a weight of zeros would be inf - inf below
        return (logdet - n * math.log(n)).square()
    return n * (weight.square().sum() / n).log() - logdet


def _released_penalty(weight: Tensor) -> Tensor:
    gram = weight @ weight.T / len(weight)
    det = torch.linalg.det(gram)
    if len(weight) > weight.shape[1] or not det > 0:  # zero but for rounding
        det = 0 * gram.sum()
    if det == torch.inf:
        return torch.linalg.slogdet(gram).logabsdet.square()  # 1e-5 is nothing beside it
    return (1e-5 + det).log().square()
