"""Networks that were built to look robust, each of which an audit has to flag; and honest ones, which it must not."""

import math

import pytest
import torch
from torch import nn

from sparserobust.analysis import audit, masking
from sparserobust.analysis.audit import Audit

AUDIT = Audit(epsilon=0.1, images=80, few=40, queries=150, autoattack=False)


class Around(nn.Module):
    """The network `net`, whose images or logits are changed."""

    def __init__(self, net: nn.Module, before=lambda x: x, after=lambda logits: logits):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))


class Backward(torch.autograd.Function):
    """The identity, with another gradient."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.change(gradient), None


class Resized(nn.Module):
    """Images moved by up to two pixels, at random, all alike; answers with some of the mean of many draws."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        down, right = torch.randint(-1, 2, (2,)).tolist()
        return self.net(torch.roll(x, (down, right), (2, 3)) + 0.3 * torch.randn_like(x))


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
    "noise": (before(lambda x: x + 0.3 * torch.randn_like(x)), {"random"}),
    "moved and noisy": (Resized, {"random"}),
    "batch statistics": (after(in_batch), {"batch"}),
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


def test_where_gradients_are_lost_the_others_still_attack(net, digits):
    result = AUDIT(MASKED["NaN backwards"][0](net), digits)
    assert set(result["attacks"]) == {"clean", "random noise", "Square"}
    assert {"PGD-20", "one step"} <= result["not_measured"].keys()
    assert result["count"] <= result["attacks"]["Square"]["count"] < result["attacks"]["clean"]["count"]


def test_an_honest_network_is_not_flagged(net, digits):
    result = AUDIT(net, digits)
    assert result["flags"] == [] and result["not_measured"] == {} and result["random"] is False
