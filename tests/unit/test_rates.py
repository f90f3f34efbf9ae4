"""How much of each layer goes: ERK against brute force and another code, learned rates against autograd."""

import math
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from scaffolding import PRUNABLE, Toy, assert_same_training, batches, interrupted, same, weights_of
from sparserobust import files, sparsity, training
from sparserobust.sparsifiers.magnitude import Magnitude
from sparserobust.sparsifiers.rates import LearnedRates, erk, proportional
from sparserobust.sparsifiers.scores import LearnedScores

# ------------------------------------------------------------------------------------------------- shares

LAYERS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 6)), min_size=1, max_size=4)


@given(LAYERS, st.data())
def test_integers_are_the_nearest_to_what_bisection_finds(layers, data):
    shares, sizes = zip(*layers, strict=True)
    kept = data.draw(st.integers(len(sizes), sum(sizes)))
    low, high = 0.0, 10.0
    for _ in range(100):
        c = (low + high) / 2
        exact = [min(max(c * share, 1), size) for share, size in layers]
        low, high = (c, high) if sum(exact) < kept else (low, c)

    def distance(counts):
        return sum((count - x) ** 2 for count, x in zip(counts, exact, strict=True))

    found = proportional(shares, sizes, kept)
    allowed = [counts for counts in product(*(range(1, size + 1) for size in sizes)) if sum(counts) == kept]
    assert tuple(found) in allowed
    assert distance(found) <= min(map(distance, allowed)) + 1e-9


SHAPES = st.lists(st.one_of(st.tuples(st.integers(1, 300), st.integers(1, 300)),
                            st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 7), st.integers(1, 7))),
                  min_size=1, max_size=30)


@given(SHAPES, st.floats(0, 1))
def test_the_total_is_met_and_layers_keep_in_proportion_to_the_sum_of_their_shapes(shapes, share):
    sizes = [math.prod(shape) for shape in shapes]
    removed = min(round(share * sum(sizes)), sum(sizes) - len(sizes))
    counts = erk(shapes, removed)
    kept = [size - count for size, count in zip(sizes, counts, strict=True)]
    assert sum(counts) == removed and all(1 <= k <= size for k, size in zip(kept, sizes, strict=True))
    # rounded, what they keep is in proportion to one number, but for those at a bound
    lower = [(k - 1) / sum(shape) for k, shape in zip(kept, shapes, strict=True) if k > 1]
    upper = [(k + 1) / sum(shape) for k, shape, size in zip(kept, shapes, sizes, strict=True) if k < size]
    assert max(lower, default=0) < min(upper, default=math.inf)


def test_the_densities_that_another_code_has_for_vgg16():
    """Ten per cent of VGG16 in intellisec/harp, configs/strategies.json, `010_erk`."""
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    shapes = [*((b, a, 3, 3) for a, b in pairwise(widths)), (256, 2048), (256, 256), (10, 256)]
    sizes = [math.prod(shape) for shape in shapes]
    removed = erk(shapes, round(0.9 * sum(sizes)))
    densities = [1 - count / size for count, size in zip(removed, sizes, strict=True)]
    assert densities == pytest.approx(
        [1, 0.518039, 0.382718, 0.253214, 0.188463, 0.125158, 0.125158, 0.0935059, *[0.0622165] * 5, 0.626272, 1, 1],
        abs=2e-5)


def test_of_equal_remainders_the_first_layers_get_more():
    assert proportional([1, 1, 1], [9, 9, 9], 8) == [3, 3, 2]
    assert erk([(2, 3)] * 3, 10) == [3, 3, 4]


def test_a_weight_a_layer_is_the_least(refusal):
    shapes = [(3, 3), (50, 2), (4, 4, 3, 3)]
    assert erk(shapes, 9 + 100 + 144 - 3) == [8, 99, 143]
    assert refusal(erk, shapes, 9 + 100 + 144 - 2) == (
        "2 of 253 weights for 3 layers: no layer can do with none, lower the sparsity")


# ---------------------------------------------------------------------------------------- magnitude by ERK

FILTERS = dict(zip(PRUNABLE, ((6, 2, 3, 3), (4, 6, 3, 3), (2, 4, 1, 1), (7, 5)), strict=True))  # of one group


@given(st.floats(0, 0.98))
def test_magnitude_prunes_the_smallest_of_each_layer_by_erk(share):
    model, before = Toy(), weights_of(Toy())
    Magnitude(sparsity=share, scope="erk").start(model)
    counts = erk(list(FILTERS.values()), round(share * sum(map(math.prod, FILTERS.values()))))
    for name, count in zip(FILTERS, counts, strict=True):
        old, new = before[name].flatten(), model.get_parameter(name).detach().flatten()
        gone = set(old.abs().argsort()[:count].tolist())
        assert {i for i, x in enumerate(new.tolist()) if x == 0} == gone
        assert torch.equal(new[new != 0], old[new != 0])


def test_a_transposed_and_grouped_convolution_and_one_dimension_count_by_their_filters():
    model = nn.Sequential(nn.ConvTranspose2d(6, 10, 3, groups=2), nn.Conv1d(8, 6, 5), nn.Linear(9, 4))
    Magnitude(sparsity=0.7, scope="erk").start(model)
    counts = erk([(10, 3, 3, 3), (6, 8, 5), (4, 9)], round(0.7 * (270 + 240 + 36)))
    assert [int((layer.weight == 0).sum()) for layer in model] == counts


def test_nearly_nothing_left_is_one_line(refusal):
    assert "lower the sparsity" in refusal(Magnitude(sparsity=0.995, scope="erk").start, Toy())


# ------------------------------------------------------------------------------------------- learned rates


class StraightThrough(torch.autograd.Function):
    """1 for the share k of largest sizes, 0 for the others; backward as if it were the sizes, and k for each, of
    which the sum is kept within [-1, 1]."""

    @staticmethod
    def forward(ctx, sizes, k):
        removed = min(round((1 - float(k)) * sizes.numel()), sizes.numel() - 1)
        order = sizes.flatten().sort(stable=True).indices
        return torch.ones_like(sizes).flatten().index_fill(0, order[:removed], 0.0).view(sizes.shape)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, gradient.double().sum().clamp(-1, 1)


def trained_by_hand(run, splits, start) -> tuple[dict, dict, dict, list]:
    """Scores and rates after training, what is handed over, and whether each epoch ended on target: autograd through
    mask * w, torch's own SGD."""
    model, s, recipe = training.build(run, splits).train(), run.sparsifier, run.recipe
    model.load_state_dict(start)
    model.requires_grad_(False)
    frozen = {name: p for name, p in model.named_parameters() if p.dim() in (2, 4)}
    total, target = sum(w.numel() for w in frozen.values()), 1 - s.sparsity
    least = s.least * target
    begin = torch.tensor((max(target, 0.1) - least) / (1 - least), dtype=torch.float64).logit()
    scores = {name: nn.Parameter(math.sqrt(6 / (w.numel() / w.shape[0])) * w / w.abs().max())
              for name, w in frozen.items()}
    rates = {name: nn.Parameter(begin.clone()) for name in frozen}
    optimisers = [torch.optim.SGD(moved.values(), lr=lr, momentum=s.momentum, weight_decay=s.weight_decay)
                  for moved, lr in ((scores, recipe.lr), (rates, s.rates_lr * recipe.lr))]

    def kept() -> dict:
        return {name: least + (1 - least) * rate.sigmoid() for name, rate in rates.items()}

    def excess(k: dict):
        return (sum(k[name] * w.numel() for name, w in frozen.items()) / (target * total) - 1).relu()

    gamma, met = s.gamma, []
    for epoch in range(recipe.epochs):
        for images, labels in batches(run, splits, epoch):
            for optimiser in optimisers:
                optimiser.zero_grad()
            k = kept()
            masked = {name: w * StraightThrough.apply(scores[name].abs(), k[name]) for name, w in frozen.items()}
            logits = torch.func.functional_call(model, masked, (images,))
            (cross_entropy(logits, labels) + gamma * excess(k)).backward()
            for optimiser in optimisers:
                optimiser.step()
        met.append(round(float(excess(kept()).detach()), 4) == 0)
        if not any(met):
            gamma += s.gamma
    counts = proportional([float(kept()[name].detach()) * w.numel() for name, w in frozen.items()],
                          [w.numel() for w in frozen.values()], total - round(s.sparsity * total))
    handed = {}
    for (name, w), count in zip(frozen.items(), counts, strict=True):
        largest = scores[name].detach().abs().flatten().sort(stable=True).indices[w.numel() - count:]
        handed[name] = torch.zeros_like(w).flatten().index_fill(0, largest, 1.0).view(w.shape) * w
    return scores, rates, handed, met


@pytest.fixture(scope="module")
def start(tiny_run, digits) -> dict:
    """The state of a trained `tiny_run`."""
    return training.train(tiny_run(epochs=3), digits).model.state_dict()


PLAIN = {"batch_size": 16, "schedule": "constant", "precision": "float32"}


@pytest.mark.parametrize("changes", [{"gamma": 0.3}, {"gamma": 0.0, "momentum": 0.5, "weight_decay": 0.1},
                                     {"gamma": 0.05, "least": 0.6, "rates_lr": 0.3, "sparsity": 0.9}, {"gamma": 3.0}],
                         ids=["grows", "free", "slow", "met"])
def test_training_follows_the_algorithm_by_hand(changes, start, tiny_run, digits, tmp_path):
    sparsifier = LearnedRates(**{"sparsity": 0.7} | changes)
    run = tiny_run(**PLAIN, epochs=3, lr=0.2, sparsifier=sparsifier)
    result = training.train(run, digits, start, tmp_path / "checkpoint")
    scores, rates, handed, met = trained_by_hand(run, digits, start)
    tensors, _ = files.load_tensors(tmp_path / "checkpoint")
    state = {key.removeprefix("sparsifier/"): t for key, t in tensors.items()}
    expected = torch.stack([rate.detach() for rate in rates.values()])
    torch.testing.assert_close(state["rates"], expected, rtol=1e-4, atol=1e-4)
    assert (expected - expected[0]).abs().max() > 3e-3  # layers differ
    assert bool(state["met"]) == any(met)
    assert int(state["epochs"]) == (met.index(True) if any(met) else len(met))
    for name, w in handed.items():
        torch.testing.assert_close(state[f"score {name}"], scores[name].detach(), rtol=1e-4, atol=1e-5)
        assert torch.equal(result.model.get_parameter(name), w)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.35, 0.9, 0.97])
def test_exactly_so_many_weights_are_zero_and_the_others_as_they_were(share, gamma, start, tiny_run, digits):
    """Whatever the rates are, from the beginning on."""
    for epochs in (0, 2):
        run = tiny_run(epochs=epochs, lr=0.3, averaging=0.5, weight_decay=0.1,
                       sparsifier=LearnedRates(sparsity=share, gamma=gamma))
        result = training.train(run, digits, start)
        zero, total = sparsity.zero_weights(result.model)
        assert zero == round(share * total)
        assert [row["sparsity"] for row in result.history] == [zero / total] * epochs
        for name, p in result.model.named_parameters():
            assert p.any() or not start[name].any()
            assert torch.equal(p, start[name] * (p != 0))


def test_the_first_mask_is_that_of_learned_scores():
    rated, scored = Toy(), Toy()
    state = LearnedRates(sparsity=0.6).start(rated)
    LearnedScores(sparsity=0.6).start(scored)
    assert same(weights_of(rated), weights_of(scored))
    assert LearnedRates(sparsity=0.6).rates(state).tolist() == pytest.approx([0.4] * 4)
    higher = LearnedRates(sparsity=0.95)
    assert higher.rates(higher.start(Toy())).tolist() == pytest.approx([0.1] * 4)


def test_the_regulariser_brings_the_rates_to_the_target(start, tiny_run, digits, tmp_path):
    """From a tenth."""
    excess = []
    for gamma in (0.0, 1.0):
        sparsifier = LearnedRates(sparsity=0.95, gamma=gamma)
        run = tiny_run(**PLAIN, epochs=6, lr=0.3, sparsifier=sparsifier)
        model = training.train(run, digits, start, tmp_path / f"{gamma}").model
        tensors, _ = files.load_tensors(tmp_path / f"{gamma}")
        excess.append(sparsifier.excess(model, {"rates": tensors["sparsifier/rates"]}))
    assert excess[0] > 0.8 and excess[1] < 0.1


def test_no_layer_keeps_less_than_the_least_share_of_the_target():
    sparsifier = LearnedRates(sparsity=0.5, least=0.2)
    model = Toy()
    state = sparsifier.start(model) | {"rates": torch.full((4,), -99.0, dtype=torch.float64)}
    assert sparsifier.rates(state).tolist() == pytest.approx([0.1] * 4)
    state["rates"] = torch.full((4,), 99.0, dtype=torch.float64)
    assert sparsifier.rates(state).tolist() == [1.0] * 4
    assert sparsifier.excess(model, state) == pytest.approx(1)


@pytest.mark.parametrize("stops", [[1], [1, 2, 3]])
def test_an_interrupted_training_equals_an_undisturbed_one(stops, start, tiny_run, digits, tmp_path):
    run = tiny_run(epochs=4, averaging=0.9, lr=0.3, sparsifier=LearnedRates(sparsity=0.5, gamma=0.1))
    undisturbed = training.train(run, digits, start, tmp_path / "one")
    assert_same_training(interrupted(run, digits, tmp_path / "other", stops, start), undisturbed)
    assert same(*(files.load_tensors(tmp_path / name)[0] for name in ("one", "other")))


@pytest.mark.parametrize("changes", [{"gamma": -1}, {"least": 0}, {"least": 1}, {"rates_lr": -1}, {"sparsity": 1}])
def test_settings_that_make_no_sense_are_refused(changes, refusal):
    assert next(iter(changes)) in refusal(LearnedRates, **{"sparsity": 0.5} | changes)


def test_less_than_a_weight_a_layer_is_said_before_training(refusal):
    assert "no layer can do with none" in refusal(LearnedRates(sparsity=0.995).start, Toy())
