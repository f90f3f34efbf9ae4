"""How sparsity is counted, and what is told of weights: by the paper's own fractions, and by hand."""

import json
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scaffolding import seeded
from sparserobust import UserError, sparsity
from sparserobust.analysis import (
    ChannelNorms,
    ChannelSparsity,
    LayerSparsity,
    LayerWeights,
    RemainingParameters,
    WeightHistogram,
    WeightSparsity,
    WithoutBlankPixels,
)
from sparserobust.attacks import FGSM
from sparserobust.config import Measurement
from sparserobust.data import Split, Splits
from sparserobust.evaluation import Accuracy
from sparserobust.models import LeNet300100, PreActResNet

NETS = {
    "ResNet20": (PreActResNet(depth=20), 675),
    "En2ResNet20": (PreActResNet(depth=20, members=2, noise=0.1), 1350),
    "En5ResNet20": (PreActResNet(depth=20, members=5, noise=0.1), 3375),
    "ResNet38": (PreActResNet(depth=38), 1347),
}
PRINTED = [  # Dinh et al. 2020, tables 2 to 4, as fractions of input channels
    ("ResNet20", 54, "8.00"), ("ResNet20", 171, "25.33"), ("ResNet20", 30, "4.44"),
    ("En2ResNet20", 560, "41.48"), ("En2ResNet20", 766, "56.74"),
    ("En5ResNet20", 667, "19.76"), ("En5ResNet20", 1801, "53.36"),
    ("ResNet38", 238, "17.67"), ("ResNet38", 590, "43.80"),
]  # fmt: skip


def built(name: str):
    with seeded():
        return NETS[name][0].build((3, 32, 32), 10).requires_grad_(False)


def zero_channels(model, count: int) -> None:
    """Set this many input channels to zero, drawn from all convolutions."""
    channels = [w[:, i] for w in sparsity.convolutions(model).values() for i in range(w.shape[1])]
    for index in torch.randperm(len(channels), generator=torch.Generator().manual_seed(0))[:count]:
        channels[index].zero_()


@pytest.fixture
def small():
    """Two convolutions of 4 input channels in all, a linear layer, a batch norm; no weight is zero."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1, bias=False), nn.Linear(2, 5))
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
    return model.requires_grad_(False)


def agrees(result: dict, count: int, total: int) -> bool:
    return (result["value"], result["count"], result["total"]) == (count / total, count, total)


@pytest.mark.parametrize("name", NETS)
def test_number_of_channels(name):
    model, groups = built(name), NETS[name][1]
    assert sparsity.channel_groups(model) == groups
    assert sparsity.channel_sparsity(model) == 0
    assert agrees(ChannelSparsity()(model, None), 0, groups)


@pytest.mark.parametrize(("name", "removed", "percent"), PRINTED)
def test_printed_percentages(name, removed, percent):
    model, groups = built(name), NETS[name][1]
    zero_channels(model, removed)
    assert f"{100 * sparsity.channel_sparsity(model):.2f}" == percent
    result = ChannelSparsity()(model, None)
    assert (result["count"], result["total"]) == (removed, groups)
    assert result["value"] == pytest.approx(removed / groups, rel=1e-12)


def test_output_channels_do_not_count(small):
    small[0].weight[:2].zero_()
    small[2].weight[0].zero_()
    assert sparsity.channel_sparsity(small) == 0
    small[2].weight[:, 1].zero_()
    assert sparsity.channel_sparsity(small) == 1 / 4


def test_without_convolutions_there_is_no_channel_to_remove():
    model = LeNet300100().build((1, 8, 8), 10).requires_grad_(False)
    model[1].weight.zero_()
    assert (sparsity.channel_sparsity(model), sparsity.channel_groups(model)) == (0, 0)


def test_channel_norms_by_hand(small):
    expected = [sum(v**2 for v in small[2].weight[:, i].flatten().tolist()) ** 0.5 for i in range(3)]
    assert sparsity.channel_norms(small[2].weight).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("norm", "removed"), [(1e-14, 0), (1.1e-15, 0), (0.9e-15, 1), (1e-16, 1), (1e-25, 1)])
@pytest.mark.parametrize("spread", [False, True])
def test_a_channel_is_removed_below_a_norm_of_1e_15(small, norm, removed, spread):
    channel = small[2].weight[:, 1]
    channel.zero_()
    if spread:
        channel.fill_(norm / channel.numel() ** 0.5)
    else:
        channel[-1] = norm
    assert sparsity.channel_sparsity(small) == removed / 4


def test_sparsity_counts_convolution_and_linear_weights(small):
    total = 27 + 6 + 10
    for p in (small[0].bias, small[1].weight, small[1].bias, small[3].bias):
        p.zero_()
    assert sparsity.sparsity(small) == 0
    small[0].weight[0, 0, 0] = -0.0
    small[3].weight[:2] = 0.0
    small[2].weight[0] = 1e-38  # small is not zero
    assert sparsity.sparsity(small) == 7 / total
    assert agrees(WeightSparsity()(small, None), 7, total)


def test_remaining_parameters(small):
    total = 27 + 3 + 3 + 3 + 6 + 10 + 5
    assert sparsity.parameters(small) == sparsity.remaining_parameters(small) == total
    small[1].bias.zero_()
    small[3].weight[0] = 0.0
    assert sparsity.remaining_parameters(small) == total - 5
    result = RemainingParameters()(small, None)
    assert agrees(result, total - 5, total)  # the value is a share, as that of every other count


def test_measurements_of_a_real_net_agree_with_its_counts():
    model = built("ResNet20")
    zero_channels(model, 100)
    zeros = sum(int((w == 0).sum()) for w in sparsity.prunable(model).values())
    assert agrees(WeightSparsity()(model, None), zeros, 270_256 + 640) and zeros > 1000
    left = 272_282 - zeros - 688  # shifts of batch norms begin at zero
    assert agrees(RemainingParameters()(model, None), left, 272_282)


# --- histogram


def test_histogram_by_hand(small):
    small[0].weight.zero_()
    small[2].weight.copy_(torch.tensor([-7.0, -0.25, -0.2, -0.0009, 0.0011, 0.3]).view_as(small[2].weight))
    small[3].weight.fill_(0.1)
    result = WeightHistogram(limit=0.25, bins=5)(small, None)  # edges -.25, -.15, -.05, .05, .15, .25
    assert result["histogram"] == [3, 0, 27 + 2, 10, 1]
    assert agrees(result, 28, 43)
    assert WeightHistogram(near_zero=0.0012)(small, None)["count"] == 29


@pytest.mark.parametrize("limit", [0.01, 0.25, 3.0])
def test_histogram_holds_every_weight(limit):
    result = WeightHistogram(limit=limit, bins=31)(built("ResNet20"), None)
    assert sum(result["histogram"]) == result["total"] == 270_256 + 640
    assert len(result["histogram"]) == 31 and result["limit"] == limit
    assert result["value"] == result["count"] / result["total"]


def test_histogram_counts_exactly_beyond_float_precision():
    """A wide, very sparse network: more than 2^24 weights in one bin, where float32 can no longer add one."""
    model = nn.Sequential(nn.Linear(2**12, 2**12 + 1, bias=False)).requires_grad_(False)
    model[0].weight.zero_()
    assert sum(WeightHistogram()(model, None)["histogram"]) == 2**24 + 2**12


@pytest.mark.parametrize("kind", ["weight_histogram", "layer_weights"])
@pytest.mark.parametrize("change", [{"limit": 0}, {"bins": 0}, {"near_zero": 0}], ids=str)
def test_wrong_settings(refusal, kind, change):
    assert "positive" in refusal(Measurement.parse, {"kind": kind} | change)


# --- one layer


def tiny(depth=8, members=1):
    """With gradients, as a network comes out of training."""
    with seeded():
        return PreActResNet(depth=depth, width=2, members=members).build((1, 8, 8), 10)


@pytest.mark.parametrize(("depth", "chosen"), [(8, "blocks.2.conv2.weight"), (20, "blocks.8.conv2.weight")])
def test_the_layer_is_the_last_3x3_convolution_of_the_first_net(depth, chosen):
    """Not the 1x1 shortcut that comes after it in a block that changes shape, as the last one of depth 8 does."""
    model = tiny(depth, members=2)
    result = LayerWeights()(model, None)
    assert result["layer"] == chosen
    w = model.members[0].get_parameter(chosen)
    assert w.shape == (8, 8, 3, 3)
    assert result["std"] == pytest.approx(w.detach().double().std().item(), rel=1e-5)
    assert result["total"] == w.numel() == sum(result["histogram"])


def test_the_layer_of_resnet20_is_that_of_the_papers_figure():
    result = LayerWeights()(built("En2ResNet20"), None)
    assert result["total"] == 64 * 64 * 9
    assert (len(result["picture"]), len(result["picture"][0])) == (64, 64)
    assert (result["limit"], len(result["histogram"])) == (0.33, 67)


def test_picture_by_hand():
    """A row for each output channel, an entry for each input channel: the length of the kernel between them."""
    model = tiny().requires_grad_(False)
    w = model.get_parameter("members.0.blocks.2.conv2.weight")
    w.zero_()
    w[3, 5, 0, 0], w[3, 5, 2, 1] = 0.3, -0.4
    w[7, 0] = 0.2
    result = LayerWeights(limit=0.5, bins=5, near_zero=0.25)(model, None)  # edges -.5, -.3, -.1, .1, .3, .5
    expected = [[0.0] * 8 for _ in range(8)]
    expected[3][5], expected[7][0] = 0.5, 0.6
    assert result["picture"] == expected
    assert result["histogram"] == [1, 0, 576 - 11, 9, 1]
    assert (result["value"], result["count"]) == (574 / 576, 574)


@pytest.mark.parametrize("measurement", [LayerWeights(), ChannelNorms()], ids=["layer", "norms"])
def test_results_are_json_and_come_without_a_warning_from_a_net_with_gradients(measurement):
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = measurement(tiny(), None)
    finally:
        torch.set_warn_always(always)
    assert json.loads(json.dumps(result)) == result


# --- channel norms


def test_channel_norms_of_every_convolution_by_hand():
    model = tiny()
    norms = ChannelNorms()(model, None)["norms"]
    weights = {name: p.detach().tolist() for name, p in model.named_parameters() if p.dim() == 4}
    assert norms.keys() == weights.keys()
    for name, w in weights.items():
        expected = [math.sqrt(sum(v**2 for kernels in w for row in kernels[i] for v in row)) for i in range(len(w[0]))]
        assert norms[name] == pytest.approx(expected, rel=1e-5)
        assert all(float(f"{norm:.6g}") == norm for norm in norms[name])


def test_small_but_not_removed_channels_by_hand():
    model = nn.Sequential(nn.Conv2d(6, 1, 1), nn.Conv2d(3, 1, 1), nn.Conv2d(2, 1, 1)).requires_grad_(False)
    rows = [[3.0, -2.0, 0.251, 0.249, 5.0, 0.0],  # the largest is 5, so 0.25 divides them
            [100.0, 2e-15, 100.0],  # small, but not removed
            [0.9e-15, 0.0]]  # all removed: none is small
    for layer, row in zip(model, rows, strict=True):
        layer.weight.copy_(torch.tensor(row).view_as(layer.weight))
    result = ChannelNorms()(model, None)
    assert (result["value"], result["count"], result["total"]) == (2 / 11, 2, 11)
    assert result["norms"]["0.weight"] == [3, 2, 0.251, 0.249, 5, 0]


@given(st.integers(0, 10**6), st.integers(0, 6))
def test_removed_and_small_channels_are_told_apart(seed, removed):
    """Whatever is removed never counts as small, and scaling a convolution changes nothing."""
    model = nn.Sequential(nn.Conv2d(7, 2, 3)).requires_grad_(False)
    w, chance = model[0].weight, torch.Generator().manual_seed(seed)
    w.copy_(torch.randn(w.shape, generator=chance) * 10 ** torch.empty(7, 1, 1).uniform_(-4, 0, generator=chance))
    w[:, :removed] = 0
    norms = sorted(math.sqrt(v) for v in w.double().pow(2).sum((0, 2, 3)).tolist())[removed:]
    count = sum(norm < 0.05 * norms[-1] for norm in norms)
    for factor in (1, 2.0**-10):
        w.mul_(factor)
        assert agrees(ChannelNorms()(model, None), count, 7)


# --- blank pixels


@pytest.fixture
def blank():
    """A LeNet-300-100, and data of which two pixels are zero in all training images, a third in the test images."""
    with seeded():
        model = LeNet300100().build((1, 4, 4), 5).eval()
        train, test = torch.rand(2, 60, 1, 4, 4).clamp(min=0.01)
    train[:, 0, 0, 1] = train[:, 0, 3, 3] = 0
    train[1:, 0, 2, 2] = 0  # but not in the first image
    test[:, 0, 1, 0] = 0
    labels = model(test).argmax(1)
    return model, Splits(Split(train, labels), Split(test, labels), Split(test, labels), tuple("abcde"))


def test_blank_pixels_are_not_read_while_something_is_measured(blank):
    model, data = blank
    before = {name: p.clone() for name, p in model.state_dict().items()}
    layers = WithoutBlankPixels(measurement=LayerSparsity())(model, data)["layers"]
    assert {name: layer["zero"] for name, layer in layers.items()} == {"1": 2 * 300, "3": 0, "5": 0}
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert LayerSparsity()(model, data)["count"] == 0
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_an_attack_without_blank_pixels_is_that_on_the_pruned_network(blank):
    model, data = blank
    measure = Accuracy(attack=FGSM(epsilon=0.2))
    pruned = LeNet300100().build((1, 4, 4), 5).eval()
    pruned.load_state_dict(model.state_dict())
    pruned[1].weight.data[:, [1, 15]] = 0
    result = WithoutBlankPixels(measurement=measure)(model, data)
    assert result == measure(pruned, data) and result["mean_l2"] != measure(model, data)["mean_l2"]
    assert result["value"] != measure(model, data)["value"]


def test_weights_of_blank_pixels_come_back_when_a_measurement_fails(blank):
    model, data = blank
    before, hook = model[1].weight.clone(), model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(UserError, match="ZeroDivisionError"):
        WithoutBlankPixels(measurement=Accuracy())(model, data)
    hook.remove()
    assert torch.equal(model[1].weight, before) and not (before == 0).any()


def test_a_convolution_has_no_weights_of_a_pixel(blank, refusal):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 5))
    assert "is a convolution" in refusal(WithoutBlankPixels(measurement=WeightSparsity()), model, blank[1])


def test_what_a_measurement_needs_besides_is_handed_on(blank, tiny_run):
    model, data = blank
    transfer = Accuracy(attack=FGSM(epsilon=0.2), source=tiny_run())
    assert WithoutBlankPixels(measurement=transfer).required_runs == (tiny_run(),)
    other = LeNet300100().build((1, 4, 4), 5).eval()
    model[1].weight.data[:, [1, 15]] = 0
    assert WithoutBlankPixels(measurement=transfer)(model, data, other) == transfer(model, data, other)


def test_weights_in_bfloat16_are_counted_as_they_are():
    net = nn.Linear(30, 20, bias=False).bfloat16()
    found, same = (WeightHistogram()(one, None) for one in (net, nn.Linear(30, 20, bias=False)))
    plain = nn.Linear(30, 20, bias=False)
    plain.weight.data = net.weight.data.float()
    assert found == WeightHistogram()(plain, None) != same


def test_a_layer_of_one_weight_has_no_spread(blank):
    layers = LayerSparsity()(nn.Sequential(nn.Flatten(), nn.Linear(16, 1, bias=False), nn.Linear(1, 1)), None)["layers"]
    assert layers["2"]["std"] == 0 < layers["1"]["std"]


def test_without_blank_pixels_costs_what_it_measures():
    measure = Accuracy(attack=FGSM(epsilon=0.1), images=100)
    assert WithoutBlankPixels(measurement=measure).cost == measure.cost
    parsed = Measurement.parse({"kind": "without_blank_pixels", "measurement": measure.plain()})
    assert parsed == WithoutBlankPixels(measurement=measure)
