"""Theorem 1 of Dinh et al. 2020: the penalty that prox minimises, and the descent followed step by step."""

import math
from dataclasses import replace

import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d, softplus

from sparserobust import Data, data
from sparserobust.analysis.descent import bound, follow, rises, small_net
from sparserobust.sparsifiers import RGSM, RVSM

# --------------------------------------------------------------------------------------------- the penalty

PENALTIES = {
    "l0": lambda beta, weight: RVSM(beta=beta, lam=weight),
    "l1": lambda beta, weight: RVSM(beta=beta, lam=weight, penalty="l1"),
    "tl1": lambda beta, weight: RVSM(beta=beta, lam=weight, penalty="tl1", a=0.7),
    "group_l0": lambda beta, weight: RGSM(beta=beta, lambda1=weight),
    "group_l1": lambda beta, weight: RGSM(beta=beta, lambda1=weight, penalty="group_l1"),
}
U = torch.tensor([[0.0, 1, -3], [0, 0, 4]])[:, :, None, None]  # (out 2, in 3, 1, 1): norms of input channels 0, 1, 5


@pytest.mark.parametrize(("penalty", "value"), [
    ("l0", 3), ("l1", 8), ("tl1", 1.7 * (1 / 1.7 + 3 / 3.7 + 4 / 4.7)), ("group_l0", 2), ("group_l1", 6),
])  # fmt: skip
def test_penalty_by_hand(penalty, value):
    assert PENALTIES[penalty](beta=9.0, weight=0.5).penalty_of(U) == pytest.approx(0.5 * value)
    assert PENALTIES[penalty](beta=9.0, weight=0.5).penalty_of(0 * U) == 0


@pytest.mark.parametrize("penalty", PENALTIES)
@hypothesis_settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.1, 10), st.floats(0.01, 1))
def test_prox_minimises_penalty_plus_pull(penalty, seed, beta, level):
    splitting, chance = PENALTIES[penalty](beta, beta * level), torch.Generator().manual_seed(seed)
    w = torch.randn(2, 3, 1, 2, dtype=torch.float64, generator=chance)

    def cost(u):
        return splitting.penalty_of(u) + beta / 2 * (w - u).pow(2).sum().item()

    best = splitting.prox(w)
    rivals = [w, 0 * w, *(best + size * torch.randn(w.shape, dtype=w.dtype, generator=chance)
                          for size in (1e-3, 1e-2, 0.1, 1))]
    places = [(slice(None), c) for c in range(3)] if "group" in penalty else torch.ones_like(w).nonzero().unbind()
    for place in places:  # one entry, or one channel, all along the way from zero to w
        for share in torch.linspace(0, 1, 13):
            rivals.append(best.clone())
            rivals[-1][tuple(place)] = share * w[tuple(place)]
    assert cost(best) <= min(map(cost, rivals)) + 1e-12


def test_penalty_of_float32_weights_counts_in_double_precision():
    u = torch.full((2, 2, 2, 2), 0.1)
    assert RVSM(beta=1, lam=1, penalty="l1").penalty_of(u) == pytest.approx(16 * u[0, 0, 0, 0].item(), rel=1e-14)


# -------------------------------------------------------------------------------------------- single steps

FEW = 20  # images: finite differences are taken in all of 1418 parameters
RVSM_, RGSM_ = RVSM(beta=1.0, lam=5e-3), RGSM(beta=0.3, lambda1=0.6, lambda2=0.01)


def thresholded(s, w):
    if isinstance(s, RVSM):
        return w * (w.abs() > (2 * s.lam / s.beta) ** 0.5)
    return w * (w.pow(2).sum((0, 2, 3), keepdim=True) > 2 * s.lambda1 / s.beta)


def loss_by_hand(s, p, smooth=True, batch_norm=False):
    """f of parameters in the order of the net, with no module of torch."""
    p, split = list(p), data.load(Data(train_images=FEW)).train
    x, added = 10 * (split.images - split.images.mean()).double(), 0.0
    for stride in (1, 2):
        w = p.pop(0)
        added = added + (w.pow(2).sum((0, 2, 3)) + 1e-8).sqrt().sum()
        x = conv2d(x, w, None if batch_norm else p.pop(0), stride, padding=1)
        if batch_norm:
            centred = x - x.mean((0, 2, 3), keepdim=True)
            x = centred / (centred.pow(2).mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
            x = x * p.pop(0)[:, None, None] + p.pop(0)[:, None, None]
        x = softplus(x) if smooth else x.clamp_min(0)
    logits = x.mean((2, 3)) @ p[0].T + p[1]
    cross_entropy = (logits.logsumexp(1) - logits[torch.arange(FEW), split.labels]).mean()
    return cross_entropy + (s.lambda2 * added if isinstance(s, RGSM) else 0.0)


def lagrangian_by_hand(s, p, u, **net):
    counts = [t.count_nonzero() if isinstance(s, RVSM) else t.abs().amax((0, 2, 3)).count_nonzero() for t in u]
    size = (s.lam if isinstance(s, RVSM) else s.lambda1) * sum(counts).item()
    gaps = [(w - t).pow(2).sum() for w, t in zip([t for t in p if t.dim() == 4], u, strict=True)]
    return loss_by_hand(s, p, **net) + size + s.beta / 2 * sum(gaps)


def norm(tensors) -> float:
    return math.sqrt(sum(t.pow(2).sum().item() for t in tensors))


@pytest.mark.parametrize("s", [RVSM_, RGSM_, replace(RVSM_, pull="gradient"), replace(RVSM_, u_from="old")],
                         ids=["rvsm", "rgsm", "gradient", "old"])
@pytest.mark.parametrize("net", [{}, {"smooth": False}, {"batch_norm": True}, {"smooth": False, "batch_norm": True}],
                         ids=["softplus", "relu", "softplus-bn", "relu-bn"])
def test_steps_by_hand(s, net):
    lr, frame = 0.05, follow(s, 0.05, 3, images=FEW, **net)
    p = [t.detach().requires_grad_() for t in small_net(0, **net).parameters()]
    u = [thresholded(s, t.detach()) for t in p if t.dim() == 4]
    largest = 0.0
    for step, row in frame.iterrows():
        value = lagrangian_by_hand(s, p, u, **net)
        slopes = torch.autograd.grad(value, p)
        new = [(t - lr * slope).detach().requires_grad_() for t, slope in zip(p, slopes, strict=True)]
        new_u = [thresholded(s, t.detach()) for t in (p if s.u_from == "old" else new) if t.dim() == 4]
        bend = [b - a for a, b in zip(*(torch.autograd.grad(loss_by_hand(s, t, **net), t) for t in (p, new)),
                                      strict=True)]
        move = [(b - a).detach() for a, b in zip(p, new, strict=True)]
        largest = max(largest, norm(bend) / norm(move))
        assert dict(row) == pytest.approx({
            "step": step, "lagrangian": value.item(), "gradient_norm": norm(slopes),
            "lipschitz": norm(bend) / norm(move),
            "lipschitz_layer": max(norm([b]) / norm([m]) for b, m in zip(bend, move, strict=True)),
            "longest_lr": 2 / (s.beta + largest),
            "distance": norm(t.detach() - v for t, v in zip([t for t in p if t.dim() == 4], u, strict=True)),
            "nonzero": sum(int((t != 0).sum()) for t in u),
            "flipped": sum(int(((a != 0) != (b != 0)).sum()) for a, b in zip(u, new_u, strict=True)),
        }, rel=1e-6 if s is RGSM_ else 1e-9)  # RGSM's group lasso is computed in float32
        p, u = new, new_u
    assert frame["flipped"].sum() > 0 or s is RGSM_


@pytest.mark.parametrize("s", [RVSM_, RGSM_], ids=["rvsm", "rgsm"])
def test_gradient_by_finite_differences(s):
    p = [t.detach() for t in small_net(0).parameters()]
    u = [thresholded(s, t) for t in p if t.dim() == 4]
    squares = 0.0
    for t in p:
        for place in torch.ones_like(t).nonzero().unbind():
            kept, values = t[tuple(place)].item(), []
            for shift in (1e-5, -1e-5):
                t[tuple(place)] = kept + shift
                values.append(lagrangian_by_hand(s, p, u).item())
            t[tuple(place)] = kept
            squares += ((values[0] - values[1]) / 2e-5) ** 2
    assert follow(s, 0.1, 1, images=FEW)["gradient_norm"][0] == pytest.approx(math.sqrt(squares), rel=1e-6)


# --------------------------------------------------------------------------------------------- the theorem

SHORT, STEPS, IMAGES = 0.02, 80, 100
THEOREM = {
    "l0": RVSM(beta=1.0, lam=1e-3), "tl1": RVSM(beta=1.0, lam=1e-3, penalty="tl1"),
    "group_l0": RGSM(beta=0.1, lambda1=0.2), "group_l1": RGSM(beta=0.1, lambda1=0.2, penalty="group_l1"),
}


@pytest.fixture(scope="module")
def path():
    """Paths that several tests look at, each followed once."""
    known = {}

    def path(penalty, lr=SHORT, **more):
        key = (penalty, lr, *more.items())
        if key not in known:
            known[key] = follow(THEOREM[penalty], lr, STEPS, images=IMAGES, **more)
        return known[key]

    return path


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("penalty", THEOREM)
def test_short_steps_never_rise_and_keep_the_promise(penalty, seed, path):
    frame = path(penalty, seed=seed)
    assert len(frame) == STEPS
    assert (frame["longest_lr"] > SHORT).all()
    assert rises(frame) == 0
    assert frame["lagrangian"].iloc[-1] < 0.9 * frame["lagrangian"].iloc[0]
    assert (frame["gradient_norm"].cummin() <= bound(frame, SHORT)).all()
    # the inequality behind it, step by step; L is an estimate from below, hence not quite
    promised = SHORT * (1 - SHORT / frame["longest_lr"].iloc[-1]) * frame["gradient_norm"] ** 2
    assert (-frame["lagrangian"].diff()[1:].to_numpy() >= 0.95 * promised[:-1].to_numpy()).all()


@pytest.mark.parametrize("penalty", THEOREM)
def test_long_steps_rise_and_nothing_is_promised(penalty, path):
    frame = path(penalty, lr=0.25)
    assert frame["longest_lr"].iloc[-1] < 0.25
    assert rises(frame) > 0
    assert bound(frame, 0.25).iloc[-1] == float("inf")


def test_the_theorem_needs_u_from_the_new_w():
    """From the old w, the pull on what u keeps is lr beta (w^t - w^t-1), which grows for lr beta > 1."""
    new = RVSM(beta=50.0, lam=0.05)
    frame, old = (follow(s, 0.03, 40, seed=2, images=IMAGES) for s in (new, replace(new, u_from="old")))
    assert (frame["longest_lr"] > 0.03).all()
    assert rises(frame) == 0
    assert rises(old) > 20


def test_momentum_and_minibatches_leave_the_theorem(path):
    plain, noisy, heavy = path("l0"), path("l0", batch_size=10), path("l0", momentum=0.9)
    assert rises(noisy) > 10
    for other in (noisy, heavy):  # the same start, seen through all images
        same = ["lagrangian", "gradient_norm", "distance", "nonzero"]
        pandas.testing.assert_frame_equal(other.loc[:0, same], plain.loc[:0, same])
        assert abs(other["lagrangian"].iloc[-1] - plain["lagrangian"].iloc[-1]) > 1e-2


def test_one_batch_of_all_images_is_no_minibatch(path):
    pandas.testing.assert_frame_equal(path("l0", batch_size=IMAGES), path("l0"), rtol=1e-6)


def test_minibatches_see_every_image_once_per_pass():
    """With steps so short that w stays, the two halves of the images lower L as much as all of them, twice."""
    halves, whole = (follow(RVSM_, 1e-9, 3, images=FEW, batch_size=size)["lagrangian"].diff() for size in (10, FEW))
    assert halves[1] != pytest.approx(whole[1], rel=1e-3)
    assert halves[1] + halves[2] == pytest.approx(whole[1] + whole[2], rel=1e-3)


@pytest.mark.parametrize("variant", [{}, {"batch_norm": True, "smooth": False}, {"batch_size": 30, "momentum": 0.9}])
def test_the_seed_decides(variant):
    torch.manual_seed(1)
    first = follow(RVSM_, SHORT, 5, seed=3, images=60, **variant)
    chance = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == chance  # torch's global chance is left alone
    pandas.testing.assert_frame_equal(first, follow(RVSM_, SHORT, 5, seed=3, images=60, **variant))
    assert follow(RVSM_, SHORT, 5, seed=4, images=60, **variant)["lagrangian"][0] != first["lagrangian"][0]


@pytest.mark.parametrize("penalty", THEOREM)
def test_layers_apart_bend_at_least_as_much_as_together(penalty, path):
    frame = path(penalty)
    assert (frame["lipschitz_layer"] >= frame["lipschitz"]).all()
    assert frame["longest_lr"].is_monotonic_decreasing


# ------------------------------------------------------------------------------------- counting, bounding


def test_rises_are_counted_beyond_rounding_and_divergence_is_one():
    counted = lambda *values: rises(pandas.DataFrame({"lagrangian": values}))  # noqa: E731
    assert counted(3.0, 2.0, 1.0) == counted(3.0) == 0
    assert counted(3.0, 2.0, 2.5, 1.0) == 1
    assert counted(3.0, 3.0 + 1e-13) == 0
    assert counted(3.0, 3.0 + 1e-8) == 1
    assert counted(3.0, 5.0, math.inf, math.nan, math.nan) == 4


def test_bound_by_hand():
    frame = pandas.DataFrame({"step": [0, 1, 2], "lagrangian": [8.0, 5, 3], "longest_lr": [1.0, 1.0, 0.25]})
    assert bound(frame, 0.5).tolist() == pytest.approx([32**0.5, 4, math.inf])
    assert bound(frame, 0.25).tolist()[-1] == math.inf


@pytest.mark.parametrize(("named", "changes"), [
    ("swap", {"splitting": replace(RVSM_, replace="swap")}), ("lr", {"lr": 0.0}), ("steps", {"steps": 0}),
    ("momentum", {"momentum": 1.0}), ("batch_size", {"batch_size": 0}), ("train_images", {"images": 10**6}),
])  # fmt: skip
def test_what_cannot_be_followed_is_refused(named, changes, refusal):
    assert named in refusal(follow, **{"splitting": RVSM_, "lr": 0.1, "steps": 1} | changes)
