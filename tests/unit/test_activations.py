"""Zero activations, dead units and unused weights against counting by hand."""

import json

import pytest
import torch
from torch import nn

from scaffolding import lively, splits_of
from sparserobust.analysis.activations import Activations
from sparserobust.config import Measurement
from sparserobust.models import VGG16, LeNet5, LeNet300100, Linear, NoisyWeights, PreActResNet, ResNet, VGGLike, Winners

SHAPE = (1, 8, 8)


def linears(net) -> list[nn.Linear]:
    return [m for m in net.modules() if isinstance(m, nn.Linear)]


def test_a_tiny_network_by_hand():
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    one, two, three = linears(net)
    for p in net.parameters():
        nn.init.zeros_(p)
    one.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    one.bias.data = torch.tensor([0.0, 0.0, -0.5, 0.0])
    two.weight.data[0, 0], two.weight.data[0, 2] = -1.0, 3.0
    two.bias.data[1] = 1.0
    three.weight.data[:, 1] = 1.0
    images = torch.tensor([[0.25, 1.0], [0.75, 0.0], [0.0, 0.5]]).view(3, 1, 1, 2)
    # first: (.25, 0, 0, 0), (.75, 0, .25, 0), (0, 0, 0, 0); second: (0, 1, 0) thrice
    assert Activations()(net, splits_of(images)) == {
        "value": 15 / 21, "count": 15, "total": 21, "dead_units": 4, "units": 7, "parts": {"dead": 4 / 7},
        "layers": {"2": {"zero": 9, "total": 12, "dead": 2, "units": 4},
                   "4": {"zero": 6, "total": 9, "dead": 2, "units": 3}},
        "weights": {
            "1": {"dead_outputs": 1, "outputs": 4, "unused_inputs": 1, "inputs": 2, "nonzero": 3, "total": 8},
            "3": {"dead_outputs": 2, "outputs": 3, "unused_inputs": 2, "inputs": 4, "nonzero": 2, "total": 12},
            "5": {"dead_outputs": 0, "outputs": 2, "unused_inputs": 2, "inputs": 3, "nonzero": 2, "total": 6}}}


class One(nn.Module):
    """Unit i of 600 is above zero on image i only; -1 everywhere else."""

    def __init__(self):
        super().__init__()
        self.weight, self.relu, self.seen = nn.Parameter(torch.ones(1, 1)), nn.ReLU(), []

    def forward(self, images):
        self.seen.append(images)
        return self.relu(2 * images.flatten(1) - 1)


@pytest.mark.parametrize("images", [1, 250, 260, 600, None])
def test_a_unit_is_dead_only_if_zero_on_all_images_of_all_batches(images):
    net, n, splits = One(), images or 600, splits_of(torch.eye(600).view(600, 1, 1, 600))
    result = Activations(images=images)(net, splits)
    assert result["layers"] == {"relu": {"zero": n * 599, "total": n * 600, "dead": 600 - n, "units": 600}}
    assert (result["dead_units"], result["units"], result["value"]) == (600 - n, 600, 599 / 600)
    del net.seen[0]  # of two images, which are asked first
    assert torch.equal(torch.cat(net.seen), splits.test.sample(images).images)
    assert max(map(len, net.seen)) == min(n, 250)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_fully_pruned_layer(shift):
    """Its units are silent where their biases do not make them speak."""
    net = LeNet300100().build(SHAPE, 10)
    one, two, three = linears(net)
    nn.init.zeros_(two.weight)
    nn.init.constant_(two.bias, shift)
    result = Activations()(net, splits_of(torch.rand(20, *SHAPE)))
    zero = 0 if shift else 100
    assert result["layers"]["4"] == {"zero": 20 * zero, "total": 2000, "dead": zero, "units": 100}
    assert result["weights"]["3"] == {"dead_outputs": 100, "outputs": 100, "unused_inputs": 300, "inputs": 300,
                                      "nonzero": 0, "total": 30_000}
    for name, layer in (("1", one), ("5", three)):
        assert result["weights"][name] == {"dead_outputs": 0, "outputs": layer.out_features, "unused_inputs": 0,
                                           "inputs": layer.in_features, "nonzero": layer.weight.numel(),
                                           "total": layer.weight.numel()}


def by_hand(net, images, monkeypatch) -> list[dict]:
    """From every call of torch.relu in one pass over all images, in the order of the calls."""
    given, relu = [], torch.relu

    def kept(x):
        given.append(relu(x))
        return given[-1]

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "relu", kept)
        net(images)
    layers = []
    for output in given:
        rows = output.flatten(1).numpy()
        dead = sum(1 for unit in rows.T if not unit.any())
        layers.append({"zero": rows.size - len(rows.nonzero()[0]), "total": rows.size, "dead": dead,
                       "units": rows.shape[1]})
    return layers


RESNET = ["relu", "blocks.0.relu", "blocks.0.relu#2", "blocks.1.relu", "blocks.1.relu#2", "blocks.2.relu",
          "blocks.2.relu#2"]
NETWORKS = {
    "resnet": (ResNet(depth=8, width=4), RESNET),
    "vgg16": (VGG16(width=4), [f"layers.{i}" for i in (2, 5, 9, 12, 16, 19, 22, 26, 29, 32, 36, 39, 42)]),
    "ensemble": (PreActResNet(depth=8, width=4, members=2), [
        f"members.{m}.{name}" for m in range(2) for name in [*RESNET[1:], "relu"]]),
}


@pytest.mark.parametrize(("model", "names"), NETWORKS.values(), ids=NETWORKS)
def test_any_network(model, names, monkeypatch):
    net, images = lively(model.build((2, 12, 12), 5), both_signs=True).eval(), torch.rand(300, 2, 12, 12)
    result = Activations()(net, splits_of(images))
    layers = by_hand(net, images.contiguous(memory_format=torch.channels_last), monkeypatch)
    assert list(result["layers"]) == names
    for ours, theirs in zip(result["layers"].values(), layers, strict=True):
        assert (ours["total"], ours["units"]) == (theirs["total"], theirs["units"])
        assert ours["zero"] == pytest.approx(theirs["zero"], abs=2)  # batches of another size round otherwise
        assert abs(ours["dead"] - theirs["dead"]) <= 1
    for key, name in (("zero", "count"), ("total", "total"), ("dead", "dead_units"), ("units", "units")):
        assert sum(layer[key] for layer in result["layers"].values()) == result[name]
    assert 0 < result["dead_units"] < result["units"] and result["value"] == result["count"] / result["total"]
    weights = {name: m.weight for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {name: (w["outputs"], w["inputs"], w["total"]) for name, w in result["weights"].items()} == {
        name: (*w.shape[:2], w.numel()) for name, w in weights.items()}
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels_last"])
def test_unused_channels_and_the_entries_of_a_flattened_map(layout):
    net = LeNet5(kernel=3).build(SHAPE, 10).to(memory_format=layout)
    first, second = [m for m in net if isinstance(m, nn.Conv2d)]
    hidden, last = linears(net)
    with torch.no_grad():
        first.weight[[3, 5, 8]] = 0  # three filters
        second.weight[:, 4] = 0  # a channel that is not read
        second.weight[1:, 6] = 0  # one that a single filter reads
        second.weight[7, :, 1:] = 0  # a filter of which a row is left
        second.weight[2] = 0
        hidden.weight[:, 4:10] = 0  # entries of the map, not channels
        hidden.weight[:30] = 0
        last.weight[:, 11] = 0
    weights = Activations(images=3)(net, splits_of(torch.rand(5, *SHAPE)))["weights"]
    assert weights == {
        "0": {"dead_outputs": 3, "outputs": 20, "unused_inputs": 0, "inputs": 1, "nonzero": 17 * 9, "total": 180},
        "2": {"dead_outputs": 1, "outputs": 50, "unused_inputs": 1, "inputs": 20,
              "nonzero": 9 * (47 * 18) + 9 * 19 + 3 * 18, "total": 9000},
        "5": {"dead_outputs": 30, "outputs": 500, "unused_inputs": 6, "inputs": 50, "nonzero": 470 * 44,
              "total": 25_000},
        "7": {"dead_outputs": 0, "outputs": 10, "unused_inputs": 1, "inputs": 500, "nonzero": 4990, "total": 5000}}


def test_winners_are_what_is_not_zero():
    net = Winners(model=LeNet300100(), share=0.02).build(SHAPE, 10)
    result = Activations()(net, splits_of(torch.rand(30, *SHAPE)))
    assert result["layers"]["2"]["zero"] == 30 * 294 and result["layers"]["4"]["zero"] == 30 * 98
    assert result["dead_units"] > 100


@pytest.mark.parametrize("model", [VGGLike(width=4), NoisyWeights(model=ResNet(depth=8, width=4)),
                                   PreActResNet(depth=8, width=4, noise=0.1)], ids=lambda m: m.kind)
def test_no_chance_is_left_and_nothing_is_changed(model):
    """Dropout is off, noise is one fixed draw, and the network comes back as it was."""
    net, splits = model.build(SHAPE, 10).train(), splits_of(torch.rand(260, *SHAPE))
    before, state = {n: t.clone() for n, t in net.state_dict().items()}, torch.get_rng_state()
    first = Activations()(net, splits)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert Activations()(net, splits) == first == Activations()(net.eval(), splits)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    net.train()
    Activations(images=2)(net, splits)
    assert all(m.training and not m._forward_hooks for m in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_wrong_settings(refusal):
    assert "images" in refusal(Activations, images=0)
    net = Linear().build(SHAPE, 10)
    assert "ReLU" in refusal(Activations(), net, splits_of(torch.rand(5, *SHAPE)))
    assert Measurement.parse({"kind": "activations", "images": 7}) == Activations(images=7)


def test_cost_goes_by_images():
    assert Activations(images=2000).cost == pytest.approx(2 * Activations(images=1000).cost) and Activations().cost > 0


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.relu = nn.Linear(64, 3), nn.ReLU()

    def forward(self, x):
        return self.relu(torch.relu(x.flatten(1)) @ self.linear.weight.T)


def test_a_relu_that_is_not_seen_is_told(refusal):
    data = splits_of(torch.rand(5, *SHAPE))
    assert "calls ReLU as a function" in refusal(Activations(), Mixed(), data)
    assert "no layer of type nn.ReLU" in refusal(Activations(), nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), data)
