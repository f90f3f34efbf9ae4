"""Wide residual networks against the same layers written out, and against counts by hand."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from scaffolding import lively
from sparserobust import sparsity, training
from sparserobust.analysis import macs
from sparserobust.config import Model
from sparserobust.models import Winners
from sparserobust.models.gates import GatedConv2d, gated
from sparserobust.models.resnet import cost_of_layers
from sparserobust.models.wide_resnet import WideResNet
from sparserobust.sparsifiers import Channels
from sparserobust.sparsifiers.structured import inner_channels

SMALL = WideResNet(depth=16, widen=2, width=3)
GATED = WideResNet(depth=16, widen=2, width=3, gated=True)
every_net = pytest.mark.parametrize("model", [SMALL, GATED], ids=["plain", "gated"])


# --- counts


def by_hand(depth: int, widen: int, classes: int, gates: bool) -> int:
    """Parameters for three image channels and a stem of 16."""
    total, channels = 9 * 3 * 16, 16
    for out in (16 * widen, 32 * widen, 64 * widen):
        for _ in range((depth - 4) // 6):
            total += 2 * channels + 9 * channels * out + 2 * out + 9 * out * out  # norm, conv, norm, conv
            total += channels * out if channels != out else 0
            total += out if gates else 0
            channels = out
    return total + 2 * channels + channels * classes + classes


@pytest.mark.parametrize(("depth", "widen", "classes", "gates", "expected"), [
    (28, 10, 10, False, 36_479_194), (28, 10, 10, True, 36_483_674), (28, 10, 100, False, 36_536_884),
    (40, 4, 10, False, 8_949_210), (16, 4, 10, False, 2_748_890), (40, 4, 200, True, None), (16, 1, 10, True, None)])
def test_number_of_parameters(depth, widen, classes, gates, expected):
    with torch.device("meta"):
        net = WideResNet(depth=depth, widen=widen, gated=gates).build((3, 32, 32), classes)
    assert sparsity.parameters(net) == by_hand(depth, widen, classes, gates)
    assert expected is None or sparsity.parameters(net) == expected
    assert len(gated(net)) == (depth - 4) // 2 * gates
    shortcuts = [name for name in sparsity.convolutions(net) if "shortcut" in name]
    assert len(shortcuts) == (2 if widen == 1 else 3)
    assert len(sparsity.convolutions(net)) == depth - 3 + len(shortcuts)


@pytest.mark.parametrize(("depth", "widen"), [(28, 10), (16, 4)])
def test_cost_is_that_of_the_multiplications(depth, widen):
    model, side, expected, channels = WideResNet(depth=depth, widen=widen), 32, 9 * 3 * 16 * 32**2, 16
    for group in range(3):
        out = 16 * widen * 2**group
        for block in range((depth - 4) // 6):
            expected += 9 * channels * out * side**2  # before the stride
            side = side // 2 if group and not block else side
            expected += (9 * out * out + (channels * out if channels != out else 0)) * side**2
            channels = out
    expected += channels * 10
    with torch.device("meta"):
        net, gated_net = (WideResNet(depth=depth, widen=widen, gated=g).build((3, 32, 32), 10) for g in (False, True))
    assert macs(net, (3, 32, 32)) == macs(gated_net, (3, 32, 32)) == expected
    one = 9 * (16 * widen) ** 2 * 32**2  # a layer of the first group
    assert model.cost == pytest.approx(cost_of_layers(expected / one, 16 * widen), rel=0.05)
    assert WideResNet(depth=depth, widen=widen, gated=True).cost == model.cost


# --- the network


def written_out(net, images):
    """The forward pass of the released code, with the weights of `net`; gates are drawn block by block."""
    w = dict(net.state_dict())

    def norm(name, x):
        return functional.relu(functional.batch_norm(
            x, w[f"{name}.running_mean"].clone(), w[f"{name}.running_var"].clone(), w[f"{name}.weight"],
            w[f"{name}.bias"], training=net.training))

    x = functional.conv2d(images, w["stem.weight"], padding=1)
    for b in range(6):
        first, stride = w[f"blocks.{b}.conv1.weight"], 2 if b in (2, 4) else 1
        gate = torch.ones(len(first)).double()
        if (alpha := w.get(f"blocks.{b}.conv1.log_alpha")) is not None:
            if net.training:
                u = torch.empty(len(alpha)).double().uniform_(1e-6, 1 - 1e-6)
                gate = torch.sigmoid((torch.log(u) - torch.log(1 - u) + alpha) / (2 / 3))
            else:
                gate = torch.sigmoid(alpha)
            gate = functional.hardtanh(gate * 1.2 - 0.1, 0, 1)
        active = norm(f"blocks.{b}.norm1", x)
        out = functional.conv2d(active, first, padding=1) * gate.view(-1, 1, 1)
        out = functional.conv2d(norm(f"blocks.{b}.norm2", out), w[f"blocks.{b}.conv2.weight"], None, stride, 1)
        shortcut = w.get(f"blocks.{b}.shortcut.weight")
        x = out + (x if shortcut is None else functional.conv2d(active, shortcut, None, stride))
    x = norm("norm", x)
    x = functional.avg_pool2d(x, x.shape[2:]).flatten(1)
    return x @ w["linear.weight"].T + w["linear.bias"]


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (2, 64, 64), (1, 9, 13)])
@every_net
def test_it_is_the_network_written_out(model, shape, is_training):
    net = lively(model.build(shape, 5)).double().train(is_training)
    images, found = torch.rand(4, *shape).double(), []
    for call in (written_out, lambda net, x: net(x)):
        torch.manual_seed(1)
        found.append(call(net, images))
    assert torch.allclose(*found, rtol=1e-9, atol=1e-9)
    assert found[0].shape == (4, 5) and (found[0].std(0) > 0).all()


@every_net
def test_images_are_normalised_first(model):
    net = lively(model.build((2, 8, 8), 5)).double().eval()
    given = Model.parse(model.plain() | {"mean_255": [100.0, 50.0], "std_255": [60.0, 30.0]}).build((2, 8, 8), 5)
    given.load_state_dict(net.state_dict(), strict=False)
    images = torch.rand(4, 2, 8, 8).double()
    by_hand = (255 * images - torch.tensor([100.0, 50.0]).view(2, 1, 1)) / torch.tensor([60.0, 30.0]).view(2, 1, 1)
    assert torch.allclose(given.double().eval()(images), net(by_hand), rtol=1e-4)
    assert not torch.allclose(net(images), net(by_hand), rtol=1e-2)


@every_net
def test_names_and_places(model):
    net = model.build((3, 8, 8), 10)
    assert [name for name, _ in net.named_parameters()][:1] == ["stem.weight"]
    kind = GatedConv2d if model.gated else nn.Conv2d
    assert all(type(block.conv1) is kind and type(block.conv2) is nn.Conv2d for block in net.blocks)
    assert list(gated(net)) == [f"blocks.{b}.conv1" for b in range(6) if model.gated]
    assert [block.conv1.stride for block in net.blocks] == [(1, 1)] * 6
    assert [block.conv2.stride for block in net.blocks] == [(s, s) for s in (1, 1, 2, 1, 2, 1)]
    assert [block.shortcut and block.shortcut.stride for block in net.blocks] == [
        (1, 1), None, (2, 2), None, (2, 2), None]


@every_net
def test_initial_weights(model):
    net = Model.parse(model.plain() | {"width": 16}).build((3, 32, 32), 10)
    for name, m in net.named_modules():
        if isinstance(m, nn.BatchNorm2d):
            assert (m.weight == 1).all() and (m.bias == 0).all(), name
        elif isinstance(m, nn.Conv2d | nn.Linear):
            w, expected = m.weight, (2 / m.weight[0].numel()) ** 0.5
            assert w.std().item() == pytest.approx(expected, rel=4 / (2 * w.numel()) ** 0.5), name
            assert abs(w.mean()) < 4 * expected / w.numel() ** 0.5, name
            if w.numel() > 9000:
                assert (w.abs() > 2 * expected).double().mean().item() == pytest.approx(0.0455, abs=0.007), name
            assert m.bias is None or isinstance(m, nn.Linear)
    biases = torch.cat([model.build((1, 8, 8), 10).linear.bias for _ in range(40)])
    assert biases.std().item() == pytest.approx(0.01, rel=0.15) and abs(biases.mean()) < 0.002


@every_net
def test_gradient_reaches_every_parameter_and_the_images(model):
    images = torch.rand(8, 3, 16, 16, requires_grad=True)
    net = model.build((3, 16, 16), 10)
    functional.cross_entropy(net(images), torch.arange(8)).backward()
    for name, p in [("images", images), *net.named_parameters()]:
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name


@every_net
def test_it_knows_its_inner_channels(model):
    net = lively(model.build((1, 8, 8), 5)).eval()
    known = inner_channels(net, Channels(sparsity=0.5))
    assert [tuple(map(id, layers)) for layers in known] == [
        (id(block.conv1), id(block.norm2), id(block.conv2)) for block in net.blocks]
    Channels(sparsity=0.5).start(net)
    before, images, removed = net(torch.ones(2, 1, 8, 8)), torch.ones(2, 1, 8, 8), 0
    for writer, norm, reader in known:
        gone = ~writer.weight.flatten(1).any(1) & ~reader.weight.transpose(0, 1).flatten(1).any(1)
        removed += int(gone.sum())
        norm.bias.data[gone] = 100.0  # nobody reads it
    assert removed > 12 and torch.equal(net(images), before)
    assert sparsity.sparsity(net) >= 0.5


@every_net
def test_it_trains(model, tiny_run, digits):
    history = training.train(tiny_run(model=model, epochs=6, batch_size=16, lr=0.1), digits).history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


# --- settings


@pytest.mark.parametrize("more", [{}, {"mean_255": [1.0, 2.0, 3.0], "std_255": [4.0, 5.0, 6.0]}], ids=str)
@every_net
def test_settings_survive_plain_and_parse(model, more):
    model = Model.parse(model.plain() | more)
    again = Model.parse(json.loads(json.dumps(model.plain())))
    assert again == model and again.identity == model.identity
    assert SMALL.identity != GATED.identity and not SMALL.fits(GATED)
    assert WideResNet().plain() == {"kind": "wide_resnet"} and (WideResNet().depth, WideResNet().widen) == (28, 10)


@pytest.mark.parametrize(("change", "words"), [
    ({"depth": 4}, ["6n+4", "4"]), ({"depth": 20}, ["6n+4", "20"]), ({"widen": 0}, ["widen"]),
    ({"width": 0}, ["width"]), ({"gated": 1}, ["gated"]), ({"mean_255": [1.0]}, ["std_255", "together"])], ids=str)
def test_wrong_settings(refusal, change, words):
    message = refusal(Model.parse, {"kind": "wide_resnet"} | change)
    assert all(word in message for word in ["(wide_resnet)", *words]), message


def test_it_may_have_other_activations():
    net = Winners(model=GATED, share=0.5).build((1, 8, 8), 10)
    assert not any(isinstance(m, nn.ReLU) for m in net.modules()) and net(torch.rand(2, 1, 8, 8)).isfinite().all()
