"""TSCNC: penalties against singular values, enumeration and finite differences; the numbers known of the released
code; the hooks in a small training."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scaffolding import assert_same_training, interrupted
from sparserobust import training
from sparserobust.config import Model, Sparsifier
from sparserobust.models import NoisyWeights, PreActResNet
from sparserobust.models.gates import GatedConv2d, gated
from sparserobust.models.noise import noise_scales
from sparserobust.settings import settings
from sparserobust.sparsifiers.constraints import TSCNC, condition_penalty, filter_costs, transformed_l1

DEAD = math.log(1e-5) ** 2  # the released condition number constraint of a singular matrix
LIMIT = math.log(100)  # of |log_alpha|
SIGNS = ["literature", "released"]
FORMS = ["released", "slogdet", "scale_invariant", "size"]


def weights(outputs: int, inputs: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    """(outputs, inputs) from N(0, 2 / inputs)."""
    chance = torch.Generator().manual_seed(seed)
    return (torch.randn(outputs, inputs, generator=chance, dtype=torch.float64) * math.sqrt(2 / inputs)).to(dtype)


def gated_convolution(inputs: int, outputs: int, stride: int = 1, bias: bool = False) -> GatedConv2d:
    """3x3, gates as they begin: a drop rate of 0.3."""
    return GatedConv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias, drop_rate=0.3)


def two_gated(channels: int, classes: int) -> nn.Module:
    """Stem, norm, two gated convolutions (one with a bias), linear."""
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), gated_convolution(4, 3, bias=True),
                         nn.ReLU(), gated_convolution(3, 5, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(5, classes))


@settings
class TwoGated(Model):
    cost = 1.0

    def build(self, image_shape, classes):
        return two_gated(image_shape[0], classes)


@pytest.fixture
def net():
    """`two_gated`, float64; gates from nearly closed to nearly open, no parameter zero."""
    net = two_gated(2, 3).double()
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    for gate in gated(net).values():
        gate.log_alpha.data = torch.linspace(-2, 3, len(gate.log_alpha), dtype=torch.float64)
    return net


# -------------------------------------------------------------------------------------------- the transform


@given(st.floats(0, 1e3), st.floats(0.1, 1e3))
def test_the_transformed_l1_penalty_and_what_was_released_of_it(x, a):
    literature, released = (float(transformed_l1(torch.tensor(x, dtype=torch.float64), a, sign)) for sign in SIGNS)
    assert literature == pytest.approx((a + 1) * x / (a + x))
    assert 0 <= literature <= a + 1
    if x != a:
        assert released == pytest.approx((a + 1) * x / (a - x))
        assert (released >= 0) == (x < a or x == 0)  # a pole at a, negative beyond


def test_the_literature_saturates_and_what_was_released_explodes():
    x = torch.linspace(0, 99, 100, dtype=torch.float64)
    for sign, bend in (("literature", -1), ("released", 1)):
        y = transformed_l1(x, 100.0, sign)
        assert (y.diff() > 0).all()
        assert (bend * y.diff().diff() > 0).all()
    assert transformed_l1(torch.tensor(1e9), 100.0, "literature") == pytest.approx(101)


def test_filter_costs_by_hand():
    w = weights(3, 2 * 3 * 3).view(3, 2, 3, 3)
    expected = [sum(0.7 / 2 * v**2 + 0.03 for v in row) for row in w.flatten(1).tolist()]
    assert filter_costs(w, 0.7, 0.03).tolist() == pytest.approx(expected)


def one_filter(inputs: int, squares: float) -> nn.Module:
    """A gated 3x3 convolution of one filter with this |w|^2 and nothing else; its gate begins with drop rate 0.3."""
    layer = gated_convolution(inputs, 1).double()
    layer.log_alpha.data.fill_(math.log(0.7 / 0.3))
    layer.weight.data *= math.sqrt(squares) / layer.weight.norm()
    return nn.Sequential(layer)


def sparse_penalty(layer: nn.Module, **changes) -> float:
    """T(x) of the only filter."""
    return 50_000 * float(TSCNC(condition=0.0, **changes).added_loss(layer, {}).detach())


def test_numbers_of_the_released_code_for_wide_resnets():
    """Dossier, section 3.2: a filter of 1440 weights as initialised costs 34, transformed 26, as released 52; the pole
    is at |w|^2 = 6.0."""
    layer = one_filter(160, 2.0)
    assert sparse_penalty(layer, a=1e12) == pytest.approx(34, abs=0.5)
    assert sparse_penalty(layer) == pytest.approx(26, abs=0.5)
    assert sparse_penalty(layer, sign="released") == pytest.approx(52, abs=0.6)
    assert sparse_penalty(one_filter(160, 5.95), sign="released") > 1e4
    assert sparse_penalty(one_filter(160, 6.05), sign="released") < -1e4


@pytest.mark.parametrize(("inputs", "pole"), [(64, 8.6), (512, 8.3)])
def test_numbers_of_the_released_code_for_vgg(inputs, pole):
    values = [sparse_penalty(one_filter(inputs, pole + d), sign="released", drop_rate=0.0) for d in (-0.1, 0.1)]
    assert values[0] > 5e3 and values[1] < -5e3


@pytest.mark.parametrize("sign", SIGNS)
def test_without_a_transform_it_is_the_expected_cost_of_open_gates(sign, net):
    """By enumeration of which gates are open."""
    expected = 0.0
    for gate in gated(net).values():
        p = torch.sigmoid(gate.log_alpha - 2 / 3 * math.log(0.1 / 1.1)).tolist()
        c = [sum(200 * 0.01 / 0.8 / 2 * v**2 + 0.05 for v in f) for f in gate.weight.flatten(1).tolist()]
        for opened in product((0, 1), repeat=len(p)):
            chance = math.prod(q if o else 1 - q for q, o in zip(p, opened, strict=True))
            expected += chance * sum(o * cost for o, cost in zip(opened, c, strict=True))
    plain = TSCNC(sparse=3.0, condition=0.0, a=1e13, sign=sign, l0=0.05, images=200, weight_decay=0.01, drop_rate=0.2)
    decay = replace(plain, sparse=0.0).added_loss(net, {}) - sum(
        0.01 / 2 * gate.weight.square().sum() for gate in gated(net).values())
    assert float((plain.added_loss(net, {}) - decay).detach()) == pytest.approx(3 / 200 * expected, rel=1e-8)


# -------------------------------------------------------------------------------- the condition number


def expected_condition(singular: list[float], form: str) -> float:
    n, squares = len(singular), [s**2 for s in singular]
    if form == "released":
        return math.log(1e-5 + math.prod(q / n for q in squares)) ** 2
    if form == "slogdet":
        return sum(math.log(q / n) for q in squares) ** 2
    if form == "size":
        return (n * math.log(sum(squares) / n**2)) ** 2
    return sum(math.log(sum(squares) / n) - math.log(q) for q in squares)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(3, 7), (5, 5), (1, 4), (7, 3)])
def test_condition_penalties_are_functions_of_singular_values(shape, form):
    w = 3 * weights(*shape)
    wide = shape[0] > shape[1] and form == "released"
    expected = DEAD if wide else expected_condition(torch.linalg.svdvals(w).tolist(), form)
    assert float(condition_penalty(w, form)) == pytest.approx(expected, rel=1e-4 if form == "released" else 1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (5, 3)])
def test_gradients_of_condition_penalties(shape, form):
    """Against finite differences of the formula in singular values."""
    w, h = weights(*shape), 1e-5

    def moved(i, step) -> float:
        changed = w.clone()
        changed.view(-1)[i] += step
        return expected_condition(torch.linalg.svdvals(changed).tolist(), form)

    slopes = torch.tensor([(moved(i, h) - moved(i, -h)) / (2 * h) for i in range(w.numel())]).double().view(shape)
    if form == "released" and shape == (5, 3):
        slopes = torch.zeros(shape)  # a determinant that is always zero
    variable = (w.float() if form == "released" else w).requires_grad_()
    condition_penalty(variable, form).backward()
    tolerance = 1e-2 if form == "released" else 1e-6
    torch.testing.assert_close(variable.grad.double(), slopes.double(), rtol=tolerance, atol=tolerance)


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=6), st.floats(0.01, 100), st.booleans(), st.integers(0, 99))
def test_the_scale_invariant_form_sees_only_how_unequal_singular_values_are(singular, scale, transposed, seed):
    n = len(singular)
    u, v = (torch.linalg.qr(weights(k, n, seed + k)).Q for k in (n, n + 3))
    w = u @ torch.diag(torch.tensor(singular, dtype=torch.float64)) @ v.T
    w = w.T if transposed else w
    value = float(condition_penalty(w, "scale_invariant"))
    assert value == pytest.approx(expected_condition(singular, "scale_invariant"), abs=1e-8)
    assert value > -1e-8
    assert value > 1e-6 or max(singular) < 1.01 * min(singular)
    assert value == pytest.approx(float(condition_penalty(scale * w, "scale_invariant")), abs=1e-8)
    assert float(condition_penalty(u @ v.T, "scale_invariant")) == pytest.approx(0, abs=1e-10)


def test_the_released_form_is_dead_for_100_classes_and_the_others_are_not():
    w = weights(100, 512, dtype=torch.float32).requires_grad_()
    assert torch.linalg.det(w @ w.T / 100) == 0 < torch.linalg.det(w.double() @ w.double().T / 100) < 1e-160
    for same in (w, w.double()):  # computed in float32
        penalty = condition_penalty(same, "released")
        assert penalty.dtype == torch.float32 and float(penalty.detach()) == pytest.approx(DEAD)
    condition_penalty(w, "released").backward()
    assert not w.grad.any()
    exponent = math.sqrt(float(condition_penalty(w, "slogdet").detach())) / math.log(10)
    assert exponent == pytest.approx(174, abs=3)  # det = 1e-174 underflows, even 1e-5 in float64 hides it
    for form in FORMS[1:]:
        w.grad = None
        condition_penalty(w, form).backward()
        assert w.grad.dtype == torch.float32 and w.grad.norm() > 1


def test_the_released_form_is_dead_for_layers_with_more_outputs_than_inputs():
    w = weights(256, 128, dtype=torch.float32).requires_grad_()
    condition_penalty(w, "released").backward()
    assert float(condition_penalty(w, "released").detach()) == pytest.approx(DEAD)
    assert not w.grad.any()
    for form in FORMS[1:]:
        a, b = (float(condition_penalty(m.detach(), form)) for m in (w, w.T))
        assert a == pytest.approx(b)


def descended(w: torch.Tensor, form: str, steps: int) -> torch.Tensor:
    """Singular values after plain gradient descent with lr 0.1 and weight decay 5e-4."""
    w = w.clone().requires_grad_()
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(condition_penalty(w, form), w)
        w.data -= 0.1 * (gradient + 5e-4 * w.data)
    return torch.linalg.svdvals(w.detach())


def test_the_released_form_rescales_and_equalises_a_classifier_of_ten_classes():
    """Dossier, trap 1: singular values from 1.24 - 1.56 to 3.12 - 3.21, of geometric mean sqrt(10)."""
    w = weights(10, 640, dtype=torch.float32)
    assert float(condition_penalty(w, "released")) == pytest.approx(132.4, abs=0.15)
    before = torch.linalg.svdvals(w)
    singular = descended(w, "released", 10)
    assert singular.max() / singular.min() < 1.05 < 1.15 < before.max() / before.min()
    assert float(singular.log().mean().exp()) == pytest.approx(math.sqrt(10), rel=0.01)


def test_the_scale_invariant_form_equalises_without_rescaling():
    before = torch.linalg.svdvals(weights(10, 640))
    after = descended(weights(10, 640), "scale_invariant", 30)
    assert after.max() / after.min() < 1.01 < 1.15 < before.max() / before.min()
    assert float(after.norm()) == pytest.approx(float(before.norm()), rel=0.05)


def test_the_size_form_rescales_without_equalising():
    """To where slogdet would bring it: a Frobenius norm of 10, whatever the singular values are."""
    before = torch.linalg.svdvals(weights(10, 640))
    assert before.max() / before.min() > 1.15
    w = weights(10, 640).requires_grad_()
    for _ in range(600):
        (gradient,) = torch.autograd.grad(condition_penalty(w, "size"), w)
        w.data -= 0.002 * gradient
    after = torch.linalg.svdvals(w.detach())
    assert after.div(before).max() == pytest.approx(float(after.div(before).min()), rel=1e-8)
    assert float(after.norm()) == pytest.approx(10, rel=1e-3)


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=6))
def test_slogdet_is_size_minus_shape(singular):
    w, n = torch.diag(torch.tensor(singular, dtype=torch.float64)), len(singular)
    size = math.log(sum(s**2 for s in singular) / n**2) * n
    assert size**2 == pytest.approx(float(condition_penalty(w, "size")), abs=1e-7)
    difference = size - float(condition_penalty(w, "scale_invariant"))
    assert difference**2 == pytest.approx(float(condition_penalty(w, "slogdet")), rel=1e-6, abs=1e-6)


# ------------------------------------------------------------------------------------------- what is added


CHANGES = {"default": {}, "released": {"sign": "released", "form": "released"}, "slogdet": {"form": "slogdet"},
           "all": {"layers": "all"}, "sparse only": {"condition": 0.0}, "condition only": {"sparse": 0.0},
           "neither": {"sparse": 0.0, "condition": 0.0}}
every_change = pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)


@every_change
def test_the_added_loss_by_hand(changes, net):
    sparsifier = TSCNC(**{"sparse": 2.0, "condition": 0.3, "a": 50.0, "l0": 0.02, "images": 300,
                          "weight_decay": 0.03, "drop_rate": 0.4} | changes)
    expected = 0.0
    for layer in net:
        for name, p in layer.named_parameters():
            if name == "log_alpha" or (name == "weight" and isinstance(layer, GatedConv2d) and sparsifier.sparse):
                continue
            expected += 0.03 / 2 * sum(v**2 for v in p.flatten().tolist())
        if isinstance(layer, GatedConv2d) and sparsifier.sparse:
            p = torch.sigmoid(layer.log_alpha - 2 / 3 * math.log(0.1 / 1.1)).tolist()
            for q, f in zip(p, layer.weight.flatten(1).tolist(), strict=True):
                x = q * sum(300 * 0.03 / 0.6 / 2 * v**2 + 0.02 for v in f)
                expected += 2 / 300 * 51 * x / (50 - x if sparsifier.sign == "released" else 50 + x)
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and sparsifier.layers == "all"):
            singular = torch.linalg.svdvals(layer.weight.detach().flatten(1)).tolist()
            expected += sparsifier.condition * expected_condition(singular, sparsifier.form)
    assert float(sparsifier.added_loss(net, {}).detach()) == pytest.approx(expected, rel=1e-6)


@every_change
def test_the_gradient_of_the_added_loss(changes, net):
    """Along a random direction for each parameter, against finite differences."""
    sparsifier = TSCNC(**{"images": 20, "l0": 0.05, "weight_decay": 0.02} | changes)
    net.zero_grad()
    sparsifier.added_loss(net, {}).backward()
    h = 1e-2 if sparsifier.form == "released" else 1e-5  # that form is float32 inside
    for p in net.parameters():
        direction = torch.randn_like(p)
        values = []
        for step in (h, -2 * h, h):
            p.data += step * direction
            values.append(float(sparsifier.added_loss(net, {}).detach()))
        slope = 0.0 if p.grad is None else float((p.grad * direction).sum())
        assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=5e-3 if h == 1e-2 else 1e-5, abs=1e-3 * h)


def test_scales_of_noise_and_gates_are_not_decayed(net):
    noisy = NoisyWeights(model=PreActResNet(depth=8, width=2)).build((1, 8, 8), 10)
    TSCNC(sparse=0.0, condition=0.0).added_loss(noisy, {}).backward()
    scales = {id(p) for p in noise_scales(noisy).values()}
    assert scales and all((p.grad is None) == (id(p) in scales) for p in noisy.parameters())
    TSCNC(sparse=0.0).added_loss(net, {}).backward()
    assert all(gate.log_alpha.grad is None and gate.weight.grad is not None for gate in gated(net).values())


# ---------------------------------------------------------------------------------------------- training


def test_with_both_constraints_off_it_is_weight_decay(tiny_run, digits):
    run = tiny_run(precision="float32", weight_decay=0.05)
    inside = tiny_run(precision="float32", weight_decay=0.0,
                      sparsifier=TSCNC(sparse=0.0, condition=0.0, weight_decay=0.05))
    a, b = (training.train(r, digits).model.state_dict() for r in (run, inside))
    for name, t in a.items():
        torch.testing.assert_close(t, b[name], rtol=1e-3, atol=1e-5)


GATED = {"model": TwoGated(), "weight_decay": 0.0, "batch_size": 16}


@pytest.mark.parametrize("sign", SIGNS)
def test_gates_close_where_they_cost_and_stay_within_their_limits(sign, tiny_run, digits):
    result = training.train(tiny_run(**GATED, sparsifier=TSCNC(sparse=0.0)), digits)
    opened = [gate.open_probability().mean() for gate in gated(result.model).values()]
    costly = TSCNC(sparse=400.0, images=64, l0=0.1, sign=sign)
    result = training.train(tiny_run(**GATED, epochs=6, lr=0.3, sparsifier=costly), digits)
    assert all(math.isfinite(row["loss"]) for row in result.history)
    for gate, before in zip(gated(result.model).values(), opened, strict=True):
        assert gate.open_probability().mean() < 0.5 * before
        assert float(gate.log_alpha.detach().min()) == pytest.approx(-LIMIT)
        assert gate.log_alpha.abs().max() <= LIMIT + 1e-5


def test_the_condition_number_falls_in_training(tiny_run, digits):
    kappa = {}
    for condition in (0.0, 1.0):
        run = tiny_run(**GATED, epochs=10, sparsifier=TSCNC(sparse=0.0, condition=condition))
        singular = torch.linalg.svdvals(training.train(run, digits).model[-1].weight)
        kappa[condition] = float((singular.max() / singular.min()).detach())
    assert kappa[1.0] < 1.1 < 2 < kappa[0.0]


@pytest.mark.parametrize("changes", [GATED | {"sparsifier": TSCNC(images=64, layers="all"), "averaging": 0.9},
                                     {"sparsifier": TSCNC(sparse=0.0)}], ids=["gated", "without gates"])
def test_an_interrupted_training_equals_an_undisturbed_one(changes, tiny_run, digits, tmp_path):
    run = tiny_run(**changes, epochs=3)
    assert_same_training(interrupted(run, digits, tmp_path / "checkpoint", [2]), training.train(run, digits))


def test_a_network_without_gates_has_no_sparse_constraint(tiny_run, digits, refusal):
    assert "gate" in refusal(training.train, tiny_run(sparsifier=TSCNC()), digits)
    training.train(tiny_run(sparsifier=TSCNC(sparse=0.0), epochs=1), digits)


@pytest.mark.parametrize("wrong", [
    {"sparse": -1.0}, {"condition": -1.0}, {"l0": -1e-3}, {"weight_decay": -1e-4}, {"a": 0.0}, {"images": 0},
    {"drop_rate": 1.0}, {"drop_rate": -0.1}, {"sign": "paper"}, {"form": "log"}, {"layers": "conv"},
], ids=str)  # fmt: skip
def test_wrong_settings_are_refused(wrong, refusal):
    assert next(iter(wrong)) in refusal(TSCNC, **wrong)


def test_settings_in_plain_data():
    assert Sparsifier.parse({"kind": "tscnc", "sparse": 0, "a": "1e3", "sign": "released"}) == TSCNC(
        sparse=0.0, a=1000.0, sign="released")
    assert len({TSCNC().identity, TSCNC(sign="released").identity, TSCNC(form="slogdet").identity}) == 3
