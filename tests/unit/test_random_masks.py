"""Random masks against exact enumeration, Jensen's bounds, and the law sqrt(1 - level) per layer."""

import json
from itertools import pairwise, product
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scaffolding import built
from sparserobust.analysis.lipschitz import NORMS
from sparserobust.analysis.random_masks import RandomMasks
from sparserobust.config import Measurement
from sparserobust.models import LeNet5, LeNet300100, Linear, ResNet
from sparserobust.models.lenet import Sequence

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)


def measured(model, image_shape, **settings) -> dict:
    return RandomMasks(**settings)(model.eval(), SimpleNamespace(image_shape=image_shape))


def norm_of(weight, norm: str) -> float:
    if norm == "linf":
        return float(weight.abs().sum(1).max())
    return float(torch.linalg.matrix_norm(weight.double(), 2 if norm == "l2" else "fro"))


@pytest.fixture(scope="module")
def lenet():
    """LeNet-300-100 for 28x28 pixels, with a common part in its weights, as training brings it about."""
    model = built(LeNet300100(), (1, 28, 28))
    for layer in (model[1], model[3]):
        layer.weight.data += 10 * torch.outer(torch.randn(layer.out_features), torch.randn(layer.in_features)) \
            / (layer.in_features + layer.out_features)
    return model


@pytest.fixture(scope="module")
def found(lenet):
    return measured(lenet, (1, 28, 28), levels=LEVELS, draws=8)


def test_two_masked_layers_keep_one_minus_alpha_of_the_frobenius_norm(found):
    for ratio, sd, level in zip(found["joint"]["frobenius"], found["joint_sd"]["frobenius"], LEVELS, strict=True):
        assert ratio == pytest.approx(1 - level, abs=5 * sd / 8**0.5)
        assert 0 < sd < 0.05 * (1 - level) + 1e-3
    assert found["explicit"]["frobenius"] == pytest.approx([1 - level for level in LEVELS], rel=1e-5)


def test_all_norms_fall_with_every_level(found):
    curves = [found["joint"][norm] for norm in NORMS] + [found["magnitude"][norm] for norm in NORMS]
    curves += [found["single"][layer][norm] for layer in ("1", "3") for norm in NORMS]
    for curve in curves:
        assert all(low > high > 0 for low, high in pairwise([1.01, *curve]))


def test_means_lie_between_jensens_bounds(found, lenet):
    """E|M W| is at least |E M W| = (1 - level) |W| in every norm, and a spectral norm is at most the Frobenius norm."""
    dense = [layer.weight.detach() for layer in (lenet[1], lenet[3])]
    gap = torch.tensor([norm_of(w, "frobenius") / norm_of(w, "l2") for w in dense]).prod()
    for i, level in enumerate(LEVELS):
        for norm in NORMS:
            slack = 5 * found["joint_sd"][norm][i] / 8**0.5
            assert found["joint"][norm][i] >= (1 - level) ** 2 - slack
        assert found["joint"]["l2"][i] <= gap * found["joint"]["frobenius"][i]
        assert found["joint"]["linf"][i] <= found["explicit"]["linf"][i]
    assert found["joint"]["l2"][2] < 0.95 * found["joint"]["frobenius"][2]  # the common part falls as 1 - level
    assert found["value"] == found["joint"]["l2"][-1]


def test_the_smallest_weights_matter_least(found, lenet):
    for i, level in enumerate(LEVELS):
        assert found["magnitude"]["frobenius"][i] > found["joint"]["frobenius"][i]
        for norm in NORMS:
            expected = 1.0
            for layer in (lenet[1], lenet[3]):
                weight = layer.weight.detach()
                border = weight.abs().flatten().sort().values[round(level * weight.numel())]
                expected *= norm_of(weight * (weight.abs() >= border), norm) / norm_of(weight, norm)
            assert found["magnitude"][norm][i] == pytest.approx(expected, rel=1e-4)


def small(*widths: int) -> Sequence:
    torch.manual_seed(5)
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return Sequence(nn.Flatten(), *[part for layer in layers[:-1] for part in (layer, nn.ReLU())], layers[-1])


def test_means_are_those_over_all_masks():
    """The 16 masks of a 2x2 layer and the 64 of a 3x2 layer, each with its probability."""
    model, level, draws = small(2, 2, 3, 4), 0.4, 400
    result = measured(model, (1, 1, 2), levels=(level,), draws=draws)
    assert list(result["single"]) == ["1", "3"]
    for norm in NORMS:
        first, second = {}, {}
        for name in ("1", "3"):
            weight = model[int(name)].weight.detach()
            masks = torch.tensor(list(product((0.0, 1.0), repeat=weight.numel()))).view(-1, *weight.shape)
            chances = ((1 - level) * masks + level * (1 - masks)).flatten(1).prod(1)
            ratios = torch.tensor([norm_of(weight * mask, norm) for mask in masks]) / norm_of(weight, norm)
            first[name], second[name] = float(chances @ ratios), float(chances @ ratios**2)
            spread = (second[name] - first[name] ** 2) ** 0.5
            assert result["single"][name][norm][0] == pytest.approx(first[name], abs=4 * spread / draws**0.5)
        mean, square = first["1"] * first["3"], second["1"] * second["3"]
        assert result["joint_sd"][norm][0] == pytest.approx((square - mean**2) ** 0.5, rel=0.15)
        assert result["joint"][norm][0] == pytest.approx(mean, abs=4 * result["joint_sd"][norm][0] / draws**0.5)
    assert result["joint"]["frobenius"][0] < 0.98 * result["explicit"]["frobenius"][0]  # Jensen is strict here


def test_the_spread_is_that_of_a_sample():
    """Of a network that lives or dies with one weight: k of n draws leave the ratio 1, the others 0."""
    result = measured(small(1, 1, 1), (1, 1, 1), levels=(0.5,), draws=4)
    ((mean,), (spread,)) = result["joint"]["l2"], result["joint_sd"]["l2"]
    assert mean in (0.25, 0.5, 0.75) and spread == pytest.approx((4 / 3 * mean * (1 - mean)) ** 0.5, rel=1e-5)


def test_bounds_of_a_small_network():
    model, levels = small(3, 4, 2, 5, 3), (0.25, 0.9)
    result = measured(model, (1, 1, 3), levels=levels, draws=50)
    weights = [model[i].weight.detach() for i in (1, 3, 5)]
    looseness = torch.tensor([float(w.abs().sum()) / norm_of(w, "linf") for w in weights]).prod()
    for i, level in enumerate(levels):
        assert result["explicit"]["frobenius"][i] == pytest.approx((1 - level) ** 1.5, rel=1e-5)
        assert result["explicit"]["linf"][i] == pytest.approx(float(looseness) * (1 - level) ** 3, rel=1e-5)
        for norm, bounds in result["explicit"].items():
            assert result["joint"][norm][i] <= bounds[i] + 4 * result["joint_sd"][norm][i] / 50**0.5


def test_convolutions_are_masked_too():
    result = measured(built(LeNet5(kernel=3), (1, 8, 8)), (1, 8, 8), levels=(0.5,), draws=3)
    assert list(result["single"]) == ["0", "2", "5"]
    assert result["joint"]["frobenius"][0] == pytest.approx(0.5**1.5, rel=0.1)
    assert result["joint"]["linf"][0] <= result["explicit"]["linf"][0]
    assert 0.5**3 < result["joint"]["l2"][0] < 1


def test_nothing_removed_and_everything_removed():
    model = small(2, 3, 2)
    before = model[1].weight.clone()
    result = measured(model, (1, 1, 2), levels=(0.0, 1.0), draws=2)
    assert all(result[kind][norm] == [1.0, 0.0] for kind in ("joint", "magnitude") for norm in NORMS)
    assert result["single"]["1"] == {norm: [1.0, 0.0] for norm in NORMS}
    assert result["joint_sd"] == {norm: [0.0, 0.0] for norm in NORMS}
    assert torch.equal(model[1].weight, before)


def test_draws_can_be_repeated_and_results_stored():
    model, settings = small(4, 5, 5, 3), RandomMasks(levels=(0.3, 0.6), draws=1)
    results = [settings(model, SimpleNamespace(image_shape=(1, 2, 2))) for _ in range(2)]
    assert results[0] == results[1] == json.loads(json.dumps(results[0]))
    assert results[0]["joint_sd"]["l2"] == [0.0, 0.0] and results[0]["levels"] == [0.3, 0.6]
    assert Measurement.parse({"kind": "random_masks", "levels": [0.3, 0.6], "draws": 1}) == settings


def test_what_cannot_be_measured_is_refused(refusal):
    assert "levels" in refusal(RandomMasks, levels=()) and "levels" in refusal(RandomMasks, levels=(0.5, 1.5))
    assert "levels" in refusal(RandomMasks, levels=(-0.1,)) and "draws" in refusal(RandomMasks, draws=0)
    assert "stack" in refusal(measured, built(ResNet(depth=8, width=2), (1, 8, 8)), (1, 8, 8))
    assert "before the last" in refusal(measured, built(Linear(), (1, 8, 8)), (1, 8, 8))
    model = small(2, 3, 2)
    model[1].weight.data.zero_()
    assert "layer 1" in refusal(measured, model, (1, 1, 2))
