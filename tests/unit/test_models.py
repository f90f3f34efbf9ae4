"""Networks against the released architecture written out with functional calls, and noise against its formula."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from scaffolding import lively, seeded
from sparserobust import training
from sparserobust.config import Inheritance, Model
from sparserobust.inheritance import inherit
from sparserobust.models import NoisyWeights, PreActResNet, compact, gated, is_noisy, noise_off
from sparserobust.models.noise import Noise, gaussian_like, standard_deviation
from sparserobust.models.preact_resnet import Block
from sparserobust.sparsifiers import Channels
from sparserobust.sparsity import convolutions, parameters, prunable

SHAPES = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
every_layout = pytest.mark.parametrize("layout", SHAPES.values(), ids=SHAPES)


def built(image_shape=(3, 32, 32), **settings):
    return PreActResNet(**settings).build(image_shape, 10)


# --- counts


@pytest.mark.parametrize(("settings", "expected"), [
    ({"depth": 20}, 272_282),
    ({"depth": 20, "members": 2, "noise": 0.1}, 544_564),
    ({"depth": 38}, 563_930),
    ({"depth": 20, "members": 5, "noise": 0.1}, 1_361_410),
], ids=["ResNet20", "En2ResNet20", "ResNet38", "En5ResNet20"])
def test_number_of_parameters(settings, expected):
    assert parameters(built(**settings)) == expected


@pytest.mark.parametrize(("depth", "count"), [(8, 9), (20, 21), (38, 39), (44, 45)])
def test_number_of_convolutions(depth, count):
    """A stem, 6n in blocks, two 1x1 shortcuts; with the linear layer and without the shortcuts: the depth."""
    model = built(depth=depth)
    kernels = [w.shape[-1] for w in convolutions(model).values()]
    assert len(kernels) == count and kernels.count(1) == 2
    assert len(prunable(model)) - 2 == depth


def test_convolution_weights_of_resnet20():
    assert sum(w.numel() for w in convolutions(built()).values()) == 270_256


@pytest.mark.parametrize("image_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_logits_for_every_image_shape(image_shape):
    model = PreActResNet(depth=8, width=4, members=2).build(image_shape, 7)
    assert model(torch.rand(5, *image_shape)).shape == (5, 7)


def test_members_differ_and_so_do_seeds():
    model = built(depth=8, width=4, members=2)
    first, second = (member.stem.weight for member in model.members)
    assert not torch.equal(first, second)
    assert not torch.equal(first, built(depth=8, width=4, members=2).members[0].stem.weight)


@pytest.mark.parametrize(("change", "words"), [
    ({"depth": 18}, ["6n+2", "18"]),
    ({"depth": 2}, ["6n+2"]),
    ({"width": 0}, ["width"]),
    ({"members": 0}, ["members"]),
    ({"noise": -0.1}, ["noise"]),
    ({"widths": [4, 8]}, ["three", "(4, 8)"]),
    ({"widths": [4, 0, 8]}, ["from 1", "(4, 0, 8)"]),
    ({"widths": [4, 8, 16], "width": 4}, ["widths", "one of the two"]),
    ({"widht": 8}, ["'width'"]),
    ({"kind": "preact"}, ["'preact_resnet'"]),
], ids=str)
def test_wrong_settings(refusal, change, words):
    message = refusal(Model.parse, {"kind": "preact_resnet"} | change)
    assert all(word in message for word in words), message


# --- widths of stages

UNEVEN = {"depth": 8, "widths": (5, 3, 7)}


@given(depth=st.sampled_from([8, 14, 20]), widths=st.tuples(*[st.integers(1, 9)] * 3),
       members=st.integers(1, 2), channels=st.integers(1, 3), classes=st.integers(2, 11))
def test_number_of_weights_in_closed_form(depth, widths, members, channels, classes):
    model = PreActResNet(depth=depth, widths=widths, members=members)
    counted = sum(w.numel() for w in prunable(model.build((channels, 8, 8), classes)).values())
    assert model.weights(channels, classes) == counted
    other = replace(model, widths=(2, 2, 2))
    stages = [np.array([w, 2 * w]) for w in widths]
    assert other.weights(channels, classes, widths) == counted
    assert other.weights(channels, classes, stages)[0] == counted


@pytest.mark.parametrize("width", [1, 3, 8, 16])
def test_widths_that_are_those_of_a_width_are_the_same_network(width):
    usual = PreActResNet(depth=8, width=width, members=2)
    spelt = PreActResNet(depth=8, widths=(width, 2 * width, 4 * width), members=2)
    nets = []
    for model in (usual, spelt):
        torch.manual_seed(3)
        nets.append(model.build((1, 8, 8), 10).state_dict())
    assert nets[0].keys() == nets[1].keys() and all(torch.equal(nets[0][k], nets[1][k]) for k in nets[0])
    assert usual.cost == spelt.cost == 2 * 6 * (1 + width / 16) and usual.stages == spelt.stages
    assert usual.plain().keys() == {"kind", "depth", "members"} | ({"width"} if width != 16 else set())


def test_widths_of_each_stage():
    wide = [w.shape[0] for w in convolutions(built(depth=14, widths=(5, 3, 7))).values()]
    assert wide == [5] * 5 + [3] * 5 + [7] * 5  # the stem, four convolutions a stage, two shortcuts
    assert built(depth=14, widths=(5, 3, 7)).members[0].linear.in_features == 7
    assert PreActResNet(widths=(8, 16, 32)).cost < PreActResNet(widths=(9, 16, 32)).cost < PreActResNet().cost


def test_widths_survive_plain_and_parse():
    model = PreActResNet(**UNEVEN)
    again = Model.parse(json.loads(json.dumps(model.plain())))
    assert again == model and again.identity == model.identity and model.fits(again)
    assert not model.fits(replace(model, widths=(5, 3, 8)))


def test_a_network_of_any_widths_is_inherited_by_a_wider_one():
    """With kappa 0 the wider one computes the same."""
    small, images = lively(built(**UNEVEN)).eval(), torch.rand(4, 3, 32, 32)
    large = built(depth=8, widths=(5, 6, 8)).eval()
    before = large(images)
    inherit(large, small.state_dict(), Inheritance(kappa=0.0))
    linear = large.members[0].linear.weight
    assert (linear[:, 7:] == 0).all() and torch.equal(linear[:, :7], small.members[0].linear.weight)
    assert torch.allclose(large(images), small(images), atol=1e-5)
    assert not torch.allclose(large(images), before, atol=1e-2)


@pytest.mark.parametrize("changes", [{}, {"members": 2, "noise": 0.1}, {"gated": True}], ids=str)
def test_channels_of_a_network_of_any_widths_are_removed(changes):
    model = lively(built(**UNEVEN, **changes)).eval()
    assert len(gated(model)) == (3 if "gated" in changes else 0)
    Channels(share=0.4).start(model)
    small, images = compact(model), torch.rand(4, 3, 32, 32)
    for member in small.members:  # 40 % of 5, 3 and 7 channels are gone, rounded down
        assert [block.conv1.weight.shape[0] for block in member.blocks] == [3, 2, 5]
    with noise_off(model), noise_off(small):
        assert torch.allclose(model(images), small(images), atol=1e-5)


def test_a_network_of_any_widths_is_trained(tiny_run, digits):
    model = NoisyWeights(model=PreActResNet(**UNEVEN))
    before = training.build(tiny_run(model=model), digits)
    after = training.train(tiny_run(model=model), digits).model
    for (name, w), v in zip(prunable(after).items(), prunable(before).values(), strict=True):
        assert w.shape == v.shape and not torch.equal(w.cpu(), v.cpu()), name


# --- formulas


def block_by_hand(weights: dict, x, stride: int, training: bool):
    """BaoWangMath/EnResNet, PreActBasicBlock."""
    def norm(x, name):
        mean, var = (None, None) if training else (weights[f"{name}.running_mean"], weights[f"{name}.running_var"])
        return functional.batch_norm(x, mean, var, weights[f"{name}.weight"], weights[f"{name}.bias"], training)

    out = norm(x, "norm1").relu()
    shortcut = weights.get("shortcut.weight")
    residual = x if shortcut is None else functional.conv2d(out, shortcut, stride=stride)
    out = functional.conv2d(out, weights["conv1.weight"], stride=stride, padding=1)
    return functional.conv2d(norm(out, "norm2").relu(), weights["conv2.weight"], padding=1) + residual


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("out", "stride"), [(4, 1), (8, 2), (8, 1)])
def test_block(out, stride, training):
    block = lively(Block(4, out, stride, noise=0.0)).train(training)
    x = torch.randn(6, 4, 9, 9)
    weights = {key: t.clone() for key, t in block.state_dict().items()}
    assert torch.allclose(block(x), block_by_hand(weights, x, stride, training), atol=1e-5)


def test_noise_comes_last_in_a_block():
    block = lively(Block(4, 8, 2, noise=0.1)).eval()
    x = torch.randn(6, 4, 9, 9)
    with torch.random.fork_rng():
        out = block(x)
    clean = block_by_hand(block.state_dict(), x, 2, training=False)
    assert torch.allclose(out, clean + 0.1 * clean.std() * torch.randn_like(clean), atol=1e-5)


@pytest.mark.parametrize(("depth", "widths"), [(8, ()), (14, ()), (8, (5, 3, 6)), (14, (4, 4, 1))])
def test_network(depth, widths):
    """Stem without norm, blocks with strides 1, 2, 2, then norm, ReLU, mean over the image, linear."""
    channels = {"widths": widths} if widths else {"width": 4}
    model = lively(PreActResNet(depth=depth, **channels).build((2, 12, 12), 5)).eval()
    weights = {key.removeprefix("members.0."): t for key, t in model.state_dict().items()}
    images = torch.rand(3, 2, 12, 12)
    x = functional.conv2d(images, weights["stem.weight"], padding=1)
    each = (depth - 2) // 6
    for i in range(3 * each):
        block = {key.removeprefix(f"blocks.{i}."): t for key, t in weights.items() if key.startswith(f"blocks.{i}.")}
        x = block_by_hand(block, x, 2 if i in (each, 2 * each) else 1, training=False)
    assert x.shape == (3, widths[-1] if widths else 16, 3, 3)
    x = functional.batch_norm(x, *(weights[f"norm.{key}"] for key in ("running_mean", "running_var", "weight", "bias")))
    logits = functional.linear(x.relu().flatten(2).mean(2), weights["linear.weight"], weights["linear.bias"])
    assert torch.allclose(model(images), logits, atol=1e-5)


def test_ensemble_is_the_mean_of_its_members_logits():
    model = built(depth=8, width=4, members=3).eval()
    images = torch.rand(4, 3, 32, 32)
    assert torch.allclose(model(images), torch.stack([m(images) for m in model.members]).mean(0), atol=1e-6)


def test_initial_weights_are_gaussian_with_the_released_spread():
    for name, w in convolutions(built()).items():
        out, _, kernel, _ = w.shape
        expected = (2 / (kernel**2 * out)) ** 0.5
        assert w.std().item() == pytest.approx(expected, rel=4 / (2 * w.numel()) ** 0.5), name
        assert abs(w.mean()) < 4 * expected / w.numel() ** 0.5
        if w.numel() > 9000:
            assert (w.abs() > 2 * expected).double().mean().item() == pytest.approx(0.0455, abs=0.007), name


# --- noise


@every_layout
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 2.0), (-1.0, 0.5), (1e-4, 1e-3)])
def test_standard_deviation(mean, std, layout):
    x = (mean + std * torch.randn(16, 8, 8, 8)).contiguous(memory_format=layout)
    assert standard_deviation(x).dtype == torch.float32
    assert standard_deviation(x).item() == pytest.approx(x.double().std().item(), rel=1e-5)
    rough = x.bfloat16()
    assert standard_deviation(rough).dtype == torch.float32
    assert standard_deviation(rough).item() == pytest.approx(rough.double().std().item(), rel=1e-5)


def test_standard_deviation_of_few_entries_is_the_unbiased_one():
    assert standard_deviation(torch.tensor([1.0, 3.0])).item() == pytest.approx(2**0.5)


def test_gradient_flows_through_the_standard_deviation():
    x, y = (torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1)).requires_grad_(True) for _ in "ab")
    standard_deviation(x).backward()
    y.std().backward()
    assert torch.allclose(x.grad, y.grad, rtol=1e-4, atol=1e-7) and x.grad.abs().max() > 1e-3


def test_gradient_of_noise():
    """Of all parts of x + level * std(x) * gaussian, the gaussian held fixed."""
    x, y = (torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1)).requires_grad_(True) for _ in "ab")
    weight = torch.randn(4, 3, 5, 5)
    with torch.random.fork_rng():
        (Noise(0.5)(x) * weight).sum().backward()
    ((y + 0.5 * y.std() * torch.randn(y.shape)) * weight).sum().backward()
    assert torch.allclose(x.grad, y.grad, rtol=1e-4, atol=1e-5) and not torch.allclose(x.grad, weight, atol=1e-2)


def noisy(x, level, seed=3):
    """The layer with its draws fixed."""
    with seeded(seed):
        return Noise(level)(x)


@every_layout
@pytest.mark.parametrize("level", [0.1, 2.0])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_gradient_of_noise_against_finite_differences(level, mean, layout):
    x = (mean + torch.randn(3, 2, 4, 3, dtype=torch.float64)).contiguous(memory_format=layout).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: noisy(x, level), x, atol=1e-8, rtol=1e-6)


@every_layout
def test_gradient_of_noise_of_a_transposed_or_sliced_tensor(layout):
    """Which is dense in no memory format; nor need the gradient that arrives have the layout of x."""
    x = torch.randn(2, 3, 4, 2, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: noisy(x.transpose(0, 3), 0.5), x)
    assert torch.autograd.gradcheck(lambda x: noisy(x[:, :, ::2], 0.5), x)
    assert torch.autograd.gradcheck(lambda x: noisy(x, 0.5).transpose(1, 2).contiguous() ** 2, x)
    (gradient,) = torch.autograd.grad(noisy(x, 0.5).sum(), x)  # an expanded one: a single entry in memory
    assert gradient.shape == x.shape and torch.autograd.gradcheck(lambda x: noisy(x, 0.5).sum(), x)


@every_layout
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 1.0), (-0.5, 0.25), (0.0, 100.0)])
def test_bfloat16_gradients_are_float32s_to_bfloat16_precision(mean, std, layout):
    """Where the standard deviation matters most, for gradients along the noise, and for others."""
    rough = (mean + std * torch.randn(16, 8, 10, 10)).bfloat16().contiguous(memory_format=layout).requires_grad_(True)
    fine = rough.detach().float().requires_grad_(True)
    out, exact = noisy(rough, 0.5), noisy(fine, 0.5)
    assert out.dtype == torch.bfloat16 and out.is_contiguous(memory_format=layout)
    torch.testing.assert_close(out.float(), exact, rtol=2**-7, atol=2**-7 * (abs(mean) + std))
    added = (exact - fine).detach() / std
    for weight in (added, added + torch.randn_like(added), torch.randn_like(added)):
        weight = weight.bfloat16()
        (ours,) = torch.autograd.grad(out, rough, weight, retain_graph=True)
        (expected,) = torch.autograd.grad(exact, fine, weight.float(), retain_graph=True)
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), expected, rtol=2**-7, atol=2**-7)
    assert (expected - weight.float()).abs().max() < 0.1
    (along,) = torch.autograd.grad(exact, fine, added)
    assert (along - added).abs().max() > 0.5  # that the standard deviation does matter


def test_dead_activations_have_finite_gradients():
    x = torch.zeros(4, 3, 5, 5, requires_grad=True)
    Noise(0.1)(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@every_layout
def test_gaussian_like_is_standard_and_keeps_the_layout(layout):
    x = torch.full((32, 8, 10, 12), 7.0).contiguous(memory_format=layout)
    gaussian = gaussian_like(x)
    assert gaussian.shape == x.shape and gaussian.stride() == x.stride() and gaussian.dtype == x.dtype
    n = x.numel()
    assert abs(gaussian.mean()) < 4 / n**0.5 and abs(gaussian.std() - 1) < 4 / (2 * n) ** 0.5
    assert gaussian.unique().numel() > 0.99 * n  # every entry has its own draw
    assert gaussian_like(x.bfloat16()).dtype == torch.bfloat16
    assert gaussian_like(x.transpose(0, 3)).shape == (12, 8, 10, 32)


@every_layout
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("level", [0.1, 0.3])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_noise_scales_with_level_and_activations(level, scale, training, layout):
    x = (3 + scale * torch.randn(32, 8, 10, 10)).contiguous(memory_format=layout)
    added = Noise(level).train(training)(x) - x
    assert added.std().item() == pytest.approx(level * scale, rel=0.02)
    assert abs(added.mean()) < 4 * level * scale / x.numel() ** 0.5
    assert added.mean((1, 2, 3)).std() < 2 * level * scale / 800**0.5  # images have noise of their own


def test_no_noise_is_the_identity():
    x = torch.randn(2, 3, 4, 4)
    before = torch.get_rng_state()
    assert torch.equal(Noise(0.0)(x), x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("training", [False, True])
def test_is_noisy_is_whether_passes_differ(training):
    images = torch.rand(4, 3, 32, 32)
    for noise in (0.0, 0.1):
        model = built(depth=8, width=4, members=2, noise=noise).train(training)
        assert is_noisy(model) == bool(noise) == (not torch.equal(model(images), model(images)))


def test_noise_off():
    model = built(depth=8, width=4, members=2, noise=0.1).eval()
    quiet = built(depth=8, width=4, members=2).eval()
    quiet.load_state_dict(model.state_dict())
    images = torch.rand(4, 3, 32, 32)
    layers = [m for m in model.modules() if isinstance(m, Noise)]
    assert len(layers) == 6
    layers[0].level = 0.2
    with noise_off(model) as inside:
        assert inside is model and not is_noisy(model)
        assert torch.equal(model(images), quiet(images))
    assert [layer.level for layer in layers] == [0.2] + [0.1] * 5
    with pytest.raises(KeyError), noise_off(model):
        raise KeyError
    assert [layer.level for layer in layers] == [0.2] + [0.1] * 5
