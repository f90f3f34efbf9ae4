"""The CLEVER score: endpoints of known laws, linear networks where it is exact, and what it must never do."""

import pytest
import torch
from scipy import stats

from sparserobust.analysis import lipschitz
from sparserobust.analysis.clever import clever, largest_slope
from sparserobust.analysis.linear import exact_radii
from sparserobust.models import LeNet300100, Linear

SHAPE = (1, 6, 6)


def linear(classes: int = 10):
    torch.manual_seed(0)
    model, images = Linear().build(SHAPE, classes).eval(), torch.rand(12, *SHAPE)
    torch.nn.init.normal_(model[1].weight)
    torch.nn.init.normal_(model[1].bias)
    return model, images, model(images).argmax(1)


@pytest.mark.parametrize("shape, error", [(1.5, 0.05), (3.0, 0.2)])
def test_the_endpoint_of_a_known_law_is_found(shape, error):
    """Endpoints 2 and 200 of laws that lie 1 and 50 below; all else in a batch is smaller than its maximum."""
    drawn = torch.tensor(stats.weibull_max.rvs(shape, size=(100, 8), random_state=0))  # at most 0, one unit wide
    ends, widths = torch.tensor([2.0, 200.0]).repeat(4), torch.tensor([1.0, 50.0]).repeat(4)
    maxima = ends + widths * drawn
    norms = torch.stack([maxima - 1, maxima, maxima - 2], 1)
    wrong = (largest_slope(norms) - ends) / widths
    assert wrong.abs().mean() <= error and wrong.abs().max() <= 3 * error
    beyond = (ends - maxima.amax(0)) / widths
    assert (wrong.abs() < beyond).double().mean() > 0.5  # more often than not nearer than the largest sample


def test_the_endpoint_moves_with_the_samples():
    norms = torch.tensor(stats.weibull_max.rvs(3.0, size=(50, 4, 3), random_state=1)) + 5
    found = largest_slope(norms)
    assert torch.allclose(largest_slope(1e-4 * norms), 1e-4 * found, rtol=1e-6)
    assert torch.allclose(largest_slope(norms + 10), found + 10, rtol=1e-4)
    assert found.dtype == norms.dtype and largest_slope(norms.float()).dtype == torch.float32
    assert (found >= norms.amax((0, 1))).all()


def test_without_an_endpoint_the_largest_sample_counts():
    """Equal samples; tails that never end; two clusters, which no Weibull law fits; and one that does, beside them."""
    generator = torch.Generator().manual_seed(0)
    equal, clusters = torch.full((60,), 0.7), torch.tensor([1.0, 2.0]).repeat(30)
    heavy = (1 - torch.rand(60, generator=generator)) ** -0.5
    clusters = clusters + 1e-3 * torch.rand(60, generator=generator)
    fitting = torch.tensor(stats.weibull_max.rvs(2.0, size=60, random_state=0)).float() + 3
    norms = torch.stack([equal, heavy, clusters, fitting], 1)[:, None]
    found, largest = largest_slope(norms), norms.amax((0, 1))
    assert torch.equal(found[:3], largest[:3]) and found[3] > largest[3]


@pytest.mark.parametrize("ends, chosen", [((3.0, 3.1), 3.0), ((3.1, 3.0), 3.0), ((3.5, 3.5), None)])
def test_the_fit_of_highest_p_value_counts(ends, chosen, monkeypatch):
    """Of two fits with these endpoints to a law that ends at 3; the largest sample where neither can be true."""
    maxima = torch.tensor(stats.weibull_max.rvs(2.0, size=60, random_state=0)) + 3
    largest, width = float(maxima.max()), float(maxima.max() - maxima.min())
    fits = iter([(2.0, (end - largest) / width, 1 / width) for end in ends])
    monkeypatch.setattr(stats.weibull_max, "fit", lambda scaled, shape: next(fits))
    p_values = [stats.kstest(maxima.numpy(), "weibull_max", (2.0, end, 1.0)).pvalue for end in (3.0, 3.1, 3.5)]
    assert p_values[0] > p_values[1] > 0.001 > p_values[2] > 0
    assert largest_slope(maxima[:, None, None]).item() == pytest.approx(chosen or largest)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_linear_networks_get_their_exact_radius(norm):
    """The rival is the runner-up, so with two classes it is the radius itself, with ten that over this rival."""
    for classes in (2, 10):
        model, images, labels = linear(classes)
        scores = clever(model, images, labels, 100.0, norm, batches=5, samples=3)
        weight, bias = model[1].weight.detach(), model[1].bias.detach()
        pairs = model(images).topk(2).indices
        radii = torch.cat([exact_radii(weight[pair], bias[pair], image.flatten()[None], torch.tensor([0]), norm)
                           for pair, image in zip(pairs, images, strict=True)])
        assert torch.allclose(scores.double(), radii, rtol=1e-4)
        nearest = exact_radii(weight, bias, images.flatten(1), labels, norm)
        assert (scores >= nearest * (1 - 1e-4)).all()
        radius = float(scores.median())
        assert torch.allclose(clever(model, images, labels, radius, norm, batches=2, samples=2),
                              scores.clamp_max(radius), rtol=1e-4)
        wrong = (labels + 1) % classes
        assert (clever(model, images, wrong, 1.0, norm, batches=2, samples=2) == 0).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_score_is_margin_over_local_constant(norm):
    torch.manual_seed(0)
    model, images = LeNet300100().build(SHAPE, 10).eval(), torch.rand(7, *SHAPE)
    labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 10

    def chance():
        return torch.Generator().manual_seed(3)

    scores = clever(model, images, labels, 0.3, norm, batches=12, samples=4, generator=chance())
    norms = lipschitz.gradient_norms(model, images, labels, 0.3, 48, norm, chance())
    margins = lipschitz.margins(model, images, labels)
    local = largest_slope(norms.reshape(12, 4, 7))
    assert scores.shape == (7,) and scores[0] == 0 and (scores[1:] > 0).all() and scores.max() <= 0.3
    assert torch.allclose(scores, (margins / local).clamp(0, 0.3))
    assert (local >= norms.amax(0)).all() and (local > norms.amax(0)).any()
    assert (lipschitz.guaranteed_radius(model, images, labels, norm).clamp_max(0.3) <= scores).all()


def test_a_network_that_says_the_same_everywhere_is_safe_everywhere():
    model, images, labels = linear()
    torch.nn.init.zeros_(model[1].weight)
    labels = model(images).argmax(1)
    assert (clever(model, images, labels, 0.5, batches=3, samples=2) == 0.5).all()
    assert (clever(model, images, (labels + 1) % 10, 0.5, batches=3, samples=2) == 0).all()


def test_unknown_norms_are_refused(refusal):
    assert "l1" in refusal(clever, *linear(), 0.5, "l1")
