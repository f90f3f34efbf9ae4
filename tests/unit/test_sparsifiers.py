"""RVSM, RGSM, lasso, magnitude pruning and fixed masks: steps recomputed by hand, and what the papers promise."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from scaffolding import CONVOLUTIONS, PRUNABLE, Toy, batches, same, weights_of
from sparserobust import UserError, files, sparsity, training
from sparserobust.running.store import Store
from sparserobust.sparsifiers import RGSM, RVSM, FixedMask, Lasso, Magnitude, RelativeThreshold, proximal

# ------------------------------------------------------------------------------ RVSM and RGSM, step by step


def prox_by_hand(sparsifier, w):
    """Written as the papers do, with nothing of the library."""
    if isinstance(sparsifier, RVSM):
        threshold = (2 * sparsifier.lam / sparsifier.beta) ** 0.5
        if sparsifier.penalty == "l1":
            return w.sign() * (w.abs() - sparsifier.lam / sparsifier.beta).relu()
        return w * (w.abs() > threshold)
    norms = w.pow(2).sum((0, 2, 3), keepdim=True).sqrt()
    if sparsifier.penalty == "group_l1":
        return w / norms * (norms - sparsifier.lambda1 / sparsifier.beta).relu()
    return w * (norms > (2 * sparsifier.lambda1 / sparsifier.beta) ** 0.5)


def trained_by_hand(run, splits) -> tuple[dict, dict, dict]:
    """w and u after training, and what is delivered: SGD and the splitting spelt out."""
    model, s, recipe = training.build(run, splits).train(), run.sparsifier, run.recipe
    w: dict[str, torch.Tensor] = dict(model.named_parameters())
    convolutions = {name for name, p in w.items() if p.dim() == 4}
    u = {name: prox_by_hand(s, w[name].detach()) for name in convolutions}
    momentum = {name: torch.zeros_like(p) for name, p in w.items()}
    for epoch in range(recipe.epochs):
        for images, labels in batches(run, splits, epoch):
            loss = cross_entropy(model(images), labels)
            if isinstance(s, RGSM):
                loss = loss + s.lambda2 * sum((w[n].pow(2).sum((0, 2, 3)) + 1e-8).sqrt().sum() for n in convolutions)
            gradients = dict(zip(w, torch.autograd.grad(loss, list(w.values())), strict=True))
            with torch.no_grad():
                for name, p in w.items():
                    gradient, before = gradients[name], p.clone()
                    if name in convolutions and s.pull == "gradient":
                        gradient = gradient + s.beta * (p - u[name])
                    elif name in convolutions:
                        p -= recipe.lr * s.beta * (p - u[name])
                    gradient = gradient + recipe.weight_decay * p
                    momentum[name] = recipe.momentum * momentum[name] + gradient
                    p -= recipe.lr * (gradient + recipe.momentum * momentum[name])  # Nesterov; plain for momentum 0
                    if name in convolutions:
                        u[name] = prox_by_hand(s, p if s.u_from == "new" else before)
        if s.replace != "end":
            for name in convolutions:
                dense = w[name].detach().clone()
                w[name].data = u[name].clone()
                u[name] = dense if s.replace == "swap" else u[name]
    delivered = weights_of(model) | ({} if s.replace == "swap" else u)
    return weights_of(model), u, delivered


def trained(run, splits, folder) -> tuple[dict, dict, dict]:
    """The same three from the library: w and u as the checkpoint has them, and the delivered network."""
    model = training.train(run, splits, checkpoint=folder / "checkpoint").model
    tensors, _ = files.load_tensors(folder / "checkpoint")
    group = lambda prefix: {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}  # noqa: E731
    delivered = weights_of(model)
    return {n: t for n, t in group("model/").items() if n in delivered}, group("sparsifier/"), delivered


SPLITTINGS = {
    "rvsm": lambda **kw: RVSM(beta=0.5, lam=5e-3, **kw),
    "rvsm-l1": lambda **kw: RVSM(beta=0.5, lam=5e-2, penalty="l1", **kw),
    "rgsm": lambda **kw: RGSM(beta=0.8, lambda1=0.75, lambda2=0.05, **kw),
    "rgsm-l1": lambda **kw: RGSM(beta=0.8, lambda1=0.75, lambda2=0.05, penalty="group_l1", **kw),
}
PLAIN = {"epochs": 2, "batch_size": 32, "lr": 0.3, "schedule": "constant", "precision": "float32", "momentum": 0.0,
         "weight_decay": 0.0}
VARIANTS = [
    *product(SPLITTINGS, ["decoupled", "gradient"], ["new", "old"], ["end"], [0.0]),
    *product(["rvsm", "rgsm"], ["decoupled"], ["new"], ["every_epoch", "swap"], [0.0, 0.9]),
    *product(["rvsm", "rgsm"], ["decoupled", "gradient"], ["new"], ["end"], [0.9]),
]


@pytest.mark.parametrize(("kind", "pull", "u_from", "replace", "momentum"), VARIANTS)
def test_training_follows_the_algorithm_by_hand(kind, pull, u_from, replace, momentum, tiny_run, digits, tmp_path):
    sparsifier = SPLITTINGS[kind](pull=pull, u_from=u_from, replace=replace)
    run = tiny_run(**PLAIN | {"momentum": momentum, "weight_decay": momentum / 100}, sparsifier=sparsifier)
    for ours, by_hand in zip(trained(run, digits, tmp_path), trained_by_hand(run, digits), strict=True):
        assert ours.keys() == by_hand.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], by_hand[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", SPLITTINGS)
def test_the_two_pulls_agree_for_plain_sgd_and_differ_with_momentum(kind, tiny_run, digits):
    def result(pull, momentum):
        run = tiny_run(**PLAIN | {"momentum": momentum}, sparsifier=SPLITTINGS[kind](pull=pull))
        return torch.cat([p.flatten() for p in training.train(run, digits).model.parameters()])

    torch.testing.assert_close(result("decoupled", 0.0), result("gradient", 0.0), rtol=1e-4, atol=1e-5)
    assert (result("decoupled", 0.9) - result("gradient", 0.9)).abs().max() > 1e-2


@pytest.mark.parametrize(("kind", "replace"), [*product(["rvsm", "rgsm"], ["end", "every_epoch", "swap"])])
def test_what_is_delivered_is_sparse_and_counted_so(kind, replace, tiny_run, digits):
    result = training.train(tiny_run(sparsifier=SPLITTINGS[kind](replace=replace)), digits)
    measure = sparsity.channel_sparsity if kind == "rgsm" else sparsity.sparsity
    key = "channel_sparsity" if kind == "rgsm" else "sparsity"
    assert 0.05 < measure(result.model) == result.history[-1][key] < 0.95


@pytest.mark.parametrize("replace", ["end", "every_epoch", "swap"])
def test_averaged_weights_do_not_undo_sparsity(replace, tiny_run, digits):
    result = training.train(tiny_run(sparsifier=SPLITTINGS["rvsm"](replace=replace), averaging=0.9), digits)
    assert sparsity.sparsity(result.model) > 0.05


@pytest.mark.parametrize("kind", SPLITTINGS)
def test_only_convolution_weights_are_touched(kind):
    model, sparsifier = Toy(), SPLITTINGS[kind]()
    before = weights_of(model)
    state = sparsifier.start(model)
    assert state.keys() == set(CONVOLUTIONS)
    assert same(weights_of(model), before)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    sparsifier.before_step(model, state, 0.1)
    sparsifier.after_step(model, state, 0.1)
    sparsifier.after_epoch(model, state)
    after = weights_of(model)
    assert {name for name in after if not torch.equal(after[name], before[name])} == set(CONVOLUTIONS)
    assert sparsifier.sparse_weights(model, state).keys() == set(CONVOLUTIONS)


# ----------------------------------------------------------------------------------- Theorem 1 (Lyapunov)


def penalty_by_hand(sparsifier, u):
    norms = u.pow(2).sum((0, 2, 3)).sqrt()
    return {"l0": lambda: sparsifier.lam * (u != 0).sum(), "l1": lambda: sparsifier.lam * u.abs().sum(),
            "tl1": lambda: sparsifier.lam * (2 * u.abs() / (1 + u.abs())).sum(),
            "group_l0": lambda: sparsifier.lambda1 * (norms != 0).sum(),
            "group_l1": lambda: sparsifier.lambda1 * norms.sum()}[sparsifier.penalty]()


def lagrangian_path(sparsifier, share: float) -> tuple[Tensor, list[int], list[float]]:
    """f(w) + penalty(u) + beta / 2 |w - u|^2, the number of zeros in u, and the length of the Lagrangian's gradient in
    w, step by step: gradient descent on a quadratic f of known Lipschitz constant L, with `share` of the theorem's
    largest step 2 / (beta + L)."""
    chance = torch.Generator().manual_seed(1)
    model = nn.Conv2d(4, 3, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 4, 3, 3, generator=chance))
        model.weight.mul_(torch.tensor([0.1, 0.5, 1, 2])[:, None, None])
    a = torch.randn(300, model.weight.numel(), generator=chance).double() / 20
    target = torch.randn(300, generator=chance).double()
    lipschitz = torch.linalg.matrix_norm(a, 2).item() ** 2
    lr = share * 2 / (sparsifier.beta + lipschitz)
    state = sparsifier.start(model)
    values, zeros, slopes = [], [], []
    for _ in range(150):
        w, u = model.weight, state["weight"]
        pulled = sparsifier.beta / 2 * (w - u).pow(2).sum()
        f = (a @ w.flatten() - target).pow(2).sum() / 2
        (slope,) = torch.autograd.grad(f + pulled, w, retain_graph=True)
        values.append((f + penalty_by_hand(sparsifier, u) + pulled).item())
        zeros.append(int((u == 0).sum()))
        slopes.append(slope.norm().item())
        (w.grad,) = torch.autograd.grad(f, w)
        sparsifier.before_step(model, state, lr)
        with torch.no_grad():
            w -= lr * w.grad
        sparsifier.after_step(model, state, lr)
    return torch.tensor(values, dtype=torch.float64), zeros, slopes


THEOREM = {
    "l0": RVSM(beta=0.5, lam=0.02), "l1": RVSM(beta=0.5, lam=0.02, penalty="l1"),
    "tl1": RVSM(beta=0.5, lam=0.02, penalty="tl1"), "group_l0": RGSM(beta=0.5, lambda1=2.0, lambda2=0.0),
    "group_l1": RGSM(beta=0.5, lambda1=1.0, lambda2=0.0, penalty="group_l1"),
}


@pytest.mark.parametrize(("penalty", "share"), [*product(THEOREM, [0.3, 0.95])])
def test_theorem_1_the_lagrangian_falls_monotonically(penalty, share):
    values, zeros, slopes = lagrangian_path(THEOREM[penalty], share)
    assert (values.diff() <= 1e-12 * values[0]).all()
    assert values[-1] < 0.8 * values[0]
    assert len(set(zeros)) > 1  # the support did change on the way
    assert slopes[-1] < 0.01 * slopes[0]


def test_theorem_1_needs_u_from_the_new_w_and_a_small_step():
    old, large = replace(THEOREM["l0"], u_from="old"), THEOREM["l0"]
    for values in (lagrangian_path(old, 0.95)[0], lagrangian_path(large, 1.5)[0]):
        assert values.diff().max() > 1e-3 * values[0]


# ------------------------------------------------------------------------------------------- group lasso


def test_group_lasso_in_the_loss_against_finite_differences():
    model, lambda2 = Toy(), 0.7

    def by_hand() -> float:
        groups = [(rows, rows.shape[1]) for layer in (model.first, model.second, model.third)
                  for rows in layer.weight.detach().double().chunk(layer.groups)]  # each reads channels of its own
        return lambda2 * sum(float((w[:, c].pow(2).sum() + 1e-8) ** 0.5) for w, read in groups for c in range(read))

    with torch.no_grad():
        model.second.weight[:, 1] = 0  # a dead channel: its gradient is zero, not nan
    loss = RGSM(lambda1=0.1, lambda2=lambda2).added_loss(model, {})
    assert loss.item() == pytest.approx(by_hand(), rel=1e-6)
    loss.backward()
    for name, p in model.named_parameters():
        if name not in CONVOLUTIONS:
            assert p.grad is None
            continue
        for place in [(0, 0, 0, 0), (1, 1, 0, 0), (-1, -1, -1, -1)]:
            kept, values = p[place].item(), []
            for shift in (1e-2, -1e-2):
                with torch.no_grad():
                    p[place] = kept + shift
                values.append(by_hand())
                with torch.no_grad():
                    p[place] = kept
            assert p.grad[place].item() == pytest.approx((values[0] - values[1]) / 2e-2, abs=1e-3)
    assert not model.second.weight.grad[:, 1].any()


def test_no_group_lasso_without_lambda2_nor_in_rvsm():
    assert RGSM(lambda1=0.1, lambda2=0.0).added_loss(Toy(), {}) == 0
    assert RVSM(beta=0.1).added_loss(Toy(), {}) == 0


# ------------------------------------------------------------------------------------------------- lasso


@given(st.floats(0, 10), st.integers(0, 20))
def test_lasso_adds_the_sum_of_magnitudes_and_its_sign_as_gradient(lam, seed):
    model = Toy(seed)
    with torch.no_grad():
        model.second.weight[:, 1] = 0
    loss = Lasso(lam=lam).added_loss(model, {})
    magnitudes = sum(abs(x) for name in PRUNABLE for x in model.get_parameter(name).flatten().tolist())
    assert loss.item() == pytest.approx(lam * magnitudes, rel=1e-5)
    loss.backward()
    for name, p in model.named_parameters():
        if name in PRUNABLE:
            torch.testing.assert_close(p.grad, torch.where(p > 0, lam, torch.where(p < 0, -lam, 0.0)).detach())
        else:
            assert p.grad is None, name


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_with_lasso_by_hand(momentum, tiny_run, digits):
    """Through the loss, and so through momentum."""
    lam = 0.01
    run = tiny_run(**PLAIN | {"momentum": momentum, "weight_decay": 0.05, "lr": 0.1}, sparsifier=Lasso(lam=lam))
    model, recipe = training.build(run, digits).train(), run.recipe
    optimiser = torch.optim.SGD(model.parameters(), recipe.lr, momentum, weight_decay=recipe.weight_decay,
                                nesterov=momentum > 0)
    for epoch in range(recipe.epochs):
        for images, labels in batches(run, digits, epoch):
            optimiser.zero_grad()
            cross_entropy(model(images), labels).backward()
            for p in model.parameters():
                p.grad += lam * p.detach().sign() * (p.dim() > 1)
            optimiser.step()
    result = training.train(run, digits)
    for name, p in weights_of(result.model).items():
        torch.testing.assert_close(p, model.get_parameter(name).detach(), rtol=1e-3, atol=1e-5)
    assert [row["gap"] for row in result.history] == [0.0] * recipe.epochs


def test_no_lasso_is_dense_training_and_much_of_it_makes_weights_small_not_zero(tiny_run, digits):
    dense, none, much = (training.train(tiny_run(**change, epochs=4), digits) for change in (
        {}, {"sparsifier": Lasso(lam=0.0)}, {"sparsifier": Lasso(lam=0.05)}))
    assert same(none.model.state_dict(), dense.model.state_dict())
    size = lambda trained: sum(float(w.detach().abs().sum()) for w in sparsity.prunable(trained.model).values())  # noqa: E731
    assert size(much) < 0.7 * size(dense)
    assert sparsity.sparsity(much.model) == 0


# --------------------------------------------------------------------------------------------- magnitude


def assert_pruned(old, new, share: float, least: int = 0) -> None:
    """All but the round(share * n) smallest are left as they were, and so are as many as are left at `least`."""
    expected = old.abs().sort().values
    expected[: min(round(share * len(old)), len(old) - least)] = 0
    assert torch.equal(new.abs().sort().values, expected)
    assert torch.equal(new, torch.where(new == 0, 0.0, old))


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 20))
def test_magnitude_prunes_the_exact_number_globally_and_the_largest_survive(share, seed):
    model, before = Toy(seed), weights_of(Toy(seed))
    Magnitude(sparsity=share).start(model)
    old, new = (torch.cat([weights[n].flatten() for n in PRUNABLE]) for weights in (before, weights_of(model)))
    assert_pruned(old, new, share)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name not in PRUNABLE)


@given(st.floats(0, 1, exclude_max=True))
def test_magnitude_layerwise_prunes_the_same_share_of_each_layer(share):
    model = Toy()
    with torch.no_grad():
        model.first.weight.mul_(100)  # a global ranking would spare this layer
    before = weights_of(model)
    Magnitude(sparsity=share, scope="layerwise").start(model)
    for name in PRUNABLE:
        assert_pruned(before[name].flatten(), model.get_parameter(name).detach().flatten(), share, least=1)


def test_magnitude_counts_exactly_among_ties():
    model = Toy()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    Magnitude(sparsity=0.3).start(model)
    weights = torch.cat([model.get_parameter(name).flatten() for name in PRUNABLE])
    assert (weights == 0).sum() == round(0.3 * len(weights))


@pytest.mark.parametrize("scope", ["global", "layerwise", "erk"])
@given(st.floats(0, 1, exclude_max=True))
def test_magnitude_with_keep_last_prunes_the_share_of_all_but_the_last_layer(scope, share):
    """As if the last layer were not there."""
    assume(scope != "erk" or share < 0.99)  # which leaves each layer a weight
    model, rest = Toy(), Toy()
    with torch.no_grad():
        model.linear.weight.mul_(1e-3)  # it would go first
    before = weights_of(model)
    sparsifier = Magnitude(sparsity=share, scope=scope, keep_last=True)
    masks = sparsifier.start(model)
    del rest.linear
    Magnitude(sparsity=share, scope=scope).start(rest)
    assert all(torch.equal(model.get_parameter(name), rest.get_parameter(name)) for name in CONVOLUTIONS)
    assert torch.equal(model.linear.weight, before["linear.weight"])
    old, new = (torch.cat([weights[n].flatten() for n in CONVOLUTIONS]) for weights in (before, weights_of(model)))
    if scope == "global":
        assert_pruned(old, new, share)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    sparsifier.after_step(model, masks, 0.1)
    assert (model.linear.weight == 1).all()
    assert torch.equal(torch.cat([model.get_parameter(n).flatten() for n in CONVOLUTIONS]) == 0, new == 0)


def test_magnitude_keep_last_and_the_others_that_were_there_before(refusal):
    assert Magnitude(sparsity=0.5).plain() == {"kind": "magnitude", "sparsity": 0.5}
    assert Magnitude(sparsity=0.5, keep_last=True).identity != Magnitude(sparsity=0.5).identity
    assert "one layer" in refusal(Magnitude(sparsity=0.5, keep_last=True).start, nn.Linear(3, 2))


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_magnitude_mask_holds_through_momentum_and_weight_decay(averaging, tiny_run, digits):
    dense = training.train(tiny_run(), digits).model.state_dict()
    pruning = {"sparsifier": Magnitude(sparsity=0.6), "averaging": averaging}
    pruned = weights_of(training.train(tiny_run(**pruning | {"averaging": 0.0}, epochs=0), digits, dense).model)
    tuned = weights_of(training.train(tiny_run(**pruning, weight_decay=0.05), digits, dense).model)
    n = sum(p.numel() for p in pruned.values() if p.dim() > 1)
    assert sum(int((p == 0).sum()) for p in pruned.values() if p.dim() > 1) == round(0.6 * n)
    for name in pruned:
        if pruned[name].dim() > 1:
            assert torch.equal(tuned[name] == 0, pruned[name] == 0)
        assert not torch.equal(tuned[name], pruned[name])


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_magnitude_with_no_epochs_only_prunes(averaging, tiny_run, digits):
    dense = training.train(tiny_run(), digits).model.state_dict()
    run = tiny_run(epochs=0, averaging=averaging, sparsifier=Magnitude(sparsity=0.5))
    result = training.train(run, digits, dense)
    assert result.history == []
    assert sparsity.sparsity(result.model) == pytest.approx(0.5, abs=1e-3)
    for name, t in result.model.state_dict().items():
        assert torch.equal(t, torch.where(t == 0, t, dense[name]))


# ------------------------------------------------------------------------------------- relative threshold


@given(st.floats(0, 1), st.integers(0, 20))
def test_relative_threshold_by_hand_layer_by_layer(threshold, seed):
    model = Toy(seed)
    with torch.no_grad():
        model.first.weight.mul_(100)  # of which other layers must know nothing
        model.norm.weight.fill_(1e-9)
    before = weights_of(model)
    masks = RelativeThreshold(threshold=threshold).start(model)
    assert masks.keys() == set(PRUNABLE)
    for name, p in before.items():
        if name in PRUNABLE:
            largest = max(abs(x) for x in p.flatten().tolist())
            kept = torch.tensor([abs(x) >= torch.tensor(largest) * threshold for x in p.flatten().tolist()])
            assert torch.equal(masks[name], kept.float().view_as(p))
            assert torch.equal(model.get_parameter(name), torch.where(kept.view_as(p), p, 0.0))
        else:
            assert torch.equal(model.get_parameter(name), p), name


def test_what_lies_on_the_relative_threshold_is_kept():
    model = nn.Linear(3, 2)
    model.weight.data = torch.tensor([[-2.0, 0.5, -0.5], [0.499, 0.0, -1.0]])
    RelativeThreshold(threshold=0.25).start(model)
    assert torch.equal(model.weight, torch.tensor([[-2.0, 0.5, -0.5], [0.0, 0.0, -1.0]]))


def test_relative_threshold_at_its_ends():
    model = Toy()
    with torch.no_grad():
        for name in PRUNABLE:  # the largest twice, once negative
            w = model.get_parameter(name).view(-1)
            w[5], w[2] = 3.0, -3.0
    before = weights_of(model)
    RelativeThreshold(threshold=0.0).start(model)
    assert same(weights_of(model), before) and sparsity.sparsity(model) == 0
    RelativeThreshold(threshold=1.0).start(model)
    for name in PRUNABLE:
        assert model.get_parameter(name).flatten().nonzero().flatten().tolist() == [2, 5]
        assert torch.equal(model.get_parameter(name).view(-1)[[2, 5]], torch.tensor([-3.0, 3.0]))


def test_relative_threshold_keeps_inherited_zeros():
    layer = nn.Conv2d(2, 2, 1, bias=False)
    layer.weight.data = torch.tensor([0.0, 1.0, 0.5, 0.0]).view(2, 2, 1, 1)
    assert RelativeThreshold(threshold=0.0).start(layer)["weight"].flatten().tolist() == [0, 1, 1, 0]
    layer.weight.data.zero_()
    assert RelativeThreshold(threshold=0.5).start(layer)["weight"].flatten().tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_relative_threshold_holds_through_momentum_and_weight_decay(averaging, tiny_run, digits):
    dense = training.train(tiny_run(), digits).model.state_dict()
    sparsifier = RelativeThreshold(threshold=0.3)
    pruned = training.train(tiny_run(sparsifier=sparsifier, epochs=0), digits, dense).model
    tuned = training.train(tiny_run(sparsifier=sparsifier, averaging=averaging, weight_decay=0.05), digits, dense)
    assert 0.05 < sparsity.sparsity(pruned) < 0.95
    assert [row["sparsity"] for row in tuned.history] == [sparsity.sparsity(pruned)] * 2
    after = weights_of(tuned.model)
    for name, p in weights_of(pruned).items():
        if p.dim() > 1:
            kept = dense[name].abs() >= 0.3 * dense[name].abs().max()
            assert torch.equal(p, torch.where(kept, dense[name], 0.0))
            assert torch.equal(after[name] != p, kept), name
        else:
            assert torch.equal(p, dense[name]) and not torch.equal(after[name], p)


# ---------------------------------------------------------------------------------------------- fixed mask


@pytest.fixture(scope="module")
def begun(tiny_run, digits) -> dict:
    """A trained network with zeros of every sort: scattered ones, a whole channel, shifts of a norm, minus zero."""
    state = training.train(tiny_run(), digits).model.state_dict()
    chance = torch.Generator().manual_seed(0)
    for t in state.values():
        if t.dim() > 1:
            t.mul_((torch.rand(t.shape, generator=chance) < 0.6).float())
    state["members.0.blocks.1.conv1.weight"][:, 0] = -0.0
    state["members.0.blocks.0.norm1.bias"].zero_()
    return state


def fine_tuned_by_hand(run, splits, start) -> dict:
    """The training of a dense network, with weights reset to zero after each step."""
    model, recipe = training.build(run, splits).train(), run.recipe
    model.load_state_dict(start)
    optimiser = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay,
                                nesterov=recipe.momentum > 0)
    for epoch in range(recipe.epochs):
        for images, labels in batches(run, splits, epoch):
            optimiser.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimiser.step()
            with torch.no_grad():
                for name, p in model.named_parameters():
                    if p.dim() > 1:
                        p[start[name] == 0] = 0
    return weights_of(model)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fine_tuning_is_dense_training_but_for_the_mask(momentum, begun, tiny_run, digits):
    run = tiny_run(**PLAIN | {"momentum": momentum, "weight_decay": 0.05, "lr": 0.1}, sparsifier=FixedMask())
    ours, by_hand = weights_of(training.train(run, digits, begun).model), fine_tuned_by_hand(run, digits, begun)
    for name in by_hand:
        torch.testing.assert_close(ours[name], by_hand[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_zeros_of_the_start_stay_through_momentum_and_weight_decay_and_the_others_move(averaging, begun, tiny_run,
                                                                                       digits):
    run = tiny_run(sparsifier=FixedMask(), averaging=averaging, weight_decay=0.05)
    result = training.train(run, digits, begun)
    for name, p in weights_of(result.model).items():
        moved = p != begun[name]
        if p.dim() > 1:
            assert torch.equal(p == 0, begun[name] == 0)
            assert torch.equal(moved, begun[name] != 0), name
        else:
            assert moved.all(), name  # norms and biases are free, zero or not
    assert [row["sparsity"] for row in result.history] == [sparsity.sparsity(result.model)] * 2
    assert [row["gap"] > 0 for row in result.history] == [averaging > 0] * 2


def test_a_fixed_mask_of_a_net_without_zeros_is_dense_training(tiny_run, digits):
    start = training.train(tiny_run(seed=1), digits).model.state_dict()
    masked, dense = (training.train(run, digits, start) for run in (tiny_run(sparsifier=FixedMask()), tiny_run()))
    assert masked.history == dense.history
    assert same(masked.model.state_dict(), dense.model.state_dict())


def test_fixed_mask_reads_convolution_and_linear_weights_and_changes_none():
    model = Toy()
    with torch.no_grad():
        model.linear.weight[0] = 0
    before = weights_of(model)
    masks = FixedMask().start(model)
    assert same(weights_of(model), before)
    assert masks.keys() == set(PRUNABLE)
    assert same(masks, {name: (before[name] != 0).float() for name in PRUNABLE})


def test_fine_tuning_follows_its_start_in_a_store(tiny_run, tmp_path):
    store = Store(tmp_path / "store", use_published=False)
    pruned = tiny_run(sparsifier=SPLITTINGS["rvsm"]())
    tuned = tiny_run(sparsifier=FixedMask(), start=pruned, epochs=1)
    record = store.train(tuned)  # which trains its start first
    assert {p.name for p in store.folder.glob("[!.]*")} == {tuned.identity, pruned.identity}
    before, after = (weights_of(store.model(run)) for run in (pruned, tuned))
    assert 0.05 < record["sparsity"] == store.record(pruned)["sparsity"] < 0.95
    for name, p in before.items():
        assert torch.equal(after[name] != p, p != 0 if p.dim() > 1 else torch.ones_like(p) == 1), name


# ------------------------------------------------------------------------------------------ bad settings


@pytest.mark.parametrize(("kind", "settings", "named"), [
    (RVSM, {"beta": 0}, "beta"), (RVSM, {"beta": -1.0}, "beta"), (RVSM, {"beta": 1, "lam": -1e-9}, "lam"),
    (RVSM, {"beta": 1, "penalty": "group_l0"}, "penalty"), (RVSM, {"beta": 1, "a": 0}, "a must"),
    (RVSM, {"beta": 1, "pull": "strong"}, "pull"), (RVSM, {"beta": 1, "u_from": "newest"}, "u_from"),
    (RVSM, {"beta": 1, "replace": "never"}, "replace"), (RGSM, {"lambda1": -1}, "lambda1"),
    (RGSM, {"lambda1": 1, "lambda2": -1}, "lambda2"), (RGSM, {"lambda1": 1, "penalty": "l0"}, "penalty"),
    (RGSM, {"lambda1": 1, "beta": 0}, "beta"), (Magnitude, {"sparsity": 1}, "sparsity"),
    (Magnitude, {"sparsity": -0.1}, "sparsity"), (Magnitude, {"sparsity": 0.5, "scope": "local"}, "scope"),
    (Lasso, {"lam": -1e-9}, "lam"), (RelativeThreshold, {"threshold": -0.1}, "threshold"),
    (RelativeThreshold, {"threshold": 1.1}, "threshold"),
])  # fmt: skip
def test_bad_settings_are_refused_in_one_line(kind, settings, named, refusal):
    assert named in refusal(kind, **settings)


def test_defaults_are_the_papers():
    assert RVSM(beta=0.1).lam == 1e-6
    assert RVSM(beta=0.1).penalty == "l0"
    assert (RGSM(lambda1=0.1).beta, RGSM(lambda1=0.1).lambda2) == (1.0, 1e-5)
    assert RGSM(lambda1=0.1).penalty == "group_l0"
    with pytest.raises((UserError, TypeError)):
        RVSM()
    assert proximal.l0(torch.tensor(0.0), 1.0) == 0
