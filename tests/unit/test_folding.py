"""BatchNorm folded into weights: against torch's own fusion, by what leaves the function of a
network as it is, and on graphs of all kinds."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from scaffolding import built, lively
from sparserobust.analysis.conditioning import (
    Conditioning,
    condition,
    deficit,
    effective_weights,
    floored_condition,
    spectrum,
    unit_rows,
)
from sparserobust.analysis.folding import folded_weights
from sparserobust.models import (
    VGG16,
    LeNet5,
    NoisyWeights,
    PreActResNet,
    ResNet,
    ResNet18,
    VGGLike,
    WideResNet,
    Winners,
    compact,
)
from sparserobust.models.gates import GatedConv2d, add_gates
from sparserobust.models.noise import Noise, WeightNoise
from sparserobust.models.vgg import VGGWithDropout
from sparserobust.models.winners import KWinners

SHAPE = (1, 8, 8)
PREACT, SMALL = PreActResNet(depth=8, width=4), ResNet(depth=8, width=4)
ENSEMBLE, NOISY = PreActResNet(depth=8, width=2, members=2), NoisyWeights(model=SMALL)
WIDE, RESNET18 = WideResNet(depth=10, widen=1, width=4, gated=True), ResNet18(width=2)
MODELS = {"preact": PREACT, "ensemble": ENSEMBLE, "wide": WIDE, "resnet": SMALL, "noisy": NOISY,
          "vgg16": VGG16(width=4, gated=True), "vgg_like": VGGLike(width=2)}


def shaken(settings, seed: int = 0) -> nn.Module:
    """A network in float64 without noise; its norms and gates are not those of a fresh one."""
    model = lively(built(settings, seed=seed), both_signs=True).double().eval()
    for module in model.modules():
        if isinstance(module, Noise | WeightNoise):
            module.level = 0.0
        if isinstance(module, GatedConv2d):
            nn.init.uniform_(module.log_alpha, -1, 3)
    return model


def inner(model: nn.Module) -> list[tuple[Any, Any, Any]]:
    """Writer, norm and reader of channels that no one else knows."""
    if isinstance(model, VGGWithDropout):
        layers = [layer for layer in model.layers if list(layer.parameters())] + [model.linear]
        return list(zip(layers[::2], layers[1::2], layers[2::2], strict=False))
    return [triple for module in model.modules() for triple in getattr(module, "inner_channels", list)()]


def numbers(model: nn.Module) -> dict[str, tuple[float | None, ...]]:
    """What is measured of folded weights, of every layer, unrounded."""
    spectra = {name: spectrum(unit_rows(w)) for name, w in folded_weights(model).items()}
    return {name: (condition(values), floored_condition(values), deficit(values))
            for name, values in spectra.items()}


def factors_of(norm: nn.BatchNorm1d | nn.BatchNorm2d, spread: float) -> torch.Tensor:
    """A factor for each channel (c,), float64, from 1 / spread to spread."""
    return spread ** (2 * torch.rand(norm.num_features, dtype=torch.float64) - 1)


def assert_unchanged(model: nn.Module, changed: nn.Module, unfolded_changes: bool) -> float:
    """Logits and the numbers of folded weights are the same; condition numbers of the weights
    themselves are not, if so told. Returns the ratio of the measured values."""
    images = torch.rand(6, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        logits, found = model(images), changed(images)
    assert torch.allclose(found, logits, atol=1e-4 * float(logits.abs().max()), rtol=0)
    before, after = numbers(model), numbers(changed)
    for name in before:
        assert after[name] == pytest.approx(before[name], rel=1e-6, abs=1e-12)
    old, new = (Conditioning()(net, None) for net in (model, changed))
    ratios = [new["layers"][name]["condition"] / layer["condition"]
              for name, layer in old["layers"].items()]
    assert (max(ratios) > 1.5) == unfolded_changes
    folded = [name for name in old["parts"] if "folded" in name]
    assert len(folded) == 6
    for name in folded:  # rounded, which may add a unit of the last digit
        assert new["parts"][name] == pytest.approx(old["parts"][name], rel=2e-5, abs=2e-6)
    return new["value"] / old["value"]


# ----------------------------------------------------------- what leaves the function as it is


@pytest.mark.parametrize("kind", MODELS)
@hypothesis_settings(max_examples=2)
@given(seed=st.integers(0, 99), spread=st.floats(5, 100))
def test_filters_are_rescaled_in_front_of_a_batchnorm(kind, seed, spread):
    """With their biases and the running statistics, eps included."""
    model = shaken(MODELS[kind], seed)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for writer, norm, _ in inner(changed):
            factors = factors_of(norm, spread)
            writer.weight *= factors.view(-1, *[1] * (writer.weight.dim() - 1))
            if writer.bias is not None:
                writer.bias *= factors
            norm.running_mean *= factors
            norm.running_var.copy_(factors**2 * (norm.running_var + norm.eps) - norm.eps)
    ratio = assert_unchanged(model, changed, unfolded_changes=True)
    assert ratio > 1.1 or not kind.startswith("vgg")  # elsewhere the median layer may be another


@pytest.mark.parametrize("kind", MODELS)
@hypothesis_settings(max_examples=2)
@given(seed=st.integers(0, 99), spread=st.floats(5, 100))
def test_factors_move_from_a_batchnorm_to_the_layers_that_read_it(kind, seed, spread):
    """Across ReLU, pooling, means over pixels and flattening; where two layers read it, to both."""
    model = shaken(MODELS[kind], seed)
    changed = copy.deepcopy(model)
    moved = [(norm, [reader]) for _, norm, reader in inner(changed)]
    if kind in ("preact", "ensemble", "wide"):
        moved += [(block.norm1, [layer for layer in (block.conv1, block.shortcut) if layer])
                  for block in changed.modules() if hasattr(block, "norm1")]
    with torch.no_grad():
        for norm, readers in moved:
            factors = factors_of(norm, spread)
            norm.weight /= factors
            norm.bias /= factors
            for reader in readers:
                reader.weight *= factors.view(1, -1, *[1] * (reader.weight.dim() - 2))
    ratio = assert_unchanged(model, changed, unfolded_changes=True)
    assert ratio > 1.1 or not kind.startswith("vgg")  # elsewhere the median layer may be another


@pytest.mark.parametrize("kind", MODELS)
@hypothesis_settings(max_examples=1)
@given(seed=st.integers(0, 99))
def test_channels_are_permuted(kind, seed):
    model = shaken(MODELS[kind], seed)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for writer, norm, reader in inner(changed):
            order = torch.randperm(norm.num_features)
            for tensor in (writer.weight, writer.bias, getattr(writer, "log_alpha", None),
                           norm.weight, norm.bias, norm.running_mean, norm.running_var):
                if tensor is not None:
                    tensor.copy_(tensor[order].clone())
            reader.weight.copy_(reader.weight[:, order].clone())
    assert_unchanged(model, changed, unfolded_changes=False)


@hypothesis_settings(max_examples=8)
@given(factor=st.floats(1e-6, 1e6), seed=st.integers(0, 9))
def test_a_whole_layer_is_rescaled(factor, seed):
    model = shaken(LeNet5(kernel=3, width=4), seed)
    before = numbers(model)
    with torch.no_grad():
        model[2].weight *= factor
    after = numbers(model)
    assert all(after[name] == pytest.approx(before[name], rel=1e-6) for name in before)


# ---------------------------------------------------------------------------- against an oracle


class Chain(nn.Module):
    """Groups, dilation, a norm without gamma, pooling, flattened maps, BatchNorm1d."""

    def __init__(self):
        super().__init__()
        self.layer1, self.norm1 = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)
        self.layer2 = nn.Conv2d(6, 4, 3, groups=2, dilation=2, bias=False)
        self.norm2 = nn.BatchNorm2d(4, affine=False)
        self.layer3 = nn.Conv2d(4, 4, 1, padding=1, groups=4)
        self.norm3 = nn.BatchNorm2d(4, eps=0.3)
        self.layer4, self.norm4 = nn.Linear(36, 7), nn.BatchNorm1d(7)
        self.layer5, self.drop = nn.Linear(7, 3), nn.Dropout(0.5)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.norm1(self.layer1(x))), 2)
        x = torch.relu_(self.norm2(self.layer2(x)))
        x = functional.leaky_relu(self.norm3(self.layer3(x)))
        x = self.norm4(self.layer4(self.drop(x).view(x.size(0), -1)))
        return self.layer5(functional.dropout(x.relu(), training=self.training))


def test_folded_weights_make_a_network_of_fused_layers_that_read_what_is_divided_by_gamma():
    """It has the same logits."""
    torch.manual_seed(0)
    model = lively(Chain(), both_signs=True).eval().double()
    folded = folded_weights(model)
    between = [lambda x: functional.max_pool2d(x.relu(), 2), torch.relu, functional.leaky_relu,
               torch.relu]
    x = images = torch.rand(5, 2, 12, 12, dtype=torch.float64)
    for number, operation in enumerate(between, 1):
        name, layer = f"layer{number}", model.get_submodule(f"layer{number}")
        norm = model.get_submodule(f"norm{number}")
        gamma = norm.weight if norm.affine else torch.ones(4)
        beta = norm.bias if norm.affine else torch.zeros(4)
        fuse = fuse_linear_bn_weights if number == 4 else fuse_conv_bn_weights
        weight, bias = fuse(layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps,
                            gamma, beta)
        if number in (1, 3):  # in front of them are the image, and a norm without gamma
            assert torch.allclose(folded[name], weight, rtol=1e-12)
        if number == 4:
            x = functional.linear(x.flatten(1), folded[name], bias)
        else:
            x = functional.conv2d(x, folded[name], bias, layer.stride, layer.padding,
                                  layer.dilation, layer.groups)
        x = operation(x) / gamma.abs().view(-1, *[1] * (x.dim() - 2))
    logits = functional.linear(x, folded["layer5"], model.layer5.bias)
    assert torch.allclose(logits, model(images), rtol=1e-9)
    for weight in folded.values():
        assert weight.dtype == torch.float64 and not weight.requires_grad


def fused(weight, norm):
    """With rows scaled by the norm behind."""
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    return fuse_conv_bn_weights(weight, None, *statistics)[0]


def read(weight, norm):
    """With columns scaled by the norm in front."""
    return weight * norm.weight.abs().view(1, -1, *[1] * (weight.dim() - 2))


@pytest.mark.parametrize("settings", [
    PreActResNet(depth=8, width=4, noise=0.1), NoisyWeights(model=PREACT), ENSEMBLE,
    WideResNet(depth=10, widen=2, width=4, gated=True)])
def test_pre_activation_networks(settings):
    """Nothing is folded across a sum: not into the stem, unless the first block has a shortcut and
    adds nothing to it, nor into what ends a block."""
    model = lively(settings.build(SHAPE, 10), both_signs=True).eval().double()
    folded, acting = folded_weights(model), effective_weights(model)
    members = [f"members.{m}." for m in range(len(getattr(model, "members", ())))] or [""]
    for member in members:
        net = model.get_submodule(member[:-1])
        stem, first = acting[member + "stem"], net.blocks[0]
        expected = fused(stem, first.norm1) if first.shortcut else stem
        assert torch.allclose(folded[member + "stem"], expected)
        assert torch.allclose(folded[member + "linear"], read(net.linear.weight, net.norm))
        for number, block in enumerate(net.blocks):
            name = f"{member}blocks.{number}."
            expected = fused(read(acting[name + "conv1"], block.norm1), block.norm2)
            assert torch.allclose(folded[name + "conv1"], expected)
            assert torch.allclose(folded[name + "conv2"], read(block.conv2.weight, block.norm2))
            if block.shortcut:
                expected = read(block.shortcut.weight, block.norm1)
                assert torch.allclose(folded[name + "shortcut"], expected)
    assert list(folded) == list(acting)


@pytest.mark.parametrize("settings", [SMALL, RESNET18, Winners(model=RESNET18, share=0.3)])
def test_networks_that_add_in_front_of_the_activation(settings):
    """K-winners stop factors: which units win depends on them."""
    model = lively(settings.build(SHAPE, 10), both_signs=True).eval().double()
    folded, passes = folded_weights(model), not isinstance(settings, Winners)
    assert torch.allclose(folded["stem"], fused(model.stem.weight, model.norm))
    assert torch.equal(folded["linear"], model.linear.weight)
    for number, block in enumerate(model.blocks):
        name, first, second = f"blocks.{number}.", block.conv1.weight, block.conv2.weight
        if passes:
            first, second = first if number else read(first, model.norm), read(second, block.norm1)
        assert torch.allclose(folded[name + "conv1"], fused(first, block.norm1))
        assert torch.allclose(folded[name + "conv2"], fused(second, block.norm2))
        if isinstance(block.shortcut, nn.Sequential):
            expected = fused(block.shortcut[0].weight, block.shortcut[1])
            assert torch.allclose(folded[name + "shortcut.0"], expected)


def test_a_compact_network_has_what_is_left_of_the_folded_weights():
    model = lively(PREACT.build(SHAPE, 10), both_signs=True).eval()
    block, name = model.members[0].blocks[0], "members.0.blocks.0.conv"
    with torch.no_grad():
        block.conv1.weight[:, 1] = 0
        block.conv2.weight[:, 2] = 0
    found, left = folded_weights(model), folded_weights(compact(model))
    assert torch.allclose(left[name + "1"], found[name + "1"][[0, 1, 3]][:, [0, 2, 3]])
    assert torch.allclose(left[name + "2"], found[name + "2"][:, [0, 1, 3]])


# --------------------------------------------------------------------------- graphs of all kinds


class Net(nn.Module):
    """`call(net, x)` on images of two channels: conv, norm, conv2, and what else it calls."""

    def __init__(self, call, **more):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.call = nn.Conv2d(4, 4, 1), call
        for name, module in more.items():
            setattr(self, name, module)
        lively(self, both_signs=True).eval()

    def forward(self, x):
        return self.call(self, x)


def straight(net, x):
    return net.conv2(net.norm(net.conv(x)))


PASSED = {
    "nothing": lambda net, x: x,
    "mean": lambda net, x: x.mean((2, 3), keepdim=True),
    "mean of rows": lambda net, x: torch.mean(x, dim=-1, keepdim=True),
    "relu_": lambda net, x: x.relu_(),
    "average": lambda net, x: functional.avg_pool2d(x, 2),
    "adaptive average": lambda net, x: net.pool(x),
    "prelu": lambda net, x: net.prelu(x),
    "dropout": lambda net, x: functional.dropout(x, training=net.training),
    "reshape": lambda net, x: x.reshape(x.shape)}
STOPPED = {
    "sigmoid": lambda net, x: x.sigmoid(),
    "gelu": lambda net, x: functional.gelu(x),
    "sum": lambda net, x: x + 1,
    "mean of channels": lambda net, x: x.mean(1, keepdim=True),
    "mean of images": lambda net, x: torch.mean(x, dim=(0, 2), keepdim=True),
    "mean of all": lambda net, x: x.mean(),
    "cat": lambda net, x: torch.cat([x[:, :2], x[:, 2:]], 1),
    "k-winners": lambda net, x: net.winners(x),
    "dropout": lambda net, x: functional.dropout(x, training=True),
    "norm": lambda net, x: net.other(x)}


def with_operation(operation) -> Net:
    """A net with this between norm and conv2."""
    torch.manual_seed(0)
    return Net(lambda net, x: net.conv2(operation(net, net.norm(net.conv(x)))),
               pool=nn.AdaptiveAvgPool2d(2), prelu=nn.PReLU(4), winners=KWinners(0.5),
               other=nn.InstanceNorm2d(4))


@pytest.mark.parametrize("operation", PASSED.values(), ids=PASSED)
def test_positive_operations_pass_a_factor(operation):
    """On numbers and on the graph, which is that of eval mode."""
    net, x = with_operation(operation), torch.randn(2, 4, 6, 6)
    factors = torch.tensor([0.5, 2, 4, 0.25]).view(-1, 1, 1)
    assert torch.allclose(operation(net, x * factors), factors * operation(net, x.clone()))
    expected = read(net.conv2.weight, net.norm)
    assert torch.allclose(folded_weights(net.train())["conv2"].float(), expected)


@pytest.mark.parametrize("operation", STOPPED.values(), ids=STOPPED)
def test_other_operations_stop_it(operation):
    net = with_operation(operation)
    folded = folded_weights(net)
    assert torch.equal(folded["conv2"], net.conv2.weight.double())
    assert torch.allclose(folded["conv"].float(), fused(net.conv.weight, net.norm))


def test_norms_without_what_they_might_have():
    """Without gamma it is one. Without running statistics the variance is that of the batch, and
    not known. With another number of channels than the layer's, another axis is normed."""
    net = Net(straight, norm=nn.BatchNorm2d(4, affine=False))
    folded = folded_weights(net)
    deviation = (net.norm.running_var + net.norm.eps).sqrt().view(-1, 1, 1, 1)
    assert torch.allclose(folded["conv"].float(), net.conv.weight / deviation)
    assert torch.equal(folded["conv2"], net.conv2.weight.double())
    net.norm = nn.BatchNorm2d(4, track_running_stats=False).eval()
    nn.init.normal_(net.norm.weight)
    folded, gamma = folded_weights(net), net.norm.weight.view(-1, 1, 1, 1)
    assert torch.allclose(folded["conv"].float(), net.conv.weight * gamma)
    assert torch.allclose(folded["conv2"].float(), read(net.conv2.weight, net.norm))
    sequences = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(7), nn.Linear(5, 2)).eval()
    nn.init.normal_(sequences[1].weight)
    assert sequences(torch.zeros(2, 7, 3)).shape == (2, 7, 2)
    folded = folded_weights(sequences)
    assert torch.equal(folded["0"], sequences[0].weight.double())
    assert torch.equal(folded["2"], sequences[2].weight.double())


def test_a_layer_has_one_reader_if_a_norm_is_folded_into_it_and_a_norm_may_have_several():
    def call(net, x):
        y = net.conv(x)
        z = net.norm(y)
        return net.conv2(z) + net.conv3(z) + y

    net = Net(call, conv3=nn.Conv2d(4, 4, 1))
    folded = folded_weights(net)
    assert torch.equal(folded["conv"], net.conv.weight.double())
    for name in ("conv2", "conv3"):
        expected = read(net.get_submodule(name).weight, net.norm)
        assert torch.allclose(folded[name].float(), expected)


@pytest.mark.parametrize("call, agree", [
    (lambda net, x: straight(net, x) + net.conv2(net.norm(net.conv(-x)).relu()), True),
    (lambda net, x: straight(net, x) + net.conv2(net.other(net.conv(x))), False),
    (lambda net, x: net.conv2(straight(net, x)) + net.conv(x), False)])
def test_a_layer_that_is_called_twice_is_folded_where_both_calls_agree(call, agree):
    net = Net(call, other=nn.BatchNorm2d(4))
    folded = folded_weights(net)
    conv, conv2 = net.conv.weight, net.conv2.weight
    assert torch.allclose(folded["conv"].float(), fused(conv, net.norm) if agree else conv)
    assert torch.allclose(folded["conv2"].float(), read(conv2, net.norm) if agree else conv2)


class OwnConvolution(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(x, self.weight, self.bias)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) if x.sum() else x


def test_subclasses_are_what_they_derive_from_and_layers_that_are_not_called_stay_as_they_are():
    net = Net(lambda net, x: straight(net, x) + net.attention(x, x, x)[0], norm=OwnNorm(4),
              conv2=OwnConvolution(4, 4, 1), attention=nn.MultiheadAttention(4, 2),
              unused=nn.Linear(4, 4))
    folded = folded_weights(net)
    assert list(folded) == ["conv", "conv2", "attention.out_proj", "unused"]
    assert torch.allclose(folded["conv2"].float(), read(net.conv2.weight, net.norm))
    for name in ("attention.out_proj", "unused"):
        assert torch.equal(folded[name], net.get_submodule(name).weight.double())


def test_gates_and_masks_act_and_the_network_is_left_as_it_was():
    net = Net(straight).train()
    add_gates(net.conv)
    with torch.no_grad():
        net.conv.log_alpha.copy_(torch.tensor([-4.0, 0, 1, 4]))  # the first gate is closed
        net.conv2.weight[:, 1] = 0
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    folded = folded_weights(net)
    assert torch.allclose(folded["conv"].float(), fused(net.conv.effective_weight(), net.norm))
    assert not folded["conv"][0].any() and folded["conv"][1].all()
    assert not folded["conv2"][:, 1].any() and folded["conv2"][:, 2].all()
    assert net.training and net.norm.training and net.conv.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_stands_beside_the_forward_is_not_folded_over(refusal):
    """A hook that renews a weight does not."""
    def straight_net(change):
        change(net := Net(straight))
        return net

    for change in (lambda net: net.norm.register_forward_hook(lambda *given: 2 * given[2]),
                   lambda net: net.register_forward_pre_hook(lambda *given: (2 * given[1][0],)),
                   lambda net: setattr(net.norm, "forward", lambda x: x)):
        assert "hooks or a replaced `forward`" in refusal(folded_weights, straight_net(change))
    pruned = straight_net(lambda net: nn.utils.prune.l1_unstructured(net.conv, "weight", 10))
    folded = folded_weights(pruned)["conv"]
    assert (folded == 0).sum() == 10 and torch.allclose(folded.float(), fused(pruned.conv.weight, pruned.norm))


class Branching(nn.Sequential):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def test_what_cannot_be_traced_is_refused_and_measured_without(refusal):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    model, branching = nn.Sequential(*layers).eval(), Branching(*layers).eval()
    message = refusal(folded_weights, branching)
    assert "Branching" in message and "branches" in message
    plain, result = (Conditioning(null_draws=1)(net, None) for net in (model, branching))
    assert "not_folded" not in plain and result["not_folded"] == message
    assert result["value"] == plain["value"] and result["null"] == plain["null"]
    for name, value in plain["parts"].items():
        assert math.isfinite(value)
        lost = "folded" in name and not name.startswith("null_")
        assert result["parts"][name] == (None if lost else value)
    assert result["layers"]["0"]["folded"] is None and plain["layers"]["0"]["folded"] > 1
