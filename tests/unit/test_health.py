"""Health of a network: exact where it is linear, equal to single attacks elsewhere; networks with a
known defect are flagged."""

import json
import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from scaffolding import Around, Backward, seeded, splits_of
from sparserobust import imagewise, training
from sparserobust.analysis import Health, best_minus_last, health, symptoms
from sparserobust.analysis.health import pgd_path
from sparserobust.attacks import FGSM, PGD, predicted
from sparserobust.config import Measurement
from sparserobust.models import Linear, PreActResNet
from sparserobust.models.noise import Noise
from sparserobust.objectives import Adversarial
from sparserobust.query_attacks import Square
from sparserobust.seeding import stream

SHAPE, EPSILON = (1, 4, 4), 0.1
MEASURE = Health(epsilon=EPSILON, images=60, steps=(1, 3, 8, 12), queries=60)
FAR = replace(MEASURE, epsilon=0.2)  # where Square fools most images, too


class Quantised(nn.Module):
    """Grey values in eighths."""

    def forward(self, x):
        return (8 * x).round() / 8


class CutOff(nn.Module):
    """No derivative at all leads back to the images."""

    def forward(self, x):
        return x.detach()


class Shattering(Noise):
    """Waves of random phase, too low to change answers, so steep that gradients lose their sign."""

    def forward(self, x):
        return x + self.level * torch.sin(1e5 * x + 2 * math.pi * torch.rand_like(x))


# ------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("batch", [250, 16])
def test_on_a_linear_network_pgd_and_fgsm_are_the_exact_worst_case(batch, monkeypatch):
    monkeypatch.setattr(health, "BATCH", batch)
    torch.manual_seed(0)
    model, images = Linear().build(SHAPE, 2).eval(), 0.4 + 0.2 * torch.rand(40, *SHAPE)
    nn.init.normal_(model[1].weight)
    model[1].bias.data = -0.5 * model[1].weight.data.sum(1)  # no class leads at the mean image
    labels = predicted(model, images)
    labels[::5] = 1 - labels[::5]
    result = Health(epsilon=0.01, images=None)(model, splits_of(images, labels, classes=2))
    normal = (model[1].weight[0] - model[1].weight[1]).detach().double()
    gap = images.flatten(1).double() @ normal + (model[1].bias[0] - model[1].bias[1]).double()
    gap = (gap * (1 - 2 * labels)).detach()
    worst = gap - 0.01 * normal.abs().sum()
    exact, parts = float((worst > 0).double().mean()), result["parts"]
    assert 0.2 < exact < 0.7 and (result["value"], result["total"]) == (1.0, 40)
    assert parts["fgsm"] == parts["pgd"] == parts["accuracy_10"] == parts["accuracy_50"] == exact
    assert parts["clean"] == float((gap > 0).double().mean()) == 0.8
    # from anywhere in the ball, eight steps of a quarter radius lead to its corner
    for k in (10, 20, 50):
        assert parts[f"loss_{k}"] == pytest.approx(float((-worst).exp().log1p().mean()), rel=1e-5)
    assert parts["loss_1"] < parts["loss_5"] < parts["loss_10"]
    assert parts["still_rising"] == parts["zero_gradient"] == parts["square_below_pgd"] == 0
    assert exact <= parts["square"] < 0.8
    assert (parts["chance"], parts["images"]) == (0.5, 40)
    assert symptoms(parts) == []


def test_all_steps_lie_on_the_path_of_pgd(net, digits):
    split, steps = digits.test.sample(60), (1, 2, 7, 12)
    losses, right = pgd_path(net, split.images, split.labels, EPSILON, steps, stream(0, "path"))
    assert losses.shape == right.shape == (4, 60)
    for k, loss, hits in zip(steps, losses, right, strict=True):
        attack = PGD(epsilon=EPSILON, step_size=EPSILON / 4, steps=k)
        logits = net(attack(net, split.images, split.labels, stream(0, "path"))).detach()
        expected = cross_entropy(logits, split.labels, reduction="none")
        assert torch.allclose(loss, expected, atol=1e-6)
        assert torch.equal(hits, logits.argmax(1) == split.labels)
    assert losses.mean(1).diff().min() > 0 and not torch.equal(right[0], right[-1])


def test_parts_are_what_the_attacks_one_by_one_give(net, digits):
    split, result = digits.test.sample(60), MEASURE(net, digits)
    chance = lambda: stream(0, "health", MEASURE.identity)  # noqa: E731
    attacks = {"clean": lambda *_: split.images, "fgsm": FGSM(epsilon=EPSILON),
               "pgd": PGD(epsilon=EPSILON, step_size=EPSILON / 4, steps=12),
               "square": Square(epsilon=EPSILON, queries=60)}
    right = {name: predicted(net, attack(net, split.images, split.labels, chance())) == split.labels
             for name, attack in attacks.items()}
    right["square_below_pgd"] = right["pgd"] & ~right["square"]
    for name, hits in right.items():
        assert result["parts"][name] == float(hits.double().mean()), name
        assert imagewise.unpack(result["each"][name]).tolist() == hits.double().tolist(), name
    parts = result["parts"]
    assert result["value"] == parts["pgd"] / parts["fgsm"] < 1
    assert parts["accuracy_12"] == parts["pgd"] < parts["fgsm"] < parts["clean"]
    assert parts["still_rising"] == pytest.approx(parts["loss_12"] / parts["loss_8"] - 1)
    assert parts["still_rising"] > 0 and parts["chance"] == 0.1


def test_the_loss_of_a_noisy_network_is_a_mean_over_draws(monkeypatch):
    """Logits that are noise and nothing else, whatever the image: the loss scatters less."""
    class Dice(nn.Module):
        def __init__(self):
            super().__init__()
            self.noise = Noise(1.0)

        def forward(self, x):
            return self.noise(torch.linspace(0, 1, 2).expand(len(x), 2)) + 0 * x.sum()

    def scatter(draws):
        monkeypatch.setattr(health, "DRAWS", draws)
        images, labels = torch.rand(1, *SHAPE), torch.zeros(1).long()
        with seeded():
            return pgd_path(Dice(), images, labels, EPSILON, range(1, 80))[0].std()

    assert scatter(9) == pytest.approx(scatter(1) / 3, rel=0.25)


# ------------------------------------------------------------------------------------------ defects


@pytest.mark.parametrize("epsilon", [0.05, 0.1])
def test_a_network_trained_against_an_attack_is_healthy(net, digits, epsilon):
    parts = Health(epsilon=epsilon)(net, digits)["parts"]
    assert symptoms(parts) == [] and parts["zero_gradient"] == 0


@pytest.mark.parametrize("masked", [{"after": lambda logits: 1e4 * logits}, {"before": Quantised()},
                                    {"before": CutOff()}], ids=["sharp", "quantised", "cut off"])
def test_gradients_of_zero_are_masked(net, digits, masked):
    parts = FAR(Around(net, **masked), digits)["parts"]
    assert parts["clean"] > 0.9 and parts["fgsm"] == parts["clean"]  # it looks robust
    assert parts["zero_gradient"] > 0.9 and parts["square"] < parts["pgd"]
    assert "masked gradients" in symptoms(parts)
    assert "masked gradients" in symptoms(parts | {"zero_gradient": 0.0})  # and Square tells alone


def test_a_gradient_that_leads_away_is_masked(net, digits):
    parts = FAR(Around(net, lambda x: Backward.apply(x, torch.neg)), digits)["parts"]
    assert parts["zero_gradient"] == 0 and parts["pgd"] >= parts["clean"]
    assert symptoms(parts) == ["masked gradients"]


def test_noise_that_only_blocks_gradients_masks_them_until_it_is_off(net, digits):
    model = Around(net, Shattering(0.005)).eval()
    noisy, silent = FAR(model, digits), replace(FAR, noise=False)(model, digits)
    plain = FAR(net, digits)["parts"]
    assert noisy["parts"]["zero_gradient"] == 0
    assert noisy["parts"]["pgd"] > noisy["parts"]["square"] + 0.05
    assert "masked gradients" in symptoms(noisy["parts"])
    assert "masked gradients" not in symptoms(silent["parts"]) and model.before.level == 0.005
    assert [silent["parts"][k] for k in ("clean", "fgsm")] == [plain[k] for k in ("clean", "fgsm")]


def test_noise_that_changes_answers_is_no_mask(net, digits):
    model = PreActResNet(depth=8, width=8, noise=0.1).build((1, 8, 8), 10)
    model.load_state_dict(net.state_dict())
    assert symptoms(replace(MEASURE, epsilon=0.05)(model.eval(), digits)["parts"]) == []


class Dip(nn.Module):
    """The first class is right but for a first pixel near 0.55: half a radius from the image, where
    no step of a whole radius ends, and that Square, which walks from corner to corner, misses."""

    def forward(self, x):
        gap = (x[:, 0, 0, 0] - 0.5 - EPSILON / 2).abs() / (EPSILON / 4) - 1
        return torch.stack([gap, torch.zeros_like(gap)], 1)


def test_catastrophic_overfitting_is_flagged():
    result = MEASURE(Dip(), splits_of(torch.full((60, *SHAPE), 0.5), torch.zeros(60).long(), classes=2))
    parts = result["parts"]
    assert (parts["fgsm"], parts["pgd"], parts["square"], result["value"]) == (1, 0, 1, 0)
    assert symptoms(parts) == ["catastrophic overfitting"]


def test_an_attack_of_few_steps_has_not_converged(net, digits):
    parts = replace(MEASURE, steps=(1, 5))(net, digits)["parts"]
    assert symptoms(parts) == ["attack not converged"]


HEALTHY = {"pgd": 0.7, "fgsm": 0.8, "chance": 0.1, "images": 100, "still_rising": 0.02,
           "square_below_pgd": 0.01, "zero_gradient": 0.01}
OVERFITTED, RISING, MASKED = "catastrophic overfitting", "attack not converged", "masked gradients"


@pytest.mark.parametrize("change, expected", [
    ({}, []),
    ({"pgd": 0.41}, []),
    ({"pgd": 0.39}, [OVERFITTED]),
    ({"pgd": 0.0, "fgsm": 0.16}, []),  # that many of 100 images are right by chance
    ({"pgd": 0.0, "fgsm": 0.16, "images": 1000}, [OVERFITTED]),
    ({"pgd": 0.0, "fgsm": 0.68, "chance": 0.5}, [OVERFITTED]),  # three errors are 0.15
    ({"pgd": 0.0, "fgsm": 0.0}, []),
    ({"still_rising": 0.14}, []),
    ({"still_rising": 0.16}, [RISING]),
    ({"still_rising": None, "zero_gradient": None}, []),
    ({"square_below_pgd": 0.06}, []),  # six of 100 images happen where it is two of 100
    ({"square_below_pgd": 0.07}, [MASKED]),
    ({"square_below_pgd": 0.06, "images": 1000}, [MASKED]),
    ({"square_below_pgd": 0.02, "images": 10**6}, []),
    ({"zero_gradient": 0.09}, []),
    ({"zero_gradient": 0.11}, [MASKED]),
    ({"pgd": 0.0, "still_rising": 1.0, "zero_gradient": 1.0}, [OVERFITTED, RISING, MASKED]),
], ids=str)
def test_thresholds(change, expected):
    assert symptoms(HEALTHY | change) == expected


def test_robust_overfitting_is_the_highest_accuracy_minus_the_last(tiny_run, digits):
    rows = [{"validation_robust": a} for a in (0.3, 0.5, 0.45)]
    assert best_minus_last(rows) == pytest.approx(0.05)
    assert best_minus_last([rows[0], {"validation_clean": 0.9}, rows[1]]) == 0
    assert best_minus_last([{"validation_clean": 0.9}, rows[0]]) is best_minus_last([]) is None
    objective = Adversarial(attack=FGSM(epsilon=0.1))
    watched = training.train(tiny_run(objective=objective, watched=True), digits).history
    assert best_minus_last(watched) >= 0
    assert best_minus_last(training.train(tiny_run(objective=objective), digits).history) is None


# ------------------------------------------------------------------------------------------- limits


def constant(bias: list[float]):
    """The same logits for all images."""
    model = Linear().build(SHAPE, len(bias)).eval()
    nn.init.zeros_(model[1].weight)
    model[1].bias.data = torch.tensor(bias)
    return model


@pytest.mark.parametrize("bias, value, blocked", [([0.0, 3.0], 1.0, 1.0), ([3.0, 0.0], None, None)],
                         ids=["right", "wrong"])
def test_a_constant_network(bias, value, blocked):
    data = splits_of(torch.rand(6, *SHAPE), torch.ones(6).long(), classes=2)
    result = MEASURE(constant(bias), data)
    parts = result["parts"]
    assert (result["value"], parts["zero_gradient"]) == (value, blocked)
    assert parts["clean"] == parts["fgsm"] == parts["pgd"] == parts["square"] == (value or 0)
    assert parts["loss_12"] is not None and parts["still_rising"] == 0
    assert symptoms(parts) == (["masked gradients"] if value else [])
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_network_without_finite_answers_has_no_health(refusal):
    data = splits_of(torch.rand(6, *SHAPE), torch.zeros(6).long(), classes=2)  # argmax takes nan for the highest
    assert "not finite" in refusal(MEASURE, constant([math.nan, 0.0]), data)


def test_a_gradient_that_is_not_finite_is_counted_and_moves_nothing():
    """The square root of zero has an infinite slope, which times zero is not a number."""
    class Root(nn.Module):
        def forward(self, x):
            flat = (x - 0.5).clamp_min(0).flatten(1).sum(1).sqrt()
            return torch.stack([1 - 0 * flat, flat], 1)

    images = torch.full((4, *SHAPE), 0.25)
    parts = MEASURE(Root(), splits_of(images, torch.zeros(4).long(), classes=2))["parts"]
    assert parts["zero_gradient"] == parts["fgsm"] == parts["pgd"] == 1


def test_chance_is_known_without_the_names_of_classes(net, digits):
    measure = replace(MEASURE, images=20, queries=20)
    found = measure(net, replace(digits, classes=()))
    assert found == measure(net, digits) and found["parts"]["chance"] == 0.1


def test_the_same_twice_and_the_network_as_it_was(net, digits):
    model = Around(deepcopy(net), Noise(0.1)).train()
    model.net.members[0].norm.eval()
    for i, p in enumerate(model.parameters()):
        p.grad = torch.full_like(p, float(i)) if i % 2 else None
        p.requires_grad_(i % 3 > 0)

    def state():
        grads = [(p.requires_grad, None if p.grad is None else p.grad.tolist())
                 for p in model.parameters()]
        return ([m.training for m in model.modules()], grads, torch.get_rng_state().tolist(),
                {k: t.tolist() for k, t in model.state_dict().items()})

    measure = replace(MEASURE, images=20, queries=20)
    before, first = state(), measure(model, digits)
    assert state() == before
    torch.rand(1)
    assert measure(model.eval(), digits) == first
    assert json.loads(json.dumps(first, allow_nan=False)) == first


def test_the_cost_is_what_is_asked_of_the_network():
    passes = []

    class Counted(nn.Module):
        def forward(self, x):
            passes.append((1 if x.requires_grad else 1 / 3) * len(x) / 60)
            return torch.tensor([[1.0, 0.0]]).expand(len(x), 2) + 0 * x.sum()  # never fooled

    data = splits_of(torch.rand(60, *SHAPE), torch.zeros(60).long(), classes=2)
    for measure in (MEASURE, Health(epsilon=EPSILON, images=60), replace(MEASURE, queries=2)):
        passes.clear()
        measure(Counted(), data)
        assert measure.cost == pytest.approx(sum(passes) * 60 / 10_000, rel=0.1)


@pytest.mark.parametrize("change, words", [
    ({"epsilon": 8}, "8/255"), ({"epsilon": 0}, "epsilon must be positive"),
    ({"epsilon": -0.1}, "negative"), ({"images": 0}, "images must be positive"),
    ({"queries": 0}, "queries"), ({"steps": [5]}, "two or more"), ({"steps": []}, "two or more"),
    ({"steps": [0, 5]}, "from 1"), ({"steps": [5, 5]}, "rise"), ({"steps": [5, 1]}, "rise"),
], ids=str)
def test_wrong_settings(refusal, change, words):
    assert words in refusal(Measurement.parse, {"kind": "health", "epsilon": 0.1} | change)
