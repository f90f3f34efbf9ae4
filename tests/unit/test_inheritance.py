"""Inheritance from a smaller network: entry by entry by brute force, what the network computes, and who can learn."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sparserobust import Store, training
from sparserobust.config import Inheritance
from sparserobust.inheritance import inherit
from sparserobust.models import VGG16, LeNet5, NoisyWeights, PreActResNet, ResNet, ResNet18, VGGLike, Winners, noise_off
from sparserobust.sparsifiers import Magnitude
from sparserobust.sparsity import prunable

KAPPAS = (0.0, 0.01, 0.1, 1.0)
NARROW, WIDE = PreActResNet(depth=8, width=2), PreActResNet(depth=8, width=4)
PAIRS = {  # narrow and wide
    "preact_resnet 2 to 4": (NARROW, WIDE),
    "preact_resnet 3 to 8": (PreActResNet(depth=8, width=3), PreActResNet(depth=8, width=8)),
    "ensemble": (replace(NARROW, members=2), replace(WIDE, members=2)),
    "resnet18": (ResNet18(width=2), ResNet18(width=3)),
    "vgg16": (VGG16(width=4, mean_255=(128,), std_255=(64,)), VGG16(width=6, mean_255=(128,), std_255=(64,))),
    "vgg_like": (VGGLike(width=4), VGGLike(width=6)),
    "noisy_weights": (NoisyWeights(model=NARROW), NoisyWeights(model=WIDE)),
    "flattened": (2, 5),
}
every_pair = pytest.mark.parametrize(("narrow", "wide"), PAIRS.values(), ids=PAIRS)
every_kappa = pytest.mark.parametrize("kappa", KAPPAS)


def built(model, seed: int = 0) -> nn.Module:
    """For images of 8x8 pixels. A number stands for a network like LeNet-5 that is so wide."""
    torch.manual_seed(seed)
    if not isinstance(model, int):
        return model.build((1, 8, 8), 10)
    return nn.Sequential(nn.Conv2d(1, model, 3), nn.ReLU(), nn.Conv2d(model, 2 * model, 3), nn.MaxPool2d(2),
                         nn.Flatten(), nn.Linear(8 * model, 3 * model), nn.ReLU(), nn.Linear(3 * model, 10))


def as_if_trained(net: nn.Module, pruned: float = 0.0) -> dict[str, torch.Tensor]:
    """Weights with statistics, affine parameters and biases as training may leave them, a share of weights zero; the
    others are twice as large, so that the image counts for something behind thirteen layers."""
    weights = {}
    for name, t in net.state_dict().items():
        if not t.is_floating_point():
            weights[name] = t + 7
        elif t.dim() in (2, 4):
            weights[name] = 2 * t * (torch.rand_like(t) >= pruned)
        else:
            weights[name] = t + 0.5 * torch.rand_like(t)
    return weights


def inherited(model, weights, kappa: float, seed: int = 1) -> nn.Module:
    net = built(model, seed)
    inherit(net, weights, Inheritance(kappa=kappa))
    return net


def lacking(net: nn.Module, weights: dict) -> dict[str, torch.Tensor]:
    """For each convolution and linear weight, where the smaller network has nothing."""
    masks = {}
    for name, w in prunable(net).items():
        masks[name] = torch.ones_like(w, dtype=torch.bool)
        out, channels = weights[name].shape[:2]
        masks[name][:out, :channels] = weights[name] == 0
    return masks


def values(net: nn.Module, masks: dict) -> torch.Tensor:
    return torch.cat([w.detach()[masks[name]] for name, w in prunable(net).items()])


# ------------------------------------------------------------------------------------------- entry by entry


def expected_entry(index: tuple[int, ...], small: np.ndarray, default: float, kappa: float, layer: bool) -> float:
    there = all(at < size for at, size in zip(index, small.shape, strict=True))
    if there and (small[index] != 0 or not layer):
        return small[index]
    reads_new = layer and index[1] >= small.shape[1]
    return kappa * default if there or reads_new else default


@pytest.mark.parametrize("pruned", [0.0, 0.5])
@pytest.mark.parametrize("kappa", [0.0, 0.3])
@pytest.mark.parametrize("pair", ["ensemble", "noisy_weights", "flattened"])
def test_every_entry_is_what_the_rule_says(pair, kappa, pruned):
    narrow, wide = PAIRS[pair]
    weights = as_if_trained(built(narrow), pruned)
    before = {name: t.clone() for name, t in weights.items()}
    net, fresh = inherited(wide, weights, kappa), built(wide, seed=1)
    layers = prunable(fresh)
    for name, t in net.state_dict().items():
        small, default = weights[name].numpy(), fresh.state_dict()[name].numpy()
        expected = np.empty_like(default)
        for index in np.ndindex(default.shape):
            expected[index] = expected_entry(index, small, default[index], np.float32(kappa), name in layers)
        np.testing.assert_array_equal(t.numpy(), expected, err_msg=name)
        assert torch.equal(weights[name], before[name])
    assert all(p.requires_grad for p in net.parameters())


@every_kappa
@pytest.mark.parametrize("model", [NARROW, ResNet(depth=8, width=2), VGG16(width=1), LeNet5(kernel=3)], ids=repr)
def test_a_dense_network_of_the_same_width_is_taken_over_whole(model, kappa):
    weights = as_if_trained(built(model))
    net = inherited(model, weights, kappa)
    assert [name for name, t in net.state_dict().items() if not torch.equal(t, weights[name])] == []


@every_kappa
def test_what_was_pruned_begins_at_kappa_times_its_default(kappa):
    model = ResNet(depth=8, width=4)
    weights = as_if_trained(built(model), pruned=0.8)
    net, masks = inherited(model, weights, kappa), lacking(built(model), weights)
    assert torch.equal(values(net, masks), kappa * values(built(model, seed=1), masks))
    assert 0.75 < sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values()) < 0.85


# ---------------------------------------------------------------------------------------- what is computed


@pytest.mark.parametrize("pruned", [0.0, 0.5])
@every_pair
def test_at_kappa_zero_the_wide_network_computes_what_the_narrow_one_does(narrow, wide, pruned):
    weights = as_if_trained(built(narrow), pruned)
    images = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    small = built(narrow).double()
    small.load_state_dict(weights)
    with torch.no_grad(), noise_off(small.eval()):
        expected = small(images)
    spread = float(expected.std(0).min())
    assert spread > 1e-4  # all logits depend on the image
    for kappa in (0.0, 0.01):
        net = inherited(wide, weights, kappa).double().eval()
        with torch.no_grad(), noise_off(net):
            assert torch.allclose(net(images), expected, rtol=0, atol=1e-8 * spread) == (kappa == 0)


def test_at_kappa_zero_so_it_does_on_statistics_of_the_batch():
    weights, images = as_if_trained(built(NARROW)), torch.rand(6, 1, 8, 8)
    small = built(NARROW)
    small.load_state_dict(weights)
    assert torch.allclose(inherited(WIDE, weights, 0.0).train()(images), small.train()(images), atol=1e-5)


# ------------------------------------------------------------------------------------------ who can learn


@pytest.fixture(scope="module")
def ticket(tiny_run, digits) -> dict[str, torch.Tensor]:
    """Weights of a trained network of which four in five are pruned."""
    dense = tiny_run(model=WIDE)
    pruned = tiny_run(model=WIDE, start=dense, sparsifier=Magnitude(sparsity=0.8), epochs=0)
    weights = training.train(pruned, digits, training.train(dense, digits).model.state_dict()).model.state_dict()
    zeros = [weights[name] == 0 for name in prunable(built(WIDE))]
    assert sum(int(z.sum()) for z in zeros) == round(0.8 * sum(z.numel() for z in zeros))
    return weights


@pytest.fixture(scope="module")
def smaller(tiny_run, digits, ticket) -> dict[str, dict[str, torch.Tensor]]:
    """What `WIDE` inherits in the two cases."""
    return {"narrow": training.train(tiny_run(), digits).model.state_dict(), "pruned": ticket}


every_case = pytest.mark.parametrize("case", ["narrow", "pruned"])


def share_moved(net: nn.Module, masks: dict, digits, steps: int = 4) -> float:
    """By plain gradient steps in double precision, without weight decay; images are enlarged, since in a map of 2x2
    the corner of a kernel reads one pixel only, which may be dark in all of them."""
    images = digits.train.images.double().repeat_interleave(2, 2).repeat_interleave(2, 3)
    optimiser = torch.optim.SGD(net.double().train().parameters(), lr=0.1)
    before = values(net, masks)
    for _ in range(steps):
        optimiser.zero_grad()
        cross_entropy(net(images), digits.train.labels).backward()
        optimiser.step()
    return float((values(net, masks) != before).double().mean())


@every_case
@every_kappa
def test_everything_new_learns(case, kappa, smaller, digits):
    net = inherited(WIDE, smaller[case], kappa)
    assert share_moved(net, lacking(net, smaller[case]), digits) == 1


def test_with_new_channels_of_zeros_nothing_new_would_learn(smaller, digits):
    net = inherited(WIDE, smaller["narrow"], 0.0)
    masks = lacking(net, smaller["narrow"])
    for name, w in prunable(net).items():
        w.data[masks[name]] = 0
    assert share_moved(net, masks, digits) == 0


@every_kappa
def test_a_channel_pruned_on_both_sides_comes_back_with_kappa_above_zero(kappa, digits):
    weights = {name: t.clone() for name, t in built(WIDE).state_dict().items()}
    ends = {"members.0.blocks.1.conv1.weight": np.s_[3], "members.0.blocks.1.conv2.weight": np.s_[:, 3]}
    for name, channel in ends.items():
        weights[name][channel] = 0
    net = inherited(WIDE, weights, kappa)
    assert share_moved(net, lacking(net, weights), digits) == (kappa > 0)


@every_case
def test_the_smaller_kappa_the_more_weights_are_near_zero(case, smaller):
    def near_zero(kappa, masks) -> float:
        return float((values(inherited(WIDE, smaller[case], kappa), masks).abs() < 1e-3).double().mean())

    net = built(WIDE)
    new, whole = lacking(net, smaller[case]), {name: w == w for name, w in prunable(net).items()}
    for masks in (new, whole):
        assert all(more > less for more, less in pairwise(near_zero(kappa, masks) for kappa in KAPPAS))
    assert near_zero(0.001, new) > 0.5 and near_zero(1.0, new) < 0.1


@pytest.mark.parametrize(("narrow", "wide"), [(4, 5), (4, 8), (4, 16)])
def test_a_small_kappa_leaves_most_new_weights_near_zero(narrow, wide):
    """Where in and out grow k-fold, k / (k + 1) of what is new reads a new channel: more than half."""
    weights = as_if_trained(built(PreActResNet(depth=20, width=narrow)))
    net = inherited(PreActResNet(depth=20, width=wide), weights, 0.0)
    new = values(net, lacking(net, weights))
    k = wide / narrow
    assert float((new == 0).double().mean()) == pytest.approx(k / (k + 1), abs=0.01) and k / (k + 1) > 0.5


# --------------------------------------------------------------------------------------------- errors, runs


def test_what_does_not_fit_is_refused(refusal):
    def refused(model, weights) -> str:
        net = built(model)
        before = {name: t.clone() for name, t in net.state_dict().items()}
        message = refusal(inherit, net, weights, Inheritance(kappa=0.5))
        assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
        return message

    weights = built(WIDE).state_dict()
    assert "members.0.stem.weight of shape (4, 1, 3, 3)" in refused(NARROW, weights)
    assert "members.1.stem.weight" in refused(replace(WIDE, members=2), weights)
    assert "members.1.stem.weight" in refused(WIDE, built(replace(NARROW, members=2)).state_dict())
    assert "blocks.2.norm2.bias" in refused(WIDE, {n: t for n, t in weights.items() if n[10:] != "blocks.2.norm2.bias"})
    assert "linear.bias" in refused(WIDE, weights | {"members.0.linear.bias": torch.zeros(1, 10)})
    assert "linear.bias" in refused(WIDE, weights | {"members.0.linear.bias": torch.zeros(11)})
    assert "linear.weight" in refused(WIDE, weights | {"members.0.linear.weight": torch.zeros(10, 17)})
    assert "stem.weight" in refused(WIDE, weights | {"members.0.stem.weight": torch.zeros(4, 1, 1, 1)})
    assert "kappa" in refusal(Inheritance, kappa=-0.1)


def test_padded_shortcuts_and_noise_on_single_weights_keep_their_width(refusal):
    padded, noisy = ResNet(depth=8, width=2), NoisyWeights(model=NARROW, granularity="element")
    for narrow, wide, word in (
            (padded, replace(padded, width=3), "preact_resnet, resnet18 or vgg16"),
            (Winners(model=padded, share=0.2), Winners(model=replace(padded, width=3), share=0.2), "resnet18"),
            (noisy, replace(noisy, model=WIDE), "channel")):
        weights = as_if_trained(built(narrow), pruned=0.5)
        inherited(narrow, weights, 0.1)
        assert word in refusal(inherited, wide, weights, 0.1)


@every_case
def test_a_run_begins_with_what_it_inherits(case, tiny_run, digits, tmp_path, refusal):
    store = Store(tmp_path, use_published=False)
    small = tiny_run() if case == "narrow" else tiny_run(
        model=WIDE, start=tiny_run(model=WIDE), sparsifier=Magnitude(sparsity=0.8), epochs=1)
    run = tiny_run(model=WIDE, start=small, inheritance=Inheritance(kappa=0.1), seed=3)
    record = store.train(run)
    assert len(record["history"]) == 2 and record["sparsity"] < 0.01

    start = training.build(run, digits)
    inherit(start, store.model(small).state_dict(), run.inheritance)
    by_hand = training.train(tiny_run(model=WIDE, seed=3), digits, start.state_dict()).model.state_dict()
    assert [name for name, t in store.model(run).state_dict().items() if not torch.equal(t, by_hand[name])] == []
    assert len({run.identity, replace(run, inheritance=Inheritance()).identity, small.identity}) == 3
    if case == "narrow":
        assert "another model" in refusal(replace, run, inheritance=None)
        assert "`start`" in refusal(training.train, run, digits)
