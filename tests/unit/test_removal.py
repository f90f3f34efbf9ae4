"""Channels removed from networks of any kind: the answers stay, and what goes is counted by hand."""

import sys
import threading
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from scaffolding import generator, lively, seeded, splits_of
from sparserobust import analysis, models
from sparserobust.models import compact, is_noisy, noise_off
from sparserobust.models.couplings import IN, OUT, Couplings
from sparserobust.models.noise import Noise
from sparserobust.models.removal import keep
from sparserobust.sparsity import parameters

SHAPE = (3, 8, 8)


class Layers(nn.Module):
    """A network of named layers whose `forward` is a function of them and of the images."""

    def __init__(self, call, **layers):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.call(self, x)


def two(call=lambda net, x: net.linear(net.b(functional.relu(net.a(x))).mean((2, 3))), **more) -> Any:
    """Two convolutions and a linear layer: 3 -> 8 -> 8 -> 10 channels, 224 + 584 + 90 parameters."""
    with seeded():
        layers = {"a": nn.Conv2d(3, 8, 3, padding=1), "b": nn.Conv2d(8, 8, 3, padding=1), "linear": nn.Linear(8, 10)}
        return Layers(call, **(layers | more)).eval()


def chain(padding: int = 0) -> Any:
    """3 -> 8 -> 6 channels with a norm between, then 6x6 or 8x8 pixels to 10 logits."""
    with seeded():
        side = 6 + 2 * padding
        return lively(nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=padding), nn.ReLU(),
            nn.Flatten(), nn.Linear(6 * side**2, 10)), both_signs=True).eval()


@torch.no_grad()
def unread(layer: Any, *channels: int) -> None:
    """These input channels of a layer get zero weights."""
    (layer.weight if getattr(layer, "transposed", False) else layer.weight.transpose(0, 1))[list(channels)] = 0


@torch.no_grad()
def assert_same(net, small, shape=SHAPE) -> None:
    """In double precision, on other images than compact tries."""
    images = torch.rand(5, *shape, generator=generator(7), dtype=torch.float64) * 2 - 0.5
    a, b = deepcopy(net).double().eval(), deepcopy(small).double().eval()
    with noise_off(a), noise_off(b):
        expected, answers = a(images), b(images)
    assert expected.isfinite().all() and expected.abs().max() > 1e-6
    assert (answers - expected).abs().max() <= 1e-6 * expected.abs().max()


def removed(net, shape=SHAPE) -> int:
    """Number of parameters that compact removes; the answers are the same."""
    small = compact(net, image_shape=shape)
    assert_same(net, small, shape)
    return parameters(net) - parameters(small)


# --- any pattern of zeros, in any network


class Residual(nn.Module):
    def __init__(self, channels: int, gate: bool):
        super().__init__()
        self.a, self.norm = nn.Conv2d(channels, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.b = nn.Conv2d(5, channels, 1)
        self.squeeze, self.excite = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1)
        self.gate = gate

    def forward(self, x):
        y = self.b(functional.silu(self.norm(self.a(x))))
        if self.gate:
            y = y * torch.sigmoid(self.excite(functional.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + y


class Joined(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, 3, 3, padding=1), nn.Conv2d(channels, 4, 1)

    def forward(self, x):
        return torch.cat([self.a(x).relu(), x, functional.gelu(self.b(x))], 1)


class Halves(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.a = nn.Conv2d(channels, 8, 3, padding=1)

    def forward(self, x):
        a, b = self.a(x).chunk(2, 1)
        return a * torch.sigmoid(b)


PARTS = {  # channels in to a part of a network and its channels out
    "convolution": lambda c: (nn.Sequential(nn.Conv2d(c, 6, 3, padding=1), nn.ReLU()), 6),
    "norm": lambda c: (nn.Sequential(nn.Conv2d(c, 5, 3, 2, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU6()), 5),
    "depthwise": lambda c: (nn.Sequential(
        nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False), nn.BatchNorm2d(c), nn.Hardswish(), nn.Conv2d(c, 7, 1)), 7),
    "groups": lambda c: (nn.Sequential(nn.Conv2d(c, 6, 1), nn.Conv2d(6, 9, 3, padding=1, groups=3), nn.PReLU(9)), 9),
    "transposed": lambda c: (nn.Sequential(nn.ConvTranspose2d(c, 4, 3), nn.LeakyReLU()), 4),
    "residual": lambda c: (Residual(c, gate=False), c),
    "gated": lambda c: (Residual(c, gate=True), c),
    "joined": lambda c: (Joined(c), c + 7),
    "halves": lambda c: (Halves(c), 4),
    "pool": lambda c: (nn.MaxPool2d(2, ceil_mode=True), c),
}


@settings(max_examples=25)
@given(seed=st.integers(0, 999), parts=st.lists(st.sampled_from(list(PARTS)), min_size=1, max_size=4),
       share=st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]), out=st.booleans(), flat=st.booleans())
def test_random_zeros_in_random_networks(seed, parts, share, out, flat):
    with seeded(seed):
        layers: list[nn.Module] = [nn.Conv2d(3, 6, 3, padding=1)]
        channels = 6
        for name in parts:
            part, channels = PARTS[name](channels)
            layers.append(part)
        body = nn.Sequential(*layers).eval()
        side = body(torch.zeros(1, *SHAPE)).shape[-1]
        head = [nn.Flatten(), nn.Linear(channels * side**2, 9)] if flat else [nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                                                            nn.Linear(channels, 9)]
        net = lively(nn.Sequential(body, *head, nn.Tanh(), nn.Linear(9, 4)), both_signs=True).eval()
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
                with torch.no_grad():
                    layer.weight[torch.rand(layer.weight.shape[:2]) < share / 3] = 0
                    if out:  # whole filters
                        layer.weight[torch.rand(len(layer.weight)) < share] = 0
                        if layer.bias is not None:
                            layer.bias[torch.rand(len(layer.bias)) < share] = 0
                unread(layer, *(torch.rand(layer.weight.shape[int(not getattr(layer, "transposed", False))])
                                < share).nonzero().flatten().tolist())
        net[-1].bias.data += 1  # an answer that is zero everywhere would hide anything
    small = compact(net, image_shape=SHAPE)
    assert_same(net, small)
    assert parameters(small) <= parameters(net)
    if share == 0.3:  # with more, a layer that keeps one channel may keep a better one the second time
        assert parameters(compact(small, image_shape=SHAPE)) == parameters(small) < parameters(net)


# --- networks of torchvision: all channels with an even number are unread, so that about a quarter is left


def vision(name: str) -> nn.Module:
    from torchvision import models as tv
    from torchvision.models import convnext, densenet, efficientnet, regnet, resnet, vgg
    from torchvision.models.googlenet import Inception
    from torchvision.models.inception import InceptionA

    def plain(norm: bool) -> nn.Module:
        net = vgg.VGG(vgg.make_layers([8, "M", 12, 12, "M", 16], norm), num_classes=10, init_weights=False)
        net.avgpool, net.classifier[0] = nn.AdaptiveAvgPool2d(2), nn.Linear(64, 32)
        net.classifier[3], net.classifier[6] = nn.Linear(32, 32), nn.Linear(32, 10)
        return net

    def regular() -> nn.Module:
        settings = regnet.BlockParams.from_init_params(depth=4, w_0=16, w_a=8.0, w_m=2.0, group_width=8, se_ratio=0.25)
        return regnet.RegNet(settings, num_classes=10)

    inverted = [efficientnet.MBConvConfig(e, 3, s, i, o, 1) for e, s, i, o in ((1, 1, 16, 16), (4, 2, 16, 24),
                                                                               (4, 1, 24, 24))]
    build: dict[str, Any] = {
        "resnet": lambda: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10),
        "bottleneck": lambda: resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=10, width_per_group=8),
        "vgg": lambda: plain(False), "vgg_bn": lambda: plain(True),
        "mobilenet_v2": lambda: tv.mobilenet_v2(width_mult=0.25, num_classes=10),
        "mobilenet_v3": lambda: tv.mobilenet_v3_small(width_mult=0.25, num_classes=10),
        "densenet": lambda: densenet.DenseNet(8, (2, 2, 2, 2), 16, num_classes=10),
        "squeezenet": lambda: tv.squeezenet1_1(num_classes=10),
        "efficientnet": lambda: efficientnet.EfficientNet(inverted, 0.2, num_classes=10),
        "regnet": regular, "mnasnet": lambda: tv.MNASNet(0.35, num_classes=10),
        "googlenet": lambda: nn.Sequential(nn.Conv2d(3, 12, 3), Inception(12, 8, 4, 8, 4, 8, 4),
                                           nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(28, 10)),
        "inception": lambda: nn.Sequential(nn.Conv2d(3, 12, 3), InceptionA(12, 8), nn.AdaptiveAvgPool2d(1),
                                           nn.Flatten(), nn.Linear(232, 10)),
        "convnext": lambda: convnext.ConvNeXt([convnext.CNBlockConfig(16, 32, 2), convnext.CNBlockConfig(32, None, 1)],
                                              num_classes=10),
    }
    with seeded():
        return lively(build[name]()).eval()


@pytest.mark.parametrize(("name", "left"), [
    ("resnet", 0.26), ("bottleneck", 0.26), ("vgg", 0.3), ("vgg_bn", 0.3), ("mobilenet_v2", 0.3),
    ("mobilenet_v3", 0.3), ("densenet", 0.29), ("squeezenet", 0.26), ("efficientnet", 0.33), ("regnet", 0.4),
    ("mnasnet", 0.3), ("googlenet", 0.4), ("inception", 0.27), ("convnext", 0.75)])
def test_networks_of_torchvision(name, left):
    net, shape = vision(name), (3, 32, 32)
    mixing = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear) and getattr(m, "groups", 1) == 1]
    for layer in mixing[1:]:
        width = layer.weight.shape[1]
        together = {"vgg": 4 if isinstance(layer, nn.Linear) and width == 64 else 1,  # the pixels of a channel
                    "reg": 8}.get(name[:3], 1)  # the channels of a group
        unread(layer, *(i for i in range(width) if i // together % 2 == 0))
    small = compact(net, image_shape=shape)
    assert_same(net, small, shape)
    assert parameters(small) < left * parameters(net)


def test_one_that_cannot_be_traced(refusal):
    from torchvision.models import shufflenet_v2_x0_5

    message = refusal(compact, shufflenet_v2_x0_5(num_classes=10), image_shape=(3, 32, 32))
    assert "cannot trace" in message and "ShuffleNetV2" in message


# --- the library's own networks


OWN = {
    "lenet_300_100": models.LeNet300100(), "lenet5": models.LeNet5(kernel=3, width=8), "resnet": models.ResNet(depth=8),
    "normalised": models.ResNet(depth=8, width=6, mean_255=(90.0,), std_255=(60.0,)),
    "resnet18": models.ResNet18(width=4), "vgg16": models.VGG16(width=4), "vgg_like": models.VGGLike(width=4),
    "gated": models.VGG16(width=4, gated=True),
    "wide_resnet": models.WideResNet(depth=10, widen=1, width=8, gated=True),
    "noise": models.PreActResNet(depth=8, width=4, noise=0.1),
    "noisy_weights": models.NoisyWeights(model=models.ResNet(depth=8, width=6)),
}


def own(name: str) -> nn.Module:
    """With half of the input channels of all layers unread."""
    with seeded(1):
        net = lively(OWN[name].build((1, 8, 8), 10), both_signs=True).eval()
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                unread(layer, *(torch.rand(layer.weight.shape[1]) < 0.5).nonzero().flatten().tolist())
    return net


@pytest.mark.parametrize("name", OWN)
def test_own_networks(name):
    net = own(name)
    assert removed(net, (1, 8, 8)) > 0.3 * parameters(net)


@pytest.mark.parametrize("name", OWN)
def test_measurements_know_own_networks(name, refusal):
    net, splits = own(name), splits_of(torch.rand(7, 1, 8, 8, generator=generator()))
    size, left = analysis.FileSize()(net, splits), analysis.Deployable(repeats=1)(net, splits)
    assert size["parts"]["unpacked"] == left["bytes_left"] < 0.8 * left["bytes"] and left["macs_left"] < left["macs"]
    assert left["parameters_left"] == parameters(compact(net, image_shape=(1, 8, 8)))
    if "lenet" not in name:
        assert analysis.LayerWeights()(net, splits)["layer"].endswith("weight")
    for measurement in (analysis.LayerWeights(), analysis.ChannelSparsity(), analysis.ChannelNorms()):
        if name == "lenet_300_100":
            assert "convolution" in refusal(measurement, net, splits)
        else:
            assert measurement(net, splits)["total"] > 0


def test_k_winners_are_refused_by_measurements(refusal):
    net = models.Winners(model=models.ResNet(depth=8, width=2), share=0.5).build((1, 8, 8), 10)
    assert "k-winners" in refusal(analysis.FileSize(), net, splits_of(torch.rand(2, 1, 8, 8)))


def test_the_layer_with_a_picture_is_the_last_3x3_one(refusal):
    splits = splits_of(torch.rand(2, *SHAPE))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, (3, 3)), nn.Conv2d(5, 6, (1, 3)), nn.Conv2d(6, 7, 1))
    found = analysis.LayerWeights()(net, splits)
    assert found["layer"] == "1.weight" and len(found["picture"]) == 5 and len(found["picture"][0]) == 4
    assert "3x3" in refusal(analysis.LayerWeights(), net[2:], splits)


def test_a_compact_ensemble_is_compact():
    small = compact(own("noise"))
    again = compact(small, image_shape=(1, 8, 8))
    assert parameters(again) == parameters(small) and is_noisy(again)
    assert_same(small, again, (1, 8, 8))


def test_noise_on_weights_keeps_its_spread_in_any_network():
    net = own("noisy_weights")
    small = compact(net, image_shape=(1, 8, 8))
    wide, narrow = net.get_submodule("blocks.0.conv2"), small.get_submodule("blocks.0.conv2")
    assert narrow.weight.numel() < wide.weight.numel()
    assert torch.allclose(narrow.noise.scale * narrow.weight.std(), wide.noise.scale[0] * wide.weight.std(), rtol=1e-4)


def test_a_stream_whose_spread_scales_noise_stays():
    """A channel that nobody reads still counts in the standard deviation."""
    noisy = two(lambda net, x: net.linear(net.b(net.noise(net.a(x))).mean((2, 3))), noise=Noise(0.3))
    quiet = two(lambda net, x: net.linear(net.b(net.noise(net.a(x))).mean((2, 3))), noise=Noise(0.0))
    for net in (noisy, quiet):
        unread(net.b, 1, 2)
    assert removed(noisy) == 0 and removed(quiet) == 2 * (28 + 72)


# --- by hand: what goes


def test_what_makes_an_unread_channel_goes_with_it():
    net = chain()
    unread(net[3], 1, 2, 5)
    small: Any = compact(net, image_shape=SHAPE)
    left = [0, 3, 4, 6, 7]
    assert torch.equal(small[0].weight, net[0].weight[left]) and torch.equal(small[0].bias, net[0].bias[left])
    assert torch.equal(small[1].running_var, net[1].running_var[left]) and small[1].num_features == 5
    assert torch.equal(small[3].weight, net[3].weight[:, left]) and small[3].in_channels == 5
    assert_same(net, small)


def test_a_flattened_channel_goes_if_none_of_its_pixels_is_read():
    net = chain()
    unread(net[6], *range(35))
    assert removed(net) == 0
    unread(net[6], 35, 36, *range(72, 108))  # the first and the third channel
    assert removed(net) == 2 * (9 * 8 + 1 + 36 * 10)


def test_what_only_removed_channels_read_goes():
    net = two()
    net.b.weight.data[:4, 3] = 0
    unread(net.linear, 4, 5, 6, 7)
    assert removed(net) == 4 * (9 * 8 + 1 + 10) + (27 + 1 + 9 * 4)


def test_a_residual_channel_goes_if_nobody_reads_it():
    net = two(lambda net, x: net.linear(((y := net.a(x)) + net.b(y)).mean((2, 3))))
    unread(net.b, 1, 2)
    unread(net.linear, 2, 3)
    assert removed(net) == 28 + 10 + 9 * 8 + (1 + 9 * 8) - 9  # channel 2 of all three
    net.linear.weight.data[0, 2] = 1
    assert removed(net) == 0


def test_depthwise_channels_go_along():
    with seeded():
        net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.ReLU(), nn.Conv2d(12, 5, 1),
                            nn.Flatten(), nn.Linear(180, 10))
    unread(net[3], 2, 3, 5)  # the two that the second channel makes, and one of the third's
    assert removed(net) == 4 + 2 * 10 + 2 * 5
    small: Any = compact(net, image_shape=SHAPE)
    assert (small[1].in_channels, small[1].out_channels, small[1].groups) == (5, 10, 5)


def test_convolutions_in_groups_lose_whole_groups():
    with seeded():
        net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, groups=2), nn.Conv2d(4, 5, 1), nn.Flatten(),
                            nn.Linear(180, 10))
    unread(net[2], 0, 3)
    assert removed(net) == 0
    unread(net[2], 1)
    assert removed(net) == 4 * 4 + 2 * 37 + 2 * 5


def test_transposed_convolutions():
    with seeded():
        net = nn.Sequential(nn.ConvTranspose2d(3, 6, 3), nn.ConvTranspose2d(6, 4, 3), nn.Flatten(), nn.Linear(576, 10))
    unread(net[1], 0, 4)
    assert removed(net) == 2 * (28 + 36)


def test_layers_that_share_a_tensor_keep_their_channels():
    net = two(lambda net, x: net.linear(net.d(net.c(net.b(net.a(x).relu()).relu()).relu()).mean((2, 3))),
              c=nn.Conv2d(8, 8, 3, padding=1), d=nn.Conv2d(8, 8, 3, padding=1))
    net.c.weight = net.b.weight
    unread(net.b, 1, 5)
    net.b.weight.data[1] = 0
    unread(net.linear, 3)
    assert removed(net) == 9 * 8 + 1 + 10  # the last channel goes for all that
    assert (small := compact(net, image_shape=SHAPE)).get_submodule("c").weight is small.get_submodule("b").weight


def test_a_layer_keeps_one_channel():
    net = two()
    unread(net.b, *range(8))
    small: Any = compact(net, image_shape=SHAPE)
    assert small.a.out_channels == small.b.in_channels == 1
    assert_same(net, small)


# --- zero output channels


def test_a_constant_becomes_a_bias_where_nothing_is_padded():
    net = chain()
    net[0].weight.data[[1, 2]], net[1].bias.data[[1, 2]] = 0, 2.0
    small: Any = compact(net, image_shape=SHAPE)
    assert small[0].out_channels == 6 and not torch.allclose(small[3].bias, net[3].bias)
    assert_same(net, small)


@pytest.mark.parametrize(("shift", "gone"), [(2.0, 0), (-2.0, 2)])
def test_padding_makes_edges_of_a_constant_but_not_of_zero(shift, gone):
    net = chain(padding=1)
    net[0].weight.data[[1, 2]], net[0].bias.data[[1, 2]] = 0, 0
    net[1].running_mean[:], net[1].bias.data[[1, 2]] = 0, shift
    assert removed(net) == gone * (28 + 2 + 54)


def test_a_convolution_gets_a_bias_if_it_has_none():
    net = chain()
    net[3] = nn.Conv2d(8, 6, 3, bias=False).requires_grad_(False)
    net[0].weight.data[1], net[1].bias.data[1] = 0, 3.0
    small: Any = compact(net, image_shape=SHAPE)
    assert small[3].bias.abs().max() > 0 and not small[3].bias.requires_grad and net[3].bias is None
    assert_same(net, small)


def test_a_constant_that_noise_is_multiplied_with_stays():
    with seeded():
        net = models.NoisyWeights(model=models.LeNet300100()).build((1, 8, 8), 10).eval()
    net[1].weight.data[:5], net[1].bias.data[:5] = 0, 1.0
    assert removed(net, (1, 8, 8)) == 0
    for layer in (net[1], net[3], net[5]):
        layer.noise.level = 0.0
    assert removed(net, (1, 8, 8)) == 5 * (64 + 1 + 100 + 1)  # the last one is the scale of the noise


def test_constants_of_constants():
    """LeNet-300-100 with a dead first layer answers always the same: one unit is left of each layer."""
    net = own("lenet_300_100")
    for layer in (net[1], net[3], net[5]):
        layer.bias.data.uniform_(-1, 1, generator=generator())
    net[1].weight.data[:] = 0
    assert parameters(compact(net, image_shape=(1, 8, 8))) == 64 + 1 + 1 + 1 + 10 + 10
    assert removed(net, (1, 8, 8)) > 0


def test_a_channel_that_happens_to_be_zero_stays():
    """It is zero on all images that are tried, but its weights are not."""
    net = two(lambda net, x: net.linear(net.b(functional.relu(net.a(x) - net.far.view(8, 1, 1))).mean((2, 3))))
    net.register_buffer("far", torch.tensor([100.0] + [0.0] * 7))
    assert removed(net) == 0


def silent(x):
    """A number of each image that is zero unless the image is bright."""
    return functional.relu(x.mean((1, 2, 3), keepdim=True) - 0.99)


@pytest.mark.parametrize("call", [
    lambda net, x: net.linear(net.b(net.a(x) + silent(x)).mean((2, 3))),
    lambda net, x: net.linear(net.b(net.a(x) + (x.mean((1, 2, 3), keepdim=True) > 0.99)).mean((2, 3))),
    lambda net, x: net.linear(net.b(net.a(x) + torch.nan_to_num(silent(x) / silent(x))).mean((2, 3))),
    lambda net, x: net.linear(net.b(net.a(x) + net.c(silent(x).expand(-1, 2, 8, 8))).mean((2, 3))),
    lambda net, x: net.linear(net.b(functional.max_pool2d(torch.maximum(net.a(x), silent(x)), 2)).mean((2, 3)))])
def test_a_dead_channel_that_another_path_may_wake_stays(call):
    """Though none of the images that are tried does so."""
    net = two(call, c=nn.Conv2d(2, 8, 1, groups=2))
    net.a.weight.data[[1, 2]], net.a.bias.data[[1, 2]] = 0, 0
    small = compact(net, image_shape=SHAPE)
    bright = torch.full((2, *SHAPE), 0.999)
    with torch.no_grad():
        assert torch.equal(net(bright), small(bright)) and parameters(small) == parameters(net)


def test_a_dead_channel_that_nothing_wakes_goes():
    """What does not depend on the images, a pool and a convolution in groups do not keep it."""
    net = two(lambda net, x: net.linear(net.b(functional.max_pool2d(net.c(net.a(x)) + net.shift, 2)).mean((2, 3))),
              b=nn.Conv2d(8, 8, 3), c=nn.Conv2d(8, 8, 1, groups=8), shift=nn.PReLU(1).weight)
    net.a.weight.data[[1, 2]] = 0
    assert removed(net) == 2 * (28 + 2 + 72)


# --- what stays, as the answers would be others, and what is refused


@pytest.mark.parametrize("between", [
    lambda net, x: x.softmax(1), lambda net, x: functional.normalize(x, dim=1), lambda net, x: x / x.std(),
    lambda net, x: functional.layer_norm(x, (8, 8, 8)), lambda net, x: x.view(-1, 8, 8, 8), lambda net, x: x.flip(1),
    lambda net, x: x[:, [7, 6, 5, 4, 3, 2, 1, 0]], lambda net, x: x.cumsum(1), lambda net, x: x.detach(),
    lambda net, x: x.view(len(x), 2, 4, 8, 8).transpose(1, 2).reshape(len(x), 8, 8, 8),
    lambda net, x: x * net.scale.view(8, 1, 1), lambda net, x: x + torch.linspace(0, 1, 8, dtype=x.dtype).view(8, 1, 1),
    lambda net, x: net.group_norm(x)])
def test_what_looks_at_all_channels_stays(between):
    net = two(lambda net, x: net.linear(net.b(between(net, net.a(x))).mean((2, 3))), group_norm=nn.GroupNorm(4, 8))
    net.scale = nn.Parameter(torch.linspace(1, 2, 8))
    unread(net.b, 1, 2)
    unread(net.linear, 5)
    assert removed(net) == 9 * 8 + 1 + 10  # the last channel goes for all that


def test_a_shape_that_forward_insists_on():
    net = two(lambda net, x: net.linear(functional.avg_pool2d(net.b(net.a(x).relu()), 8).view(-1, 8)))
    unread(net.b, 1, 2)
    unread(net.linear, 3)
    assert removed(net) == 2 * (28 + 72)


@pytest.mark.parametrize(("call", "words"), [
    (lambda net, x: net.linear(functional.dropout(net.a(x), 0.5, True).mean((2, 3))), "at random"),
    (lambda net, x: net.linear(net.a(x).mean((2, 3))) * torch.nan, "not finite"),
    (lambda net, x: {"logits": net.linear(net.a(x).mean((2, 3)))}, "logits"),
    (lambda net, x: net.a(x), "logits"),
    (lambda net, x: net.linear(x.flatten(1)), "takes no images"),
    (torch.no_grad()(lambda net, x: net.linear(net.a(x).mean((2, 3)))), "cannot trace")])
def test_networks_that_are_refused(call, words, refusal):
    assert words in refusal(compact, two(call), image_shape=SHAPE)


def swallowed(x):
    try:
        return 1 + float(x.detach().numpy().mean() > 0.7)
    except Exception:
        return 1


@pytest.mark.parametrize("call", [
    lambda net, x: net.linear(h if x.mean() < 0.7 else h.flip(1)) if (h := net.a(x).mean((2, 3))) is not None else h,
    lambda net, x: (net.other if x.amin() > 0.8 else net.linear)(net.a(x).mean((2, 3))),
    lambda net, x: net.linear(net.a(x).mean((2, 3))) * (1 if x.sum().item() < 1e3 else 2),
    lambda net, x: net.linear(net.a(x).mean((2, 3))) * swallowed(x),
    lambda net, x: net.linear(net.a(x).mean((2, 3))) + x[x > 0.9].sum()])
def test_what_decides_by_the_numbers_of_its_images_is_refused(call, refusal):
    assert "numbers of its images" in refusal(compact, two(call, other=nn.Linear(8, 10)), image_shape=SHAPE)


def test_what_all_logits_have_in_common_hides_nothing(monkeypatch):
    """A wrong removal shows in the differences of logits, however large the logits are."""
    net = two()
    net.linear.bias.data += 1e6
    unread(net.b, 1)
    small = compact(net, image_shape=SHAPE)
    assert parameters(small) < parameters(net)

    def spoiled(model, trial):
        model.linear.weight.data[0] += 1e-3
        return model

    monkeypatch.setattr(sys.modules["sparserobust.models.compact"], "without_unread", spoiled)
    with pytest.raises(RuntimeError, match="wrong"):
        compact(net, image_shape=SHAPE)


def test_a_network_that_divides_by_contrast_is_tried_on_images_that_have_some():
    net = two(lambda net, x: net.linear(net.b(net.a((x - x.mean()) / x.std((1, 2, 3), keepdim=True))).mean((2, 3))))
    unread(net.b, 1, 2)
    assert removed(net) == 2 * (28 + 72)


def test_wrong_calls(refusal):
    assert "image_shape" in refusal(compact, two())
    assert "Module" in refusal(compact, lambda x: x, image_shape=SHAPE)
    assert "takes no images" in refusal(compact, two(), image_shape=(1, 8, 8))
    for shape in ((8, 8), (3, 0, 8), ("3", 8, 8)):
        assert "(channels, height, width)" in refusal(compact, two(), image_shape=shape)
    assert "(channels, height, width)" in refusal(compact, two(), torch.rand(3, 8, 8))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("measured", [
    lambda net: compact(net, image_shape=SHAPE), lambda net: analysis.FileSize()(net, splits_of(torch.rand(2, *SHAPE))),
    lambda net: analysis.Deployable(repeats=1)(net, splits_of(torch.rand(2, *SHAPE)))])
def test_what_cannot_be_copied_or_changed(measured, refusal):
    net = chain()
    assert "TorchScript" in refusal(measured, nn.Sequential(torch.jit.script(net)))
    net.lock = threading.Lock()
    assert "cannot be copied" in refusal(measured, net)
    assert "a torch.nn.Module" in refusal(measured, lambda x: net(x))


def test_a_wrong_removal_is_an_error(monkeypatch):
    def spoiled(model, trial):
        model.linear.bias.data[0] += 1e-3
        return model

    monkeypatch.setattr(sys.modules["sparserobust.models.compact"], "without_unread", spoiled)
    with pytest.raises(RuntimeError, match="wrong"):
        compact(two(), image_shape=SHAPE)


def test_what_would_be_wrong_is_not_removed(monkeypatch):
    """As a graph with a mistake would have it: the first channel of all is said to go."""
    net = two()
    monkeypatch.setattr("sparserobust.models.removal._kept", lambda model, couplings: torch.arange(
        len(couplings.fixed)) != couplings.sets["a", OUT][0])
    assert removed(net) == 0


def test_images_that_are_given_are_tried(refusal):
    net = two(lambda net, x: net.linear(net.a(x).mean((2, 3))) / (x.amax() <= 1))
    assert parameters(compact(net, torch.rand(2, *SHAPE))) == parameters(net)
    assert "not finite" in refusal(compact, net, torch.rand(2, *SHAPE) + 1)


# --- masks, parametrisations, wrappers; the network itself


MADE = {
    "mask of inputs": lambda net: prune.ln_structured(net[3], "weight", 0.5, 2, dim=1),
    "mask of filters": lambda net: prune.ln_structured(net[3], "weight", 0.5, 2, dim=0),
    "global mask": lambda net: prune.global_unstructured([(net[0], "weight"), (net[6], "weight")],
                                                         prune.L1Unstructured, amount=0.9),
    "weight norm": lambda net: parametrizations.weight_norm(net[0]),
    "spectral norm": lambda net: parametrizations.spectral_norm(net[3]),
    "orthogonal": lambda net: parametrizations.orthogonal(net[6]),
    "old weight norm": lambda net: weight_norm(net[0]), "old spectral norm": lambda net: spectral_norm(net[6]),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MADE)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_weights_that_are_computed(name, training):
    net = chain()
    unread(net[3], 1, 2)
    MADE[name](net)
    net(torch.rand(2, *SHAPE))  # whose graph hangs on the masked weight
    net.train(training)
    net[1].eval()
    before = {key: t.clone() for key, t in net.state_dict().items()}
    hooks, flags = len(net[3]._forward_pre_hooks), [p.requires_grad for p in net.parameters()]
    chance = torch.get_rng_state()
    small = compact(net, image_shape=SHAPE)
    assert torch.equal(torch.get_rng_state(), chance) and net.training == small.training == training
    assert not any(m.training for m in (net[1], small.get_submodule("1")))
    assert hooks == len(net[3]._forward_pre_hooks) and flags == [p.requires_grad for p in net.parameters()]
    after = net.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(t, after[key]) for key, t in before.items())
    assert parameters(small) <= parameters(chain()) - 2 * (30 + 54)
    assert all(type(m) in (nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Flatten, nn.Linear)
               and not m._forward_pre_hooks for m in small.modules())
    assert all(p.requires_grad for p in small.parameters())
    images = torch.rand(4, *SHAPE)
    with torch.no_grad():
        assert torch.allclose(net.eval()(images), small.eval()(images), atol=1e-5)


def test_masks_count_neither_before_nor_after():
    net, splits = chain(), splits_of(torch.rand(4, *SHAPE))
    whole = analysis.Deployable(repeats=1)(net, splits)
    prune.identity(net[3], "weight")
    masked = analysis.Deployable(repeats=1)(net, splits)
    assert masked["bytes"] == whole["bytes"] == whole["bytes_left"] == masked["bytes_left"]


def test_weights_with_two_names_are_in_the_file_once():
    net, splits = two(), splits_of(torch.rand(4, *SHAPE))
    before = analysis.FileSize()(net, splits)["parts"]["unpacked"]
    net.call, net.c = (lambda net, x: net.linear(net.c(net.a(x).relu()).mean((2, 3)))), net.b
    assert analysis.FileSize()(net, splits)["parts"]["unpacked"] == before
    other = nn.Conv2d(8, 8, 3, padding=1)
    other.weight, net.c = net.b.weight, other
    net.call = lambda net, x: net.linear(net.c(net.b(net.a(x)).relu()).mean((2, 3)))
    assert before < analysis.FileSize()(net, splits)["parts"]["unpacked"] < before + 300  # its bias


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["parallel", "compiled"])
def test_wrappers_are_taken_off(wrap):
    net = chain()
    unread(net[3], 1, 2)
    small = compact(wrap(net), image_shape=SHAPE)
    assert type(small) is nn.Sequential
    assert_same(net, small)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_precision_stays(precision):
    net = chain().to(precision)
    unread(net[3], 1, 2)
    small = compact(net, image_shape=SHAPE)
    assert all(p.dtype == precision for p in small.parameters())
    assert_same(net, small)


def test_single_precision_may_be_written_into_a_network():
    net = two(lambda net, x: net.linear(net.b(net.a(x.float())).mean((2, 3))))
    unread(net.b, 1, 2)
    assert parameters(net) - parameters(compact(net, image_shape=SHAPE)) == 2 * (28 + 72)


# --- the coupling of channels, and one layer


def sets_of(net) -> dict:
    return Couplings.of(net, torch.rand(2, *SHAPE)).sets


def test_halves_are_coupled_to_each_other():
    sets = sets_of(two(lambda net, x: net.linear(net.c((p := net.a(x).chunk(2, 1))[0] * p[1]).mean((2, 3))),
                       c=nn.Conv2d(4, 8, 1)))
    assert torch.equal(sets["a", OUT][:4], sets["a", OUT][4:]) and torch.equal(sets["a", OUT][:4], sets["c", IN])
    assert len(sets["a", OUT].unique()) == 4


def test_what_is_joined_stands_in_its_place():
    sets = sets_of(two(lambda net, x: net.linear(torch.cat([net.c(y := net.a(x)), net.b(y)], 1).mean((2, 3))),
                       c=nn.Conv2d(8, 2, 1), linear=nn.Linear(10, 10)))
    assert torch.equal(sets["linear", IN], torch.cat([sets["c", OUT], sets["b", OUT]]))
    assert torch.equal(sets["a", OUT], sets["b", IN]) and torch.equal(sets["a", OUT], sets["c", IN])
    assert not set(sets["linear", IN].tolist()) & set(sets["a", OUT].tolist())


def test_what_is_put_out_is_fixed():
    couplings = Couplings.of(two(), torch.rand(2, *SHAPE))
    assert couplings.fixed.nonzero().flatten().tolist() == sorted(couplings.sets["linear", OUT].tolist())
    spaces = couplings.space[couplings.sets["a", OUT]].unique(), couplings.space[couplings.sets["b", OUT]].unique()
    assert [len(s) for s in spaces] == [1, 1] and spaces[0] != spaces[1]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_entries_of_a_layer(layout):
    layer: Any = nn.Conv2d(4, 6, 3).to(memory_format=layout)
    weight, bias = layer.weight.clone(), layer.bias.clone()
    keep(layer, torch.tensor([1, 4]), OUT)
    keep(layer, torch.tensor([0, 2, 3]), IN)
    assert torch.equal(layer.weight, weight[[1, 4]][:, [0, 2, 3]]) and torch.equal(layer.bias, bias[[1, 4]])
    assert layer.weight.is_contiguous(memory_format=layout)
    assert (layer.in_channels, layer.out_channels, layer.groups) == (3, 2, 1)
