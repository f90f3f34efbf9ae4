"""The CLEVER score: the smallest perturbation that fools a network, estimated from gradients (Weng et al. 2018)."""

import warnings

import numpy as np
import torch
from torch import Tensor, nn

from sparserobust.analysis.lipschitz import gradient_norms, margins

SHAPES = (1.0, 10.0)  # to start fits from; IBM/CLEVER-Robustness-Score tries seven, for the same endpoints as a rule
LARGEST_SHAPE = 100.0  # beyond it the fitted law is Gumbel's, which has no endpoint
LOWEST_P = 1e-3  # as in the reference


def clever(model: nn.Module, images: Tensor, labels: Tensor, radius: float, norm: str = "l2", batches: int = 50,
           samples: int = 64, generator: torch.Generator | None = None) -> Tensor:
    """Score (n,) in units of the perturbation: the margin over the runner-up of the clean image, divided by the local
    Lipschitz constant of that margin in the l2 or linf ball; never above `radius`, zero for misclassified images. The
    constant is estimated from `batches` times `samples` gradients: no guarantee, and too high a score where gradients
    are masked. Points may leave the box of the pixels."""
    norms = gradient_norms(model, images, labels, radius, batches * samples, norm, generator)
    constants = largest_slope(norms.view(batches, samples, -1))
    gaps = margins(model, images, labels).clamp_min(0)
    return (gaps / constants.clamp_min(torch.finfo(constants.dtype).tiny)).clamp_max(radius)


def largest_slope(norms: Tensor) -> Tensor:
    """The largest gradient norm (n,) that batches of them (batches, samples, n) point to: the endpoint of the reverse
    Weibull law of the batches' maxima."""
    maxima = norms.amax(1).double().cpu().T.numpy()
    return torch.tensor([_endpoint(m) for m in maxima], dtype=norms.dtype, device=norms.device)


def _endpoint(maxima: np.ndarray) -> float:
    """Endpoint of the law of these maxima (batches,), by maximum likelihood from several initial shapes; the fit of
    highest Kolmogorov-Smirnov p-value counts. Where none has an endpoint, or none fits, the largest of the maxima."""
    from scipy import stats

    largest, spread = maxima.max(), maxima.max() - maxima.min()
    if spread == 0:
        return largest
    scaled = (maxima - largest) / spread  # in [-1, 0], where the search finds its way more easily
    best, end = LOWEST_P, 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for shape in SHAPES:
            try:
                law = stats.weibull_max.fit(scaled, shape)
            except stats.FitError:
                continue
            p = stats.kstest(scaled, "weibull_max", law).pvalue
            if p > best and law[0] <= LARGEST_SHAPE:
                best, end = p, max(law[1], 0.0)
    return largest + spread * end
