"""Query attacks against pyautoattack, the closed form of linear networks and attacks that see gradients."""

import logging
import sys
from copy import deepcopy
from dataclasses import replace

import numpy
import pytest
import torch
from pyautoattack.square import SquareAttack
from torch import nn

from scaffolding import correct, generator, seeded, with_noise
from sparserobust import UserError
from sparserobust.attacks import PGD, CarliniWagnerL2, l2_norm, margin, per_image
from sparserobust.config import Attack
from sparserobust.models import NoisyWeights, PreActResNet
from sparserobust.models.noise import Noise
from sparserobust.query_attacks import ZOO, Square

QUICK = ZOO(iterations=8, search_steps=1, lr=0.3, parallel=16)
ATTACKS = {"square": Square(epsilon=0.3, queries=40), "square l2": Square(epsilon=1.5, queries=40, norm="l2"),
           "zoo": QUICK}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
both_norms = pytest.mark.parametrize("attack", [Square(epsilon=0.15, queries=150),
                                                Square(epsilon=1.0, queries=150, norm="l2")], ids=["linf", "l2"])


@pytest.fixture(scope="module")
def batch(digits, net):
    """60 test images that `net` gets right, and their labels."""
    right = (net(digits.test.images[:80]).argmax(1) == digits.test.labels[:80]).nonzero().flatten()[:60]
    return digits.test.images[right], digits.test.labels[right]


@pytest.fixture(scope="module")
def few(batch):
    """6 of them."""
    return batch[0][:6], batch[1][:6]


@pytest.fixture(scope="module")
def noisy(net):
    """The trained weights with noise on the activations."""
    return with_noise(net, 0.1)


def linear(classes: int, count: int = 8, shape: tuple = (1, 6, 6)):
    """A linear network, its weights (classes, pixels), and images near the middle of the box with their predictions."""
    layer = nn.Linear(torch.Size(shape).numel(), classes)
    weights = torch.randn(layer.weight.shape, generator=generator())
    images = 0.5 + 0.1 * (torch.rand(count, *shape, generator=generator()) - 0.5)
    layer.weight.data, layer.bias.data = weights, -0.5 * weights.sum(1)
    model = nn.Sequential(nn.Flatten(), layer)
    return model, weights, images, model(images).argmax(1)


def queried(model):
    """A copy of the network, and a list of the batches that it will be asked, detached."""
    model, batches = deepcopy(model), []
    model.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0].detach().clone()))
    return model, batches


# --- Square


@both_norms
def test_square_is_pyautoattacks(net, batch, attack):
    images, labels = batch
    attacked = attack(net, images, labels, generator(3))
    theirs = SquareAttack(deepcopy(net), norm={"linf": "Linf", "l2": "L2"}[attack.norm], eps=attack.epsilon,
                          n_queries=attack.queries, seed=3)
    with torch.random.fork_rng():
        reference = theirs.perturb(images, labels)
    fooled = net(attacked).argmax(1) != labels
    assert torch.equal(fooled, net(reference).argmax(1) != labels) and 10 < fooled.sum() < 55
    assert torch.equal(attacked[fooled], reference[fooled])
    assert (attacked != images).flatten(1).any(1).all()  # also where it did not fool, unlike theirs
    assert torch.equal(reference[~fooled], images[~fooled])


@both_norms
def test_square_is_between_noise_and_pgd(net, batch, attack):
    images, labels = batch
    step = PGD(epsilon=attack.epsilon, step_size=attack.epsilon / 5, steps=20, norm=attack.norm, loss="margin")
    noise = torch.randn(images.shape, generator=generator())
    noise = noise.sign() if attack.norm == "linf" else noise / per_image(l2_norm(noise), noise)
    random = (images + attack.epsilon * noise).clamp(0, 1)
    strong, middle, weak = (correct(net, x, labels) for x in (
        step(net, images, labels, generator()), attack(net, images, labels, generator()), random))
    assert strong <= middle < weak - 10


@both_norms
def test_more_queries_fool_more(net, batch, attack):
    images, labels = batch
    counts = [correct(net, replace(attack, queries=n)(net, images, labels, generator()), labels) for n in (5, 40, 150)]
    assert counts[0] > counts[1] + 2 > counts[2] + 4


def test_square_asks_as_often_as_it_may_and_in_the_ball(net, few):
    for attack in (Square(epsilon=0.01, queries=30), Square(epsilon=0.05, queries=30, norm="l2")):
        model, batches = queried(net)
        attack(model, *few, generator())
        assert len(batches) == 32  # the clean images, a first guess, and the queries
        for images in batches:
            moved = (images - few[0]).flatten(1)
            assert (moved.norm(p=2 if attack.norm == "l2" else torch.inf, dim=1) <= attack.epsilon + 1e-6).all()
        assert attack.cost == pytest.approx(len(batches) / 3, rel=0.1)


@both_norms
@pytest.mark.parametrize("label", [0, 2])
def test_a_tie_is_answered_with_one_class_and_no_other(attack, label):
    """pyautoattack takes ties for wrong answers."""
    model, _, images, _ = linear(4)
    torch.nn.init.zeros_(model[1].weight), torch.nn.init.ones_(model[1].bias)
    labels = torch.full((8,), label)
    attacked = replace(attack, queries=5)(model, images, labels, generator())
    assert (attacked != images).flatten(1).any(1).tolist() == [label == 0] * 8  # the first is answered


def test_square_takes_images_in_any_memory_format():
    model, _, images, labels = linear(3, shape=(3, 8, 8))
    for attack in (Square(epsilon=0.05, queries=20), Square(epsilon=0.5, queries=20, norm="l2")):
        expected = attack(model, images, labels, generator())
        other = images.contiguous(memory_format=torch.channels_last)
        assert torch.equal(attack(model, other, labels, generator()), expected)


# --- ZOO


@pytest.mark.parametrize("confidence", [0.0, 0.5])
def test_zoo_nears_the_radius_of_a_linear_network(confidence):
    model, weights, images, labels = linear(2, count=4)
    attack = ZOO(iterations=50, search_steps=6, lr=0.01, constant=0.05, confidence=confidence, parallel=24)
    attacked = attack(model, images, labels, generator())
    gap = margin(model(attacked), labels)
    assert (gap < -confidence).all()
    slope = (weights[0] - weights[1]).norm()
    shortest = (margin(model(images), labels) + confidence) / slope
    length = l2_norm(attacked - images)
    assert (length > shortest - 1e-6).all()
    assert length.sum() < 1.1 * shortest.sum()


def test_zoo_is_nearly_as_good_as_cw(net, few):
    images, labels = few[0][:3], few[1][:3]
    attacked = ZOO(iterations=25, search_steps=2, lr=0.1, parallel=48)(net, images, labels, generator())
    reference = CarliniWagnerL2(steps=60, search_steps=5)(net, images, labels)
    assert correct(net, attacked, labels) == correct(net, reference, labels) == 0
    shortest = l2_norm(reference - images).mean()
    assert 0.95 * shortest < l2_norm(attacked - images).mean() < 1.25 * shortest


def test_zoo_walks_along_the_faces_of_the_box():
    model, weights, images, _ = linear(2, count=3)
    images = (images > 0.5).float()  # in the corners
    labels = model(images).argmax(1)
    model, batches = queried(model)
    attack = ZOO(iterations=60, search_steps=3, lr=0.05, constant=1.0, parallel=36)
    attacked = attack(model, images, labels, generator())
    assert all(x.min() >= 0 and x.max() <= 1 for x in batches)
    free = ((weights[1 - labels] - weights[labels]) > 0).view_as(images) != (images > 0.5)  # pixels free to help
    helped = (attacked - images).abs() > 0.01
    assert correct(model, attacked, labels) == 0 and helped.any() and not helped[~free].any()
    slope = (free * (weights[0] - weights[1]).view(1, *images.shape[1:])).flatten(1).norm(dim=1)
    shortest = margin(model(images), labels) / slope
    assert (l2_norm(attacked - images) < 1.3 * shortest).all()
    coarse = replace(attack, iterations=10, search_steps=2, lr=0.3)(model, images, labels, generator())
    assert l2_norm(coarse - images).mean() < 1.16 * shortest.mean()  # what leaves the box is forgotten, not kept


def test_zoo_in_a_ball_is_zoo_where_it_is_short_enough(net, few):
    images, labels = few
    free = QUICK(net, images, labels, generator())
    length = l2_norm(free - images)
    epsilon = float(length.median())
    expected = torch.where((length <= epsilon)[:, None, None, None], free, images)
    assert torch.equal(replace(QUICK, epsilon=epsilon)(net, images, labels, generator()), expected)
    assert 0 < (length <= epsilon).sum() < 6


def test_zoo_gives_back_what_it_cannot_fool():
    model, _, images, _ = linear(3)
    model[1].weight.data.zero_()
    model[1].bias.data = torch.tensor([0.0, 1.0, 0.0])
    assert torch.equal(QUICK(model, images, torch.ones(8).long(), generator()), images)


def test_zoo_searches_the_constant():
    """From a constant a hundred times too small: one step fools few, four all."""
    model, _, images, labels = linear(2)
    attack = ZOO(iterations=30, search_steps=1, lr=0.001, constant=1e-3, parallel=36)
    assert correct(model, attack(model, images, labels, generator()), labels) >= 4
    assert correct(model, replace(attack, search_steps=4)(model, images, labels, generator()), labels) == 0


def test_zoo_asks_two_queries_a_pixel_and_as_many_pixels_as_there_are():
    for parallel, wide in ((5, 10), (100, 72)):
        model, _, images, labels = linear(3, count=1)
        model, batches = queried(model)
        attack = ZOO(iterations=20, search_steps=3, parallel=parallel)
        attack(model, images, labels, generator())
        sizes = [len(x) for x in batches]
        assert set(sizes) == {1, wide} and sizes.count(wide) == 20 * 3
        if parallel == 5:
            assert attack.cost == pytest.approx(sum(sizes) / 3, rel=0.01)


def test_zoo_keeps_the_type_of_the_images():
    model, _, images, labels = linear(3)
    attacked = QUICK(model.double(), images.double(), labels, generator())
    assert attacked.dtype == torch.float64 and (attacked != images).any()


def test_zoo_is_silent(few, net, capfd, caplog):
    log = logging.getLogger("art")
    with caplog.at_level(logging.DEBUG):
        QUICK(net, *few, generator())
    assert not caplog.records and log.propagate
    assert capfd.readouterr() == ("", "")


# --- promises of both


@every_attack
def test_no_gradient_is_taken(net, few, attack, monkeypatch):
    class Blind(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise AssertionError

    class Box(nn.Module):
        def forward(self, x):
            assert not torch.is_grad_enabled() and not x.requires_grad
            return net(Blind.apply(x))

    def forbidden(*_, **__):
        raise AssertionError

    for owner, name in ((torch.autograd, "grad"), (torch.autograd, "backward"), (torch.Tensor, "backward")):
        monkeypatch.setattr(owner, name, forbidden)
    attacked = attack(Box(), *few, generator())
    assert torch.equal(attacked, attack(net, *few, generator()))
    assert correct(net, attacked, few[1]) < 6


@every_attack
def test_result_is_in_the_ball_and_the_box(net, batch, attack):
    if attack.kind == "zoo":
        attack = replace(attack, epsilon=1.2)
    images, labels = batch[0][:20].clone(), batch[1][:20]
    attacked = attack(net, images, labels, generator())
    assert torch.equal(images, batch[0][:20])
    assert attacked.shape == images.shape and attacked.dtype == images.dtype and not attacked.requires_grad
    assert attacked.min() >= 0 and attacked.max() <= 1
    moved = (attacked - images).flatten(1)
    assert moved.any(1).sum() >= 5
    assert (moved.norm(p=2 if attack.norm == "l2" else torch.inf, dim=1) <= attack.epsilon + 1e-6).all()


@every_attack
def test_what_is_already_wrong_comes_back_unchanged(net, few, attack):
    images, labels = few[0], (few[1] + torch.arange(6) % 2) % 10  # every second label is wrong
    moved = (attack(net, images, labels, generator()) != images).flatten(1).any(1)
    assert moved.tolist() == [True, False] * 3
    assert torch.equal(attack(net, images, (few[1] + 1) % 10, generator()), images)


@every_attack
def test_chance_is_the_generators(net, noisy, few, attack):
    """The same seed gives the same result, also of a noisy network, whatever the global state; another seed another."""
    for model in (net, noisy):
        results = []
        for seed in (5, 5, 6):
            torch.rand(1), numpy.random.rand()
            results.append(attack(model, *few, generator(seed)))
        assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert torch.equal(attack(net, *few), attack(net, *few, generator(0)))


@every_attack
def test_global_chance_is_left_as_it_was(noisy, few, attack):
    def fail(*_):
        raise FloatingPointError

    def state():
        kind, keys, *rest = numpy.random.get_state()
        return torch.get_rng_state().tolist(), kind, keys.tolist(), rest

    numpy.random.randn()  # leaves half of a pair behind, which is part of the state
    before = state()
    attack(noisy, *few, generator())
    assert state() == before
    broken = deepcopy(noisy)
    broken.register_forward_hook(lambda *_: numpy.random.rand() > 0.5 and fail())
    with pytest.raises(UserError, match="FloatingPointError"):
        attack(broken, *few, generator())
    assert state() == before


@every_attack
def test_model_is_left_as_it_was(net, few, attack):
    model = deepcopy(net).train()
    model.members[0].norm.eval()
    for i, p in enumerate(model.parameters()):
        p.grad = torch.full_like(p, float(i)) if i % 2 else None
        p.requires_grad_(i % 3 > 0)

    def state():
        return ([m.training for m in model.modules()], {k: t.tolist() for k, t in model.state_dict().items()},
                [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in model.parameters()])

    before = state()
    assert torch.equal(attack(model, *few, generator()), attack(net, *few, generator()))
    assert state() == before


# --- noisy networks


@every_attack
def test_every_query_meets_fresh_noise(few, attack):
    """A network whose logits are noise of great size and nothing else: hardly two answers are alike."""
    class Dice(nn.Module):
        def __init__(self):
            super().__init__()
            self.noise, self.seen = Noise(1.0), []

        def forward(self, x):
            logits = torch.zeros(len(x), 10).index_fill(1, torch.tensor([1]), 100.0)  # always 1, so never fooled
            answer = logits + self.noise(torch.linspace(0, 1, 10).expand(len(x), 10))
            self.seen += answer.flatten().tolist()
            return answer

    model = Dice()
    attack(model, few[0], torch.ones(6).long(), generator())
    assert len(model.seen) > 1000 and len(set(model.seen)) > 0.9 * len(model.seen)


def test_noisy_networks_are_attacked(noisy, batch):
    images, labels = batch[0][:30], batch[1][:30]
    with seeded():
        assert correct(noisy, Square(epsilon=0.3, queries=60)(noisy, images, labels, generator()), labels) < 20
        attacked = QUICK(noisy, images[:6], labels[:6], generator())  # its differences are all noise
        assert torch.isfinite(attacked).all() and attacked.min() >= 0 and attacked.max() <= 1


def test_zoo_gets_one_draw_of_noise_on_weights_for_the_queries_of_an_iteration(few):
    net = NoisyWeights(model=PreActResNet(depth=8, width=2)).build((1, 8, 8), 10).eval()
    images = few[0][:1]
    with torch.no_grad():
        net.members[0].linear.bias[3] = 100.0  # always right, so that it is asked
    model, batches = queried(net)
    ZOO(iterations=2, search_steps=1, parallel=3)(model, images, torch.tensor([3]), generator())
    assert [len(x) for x in batches][:5] == [1, 6, 1, 6, 1]  # first, then twice: the differences, what they lead to


# --- settings and packages


@pytest.mark.parametrize(("plain", "expected"), [
    ({"kind": "square", "epsilon": "8/255"}, Square(epsilon=8 / 255, queries=1000, norm="linf")),
    ({"kind": "zoo", "iterations": 3}, ZOO(iterations=3, epsilon=None)),
], ids=["square", "zoo"])  # fmt: skip
def test_right_settings(plain, expected):
    assert Attack.parse(plain) == expected
    assert Attack.parse(expected.plain()) == expected


@pytest.mark.parametrize(("kind", "change", "words"), [
    ("square", {"epsilon": 8}, ["epsilon", "8/255"]),
    ("square", {"epsilon": -0.1}, ["epsilon", "negative"]),
    ("square", {"epsilon": -1, "norm": "l2"}, ["epsilon", "negative"]),
    ("square", {"queries": 0}, ["queries"]),
    ("square", {"queries": 10.5}, ["queries", "whole number"]),
    ("square", {"norm": "l1"}, ["norm", "'l1'", "linf"]),
    ("square", {"query": 3}, ["'queries'"]),
    ("zoo", {"iterations": 0}, ["iterations"]),
    ("zoo", {"search_steps": 0}, ["search_steps"]),
    ("zoo", {"parallel": 0}, ["parallel"]),
    ("zoo", {"lr": 0}, ["lr"]),
    ("zoo", {"constant": 0}, ["constant"]),
    ("zoo", {"confidence": -1}, ["confidence"]),
    ("zoo", {"epsilon": -1}, ["epsilon"]),
], ids=str)
def test_wrong_settings(refusal, kind, change, words):
    message = refusal(Attack.parse, {"kind": kind} | ({"epsilon": 0.1} if kind == "square" else {}) | change)
    assert all(word in message for word in words), message


def test_a_radius_in_l2_may_exceed_one():
    assert Square(epsilon=1.5, norm="l2").epsilon == 1.5


@pytest.mark.parametrize(("attack", "package", "modules"), [
    (Square(epsilon=0.1), "pyautoattack", ["pyautoattack", "pyautoattack.square"]),
    (QUICK, "adversarial-robustness-toolbox", ["art", "art.attacks.evasion"]),
], ids=["square", "zoo"])
def test_a_missing_package_is_named(few, net, refusal, monkeypatch, attack, package, modules):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    message = refusal(attack, net, *few)
    assert package in message and "sparserobust[lab]" in message
