"""Noise on weights: against its formula written out, its gradients by hand, and how attacks and training go with it."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

from scaffolding import assert_same_training, batch_sizes, batches, built, interrupted, weights_of
from sparserobust import training
from sparserobust.attacks import FGSM, PGD, mean_logits, under_attack
from sparserobust.config import Model, Objective
from sparserobust.models import (
    VGG16,
    NoisyWeights,
    PreActResNet,
    ResNet,
    ResNet18,
    is_noisy,
    noise_off,
    noise_scales,
    one_draw_a_pass,
)
from sparserobust.models.noise import NoisyConv2d, NoisyLinear, WeightNoise
from sparserobust.objectives import Adversarial
from sparserobust.seeding import global_seed
from sparserobust.settings import settings
from sparserobust.sparsifiers import FixedMask, Lasso, Magnitude, RelativeThreshold
from sparserobust.sparsity import prunable

PLAIN = {"preact_resnet": PreActResNet(depth=8, width=4, members=2), "resnet": ResNet(depth=8, width=4),
         "resnet18": ResNet18(width=4), "vgg16": VGG16(width=4)}
every_network = pytest.mark.parametrize("plain", PLAIN.values(), ids=PLAIN)
every_granularity = pytest.mark.parametrize("granularity", ["layer", "channel", "element"])
SMALL = NoisyWeights(model=PreActResNet(depth=8, width=2))
SHAPE = (1, 8, 8)


def drawn(seed: int, call, *arguments):
    """What a call returns if the dice begin at `seed`."""
    torch.manual_seed(seed)
    return call(*arguments)


def layers_of(net) -> dict[str, nn.Module]:
    """Convolutions and linear layers; no layer of a plain net is called `noise` but those of activations."""
    return {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


LAYERS = {"conv": lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), "pointwise": lambda: nn.Conv2d(3, 5, 1, bias=False),
          "linear": lambda: nn.Linear(6, 4)}  # the last is given as many features as the images are wide
every_layer = pytest.mark.parametrize("layer", LAYERS)


@settings
class Single(Model):
    """One layer, in double precision, its output channels of very different sizes."""

    layer: str
    cost = 1.0

    def build(self, image_shape, classes):
        layer = LAYERS[self.layer]().double()
        with torch.no_grad():
            layer.weight.mul_(torch.logspace(-1, 1, len(layer.weight)).view(-1, *[1] * (layer.weight.dim() - 1)))
            layer.weight.view(-1)[::4] = 0
        return nn.Sequential(layer)


def single(layer: str, granularity="channel", **more) -> nn.Module:
    """One noisy layer with random scales of both signs."""
    net = built(NoisyWeights(model=Single(layer=layer), granularity=granularity, **more)).double()[0]
    nn.init.normal_(net.noise.scale)
    return net


def images_for(layer: str) -> torch.Tensor:
    return torch.randn(5, 3, 6, 6).double()


def spread(layer, seed: int) -> torch.Tensor:
    """The noise of a draw before it is scaled: std(w) times a gaussian, zero at zeros where it is masked."""
    torch.manual_seed(seed)
    weight = layer.weight.detach()
    eta = weight.std() * torch.randn(weight.numel()).to(weight).as_strided(weight.shape, weight.stride())
    return torch.where(weight == 0, 0.0, eta) if layer.noise.masked else eta


def by_channel(scale, weight):
    """One scale per layer, channel or weight, shaped like the weight."""
    if scale.numel() == weight.numel():
        return scale.reshape(weight.shape)
    shape = (scale.numel(), *[1] * (weight.dim() - 1))
    return scale.reshape(shape).expand(weight.shape)


def answer(layer, x, weight):
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, layer.bias)
    return functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


# --- any network


@every_granularity
@every_network
def test_any_network_becomes_noisy_with_the_weights_and_names_it_had(plain, granularity):
    net, after = built(plain), torch.get_rng_state()
    noisy = built(NoisyWeights(model=plain, granularity=granularity))
    assert torch.equal(torch.get_rng_state(), after)
    scales = {f"{name}.noise.scale" for name in layers_of(net)}
    assert set(noisy.state_dict()) - set(net.state_dict()) == scales
    assert all(torch.equal(noisy.state_dict()[name], t) for name, t in net.state_dict().items())
    names, plain_names = ([name for name, _ in n.named_parameters()] for n in (noisy, net))
    assert [name for name in names if name not in scales] == plain_names
    assert list(prunable(noisy)) == list(prunable(net)) == [f"{name}.weight" for name in layers_of(net)]
    for name, layer in layers_of(noisy).items():
        assert type(layer) is (NoisyConv2d if layer.weight.dim() == 4 else NoisyLinear), name
    assert list(noise_scales(noisy)) == list(layers_of(net)) and not noise_scales(net)


@every_network
def test_number_of_scales_by_granularity(plain):
    weights = {name: layer.weight for name, layer in layers_of(built(plain)).items()}
    for granularity, count in {"layer": lambda w: 1, "channel": lambda w: w.shape[0],
                               "element": lambda w: w.numel()}.items():
        scales = noise_scales(built(NoisyWeights(model=plain, granularity=granularity)))
        assert {name: tuple(s.shape) for name, s in scales.items()} == {n: (count(w),) for n, w in weights.items()}


@pytest.mark.parametrize(("plain", "expected"), [(ResNet(), 698), (ResNet18(), 4_810)], ids=["ResNet20", "ResNet18"])
def test_number_of_channelwise_scales_of_the_papers_networks(plain, expected):
    net = built(NoisyWeights(model=plain), image_shape=(3, 32, 32))
    assert sum(s.numel() for s in noise_scales(net).values()) == expected


@every_granularity
def test_initial_scales(granularity):
    for given, expected in (({}, 0.25), ({"initial_scale": 0.1}, 0.1)):
        model = replace(SMALL, granularity=granularity, **given)
        assert {s.item() for scales in noise_scales(built(model)).values() for s in scales} == {
            torch.tensor(expected).item()}
    assert (SMALL.granularity, SMALL.masked, SMALL.initial_scale) == ("channel", True, 0.25)


@pytest.mark.parametrize("is_training", [False, True])
@every_network
def test_without_its_noise_it_is_the_plain_network(plain, is_training):
    net, noisy = built(plain).train(is_training), built(NoisyWeights(model=plain)).train(is_training)
    x = torch.rand(3, *SHAPE)
    expected, before = deepcopy(net)(x), torch.get_rng_state()
    with noise_off(noisy):
        assert torch.equal(deepcopy(noisy)(x), expected)
    assert torch.equal(torch.get_rng_state(), before)
    first, second = deepcopy(noisy)(x), deepcopy(noisy)(x)
    for other in (expected, second):
        assert (first - other).abs().max() > 0.01 * expected.abs().max()


# --- the formula


@pytest.mark.parametrize("masked", [True, False])
@every_granularity
@every_layer
def test_a_noisy_layer_by_hand(layer, granularity, masked):
    net, x = single(layer, granularity, masked=masked), images_for(layer)
    for level in (1.0, 0.5):
        net.noise.level = level
        noisy = net.weight + level * by_channel(net.noise.scale, net.weight) * spread(net, 3)
        expected = answer(net, x, noisy)
        assert torch.allclose(drawn(3, net, x), expected, rtol=1e-9)
        assert not torch.allclose(answer(net, x, net.weight), expected, rtol=1e-2)


def test_noise_with_channels_last():
    """As the training loop has it: drawn in the order of memory, and the result as fast to convolve."""
    net = single("conv", "element", masked=False).to(memory_format=torch.channels_last)
    assert not net.weight.is_contiguous()
    expected = net.weight + by_channel(net.noise.scale, net.weight) * spread(net, 3)
    weight = drawn(3, net.noise, net.weight)
    assert torch.allclose(weight, expected, rtol=1e-9) and weight.stride() == net.weight.stride()


@every_granularity
@every_layer
def test_gradients_by_hand(layer, granularity):
    """That of w is dL/dw~ and nothing of std(w); that of a scale sums eta dL/dw~ over what it scales."""
    net, x, eta = single(layer, granularity), images_for(layer), spread(single(layer, granularity), 3)
    noisy = (net.weight + by_channel(net.noise.scale, net.weight) * eta).detach().requires_grad_(True)
    answer(net, x, noisy).tanh().square().sum().backward()
    drawn(3, net, x).tanh().square().sum().backward()
    assert torch.allclose(net.weight.grad, noisy.grad, rtol=1e-9)
    each = eta * noisy.grad
    summed = {"layer": each.sum().view(1), "channel": each.flatten(1).sum(1), "element": each.flatten()}[granularity]
    assert net.noise.scale.grad.shape == summed.shape and summed.abs().max() > 1e-3
    assert torch.allclose(net.noise.scale.grad, summed, rtol=1e-9)
    weight = net.weight.detach().clone().requires_grad_(True)  # what it would be if std(w) were differentiated
    answer(net, x, weight + by_channel(net.noise.scale.detach(), weight) * eta / weight.std().detach() * weight.std()
           ).tanh().square().sum().backward()
    assert not torch.allclose(net.weight.grad, weight.grad, rtol=1e-3)


@every_granularity
def test_gradient_of_the_scale_against_finite_differences(granularity):
    net, x = single("conv", granularity), images_for("conv")

    def loss():
        return drawn(3, net, x).tanh().square().sum()

    loss().backward()
    scale, slopes = net.noise.scale, []
    for i in range(scale.numel()):
        values = []
        for shift in (1e-5, -2e-5, 1e-5):
            scale.data[i] += shift
            values.append(loss().item())
        slopes.append((values[0] - values[1]) / 2e-5)
    assert torch.allclose(scale.grad, torch.tensor(slopes).double(), rtol=1e-5, atol=1e-6)
    assert scale.grad.abs().max() > 1e-2


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (5, 27)], ids=["conv", "linear"])
def test_noise_has_the_spread_of_the_whole_layer_times_the_scale_of_its_channel(shape):
    weight = torch.randn(shape) * torch.tensor([0.01, 0.1, 1, 3, 10]).view(-1, *[1] * (len(shape) - 1)) + 0.5
    noise = WeightNoise(weight, "channel", 0.25, masked=True)
    noise.scale.data = torch.tensor([0.25, -0.5, 1.0, 0.0, 0.03])
    with torch.no_grad():
        added = torch.stack([noise(weight) - weight for _ in range(500)]).flatten(2).double()  # draw, channel, weight
    n, expected = 500 * 27, noise.scale.abs() * weight.flatten().std()
    for channel, std in enumerate(expected.tolist()):
        assert added[:, channel].std().item() == pytest.approx(std, rel=4 / (2 * n) ** 0.5, abs=1e-9)
        assert abs(added[:, channel].mean()) <= 4 * std / n**0.5
    kept = added[:, :3].flatten(1)
    correlations = (torch.corrcoef(kept.T) - torch.eye(kept.shape[1])).abs()  # between weights
    assert correlations.max() < 6 / 500**0.5
    between = torch.corrcoef(kept) - torch.eye(500)  # between draws
    assert between.abs().max() < 6 / kept.shape[1] ** 0.5


@every_granularity
@every_layer
def test_zeros_stay_zero_where_noise_is_masked(layer, granularity):
    for masked in (True, False):
        net = single(layer, granularity, masked=masked)
        zero, noisy = net.weight == 0, net.noise(net.weight)
        assert 0 < zero.sum() < zero.numel()
        assert torch.equal(noisy == 0, zero if masked else torch.zeros_like(zero))
        assert not (noisy == net.weight)[~zero].any()
    nn.init.zeros_(net.weight)
    assert not net.noise(net.weight).any()  # nothing to scale by


# --- passes


@pytest.mark.parametrize("is_training", [False, True])
def test_two_passes_differ_and_all_images_of_a_pass_share_a_draw(is_training):
    net, x = built(SMALL).train(is_training), torch.rand(1, *SHAPE).repeat(6, 1, 1, 1)
    nets = deepcopy(net), deepcopy(net)
    with torch.no_grad():
        first, second = (net(x) for net in nets)
    assert torch.allclose(first, first[:1].expand_as(first), atol=1e-5)
    assert (first - second).abs().max() > 1e-3


def test_the_draw_does_not_depend_on_the_images_of_the_pass():
    net, x = built(SMALL).eval(), torch.rand(6, *SHAPE)
    assert torch.allclose(drawn(1, net, x)[2:3], drawn(1, net, x[2:3]), atol=1e-5)
    assert not torch.allclose(drawn(1, net, x), drawn(2, net, x), atol=1e-3)


def test_which_networks_are_noisy_and_which_draw_once_a_pass():
    images = torch.rand(4, *SHAPE)
    for model, expected in {PreActResNet(depth=8, width=2): (False, False),
                            PreActResNet(depth=8, width=2, noise=0.1): (True, False),
                            SMALL: (True, True),
                            replace(SMALL, model=PreActResNet(depth=8, width=2, noise=0.1)): (True, True)}.items():
        net = built(model).eval()
        assert (is_noisy(net), one_draw_a_pass(net)) == expected
        assert torch.equal(net(images), net(images)) != expected[0]
        with noise_off(net) as inside:
            assert inside is net and not is_noisy(net) and not one_draw_a_pass(net)
            assert torch.equal(net(images), net(images))
        assert (is_noisy(net), one_draw_a_pass(net)) == expected


def test_noise_off_brings_back_the_levels_it_found():
    net = built(SMALL)
    layers = [m for m in net.modules() if isinstance(m, WeightNoise)]
    layers[0].level, layers[1].level = 0.5, 0.0
    levels = [0.5, 0.0] + [1.0] * (len(layers) - 2)
    with pytest.raises(KeyError), noise_off(net), noise_off(net):
        raise KeyError
    assert [layer.level for layer in layers] == levels
    for layer in layers[1:]:
        layer.level = 0.0
    assert is_noisy(net) and one_draw_a_pass(net)  # one noisy layer is enough
    layers[0].level = 0.0
    assert not is_noisy(net) and not one_draw_a_pass(net)


# --- copies, attacks


def test_a_copy_and_a_state_dictionary_hold_everything():
    net, x = built(SMALL).eval(), torch.rand(3, *SHAPE)
    for scale in noise_scales(net).values():
        nn.init.normal_(scale)
    copy, loaded = deepcopy(net), built(SMALL, seed=1).eval()
    assert not torch.allclose(drawn(1, loaded, x), drawn(1, net, x), atol=1e-3)
    loaded.load_state_dict(net.state_dict())
    expected = drawn(1, net, x)
    for other in (copy, loaded):
        assert torch.equal(drawn(1, other, x), expected)
        for scale in noise_scales(other).values():
            nn.init.zeros_(scale)
        assert not torch.equal(drawn(1, other, x), expected)
    assert torch.equal(drawn(1, net, x), expected)


def test_an_attack_leaves_the_scales_as_it_found_them():
    net, x, labels = built(SMALL).train(), torch.rand(3, *SHAPE), torch.arange(3)
    frozen, *others = noise_scales(net).values()
    frozen.requires_grad_(False)
    with under_attack(net):
        assert not any(p.requires_grad for p in net.parameters())
    before = {name: t.clone() for name, t in net.state_dict().items()}
    PGD(epsilon=0.1, step_size=0.05, steps=2, eot_draws=2)(net, x, labels)
    assert not frozen.requires_grad and all(s.requires_grad for s in others)
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


@pytest.mark.parametrize("draws", [1, 2, 5])
def test_mean_logits_average_independent_draws(draws):
    net, x = built(SMALL).eval(), torch.rand(4, *SHAPE)
    torch.manual_seed(1)
    each = torch.stack([net(x) for _ in range(draws)])
    assert torch.allclose(drawn(1, mean_logits, net, x, draws), each.mean(0), atol=1e-6)
    assert len({tuple(logits[0].tolist()) for logits in each}) == draws


@pytest.mark.parametrize("attack", [PGD(epsilon=0.1, step_size=0.05, steps=3, eot_draws=4), FGSM(epsilon=0.1)],
                         ids=["pgd-eot", "fgsm"])
def test_an_attack_takes_a_pass_for_each_draw_and_step(attack):
    net = built(SMALL).eval()
    sizes = batch_sizes(net)
    attack(net, torch.rand(7, *SHAPE), torch.arange(7))
    assert sizes == [7] * (getattr(attack, "steps", 1) * attack.eot_draws)
    sizes.clear()
    with noise_off(net):  # nothing to loop over: one pass, as for any other network
        attack(net, torch.rand(7, *SHAPE), torch.arange(7))
    assert sizes == [7 * attack.eot_draws] * getattr(attack, "steps", 1)


def test_an_averaged_attack_by_hand():
    net, x, labels = built(SMALL).eval(), torch.rand(6, *SHAPE), torch.arange(6)
    attacked = drawn(1, FGSM(epsilon=0.1, eot_draws=4), net, x, labels)
    leaf = x.clone().requires_grad_(True)
    torch.manual_seed(1)
    cross_entropy(sum(net(leaf) for _ in range(4)) / 4, labels).backward()
    assert torch.allclose(attacked, (x + 0.1 * leaf.grad.sign()).clamp(0, 1), atol=1e-6)
    torch.manual_seed(1)
    (single,) = torch.autograd.grad(cross_entropy(net(leaf), labels), leaf)
    assert not torch.equal(single.sign(), leaf.grad.sign())


# --- training


def trained_by_hand(run, splits) -> dict:
    """SGD with Nesterov momentum, spelt out; weight decay on everything but scales."""
    net, recipe = training.build(run, splits), run.recipe
    layout = training.fastest_layout(net, torch.device("cpu"))  # noise is drawn in the order of memory
    net = net.to(memory_format=layout).train()
    momentum = {name: 0.0 for name, _ in net.named_parameters()}
    for epoch in range(recipe.epochs):
        with global_seed(run.seed, "noise", epoch):
            for images, labels in batches(run, splits, epoch):
                loss = cross_entropy(net(training.in_layout(images, layout)), labels)
                gradients = torch.autograd.grad(loss, list(net.parameters()))
                for (name, p), gradient in zip(net.named_parameters(), gradients, strict=True):
                    if not name.endswith("noise.scale"):
                        gradient = gradient + recipe.weight_decay * p.detach()
                    momentum[name] = recipe.momentum * momentum[name] + gradient
                    p.data -= recipe.lr * (gradient + recipe.momentum * momentum[name])
    return weights_of(net)


@every_granularity
def test_training_by_hand(granularity, tiny_run, digits):
    run = tiny_run(model=replace(SMALL, granularity=granularity), schedule="constant", precision="float32", lr=0.1,
                   weight_decay=0.1, epochs=2)
    before, by_hand = weights_of(training.build(run, digits)), trained_by_hand(run, digits)
    for name, p in weights_of(training.train(run, digits).model).items():
        torch.testing.assert_close(p, by_hand[name], rtol=1e-3, atol=1e-5)
        assert not torch.equal(p, before[name])


@settings
class Indifferent(Objective):
    """A loss that is zero, whatever the weights."""

    cost = 1.0

    def __call__(self, model, images, labels, generator):
        return 0.0 * sum(p.sum() for p in model.parameters())


def test_weight_decay_shrinks_everything_but_scales(tiny_run, digits):
    run = tiny_run(model=SMALL, objective=Indifferent(), schedule="constant", lr=0.5, weight_decay=0.1, momentum=0.0,
                   epochs=2)  # three steps each
    before, after = weights_of(training.build(run, digits)), weights_of(training.train(run, digits).model)
    scales = {f"{name}.noise.scale" for name in noise_scales(training.build(run, digits))}
    assert scales and scales < set(after)
    for name, p in after.items():
        expected = before[name] if name in scales else before[name] * 0.95**6
        torch.testing.assert_close(p, expected, rtol=0 if name in scales else 1e-5, atol=0)


def test_scales_are_neither_penalised_nor_pruned(tiny_run, digits):
    net, plain = built(SMALL), built(SMALL.model)
    loss = Lasso(lam=0.3).added_loss(net, {})
    assert loss.item() == Lasso(lam=0.3).added_loss(plain, {}).item() > 0
    loss.backward()
    assert all(s.grad is None for s in noise_scales(net).values())
    assert all(layer.weight.grad is not None for layer in layers_of(net).values())
    for sparsifier in (Magnitude(sparsity=0.9), RelativeThreshold(threshold=0.5), FixedMask()):
        net = built(SMALL)
        with torch.no_grad():
            for scale in noise_scales(net).values():
                scale.mul_(1e-3)  # smaller than all weights
        masks = sparsifier.start(net)
        assert set(masks) == set(prunable(plain))
        assert all((s == 0.25e-3).all() for s in noise_scales(net).values())
    run = tiny_run(model=SMALL, sparsifier=Magnitude(sparsity=0.5), epochs=1)
    pruned = training.train(run, digits)
    assert pruned.history[-1]["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert all((s != 0).all() for s in noise_scales(pruned.model).values())
    assert any((s != 0.25).any() for s in noise_scales(pruned.model).values())


def test_history_holds_the_mean_size_of_the_scales_of_each_layer(tiny_run, digits):
    start = training.build(tiny_run(model=SMALL), digits)
    with torch.no_grad():
        for scale in noise_scales(start).values():
            scale[::2] *= -1
    run = tiny_run(model=SMALL, epochs=2, precision="float32")
    result = training.train(run, digits, start.state_dict())
    expected = {name: sum(abs(x) for x in s.tolist()) / len(s) for name, s in noise_scales(result.model).items()}
    assert list(result.history[-1]["noise_scales"]) == list(layers_of(start))
    assert result.history[-1]["noise_scales"] == pytest.approx(expected, rel=1e-5)
    assert result.history[0]["noise_scales"] != result.history[1]["noise_scales"]
    assert all("noise_scales" not in row for row in training.train(tiny_run(), digits).history)


FITTING = {"equal": SMALL, "masked": replace(SMALL, masked=False)}
UNFIT = {"plain": SMALL.model, "wider": replace(SMALL, model=PreActResNet(depth=8, width=4)),
         "noisy": replace(SMALL, model=replace(SMALL.model, noise=0.1)),
         "granularity": replace(SMALL, granularity="layer"), "scale": replace(SMALL, initial_scale=0.1),
         "all but masked": replace(SMALL, masked=False, granularity="element")}


@pytest.mark.parametrize("other", FITTING.values(), ids=FITTING)
def test_weights_may_be_taken_over_where_only_the_mask_differs(other, tiny_run, digits):
    assert SMALL.fits(other) and other.fits(SMALL)
    begun = tiny_run(model=other, epochs=1)
    run = tiny_run(model=SMALL, start=begun, epochs=0)
    start = training.train(begun, digits).model.state_dict()
    taken = training.train(run, digits, start).model.state_dict()
    assert all(torch.equal(taken[name], t) for name, t in start.items())


@pytest.mark.parametrize("other", UNFIT.values(), ids=UNFIT)
def test_weights_of_another_network_are_refused(other, tiny_run, refusal):
    assert not SMALL.fits(other) and not other.fits(SMALL)
    for model, begun in ((SMALL, other), (other, SMALL)):
        assert "start" in refusal(tiny_run, model=model, start=tiny_run(model=begun))


def test_zeros_that_were_noisy_become_silent_where_the_next_run_masks_them(tiny_run, digits):
    """Trained with noise on all weights, pruned, and tuned with noise on those that are left."""
    dense = training.train(tiny_run(model=FITTING["masked"]), digits).model.state_dict()
    pruned = training.train(tiny_run(model=FITTING["masked"], sparsifier=Magnitude(sparsity=0.6), epochs=0), digits,
                            dense).model
    tuned = training.train(tiny_run(model=SMALL, sparsifier=FixedMask(), epochs=1), digits, pruned.state_dict()).model
    zeros = 0
    for name, layer in layers_of(tuned).items():
        before = layers_of(pruned)[name]
        zero = before.weight == 0
        zeros += int(zero.sum())
        assert torch.equal(layer.weight == 0, zero)
        assert not layer.noise(layer.weight)[zero].any()
        assert before.noise(before.weight)[zero].all()
    assert zeros > 0


HARD = {"model": replace(SMALL, model=PreActResNet(depth=8, width=2, noise=0.1)), "epochs": 3, "averaging": 0.9,
        "objective": Adversarial(attack=PGD(epsilon=0.1, step_size=0.05, steps=1, eot_draws=2), clean_weight=0.5,
                                 attacked_label="predicted", clean_epochs=1)}


@pytest.mark.parametrize(("stop", "more"), [(1, {"select": "best"}), (2, {"sparsifier": Lasso(lam=1e-3)}),
                                            (2, {"sparsifier": RelativeThreshold(threshold=0.3)})],
                         ids=["best", "lasso", "threshold"])
def test_an_interrupted_training_equals_an_undisturbed_one(stop, more, tiny_run, digits, tmp_path):
    run = tiny_run(**HARD | more)
    undisturbed = training.train(run, digits)
    assert_same_training(interrupted(run, digits, tmp_path / "checkpoint", [stop]), undisturbed)
    assert len(undisturbed.history) == 3
    assert undisturbed.history[0]["noise_scales"] != undisturbed.history[-1]["noise_scales"]


# --- settings


@pytest.mark.parametrize(("change", "words"), [
    ({"granularity": "weight"}, ["granularity", "'weight'", "element"]),
    ({"maskd": True}, ["'masked'"]),
    ({"model": {"kind": "preact_resnet", "depth": 9}}, ["6n+2"]),
], ids=str)
def test_wrong_settings(refusal, change, words):
    message = refusal(Model.parse, {"kind": "noisy_weights", "model": {"kind": "preact_resnet", "depth": 8}} | change)
    assert all(word in message for word in words), message


@every_network
def test_settings_survive_plain_and_parse(plain):
    model = NoisyWeights(model=plain, masked=False)
    assert Model.parse(model.plain()) == model
    assert len({model.identity, plain.identity, NoisyWeights(model=plain).identity}) == 3
    assert model.cost > plain.cost
