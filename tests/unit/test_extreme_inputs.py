"""Losses, penalties and attacks at the edge of what is legal: logits up to 1e4, weights that are
zero, tiny or huge, blank images, batches of one. What comes out is finite, or a `UserError` says
why not; on ordinary inputs it is what the plain formulas give."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from scaffolding import generator, seeded
from sparserobust import Data, Recipe, Run
from sparserobust.apgd import APGD, Thrifty
from sparserobust.attacks import FGSM, PGD, CarliniWagnerL2, CarliniWagnerReleased, DeepFool, RandomisedFGSM, l2_norm
from sparserobust.config import Attack, Dense, Objective, Sparsifier
from sparserobust.models import PreActResNet
from sparserobust.models.gates import EPSILON, LIMITS, GatedConv2d
from sparserobust.objectives import NFGSM, TRADES, Adversarial, Natural, SparseActivations
from sparserobust.query_attacks import RandomNoise
from sparserobust.settings import Settings
from sparserobust.sparsifiers import (
    ADMM,
    RGSM,
    RVSM,
    TSCNC,
    Channels,
    DynamicNetworkSurgery,
    DynamicSparse,
    FixedMask,
    Lasso,
    LearnedRates,
    LearnedScores,
    Magnitude,
    MatchedHistogram,
    OnlyNorms,
    ProximalLasso,
    RandomMask,
    RelativeThreshold,
    ReleasedADMM,
    ScaleLasso,
    SharpScores,
    Ticket,
    proximal,
)
from sparserobust.sparsifiers.constraints import condition_penalty

NET = PreActResNet(depth=8, width=2)
RUN = Run(data=Data(), model=NET, objective=Natural(), recipe=Recipe(epochs=1))
DEAD = math.log(1e-5) ** 2  # the released condition number constraint of a singular matrix
BLANK = {"black": 0.0, "white": 1.0, "grey": 0.5}
scales = st.sampled_from([0.0, 1e-20, 1e-10, 1e-4, 1.0, 1e2, 1e4])
pictures = st.sampled_from([*BLANK, "random"])
seeds = st.integers(0, 99)


def library(family: type[Settings]) -> set[str]:
    """Kinds of a family, without those that tests define."""
    members = family.family.items()
    return {kind for kind, member in members if member.__module__.startswith("sparserobust.")}


def finite(*tensors: torch.Tensor) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def images_of(picture: str, n: int, seed: int) -> torch.Tensor:
    """n images (n, 1, 8, 8)."""
    shape = (n, 1, 8, 8)
    if picture == "random":
        return torch.rand(shape, generator=generator(seed))
    return torch.full(shape, BLANK[picture])


def perceptron(first: float, last: float, seed: int) -> nn.Module:
    """One hidden layer with weights of about `first`, and logits of about `first * last`."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 4)).double()
    with torch.no_grad():
        for layer, scale in ((net[1], first), (net[3], last)):
            for p in layer.parameters():
                p.copy_(scale * torch.randn(p.shape, generator=generator(seed)) / 4)
    return net.float()


# --------------------------------------------------------------------------------------- objectives


STEP = PGD(epsilon=0.1, step_size=0.05, steps=2)
TRADE = TRADES(epsilon=0.1, step_size=0.05, steps=2)
OBJECTIVES = {
    "natural": Natural(),
    "half": Adversarial(attack=STEP, clean_weight=0.5),
    "half, l2": Adversarial(attack=replace(STEP, norm="l2", loss="margin"), clean_weight=0.5),
    "predicted": Adversarial(attack=STEP, attacked_label="predicted"),
    "trades": TRADE,
    "n-fgsm": NFGSM(epsilon=0.1),
    "sparse activations": SparseActivations(objective=TRADE, lam=1.0),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def test_everything_is_tried():
    assert {o.kind for o in OBJECTIVES.values()} == library(Objective)
    assert {s.kind for s in SPARSIFIERS.values()} == library(Sparsifier)
    packages = {"autoattack", "square", "zoo"}  # attacks that are others' code
    assert {a.kind for a in ATTACKS.values()} == library(Attack) - packages


@every_objective
@settings(max_examples=20)
@given(scales, scales, pictures, st.integers(1, 3), seeds)
def test_objectives_and_their_gradients_are_finite(objective, first, last, picture, n, seed):
    assume(first * last <= 1e4)
    net, images = perceptron(first, last, seed), images_of(picture, n, seed)
    labels = torch.randint(4, (n,), generator=generator(seed))
    loss = objective(net.train(), images, labels, generator(seed))
    loss.backward()
    assert finite(loss, *gradients(net)) and len(gradients(net)) == 4


@every_objective
@settings(max_examples=6)
@given(st.lists(scales, min_size=10, max_size=10), pictures, st.integers(1, 3), seeds)
def test_objectives_are_finite_behind_norms(objective, each, picture, n, seed):
    net, images = residual(each, seed), images_of(picture, n, seed)
    loss = objective(net, images, torch.randint(10, (n,), generator=generator(seed)), generator(seed))
    loss.backward()
    assert finite(loss, *gradients(net))


def residual(each: list[float], seed: int, **changes) -> nn.Module:
    """A residual network in training mode, with one scale for each layer's weights."""
    with seeded(seed):
        net = replace(NET, **changes).build((1, 8, 8), 10).train()
    with torch.no_grad():
        for p, scale in zip((p for p in net.parameters() if p.dim() in (2, 4)), each, strict=True):
            p.mul_(scale)
    return net


# -------------------------------------------------------------------------------------- sparsifiers


SPARSIFIERS = {
    "dense": Dense(),
    "admm": ADMM(sparsity=0.5),
    "admm, channels": ADMM(sparsity=0.5, granularity="channel"),
    "admm released": ReleasedADMM(sparsity=0.5),
    "admm released, channels": ReleasedADMM(sparsity=0.5, granularity="channel"),
    "lasso": Lasso(lam=1e-3),
    "proximal lasso": ProximalLasso(lam=1e-3),
    "scale lasso": ScaleLasso(lam=1e-3),
    "surgery": DynamicNetworkSurgery(rates=(0.5,), stop=9),
    "dynamic": DynamicSparse(sparsity=0.5, every=1, stop=9),
    "dynamic, random": DynamicSparse(sparsity=0.5, every=1, stop=9, growth="random", rates="uniform"),
    "scores": LearnedScores(sparsity=0.5),
    "scores, sharp": SharpScores(sparsity=0.5),
    "scores and rates": LearnedRates(sparsity=0.5),
    "fixed": FixedMask(),
    "only norms": OnlyNorms(),
    "magnitude": Magnitude(sparsity=0.5),
    "threshold": RelativeThreshold(threshold=0.1),
    "random": RandomMask(sparsity=0.5),
    "channels": Channels(sparsity=0.1),
    "channels, readers": Channels(share=0.5, criterion="readers"),
    "channels, scales": Channels(sparsity=0.1, criterion="scales"),
    "histogram": MatchedHistogram(target=RUN),
    "ticket": Ticket(pruned=RUN),
    "rvsm l0": RVSM(beta=0.1),
    "rvsm l1": RVSM(beta=0.1, penalty="l1", pull="gradient"),
    "rvsm tl1": RVSM(beta=0.1, penalty="tl1"),
    "rvsm tl1, nearly l0": RVSM(beta=0.1, penalty="tl1", a=1e-20, lam=0.0),
    "rvsm tl1, nearly l1": RVSM(beta=0.1, penalty="tl1", a=1e15, replace="swap"),
    "rgsm": RGSM(lambda1=0.01, lambda2=0.1),
    "rgsm l1": RGSM(lambda1=0.0, lambda2=0.1, penalty="group_l1", u_from="old"),
    "tscnc released": TSCNC(sign="released", form="released", layers="all"),
    "tscnc slogdet": TSCNC(form="slogdet", layers="all"),
    "tscnc": TSCNC(layers="all"),
    "tscnc size": TSCNC(form="size", layers="all"),
}
every_sparsifier = pytest.mark.parametrize("sparsifier", SPARSIFIERS.values(), ids=SPARSIFIERS)
# not legal with a layer of zeros: no threshold without weights, and condition numbers are infinite
NEEDS_WEIGHTS = [SPARSIFIERS[name] for name in ("surgery", "tscnc", "tscnc slogdet", "tscnc size")]


@every_sparsifier
@settings(max_examples=6)
@given(st.lists(scales, min_size=10, max_size=10), seeds)
def test_sparsifiers_leave_everything_finite(sparsifier, each, seed):
    if sparsifier in NEEDS_WEIGHTS:
        each = [scale or 1e-20 for scale in each]
    net = residual(each, seed, gated=sparsifier.kind == "tscnc")
    others = [residual(each[::-1], seed + 1).state_dict() for _ in sparsifier.required_runs]
    state = sparsifier.start(net, *others)
    for _ in range(2):
        net.zero_grad()
        added = sparsifier.added_loss(net, state)
        (added + net(images_of("random", 2, seed)).sum()).backward()
        if sparsifier.moved(net, state):
            net.zero_grad()
            net(images_of("random", 2, seed)).sum().backward()
        sparsifier.before_step(net, state, 0.1)
        assert finite(torch.as_tensor(added), *gradients(net), *net.parameters())
        sparsifier.after_step(net, state, 0.1)
        sparsifier.after_epoch(net, state)
        weights = sparsifier.sparse_weights(net, state)
        assert finite(*net.parameters(), *state.values(), *weights.values())


@pytest.mark.parametrize("sparsifier", NEEDS_WEIGHTS, ids=str)
@pytest.mark.parametrize("dead", [0, 5, 9])
def test_a_layer_of_zeros_is_refused_where_it_cannot_be_meant(sparsifier, dead, refusal):
    net = residual([0.0 if i == dead else 1.0 for i in range(10)], 0, gated=True)

    def begin():
        sparsifier.added_loss(net, sparsifier.start(net))

    message = refusal(begin)
    assert "start" in message
    if sparsifier.kind == "tscnc":
        layers = [name for name, p in net.named_parameters() if p.dim() in (2, 4)]
        assert f"of {layers[dead]} is infinite" in message


@pytest.mark.parametrize("form", ["slogdet", "scale_invariant"])
def test_a_classifier_with_a_row_of_zeros_is_refused(form, refusal):
    net = residual([1.0] * 10, 0, width=4)
    net.members[0].linear.weight.data[3] = 0
    sparsifier = TSCNC(sparse=0.0, form=form)
    assert "linear.weight" in refusal(sparsifier.added_loss, net, {})
    added = replace(sparsifier, condition=0.0).added_loss(net, {}) + replace(
        sparsifier, form="size").added_loss(net, {})
    assert finite(added)


def test_weights_that_are_not_a_number_are_not_called_singular():
    """A training that diverges is told so by the training loop, not by a constraint."""
    net = residual([1.0] * 10, 0)
    net.members[0].linear.weight.data[3] = torch.nan
    for form in ("released", "slogdet", "scale_invariant", "size"):
        assert TSCNC(sparse=0.0, form=form).added_loss(net, {}).isnan()


@pytest.mark.parametrize(
    "sparsifier", [Lasso(lam=1.0), RGSM(lambda1=1.0, lambda2=1.0), ScaleLasso(lam=1.0)], ids=str
)
def test_penalties_that_are_not_smooth_at_zero_leave_zeros_alone(sparsifier):
    net = residual([1.0] * 10, 0)
    block = net.members[0].blocks[0]
    w = block.norm2.weight if sparsifier.kind == "scale_lasso" else block.conv1.weight
    w.data[:] = 0
    sparsifier.added_loss(net, {}).backward()
    assert finite(*gradients(net)) and any(g.any() for g in gradients(net))
    assert not w.grad.any()


# ------------------------------------------------------------------ the condition number constraint


def gaussian(outputs: int, inputs: int, scale: float, seed: int) -> torch.Tensor:
    w = torch.randn(outputs, inputs, generator=generator(seed), dtype=torch.float64)
    return (scale / math.sqrt(inputs) * w).float()


def with_gradient(weight: torch.Tensor, form: str) -> tuple[float, torch.Tensor]:
    weight = weight.clone().requires_grad_()
    penalty = condition_penalty(weight, form)
    penalty.backward()
    assert weight.grad is not None
    return float(penalty.detach()), weight.grad


@settings(max_examples=50)
@example(7, 4.0, 0)  # a determinant of 1e50
@given(st.integers(1, 7), st.floats(-20, 4), seeds)
def test_the_released_form_at_any_scale(n, exponent, seed):
    """Against float64, where the determinant stays a logarithm."""
    w = gaussian(n, 3 * n, 10**exponent, seed)
    exact = w.double().requires_grad_()
    logdet = torch.linalg.slogdet(exact @ exact.T / n).logabsdet
    expected = torch.logaddexp(torch.tensor(math.log(1e-5), dtype=torch.float64), logdet).square()
    expected.backward()
    value, gradient = with_gradient(w, "released")
    assert value == pytest.approx(float(expected.detach()), rel=1e-3, abs=1e-4)
    size = float(exact.grad.abs().max())
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=1e-2, atol=1e-2 * size + 1e-12)


@settings(max_examples=50)
@given(st.integers(1, 7), st.integers(1, 4), st.floats(-20, 4), seeds)
def test_the_released_form_is_dead_where_outputs_outnumber_inputs(inputs, more, exponent, seed):
    value, gradient = with_gradient(gaussian(inputs + more, inputs, 10**exponent, seed), "released")
    assert value == pytest.approx(DEAD) and not gradient.any()


@settings(max_examples=50)
@given(st.integers(2, 7), st.floats(-20, 4), seeds)
def test_the_released_form_of_singular_weights_is_finite(n, exponent, seed):
    w = gaussian(n, 3 * n, 10**exponent, seed)
    for singular in (w[:1].expand(n, -1), torch.cat([w[:-1], torch.zeros(1, 3 * n)]), 0 * w):
        value, gradient = with_gradient(singular, "released")
        assert math.isfinite(value) and finite(gradient)
    assert value == pytest.approx(DEAD)


@settings(max_examples=50)
@given(st.integers(1, 7), st.floats(-1, 1), seeds)
def test_the_released_form_of_ordinary_weights_is_bit_for_bit_that_of_the_code(n, exponent, seed):
    w = gaussian(n, 3 * n, 10**exponent, seed)
    as_released = w.clone().requires_grad_()
    penalty = (1e-5 + torch.linalg.det(as_released @ as_released.T / n)).log().square()
    penalty.backward()
    value, gradient = with_gradient(w, "released")
    assert value == float(penalty.detach()) and torch.equal(gradient, as_released.grad)


@pytest.mark.parametrize("form", ["slogdet", "scale_invariant", "size"])
@settings(max_examples=50)
@given(st.integers(2, 7), st.floats(-20, 4), st.booleans(), seeds)
def test_the_other_forms_at_any_scale(form, n, exponent, transposed, seed):
    """Values against singular values; where one is zero they are infinite, and never NaN."""
    w = gaussian(n, 3 * n, 10**exponent, seed)
    value, gradient = with_gradient(w.T if transposed else w, form)
    logs = 2 * torch.linalg.svdvals(w.double()).log()
    size = n * (torch.logsumexp(logs, 0) - math.log(n))
    expected = {"slogdet": (logs.sum() - n * math.log(n)) ** 2,
                "scale_invariant": size - logs.sum(),
                "size": (size - n * math.log(n)) ** 2}[form]  # fmt: skip
    assert value == pytest.approx(float(expected), rel=1e-6, abs=1e-6) and finite(gradient)
    assert condition_penalty(0 * w, form) == math.inf
    w[-1] = 0
    assert (condition_penalty(w, form) == math.inf) == (form != "size")


# ------------------------------------------------------------------------------------ proximal maps


@given(
    st.sampled_from([1e-200, 1e-20, 1e-3, 1.0, 1e4, 1e9, 1e15, 1e200]),
    st.floats(-20, 4),
    st.floats(-12, 1),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_transformed_l1_map_is_stationary_for_any_a(a, exponent, level, dtype):
    """x - y + level * a (a + 1) / (a + x)^2 = 0 where x is not zero; for a large a that is the soft
    threshold."""
    level = 10**level
    y = torch.tensor([10**exponent, -(10**exponent), 0.0], dtype=dtype)
    x = proximal.transformed_l1(y, level, a)
    assert x.dtype == dtype and finite(x) and x[2] == 0 and x[1] == -x[0]
    if x[0] != 0:
        size, root = float(y[0]), float(x[0])
        slope = level * (a / (a + root)) * ((a + 1) / (a + root))
        assert 0 < root <= size
        assert root - size + slope == pytest.approx(0, abs=1e-6 * size)
    if a >= 1e15:
        torch.testing.assert_close(x, proximal.l1(y, level), rtol=1e-5, atol=1e-6 * float(y[0]))
    assert torch.equal(proximal.transformed_l1(y, 0.0, a), y)


def test_the_transformed_l1_map_is_finite_where_its_two_thresholds_meet():
    """There the cubic equation has a double root: rounding puts the sine of its angle beyond 1."""
    for a in torch.linspace(0.01, 50, 1000).tolist():
        level = a * a / (2 * (a + 1))
        y = torch.tensor(math.nextafter(level * (a + 1) / a, math.inf), dtype=torch.float64)
        x = proximal.transformed_l1(y, level, a)
        assert 0 <= x <= y


@given(st.floats(0.05, 100), st.floats(1e-6, 1), seeds)
def test_the_transformed_l1_map_is_that_of_the_theorem(a, level, seed):
    """Zhang & Xin 2017, theorem 3.1, as printed."""
    y = 3 * torch.randn(50, generator=generator(seed), dtype=torch.float64)
    size = y.abs()
    small = level <= a**2 / (2 * (a + 1))
    threshold = level * (a + 1) / a if small else (2 * level * (a + 1)) ** 0.5 - a / 2
    angle = torch.arccos((1 - 27 * level * a * (a + 1) / (2 * (a + size) ** 3)).clamp(-1, 1))
    root = y.sign() * (2 / 3 * (a + size) * torch.cos(angle / 3) - 2 * a / 3 + size / 3)
    expected = torch.where(size > threshold, root, 0.0)
    torch.testing.assert_close(proximal.transformed_l1(y, level, a), expected, rtol=1e-6, atol=1e-8)


# -------------------------------------------------------------------------------------------- gates


@settings(max_examples=50)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=6), st.booleans())
def test_gates_of_any_log_alpha(log_alpha, train):
    with seeded():
        layer = GatedConv2d(1, len(log_alpha), 3).train(train)
        layer.log_alpha.data = torch.tensor(sorted(log_alpha))
        gates, probability = layer.gates(), layer.open_probability()
        (gates.sum() + probability.log().sum()).backward()
    assert finite(gates, probability, layer.log_alpha.grad)
    assert gates.min() >= 0 and gates.max() <= 1
    assert probability.min() >= 0.9 * EPSILON and probability.max() <= 1 - 0.9 * EPSILON
    assert (probability.diff() >= 0).all()
    layer.clamp_()
    for value in layer.log_alpha.tolist():
        assert LIMITS[0] - 1e-5 <= value <= LIMITS[1] + 1e-5


# ------------------------------------------------------------------------------------------ attacks


ATTACKS = {
    "fgsm": FGSM(epsilon=0.1),
    "rfgsm": RandomisedFGSM(epsilon=0.1), "noise": RandomNoise(epsilon=0.1, draws=3),
    "pgd": PGD(epsilon=0.1, step_size=0.05, steps=2, restarts=2),
    "pgd, margin": PGD(epsilon=0.1, step_size=0.05, steps=2, loss="margin", random_start=False),
    "pgd l2": PGD(epsilon=0.5, step_size=0.3, steps=2, norm="l2"),
    "pgd l2, margin": PGD(epsilon=0.5, step_size=0.3, steps=2, norm="l2", loss="margin",
                          random_start=False),
    "pgd l2, no radius": PGD(epsilon=0.0, step_size=0.3, steps=2, norm="l2", random_start=False),
    "cw": CarliniWagnerL2(steps=3, search_steps=2, lr=0.2),
    "cw, many constants": CarliniWagnerL2(steps=1, search_steps=45, epsilon=0.5),
    "cw released": CarliniWagnerReleased(steps=4, lr=0.02),
    "deepfool": DeepFool(steps=4),
    "apgd": APGD(epsilon=0.1, steps=3),
    "apgd l2, cross entropy": APGD(epsilon=0.5, norm="l2", steps=3, loss="cross_entropy"),
    "apgd, margin": APGD(epsilon=0.1, steps=3, loss="margin", restarts=2),
    "thrifty": Thrifty(epsilon=0.1, steps=2, queries=3),
    "thrifty l2": Thrifty(epsilon=0.5, norm="l2", steps=2, queries=3),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@settings(max_examples=20)
@given(scales, scales, pictures, st.integers(1, 3), st.booleans(), seeds)
def test_attacked_images_stay_in_ball_and_box(attack, first, last, picture, n, right, seed):
    assume(first * last <= 1e4)
    net, images = perceptron(first, last, seed), images_of(picture, n, seed)
    labels = net(images).argmax(1) if right else torch.randint(4, (n,), generator=generator(seed))
    attacked = attack(net, images, labels, generator(seed))
    assert attacked.shape == images.shape and finite(attacked)
    assert attacked.min() >= 0 and attacked.max() <= 1
    epsilon = getattr(attack, "epsilon", None)
    if epsilon is not None:
        moved, norm = attacked - images, getattr(attack, "norm", "linf")
        size = l2_norm(moved) if norm == "l2" else moved.abs()
        assert size.max() <= epsilon * (1 + 1e-5)


DETERMINISTIC = [a for a in ATTACKS.values() if not getattr(a, "random_start", a.kind in (
    "rfgsm", "random_noise", "apgd", "thrifty"))]


@pytest.mark.parametrize("attack", DETERMINISTIC, ids=str)
@pytest.mark.parametrize("picture", [*BLANK, "random"])
def test_nothing_moves_where_there_is_no_gradient(attack, picture):
    net, images = perceptron(1.0, 0.0, 0), images_of(picture, 3, 0)
    assert torch.equal(attack(net, images, net(images).argmax(1), generator(0)), images)
