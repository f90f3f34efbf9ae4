"""Auto-PGD against pyautoattack's with the same loss, its losses against probabilities, targets one class at a time,
and the closed forms of linear networks."""

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyautoattack.autopgd_base import APGDAttack
from torch import nn

from scaffolding import Around, Backward, correct, generator, seeded, with_noise
from sparserobust.answers import ASKED, NotFinite, flagged
from sparserobust.apgd import APGD, LOSSES, Thrifty, nearest_classes, probability_margin
from sparserobust.attacks import PGD, AutoAttack, into_ball, l2_norm, random_in_ball, runner_up
from sparserobust.config import Attack

both_norms = pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
every_loss = pytest.mark.parametrize("loss", LOSSES)


@pytest.fixture(scope="module")
def batch(digits, net):
    """150 test images that `net` gets right, and their labels."""
    test = digits.test
    right = (net(test.images).argmax(1) == test.labels).nonzero().flatten()[:150]
    return test.images[right], test.labels[right]


@pytest.fixture
def proof(net):
    """What it answers hardly depends on the images, and is always class 3."""
    return Watched(net, after=lambda z: 0.01 * z + 10 * nn.functional.one_hot(torch.tensor([3]), 10))


class Watched(Around):
    """`asked` are the images of each pass, and whether for a gradient."""

    def __init__(self, net, before=lambda x: x, after=lambda logits: logits):
        super().__init__(net, before, after)
        self.asked: list[tuple[torch.Tensor, bool]] = []

    def forward(self, x):
        self.asked.append((x.detach().clone(), x.requires_grad))
        return super().forward(x)

    @property
    def gradients(self) -> list[torch.Tensor]:
        return [x for x, by_gradient in self.asked if by_gradient]


def linear(classes: int, count: int = 60, size: int = 6):
    """A linear network, its weights (classes, pixels), and images near the middle of the box with their predictions."""
    layer = nn.Linear(size * size, classes)
    weights = torch.randn(classes, size * size, generator=generator())
    images = 0.5 + 0.1 * (torch.rand(count, 1, size, size, generator=generator()) - 0.5)
    layer.weight.data, layer.bias.data = weights, -0.5 * weights.sum(1)
    model = nn.Sequential(nn.Flatten(), layer)
    return model, weights, images, model(images).argmax(1)


def exact_distances(model, weights, images, labels, dual: int):
    """Distance (n, classes) of each image to the boundary with each other class of a linear network; infinite for its
    own. `dual` is dual to the norm of the distance."""
    logits = model(images).detach()
    gaps = logits.gather(1, labels[:, None]) - logits
    slopes = torch.linalg.vector_norm(weights[labels][:, None] - weights, dual, dim=2)
    return (gaps / slopes).scatter(1, labels[:, None], torch.inf)


# --- losses


def odds_of_probabilities(logits, labels, rivals):
    """By softmax in float64."""
    p = logits.double().softmax(1)
    m = (p.gather(1, rivals[:, None]) - p.gather(1, labels[:, None])).squeeze(1)
    return m, ((1 + m) / (1 - m)).log()


@given(st.floats(0, 8), st.integers(2, 6), st.integers(0, 99))
def test_the_margin_of_probabilities_is_as_high_and_as_steep_as_by_softmax(scale, classes, seed):
    logits = (scale * torch.randn(5, classes, generator=generator(seed))).double().requires_grad_(True)
    labels = torch.arange(5) % classes
    rivals = runner_up(logits, labels)
    m, odds = odds_of_probabilities(logits, labels, rivals)
    found = probability_margin(logits, labels, rivals)
    torch.testing.assert_close(found, odds, rtol=1e-6, atol=1e-9)
    ours, theirs = (torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (found, m))
    rises = 2 / (1 - m.detach() ** 2)  # the slope of log((1 + m) / (1 - m)) in m
    torch.testing.assert_close(ours, theirs * rises[:, None], rtol=1e-5, atol=1e-9)


@given(st.floats(1.5, 4), st.integers(0, 99))
def test_a_sure_network_has_a_loss_and_a_slope_in_float32(exponent, seed):
    """In closed form: of q, the softmax of the wrong classes. By probabilities there is neither."""
    logits = torch.randn(4, 5, generator=generator(seed))
    labels = logits.argmax(1)
    logits = logits.scatter_add(1, labels[:, None], torch.full((4, 1), 10.0 ** exponent)).requires_grad_(True)
    rivals = runner_up(logits, labels)
    found = probability_margin(logits, labels, rivals)
    (slope,) = torch.autograd.grad(found.sum(), logits)
    q = logits.detach().scatter(1, labels[:, None], -torch.inf).softmax(1)
    first = q.gather(1, rivals[:, None])
    expected = (q.scatter(1, rivals[:, None], 2 * first) / (1 + first)).scatter(1, labels[:, None], -1.0)
    torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-5)
    assert found.isfinite().all() and (found < -20).all()


@every_loss
def test_slopes_of_the_losses_against_finite_differences(loss):
    logits = torch.randn(6, 5, generator=generator(), dtype=torch.float64, requires_grad=True)
    labels = torch.arange(6) % 5
    rivals = runner_up(logits, labels)
    assert torch.autograd.gradcheck(lambda z: LOSSES[loss](z, labels, rivals), logits)


# --- APGD


@every_loss
@both_norms
def test_apgd_is_pyautoattacks_with_the_same_loss_and_start(net, batch, norm, dual, loss):
    images, labels = batch
    attack = APGD(epsilon={"linf": 0.1, "l2": 0.6}[norm], norm=norm, steps=50, loss=loss)
    begun = into_ball(images + random_in_ball(images, attack.epsilon, norm, generator()), images, attack.epsilon, norm)
    theirs = APGDAttack(deepcopy(net).requires_grad_(False), n_iter=50, norm={"linf": "Linf", "l2": "L2"}[norm],
                        eps=attack.epsilon, loss="dlr", device=images.device)
    # raised above zero, as pyautoattack compares the first loss to 0, not to that at the start
    raised = 0 if loss == "cross_entropy" else 20
    theirs.dlr_loss = lambda logits, labels: LOSSES[loss](logits, labels, runner_up(logits, labels)) + raised
    theirs.init_hyperparam(images)
    reference, right, _, _ = theirs.attack_single_run(images, labels, x_init=begun)
    attacked = attack(net, images, labels, generator())
    fooled = net(attacked).argmax(1) != labels
    assert (fooled == right.bool()).sum() <= 1 and 20 < fooled.sum() < 130
    same = (attacked - reference).flatten(1).abs().amax(1) < 1e-4  # a rounded loss may make a step that is another
    left = ~fooled & right.bool()
    assert same[left].double().mean() > 0.9


@every_loss
@both_norms
def test_apgd_finds_the_exact_accuracy_of_a_linear_network(norm, dual, loss):
    model, weights, images, labels = linear(10)
    radii = exact_distances(model, weights, images, labels, dual).amin(1).sort().values
    attack = APGD(epsilon=float(radii[19] + radii[20]) / 2, norm=norm, loss=loss, steps=40)
    found = correct(model, attack(model, images, labels, generator()), labels)
    assert found == 40 if loss == "margin" else 40 <= found <= 45  # the others go by all classes


def test_step_sizes_are_looked_at_when_the_paper_says():
    """Croce & Hein 2020, section 3.2."""
    marks = [0, 22]
    while marks[-1] < 100:
        marks.append(marks[-1] + max(marks[-1] - marks[-2] - 3, 6))
    found = APGD(epsilon=0.1, steps=100)._checks()
    assert list(found) == [mark for mark in marks[1:] if mark <= 100]
    assert list(found.values()) == [b - a for a, b in pairwise(marks) if b <= 100]


@given(st.sampled_from(["linf", "l2"]), st.floats(0, 1), st.integers(1, 12), st.integers(1, 2),
       st.sampled_from([*LOSSES]), st.booleans(), st.integers(0, 9))
def test_results_stay_in_the_ball_and_the_box(norm, epsilon, steps, restarts, loss, thrifty, seed):
    attack: Attack = APGD(norm=norm, epsilon=epsilon, steps=steps, restarts=restarts, loss=loss)
    if thrifty:
        attack = Thrifty(norm=norm, epsilon=epsilon, steps=steps, targets=restarts, queries=4)
    model, _, images, labels = linear(4, count=6)
    images = ((images - 0.5) * 15 + 0.5).clamp(0, 1)  # many on the faces of the box
    attacked = attack(model, images, (labels + (seed > 7)) % 4, generator(seed))
    assert attacked.min() >= 0 and attacked.max() <= 1
    length = (attacked - images).flatten(1).norm(p=2 if norm == "l2" else torch.inf, dim=1)
    assert (length <= epsilon + 1e-6).all()


def test_what_is_fooled_leaves_and_what_is_not_comes_back_at_its_highest_loss(net, batch):
    images, labels = batch[0][:40], (batch[1][:40] + (torch.arange(40) < 4)) % 10  # four are wrong from the start
    model = Watched(deepcopy(net))
    attacked = APGD(epsilon=0.1, steps=30)(model, images, labels, generator())
    assert torch.equal(attacked[:4], images[:4])
    sizes = [len(x) for x in model.gradients]
    fooled = net(attacked).argmax(1) != labels
    assert sizes[0] == 36 and sizes == sorted(sizes, reverse=True) and len(sizes) == 31
    assert sizes[-1] in (40 - int(fooled.sum()), 41 - int(fooled.sum()))
    for i in (~fooled).nonzero().flatten().tolist():
        near = torch.cat([x[(x - images[i]).flatten(1).abs().amax(1) < 0.1 + 1e-6] for x in model.gradients])
        same = labels[i].expand(len(near))
        losses, top = (probability_margin(z, same[:len(z)], runner_up(z, same[:len(z)]))
                       for z in (net(near), net(attacked[i : i + 1])))
        assert len(near) >= 31 and torch.allclose(losses.max(), top, atol=1e-5)


def test_of_a_random_network_no_image_leaves_and_the_highest_loss_is_kept(net, batch):
    images, labels = batch[0][:40], batch[1][:40]
    noisy = Watched(with_noise(net, 0.3))
    attack = APGD(epsilon=0.1, steps=20, eot_draws=3)
    attacked = attack(noisy, images, labels, generator())
    assert {len(x) for x in noisy.gradients} == {40} and len(noisy.gradients) == 3 * 21
    weak = replace(attack, eot_draws=1, steps=1)(noisy, images, labels, generator())
    counts = [sum(correct(noisy, x, labels) for _ in range(20)) for x in (attacked, weak)]
    assert counts[0] < counts[1] - 10, "of 800; by 52 in the mean over seeds, standard deviation 15"


def test_restarts_keep_what_fools_and_else_the_highest_loss(net, batch):
    images, labels = batch
    attack = APGD(epsilon=0.15, steps=2)
    once, often = (replace(attack, restarts=n)(net, images, labels, generator()) for n in (1, 5))
    fooled, more = (net(attacked).argmax(1) != labels for attacked in (once, often))
    assert torch.equal(once[fooled], often[fooled]) and fooled.sum() < more.sum()
    with torch.no_grad():
        first, best = (probability_margin(z, labels, runner_up(z, labels)) for z in (net(once), net(often)))
    assert (best >= first - 1e-6)[~more].all() and (best > first)[~more].any()


def test_a_network_whose_logits_are_sharp_is_fooled_as_if_they_were_not(net, batch):
    images, labels = batch
    sharp = Watched(net, after=lambda z: 1e4 * z)
    blunt, found, by_cross_entropy = (
        correct(net, attack(model, images, labels, generator()), labels) for attack, model in (
            (APGD(epsilon=0.1, loss="margin"), net), (APGD(epsilon=0.1), sharp),
            (PGD(epsilon=0.1, step_size=0.02, steps=20), sharp)))
    assert abs(found - blunt) <= 2 and by_cross_entropy > blunt + 10


def test_where_there_is_no_gradient_steps_are_random(proof, batch):
    flat, images = Watched(proof, before=lambda x: 0 * x), batch[0][:20]
    APGD(epsilon=0.1, steps=3)(flat, images, torch.full((20,), 3), generator())
    first, second, *_ = flat.gradients
    steps = (second - first)[(images > 0.3) & (images < 0.7)]
    up, down = images + 0.1, images - 0.1
    assert (torch.minimum((second - up.clamp(0, 1)).abs(), (second - down.clamp(0, 1)).abs()) < 1e-6).all()
    assert 0.4 < (steps > 0).double().mean() < 0.6 and len(steps) > 100


# --- targets


@both_norms
@pytest.mark.parametrize("candidates", [3, 9, 20])
def test_targets_are_ordered_as_one_class_at_a_time(net, batch, norm, dual, candidates):
    images, labels = batch[0][:12], batch[1][:12]
    found = nearest_classes(net, images, labels, candidates, norm)
    assert found.shape == (12, min(candidates, 9))
    for image, label, order in zip(images, labels, found, strict=True):
        logits, distances = net(image[None])[0].detach(), {}
        for k in logits.scatter(0, label, -torch.inf).argsort(descending=True)[:candidates].tolist():
            if k == label:
                continue
            x = image[None].clone().requires_grad_(True)
            z = net(x)[0]
            (z[label] - z[k]).backward()
            distances[k] = float((logits[label] - logits[k]) / torch.linalg.vector_norm(x.grad, dual))
        assert order.tolist() == sorted(distances, key=distances.__getitem__)
    assert not torch.equal(found[:, 0], runner_up(net(images), labels)) or candidates == 3


@both_norms
def test_the_first_target_is_the_nearest_class_of_a_linear_network(norm, dual):
    model, weights, images, labels = linear(10)
    distances = exact_distances(model, weights * torch.ones(10, 1), images, labels, dual)
    found = nearest_classes(model, images, labels, 9, norm)
    assert torch.equal(found[:, 0], distances.argmin(1))
    assert torch.equal(found, distances.argsort(1)[:, :9])
    assert (found[:, 0] != runner_up(model(images), labels)).any()


def test_a_class_that_no_pixel_moves_is_the_last_target():
    model, _, images, _ = linear(4, count=5)
    model[1].weight.data[[0, 2]] = 0
    model[1].bias.data = torch.tensor([5.0, 0.0, 4.9, 0.0])
    assert nearest_classes(model, images, torch.zeros(5, dtype=torch.long), 3, "linf")[:, -1].tolist() == [2] * 5


@both_norms
def test_towards_a_target_the_margin_falls_by_the_radius_times_the_dual_norm(norm, dual):
    model, weights, images, labels = linear(5, count=20)
    targets, radius = (labels + 1) % 5, {"linf": 0.002, "l2": 0.01}[norm]
    attack = APGD(epsilon=radius, norm=norm, loss="margin", steps=20)
    attacked = attack.towards(targets, model, images, labels, generator())
    stayed = model(attacked).argmax(1) == labels
    rows = torch.arange(20)
    drop = (model(images) - model(attacked))[rows, labels] - (model(images) - model(attacked))[rows, targets]
    expected = radius * torch.linalg.vector_norm(weights[labels] - weights[targets], dual, dim=1)
    assert torch.allclose(drop[stayed], expected[stayed], rtol=1e-3) and stayed.sum() > 10


# --- Thrifty


def test_thrifty_comes_within_an_image_of_autoattack(net, batch, quick_suite):
    images, labels = batch[0][:40], batch[1][:40]
    found, reference = (correct(net, attack(net, images, labels, generator()), labels) for attack in (
        Thrifty(epsilon=0.1, queries=100), AutoAttack(epsilon=0.1)))
    assert abs(found - reference) <= 1 and 20 < found < 38


@both_norms
def test_thrifty_finds_the_exact_accuracy_of_a_linear_network(norm, dual):
    model, weights, images, labels = linear(10)
    radii = exact_distances(model, weights, images, labels, dual).amin(1).sort().values
    attack = Thrifty(epsilon=float(radii[19] + radii[20]) / 2, norm=norm, steps=40, queries=5)
    assert correct(model, attack(model, images, labels, generator()), labels) == 40


def test_each_part_tries_what_withstands_those_before(net, proof, batch):
    images, labels = batch[0][:10], torch.full((10,), 3)
    asks = sum(times for times, _ in ASKED)  # whether it answers the same
    attack = Thrifty(epsilon=0.05, steps=6, targets=2, candidates=5, queries=8)
    for parts, gradients, queries in ((attack, 3 * 7 + 1, 10), (replace(attack, targets=0), 7, 10),
                                      (replace(attack, queries=0), 3 * 7 + 1, 0)):  # the order of targets is one pass
        proof.asked.clear()
        parts(proof, images, labels, generator())
        assert [len(x) for x in proof.gradients] == [10] * gradients
        assert queries <= len(proof.asked) - gradients <= queries + 5 * asks
    once = APGD(epsilon=0.1, steps=6)(net, images, batch[1][:10], generator())
    model = Watched(net)
    replace(attack, epsilon=0.1, queries=0)(model, images, batch[1][:10], generator())
    left = correct(net, once, batch[1][:10])
    assert 0 < left < 10 and {len(x) for x in model.gradients[7:]} == {left}


@pytest.mark.parametrize("change", [lambda g: -g, lambda g: g[:, :, torch.randperm(8)]], ids=["reversed", "shuffled"])
def test_square_finds_what_gradients_that_mislead_do_not(net, batch, change):
    images, labels = batch[0][:60], batch[1][:60]
    model = Watched(net, before=lambda x: Backward.apply(x, change))
    attack = Thrifty(epsilon=0.1, steps=10, queries=0)
    with seeded():
        without, found = (correct(net, replace(attack, queries=n)(model, images, labels, generator()), labels)
                          for n in (0, 400))
    assert found < without - 3


def test_thrifty_goes_on_without_gradients_that_are_none_and_says_so(net, batch):
    images, labels = batch[0][:30], batch[1][:30]
    lost = Watched(net, before=lambda x: Backward.apply(x, lambda g: g * torch.nan))
    with flagged() as flags:
        attacked = Thrifty(epsilon=0.2, queries=60)(lost, images, labels, generator())
    assert correct(net, attacked, labels) < 25 and any("Square alone" in flag for flag in flags)
    with pytest.raises(NotFinite):
        APGD(epsilon=0.15)(lost, images, labels, generator())


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_thrifty_says_what_it_leaves_out(classes, norm):
    model, _, images, labels = linear(classes, count=5)
    for shape, square in (((6, 6), True), ((4, 9), norm == "linf")):
        with flagged() as flags:
            Thrifty(epsilon=1e-4, norm=norm, steps=2, queries=2)(model, images.reshape(5, 1, *shape), labels)
        assert any("without targets" in flag for flag in flags) == (classes == 2)
        assert any("without Square" in flag for flag in flags) == (not square)


def test_a_random_network_keeps_the_first_part_where_no_other_fools(net, batch):
    images, labels = batch[0][:20], batch[1][:20]
    attack = Thrifty(epsilon=0.02, steps=5, queries=10, eot_draws=4)
    attacked = attack(with_noise(net, 0.05), images, labels, generator())
    assert (l2_norm(attacked - images) > 0).all() and attacked.isfinite().all()


def test_a_random_network_is_not_sent_towards_the_label(net, batch, monkeypatch):
    """Also where it answered wrongly when asked before."""
    aimed, towards = [], APGD.towards

    def watched(self, targets, model, images, labels, generator):
        aimed.append((targets, labels))
        return towards(self, targets, model, images, labels, generator)

    monkeypatch.setattr(APGD, "towards", watched)
    Thrifty(epsilon=0.02, steps=2, queries=0)(with_noise(net, 1.0), batch[0][:60], batch[1][:60], generator())
    (first, _), *others = aimed
    assert first is None and len({len(labels) for _, labels in others}) > 1  # the noise decides who is left
    assert not any((targets == labels).any() for targets, labels in others)


# --- settings


@pytest.mark.parametrize(("kind", "change", "word"), [
    ("apgd", {"epsilon": 8}, "8/255"), ("apgd", {"epsilon": -1}, "negative"), ("apgd", {"norm": "l1"}, "'l1'"),
    ("apgd", {"steps": 0}, "steps"), ("apgd", {"restarts": 0}, "restarts"), ("apgd", {"eot_draws": 0}, "eot_draws"),
    ("apgd", {"loss": "dlr"}, "'dlr'"), ("thrifty", {"epsilon": 8}, "8/255"), ("thrifty", {"norm": "l1"}, "'l1'"),
    ("thrifty", {"steps": 0}, "steps"), ("thrifty", {"targets": 10}, "candidates"),
    ("thrifty", {"targets": -1}, "targets"), ("thrifty", {"queries": -1}, "queries"),
    ("thrifty", {"eot_draws": 0}, "eot_draws"),
], ids=str)
def test_wrong_settings(refusal, kind, change, word):
    assert Attack.parse({"kind": kind, "epsilon": "8/255"}).epsilon == 8 / 255
    assert word in refusal(Attack.parse, {"kind": kind, "epsilon": 0.1} | change)
