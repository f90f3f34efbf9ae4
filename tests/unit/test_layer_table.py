"""A row for each layer of any network: counts, condition numbers and dead units, by hand and against what passes."""

import json
import math

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from scaffolding import generator, seeded, splits_of
from sparserobust import sparsity
from sparserobust.analysis import LayerTable, layers
from sparserobust.config import Measurement
from sparserobust.models import NoisyWeights, PreActResNet

NETS = {
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=10),
    "shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10),
    "vision transformer": lambda: torchvision.models.VisionTransformer(32, 16, 1, 2, 16, 24, num_classes=10),
}  # fmt: skip


def images(n: int, channels: int = 3, side: int = 32) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=generator())


@pytest.mark.parametrize("inplace", [False, True])
def test_a_network_by_hand(inplace):
    """Of four channels, the first is constant, the second never passes the ReLU, the third is not read."""
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(inplace), nn.Conv2d(4, 3, 1), nn.Flatten(), nn.Linear(12, 2))
    net.requires_grad_(False)
    with seeded():
        for p in net.parameters():
            p.uniform_(0.5, 1.0)
    net[0].weight[0] = 0
    net[0].bias[1] = -9
    net[2].weight[:, 2] = 0
    net[2].weight[0, 0] = -0.25
    first, second, last = layers(net, images(5, 2, 2))
    assert first == {
        "name": "0", "kind": "Conv2d", "shape": [4, 2, 1, 1], "weights": 8, "zeros": 2, "inputs": 2, "unused": 0,
        "norm": pytest.approx(math.sqrt(sum(v**2 for v in net[0].weight.flatten().tolist()))),
        "largest": float(net[0].weight.max()), "smallest": pytest.approx(float(net[0].weight[1:].min())),
        "condition": pytest.approx(float(torch.linalg.cond(net[0].weight.flatten(1))), rel=1e-4), "lost": 0,
        "units": 4, "constant": 1, "blocked": 2, "dead": 3}
    assert (second["unused"], second["zeros"], second["smallest"], second["dead"]) == (1, 3, 0.25, 0)
    assert (last["name"], last["inputs"], last["units"], last["dead"]) == ("4", 12, 2, 0)


def test_lost_rank_is_infinite():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2)).requires_grad_(False)
    net[1].weight[2] = 2 * net[1].weight[0]
    net[2].weight.zero_()
    full, empty = layers(net, images(2, 1, 2))
    assert (full["lost"], full["condition"]) == (1, math.inf)
    assert (empty["lost"], empty["condition"], empty["norm"], empty["smallest"]) == (2, math.inf, 0, 0)
    assert empty["constant"] == empty["units"] == 2
    assert full["blocked"] == full["dead"] == 3  # nothing reads them


@given(st.integers(0, 999))
def test_dead_units_against_what_passes(seed):
    """Shut are the channels behind which the ReLU is zero on all images, unless the next layer reads none."""
    with seeded(seed):
        net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 5, 3), nn.ReLU(),
                            nn.Flatten(), nn.Linear(5 * 16, 3)).eval()
        nn.init.normal_(net[1].bias)
        nn.init.normal_(net[3].bias, std=0.5)
    pictures = images(3, 1, 8)
    first, second, _ = layers(net, pictures)
    with torch.no_grad():
        after, last = (net[:stop](pictures).amax((0, 2, 3)) == 0 for stop in (3, 5))
    assert second["blocked"] == int(last.sum())
    if not last.all():
        assert first["blocked"] == int(after.sum())
    assert first["constant"] == second["constant"] == 0 or after.all()


@pytest.mark.parametrize("name", NETS)
def test_networks_of_torchvision(name):
    with seeded():
        net = NETS[name]().train()
        for p in net.parameters():
            if not p.any():
                nn.init.normal_(p)  # the head of a fresh transformer reads nothing
    pruned = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    prune.l1_unstructured(pruned, "weight", 10)
    before, pictures = {key: t.clone() for key, t in net.state_dict().items()}, images(3)
    table = layers(net, pictures)
    assert [row["name"] for row in table] == [key.removesuffix(".weight") for key in sparsity.weights(net)]
    assert (sum(row["zeros"] for row in table), sum(row["weights"] for row in table)) == sparsity.zero_weights(net)
    assert table[0]["zeros"] == 10
    for row, w in zip(table, sparsity.weights(net).values(), strict=True):
        assert row["kind"] == type(w.layer).__name__
        assert row["norm"] == pytest.approx(float(w.tensor.detach().norm()), rel=1e-4)
        assert row["units"] in (None, len(w.filters))
        assert row["units"] is None or max(row["constant"], row["blocked"]) <= row["dead"] <= row["units"]
    inside = [row["name"] for row in table if row["units"] is None]
    assert len(inside) == (2 if name == "vision transformer" else 0) and all("attention" in each for each in inside)
    assert net.training and all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(t, before[key]) for key, t in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())


def test_a_layer_that_is_called_twice_is_dead_if_both_calls_are():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(2, 2, 1), nn.Linear(8, 2)
            with torch.no_grad():
                self.conv.weight.copy_(torch.eye(2).view(2, 2, 1, 1))
                self.conv.bias.copy_(torch.tensor([0.0, -9.0]))

        def forward(self, x):
            x = self.conv(x)
            if self.again:
                x = self.conv(x + 20)
            return self.linear(torch.relu(x).flatten(1))

    net = Twice()
    for net.again, dead in ((False, 1), (True, 0)):
        assert layers(net, images(2, 2, 2))[0]["dead"] == dead


def test_noise_is_off_and_gradients_may_be(net):
    with seeded():
        noisy = NoisyWeights(model=PreActResNet(depth=8, width=2)).build((1, 8, 8), 10).eval()
    pictures = images(4, 1, 8)
    with torch.no_grad():
        assert layers(noisy, pictures) == layers(noisy, pictures)


def test_the_measurement_is_json_and_takes_the_images_that_it_says(net, refusal):
    pictures = images(12, 1, 8)
    told = LayerTable(images=6)(net, splits_of(pictures))
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["total"] == sum(row["units"] for row in told["layers"])
    assert told["value"] == told["count"] / told["total"]
    rows = layers(net, splits_of(pictures).test.sample(6).images)
    assert [row["dead"] for row in told["layers"]] == [row["dead"] for row in rows]
    nothing = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(nothing[1].weight)
    zero = LayerTable()(nothing, splits_of(pictures))
    assert (zero["value"], zero["layers"][0]["condition"], zero["layers"][0]["lost"]) == (1, None, 10)
    assert "images start at 2" in refusal(Measurement.parse, {"kind": "layers", "images": 1})
    assert "two images" in refusal(layers, net, pictures[:1])
    nothing[1].weight.data[0, 0] = math.nan
    assert "not finite" in refusal(layers, nothing, pictures)
