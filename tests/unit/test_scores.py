"""Learned scores (HYDRA), sharp ones (S2AP) and random masks: trainings recomputed by hand, counts, and what must not
move."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from scaffolding import PRUNABLE, Toy, assert_same_training, batches, interrupted, same, weights_of
from sparserobust import Data, data, files, sparsity, training
from sparserobust.attacks import PGD
from sparserobust.config import Sparsifier
from sparserobust.models import NoisyWeights, PreActResNet
from sparserobust.objectives import Adversarial
from sparserobust.seeding import global_seed
from sparserobust.settings import settings
from sparserobust.sparsifiers.magnitude import FixedMask, Magnitude, RandomMask
from sparserobust.sparsifiers.scores import LearnedScores, SharpScores

PLAIN = {"epochs": 3, "batch_size": 16, "schedule": "constant", "precision": "float32"}
ATTACKED = Adversarial(attack=PGD(epsilon=0.1, step_size=0.05, steps=1))


FAN_IN = dict(zip(PRUNABLE, (2 * 9, 6 * 9, 4, 5), strict=True))


@pytest.fixture(scope="module")
def start(tiny_run, digits) -> dict:
    """The state of a trained `tiny_run`."""
    return training.train(tiny_run(epochs=3), digits).model.state_dict()


# ------------------------------------------------------------------------------------------ scores at the start


def test_scores_begin_in_proportion_to_the_weights_of_their_layer():
    model = Toy()
    with torch.no_grad():
        model.first.weight.mul_(-30)
    before = weights_of(model)
    state = LearnedScores(sparsity=0.4).start(model)
    for name, fan_in in FAN_IN.items():
        expected = before[name].double() * math.sqrt(6 / fan_in) / before[name].double().abs().max()
        torch.testing.assert_close(state[f"score {name}"].double(), expected, rtol=1e-6, atol=0)
        assert torch.equal(state[name], before[name])
        assert not state[f"momentum {name}"].any()
    assert state.keys() == {f"{what}{name}" for name in FAN_IN for what in ("", "score ", "momentum ")}
    assert not any(t.requires_grad for t in state.values())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.5, 0.9, 0.99])
def test_the_first_mask_is_that_of_layerwise_magnitude(share, start, tiny_run, digits):
    """Delivered, too, by a training of no epochs."""
    masked, pruned = Toy(), Toy()
    LearnedScores(sparsity=share).start(masked)
    Magnitude(sparsity=share, scope="layerwise").start(pruned)
    assert same(weights_of(masked), weights_of(pruned))
    for name, p in masked.named_parameters():
        if name in FAN_IN:
            assert (p == 0).sum() == min(round(share * p.numel()), p.numel() - 1)
    results = [training.train(tiny_run(epochs=0, averaging=0.5, sparsifier=sparsifier), digits, start)
               for sparsifier in (LearnedScores(sparsity=share), Magnitude(sparsity=share, scope="layerwise"))]
    assert same(*(result.model.state_dict() for result in results))


def test_one_weight_of_a_small_layer_is_left():
    for sparsifier in (LearnedScores(sparsity=0.93), Magnitude(sparsity=0.93, scope="layerwise")):
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 10))
        sparsifier.start(net)
        assert [int((net[i].weight != 0).sum()) for i in (0, 2)] == [1, 6]


def test_of_equal_scores_the_first_go_and_a_layer_of_zeros_does_no_harm():
    model = nn.Sequential(nn.Linear(5, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1, 1, -1, 1], [-2, 1, 2, 1, -1]]))
        model[1].weight.zero_()
    sparsifier = LearnedScores(sparsity=0.6)
    state = sparsifier.start(model)
    assert model[0].weight.tolist() == [[0, 0, 0, 0, 0], [-2, 0, 2, 1, -1]]
    model(torch.ones(1, 5)).sum().backward()
    sparsifier.before_step(model, state, 0.1)
    assert all(t.isfinite().all() for t in state.values())
    assert not model[1].weight.any()


# ----------------------------------------------------------------------------------------------- single steps


def test_steps_by_hand_for_any_gradients():
    """Scores of both signs, gradients that come and go, learning rates that change."""
    sparsifier = LearnedScores(sparsity=0.3, momentum=0.7, weight_decay=0.02)
    model = Toy()
    raw = weights_of(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
    state = sparsifier.start(model)
    scores = {name: state[f"score {name}"].double() for name in FAN_IN}
    moved = {name: torch.zeros_like(score) for name, score in scores.items()}
    masks, signs = [], {name: score.sign() for name, score in scores.items()}
    for lr in (0.1, 0.9, 0.0, 0.5, 1.3):
        for group in optimiser.param_groups:
            group["lr"] = lr
        gradients = {name: torch.randn_like(p) for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            p.grad = gradients[name].clone()
        sparsifier.before_step(model, state, lr)
        optimiser.step()
        sparsifier.after_step(model, state, lr)
        masks.append({name: model.get_parameter(name) != 0 for name in FAN_IN})
        for name, p in model.named_parameters():
            if name not in FAN_IN:
                assert torch.equal(p, raw[name]), name
                continue
            step = gradients[name].double() * raw[name].double() * scores[name].sign() + 0.02 * scores[name]
            moved[name] = 0.7 * moved[name] + step
            scores[name] = scores[name] - lr * moved[name]
            torch.testing.assert_close(state[f"score {name}"].double(), scores[name], rtol=1e-5, atol=1e-6)
            removed = set(scores[name].abs().flatten().argsort()[:round(0.3 * p.numel())].tolist())
            assert {i for i, x in enumerate(p.flatten().tolist()) if x == 0} == removed
            assert torch.equal(p[p != 0], raw[name][p != 0])
            assert torch.equal(state[name], raw[name])
    assert any((scores[name].sign() != signs[name]).any() for name in FAN_IN)  # |s| is ranked, not s
    came_back = [(after[name] & ~before[name]).any() for before, after in pairwise(masks) for name in FAN_IN]
    assert sum(map(bool, came_back)) > 5


# --------------------------------------------------------------------------------------------- whole trainings


class StraightThrough(torch.autograd.Function):
    """1 for all but the `removed` smallest sizes; backward as if it were the sizes."""

    @staticmethod
    def forward(ctx, sizes, removed):
        order = sizes.flatten().sort(stable=True).indices
        return torch.ones_like(sizes).flatten().index_fill(0, order[:removed], 0.0).view(sizes.shape)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def trained_by_hand(run, splits, start) -> tuple[dict, dict]:
    """State of the network and scores after training: autograd through mask * w, torch's own SGD. Sharp scores are
    moved up the gradient for the second of two losses."""
    model, s, recipe = training.build(run, splits).train(), run.sparsifier, run.recipe
    model.load_state_dict(start)
    model.requires_grad_(False)
    frozen = {name: p for name, p in model.named_parameters() if p.dim() in (2, 4)}
    scores = {name: nn.Parameter(math.sqrt(6 / (w.numel() / w.shape[0])) * w / w.abs().max())
              for name, w in frozen.items()}
    optimiser = torch.optim.SGD(scores.values(), lr=recipe.lr, momentum=s.momentum, weight_decay=s.weight_decay)

    def masked():
        return {name: w * StraightThrough.apply(scores[name].abs(), round(s.sparsity * w.numel()))
                for name, w in frozen.items()}

    for epoch in range(recipe.epochs):
        for images, labels in batches(run, splits, epoch):
            optimiser.zero_grad()
            cross_entropy(torch.func.functional_call(model, masked(), (images,)), labels).backward()
            if isinstance(s, SharpScores):
                kept = {name: t.clone() for name, t in (*model.named_buffers(), *scores.items())}
                with torch.no_grad():
                    for score in scores.values():
                        assert score.grad is not None
                        score.add_(s.radius * score.norm() / score.grad.norm() * score.grad)
                optimiser.zero_grad()
                cross_entropy(torch.func.functional_call(model, masked(), (images,)), labels).backward()
                with torch.no_grad():
                    for name, t in (*model.named_buffers(), *scores.items()):
                        t.copy_(kept[name])
            optimiser.step()
    weights = {name: w.detach() for name, w in masked().items()}
    return model.state_dict() | weights, {name: score.detach() for name, score in scores.items()}


@pytest.mark.parametrize("sparsifier", [
    LearnedScores(sparsity=0.6), LearnedScores(sparsity=0.6, momentum=0, weight_decay=0),
    LearnedScores(sparsity=0.6, momentum=0.5, weight_decay=0.1), SharpScores(sparsity=0.6, radius=0.03),
    SharpScores(sparsity=0.6, radius=0.2, momentum=0.5, weight_decay=0.1)],
    ids=["default", "plain", "decayed", "sharp", "sharp, decayed"])
def test_training_follows_the_algorithm_by_hand(sparsifier, start, tiny_run, digits, tmp_path):
    run = tiny_run(**PLAIN, lr=0.3, sparsifier=sparsifier)
    result = training.train(run, digits, start, tmp_path / "checkpoint")
    tensors, _ = files.load_tensors(tmp_path / "checkpoint")
    expected, scores = trained_by_hand(run, digits, start)
    magnitude = training.train(tiny_run(epochs=0, sparsifier=Magnitude(sparsity=0.6, scope="layerwise")), digits, start)
    moved = 0
    for name, t in result.model.state_dict().items():
        torch.testing.assert_close(t, expected[name], rtol=1e-5, atol=1e-6)
        if name in scores:
            assert torch.equal(t, expected[name])
            torch.testing.assert_close(tensors[f"sparsifier/score {name}"], scores[name], rtol=1e-5, atol=1e-6)
            moved += int(((t == 0) != (magnitude.model.get_parameter(name) == 0)).sum())
    assert moved > 10
    assert result.history[-1]["gap"] == 0


@pytest.mark.parametrize("model", [PreActResNet(depth=8, width=2, members=2, noise=0.1),
                                   NoisyWeights(model=PreActResNet(depth=8, width=2), granularity="element")],
                         ids=["ensemble", "noisy weights"])
def test_only_the_choice_of_weights_changes(model, tiny_run, digits):
    """After every step: exact counts, and all that is kept, and all else, bit for bit as it was."""
    steps, epochs = [], []

    @settings
    class Watched(LearnedScores):
        def after_step(self, model, state, lr):
            super().after_step(model, state, lr)
            steps.append(weights_of(model))

        def after_epoch(self, model, state):
            super().after_epoch(model, state)
            epochs.append({name: t.clone() for name, t in model.state_dict().items()})

    untrained = training.build(tiny_run(model=model), digits).state_dict()
    result = training.train(tiny_run(model=model, epochs=4, objective=ATTACKED, weight_decay=0.1, lr=0.3,
                                     sparsifier=Watched(sparsity=0.7)), digits, untrained)
    assert len(steps) == 12 and len(epochs) == 4
    for weights in (*steps, weights_of(result.model)):
        for name, p in weights.items():
            if p.dim() in (2, 4):
                assert (p == 0).sum() == round(0.7 * p.numel())
                assert torch.equal(p, untrained[name] * (p != 0))
            else:
                assert torch.equal(p, untrained[name]), name
    assert not same(steps[0], steps[-1])
    assert same({n: t for n, t in epochs[-1].items() if n in steps[-1]}, steps[-1])
    for before, after in pairwise([untrained, *epochs]):
        means = [name for name in after if name.endswith("running_mean")]
        assert means and not any(torch.equal(before[name], after[name]) for name in means)
    assert [row["sparsity"] for row in result.history] == [sparsity.sparsity(result.model)] * 4


def test_the_recipe_s_decay_momentum_and_averaging_change_nothing(start, tiny_run, digits):
    sparsifier = LearnedScores(sparsity=0.6)
    plain, other = (training.train(tiny_run(epochs=3, lr=0.3, sparsifier=sparsifier, **changes), digits, start)
                    for changes in ({}, {"weight_decay": 0.1, "momentum": 0.0, "averaging": 0.9}))
    assert plain.history == other.history
    assert same(plain.model.state_dict(), other.model.state_dict())


def test_learned_masks_fit_better_than_magnitude_with_the_same_weights(net, tiny_run):
    """On training data, both with running statistics of norms that have got used to the mask."""
    run = tiny_run(data=Data(), model=PreActResNet(depth=8, width=8), epochs=2, batch_size=32, precision="float32")
    splits = data.load(run.data)

    def loss_of(lr: float) -> tuple[float, nn.Module]:
        trained = tiny_run(data=run.data, model=run.model, epochs=2, batch_size=32, precision="float32", lr=lr,
                           sparsifier=LearnedScores(sparsity=0.9))
        model = training.train(trained, splits, net.state_dict()).model
        with torch.no_grad():
            return float(cross_entropy(model(splits.train.images), splits.train.labels)), model

    (learned, model), (magnitude, fixed) = loss_of(0.1), loss_of(1e-9)
    pruned = tiny_run(data=run.data, model=run.model, epochs=0, sparsifier=Magnitude(sparsity=0.9, scope="layerwise"))
    assert same(weights_of(fixed), weights_of(training.train(pruned, splits, net.state_dict()).model))
    assert learned < 0.7 * magnitude
    assert sparsity.sparsity(model) == sparsity.sparsity(fixed) == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("sparsifier", [LearnedScores(sparsity=0.5), SharpScores(sparsity=0.5)], ids=str)
@pytest.mark.parametrize(("select", "averaging"), [("last", 0.0), ("best", 0.9)])
@pytest.mark.parametrize("stops", [[1], [1, 2, 3]])
def test_an_interrupted_training_equals_an_undisturbed_one(stops, select, averaging, sparsifier, start, tiny_run,
                                                           digits, tmp_path):
    """Bit for bit: weights, those masked, scores and their momentum."""
    run = tiny_run(epochs=4, select=select, averaging=averaging, objective=ATTACKED, lr=0.3, sparsifier=sparsifier)
    undisturbed = training.train(run, digits, start, tmp_path / "one")
    resumed = interrupted(run, digits, tmp_path / "other", stops, start)
    assert_same_training(resumed, undisturbed)
    assert same(*(files.load_tensors(tmp_path / name)[0] for name in ("one", "other")))


def test_a_fixed_mask_goes_on_from_learned_scores(start, tiny_run, digits):
    """HYDRA's third stage: fine-tuning of what the second has kept."""
    pruned = training.train(tiny_run(sparsifier=LearnedScores(sparsity=0.8), lr=0.3), digits, start).model
    tuned = training.train(tiny_run(sparsifier=FixedMask()), digits, pruned.state_dict()).model
    for name, p in pruned.named_parameters():
        if p.dim() in (2, 4):
            assert torch.equal(p == 0, tuned.get_parameter(name) == 0)
        assert not torch.equal(p, tuned.get_parameter(name))


# ----------------------------------------------------------------------------------------------- sharp scores


@pytest.mark.parametrize("radius", [0.01, 0.3])
def test_scores_are_moved_to_where_the_linearised_loss_is_worst(radius):
    """In the ball of each layer; the network gets the mask of the moved scores."""
    model, sparsifier = Toy(), SharpScores(sparsity=0.4, radius=radius)
    raw, state = weights_of(model), sparsifier.start(model)
    scores = {name: state[f"score {name}"].double() for name in FAN_IN}
    gradients = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    gradients["third.weight"].zero_()
    for name, p in model.named_parameters():
        p.grad = gradients[name]
    assert sparsifier.moved(model, state)
    for name in FAN_IN:
        slope = (gradients[name] * raw[name]).double() * scores[name].sign()
        z = state[f"score {name}"].double() - scores[name]
        others = torch.randn(2000, *z.shape, dtype=torch.float64)
        others *= radius * scores[name].norm() / others.flatten(1).norm(dim=1).view(-1, *[1] * z.dim())
        assert z.norm() <= radius * scores[name].norm() * (1 + 1e-5)
        assert (slope * z).sum() >= (slope * others).flatten(1).sum(1).max()
        assert (slope * z).sum() == pytest.approx(float(radius * scores[name].norm() * slope.norm()), rel=1e-5)
        gone = set(state[f"score {name}"].abs().flatten().argsort()[:round(0.4 * z.numel())].tolist())
        assert {i for i, x in enumerate(model.get_parameter(name).flatten().tolist()) if x == 0} == gone


def test_the_loss_is_taken_twice_and_that_is_its_cost(start, tiny_run, digits, monkeypatch):
    calls = []
    taken = Adversarial.__call__
    monkeypatch.setattr(Adversarial, "__call__", lambda *given: calls.append(1) or taken(*given))
    runs = [tiny_run(epochs=1, objective=ATTACKED, sparsifier=sparsifier)
            for sparsifier in (LearnedScores(sparsity=0.5), SharpScores(sparsity=0.5))]
    for run in runs:
        training.train(run, digits, start)
    assert len(calls) == 3 * len(list(batches(runs[0], digits, 0)))
    assert runs[1].cost == 2 * runs[0].cost


NOISY = PreActResNet(depth=8, width=2, members=2, noise=0.1)


def test_within_no_radius_they_are_learned_scores(tiny_run, digits, tmp_path):
    """Bit for bit: the second loss has the same attack, noise and batch statistics as the first, which are taken in
    once."""
    run = tiny_run(model=NOISY, epochs=2, lr=0.3, objective=ATTACKED, sparsifier=LearnedScores(sparsity=0.5))
    runs = {"plain": run, "sharp": replace(run, sparsifier=SharpScores(sparsity=0.5, radius=0))}
    plain, sharp = (training.train(run, digits, checkpoint=tmp_path / name) for name, run in runs.items())
    assert_same_training(plain, sharp)
    assert same(*(files.load_tensors(tmp_path / name)[0] for name in runs))


def test_loss_and_running_statistics_are_those_of_the_network_that_was_not_moved(start, tiny_run, digits):
    """Of scores that hardly move."""
    run = tiny_run(epochs=2, lr=1e-9, objective=ATTACKED, sparsifier=LearnedScores(sparsity=0.5))
    sharp = replace(run, sparsifier=SharpScores(sparsity=0.5, radius=0.5))
    assert_same_training(training.train(run, digits, start), training.train(sharp, digits, start))


def test_a_radius_is_not_negative(refusal):
    assert refusal(SharpScores, sparsity=0.5, radius=-0.1) == "SharpScores (sharp_scores): radius cannot be negative"


# ----------------------------------------------------------------------------------------------- random masks


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.5, 0.9, 0.99])
def test_a_random_mask_removes_an_exact_number_and_keeps_the_rest_as_it_is(share):
    model = Toy()
    before = weights_of(model)
    state = RandomMask(sparsity=share).start(model)
    total = sum(before[name].numel() for name in FAN_IN)
    assert sparsity.zero_weights(model) == (round(share * total), total)
    assert state.keys() == FAN_IN.keys()
    for name, p in model.named_parameters():
        mask = state.get(name, torch.ones(()))
        assert torch.equal(p, before[name] * mask) and ((mask == 0) | (mask == 1)).all()
        assert mask.dtype == p.dtype
    assert all((p != 0).all() for name, p in model.named_parameters() if name not in FAN_IN and "norm" not in name)


def test_every_weight_of_every_layer_is_as_likely_to_go():
    draws, share, model = 2000, 0.3, Toy()
    masks = [RandomMask(sparsity=share).start(model) for _ in range(draws)]
    counts = {name: torch.stack([mask[name].flatten() for mask in masks]) == 0 for name in FAN_IN}
    total = sum(removed.shape[1] for removed in counts.values())
    exact = round(share * total) / total
    for removed in counts.values():
        often = removed.double().mean(0)
        assert (often - exact).abs().max() < 4.5 * (exact * (1 - exact) / draws) ** 0.5
        layer, n = removed.sum(1).double(), removed.shape[1]  # hypergeometric
        variance = n * exact * (1 - exact) * (total - n) / (total - 1)
        assert abs(layer.mean() - n * exact) < 4 * (variance / draws) ** 0.5
        assert layer.var() == pytest.approx(variance, rel=0.15)  # 4 standard errors of a variance are 0.13


def test_the_draw_is_that_of_the_run_s_seed(start, tiny_run, digits):
    def mask(**changes) -> dict:
        run = tiny_run(epochs=0, sparsifier=RandomMask(sparsity=0.5), **changes)
        model = training.train(run, digits, start).model
        return {name: p != 0 for name, p in model.named_parameters() if p.dim() > 1}

    assert same(mask(), mask()) and same(mask(seed=1), mask(seed=1))
    drawn = torch.cat([t.flatten() for t in mask().values()]), torch.cat([t.flatten() for t in mask(seed=1).values()])
    spread = 0.5 / len(drawn[0]) ** 0.5
    assert (drawn[0] == drawn[1]).double().mean() == pytest.approx(0.5, abs=4 * spread)  # have nothing in common
    model = training.build(tiny_run(), digits)
    model.load_state_dict(start)
    with global_seed(1, "sparsifier"):
        RandomMask(sparsity=0.5).start(model)
    assert same({name: p != 0 for name, p in model.named_parameters() if p.dim() > 1}, mask(seed=1))


def test_zeros_of_before_are_drawn_like_other_weights():
    model = nn.Linear(100, 100)
    with torch.no_grad():
        model.weight[:50] = 0
    state = RandomMask(sparsity=0.5).start(model)
    assert int(state["weight"][:50].sum()) == pytest.approx(2500, abs=4 * 25)
    assert int(state["weight"].sum()) == 5000


def test_a_random_mask_is_held_in_training_and_after_an_interruption(start, tiny_run, digits, tmp_path):
    run = tiny_run(epochs=4, averaging=0.5, sparsifier=RandomMask(sparsity=0.4), seed=3)
    undisturbed = training.train(run, digits, start)
    resumed = interrupted(run, digits, tmp_path / "checkpoint", [1, 3], start)
    assert_same_training(resumed, undisturbed)
    pruned = training.train(tiny_run(epochs=0, sparsifier=run.sparsifier, seed=3), digits, start).model
    for name, p in pruned.named_parameters():
        if p.dim() > 1:
            assert torch.equal(p == 0, undisturbed.model.get_parameter(name) == 0)
        assert not torch.equal(p, undisturbed.model.get_parameter(name))
    assert undisturbed.history[-1]["sparsity"] == pytest.approx(0.4, abs=1e-3)


# --------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(("family", "settings", "named"), [
    (LearnedScores, {"sparsity": 1}, "sparsity"), (LearnedScores, {"sparsity": -0.1}, "sparsity"),
    (LearnedScores, {"sparsity": 0.5, "momentum": 1}, "momentum"),
    (LearnedScores, {"sparsity": 0.5, "momentum": -0.1}, "momentum"),
    (LearnedScores, {"sparsity": 0.5, "weight_decay": -1e-4}, "weight_decay"),
    (RandomMask, {"sparsity": 1}, "sparsity"), (RandomMask, {"sparsity": -0.1}, "sparsity"),
])  # fmt: skip
def test_bad_settings_are_refused_in_one_line(family, settings, named, refusal):
    assert named in refusal(family, **settings)


def test_settings_are_written_and_read_back():
    sparsifier = LearnedScores(sparsity=0.9)
    assert (sparsifier.momentum, sparsifier.weight_decay) == (0.9, 1e-4)  # the released ones
    for each, kind in ((sparsifier, "learned_scores"), (RandomMask(sparsity=0.9), "random_mask")):
        assert each.plain() == {"kind": kind, "sparsity": 0.9}
        assert Sparsifier.parse(each.plain()) == each
