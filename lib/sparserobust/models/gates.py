"""Hard-concrete gates on the filters of a convolution (Louizos, Welling & Kingma 2018), as released by Feng et al. 2025
(Asia-Leee/TSCNC): a random factor in [0, 1] for each filter, which is exactly 0 or 1 with positive probability."""

import math

import torch
from torch import Tensor, nn

GAMMA, ZETA = -0.1, 1.1  # the interval that a sample is stretched to before it is clipped to [0, 1]
TEMPERATURE = 2 / 3
LIMITS = (math.log(1e-2), math.log(1e2))  # of log_alpha: open with probability 0.047 and 0.998
EPSILON = 1e-6  # how far uniform numbers and probabilities stay away from 0 and 1


class GatedConv2d(nn.Conv2d):
    """A convolution with weight z_j W_j, where the gate z_j of filter j depends on a learned `log_alpha` (out,). A bias
    would not be gated. With u ~ U(0, 1) in training mode, and a deterministic gate in eval mode:

        s = sigmoid((logit(u) + log_alpha) / TEMPERATURE)   or, in eval mode, s = sigmoid(log_alpha)
        z = min(1, max(0, s (ZETA - GAMMA) + GAMMA))
    """

    def __init__(self, *arguments, drop_rate: float = 0.3, **more):
        super().__init__(*arguments, **more)
        self.draw_gates(drop_rate)

    def draw_gates(self, drop_rate: float = 0.3) -> None:
        """Fresh gates, log_alpha ~ N(log((1 - drop_rate) / drop_rate), 0.01^2): by default they are open with
        probability 0.920, and 0.74 in eval mode."""
        mean = math.log((1 - drop_rate) / drop_rate)
        # flat: what counts, penalises or prunes weights goes by their 2 or 4 dimensions
        self.log_alpha = nn.Parameter(self.weight.new_empty(self.out_channels).normal_(mean, 0.01))

    def gates(self) -> Tensor:
        """(out,): in training mode one fresh sample from torch's global generator, in eval mode what it always is."""
        if not self.training:
            return _stretched(self.log_alpha)
        u = torch.empty_like(self.log_alpha).uniform_(EPSILON, 1 - EPSILON)
        return _stretched((u.logit() + self.log_alpha) / TEMPERATURE)

    def open_probability(self) -> Tensor:
        """Probability (out,) that a sampled gate is not zero."""
        closed = torch.sigmoid(TEMPERATURE * math.log(-GAMMA / ZETA) - self.log_alpha)
        return 1 - closed.clamp(EPSILON, 1 - EPSILON)

    def effective_weight(self) -> Tensor:
        """The weight (out, in, k, k) of eval mode, in either mode."""
        return self._gated_weight(_stretched(self.log_alpha))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self._gated_weight(self.gates()), self.bias)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring log_alpha back into its limits, as after every step of training."""
        self.log_alpha.clamp_(*LIMITS)

    def _gated_weight(self, gates: Tensor) -> Tensor:
        return self.weight * gates.view(-1, 1, 1, 1)


def add_gates(layer: nn.Conv2d) -> None:
    """Make a convolution a gated one, which keeps its weight."""
    layer.__class__ = GatedConv2d
    assert isinstance(layer, GatedConv2d)
    layer.draw_gates()


def fold_gates(model: nn.Module) -> None:
    """Make every gated convolution a plain one with the weight it has in eval mode; eval mode computes what it did."""
    for layer in gated(model).values():
        with torch.no_grad():
            layer.weight.copy_(layer.effective_weight())
        del layer.log_alpha
        layer.__class__ = nn.Conv2d  # type: ignore[assignment]  # its base, whose attributes it has


def gated(model: nn.Module) -> dict[str, GatedConv2d]:
    """Name to layer of all convolutions with gates."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, GatedConv2d)}


def acting_weight(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """The weight with which a layer acts in eval mode, noise aside: its own, times gates if it has any."""
    return layer.effective_weight() if isinstance(layer, GatedConv2d) else layer.weight


def _stretched(x: Tensor) -> Tensor:
    """Sigmoid, stretched to (GAMMA, ZETA), clipped to [0, 1]."""
    return (torch.sigmoid(x) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
