"""Networks that were built to look robust, each of which an audit has to flag; and honest ones, which it must not."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from scaffolding import Around, Backward, seeded
from sparserobust import data
from sparserobust.analysis import audit, masking
from sparserobust.analysis.audit import Audit

AUDIT = Audit(epsilon=0.1, images=80, few=40, queries=150, autoattack=False)


class Resized(nn.Module):
    """Images moved by up to two pixels, at random, all alike; answers with some of the mean of many draws."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        down, right = torch.randint(-1, 2, (2,)).tolist()
        return self.net(torch.roll(x, (down, right), (2, 3)) + 0.3 * torch.randn_like(x))


class Watching(nn.Module):
    """Answers as one network where gradients are asked for, as another where not."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) + (torch.randn(10, generator=torch.Generator().manual_seed(0)) if x.requires_grad else 0)


class Winners(nn.Module):
    """The largest twentieth of the values of each image; no others."""

    def forward(self, x):
        least = x.flatten(1).topk(x[0].numel() // 20).values[:, -1]
        return x * (x >= least.view(-1, *[1] * (x.dim() - 1)))


def winners(net):
    """Trained with winners, which cannot be put into another network."""
    with seeded():
        model = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), Winners(), nn.MaxPool2d(2), nn.Flatten(),
                              nn.Linear(512, 128), Winners(), nn.Linear(128, 10))
        return taught(model)


def taught(model, steps: int = 150):
    train, optimiser = data.load("digits").train, torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        batch = torch.randint(len(train), (64,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(train.images[batch]), train.labels[batch]).backward()
        optimiser.step()
    return model.eval()


def stairs(x, steepness: float = 800.0):  # where 400 is at the limit of what is flagged
    return sum(torch.sigmoid(steepness * (x - t)) for t in (0.2, 0.4, 0.6, 0.8)) / 4


def shuffled(gradient):
    return gradient.flatten(1)[:, torch.randperm(gradient[0].numel())].view_as(gradient)


def in_batch(logits):
    return (logits - logits.mean(0)) / (logits.std(0, correction=0) + 1e-3)


def before(change):
    return lambda net: Around(net, before=change)


def after(change):
    return lambda net: Around(net, after=change)


def backward(change):
    return before(lambda x: Backward.apply(x, change))


MASKED = {  # how it is built, and what should be said of it
    "sharpened logits": (after(lambda z: 1e4 * z), {"saturated", "zero gradient"}),
    "rounded images": (before(lambda x: (x * 4).round() / 4), {"rounded input", "zero gradient"}),
    "detached": (before(lambda x: x.detach()), {"cut off"}),
    "hard answers": (after(lambda z: nn.functional.one_hot(z.argmax(1), 10).float()), {"cut off"}),
    "thermometer": (before(lambda x: sum((x > t).float() for t in (0.2, 0.4, 0.6, 0.8)) / 4), {"cut off"}),
    "NaN backwards": (backward(lambda g: g * math.nan), {"not finite"}),
    "no gradient": (backward(lambda g: 0 * g), {"zero gradient"}),
    "reversed gradient": (backward(lambda g: -g), {"untrue gradient"}),
    "shuffled gradient": (backward(shuffled), {"untrue gradient"}),
    "wiggles": (before(lambda x: x + 0.02 * torch.sin(400 * x)), {"black box"}),
    "tiny gradient": (backward(lambda g: g * 1e-30), {"untrue gradient"}),
    "huge gradient": (backward(lambda g: g * 1e25), {"untrue gradient"}),
    "smooth stairs": (before(stairs), {"untrue gradient"}),
    "k winners": (winners, {"untrue gradient"}),
    "watches for gradients": (Watching, {"two answers"}),
    "noise": (before(lambda x: x + 0.3 * torch.randn_like(x)), {"random"}),
    "moved and noisy": (Resized, {"random"}),
    "batch statistics": (after(in_batch), {"batch"}),
}


def blurred(x):
    return nn.functional.avg_pool2d(x, 5, 1, 2)


SEEN = (torch.arange(64).view(8, 8) % 2).float()
IN_PART = {  # true along the gradient, which leaves out a part of what is computed
    "every other column": before(lambda x: x * SEEN + (x * (1 - SEEN)).detach()),
    "the blurred image": before(lambda x: blurred(x) + (x - blurred(x)).detach()),
    "one of two branches": lambda net: Around(net, before=lambda x: 0.2 * x + 0.8 * x.detach()),
}


@pytest.fixture(autouse=True)
def only_attacks(monkeypatch):
    """What a network weighs is not asked here."""
    monkeypatch.setattr(audit, "NETWORK", {})


@pytest.mark.parametrize("name", MASKED)
def test_a_network_built_to_mask_its_gradients_is_flagged(name, net, digits):
    build, kinds = MASKED[name]
    result = AUDIT(build(net), digits)
    flags = {flag["kind"] for flag in result["flags"]}
    assert kinds & flags, result["flags"]
    assert masking.unreliable(result["flags"]) or kinds == {"random"}
    assert all(flag["found"] and flag["means"] == masking.MEANS[flag["kind"]] for flag in result["flags"])


@pytest.mark.parametrize("name", IN_PART)
def test_a_gradient_of_a_part_of_the_network_is_flagged(name, net, digits):
    result = AUDIT(IN_PART[name](net), digits)
    assert "untrue gradient" in {flag["kind"] for flag in result["flags"]}, result["flags"]


def test_where_gradients_are_lost_the_others_still_attack(net, digits):
    result = AUDIT(MASKED["NaN backwards"][0](net), digits)
    assert set(result["attacks"]) == {"clean", "random noise", "Square"}
    assert {"PGD-20", "one step"} <= result["not_measured"].keys()
    assert result["count"] <= result["attacks"]["Square"]["count"] < result["attacks"]["clean"]["count"]


def test_an_honest_network_is_not_flagged(net, digits):
    result = AUDIT(net, digits)
    assert result["flags"] == [] and result["not_measured"] == {} and result["random"] is False


def medians(x):
    around = nn.functional.pad(x, (1,) * 4, mode="reflect")
    return nn.functional.unfold(around, 3).median(1).values.view_as(x)


def inside(x):
    if x.min() < 0 or x.max() > 1:
        raise ValueError("these are no images")
    return x


HONEST = {"softmax": after(lambda z: z.softmax(1)), "log softmax": after(lambda z: z.log_softmax(1)),
          "small logits": after(lambda z: 1e-20 * z), "half precision": before(lambda x: x.half().float()),
          "float64": after(lambda z: z.double()), "bfloat16 logits": after(lambda z: z.bfloat16()),
          "many ties": before(medians), "images alone": before(inside),
          "tanh": lambda net: taught(nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)))}


@pytest.mark.parametrize("name", HONEST)
def test_other_honest_networks_are_not_flagged(name, net, digits):
    with seeded():
        result = AUDIT(HONEST[name](net).eval(), digits)
    assert result["flags"] == [] and result["not_measured"].keys() <= {"certificate"}


def test_a_random_network_whose_counts_scatter_is_no_rising_curve():
    """Half of the images are withstood by chance, whatever the radius: of 20, up to 15 once and 5 then."""
    right = np.random.default_rng(0).random((2, 2000)) < 0.5
    curve = [{"radius": r, "count": c, "total": 20} for r, c in ((0, 10), (0.1, 6), (0.2, 14), (1.0, 0))]
    made = dict(right={"PGD-20": right[0], "PGD-20 again": right[1]}, seen=None, training=[], raised={}, unmeasured={},
                classes=10, random=True)
    assert "rising curve" not in kinds(masking.Evidence(curve=curve, **made))
    fixed = made | {"right": {"PGD-20": right[0], "PGD-20 again": right[0]}, "random": False}
    assert "rising curve" in kinds(masking.Evidence(curve=curve, **fixed))


@pytest.mark.parametrize(("right", "of", "guessing"), [(1, 1, False), (3, 3, False), (0, 40, True), (40, 40, False)])
def test_few_images_say_nothing_about_guessing(right, of, guessing):
    hits = np.arange(of) < right
    evidence = masking.Evidence(right={"clean": hits}, curve=None, seen=None, random=False, training=[], raised={},
                                unmeasured={}, classes=10)
    assert ("no better than guessing" in kinds(evidence)) == guessing


def kinds(evidence) -> set[str]:
    return {flag["kind"] for flag in masking.flags_of(evidence)}
