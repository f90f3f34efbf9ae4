"""Dynamic sparse training: updates of the mask and whole trainings recomputed by hand, counts, and interruptions."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from scaffolding import PRUNABLE, Toy, assert_same_training, batches, interrupted, same, seeded, weights_of
from sparserobust import files, sparsity, training
from sparserobust.attacks import PGD
from sparserobust.config import Sparsifier
from sparserobust.objectives import Adversarial
from sparserobust.seeding import global_seed
from sparserobust.sparsifiers import DynamicSparse, FixedMask
from sparserobust.sparsifiers.dynamic import moved
from sparserobust.sparsifiers.rates import erk

PLAIN = {"epochs": 3, "batch_size": 16, "schedule": "constant", "precision": "float32"}
ATTACKED = Adversarial(attack=PGD(epsilon=0.1, step_size=0.05, steps=1))


def moved_by_hand(mask, w, share: float, by) -> np.ndarray:
    """Drop and grow in plain numpy, one weight after the other."""
    mask, w, by = (np.asarray(t, dtype=float).flatten() for t in (mask, w, by))
    mask = mask.copy()
    count = round(share * mask.sum())
    for _ in range(count):
        kept = np.flatnonzero(mask)
        mask[kept[np.abs(w[kept]).argmin()]] = 0
    for _ in range(count):
        masked = np.flatnonzero(mask == 0)
        mask[masked[by[masked].argmax()]] = 1
    return mask


# --------------------------------------------------------------------------------------------------- one update


@given(size=st.integers(1, 60), kept=st.floats(0, 1), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_an_update_by_hand(size, kept, share, seed):
    with seeded(seed):
        mask = (torch.rand(size) < kept).float()
        w, by = torch.randn(size) * mask, torch.randn(size).abs()
    found = moved(mask, w, share, by)
    assert found.tolist() == moved_by_hand(mask, w, share, by).tolist()
    assert found.sum() == mask.sum()


def test_what_was_dropped_may_grow_again_and_keeps_its_value():
    model = nn.Linear(6, 1, bias=False)
    sparsifier = DynamicSparse(sparsity=0.5, every=1, stop=10**9, share=1 / 3, rates="uniform")
    state = {"steps": torch.tensor(1), "weight": torch.tensor([[1.0, 1, 1, 0, 0, 0]])}
    for gradient, expected in ((9.0, [0.1, 2, 3, 0, 0, 0]), (0.1, [0, 2, 3, 0, 0, 0])):
        model.weight.data = torch.tensor([[0.1, 2, 3, 0, 0, 0]])
        model.weight.grad = torch.tensor([[gradient, 7, 7, 0.2, -0.3, 0.0]])
        sparsifier.before_step(model, state, 0.1)
        assert model.weight[0].tolist() == pytest.approx(expected)
    assert state["weight"].tolist() == [[0, 1, 1, 0, 1, 0]]  # the largest in magnitude, whatever its sign
    assert model.weight.grad[0].tolist() == pytest.approx([0, 7, 7, 0, -0.3, 0])


@pytest.mark.parametrize("growth", ["gradient", "random"])
def test_the_next_step_moves_what_has_grown_and_nothing_that_is_masked(growth):
    model, sparsifier = Toy(), DynamicSparse(sparsity=0.6, every=1, stop=100, share=0.5, growth=growth)
    state = sparsifier.start(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for step in range(6):
        before = {name: state[name].clone() for name in PRUNABLE}
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        sparsifier.before_step(model, state, 0.1)
        optimiser.step()
        sparsifier.after_step(model, state, 0.1)
        for name in PRUNABLE:
            assert torch.equal(model.get_parameter(name) == 0, state[name] == 0)
        grown = sum(int((state[name] > before[name]).sum()) for name in PRUNABLE)
        assert (grown > 3) == (step > 0)  # the first step is taken with the first mask


# --------------------------------------------------------------------------------------------------- the schedule


def exchanged(steps: int, **settings) -> list[int]:
    """How many weights of a layer of 10,000, half of them kept, grow before each step, if all that are dropped are
    smaller than all others and none may come back."""
    model, sparsifier = nn.Linear(100, 100, bias=False), DynamicSparse(sparsity=0.5, rates="uniform", **settings)
    state, counts = sparsifier.start(model), []
    for _ in range(steps):
        before = state["weight"].clone()
        model.weight.grad = 1.0 - before  # of kept weights none
        sparsifier.before_step(model, state, 0.1)
        counts.append(int((state["weight"] > before).sum()))
        sparsifier.after_step(model, state, 0.1)
    return counts


def test_the_share_falls_by_half_a_cosine_until_the_mask_stays():
    counts = exchanged(40, every=4, stop=30, share=0.3)
    expected = [round(0.15 * (1 + math.cos(math.pi * t / 30)) * 5000) if t % 4 == 0 and 0 < t < 30 else 0
                for t in range(40)]
    assert counts == expected
    assert counts[4] > 1400 and 0 < counts[28] < 20


def test_with_share_one_all_weights_go_and_an_update_at_stop_is_none():
    assert exchanged(4, every=1, stop=3, share=1.0) == [0, 3750, 1250, 0]


# -------------------------------------------------------------------------------------------------- the first mask


@given(share=st.floats(0, 0.95), rates=st.sampled_from(["erk", "uniform"]), growth=st.sampled_from(
    ["gradient", "random"]), seed=st.integers(0, 99))
def test_counts_of_all_layers_stay_and_their_sum_is_exact(share, rates, growth, seed):
    model = Toy()
    sizes = {name: model.get_parameter(name).numel() for name in PRUNABLE}
    sparsifier = DynamicSparse(sparsity=share, every=2, stop=7, share=0.7, growth=growth, rates=rates)
    with seeded(seed):
        state = sparsifier.start(model)
        first = {name: int((state[name] == 0).sum()) for name in PRUNABLE}
        assert sum(first.values()) == round(share * sum(sizes.values()))
        if rates == "uniform":
            assert all(abs(first[name] - share * sizes[name]) <= 1 for name in PRUNABLE)
        else:
            shapes = [model.get_parameter(name).shape for name in PRUNABLE]
            assert list(first.values()) == erk(shapes, sum(first.values()))
        for _ in range(9):
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            sparsifier.before_step(model, state, 0.1)
            sparsifier.after_step(model, state, 0.1)
            assert {name: int((state[name] == 0).sum()) for name in PRUNABLE} == first
            assert sparsity.zero_weights(model)[0] >= sum(first.values())
    assert state.keys() == {"steps", *PRUNABLE} and state["steps"] == 9


def test_every_weight_of_a_layer_is_as_likely_to_be_masked_at_first():
    draws, sparsifier = 2000, DynamicSparse(sparsity=0.5, every=1, stop=1)
    masks = [sparsifier.start(Toy()) for _ in range(draws)]
    for name in PRUNABLE:
        often = torch.stack([mask[name].flatten() for mask in masks]).double().mean(0)
        expected = float(masks[0][name].mean())
        assert (often - expected).abs().max() <= 4.5 * (expected * (1 - expected) / draws) ** 0.5


def test_zeros_of_a_start_are_drawn_like_other_weights():
    model = nn.Linear(100, 100)
    with torch.no_grad():
        model.weight[:50] = 0
    state = DynamicSparse(sparsity=0.5, every=1, stop=1).start(model)
    assert int(state["weight"][:50].sum()) == pytest.approx(2500, abs=4 * 25)
    assert int(state["weight"].sum()) == 5000
    assert sparsity.zero_weights(model)[0] == 5000 + int(state["weight"][:50].sum())


# ------------------------------------------------------------------------------------------------------- training


def trained_by_hand(run, splits) -> tuple[dict, dict, int]:
    """The network's state, its masks, and how many weights have grown on the way: torch's own SGD, masks by numpy, and
    the first mask that of `start`."""
    model, s, recipe = training.build(run, splits).train(), run.sparsifier, run.recipe
    with global_seed(run.seed, "sparsifier"):
        masks = {name: t for name, t in s.start(model).items() if name != "steps"}
    optimiser = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum, nesterov=True,
                                weight_decay=recipe.weight_decay)
    done = grown = 0
    for epoch in range(recipe.epochs):
        with global_seed(run.seed, "noise", epoch):
            for images, labels in batches(run, splits, epoch):
                optimiser.zero_grad()
                cross_entropy(model(images), labels).backward()
                gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
                for name, mask in masks.items():
                    w = model.get_parameter(name)
                    if done in (2, 4, 6):
                        share = s.share * (1 + math.cos(math.pi * done / s.stop)) / 2
                        by = torch.rand(w.shape) if s.growth == "random" else gradients[name].abs()
                        after = torch.from_numpy(moved_by_hand(mask, w.detach(), share, by)).float().view_as(w)
                        grown += int((after > mask).sum())
                        masks[name] = mask = after
                        w.data *= mask
                    gradients[name] *= mask
                optimiser.step()
                for name, mask in masks.items():
                    model.get_parameter(name).data *= mask
                done += 1
    return model.state_dict(), masks, grown


@pytest.mark.parametrize("growth", ["gradient", "random"])
def test_training_follows_the_algorithm_by_hand(growth, tiny_run, digits, tmp_path):
    run = tiny_run(**PLAIN, weight_decay=0.01,
                   sparsifier=DynamicSparse(sparsity=0.7, every=2, stop=8, share=0.4, growth=growth))
    result = training.train(run, digits, checkpoint=tmp_path / "checkpoint")
    tensors, _ = files.load_tensors(tmp_path / "checkpoint")
    expected, masks, grown = trained_by_hand(run, digits)
    for name, t in result.model.state_dict().items():
        torch.testing.assert_close(t, expected[name], rtol=1e-4, atol=1e-6)
        if name in masks:
            assert torch.equal(tensors[f"sparsifier/{name}"], masks[name])
            assert torch.equal(t == 0, masks[name] == 0)
    assert tensors["sparsifier/steps"] == 12 and grown > 50
    zero, total = sparsity.zero_weights(result.model)
    assert zero == round(0.7 * total)
    assert [row["sparsity"] for row in result.history[1:]] == pytest.approx([zero / total] * 2)
    assert zero / total <= result.history[0]["sparsity"] < zero / total + 0.01  # some grew and did not move
    assert result.history[-1]["gap"] == 0


@pytest.mark.parametrize("rates", ["erk", "uniform"])
def test_share_zero_is_training_at_a_fixed_random_mask(rates, tiny_run, digits):
    """Bit for bit."""
    run = tiny_run(epochs=3, weight_decay=0.01, objective=ATTACKED,
                   sparsifier=DynamicSparse(sparsity=0.6, every=1, stop=100, share=0.0, rates=rates))
    masked = training.build(run, digits)
    with global_seed(run.seed, "sparsifier"):
        run.sparsifier.start(masked)
    fixed = tiny_run(epochs=3, weight_decay=0.01, objective=ATTACKED, sparsifier=FixedMask())
    assert_same_training(training.train(run, digits), training.train(fixed, digits, masked.state_dict()))


def test_growth_by_gradient_and_by_chance_are_not_the_same(tiny_run, digits):
    masks = []
    for changes in ({}, {"growth": "random"}, {"share": 0.0}):
        run = tiny_run(sparsifier=DynamicSparse(sparsity=0.6, every=1, stop=9, **changes))
        weights = weights_of(training.train(run, digits).model).values()
        masks.append(torch.cat([w.flatten() == 0 for w in weights if w.dim() > 1]))
    assert not any(torch.equal(one, other) for one, other in pairwise([*masks, masks[0]]))


@pytest.mark.parametrize(("select", "averaging", "growth"), [("last", 0.0, "gradient"), ("best", 0.9, "random")])
@pytest.mark.parametrize("stops", [[1], [1, 2, 3]])
def test_an_interrupted_training_equals_an_undisturbed_one(stops, select, averaging, growth, tiny_run, digits,
                                                           tmp_path):
    """Bit for bit: weights, masks and the number of steps; the draw is that of the run's seed."""
    run = tiny_run(epochs=4, select=select, averaging=averaging, objective=ATTACKED, lr=0.3, seed=1,
                   sparsifier=DynamicSparse(sparsity=0.5, every=2, stop=9, growth=growth))
    undisturbed = training.train(run, digits, checkpoint=tmp_path / "one")
    assert_same_training(interrupted(run, digits, tmp_path / "other", stops), undisturbed)
    assert same(*(files.load_tensors(tmp_path / name)[0] for name in ("one", "other")))


def test_averaging_changes_nothing(tiny_run, digits):
    sparsifier = DynamicSparse(sparsity=0.5, every=1, stop=7)
    assert_same_training(*(training.train(tiny_run(epochs=4, averaging=averaging, sparsifier=sparsifier), digits)
                           for averaging in (0.0, 0.9)))


def test_momentum_of_what_is_dropped_fades():
    """No gradient feeds it while the weight is masked."""
    model, sparsifier = nn.Linear(10, 10, bias=False), DynamicSparse(sparsity=0.5, every=1, stop=0)
    state = sparsifier.start(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    for _ in range(3):
        model.weight.grad = torch.ones(10, 10)
        sparsifier.before_step(model, state, 0.1)
        optimiser.step()
        sparsifier.after_step(model, state, 0.1)
    buffer = optimiser.state[model.weight]["momentum_buffer"]
    assert not buffer[state["weight"] == 0].any() and bool(buffer[state["weight"] == 1].all())


def test_a_layer_that_is_not_used_keeps_its_mask():
    model, sparsifier = Toy(), DynamicSparse(sparsity=0.5, every=1, stop=9)
    state = sparsifier.start(model)
    before = weights_of(model)
    sparsifier.after_step(model, state, 0.1)
    sparsifier.before_step(model, state, 0.1)
    assert same(weights_of(model), before)


# --------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(("changes", "named"), [
    ({"sparsity": 1}, "sparsity"), ({"sparsity": -0.1}, "sparsity"), ({"share": 1.1}, "share"),
    ({"share": -0.1}, "share"), ({"every": 0}, "every"), ({"stop": -1}, "stop"), ({"growth": "momentum"}, "growth"),
    ({"rates": "global"}, "rates"),
])  # fmt: skip
def test_bad_settings_are_refused_in_one_line(changes, named, refusal):
    assert named in refusal(DynamicSparse, **({"sparsity": 0.9, "every": 100, "stop": 1000} | changes))


def test_a_network_with_nothing_to_mask_and_one_of_which_nothing_is_left_are_refused(refusal):
    sparsifier = DynamicSparse(sparsity=0.999, every=1, stop=1)
    assert "nothing to act on" in refusal(sparsifier.start, nn.BatchNorm2d(3))
    for rates in ("erk", "uniform"):
        assert "lower the sparsity" in refusal(DynamicSparse(sparsity=0.999, every=1, stop=1, rates=rates).start, Toy())


def test_settings_are_written_and_read_back():
    sparsifier = DynamicSparse(sparsity=0.9, every=100, stop=1000)
    assert (sparsifier.share, sparsifier.growth, sparsifier.rates) == (0.3, "gradient", "erk")
    assert sparsifier.plain() == {"kind": "dynamic_sparse", "sparsity": 0.9, "every": 100, "stop": 1000}
    assert Sparsifier.parse(sparsifier.plain()) == sparsifier
