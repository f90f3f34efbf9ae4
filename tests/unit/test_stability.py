"""Stability against models whose averaged output is known in closed form, and held to its promises."""

import json
from copy import deepcopy
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import nn

from scaffolding import seeded, splits_of, with_noise
from sparserobust import UserError
from sparserobust.analysis import Stability, stability
from sparserobust.config import Measurement
from sparserobust.data import Splits
from sparserobust.imagewise import unpack
from sparserobust.models import PreActResNet
from sparserobust.models.noise import Noise

FEW = {"levels": (0, 0.3), "lengths": (0.1, 0.4), "draws": 2, "images": 30}


class Pixel(nn.Module):
    """Classifies by whether the first pixel exceeds 0.5, after noise; a larger `steepness` is a harder threshold. The
    noise acts on a reference column as well, of +-3, that leads the standard deviation; the inputs are recorded."""

    def __init__(self, steepness=1e6):
        super().__init__()
        self.noise, self.steepness, self.seen = Noise(0.0), steepness, []

    def scores(self, images):
        pixel = images[:, 0, 0, 0] - 0.5
        return torch.stack([pixel, 3.0 - 6.0 * (torch.arange(len(pixel)) % 2)], 1)

    def forward(self, images):
        self.seen.append(images.detach())
        pixel = self.noise(self.scores(images))[:, 0]
        return self.steepness * torch.stack([-pixel, pixel], 1)

    def chance(self, images, level):
        """Of class 1 for each image if the threshold is hard: a normal distribution function."""
        scores = self.scores(images).double()
        if level == 0:
            return (scores[:, 0] > 0).double()
        return torch.tensor([NormalDist().cdf(s / (level * scores.std().item())) for s in scores[:, 0].tolist()])


def only(images, labels=None) -> Splits:
    return splits_of(images, (images[:, 0, 0, 0] > 0.5).long() if labels is None else labels)


def slope(x, y):
    x, y = np.log(x) - np.log(x).mean(), np.log(y) - np.log(y).mean()
    return (x * y).sum() / (x * x).sum()


@pytest.fixture(scope="module")
def spread():
    return torch.rand(250, 1, 1, 4, generator=torch.Generator().manual_seed(1))


def test_a_hard_threshold_against_its_normal_distribution(spread):
    model, levels, lengths, draws = Pixel(), (0.2, 0.0, 0.05), (0.2, 0.6), 800
    result = Stability(levels=levels, lengths=lengths, draws=draws, images=None)(model, only(spread))
    seen, expected, largest = iter(model.seen[1:]), [], []  # once it is asked whether it takes such images
    for level in levels:
        points = [[next(seen) for _ in range(draws if level else 1)].pop() for _ in (0, *lengths)]
        u, *moved = [model.chance(x, level) for x in points]
        changes = torch.stack([(other - u).abs() * 2**0.5 for other in moved])
        expected.append(changes.mean(1).tolist())
        largest.append(changes.amax(1).tolist())
    assert next(seen, None) is None
    assert np.array(result["changes"]) == pytest.approx(np.array(expected), rel=0.02)
    assert np.array(result["largest"]) == pytest.approx(np.array(largest), rel=0.15)  # of so many, one by chance
    high, _, low = expected
    noise = [low[0], low[1], high[0], high[1]]
    assert result["value"] == pytest.approx(slope([4, 12, 1, 3], noise), abs=0.02)
    assert result["level_slope"] == pytest.approx(slope([20, 20, 5, 5], noise), abs=0.02)
    assert result["slopes"] == pytest.approx([slope(lengths, row) for row in expected], abs=0.03)
    assert result["ratio"] == pytest.approx((high[0] / low[0] + high[1] / low[1]) / 2, rel=0.02)
    assert result["levels"] == list(levels) and result["lengths"] == list(lengths)
    assert result["accuracy"][1] == 1 and result["accuracy"][2] >= 0.95


def test_the_theorem_holds_with_exponent_one_at_the_boundary():
    """There the change is a function of length / level, and proportional to it where that is small."""
    images = torch.full((250, 1, 1, 1), 0.5)
    model = Pixel()
    result = Stability(levels=(0.1, 0.2, 0.4), lengths=(0.01, 0.03), draws=800, images=None)(model, only(images))
    for key in ("value", "level_slope"):
        assert result[key] == pytest.approx(1, abs=0.03)
    assert result["slopes"] == pytest.approx([1, 1, 1], abs=0.06)
    assert result["ratio"] == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("direction", ["random", "gradient"])
def test_a_short_step_of_a_smooth_output_has_slope_one_and_knows_nothing_of_noise(spread, direction):
    settings = Stability(levels=(0, 1e-4, 1e-3), lengths=(1e-3, 1e-2), direction=direction, draws=4, images=None)
    result = settings(Pixel(1.0), only(spread))
    assert result["slopes"] == pytest.approx([1, 1, 1], abs=0.01)
    assert result["level_slope"] == pytest.approx(0, abs=0.01) and result["ratio"] == pytest.approx(1, abs=0.01)
    if direction == "gradient":  # the derivative of sigmoid(2 pixel - 1), along the one pixel that counts
        p = torch.sigmoid(2 * spread[:, 0, 0, 0] - 1)
        steepest = 2 * p * (1 - p) * 2**0.5
        assert result["changes"][0][0] == pytest.approx(1e-3 * steepest.mean().item(), rel=0.01)
        assert result["largest"][0][0] == pytest.approx(1e-3 * steepest.max().item(), rel=0.01)


def test_random_directions_lie_on_the_sphere_and_are_not_clipped(spread):
    model = Pixel()
    Stability(levels=(0, 0.1), lengths=(0.5, 3), draws=1, images=None)(model, only(spread))
    _, x, short, long, *again = model.seen
    assert torch.equal(x, only(spread).test.sample(None).images)
    assert all(torch.equal(a, b) for a, b in zip(model.seen[1:], again, strict=False))
    d = (long - x).flatten(1) / 3
    assert d.norm(dim=1).allclose(torch.ones(250)) and torch.allclose((short - x).flatten(1), 0.5 * d, atol=1e-6)
    assert d.mean(0).abs().max() < 0.1 and torch.cov(d.T).allclose(torch.eye(4) / 4, atol=0.05)


def test_the_gradient_points_away_from_the_label(spread):
    model, labels = Pixel(2.0), torch.arange(250) % 2
    Stability(levels=(0.1,), lengths=(0.5, 1), direction="gradient", draws=5, images=None)(model, only(spread, labels))
    assert len(model.seen) == 1 + 4 * 5
    drawn = only(spread, labels).test.sample(None)
    d = (model.seen[-1] - drawn.images).flatten(1)
    expected = torch.tensor([1.0, 0, 0, 0]) * (1 - 2 * drawn.labels)[:, None]
    assert d.allclose(expected, atol=1e-5)


def test_the_gradient_is_that_of_the_mean_output(net, digits, monkeypatch):
    """Not of the mean logits, nor the mean of the losses' gradients."""
    model, split = noisy(net, 1.0), digits.test.sample(20)
    seen, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda x: seen.append(forward(x)) or seen[-1])
    measure = Stability(levels=(1.0,), lengths=(0.1, 1), direction="gradient", draws=3, images=20)
    inputs = []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda out, x: inputs.append(x) or real(out, x, retain_graph=True))
    d = measure._directions(model, split.images, split.labels, 0)
    loss = nn.functional.nll_loss(torch.stack(seen).softmax(2).mean(0), split.labels, reduction="sum")
    expected = real(loss, inputs[0])[0].flatten(1)
    assert len(seen) == 3 and nn.functional.cosine_similarity(d.flatten(1), expected).min() > 0.9999
    assert d.flatten(1).norm(dim=1).allclose(torch.ones(20))


def noisy(net, level):
    return with_noise(net, level).to(memory_format=torch.channels_last)


def test_the_level_a_network_was_built_with_does_not_matter(net, digits):
    results = [Stability(**FEW)(model, digits) for model in (net, noisy(net, 0.0), noisy(net, 2.0))]
    assert results[0] == results[1] == results[2]
    assert results[0]["changes"][0] != results[0]["changes"][1]
    assert results[0]["value"] is not None and json.loads(json.dumps(results[0])) == results[0]


def test_longer_and_steeper_steps_change_more(net, digits):
    random, steep = (Stability(**FEW, direction=d)(net, digits)["changes"] for d in ("random", "gradient"))
    assert all(a < b for a, b in random + steep)
    assert all(a < b for one, other in zip(random, steep, strict=True) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_both_ends_of_a_step_see_the_same_noise(channels):
    """Or noise of this size would change far more than a step this short."""
    with seeded():
        model = PreActResNet(depth=8, width=4, members=2, noise=1.0).build((channels, 8, 8), 10).eval()
        images = torch.rand(16, channels, 8, 8)
    model.to(memory_format=torch.channels_last)
    result = Stability(levels=(1,), lengths=(1e-4, 1e-3), draws=2)(model, only(images))
    assert max(result["changes"][0]) < 1e-2


@pytest.mark.parametrize("direction", ["random", "gradient"])
def test_a_measurement_repeats_and_leaves_everything_as_it_was(net, digits, direction):
    model = deepcopy(net).train()
    layers = [m for m in model.modules() if isinstance(m, Noise)]
    for i, layer in enumerate(layers):
        layer.level = i / 10
    before, dice = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    first = Stability(**FEW, direction=direction)(model, digits)
    assert torch.equal(torch.get_rng_state(), dice)
    torch.rand(1)
    assert Stability(**FEW, direction=direction)(model, digits) == first
    assert first == Stability(**FEW, direction=direction)(net, digits)
    assert [m.level for m in layers] == [i / 10 for i in range(len(layers))] and len(layers) > 1
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_levels_come_back_when_a_measurement_fails(net, digits):
    model = noisy(net, 0.7)
    model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(UserError, match="ZeroDivisionError"):
        Stability()(model, digits)
    assert {m.level for m in model.modules() if isinstance(m, Noise)} == {0.7}


def test_batches_are_of_bounded_size_and_every_image_is_seen(spread, monkeypatch):
    settings = Stability(levels=(0, 1e-6), lengths=(0.1, 1), direction="gradient", draws=1, images=70)
    whole = settings(Pixel(3.0), only(spread))
    monkeypatch.setattr(stability, "BATCH", 32)
    model = Pixel(3.0)
    parts = settings(model, only(spread))
    assert [len(x) for x in model.seen] == [2] + 2 * (4 * [32] + 4 * [32] + 4 * [6])
    for key in ("changes", "largest", "accuracy"):
        assert np.array(parts[key]) == pytest.approx(np.array(whole[key]), rel=1e-3)


def test_accuracy_is_that_of_the_mean_output(net, digits):
    model, outputs = noisy(net, 0.0), []
    model.register_forward_hook(lambda _, inputs, logits: outputs.append(logits.softmax(1)))
    result = Stability(levels=(1.5,), lengths=(0.1, 1), draws=5)(model, digits)
    del outputs[0]  # of two images, which are asked first
    mean, labels = torch.stack(outputs[:5]).mean(0), digits.test.sample(100).labels
    assert result["accuracy"] == [pytest.approx((mean.argmax(1) == labels).float().mean().item())]
    alone = [(o.argmax(1) == labels).float().mean().item() for o in outputs[:5]]
    assert 0.2 < np.mean(alone) < result["accuracy"][0] < 1


def test_each_level_has_the_mean_change_and_that_of_every_image_by_hand(net, digits):
    """From all outputs of the network: of each level that of an image, then those of the image moved by each length."""
    model, outputs = noisy(net, 0.0), []
    model.register_forward_hook(lambda _, inputs, logits: outputs.append(logits.double().softmax(1)))
    result = Stability(levels=(0.0, 0.5), lengths=(0.2, 0.8, 2), draws=3, images=60)(model, digits)
    del outputs[0]  # of two images, which are asked first
    assert len(outputs) == 4 * 1 + 4 * 3
    assert result["each"].keys() == result["parts"].keys() == {"level 0", "level 0.5"}
    for level, passes in (("level 0", [[u] for u in outputs[:4]]),
                          ("level 0.5", [outputs[i:i + 3] for i in range(4, 16, 3)])):
        u, *moved = [torch.stack(draws).mean(0) for draws in passes]
        changes = torch.stack([(other - u).norm(dim=1) for other in moved]).mean(0)
        assert len(changes) == 60 and changes.min() < 0.1 * changes.max()
        assert unpack(result["each"][level]) == pytest.approx(changes.numpy(), abs=1e-3 * float(changes.max()))
        assert result["parts"][level] == pytest.approx(float(changes.mean()), rel=1e-5)
    for level, row in zip(("level 0", "level 0.5"), result["changes"], strict=True):
        assert result["parts"][level] == pytest.approx(sum(row) / 3)


def test_the_images_are_those_that_are_drawn(net, digits):
    model, seen = noisy(net, 0.0), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    Stability(levels=(0.5,), lengths=(0.1, 1), draws=1, images=30)(model, digits)
    assert torch.equal(seen[1], digits.test.sample(30).images)


def test_an_output_that_never_changes_has_no_slope(spread):
    class Constant(Pixel):
        def forward(self, images):
            return super().forward(images) * 0

    for direction in ("random", "gradient"):
        result = Stability(levels=(0, 0.1), direction=direction)(Constant(), only(spread))
        assert result["value"] is result["level_slope"] is result["ratio"] is None and result["slopes"] == [None, None]
        assert not np.any(result["changes"]) and 0.3 < result["accuracy"][0] < 0.7
        json.dumps(result, allow_nan=False)


def test_a_single_level_has_no_level_slope(net, digits):
    result = Stability(**FEW)(net, digits)
    assert result["level_slope"] is None and result["ratio"] == 1
    assert result["value"] == pytest.approx(result["slopes"][1])


def test_a_network_without_noise_layers_is_refused(refusal, digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert "no noise layers" in refusal(Stability(), model, digits)


@pytest.mark.parametrize(("change", "words"), [
    ({"levels": [0.0]}, ["levels", "above 0"]),
    ({"levels": []}, ["levels", "above 0"]),
    ({"levels": [-0.1, 0.1]}, ["levels", "negative"]),
    ({"lengths": []}, ["lengths", "two"]),
    ({"lengths": [0.5, 0.5]}, ["lengths", "two"]),
    ({"lengths": [0, 0.5]}, ["lengths", "positive"]),
    ({"direction": "up"}, ["direction", "'up'"]),
    ({"draws": 0}, ["draws"]),
    ({"images": 0}, ["images", "positive"]),
], ids=str)
def test_wrong_settings(refusal, change, words):
    message = refusal(Measurement.parse, {"kind": "stability"} | change)
    assert all(word in message for word in words), message


def test_settings_survive_json():
    settings = Stability(levels=(0.1, 0.2), lengths=(1, 2))
    assert Measurement.parse(json.loads(json.dumps(settings.plain()))).identity == settings.identity
