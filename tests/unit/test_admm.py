"""ADMM as it is meant and as it was released: projections and whole trainings recomputed by hand."""

import math
from decimal import Decimal
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from scaffolding import CONVOLUTIONS, Toy, batches, weights_of
from sparserobust import files, training
from sparserobust.config import Sparsifier
from sparserobust.sparsifiers import ADMM, ReleasedADMM

GRANULARITIES = ["weight", "channel"]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
each_granularity = pytest.mark.parametrize("granularity", GRANULARITIES)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 5), *[st.sampled_from([1, 3])] * 2)
shares = st.floats(0, 1, exclude_max=True)


def gaussian(shape, seed=0, **more):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **more)


def parts(w, granularity):
    """What is kept or removed as a whole: one row for each weight, or for each input channel."""
    return w.reshape(-1, 1) if granularity == "weight" else w.transpose(0, 1).flatten(1)


# ---------------------------------------------------------------------------------------------- projection


@pytest.mark.parametrize("share, size, removed", [(0.29, 100, 29), (0.57, 100, 57), (0.58, 50, 29), (0.299, 10, 2)])
def test_a_share_is_rounded_down_but_not_by_what_floats_fall_short(share, size, removed):
    """0.29 times 100 is 28.999999999999996."""
    w = gaussian((size, 1, 1, 1))
    assert (ADMM(sparsity=share).project(w) == 0).sum() == removed


@each_granularity
@given(shapes, shares, st.integers(0, 10**6), st.sampled_from(sorted(LAYOUTS)))
def test_projection_keeps_the_largest_and_their_exact_number(granularity, shape, share, seed, layout):
    w = gaussian(shape, seed).contiguous(memory_format=LAYOUTS[layout])
    before = w.clone()
    rows, projected = (parts(t, granularity) for t in (w, ADMM(sparsity=share, granularity=granularity).project(w)))
    assert torch.equal(w, before)
    kept = (projected != 0).all(1)
    assert torch.equal(projected, rows * kept[:, None])  # whole rows, unchanged
    assert kept.sum() == len(rows) - math.floor(Decimal(repr(share)) * len(rows))
    lengths = rows.double().norm(dim=1)
    assert kept.all() or lengths[~kept].max() <= lengths[kept].min()


@each_granularity
@hypothesis_settings(max_examples=40)
@given(st.sampled_from([0.0, 0.2, 0.5, 0.7, 0.99]), st.integers(0, 10**6))
def test_projection_is_the_nearest_point_of_its_set(granularity, share, seed):
    """Of all supports of that size with the values of w, and of random tensors with such a support."""
    w = gaussian((2, 3, 1, 1) if granularity == "weight" else (2, 6, 1, 3), seed, dtype=torch.float64)
    rows = parts(w, granularity)
    distance = (w - ADMM(sparsity=share, granularity=granularity).project(w)).norm().item()
    support_size = len(rows) - math.floor(Decimal(repr(share)) * len(rows))
    chance, rivals = torch.Generator().manual_seed(seed), []
    for support in combinations(range(len(rows)), support_size):
        mask = torch.zeros(len(rows), 1, dtype=w.dtype)
        mask[list(support)] = 1
        rivals.append((rows - mask * rows).norm().item())
        other = rows + 0.3 * torch.randn(rows.shape, dtype=w.dtype, generator=chance)
        assert distance <= (rows - mask * other).norm().item()
    assert distance == pytest.approx(min(rivals), abs=1e-12)


@each_granularity
def test_projection_counts_exactly_among_ties(granularity):
    w = torch.full((3, 10, 2, 2), -0.5)
    rows = parts(ADMM(sparsity=0.35, granularity=granularity).project(w), granularity)
    assert (rows == 0).all(1).sum() == (rows == 0).any(1).sum() == math.floor(0.35 * len(rows))


@each_granularity
def test_projection_of_sparsity_zero_is_the_identity(granularity):
    w = gaussian((4, 5, 3, 3))
    assert torch.equal(ADMM(sparsity=0, granularity=granularity).project(w), w)


def percentile(values, percent: float) -> float:
    """With linear interpolation between neighbours."""
    ordered = np.sort(np.ravel(values))
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    return ordered[below] + (place - below) * (ordered[min(below + 1, len(ordered) - 1)] - ordered[below])


def released_projection(w, percent, granularity):
    """`prune_utils.projection` of the released code."""
    if granularity == "weight":
        return w.where(w.abs() >= percentile(w.numpy(), percent), torch.zeros(()))
    projected, norms = w.clone(), (w.pow(2).sum((0, 2, 3)) + 1e-8).sqrt()
    for i in range(len(norms)):
        norms[i] = float(norms[i] > percentile(norms.numpy(), percent))
        projected[:, i] *= norms[i]
    return projected


@each_granularity
@given(shapes, st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.8, 0.9]), st.integers(0, 10**6))
def test_released_projection_is_the_released_one(granularity, shape, share, seed):
    w = 2 * gaussian(shape, seed)
    expected = released_projection(w, 100 * share, granularity)
    assert torch.equal(ReleasedADMM(sparsity=share, granularity=granularity).project(w), expected)


@pytest.mark.parametrize(("share", "removed"), [(0.8, 0.6), (0.6, 0.2), (0.5, 0.0)])
def test_signed_percentiles_remove_less_of_gaussian_weights(share, removed):
    """In general 2 share - 1: the share of |w| below the quantile of w."""
    projected = ReleasedADMM(sparsity=share).project(0.05 * gaussian((64, 64, 3, 3)))
    assert (projected == 0).double().mean().item() == pytest.approx(removed, abs=0.01)


@pytest.mark.parametrize(("share", "removed"), [(0.8, 0.49), (0.6, 0.24)])
def test_overwritten_norms_remove_less_of_channels_above_one(share, removed):
    """Where norms are above 1, those already overwritten by 1 count as small ones."""
    zeros = []
    for seed in range(8):
        norms = np.random.default_rng(seed).uniform(1.1, 3.0, 200)
        w = gaussian((8, 200, 3, 3), seed)
        w *= (torch.from_numpy(norms).float() / w.pow(2).sum((0, 2, 3)).sqrt())[:, None, None]
        projected = ReleasedADMM(sparsity=share, granularity="channel").project(w)
        zeros.append((parts(projected, "channel") == 0).all(1).double().mean().item())
    assert np.mean(zeros) == pytest.approx(removed, abs=0.02)
    assert max(zeros) < share - 0.2


def test_overwritten_norms_below_one_are_cut_where_they_should():
    norms = torch.linspace(0.1, 0.9, 20)[torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    projected = ReleasedADMM(sparsity=0.8, granularity="channel").project(norms.view(1, 20, 1, 1))
    assert sorted(projected[projected != 0].tolist()) == sorted(norms.tolist())[-4:]


# ------------------------------------------------------------------------------------- training, step by step


def projection_by_hand(s, w):
    if isinstance(s, ReleasedADMM):
        return released_projection(w, 100 * s.sparsity, s.granularity)
    sizes = w.abs() if s.granularity == "weight" else w.pow(2).sum((0, 2, 3))[:, None, None]
    smallest_kept = sizes.flatten().sort().values[math.floor(s.sparsity * sizes.numel())]
    return w * (sizes >= smallest_kept)


def trained_by_hand(run, splits) -> tuple[dict, dict, dict]:
    """w after training, z and dual, and what is delivered: SGD and ADMM spelt out in the released loop's order."""
    model, s, recipe = training.build(run, splits).train(), run.sparsifier, run.recipe
    released = isinstance(s, ReleasedADMM)
    w: dict[str, torch.Tensor] = dict(model.named_parameters())
    convolutions = [name for name, p in w.items() if p.dim() == 4]
    momentum = {name: torch.zeros_like(p) for name, p in w.items()}

    def begin():
        return ({n: projection_by_hand(s, w[n].detach()) for n in convolutions},
                {n: torch.zeros_like(w[n]) for n in convolutions})

    z, dual = begin()
    for epoch in range(recipe.epochs):
        for images, labels in batches(run, splits, epoch):
            loss = cross_entropy(model(images), labels)
            gradients = dict(zip(w, torch.autograd.grad(loss, list(w.values())), strict=True))
            with torch.no_grad():
                for name in convolutions:
                    z[name] = projection_by_hand(s, w[name] + dual[name])
                    dual[name] = dual[name] + w[name] - z[name]
                for _ in convolutions if released else [1]:
                    for name in convolutions:
                        w[name] -= recipe.lr * s.rho * (w[name] - z[name] + dual[name])
                for name, p in w.items():
                    gradient = gradients[name] + recipe.weight_decay * p
                    momentum[name] = recipe.momentum * momentum[name] + gradient
                    p -= recipe.lr * (gradient + recipe.momentum * momentum[name])  # Nesterov; plain for momentum 0
        if released:
            z, dual = begin()
    trained = {name: p.detach().clone() for name, p in w.items()}
    sparse = {} if released else {name: projection_by_hand(s, trained[name]) for name in convolutions}
    return trained, z | {f"dual {name}": t for name, t in dual.items()}, trained | sparse


PLAIN = {"epochs": 2, "batch_size": 32, "lr": 0.2, "schedule": "constant", "precision": "float32"}
ADMMS = {f"{kind.kind}-{granularity}": kind(sparsity=share, granularity=granularity, rho=rho)
         for kind, rho in ((ADMM, 0.5), (ReleasedADMM, 0.1)) for granularity, share in (("weight", 0.8),
                                                                                       ("channel", 0.6))}
each_admm = pytest.mark.parametrize("name", ADMMS)


@each_admm
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_follows_the_algorithm_by_hand(name, momentum, tiny_run, digits, tmp_path):
    run = tiny_run(**PLAIN, momentum=momentum, weight_decay=momentum / 100, sparsifier=ADMMS[name])
    model = training.train(run, digits, checkpoint=tmp_path / "checkpoint").model
    tensors, _ = files.load_tensors(tmp_path / "checkpoint")
    delivered = {name: p.detach() for name, p in model.named_parameters()}
    trained = {name: tensors[f"model/{name}"] for name in delivered}
    state = {n.removeprefix("sparsifier/"): t for n, t in tensors.items() if n.startswith("sparsifier/")}
    for ours, by_hand in zip((trained, state, delivered), trained_by_hand(run, digits), strict=True):
        assert ours.keys() == by_hand.keys()
        for key in ours:
            torch.testing.assert_close(ours[key], by_hand[key], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(ours[key] == 0, by_hand[key] == 0) for key in ours)  # of what is delivered, the last pair


@each_granularity
def test_what_is_delivered_has_the_share_of_zeros_in_every_convolution(granularity, tiny_run, digits):
    run = tiny_run(sparsifier=ADMM(sparsity=0.3, granularity=granularity, rho=0.5))
    result = training.train(run, digits)
    for name, rows in [(n, parts(p.detach(), granularity)) for n, p in result.model.named_parameters() if p.dim() == 4]:
        assert (rows == 0).all(1).sum() == math.floor(0.3 * len(rows)), name
    assert 0 < result.history[-1]["gap"] < 1
    assert result.history[-1]["sparsity"] > 0.05


def test_the_dual_closes_the_gap(tiny_run, digits):
    """What the docstring promises: with the pull, less is torn away when w is projected."""
    gaps = [training.train(tiny_run(epochs=8, batch_size=8, sparsifier=ADMM(sparsity=0.3, rho=rho)),
                           digits).history[-1]["gap"] for rho in (1e-6, 1.0)]
    assert gaps[1] < gaps[0] / 2


@each_granularity
def test_released_training_ends_with_hardly_a_zero(granularity, tiny_run, digits):
    result = training.train(tiny_run(sparsifier=ReleasedADMM(sparsity=0.8, granularity=granularity)), digits)
    assert result.history[-1]["sparsity"] == result.history[-1]["channel_sparsity"] == result.history[-1]["gap"] == 0


# ------------------------------------------------------------------------------------- what it leaves alone


@each_admm
def test_only_convolution_weights_are_touched(name):
    model, sparsifier = Toy(seed=1), ADMMS[name]  # a layer that is already as sparse as asked would not move
    before = weights_of(model)
    state = sparsifier.start(model)
    assert state.keys() == {*CONVOLUTIONS, *(f"dual {name}" for name in CONVOLUTIONS)}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    assert sparsifier.added_loss(model, state) == 0
    sparsifier.before_step(model, state, 0.1)
    sparsifier.after_step(model, state, 0.1)
    sparsifier.after_epoch(model, state)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(CONVOLUTIONS)
    assert not any(p.grad.any() for p in model.parameters())  # the pull is no part of the gradient, nor of momentum
    assert not any(t.requires_grad for t in state.values())
    sparse = sparsifier.sparse_weights(model, state)
    assert sparse.keys() == (set() if isinstance(sparsifier, ReleasedADMM) else changed)


@pytest.mark.parametrize("kind", [ADMM, ReleasedADMM])
@pytest.mark.parametrize(("settings", "named"), [
    ({"sparsity": 1}, "sparsity"), ({"sparsity": -0.1}, "sparsity"), ({"sparsity": 80}, "share"),
    ({"sparsity": 0.5, "granularity": "channels"}, "granularity"), ({"sparsity": 0.5, "rho": 0}, "rho"),
    ({"sparsity": 0.5, "rho": -1}, "rho"),
])  # fmt: skip
def test_bad_settings_are_refused_in_one_line(kind, settings, named, refusal):
    assert named in refusal(kind, **settings)


def test_settings_are_written_and_read_back(refusal):
    for sparsifier in ADMMS.values():
        assert Sparsifier.parse(sparsifier.plain()) == sparsifier
    assert ADMM(sparsity=0.5).identity != ReleasedADMM(sparsity=0.5).identity
    assert ADMM(sparsity=0.5).rho == 1e-2  # the released code's
    assert "sparsity" in refusal(Sparsifier.parse, {"kind": "admm"})
