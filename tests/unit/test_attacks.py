"""Attacks against foolbox and pyautoattack, against the closed forms of linear networks, and held to their promises."""

import logging
from copy import deepcopy
from dataclasses import replace

import eagerpy
import foolbox
import pyautoattack
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import nn
from torch.nn.functional import cross_entropy

from scaffolding import batch_sizes, correct, generator, seeded, with_noise
from sparserobust import UserError, apgd
from sparserobust.answers import flagged
from sparserobust.apgd import APGD, Thrifty
from sparserobust.attacks import (
    FGSM,
    PGD,
    AutoAttack,
    CarliniWagnerL2,
    CarliniWagnerReleased,
    DeepFool,
    RandomisedFGSM,
    l2_norm,
    margin,
    mean_logits,
)
from sparserobust.config import Attack
from sparserobust.models.noise import Noise
from sparserobust.query_attacks import ZOO, RandomNoise, Square

ATTACKS = {
    "fgsm": FGSM(epsilon=0.1),
    "rfgsm": RandomisedFGSM(epsilon=0.1),
    "pgd": PGD(epsilon=0.1, step_size=0.06, steps=3, restarts=2),
    "pgd l2": PGD(epsilon=0.5, step_size=0.3, steps=3, norm="l2", loss="margin"),
    "apgd": APGD(epsilon=0.1, steps=5),
    "apgd l2": APGD(epsilon=0.5, norm="l2", steps=3, restarts=2, loss="cross_entropy"),
    "thrifty": Thrifty(epsilon=0.1, steps=5, queries=10),
    "thrifty l2": Thrifty(epsilon=0.5, norm="l2", steps=3, queries=10),
    "cw": CarliniWagnerL2(steps=8, search_steps=2, lr=0.2, constant=1.0),
    "cw in a ball": CarliniWagnerL2(steps=8, search_steps=2, lr=0.2, constant=1.0, epsilon=1.0),
    "cw released": CarliniWagnerReleased(steps=5, lr=0.02),
    "deepfool": DeepFool(steps=4),
    "autoattack": AutoAttack(epsilon=0.4),  # so large that the first of its attacks fools every image
    "autoattack l2": AutoAttack(epsilon=4.0, norm="l2"),
    "square": Square(epsilon=0.2, queries=20),
    "square l2": Square(epsilon=1.0, queries=20, norm="l2"),
    "noise": RandomNoise(epsilon=0.2, draws=3),
    "noise l2": RandomNoise(epsilon=1.0, draws=3, norm="l2"),
    "zoo": ZOO(iterations=8, search_steps=1, lr=0.2, parallel=32),
    "zoo in a ball": ZOO(iterations=8, search_steps=1, lr=0.2, parallel=32, epsilon=1.5),
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
averaging = pytest.mark.parametrize("attack", [a for a in ATTACKS.values() if hasattr(a, "eot_draws")],
                                    ids=[name for name, a in ATTACKS.items() if hasattr(a, "eot_draws")])


@pytest.fixture(scope="module")
def batch(digits, net):
    """200 test images, and their labels."""
    return digits.test.images[:200], digits.test.labels[:200]


@pytest.fixture(scope="module")
def few(batch):
    """8 of them."""
    return batch[0][:8], batch[1][:8]


@pytest.fixture(scope="module")
def noisy(net):
    return with_noise(net, 0.1, members=2)


def linear(classes: int, count: int = 60, size: int = 6, seed: int = 0):
    """A linear network, its weights (classes, pixels), and images near the middle of the box with their predictions."""
    chance = generator(seed)
    layer = nn.Linear(size * size, classes)
    weights = torch.randn(classes, size * size, generator=chance)
    images = 0.5 + 0.1 * (torch.rand(count, 1, size, size, generator=chance) - 0.5)
    layer.weight.data, layer.bias.data = weights, -0.5 * weights.sum(1)
    model = nn.Sequential(nn.Flatten(), layer)
    return model, weights, images, model(images).argmax(1)


def exact_radii(model, weights, images, labels, dual: float):
    """Distance of each image to the decision boundary of a linear network, in the norm to which `dual` is dual."""
    logits = model(images).detach()
    gaps = logits.gather(1, labels[:, None]) - logits
    slopes = torch.linalg.vector_norm(weights[labels][:, None] - weights, dual, dim=2)
    return (gaps / slopes).scatter(1, labels[:, None], torch.inf).amin(1)


def test_every_attack_is_tried():
    assert {attack.kind for attack in ATTACKS.values()} == set(Attack.family)


# --- foolbox


class _Margin:
    """foolbox's gradient descent on the margin in place of the cross entropy."""

    def get_loss_fn(self, model, labels):
        def loss(x):
            logits = model(x)
            others = (logits - eagerpy.onehot_like(logits, labels, value=eagerpy.inf)).max(axis=-1)
            return (others - logits[range(len(logits)), labels]).sum()

        return loss


class LinfMargin(_Margin, foolbox.attacks.LinfPGD):
    pass


class L2Margin(_Margin, foolbox.attacks.L2PGD):
    pass


def foolboxed(attack, model, images, labels, **more):
    other = foolbox.PyTorchModel(deepcopy(model), bounds=(0, 1))
    return attack.run(other, images.contiguous(), foolbox.criteria.Misclassification(labels), **more)


LINF = PGD(epsilon=0.15, step_size=0.04, steps=7, random_start=False)
L2 = PGD(epsilon=0.6, step_size=0.15, steps=7, norm="l2", random_start=False)


@pytest.mark.parametrize(("ours", "theirs"), [
    (FGSM(epsilon=0.15), foolbox.attacks.LinfFastGradientAttack(random_start=False)),
    (LINF, foolbox.attacks.LinfPGD(abs_stepsize=0.04, steps=7, random_start=False)),
    (L2, foolbox.attacks.L2PGD(abs_stepsize=0.15, steps=7, random_start=False)),
    (replace(LINF, loss="margin"), LinfMargin(abs_stepsize=0.04, steps=7, random_start=False)),
    (replace(L2, loss="margin"), L2Margin(abs_stepsize=0.15, steps=7, random_start=False)),
], ids=["fgsm", "linf", "l2", "linf margin", "l2 margin"])  # fmt: skip
def test_gradient_attacks_are_foolboxs(net, batch, ours, theirs):
    images, labels = batch
    attacked, reference = ours(net, images, labels), foolboxed(theirs, net, images, labels, epsilon=ours.epsilon)
    differing = (attacked - reference).flatten(1).abs().amax(1) > 1e-5  # a gradient near zero may change its sign
    assert differing.sum() <= 4
    assert abs(correct(net, attacked, labels) - correct(net, reference, labels)) <= 1
    assert 10 < correct(net, attacked, labels) < 190 < correct(net, images, labels)


@pytest.mark.parametrize(("ours", "theirs"), [
    (replace(LINF, random_start=True), foolbox.attacks.LinfPGD(abs_stepsize=0.04, steps=7)),
    (replace(L2, random_start=True), foolbox.attacks.L2PGD(abs_stepsize=0.15, steps=7)),
], ids=["linf", "l2"])
def test_random_starts_give_foolboxs_accuracy(net, batch, ours, theirs):
    images, labels = batch
    with seeded():
        reference = correct(net, foolboxed(theirs, net, images, labels, epsilon=ours.epsilon), labels)
    assert abs(correct(net, ours(net, images, labels, generator()), labels) - reference) <= 8  # of 200


@pytest.mark.parametrize(("ours", "theirs"), [
    (DeepFool(), foolbox.attacks.L2DeepFoolAttack()),
    (DeepFool(steps=2, candidates=3, overshoot=0.1),
     foolbox.attacks.L2DeepFoolAttack(steps=2, candidates=3, overshoot=0.1)),
    (CarliniWagnerL2(steps=30, search_steps=4), foolbox.attacks.L2CarliniWagnerAttack(
        steps=30, binary_search_steps=4, stepsize=0.05, initial_const=0.1, abort_early=False)),
    (CarliniWagnerL2(steps=20, search_steps=3, constant=1.0, confidence=2.0), foolbox.attacks.L2CarliniWagnerAttack(
        steps=20, binary_search_steps=3, stepsize=0.05, initial_const=1.0, confidence=2.0, abort_early=False)),
], ids=["deepfool", "short deepfool", "cw", "confident cw"])  # fmt: skip
def test_smallest_perturbations_are_as_long_as_foolboxs(net, batch, ours, theirs):
    images, labels = batch[0][:60], batch[1][:60]
    attacked, reference = ours(net, images, labels), foolboxed(theirs, net, images, labels)
    fooled, expected = net(attacked).argmax(1) != labels, net(reference).argmax(1) != labels
    expected &= reference.flatten(1).any(1)  # black images are those that foolbox could not fool
    assert (fooled != expected).sum() <= 1
    both = fooled & expected & (net(images).argmax(1) == labels)
    assert both.sum() > 30
    length, expected = l2_norm(attacked - images)[both].mean(), l2_norm(reference - images)[both].mean()
    assert length.item() == pytest.approx(expected.item(), rel=0.005)


# --- AutoAttack


def test_autoattack_is_pyautoattack(net, batch, quick_suite):
    images, labels = batch[0][:12], batch[1][:12]
    attack = AutoAttack(epsilon=0.15)
    with flagged() as flags:
        attacked = attack(net, images, labels, generator(3))
    suite = pyautoattack.AutoAttack(deepcopy(net).requires_grad_(False), norm="Linf", eps=0.15, seed=3)
    with torch.random.fork_rng():
        reference, _ = suite.run_standard_evaluation(images, labels, batch_size=len(images))
    assert torch.allclose(attacked, reference, atol=1e-6)
    count = correct(net, attacked, labels)
    assert 0 < count <= correct(net, PGD(epsilon=0.15, step_size=0.03, steps=20)(net, images, labels, generator()),
                                labels) + 1
    assert torch.equal(replace(attack, version="standard")(net, images, labels, generator(3)), attacked)
    assert not any("randomized" in flag for flag in flags)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_autoattack_finds_the_exact_accuracy_of_a_linear_network(norm, dual, quick_suite):
    model, weights, images, labels = linear(10, count=20)
    radii = exact_radii(model, weights, images, labels, dual).sort().values
    attacked = AutoAttack(epsilon=float(radii[9] + radii[10]) / 2, norm=norm)(model, images, labels)
    assert correct(model, attacked, labels) == 10


@pytest.mark.parametrize(("version", "is_warned"), [("standard", True), ("rand", False), ("matched", False)])
def test_autoattack_warns_of_noise_where_its_version_does_not_fit(version, is_warned, quick_suite):
    model, _, images, labels = linear(10, count=20)
    with flagged() as flags:
        AutoAttack(epsilon=0.5, version=version)(nn.Sequential(Noise(0.1), *model), images, labels)
    assert any("randomized" in flag for flag in flags) == is_warned


def test_a_warning_that_is_given_again_and_again_is_one_flag(quick_suite):
    model, _, images, labels = linear(10, count=5)
    model.register_forward_pre_hook(lambda *_: logging.getLogger("auto-attack").warning("odd"))
    with flagged() as flags:
        AutoAttack(epsilon=0.5)(model, images, labels)
    assert flags.count("odd") == 1


def test_autoattack_leaves_the_log_as_it_was(few):
    log = logging.getLogger("auto-attack")
    before = list(log.handlers), log.propagate
    with pytest.raises(UserError, match=r"takes no float32 images .*mat1 and mat2"):
        AutoAttack(epsilon=0.1)(nn.Linear(1, 1), *few)
    assert (log.handlers, log.propagate) == before


# --- closed forms


@pytest.mark.parametrize(("attack", "distance"), [
    (FGSM(epsilon=0.05), 0.05),
    (replace(LINF, epsilon=0.05, step_size=0.01, steps=3), 0.03),
    (replace(LINF, epsilon=0.05, step_size=0.02, steps=3), 0.05),
    (replace(LINF, epsilon=0.05, step_size=0.02, steps=8, random_start=True, loss="margin"), 0.05),
    (replace(L2, epsilon=0.05, step_size=0.01, steps=3, loss="margin"), 0.03),
    (replace(L2, epsilon=0.05, step_size=0.02, steps=3), 0.05),
    (replace(L2, epsilon=0.05, step_size=0.05, steps=20, random_start=True), 0.05),
], ids=str)  # fmt: skip
def test_steepest_descent_of_a_linear_margin(attack, distance):
    """In a ball, the margin of two linear classes falls by the radius times the dual norm of the weights, not more."""
    model, weights, images, labels = linear(2)
    slope = (weights[0] - weights[1]).norm(p=1 if getattr(attack, "norm", "linf") == "linf" else 2)
    drop = margin(model(images), labels) - margin(model(attack(model, images, labels, generator())), labels)
    assert torch.allclose(drop, distance * slope.expand_as(drop), rtol=1e-3)


def test_deepfool_needs_one_step_on_a_linear_network():
    model, weights, images, labels = linear(10)
    attacked = DeepFool(steps=1, overshoot=0.02)(model, images, labels)
    assert correct(model, attacked, labels) == 0
    radii = exact_radii(model, weights, images, labels, 2)
    assert torch.allclose(l2_norm(attacked - images), 1.02 * (radii + 1e-4), rtol=1e-3)


@pytest.mark.parametrize("confidence", [0.0, 0.3])
def test_cw_nears_the_radius_of_a_linear_network(confidence):
    model, weights, images, labels = linear(2)
    attack = CarliniWagnerL2(steps=150, search_steps=8, lr=0.005, constant=0.01, confidence=confidence)
    attacked = attack(model, images, labels)
    assert (margin(model(attacked), labels) < -confidence).all()
    shortest = exact_radii(model, weights, images, labels, 2) + confidence / (weights[0] - weights[1]).norm()
    length = l2_norm(attacked - images)
    assert (length > shortest - 1e-6).all()
    assert length.sum() < 1.05 * shortest.sum()


def test_randomised_fgsm_is_a_random_sign_step_and_the_rest_along_the_gradient():
    model, weights, images, labels = linear(2)
    attack = RandomisedFGSM(epsilon=0.08, start=0.25)
    along = 2.0 * labels[:, None] - 1
    uphill = (along * (weights[0] - weights[1])).sign().view_as(images)
    signs = (attack(model, images, labels, generator()) - images - 0.06 * uphill) / 0.02
    assert torch.allclose(signs.abs(), torch.ones_like(signs), atol=1e-4)
    assert abs(signs.mean()) < 0.1 and abs((signs * uphill).mean()) < 0.1
    assert torch.equal(replace(attack, start=0.0)(model, images, labels), FGSM(epsilon=0.08)(model, images, labels))
    black = attack(model, torch.zeros_like(images), labels, generator())  # the start is clipped to the box as well
    assert black[uphill > 0].min() > 0.06 - 1e-6 and black[uphill < 0].max() == 0


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball_uniformly(norm):
    model, _, images, labels = linear(2, count=400, size=4)
    images = torch.full_like(images, 0.5)
    start = PGD(epsilon=0.2, step_size=0, steps=1, norm=norm)(model, images, labels, generator()) - images
    share = (start + 0.2) / 0.4 if norm == "linf" else (l2_norm(start) / 0.2) ** 16  # the share of volume further in
    assert kstest(share.flatten().numpy(), "uniform").pvalue > 0.01
    assert start.flatten(1).mean(0).abs().max() < 0.03


def released_attack(model, image, lr, steps):
    """`cw` of BaoWangMath/EnResNet, ResNet20/Attack_PGD_EnResNet_5_20.py, for one image: the two classes are fixed at
    the clean image, and what is kept is where Adam went *from* the iterate of lowest loss."""
    first, second = model(image).topk(2).indices[0]
    w = image.clone().requires_grad_(True)
    optimiser, best, best_loss = torch.optim.Adam([w], lr=lr), image, float("inf")
    for _ in range(steps):
        optimiser.zero_grad()
        logits = model(w)[0]
        loss = (w - image).pow(2).sum() + 10 * (logits[first] - logits[second]).clamp(min=0)
        loss.backward()
        optimiser.step()
        if loss.item() < best_loss:
            best, best_loss = w.detach().clone(), loss.item()
    return best


@pytest.mark.parametrize(("lr", "steps"), [(6e-4, 50), (0.02, 20)])
def test_cw_released_is_the_released_loop(net, lr, steps):
    images = 0.2 + 0.6 * torch.rand(6, 1, 8, 8, generator=generator())  # far from the box, to which the code is blind
    attack = CarliniWagnerReleased(lr=lr, steps=steps)
    expected = torch.cat([released_attack(deepcopy(net), image[None], lr, steps) for image in images])
    labels = torch.zeros(6, dtype=torch.long)  # plays no part
    assert torch.allclose(attack(net, images, labels), expected, atol=1e-5)


def test_cw_released_rescales_its_perturbation(net):
    images, labels = 0.2 + 0.6 * torch.rand(6, 1, 8, 8, generator=generator()), torch.zeros(6, dtype=torch.long)
    attack = CarliniWagnerReleased(lr=0.01, steps=10)
    moved = attack(net, images, labels) - images
    assert moved.abs().max() > 0.01
    assert torch.allclose(replace(attack, scale=0.5)(net, images, labels) - images, 0.5 * moved, atol=1e-6)


# --- promises of all attacks


@every_attack
def test_result_is_another_image_in_the_ball_and_the_box(net, few, attack, quick_suite):
    images, labels = few[0].clone(), few[1]
    attacked = attack(net, images, labels, generator())
    assert torch.equal(images, few[0])
    assert attacked.shape == images.shape and attacked.dtype == images.dtype and not attacked.requires_grad
    assert attacked.min() >= 0 and attacked.max() <= 1
    moved = (attacked - images).flatten(1)
    assert moved.any(1).sum() >= 3
    if getattr(attack, "epsilon", None):
        assert (moved.norm(p=2 if getattr(attack, "norm", "linf") == "l2" else torch.inf, dim=1)
                <= attack.epsilon + 1e-6).all()  # fmt: skip


@given(st.sampled_from(["linf", "l2"]), st.floats(0, 1), st.floats(0, 1), st.integers(1, 4), st.integers(1, 3),
       st.booleans(), st.sampled_from(["cross_entropy", "margin"]), st.integers(0, 9))
def test_pgd_stays_in_the_ball_and_the_box(norm, epsilon, step_size, steps, restarts, starts, loss, seed):
    attack = PGD(norm=norm, epsilon=epsilon, step_size=step_size, steps=steps, random_start=starts, loss=loss,
                 restarts=restarts if starts else 1)
    model, _, images, labels = linear(3, count=6, size=3, seed=seed)
    images = ((images - 0.5) * 15 + 0.5).clamp(0, 1)  # many on the faces of the box
    attacked = attack(model, images, labels, generator(seed))
    assert attacked.min() >= 0 and attacked.max() <= 1
    length = (attacked - images).flatten(1).norm(p=2 if norm == "l2" else torch.inf, dim=1)
    assert (length <= epsilon + 1e-6).all()


@pytest.mark.parametrize("attack", [CarliniWagnerL2(steps=20, search_steps=3), DeepFool()], ids=["cw", "deepfool"])
def test_what_is_already_wrong_comes_back_unchanged(net, few, attack):
    images, labels = few[0], (few[1] + torch.arange(8) % 2) % 10  # every second label is wrong
    moved = (attack(net, images, labels) != images).flatten(1).any(1)
    assert not moved[1::2].any() and moved[::2].sum() > 1  # of the others most are fooled, not always all


def test_cw_gives_back_what_it_cannot_fool():
    model, _, images, _ = linear(3)
    model[1].weight.data.zero_()
    model[1].bias.data = torch.tensor([0.0, 1.0, 0.0])
    assert torch.equal(CarliniWagnerL2(steps=3, search_steps=2)(model, images, torch.ones(60).long()), images)


def test_cw_in_a_ball_is_cw_where_it_is_short_enough(net, few):
    images, labels = few
    free = CarliniWagnerL2(steps=20, search_steps=3)
    length = l2_norm(free(net, images, labels) - images)
    epsilon = float(length.median())
    inside = (length <= epsilon)[:, None, None, None]
    expected = torch.where(inside, free(net, images, labels), images)
    assert torch.equal(replace(free, epsilon=epsilon)(net, images, labels), expected) and 0 < inside.sum() < 8


def mixed(net):
    """A copy in training mode but for one layer, with some gradients, some weights frozen."""
    model = deepcopy(net).train()
    model.members[0].norm.eval()
    for i, p in enumerate(model.parameters()):
        p.grad = torch.full_like(p, float(i)) if i % 2 else None
        p.requires_grad_(i % 3 > 0)
    return model


def state(model) -> list:
    """All that an attack must leave as it was."""
    return [
        [module.training for module in model.modules()],
        {name: t.tolist() for name, t in model.state_dict().items()},
        [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in model.parameters()],
        torch.get_rng_state().tolist(),
    ]


@every_attack
def test_model_and_global_chance_are_left_as_they_were(net, few, attack, quick_suite):
    model, inside = mixed(net), set()
    model.register_forward_pre_hook(lambda *_: inside.add((any(m.training for m in model.modules()),
                                                           any(p.requires_grad for p in model.parameters()))))
    before = state(model)
    attack(model, *few, generator())
    assert state(model) == before
    assert inside == {(False, False)}  # evaluation mode, and no time lost on gradients of weights


@pytest.mark.parametrize(("attack", "call"), [(a, call) for a in ATTACKS.values() for call in (1, 2) if call <= a.cost],
                         ids=[f"{name} {call}" for name, a in ATTACKS.items() for call in (1, 2) if call <= a.cost])
def test_model_is_left_as_it_was_by_an_attack_that_fails(net, few, attack, call, quick_suite):
    model, calls = mixed(net), []

    def fail(*_):
        calls.append(1)
        if len(calls) == call:
            raise FloatingPointError

    model.register_forward_pre_hook(fail)
    before = state(model)
    with pytest.raises(FloatingPointError):
        attack(model, *few, generator())
    assert state(model) == before


@every_attack
def test_network_in_training_is_attacked_as_in_evaluation(net, few, attack, quick_suite):
    """Which also says that the same seed gives the same result."""
    training = deepcopy(net).train()
    assert torch.equal(attack(training, *few, generator(5)), attack(net, *few, generator(5)))
    assert training.training


@pytest.mark.parametrize("name", ["rfgsm", "pgd", "pgd l2", "apgd", "apgd l2"])
def test_random_starts_differ_between_seeds(net, few, name):
    results = [ATTACKS[name](net, *few, generator(seed)) for seed in (0, 1)]
    assert (results[0] != results[1]).flatten(1).any(1).all()


def test_restarts_only_ever_fool_more(net, batch):
    images, labels = batch
    attack = PGD(epsilon=0.12, step_size=0.05, steps=3)
    once, often = (replace(attack, restarts=n)(net, images, labels, generator()) for n in (1, 6))
    fooled, more = (net(attacked).argmax(1) != labels for attacked in (once, often))
    assert torch.equal(once[fooled], often[fooled])  # the first that fools is kept
    assert fooled.sum() < more.sum()
    assert not torch.equal(once[~more], often[~more])


def test_every_restart_takes_every_step(net, few):
    model, counted = deepcopy(net), []
    model.register_forward_hook(lambda *_: counted.append(torch.is_grad_enabled()))
    attack = PGD(epsilon=0, step_size=0, steps=4, restarts=3)
    attack(model, few[0], net(few[0]).argmax(1), generator())
    assert sum(counted) == attack.cost == 12


# --- noisy networks


@averaging
def test_every_gradient_is_averaged_over_the_draws(net, few, attack, monkeypatch):
    monkeypatch.setattr(apgd, "is_random", lambda *_: False)  # which it asks plainly, before it begins
    model = deepcopy(net)
    sizes = batch_sizes(model)
    attacked = replace(attack, eot_draws=3)(model, *few, generator())
    assert max(sizes) == 24 and {size % 3 for size in sizes} == {0}
    assert torch.allclose(attacked, attack(net, *few, generator()), atol=1e-3)  # without noise, draws change nothing


@averaging
def test_of_no_images_none_come_back_however_many_draws(net, noisy, few, attack):
    for model in (net, noisy):
        assert replace(attack, eot_draws=2)(model, *(t[:0] for t in few), generator()).shape == few[0][:0].shape


def test_mean_logits_are_the_mean_over_draws_of_each_image(net, noisy, few):
    assert torch.allclose(mean_logits(net, few[0], 3), net(few[0]), atol=1e-5)
    with seeded():
        mean = mean_logits(noisy, few[0], 5)
        torch.manual_seed(0)
        assert torch.allclose(mean, noisy(torch.cat([few[0]] * 5)).unflatten(0, (5, 8)).mean(0), atol=1e-5)


def test_averaged_gradients_vary_less(noisy, few):
    def spread(draws: int) -> float:
        """Mean squared deviation of the gradient's direction between calls."""
        step = PGD(epsilon=0.1, step_size=0.1, steps=1, norm="l2", random_start=False, eot_draws=draws)
        directions = torch.stack([step(noisy, images, few[1]) - images for _ in range(12)]) / 0.1
        return directions.var(0).flatten(1).sum(1).mean().item()

    images = few[0].clamp(0.2, 0.8)  # so that the box does not interfere
    with seeded():
        single, averaged = spread(1), spread(16)
    assert single > 1e-3
    assert averaged < single / 6  # 1/16 were the gradient linear in the noise


def test_loss_is_that_of_the_averaged_logits(noisy, few):
    """One FGSM step, with the same noise, by hand."""
    images = few[0].clone().requires_grad_(True)
    with seeded(1):
        attacked = FGSM(epsilon=0.1, eot_draws=4)(noisy, *few)
        torch.manual_seed(1)
        cross_entropy(noisy(images.repeat(4, 1, 1, 1)).view(4, 8, 10).mean(0), few[1]).backward()
    assert torch.allclose(attacked, (few[0] + 0.1 * images.grad.sign()).clamp(0, 1), atol=1e-6)


# --- settings


@pytest.mark.parametrize("kind", ["fgsm", "rfgsm", "pgd", "apgd", "thrifty", "autoattack"])
def test_radii_are_fractions_of_the_pixel_range(refusal, kind):
    rest = {"kind": kind} | ({"step_size": 0.1, "steps": 1} if kind == "pgd" else {})
    assert Attack.parse(rest | {"epsilon": "8/255"}).epsilon == 8 / 255
    assert "8/255" in refusal(Attack.parse, rest | {"epsilon": 8})
    assert "cannot be negative" in refusal(Attack.parse, rest | {"epsilon": -0.1})
    assert "epsilon should be a number" in refusal(Attack.parse, rest | {"epsilon": "8 of 255"})


@pytest.mark.parametrize(("change", "words"), [
    ({"step_size": 2}, ["step_size", "2/255"]),
    ({"step_size": -1}, ["step_size", "negative"]),
    ({"norm": "l1"}, ["norm", "'l1'", "linf"]),
    ({"loss": "hinge"}, ["loss", "'hinge'", "margin"]),
    ({"steps": 0}, ["steps"]),
    ({"steps": 2.5}, ["steps", "whole number"]),
    ({"eot_draws": 0}, ["eot_draws"]),
    ({"restarts": 0}, ["restarts"]),
    ({"restarts": 2, "random_start": False}, ["restarts", "random_start"]),
    ({"epsilom": 1}, ["epsilom", "'epsilon'"]),
    ({"stepsize": 0.1}, ["stepsize", "'step_size'"]),
    ({"kind": "pgdd"}, ["'pgdd'", "'pgd'"]),
], ids=str)
def test_wrong_settings_of_pgd(refusal, change, words):
    plain = {"kind": "pgd", "epsilon": "8/255", "step_size": "2/255", "steps": 10}
    assert Attack.parse(plain) == PGD(epsilon=8 / 255, step_size=2 / 255, steps=10)
    message = refusal(Attack.parse, plain | change)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(("kind", "change"), [
    ("fgsm", {"epsilon": 0.1, "eot_draws": 0}),
    ("rfgsm", {"epsilon": 0.1, "eot_draws": 0}),
    ("rfgsm", {"epsilon": 0.1, "start": 1.5}),
    ("cw_l2", {"steps": 0}),
    ("cw_l2", {"search_steps": 0}),
    ("cw_l2", {"epsilon": -1}),
    ("cw_released", {"steps": 0}),
    ("deepfool", {"candidates": 1}),
    ("autoattack", {"epsilon": 0.1, "norm": "l1"}),
    ("autoattack", {"epsilon": 0.1, "version": "plus"}),
], ids=str)
def test_other_wrong_settings(refusal, kind, change):
    assert list(change)[-1] in refusal(Attack.parse, {"kind": kind} | change)


def test_l2_radii_may_exceed_the_pixel_range():
    assert PGD(epsilon=8, step_size=2, steps=1, norm="l2").epsilon == AutoAttack(epsilon=8, norm="l2").epsilon == 8
