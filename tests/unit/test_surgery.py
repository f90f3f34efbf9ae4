"""Dynamic network surgery: single revisions and whole trainings recomputed by hand, the dice, and interruptions."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from scaffolding import PRUNABLE, Toy, assert_same_training, batches, interrupted, same, seeded, weights_of
from sparserobust import files, sparsity, training
from sparserobust.attacks import PGD
from sparserobust.config import Sparsifier
from sparserobust.objectives import Adversarial
from sparserobust.seeding import global_seed
from sparserobust.sparsifiers import DynamicNetworkSurgery

SURE = {"stop": 1000, "gamma": 0.0}  # masks are revised before every iteration
PLAIN = {"epochs": 3, "batch_size": 16, "schedule": "constant", "precision": "float32"}


def step(sparsifier, model, state, move) -> None:
    """One iteration whose optimiser adds `move(name, raw)` to the weights."""
    sparsifier.before_step(model, state, 0.1)
    with torch.no_grad():
        for name in PRUNABLE:
            p = model.get_parameter(name)
            p += move(name, p)
    sparsifier.after_step(model, state, 0.1)


def threshold_by_hand(w, rate: float) -> float:
    sizes = np.abs(np.array([x for x in w.flatten().tolist() if x != 0]))
    return max(sizes.mean() + rate * math.sqrt((sizes**2).mean() - sizes.mean() ** 2), 0.0)


def revised_by_hand(mask: list[float], raw: list[float], t: float) -> list[float]:
    return [0.0 if abs(r) <= 0.9 * t else 1.0 if abs(r) > 1.1 * t else m for m, r in zip(mask, raw, strict=True)]


# ------------------------------------------------------------------------------------------ masks, step by step


def test_revisions_by_hand_layer_by_layer():
    """Random walks of raw: thresholds stay those of the beginning, masks go back and forth."""
    model, rates, chance = Toy(), (0.5, -0.4, 0.8, 1.0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.first.weight.mul_(30)  # of which other layers must know nothing
        model.linear.weight[0] = 0  # zeros do not count as magnitudes
        for p in (model.first.bias, model.linear.bias, model.norm.weight):
            p.fill_(1e-6)  # nor do biases; and they are not pruned
    raw = weights_of(model)
    thresholds = {name: threshold_by_hand(raw[name], rate) for name, rate in zip(PRUNABLE, rates, strict=True)}
    sparsifier = DynamicNetworkSurgery(rates=rates, **SURE)
    state, masks = sparsifier.start(model), {name: [1.0] * raw[name].numel() for name in PRUNABLE}
    spliced = 0
    for iteration in range(20):
        before = masks
        masks = {name: revised_by_hand(masks[name], raw[name].flatten().tolist(), thresholds[name])
                 for name in PRUNABLE}
        spliced += sum(a < b for name in PRUNABLE for a, b in zip(before[name], masks[name], strict=True))
        assert state["iteration"] == iteration
        for name, p in model.named_parameters():
            if name in PRUNABLE:
                mask = torch.tensor(masks[name]).view_as(p)
                assert torch.equal(state[f"mask {name}"], mask) and torch.equal(state[name], raw[name])
                assert torch.equal(p, mask * raw[name])
            else:
                assert torch.equal(p, raw[name]), name
        moves = {name: thresholds[name] * 0.3 * torch.randn(raw[name].shape, generator=chance) for name in PRUNABLE}
        step(sparsifier, model, state, lambda name, _, moves=moves: moves[name])
        raw |= {name: raw[name] + moves[name] for name in PRUNABLE}
    assert spliced > 10
    assert state.keys() == {"iteration", "thresholds", *PRUNABLE, *(f"mask {name}" for name in PRUNABLE)}
    assert state["thresholds"].tolist() == pytest.approx([thresholds[name] for name in PRUNABLE], rel=1e-6)
    assert not any(t.requires_grad for t in state.values())


def test_a_weight_pruned_by_mistake_comes_back_and_one_between_the_thresholds_stays():
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, -1.0, 3.0, -3.0]])  # mean 2, standard deviation 1
    sparsifier = DynamicNetworkSurgery(rates=(0.0,), **SURE)
    state, seen = sparsifier.start(model), []
    for raw in (1.79, 1.81, 2.19, 2.21, 1.81, 1.79, -2.21, -1.81, -1.79):
        sparsifier.before_step(model, state, 0.1)
        model.weight.data[0, 0] = raw
        sparsifier.after_step(model, state, 0.1)
        seen.append(model.weight[0, 0].item())
        assert state["weight"][0, 0].item() == pytest.approx(raw)
    assert seen == pytest.approx([0, 0, 0, 2.21, 1.81, 0, -2.21, -1.81, 0])


def test_what_lies_on_the_lower_threshold_goes_and_on_the_upper_stays_as_it_was():
    sparsifier, model = DynamicNetworkSurgery(rates=(0.0,), **SURE), nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[90.0, 110.0]])  # t = 100
    state = sparsifier.start(model)
    assert model.weight.tolist() == [[0.0, 110.0]]
    for raw, expected in ((110.0, 0.0), (111.0, 111.0), (110.0, 110.0), (90.0, 0.0)):
        sparsifier.before_step(model, state, 0.1)
        model.weight.data[0, 0] = raw
        sparsifier.after_step(model, state, 0.1)
        assert model.weight[0, 0].item() == expected


def test_a_rate_far_below_zero_prunes_nothing_and_one_rate_holds_for_all_layers():
    model = Toy()
    with torch.no_grad():
        model.linear.weight[0, 0] = 0
    before = weights_of(model)
    state = DynamicNetworkSurgery(rates=(-100.0,), **SURE).start(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert state["thresholds"].tolist() == [0, 0, 0, 0]
    assert state["mask linear.weight"].sum() == 34  # what is zero lies on the threshold
    one, four = Toy(), Toy()
    DynamicNetworkSurgery(rates=(0.7,), **SURE).start(one)
    DynamicNetworkSurgery(rates=(0.7, 0.7, 0.7, 0.7), **SURE).start(four)
    assert all(torch.equal(p, four.get_parameter(name)) for name, p in one.named_parameters())
    assert 0.5 < sparsity.sparsity(one) < 1


# ---------------------------------------------------------------------------------------------------- the dice


def revised_layers(sparsifier, layers: int, iteration: int) -> list[bool]:
    """Which of many layers revise their masks before this iteration."""
    model = nn.Sequential(*(nn.Linear(1, 2, bias=False) for _ in range(layers)))
    state = sparsifier.start(model)
    for weight in model.parameters():  # as far from what the masks say as can be
        weight.data.fill_(1e9)
    for name in list(state):
        if name.startswith("mask "):
            state[name].zero_()
    state["iteration"].fill_(iteration - 1)
    sparsifier.after_step(model, state, 0.1)
    masks = torch.stack([state[f"mask {i}.weight"] for i in range(layers)]).flatten(1)
    assert torch.equal(masks[:, 0], masks[:, 1])  # a layer as a whole
    return masks[:, 0].bool().tolist()


@pytest.mark.parametrize(("gamma", "power", "iteration"), [
    (1e-4, 1.0, 10_000), (1e-4, 1.0, 1), (0.01, 0.5, 300), (0.5, 2.0, 2), (0.3, 0.0, 50), (0.0, 2.0, 50)])
def test_the_probability_of_a_revision(gamma, power, iteration):
    layers, expected = 2000, (1 + gamma * iteration) ** -power
    sparsifier = DynamicNetworkSurgery(rates=(0.0,), stop=10**6, gamma=gamma, power=power)
    with seeded():
        revised = revised_layers(sparsifier, layers, iteration)
        again = revised_layers(sparsifier, layers, iteration)
    spread = (expected * (1 - expected) / layers) ** 0.5
    assert np.mean(revised) == pytest.approx(expected, abs=4 * spread + 1e-9)
    assert (revised != again) == (expected < 0.999)  # other dice
    assert np.mean([a and b for a, b in zip(revised, again, strict=True)]) == pytest.approx(expected**2, abs=0.04)


def test_masks_are_revised_before_iterations_below_stop_only():
    sparsifier = DynamicNetworkSurgery(rates=(0.0,), stop=7, gamma=0.0)
    assert all(revised_layers(sparsifier, 3, 6))
    assert not any(revised_layers(sparsifier, 3, 7))
    assert not any(revised_layers(sparsifier, 3, 100))


def test_after_stop_masks_are_fixed_while_raw_moves_on():
    sparsifier, model = DynamicNetworkSurgery(rates=(0.5,), stop=3, gamma=0.0), Toy()
    state, patterns = sparsifier.start(model), []
    for _ in range(8):
        raw = state["first.weight"].clone()
        step(sparsifier, model, state, lambda name, raw: 0.2 * torch.randn(raw.shape))
        assert not torch.equal(state["first.weight"], raw)
        patterns.append(torch.cat([model.get_parameter(name).flatten() != 0 for name in PRUNABLE]))
    assert not torch.equal(patterns[0], patterns[1])  # before iterations 1 and 2
    assert all(torch.equal(pattern, patterns[1]) for pattern in patterns[2:])


def test_the_start_throws_no_dice_and_training_only_its_own(tiny_run, digits):
    before = torch.get_rng_state()
    DynamicNetworkSurgery(rates=(0.5,), stop=5, gamma=0.5).start(Toy())
    assert torch.equal(torch.get_rng_state(), before)
    run, results = tiny_run(sparsifier=DynamicNetworkSurgery(rates=(0.3,), stop=100, gamma=0.5)), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(training.train(run, digits))
    assert same(*(r.model.state_dict() for r in results))


# --------------------------------------------------------------------------------------------------- training


def trained_by_hand(run, splits) -> tuple[dict, dict, dict, int]:
    """The network's weights, raw and masks after training, and how many weights came back on the way: SGD and the
    surgery spelt out in the released order, masks before the forward pass of an iteration."""
    model, s, recipe = training.build(run, splits).train(), run.sparsifier, run.recipe
    w = dict(model.named_parameters())
    raw = {name: p.detach().clone() for name, p in w.items()}
    momentum = {name: torch.zeros_like(p) for name, p in w.items()}
    masks = {name: torch.ones_like(p) for name, p in w.items() if p.dim() in (2, 4)}
    thresholds = {name: threshold_by_hand(raw[name], rate) for name, rate in zip(masks, s.rates, strict=True)}

    spliced = 0

    def revise(iteration):
        nonlocal spliced
        for name, mask in masks.items():
            probability = (1 + s.gamma * iteration) ** -s.power
            revised = iteration == 0 or torch.rand(()).item() < probability
            if revised and iteration < s.stop:
                rows = revised_by_hand(mask.flatten().tolist(), raw[name].flatten().tolist(), thresholds[name])
                masks[name] = torch.tensor(rows).view_as(mask)
                spliced += int((masks[name] > mask).sum())
            w[name].data = masks[name] * raw[name]

    revise(iteration := 0)
    for epoch in range(recipe.epochs):
        with global_seed(run.seed, "noise", epoch):
            for images, labels in batches(run, splits, epoch):
                loss = cross_entropy(model(images), labels)
                gradients = dict(zip(w, torch.autograd.grad(loss, list(w.values())), strict=True))  # at masked weights
                for name in w:
                    gradient = gradients[name] + recipe.weight_decay * raw[name]
                    momentum[name] = recipe.momentum * momentum[name] + gradient
                    raw[name] = raw[name] - recipe.lr * (gradient + recipe.momentum * momentum[name])
                    w[name].data = raw[name].clone()
                revise(iteration := iteration + 1)
    return weights_of(model), {name: raw[name] for name in masks}, masks, spliced


@pytest.mark.parametrize(("momentum", "lr"), [(0.0, 0.5), (0.9, 0.1)])
def test_training_follows_the_algorithm_by_hand(momentum, lr, tiny_run, digits, tmp_path):
    rates = (0.1, 0.3, -0.2, 0.5, 0.0, 0.2, -0.5, 0.4, 0.6, -0.1)
    run = tiny_run(**PLAIN, lr=lr, momentum=momentum, weight_decay=0.01,
                   sparsifier=DynamicNetworkSurgery(rates=rates, stop=9, gamma=0.2))
    result = training.train(run, digits, checkpoint=tmp_path / "checkpoint")
    tensors, _ = files.load_tensors(tmp_path / "checkpoint")
    weights, raw, masks, spliced = trained_by_hand(run, digits)
    for name, p in weights_of(result.model).items():
        torch.testing.assert_close(p, weights[name], rtol=1e-3, atol=1e-5)
        if name in masks:
            torch.testing.assert_close(tensors[f"sparsifier/{name}"], raw[name], rtol=1e-3, atol=1e-5)
            assert torch.equal(tensors[f"sparsifier/mask {name}"], masks[name])
            assert torch.equal(p == 0, masks[name] == 0)
    assert tensors["sparsifier/iteration"] == 3 * math.ceil(len(digits.train) / 16) > 9
    zeros = sum(int((mask == 0).sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    assert 0.3 < zeros < 0.9 and spliced > 5
    assert result.history[-1]["sparsity"] == pytest.approx(zeros) and result.history[-1]["gap"] == 0


@pytest.mark.parametrize(("select", "averaging"), [("last", 0.0), ("best", 0.9)])
@pytest.mark.parametrize("stops", [[1], [1, 2, 3]])
def test_an_interrupted_training_equals_an_undisturbed_one(stops, select, averaging, tiny_run, digits, tmp_path):
    """Bit for bit: weights, raw, masks, thresholds and the number of the iteration."""
    run = tiny_run(epochs=4, select=select, averaging=averaging, weight_decay=1e-3,
                   objective=Adversarial(attack=PGD(epsilon=0.1, step_size=0.05, steps=1)),
                   sparsifier=DynamicNetworkSurgery(rates=(0.2,), stop=10, gamma=0.3))
    undisturbed = training.train(run, digits, checkpoint=tmp_path / "one")
    assert_same_training(interrupted(run, digits, tmp_path / "other", stops), undisturbed)
    assert same(*(files.load_tensors(tmp_path / name)[0] for name in ("one", "other")))


def test_with_stop_zero_it_is_dense_training(tiny_run, digits):
    surgery, dense = (training.train(tiny_run(**change, epochs=3, weight_decay=0.01), digits) for change in (
        {"sparsifier": DynamicNetworkSurgery(rates=(1.0,), stop=0)}, {}))
    assert_same_training(surgery, dense)


def test_averaging_does_not_undo_sparsity(tiny_run, digits):
    """Sparse weights are delivered as they are, norms and biases as their averages."""
    plain, averaged = (training.train(tiny_run(epochs=4, averaging=averaging, sparsifier=DynamicNetworkSurgery(
        rates=(0.5,), **SURE)), digits) for averaging in (0.0, 0.9))
    for name, p in weights_of(plain.model).items():
        assert torch.equal(p, averaged.model.get_parameter(name)) == (p.dim() > 1), name
    assert 0.5 < averaged.history[-1]["sparsity"] == sparsity.sparsity(averaged.model) < 0.95


# ------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("rates", [(1.0, 1.0), (1.0,) * 5])
def test_another_number_of_rates_than_layers_is_refused(rates, refusal):
    message = refusal(DynamicNetworkSurgery(rates=rates, stop=5).start, Toy())
    assert f"{len(rates)} rates for 4" in message


def test_a_layer_without_a_weight_is_refused(refusal):
    model = Toy()
    nn.init.zeros_(model.second.weight)
    assert "start" in refusal(DynamicNetworkSurgery(rates=(1.0,), stop=5).start, model)


@pytest.mark.parametrize(("settings", "named"), [
    ({"rates": (), "stop": 5}, "rates"), ({"rates": (1,), "stop": -1}, "stop"), ({"rates": 1.0, "stop": 5}, "rates"),
    ({"rates": (1,), "stop": 5, "gamma": -1e-4}, "gamma"), ({"rates": (1,), "stop": 5, "power": -1}, "power"),
])  # fmt: skip
def test_bad_settings_are_refused_in_one_line(settings, named, refusal):
    assert named in refusal(DynamicNetworkSurgery, **settings)


def test_settings_are_written_and_read_back():
    sparsifier = DynamicNetworkSurgery(rates=(1, 2.5, -0.7), stop=14000)
    assert (sparsifier.gamma, sparsifier.power) == (1e-4, 1.0)  # the released example's
    assert Sparsifier.parse(sparsifier.plain()) == sparsifier
    assert sparsifier.plain() == {"kind": "surgery", "rates": (1.0, 2.5, -0.7), "stop": 14000}
