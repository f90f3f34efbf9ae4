"""Theorem 3.1 and exact radii, on random linear classifiers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparserobust.analysis.linear import Binary, balancing_bias, exact_radii
from sparserobust.attacks import FGSM, PGD
from sparserobust.models.lenet import Linear


def problem(seed: int, n: int = 200, d: int = 9):
    """Two Gaussian clouds of n images each, and a classifier that knows them roughly."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.cat([torch.ones(n), -torch.ones(n)]).double()
    direction, tilt = torch.randn(2, d, generator=generator, dtype=torch.float64)
    images = 0.4 + 0.2 * signs[:, None] * direction + 0.3 * torch.randn(2 * n, d, generator=generator).double()
    return direction + 0.5 * tilt, images, signs


@given(st.integers(0, 500))
def test_the_bias_makes_both_classes_equally_accurate(seed):
    weight, images, signs = problem(seed)
    right = signs * (images @ weight + balancing_bias(images @ weight, signs)) > 0
    assert right[signs == 1].sum() == right[signs == -1].sum()


@given(st.integers(0, 500))
def test_the_formula_for_r2_is_exact_when_balanced(seed):
    weight, images, signs = problem(seed)
    balanced = Binary.of(weight, balancing_bias(images @ weight, signs), images, signs)
    assert balanced.r2 == pytest.approx(balanced.r2_formula, rel=1e-9)


def test_the_formula_for_r2_fails_when_not_balanced():
    weight, images, signs = problem(0)
    skewed = Binary.of(weight, balancing_bias(images @ weight, signs) + float(weight.norm()), images, signs)
    assert abs(skewed.r2 - skewed.r2_formula) > 0.05 * skewed.r2


@given(st.integers(0, 500), st.floats(0.001, 2))
def test_no_accuracy_lies_above_its_bound(seed, epsilon):
    weight, images, signs = problem(seed)
    balanced = Binary.of(weight, balancing_bias(images @ weight, signs), images, signs)
    assert balanced.r_inf(epsilon) <= balanced.r_inf_bound(epsilon) + 1e-12
    assert balanced.r_inf(0) == balanced.accuracy


def test_the_bound_is_met_when_all_margins_are_the_same():
    images = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    two = Binary.of(torch.tensor([2.0, 1.0]), 0.0, images, torch.tensor([1.0, -1.0]))
    assert two.r_inf_bound(2 / 3) == pytest.approx(1.0) and two.r_inf(2 / 3 - 1e-9) == 1.0
    assert two.r2 == pytest.approx(2 / 5**0.5)


def test_classes_of_unequal_size_are_refused(refusal):
    weight, images, signs = problem(0)
    assert "equal size" in refusal(Binary.of, weight, 0.0, images[1:], signs[1:])


@pytest.mark.parametrize("norm", ["l2", "linf"])
@given(seed=st.integers(0, 500))
def test_exact_radii_are_exact(norm, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, bias, images = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((5, 7), (5,), (30, 7)))
    labels = (images @ weight.T + bias).argmax(1)
    radii = exact_radii(weight, bias, images, labels, norm)
    for image, label, radius in zip(images, labels, radii, strict=True):
        reached = False
        for other in range(5):
            row = weight[other] - weight[label]
            step = row.sign() if norm == "linf" else row / row.norm().clamp_min(1e-12)
            assert (weight @ (image + 0.999 * radius * step) + bias).argmax() == label
            reached |= bool((weight @ (image + 1.001 * radius * step) + bias).argmax() != label)
        assert reached
    assert (exact_radii(weight, bias, images, (labels + 1) % 5, norm) == 0).all()


def test_fgsm_may_stay_behind_the_exact_radius_but_never_gets_inside():
    torch.manual_seed(0)
    model, images = Linear().build((1, 6, 6), 10), 0.5 + 0.05 * torch.randn(200, 1, 6, 6)
    torch.nn.init.normal_(model[1].weight)
    model[1].bias.data = -0.5 * model[1].weight.data.sum(1)  # so that no class leads at the mean image
    labels = model(images).argmax(1)
    radii = exact_radii(model[1].weight.detach(), model[1].bias.detach(), images.flatten(1), labels, "linf")
    epsilon = float(radii.median())
    assert epsilon < 0.1  # far from the edges of the box
    survives = {name: model(attack(model, images, labels)).argmax(1) == labels for name, attack in {
        "FGSM": FGSM(epsilon=epsilon), "PGD": PGD(epsilon=epsilon, step_size=epsilon / 4, steps=20)}.items()}
    certified = radii > epsilon
    assert 20 < certified.sum() < 180
    assert all(kept[radii > epsilon * 1.0001].all() for kept in survives.values())
    assert survives["FGSM"].sum() > certified.sum()  # ten classes: the sign of the loss's gradient is not the worst
