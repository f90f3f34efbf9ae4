"""Gradients that are not finite, and networks that answer differently when asked again."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from scaffolding import Around, Backward, batch_sizes, generator, seeded, splits_of
from sparserobust.analysis import LocalLipschitz
from sparserobust.answers import NotFinite, differ, flagged, gradient, is_random, mean_logits, mended, predicted
from sparserobust.apgd import APGD
from sparserobust.attacks import FGSM, PGD, AutoAttack, CarliniWagnerL2, CarliniWagnerReleased, DeepFool, normed
from sparserobust.evaluation import Accuracy
from sparserobust.models import NoisyWeights, PreActResNet
from sparserobust.objectives import NFGSM, TRADES, Adversarial, SparseActivations
from sparserobust.query_attacks import Square

GRADIENTS = [FGSM(epsilon=1e-6), PGD(epsilon=1e-6, step_size=1e-6, steps=3), DeepFool(steps=5),
             PGD(epsilon=1e-6, step_size=1e-6, steps=3, norm="l2"), CarliniWagnerReleased(steps=2, lr=1e-7),
             CarliniWagnerL2(steps=3, search_steps=2, epsilon=1e-6), APGD(epsilon=1e-6, steps=3),
             APGD(epsilon=1e-6, steps=3, norm="l2")]


@pytest.mark.parametrize("attack", GRADIENTS, ids=str)
def test_a_slope_that_is_infinite_in_some_pixels_is_flagged_and_moves_no_image_away(attack, net, digits):
    """A camera's curve: its slope is infinite at black, and many pixels are black."""
    curved = Around(net, before=lambda x: x.pow(1 / 2.2)).eval()
    result = Accuracy(attack=attack, images=30)(curved, digits)
    if not isinstance(attack, CarliniWagnerL2):  # which begins a little inside the box
        assert any("not finite in some pixels" in flag for flag in result["flags"])
    assert result["mean_l2"] < 2
    test = digits.test.sample(30)
    found = attack(curved, test.images, test.labels)
    assert bool(found.isfinite().all())
    if getattr(attack, "epsilon", None):
        assert result["count"] == Accuracy(images=30)(curved, digits)["count"]


@pytest.mark.parametrize("attack", [*GRADIENTS, AutoAttack(epsilon=0.1)], ids=str)
def test_an_attack_does_not_stand_still_before_gradients_that_are_none(attack, net, digits):
    lost = Around(net, before=lambda x: Backward.apply(x, lambda g: g * torch.nan)).eval()
    with pytest.raises(NotFinite, match="not finite in any pixel"):
        Accuracy(attack=attack, images=10)(lost, digits)
    Accuracy(attack=Square(epsilon=0.1, queries=5), images=10)(lost, digits)  # needs no gradient


@pytest.mark.parametrize("objective", [
    Adversarial(attack=FGSM(epsilon=0.1)), NFGSM(epsilon=0.1), TRADES(epsilon=0.1, step_size=0.05, steps=2),
    SparseActivations(objective=TRADES(epsilon=0.1, step_size=0.05, steps=2), lam=0.1)], ids=lambda o: o.kind)
def test_no_objective_trains_on_images_that_an_attack_could_not_move(objective, net, digits):
    lost = Around(net, before=lambda x: Backward.apply(x, lambda g: g * torch.nan)).train()
    with pytest.raises(NotFinite, match="not finite in any pixel"):
        objective(lost, digits.test.images[:10], digits.test.labels[:10], generator())


def test_no_slope_is_bounded_from_images_that_could_not_be_moved(net, digits):
    lost = Around(net, before=lambda x: Backward.apply(x, lambda g: g * torch.nan)).eval()
    with pytest.raises(NotFinite, match="not finite in any pixel"):
        LocalLipschitz(epsilon=0.1, step_size=0.05, steps=2, images=10)(lost, digits)


def test_a_gradient_is_mended_entry_by_entry():
    raw = torch.tensor([[1.0, torch.nan, -3.0], [torch.inf, 0.0, 0.0], [0.5, -torch.inf, torch.nan]])
    with flagged() as flags:
        assert mended(raw).tolist() == [[1, 0, -3], [1, 0, 0], [0.5, -0.5, 0]] and len(flags) == 1
        assert torch.equal(mended(raw[:, :1].nan_to_num(2)), raw[:, :1].nan_to_num(2))
    with pytest.raises(NotFinite, match="1 of 2 images"):
        mended(torch.tensor([[torch.nan, 0.0], [1.0, 2.0]]))


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-15, 1.0, 1e20, 1e37])
def test_a_step_of_l2_is_as_long_however_long_the_gradient_is(scale):
    raw = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)).sign()
    raw[2] = 0
    found = normed(raw * scale)
    assert torch.allclose(found, raw / 4) and not found[2].any()


def test_a_loss_that_does_not_see_the_pixels_has_no_slope_and_is_flagged():
    x = torch.rand(2, 1, 3, 3, requires_grad=True)
    with flagged() as flags:
        assert not gradient(x.round().detach().sum(), x).any() and "does not depend on the pixels" in flags[0]


# --- chance

COUNTER: Iterator[int] = iter(range(10**9))
RANDOM = {
    "noise on images": lambda net: Around(net, before=lambda x: x + 0.1 * torch.randn_like(x)),
    "noise on logits": lambda net: Around(net, after=lambda z: z + 0.01 * torch.rand_like(z)),
    "dropout that stays on": lambda net: Around(net, before=lambda x: nn.functional.dropout(x, 0.2, training=True)),
    "one draw for all": lambda net: Around(net, before=lambda x: torch.roll(x, int(torch.randint(8, ())), 3)),
    "noise of its own making": lambda net: Around(net, before=lambda x: x + 0.1 * torch.empty_like(x).normal_()),
    "a counter": lambda net: Around(net, after=lambda z: z + torch.arange(10) * next(COUNTER)),
    "behind an offset": lambda net: Around(net, after=lambda z: z + 1e4 + torch.rand_like(z)),
    "one answer of ten": lambda net: Around(net, after=lambda z: z * (1.0 + (next(COUNTER) % 10 == 0))),
    "pools that are drawn": lambda net: nn.Sequential(nn.FractionalMaxPool2d(2, output_size=5), nn.Upsample(8), net),
    "a hook of a layer": lambda net: hooked(nn.Sequential(net, nn.Linear(10, 10))),
}


def hooked(net: nn.Sequential) -> nn.Sequential:
    """A network whose last layer has other weights whenever it is asked."""
    last = net[-1]
    assert isinstance(last, nn.Linear)
    weight = last.weight.detach().clone()

    def drawn(layer, given):
        with torch.no_grad():
            layer.weight.copy_(weight + torch.randn_like(weight))

    last.register_forward_pre_hook(drawn)
    return net


@pytest.mark.parametrize("name", RANDOM)
def test_a_network_that_answers_differently_is_found_and_chance_is_left_as_it_was(name, net, digits):
    random, before = RANDOM[name](net).eval(), torch.get_rng_state()
    assert is_random(random, digits.test.images)
    assert torch.equal(torch.get_rng_state(), before)
    assert not is_random(net, digits.test.images)
    assert not is_random(Around(net, before=lambda x: torch.relu(x - 0.1)).train(), digits.test.images)


def test_hooks_of_all_modules_can_draw_too(net, digits):
    hook = nn.modules.module.register_module_forward_hook(
        lambda layer, given, out: out + torch.rand_like(out) if isinstance(layer, nn.Linear) else None)
    try:
        assert is_random(net, digits.test.images)
    finally:
        hook.remove()
    assert not is_random(net, digits.test.images)


def test_draws_behind_a_hook_are_passes_of_their_own_and_those_of_the_library_are_one(net, digits):
    images = digits.test.images[:2]
    drawn = hooked(nn.Sequential(net, nn.Linear(10, 10))).eval()
    with seeded():
        mean = mean_logits(drawn, images, 8)
    with seeded():
        assert torch.allclose(mean, torch.stack([drawn(images) for _ in range(8)]).mean(0), atol=1e-5)
    own = PreActResNet(depth=8, width=2, noise=0.1).build((1, 8, 8), 10).eval()
    batches = batch_sizes(own)
    mean_logits(own, images, 8)
    assert batches == [16]


def test_eval_mode_is_what_a_module_makes_of_it(digits):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.sigma = nn.Linear(64, 10), 0.5

        def train(self, mode=True):
            self.sigma = 0.5 if mode else 0.0
            return super().train(mode)

        def forward(self, x):
            return self.linear((x + self.sigma * torch.randn_like(x)).flatten(1))

    noisy, images = Noisy(), digits.test.images
    noisy.linear.eval()
    with torch.no_grad():
        assert torch.equal(predicted(noisy, images), noisy.linear(images.flatten(1)).argmax(1))
    assert (noisy.sigma, noisy.training, noisy.linear.training) == (0.5, True, False)
    assert not is_random(noisy, images)


def test_logits_differ_by_what_their_classes_differ_by():
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    for offset in (0.0, 1e3, -1e3):
        assert differ(logits + offset, logits + offset + torch.tensor([[0.0, 0.1], [0.0, 0.0]]))
        assert not differ(logits + offset, (logits.double() + 1e-7 + offset).float())
    assert not differ(torch.full((2, 3), 1e6), torch.full((2, 3), 1e6).nextafter(torch.tensor(2e6)))


def test_draws_and_trials_are_kept_for_any_random_network(net, digits):
    passes = []
    for draws in (1, 20):
        noisy = RANDOM["noise on images"](net).eval()
        attack = PGD(epsilon=0.05, step_size=0.02, steps=3, eot_draws=draws)
        Accuracy(attack=attack, images=12)(noisy, digits)
        passes.append(noisy.passes)
    assert passes[1] - passes[0] >= 3 * 19  # steps, further draws
    values = Accuracy(images=60, trials=4)(RANDOM["noise on images"](net).eval(), digits)["trial_values"]
    assert len(set(values)) > 1
    assert len(set(Accuracy(images=60, trials=4)(net, digits)["trial_values"])) == 1


def test_draws_of_a_network_that_is_not_known_are_passes_of_their_own(net, digits):
    """All images of a pass share the draw: copies of them in one batch would be no draws."""
    moved, images = RANDOM["one draw for all"](net).eval(), digits.test.images[:2]
    with seeded():
        mean = mean_logits(moved, images, 8)
    with seeded():
        assert torch.allclose(mean, torch.stack([moved(images) for _ in range(8)]).mean(0), atol=1e-6)
    assert moved.passes == 16


def test_the_noise_of_others_cannot_be_silenced_and_that_is_said(net, digits, refusal):
    assert "silences the noise of this library alone" in refusal(
        Accuracy(images=10, noise=False), RANDOM["noise on images"](net).eval(), digits)
    for own in (PreActResNet(depth=8, width=2, noise=0.1), NoisyWeights(model=PreActResNet(depth=8, width=2))):
        assert Accuracy(images=10, noise=False)(own.build((1, 8, 8), 10).eval(), digits)["total"] == 10


# --- AutoAttack on few classes, and where there is nothing to attack


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 9])
def test_autoattack_knows_fewer_than_ten_classes(classes):
    with seeded(1):
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, classes)).eval()
        images = 0.3 + 0.4 * torch.rand(5, 1, 6, 6)
    labels = model(images).argmax(1)
    for epsilon, count in ((1e-4, 5), (0.9, 0)):
        data = splits_of(images, labels, classes=classes)
        result = Accuracy(attack=AutoAttack(epsilon=epsilon), images=5)(model, data)
        assert result["count"] == count
        assert any("apgd-t" in flag for flag in result["flags"]) == (classes < 4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_and_square_say_what_they_leave_out(norm, refusal):
    with seeded(1):
        model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 4)).eval()
        images = torch.rand(3, 1, 4, 9)
    labels = model(images).argmax(1)
    with flagged() as flags:
        AutoAttack(epsilon=0.05, norm=norm)(model, images, labels)
    assert any("without square" in flag for flag in flags) == (norm == "l2")
    if norm == "l2":
        assert "take norm linf" in refusal(Square(epsilon=0.05, norm="l2"), model, images, labels)


def test_where_nothing_is_right_there_is_nothing_to_attack(net, digits):
    test = digits.test.sample(6)
    wrong = (net(test.images).argmax(1) + 1) % 10
    for attack in (AutoAttack(epsilon=0.1), Square(epsilon=0.1, queries=3)):
        assert torch.equal(attack(net, test.images, wrong), test.images)
