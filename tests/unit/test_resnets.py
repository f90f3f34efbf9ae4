"""ResNets and VGG against torchvision's blocks with the same weights, and against formulas written out."""

import json
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, resnet18
from torchvision.models.vgg import make_layers

from scaffolding import lively
from sparserobust.config import Model
from sparserobust.models import VGG16, PreActResNet, ResNet, ResNet18
from sparserobust.models.normalise import Normalise
from sparserobust.models.resnet import Block, Padded
from sparserobust.sparsity import parameters

SMALL = {"resnet": ResNet(depth=14, width=4), "resnet18": ResNet18(width=4), "vgg16": VGG16(width=4)}
every_kind = pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)


def with_weights(reference, net):
    """`reference` with the weights of `net`, whose layers come in the same order; convolutions get no bias."""
    values = iter(net.state_dict().values())
    with torch.no_grad():
        for m in reference.double().modules():
            if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                for name, t in m.state_dict().items():
                    if isinstance(m, nn.Conv2d) and name == "bias":
                        t.zero_()
                        continue
                    given = next(values)
                    assert given.shape == t.shape
                    t.copy_(given)
    assert next(values, None) is None
    return reference


# --- counts and shapes


@pytest.mark.parametrize(("model", "expected"), [
    (ResNet(), 269_722),
    (ResNet(depth=32), 464_154),
    (ResNet(depth=44), 658_586),
    (ResNet(depth=56), 853_018),
    (ResNet(width=24), 605_026),
    (ResNet(width=32), 1_073_962),
    (ResNet(width=64), 4_286_026),
    (ResNet18(), 11_173_962),
    (VGG16(), 14_724_042),
], ids=lambda x: str(x.plain()) if isinstance(x, Model) else "")
def test_number_of_parameters(model, expected):
    with torch.device("meta"):
        assert parameters(model.build((3, 32, 32), 10)) == expected


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("image_shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8)])
@every_kind
def test_logits_for_every_image_shape(model, image_shape, training):
    logits = model.build(image_shape, 7).train(training)(torch.rand(5, *image_shape))
    assert logits.shape == (5, 7) and logits.isfinite().all()
    assert logits.std(0).min() > 0  # it does look at the images


# --- formulas


@pytest.mark.parametrize("side", [7, 8])
def test_shortcut_without_parameters(side):
    """With a residual branch of zero a block gives every second pixel of its input, then channels of zeros."""
    block = Block(3, 6, 2, Padded(3, 6, 2)).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 3, side, side).contiguous(memory_format=torch.channels_last)
    expected = torch.zeros(2, 6, 4, 4)
    for image, channel, row, column in product(range(2), range(3), range(4), range(4)):
        expected[image, channel, row, column] = max(x[image, channel, 2 * row, 2 * column].item(), 0)
    out = block(x)
    assert torch.equal(out, expected) and expected.any()
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert parameters(block.shortcut) == 0


class PaddedByHand(nn.Module):
    """elliothe/CVPR_2019_PNI, DownsampleA."""

    def forward(self, x):
        x = functional.avg_pool2d(x, 1, 2)
        return torch.cat((x, x.mul(0)), 1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("depth", [8, 20])
def test_resnet_against_torchvision_blocks(depth, training):
    net = lively(ResNet(depth=depth, width=4).build((2, 12, 12), 5)).double().train(training)
    blocks = [BasicBlock(4, 4) for _ in range((depth - 2) // 6)]
    for c in (4, 8):
        blocks.append(BasicBlock(c, 2 * c, 2, PaddedByHand()))
        blocks += [BasicBlock(2 * c, 2 * c) for _ in range((depth - 8) // 6)]
    reference = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), *blocks,
                              nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    with_weights(reference, net).train(training)
    images = torch.rand(6, 2, 12, 12, dtype=torch.float64)
    assert torch.allclose(net(images), reference(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [False, True])
def test_resnet18_against_torchvision(training):
    net = lively(ResNet18().build((3, 16, 16), 10)).double().train(training)
    reference = resnet18(num_classes=10)
    reference.conv1, reference.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    with_weights(reference, net).train(training)
    images = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    assert torch.allclose(net(images), reference(images), rtol=1e-9, atol=1e-9)


class PooledByHand(nn.Module):
    """The largest of each 2x2 pixels; at an odd edge, of those there are."""

    def forward(self, x):
        height, width = x.shape[2:]
        x = functional.pad(x, (0, width % 2, 0, height % 2), value=-torch.inf)
        return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("side", [64, 32, 28, 8])
def test_vgg16_against_torchvision_layers(side, training):
    net = lively(VGG16(width=4).build((2, side, side), 5)).double().train(training)
    widths = [4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 32, 32, 32, "M", 32, 32, 32, "M"]
    layers = make_layers(widths, batch_norm=True)
    layers[0] = nn.Conv2d(2, 4, 3, padding=1)
    layers = [PooledByHand() if isinstance(m, nn.MaxPool2d) else m for m in layers]
    reference = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))
    with_weights(reference, net).train(training)
    images = torch.rand(6, 2, side, side, dtype=torch.float64)
    assert torch.allclose(net(images), reference(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("model", "cost"), [
    (ResNet(), PreActResNet().cost), (ResNet(depth=38), PreActResNet(depth=38).cost), (ResNet(width=64), 360.0),
    (ResNet18(), 320.0), (VGG16(), 180.0), (VGG16(width=16), 18.0),
], ids=lambda x: str(x.plain()) if isinstance(x, Model) else "")
def test_cost(model, cost):
    assert model.cost == cost


# --- normalisation


def test_normalise():
    layer = Normalise(MEAN, STD)
    x = torch.rand(2, 3, 4, 4)
    out = layer(x)
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        assert torch.allclose(out[:, channel], (255 * x[:, channel] - mean) / std, atol=1e-5)
    assert layer.mean.shape == layer.std.shape == (3, 1, 1) and parameters(layer) == 0


@every_kind
def test_normalisation_is_the_first_thing_applied(model):
    plain = lively(model.build((3, 9, 9), 4)).double()
    given = type(model).parse(model.plain() | {"mean_255": MEAN, "std_255": STD}).build((3, 9, 9), 4).double()
    assert given.load_state_dict(plain.state_dict(), strict=False).missing_keys == ["first.mean", "first.std"]
    x = torch.rand(8, 3, 9, 9, dtype=torch.float64)
    by_hand = (255 * x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.allclose(given(x), plain(by_hand), rtol=1e-4)
    assert not torch.allclose(given(x), plain(x), rtol=1e-1)
    assert parameters(given) == parameters(plain)


@pytest.mark.parametrize(("change", "words"), [
    ({"mean_255": [1, 2, 3]}, ["std_255", "together"]),
    ({"std_255": [1, 2, 3]}, ["mean_255", "together"]),
    ({"mean_255": [1, 2, 3], "std_255": [1, 2]}, ["together"]),
    ({"mean_255": [1, 2, 3], "std_255": [1, 0, 2]}, ["std_255", "positive"]),
    ({"mean_255": [1, 2, 3], "std_255": [1, 2, -2]}, ["std_255", "positive"]),
    ({"mean_255": [1, "x", 3], "std_255": [1, 2, 2]}, ["mean_255", "'x'"]),
    ({"width": 0}, ["width"]),
    ({"widht": 8}, ["'width'"]),
], ids=str)
@pytest.mark.parametrize("kind", SMALL)
def test_wrong_settings(refusal, kind, change, words):
    message = refusal(Model.parse, {"kind": kind} | change)
    assert all(word in message for word in [f"({kind})", *words]), message


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_wrong_depth(refusal, depth):
    message = refusal(ResNet, depth=depth)
    assert "6n+2" in message and str(depth) in message


@pytest.mark.parametrize("kind", SMALL)
def test_normalisation_for_other_images(refusal, kind):
    model = Model.parse({"kind": kind, "width": 4, "mean_255": MEAN, "std_255": STD})
    message = refusal(model.build, (1, 8, 8), 10)
    assert all(word in message for word in (kind, "1 channel", "mean_255", "std_255", "3", "leave both out")), message


# --- settings, initial weights, gradients


@pytest.mark.parametrize("more", [{}, {"mean_255": MEAN, "std_255": STD}], ids=["plain", "normalised"])
@every_kind
def test_settings_survive_plain_and_parse(model, more):
    assert type(model)().plain() == {"kind": model.kind}
    model = type(model).parse(model.plain() | more)
    again = Model.parse(json.loads(json.dumps(model.plain())))
    assert again == model and type(again) is type(model) and again.identity == model.identity
    assert set(more) <= set(model.plain())


@pytest.mark.parametrize("model", [ResNet(), ResNet18(width=16), VGG16(width=16)], ids=lambda m: m.kind)
def test_initial_weights(model):
    for name, m in model.build((3, 32, 32), 10).named_modules():
        if isinstance(m, nn.BatchNorm2d):
            assert (m.weight == 1).all() and (m.bias == 0).all(), name
        elif isinstance(m, nn.Conv2d | nn.Linear):
            w = m.weight
            conv = isinstance(m, nn.Conv2d)
            expected = (2 / (w.shape[2] * w.shape[3] * w.shape[0] if conv else w.shape[1])) ** 0.5
            assert w.std().item() == pytest.approx(expected, rel=4 / (2 * w.numel()) ** 0.5), name
            assert abs(w.mean()) < 4 * expected / w.numel() ** 0.5, name
            if w.numel() > 9000:
                assert (w.abs() > 2 * expected).double().mean().item() == pytest.approx(0.0455, abs=0.007), name
            assert m.bias is None if conv else (m.bias == 0).all(), name


@every_kind
def test_same_seed_same_weights(model):
    nets = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        nets.append(model.build((3, 8, 8), 10))
    for name, w in nets[0].named_parameters():
        assert torch.equal(w, nets[1].get_parameter(name))
        assert w.dim() == 1 or not torch.equal(w, nets[2].get_parameter(name)), name


@every_kind
def test_gradient_reaches_every_parameter_and_the_images(model):
    model = type(model).parse(model.plain() | {"mean_255": MEAN, "std_255": STD})
    images = torch.rand(8, 3, 16, 16, requires_grad=True)
    net = model.build((3, 16, 16), 10)
    functional.cross_entropy(net(images), torch.arange(8)).backward()
    for name, p in [("images", images), *net.named_parameters()]:
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name
