"""Hard-concrete gates: against closed forms, fixed samples, and networks with their gates multiplied into weights."""

import math
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from scaffolding import assert_same_training, built, interrupted, lively
from sparserobust import sparsity, training
from sparserobust.analysis import LayerNorms, lipschitz, macs
from sparserobust.attacks import FGSM, PGD, predicted
from sparserobust.data import Split, Splits
from sparserobust.models import VGG16, NoisyWeights, is_noisy, noise_off, one_draw_a_pass
from sparserobust.models.gates import LIMITS, GatedConv2d, acting_weight, add_gates, gated
from sparserobust.models.preact_resnet import convolution
from sparserobust.models.resnet import classifier
from sparserobust.models.wide_resnet import WideResNet
from sparserobust.objectives import TRADES, Adversarial
from sparserobust.sparsifiers import Channels, LearnedScores, Magnitude

SHAPE = (1, 8, 8)
NETWORKS = {"wide_resnet": WideResNet(depth=10, widen=2, width=2, gated=True), "vgg16": VGG16(width=2, gated=True)}
every_network = pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)


def layer(log_alpha=None, **options) -> GatedConv2d:
    """Three channels to five filters in double precision; gates are shut, nearly shut, undecided and open."""
    result = GatedConv2d(3, 5, 3, padding=1, **options).double()
    result.log_alpha.data = torch.tensor(log_alpha or [LIMITS[0], -1.5, 0.0, 1.5, LIMITS[1]]).double()
    return result


def many(log_alpha: float, count: int = 40_000) -> GatedConv2d:
    """So many gates that are alike."""
    result = GatedConv2d(1, count, 1)
    nn.init.constant_(result.log_alpha, log_alpha)
    return result


def without_gates(settings, net) -> nn.Module:
    """The plain network whose weights are multiplied by the deterministic gates of `net`, written out."""
    plain = type(settings).parse(settings.plain() | {"gated": False}).build(SHAPE, 10).eval()
    state = {name: t.clone() for name, t in net.state_dict().items()}
    for name in [name for name in state if name.endswith("log_alpha")]:
        gate = (1.2 / (1 + (-state.pop(name)).exp()) - 0.1).clamp(0, 1)
        state[name.replace("log_alpha", "weight")] *= gate.view(-1, 1, 1, 1)
    plain.load_state_dict(state)
    return plain


# --- one gate


@pytest.mark.parametrize(("log_alpha", "probability", "gate"), [
    (math.log(0.7 / 0.3), 0.920, 0.74), (math.log(1e-2), 0.047, 0.0), (math.log(1e2), 0.998, 1.0), (0.0, 0.832, 0.5)])
def test_values_worked_out_by_hand(log_alpha, probability, gate):
    one = many(log_alpha, 1)
    assert one.open_probability().item() == pytest.approx(probability, abs=5e-4)
    assert one.eval().gates().item() == pytest.approx(gate, abs=1e-6)


def test_initial_gates():
    for given, mean in (({}, math.log(7 / 3)), ({"drop_rate": 0.5}, 0.0), ({"drop_rate": 0.1}, math.log(9))):
        log_alpha = GatedConv2d(1, 10_000, 1, **given).log_alpha
        assert log_alpha.mean().item() == pytest.approx(mean, abs=5e-4)
        assert log_alpha.std().item() == pytest.approx(0.01, rel=0.03)
        assert log_alpha.shape == (10_000,) and log_alpha.requires_grad
    kept = nn.Conv2d(3, 5, 3)
    state = {name: t.clone() for name, t in kept.state_dict().items()}
    add_gates(kept)
    assert isinstance(kept, GatedConv2d) and kept.log_alpha.mean().item() == pytest.approx(math.log(7 / 3), abs=0.02)
    assert all(torch.equal(kept.state_dict()[name], t) for name, t in state.items())


@pytest.mark.parametrize("log_alpha", [-3.0, 0.0, math.log(7 / 3), 3.0])
def test_samples_have_the_distribution_of_the_closed_form(log_alpha):
    """P(z <= x) = sigmoid(2/3 logit((x + 0.1) / 1.2) - log_alpha) below 1, with atoms at 0 and at 1."""
    gates = many(log_alpha).gates().detach().double()
    assert gates.min() >= 0 and gates.max() <= 1

    def below(x: float) -> float:
        y = (x + 0.1) / 1.2
        return 1 / (1 + math.exp(log_alpha - 2 / 3 * math.log(y / (1 - y))))

    def close(found: torch.Tensor, p: float):
        assert found.double().mean().item() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / len(gates)))

    for x in (0.1, 0.5, 0.9):
        close(gates <= x, below(x))
    close(gates == 1, 1 - below(1))
    close(gates > 0, 1 - below(0))
    assert many(log_alpha, 1).open_probability().item() == pytest.approx(1 - below(0), abs=1e-6)
    grid = torch.linspace(0, 1, 2001).double()[:-1] + 1 / 4000
    mean = sum(1 - below(x) for x in grid.tolist()) / len(grid)
    assert gates.mean().item() == pytest.approx(mean, abs=5 * gates.std().item() / math.sqrt(len(gates)))


def test_probabilities_are_clipped():
    far = torch.stack([many(v, 1).double().open_probability()[0] for v in (-40.0, 40.0)])
    assert torch.allclose(far, torch.tensor([1e-6, 1 - 1e-6]).double(), rtol=1e-4, atol=1e-9)


def test_a_gradient_reaches_the_open_probability():
    gates = layer()
    gates.open_probability().sum().backward()
    p = gates.open_probability().detach()
    assert torch.allclose(gates.log_alpha.grad, p * (1 - p))  # of a sigmoid


def test_clamp():
    gates = layer([-9.0, -4.0, 0.0, 4.0, 9.0])
    parameter = gates.log_alpha
    gates.clamp_()
    assert gates.log_alpha is parameter and parameter.requires_grad
    assert parameter.tolist() == pytest.approx([math.log(0.01), -4.0, 0.0, 4.0, math.log(100)])


# --- one layer


def test_training_takes_one_sample_a_pass_for_all_images():
    gates, x = layer(bias=False), torch.randn(1, 3, 6, 6).double().repeat(4, 1, 1, 1)
    torch.manual_seed(3)
    first, second = gates(x), gates(x)
    torch.manual_seed(3)
    for out in (first, second):
        z = gates.gates()
        expected = functional.conv2d(x, gates.weight * z.view(-1, 1, 1, 1), padding=1)
        assert torch.allclose(out, expected, rtol=1e-12) and torch.allclose(out[0], out[3], rtol=1e-12)
        assert torch.allclose(out, functional.conv2d(x, gates.weight, padding=1) * z.view(-1, 1, 1), rtol=1e-9)
    assert not torch.allclose(first, second, rtol=1e-2)


def test_eval_mode_multiplies_each_output_channel_and_throws_no_dice():
    gates, x = layer(stride=2, bias=False).eval(), torch.randn(4, 3, 6, 6).double()
    before = torch.get_rng_state()
    out, again = gates(x), gates(x)
    z = (1.2 * torch.sigmoid(gates.log_alpha) - 0.1).clamp(0, 1)
    assert z[0] == 0 and z[4] == 1 and 0 < z[2] < 1
    expected = functional.conv2d(x, gates.weight, None, 2, 1) * z.view(-1, 1, 1)
    assert torch.equal(out, again) and torch.allclose(out, expected, rtol=1e-9)
    assert torch.allclose(gates.effective_weight(), gates.weight * z.view(-1, 1, 1, 1), rtol=1e-9)
    assert torch.equal(gates.train().effective_weight(), gates.eval().effective_weight())
    assert torch.equal(acting_weight(gates), gates.effective_weight())
    assert torch.equal(torch.get_rng_state(), before)
    plain = nn.Linear(2, 3)
    assert acting_weight(plain) is plain.weight


@pytest.mark.parametrize("is_training", [True, False])
def test_gradients_against_finite_differences(is_training):
    """With the sample held: of gates, of weights, and of the image; a bias is not gated."""
    gates, x = layer([-2.0, -1.0, 0.0, 1.0, 2.0]).train(is_training), torch.randn(2, 3, 4, 4).double()

    def loss():
        torch.manual_seed(5)
        return gates(x).tanh().square().sum()

    x.requires_grad_(True)
    loss().backward()
    for t in (gates.log_alpha, gates.weight, gates.bias, x):
        flat, slopes = t.data.view(-1), []
        for i in range(0, t.numel(), 7 if t.dim() == 4 else 1):
            values = []
            for shift in (1e-5, -2e-5, 1e-5):
                flat[i] += shift
                values.append(loss().item())
            slopes.append((values[0] - values[1]) / 2e-5)
        found = t.grad.view(-1)[::7 if t.dim() == 4 else 1]
        assert torch.allclose(found, torch.tensor(slopes).double(), rtol=1e-5, atol=1e-6)
        assert (found != 0).sum() >= 3
    gates.log_alpha.data.fill_(-40.0)
    assert torch.equal(gates(x), gates.bias.view(-1, 1, 1).expand(2, 5, 4, 4))


def test_autocast_and_channels_last():
    gates, x = layer(bias=False).float().to(memory_format=torch.channels_last), torch.randn(4, 3, 6, 6)
    x = x.to(memory_format=torch.channels_last)
    assert gates.effective_weight().stride() == gates.weight.stride() and not gates.weight.is_contiguous()
    found = {}
    for precise in (True, False):
        torch.manual_seed(1)
        gates.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            out = gates(x)
        assert out.dtype == (torch.float32 if precise else torch.bfloat16)
        assert out.is_contiguous(memory_format=torch.channels_last)
        out.float().square().sum().backward()
        assert gates.log_alpha.grad.dtype == torch.float32
        found[precise] = torch.cat([out.detach().float().flatten(), gates.log_alpha.grad])
    assert torch.allclose(found[False], found[True], rtol=0.03, atol=0.03)


# --- networks


@every_network
def test_a_network_begins_with_the_weights_it_has_without_gates(settings):
    torch.manual_seed(0)
    net = settings.build(SHAPE, 10)
    torch.manual_seed(0)
    plain = type(settings).parse(settings.plain() | {"gated": False}).build(SHAPE, 10)
    assert all(torch.equal(net.state_dict()[name], t) for name, t in plain.state_dict().items())
    new = set(net.state_dict()) - set(plain.state_dict())
    assert new == {f"{name}.log_alpha" for name in gated(net)} and not gated(plain)
    assert list(sparsity.prunable(net)) == list(sparsity.prunable(plain))
    assert sparsity.zero_weights(net) == sparsity.zero_weights(plain)
    assert type(settings)().plain() == {"kind": settings.kind}  # identities are those of before


def test_which_layers_of_vgg_are_gated():
    convolutions = [m for m in VGG16(width=2, gated=True).build(SHAPE, 10).modules() if isinstance(m, nn.Conv2d)]
    assert [type(m) for m in convolutions] == [nn.Conv2d] + [GatedConv2d] * 12
    assert VGG16(gated=True).cost == VGG16().cost and VGG16(gated=True).identity != VGG16().identity


def test_weights_of_vgg_are_drawn_layer_by_layer():
    """In this order and no other, so that stored results stay what they are."""
    torch.manual_seed(0)
    net = VGG16(width=3).build((3, 8, 8), 7)
    torch.manual_seed(0)
    widths = [3, 3, 3, 6, 6, 12, 12, 12, 24, 24, 24, 24, 24, 24]
    for weight, (channels, out) in zip(sparsity.convolutions(net).values(), pairwise(widths), strict=True):
        assert torch.equal(weight, convolution(channels, out, 3).weight)
    assert torch.equal(net.linear.weight, classifier(24, 7).weight)


@every_network
def test_in_eval_mode_it_is_the_network_with_the_gates_multiplied_in(settings):
    net, x = lively(built(settings)).eval().double(), torch.rand(5, *SHAPE).double()
    expected = without_gates(settings, net).double()(x)
    assert torch.allclose(net(x), expected, rtol=1e-6)
    assert (expected.std(0) > 0).all()
    plain = without_gates(settings, net)
    plain.load_state_dict(net.state_dict(), strict=False)  # gates left out
    assert not torch.allclose(net(x), plain.double()(x), rtol=1e-2)


@every_network
def test_noise_is_what_others_have(settings):
    """Random in training mode and silent in eval mode: attacks need not average."""
    net, x = lively(built(settings)).eval(), torch.rand(3, *SHAPE)
    for mode in (True, False):
        net.train(mode)
        assert not is_noisy(net) and not one_draw_a_pass(net)
        assert torch.equal(deepcopy(net)(x), deepcopy(net)(x)) != mode
    with noise_off(net.train()):
        assert not torch.equal(net(x), net(x))


ATTACKERS = {"pgd": Adversarial(attack=PGD(epsilon=0.1, step_size=0.05, steps=2, random_start=False)),
             "fgsm": Adversarial(attack=FGSM(epsilon=0.1)), "trades": TRADES(epsilon=0.1, step_size=0.05, steps=2)}


@pytest.mark.parametrize("objective", ATTACKERS.values(), ids=ATTACKERS)
@every_network
def test_training_attacks_the_deterministic_network_and_learns_on_samples(settings, objective):
    net, images, labels = lively(built(settings)).train(), torch.rand(4, *SHAPE), torch.arange(4)
    seen = []
    for gates in gated(net).values():
        gates.register_forward_hook(lambda m, inputs, output: seen.append((m.training, torch.is_grad_enabled())))
    objective(net, images, labels, torch.Generator().manual_seed(0)).backward()
    count, learnt = len(gated(net)), 2 if isinstance(objective, TRADES) else 1
    assert len(seen) > learnt * count
    assert [mode for mode, _ in seen] == [False] * (len(seen) - learnt * count) + [True] * (learnt * count)
    assert all(gates.log_alpha.grad is not None for gates in gated(net).values())


@every_network
def test_an_attack_does_not_depend_on_mode_or_dice(settings):
    net, images, labels = lively(built(settings)).eval(), torch.rand(6, *SHAPE), torch.arange(6)
    attack, found = ATTACKERS["pgd"].attack, []
    for mode in (False, True, True):
        torch.manual_seed(len(found))
        before = torch.get_rng_state()
        found.append((attack(net.train(mode), images, labels), predicted(net, images)))
        assert torch.equal(torch.get_rng_state(), before)
        assert all(gates.training == mode and gates.log_alpha.requires_grad for gates in gated(net).values())
    assert (found[0][0] != images).any()
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("sparsifier", [Magnitude(sparsity=0.5), LearnedScores(sparsity=0.5), Channels(sparsity=0.3)],
                         ids=lambda s: s.kind)
@every_network
def test_sparsifiers_prune_weights_and_leave_gates(settings, sparsifier):
    net = lively(built(settings)).eval()
    before = {name: gates.log_alpha.detach().clone() for name, gates in gated(net).items()}
    sparsifier.start(net)
    assert sparsity.sparsity(net) >= sparsifier.sparsity - 0.01
    assert all(torch.equal(gates.log_alpha, before[name]) for name, gates in gated(net).items())


@every_network
def test_an_interrupted_training_equals_an_undisturbed_one(settings, tiny_run, digits, tmp_path):
    run = tiny_run(model=settings, epochs=2, averaging=0.9, objective=ATTACKERS["fgsm"])
    resumed = interrupted(run, digits, tmp_path / "checkpoint", [1])
    assert_same_training(resumed, training.train(run, digits))
    assert len(resumed.history) == 2
    after, fresh = resumed.model.state_dict(), training.build(run, digits).state_dict()
    assert all((after[name] != fresh[name]).any() for name in after if name.endswith("log_alpha"))


# --- analysis


@pytest.mark.parametrize("norm", lipschitz.NORMS)
@every_network
def test_bounds_are_those_of_the_network_with_the_gates_multiplied_in(settings, norm):
    net = lively(built(settings)).train()
    plain = without_gates(settings, net)
    bound = lipschitz.margin_bound(net, SHAPE, norm)
    assert torch.allclose(bound, lipschitz.margin_bound(plain, SHAPE, norm), rtol=1e-5, atol=0)
    found, expected = (lipschitz.layer_norms(one, SHAPE, norm) for one in (net, plain))
    assert list(found) == list(expected) and found == pytest.approx(expected, rel=1e-5)
    shapes = [list(lipschitz.input_shapes(one, SHAPE).values()) for one in (net, plain)]
    assert shapes[0] == shapes[1] and net.training
    plain.load_state_dict(net.state_dict(), strict=False)
    assert lipschitz.margin_bound(plain, SHAPE, norm)[0, 1] > 1.2 * bound[0, 1]


@every_network
def test_measurements_of_layers(settings):
    net = lively(built(settings)).eval()
    images = Split(torch.rand(2, *SHAPE), torch.tensor([0, 1]))
    data = Splits(images, images, images, tuple(map(str, range(10))))
    plain = without_gates(settings, net)
    found, expected = (LayerNorms()(one, data) for one in (net, plain))
    assert found["value"] == pytest.approx(expected["value"], rel=1e-4)
    for name, values in expected["layers"].items():
        assert found["layers"][name] == pytest.approx(values, rel=1e-4), name
    closed = {name: int((gates.gates() == 0).sum()) for name, gates in gated(net).items()}
    assert sum(closed.values()) > 0
    for name, gates in gated(net).items():  # a shut gate costs a rank
        assert found["layers"][name]["rank"] <= 1 - closed[name] / len(gates.log_alpha) + 1e-9
    assert macs(net, SHAPE) == macs(plain, SHAPE)


def test_gates_are_not_decayed_and_know_no_noise_on_weights(tiny_run, digits, refusal):
    """Weight decay would draw every gate to the middle of its range."""
    run = tiny_run(model=WideResNet(depth=10, widen=1, width=2, gated=True), epochs=1, lr=1e-12, weight_decay=1e9,
                   momentum=0.0, precision="float32")
    before, after = (dict(net.named_parameters()) for net in (training.build(run, digits),
                                                              training.train(run, digits).model))
    for name, p in before.items():
        decayed = not torch.allclose(p, after[name], rtol=1e-4, atol=1e-6)
        assert decayed == (not name.endswith("log_alpha") and bool(p.any())), name
    assert "gates" in refusal(NoisyWeights(model=run.model).build, (1, 8, 8), 10)


def test_history_says_how_open_the_gates_of_each_layer_are(tiny_run, digits):
    run = tiny_run(model=WideResNet(depth=10, widen=1, width=4, gated=True))
    trained = training.train(run, digits)
    assert all(list(epoch["gates"]) == list(gated(trained.model)) for epoch in trained.history)
    for name, gate in gated(trained.model).items():
        assert trained.history[-1]["gates"][name] == pytest.approx(float(gate.open_probability().detach().mean()))
    assert "gates" not in training.train(tiny_run(), digits).history[0]
