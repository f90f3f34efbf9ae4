"""Pruning of channels: the choice against brute force, the result against networks whose channels are cut out."""

import math
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from scaffolding import lively, same, seeded, weights_of
from sparserobust import sparsity, training
from sparserobust.config import Sparsifier
from sparserobust.models import VGG16, LeNet5, NoisyWeights, PreActResNet, ResNet, ResNet18, VGGLike, Winners, compact
from sparserobust.models.noise import noise_off
from sparserobust.sparsifiers import FixedMask
from sparserobust.sparsifiers.structured import Channels, ScaleLasso, inner_channels

MODELS = {"preact": PreActResNet(depth=8, width=4, members=2), "resnet": ResNet(depth=8, width=4),
          "resnet18": ResNet18(width=3), "vgg": VGG16(width=2)}
BLOCK = {"preact": ("conv1", "norm2", "conv2"), "resnet": ("conv1", "norm1", "conv2")}
LAYERS = {  # name: names of writer, norm and reader
    "preact": [tuple(f"members.{m}.blocks.{b}.{x}" for x in BLOCK["preact"]) for m in range(2) for b in range(3)],
    "resnet": [tuple(f"blocks.{b}.{x}" for x in BLOCK["resnet"]) for b in range(3)],
    "resnet18": [tuple(f"blocks.{b}.{x}" for x in BLOCK["resnet"]) for b in range(8)],
    "vgg": [(f"layers.{i}", f"layers.{i + 1}", f"layers.{j}" if j else "linear")
            for i, j in pairwise([0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40, 0])],
}
CRITERIA = ["filters", "scales"]
every_net = pytest.mark.parametrize("name", MODELS)
every_criterion = pytest.mark.parametrize("criterion", CRITERIA)


def net_of(model, seed: int = 0) -> nn.Module:
    """In eval mode; scales (of both signs), shifts and running statistics of batch norms are random."""
    with seeded(seed):
        return lively(model.build((2, 8, 8), 5), both_signs=True).eval()


def built(name: str, seed: int = 0) -> nn.Module:
    return net_of(MODELS[name], seed)


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def pruned(net, **fields) -> nn.Module:
    net = deepcopy(net)
    Channels(**fields).start(net)
    return net


def removed(net, layers) -> list[list[int]]:
    """Channels of each layer that nobody writes and nobody reads."""
    return [[c for c in range(len(net.get_submodule(writer).weight))
             if not net.get_submodule(writer).weight[c].any() and not net.get_submodule(reader).weight[:, c].any()]
            for writer, _, reader in layers]


# ------------------------------------------------------------------------------------------------ the choice


def by_brute_force(net, layers, criterion: str) -> list[tuple[float, dict]]:
    """What is left of convolution and linear weights, and the share of zeros, after 0, 1, 2, ... removals: written as
    loops over single numbers, with everything counted anew each time."""
    candidates = []
    for place, (writer, norm, _) in enumerate(layers):
        filters, gammas = net.get_submodule(writer).weight.tolist(), net.get_submodule(norm).weight.tolist()
        size = [math.fsum(abs(x) for kernel in f for row in kernel for x in row) for f in filters]
        score = size if criterion == "filters" else [abs(gamma) for gamma in gammas]
        rank = [c for _, c in sorted((size, c) for c, size in enumerate(score))]
        candidates += [((i + 1) / len(rank) if criterion == "filters" else score[c], place, c)
                       for i, c in enumerate(rank) if i + 1 < len(rank)]
    weights = {name: p.detach().clone() for name, p in net.named_parameters() if p.dim() > 1}
    stages = []
    for removed in [None, *sorted(candidates)]:
        if removed is not None:
            _, place, channel = removed
            writer, _, reader = layers[place]
            weights = {name: w.clone() for name, w in weights.items()}
            weights[f"{writer}.weight"][channel] = 0
            weights[f"{reader}.weight"][:, channel] = 0
        zero, total = (sum(f(w) for w in weights.values()) for f in (lambda w: int((w == 0).sum()), torch.numel))
        stages.append((zero / total, weights))
    return stages


def assert_brute_force(net, layers, criterion: str, shares) -> None:
    stages = by_brute_force(net, layers, criterion)
    for share in [*shares, *(s for s, _ in stages[1::9]), *(math.nextafter(s, 1) for s, _ in stages[:-1:9])]:
        if share > stages[-1][0]:
            continue
        expected = next(weights for reached, weights in stages if reached >= share)
        copy = deepcopy(net)
        masks = Channels(sparsity=share, criterion=criterion).start(copy)
        assert masks.keys() == expected.keys()
        for name, w in weights_of(copy).items():
            before = net.get_parameter(name)
            assert torch.equal(w, expected.get(name, before)), (name, share)
            if name in masks:
                assert torch.equal(masks[name], (expected[name] != 0).to(w.dtype))


@every_criterion
@every_net
def test_the_choice_is_that_of_brute_force(name, criterion):
    assert_brute_force(built(name), LAYERS[name], criterion, [0.0, 0.3, 0.6])


@every_criterion
@every_net
def test_zeros_that_are_there_before_count_and_stay(name, criterion):
    net, chance = built(name), torch.Generator().manual_seed(0)
    for writer, _, reader in LAYERS[name]:
        net.get_submodule(writer).weight.data[0] = 0
        net.get_submodule(reader).weight.data[:, -1] = -0.0
    for p in net.parameters():
        if p.dim() > 1:
            p.data.mul_(torch.rand(p.shape, generator=chance) > 0.2)
    assert_brute_force(net, LAYERS[name], criterion, [0.4, 0.7])


@every_net
def test_ties_are_broken_by_position(name):
    """Scales are all 1 at the beginning; here some filters are alike too."""
    net = MODELS[name].build((2, 8, 8), 5)
    for writer, _, _ in LAYERS[name]:
        w = net.get_submodule(writer).weight.data
        w[1:] = w[:1].clone()
    assert_brute_force(net, LAYERS[name], "filters", [0.3])
    assert_brute_force(net, LAYERS[name], "scales", [0.3])


@settings(max_examples=10)
@given(seed=st.integers(0, 99), share=st.floats(0, 0.6), criterion=st.sampled_from(CRITERIA))
def test_random_networks_and_shares(seed, share, criterion):
    assert_brute_force(built("resnet", seed), LAYERS["resnet"], criterion, [share])


def test_filters_take_the_same_share_of_every_layer_and_scales_do_not():
    net = net_of(ResNet(depth=14, width=12))
    layers = [tuple(f"blocks.{b}.{x}" for x in BLOCK["resnet"]) for b in range(6)]
    for b in range(2):
        net.blocks[b].norm1.weight.data *= 1e-3
        net.blocks[b].conv1.weight.data *= 1e-3  # of which the rank within a layer knows nothing
    sizes = [12, 12, 24, 24, 48, 48]
    for share in (0.1, 0.25, 0.5, 0.8):
        shares = [len(r) / n for r, n in zip(removed(pruned(net, sparsity=share), layers), sizes, strict=True)]
        assert max(shares) - min(shares) <= 1 / 12 and min(shares) > 0
    gone = [len(r) for r in removed(pruned(net, sparsity=0.2, criterion="scales"), layers)]
    assert gone[:2] == [11, 11] and all(r < 0.5 * n for r, n in zip(gone[2:], sizes[2:], strict=True))


@every_criterion
@every_net
def test_more_sparsity_removes_the_same_channels_and_more(name, criterion):
    net = built(name)
    masks = [Channels(sparsity=share, criterion=criterion).start(deepcopy(net)) for share in (0, 0.05, 0.2, 0.4, 0.6)]
    assert all(m.all() for m in masks[0].values())
    for less, more in pairwise(masks):
        assert all((more[n] <= less[n]).all() for n in less) and not same(less, more)


@every_criterion
@every_net
def test_just_enough_is_removed_and_every_layer_keeps_a_channel(name, criterion, refusal):
    net = built(name)
    before = weights_of(net)
    message = refusal(Channels(sparsity=0.999, criterion=criterion).start, net)
    assert same(weights_of(net), before)  # a refusal changes nothing
    reach = float(message.split()[-4])
    assert "in this network" in message and 0.5 < reach < 0.999
    assert refusal(Channels(sparsity=reach + 0.001, criterion=criterion).start, net)
    least = pruned(net, sparsity=reach, criterion=criterion)
    assert reach <= sparsity.sparsity(least) < reach + 0.001
    kept = [len(net.get_submodule(layer[1]).weight) - len(gone)
            for layer, gone in zip(LAYERS[name], removed(least, LAYERS[name]), strict=True)]
    assert min(kept) == 1


# --------------------------------------------------------------------------------- what is removed is gone


@every_net
def test_networks_know_their_inner_channels(name):
    net = built(name)
    known, by_hand = inner_channels(net, ScaleLasso(lam=1)), LAYERS[name]
    assert len(known) == len(by_hand)
    for layers, names in zip(known, by_hand, strict=True):
        assert all(layer is net.get_submodule(n) for layer, n in zip(layers, names, strict=True))


@pytest.mark.parametrize(("model", "expected"), [
    (PreActResNet(), 336), (PreActResNet(members=3), 3 * 336), (ResNet(), 336), (ResNet18(), 2 * 960), (VGG16(), 4224),
    (NoisyWeights(model=ResNet()), 336), (Winners(model=PreActResNet(), share=0.5), 336),
], ids=lambda x: str(x))  # fmt: skip
def test_number_of_inner_channels(model, expected):
    net = model.build((3, 32, 32), 10)
    assert sum(norm.num_features for _, norm, _ in inner_channels(net, ScaleLasso(lam=1))) == expected


def cut_out(net, layers, gone) -> nn.Module:
    """A copy with all its weights, in which these channels are zero behind their norms."""
    net = deepcopy(net)
    for (_, norm, _), channels in zip(layers, gone, strict=True):
        layer = net.get_submodule(norm)
        kept = torch.ones(layer.num_features, 1, 1)
        kept[channels] = 0
        layer.register_forward_hook(lambda layer, inputs, output, kept=kept: output * kept)
    return net


@pytest.mark.parametrize("train", [False, True])
@every_criterion
@every_net
def test_removing_channels_is_cutting_them_out(name, criterion, train):
    """In training mode too, and for the gradient: with shifts at random, nobody reads what the norms make of zeros."""
    net, layers = built(name).train(train), LAYERS[name]
    net(images()) if train else None  # so that running statistics have begun to move
    small = pruned(net, sparsity=0.4, criterion=criterion)
    gone = removed(small, layers)
    assert sum(map(len, gone)) >= len(layers)
    cut = cut_out(net, layers, gone)
    logits, expected = small(images()), cut(images())
    assert (expected - net(images())).abs().max() > 0.1
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    for module in (small, cut):
        cross_entropy(module(images()), torch.arange(6) % 5).backward()
    cut_gradients = {n: p.grad for n, p in cut.named_parameters()}
    masks = Channels(sparsity=0.4, criterion=criterion).start(deepcopy(net))
    for n, p in small.named_parameters():
        torch.testing.assert_close(p.grad * masks.get(n, 1), cut_gradients[n] * masks.get(n, 1), rtol=1e-3, atol=1e-5)


@every_net
def test_nobody_reads_the_norm_of_a_removed_channel(name):
    net = pruned(built(name), sparsity=0.4)
    before = net(images())
    for (_, norm, _), gone in zip(LAYERS[name], removed(net, LAYERS[name]), strict=True):
        for t in (net.get_submodule(norm).weight, net.get_submodule(norm).bias):
            t.data[gone] = 100.0
    assert torch.equal(net(images()), before)


def test_k_winners_do():
    net = net_of(Winners(model=MODELS["resnet"], share=0.2))
    Channels(sparsity=0.4).start(net)
    before = net(images())
    for (_, norm, _), gone in zip(LAYERS["resnet"], removed(net, LAYERS["resnet"]), strict=True):
        net.get_submodule(norm).bias.data[gone] = 100.0
    assert (net(images()) - before).abs().max() > 0.1


@every_criterion
def test_the_compact_copy_is_smaller_by_what_was_removed(criterion):
    net = built("preact", seed=1)
    small = pruned(net, sparsity=0.5, criterion=criterion)
    fewer = 0
    for (writer, _, reader), gone in zip(LAYERS["preact"], removed(small, LAYERS["preact"]), strict=True):
        writer, reader = net.get_submodule(writer), net.get_submodule(reader)
        fewer += len(gone) * (9 * writer.in_channels + 2 + 9 * reader.out_channels)
    copy = compact(small)
    assert sparsity.parameters(copy) == sparsity.parameters(net) - fewer < 0.5 * sparsity.parameters(net)
    assert sparsity.sparsity(copy) == 0
    torch.testing.assert_close(copy(images()), small(images()), rtol=1e-4, atol=1e-5)


def test_noise_on_weights_goes_with_the_channels():
    net, plain = net_of(NoisyWeights(model=MODELS["vgg"])), built("vgg")
    state = Channels(sparsity=0.4).start(net)
    assert same(state, Channels(sparsity=0.4).start(plain))
    with noise_off(net):
        assert torch.equal(net(images()), plain(images()))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_memory_layout_changes_nothing(layout):
    nets = [built("vgg"), built("vgg").to(memory_format=layout)]
    masks = [Channels(sparsity=0.5).start(net) for net in nets]
    assert same(*masks) and same(*map(weights_of, nets))


# ------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def start(tiny_run, digits) -> dict:
    return training.train(tiny_run(), digits).model.state_dict()


@pytest.mark.parametrize("averaging", [0.0, 0.9])
@every_criterion
def test_channels_stay_removed_through_momentum_and_weight_decay(criterion, averaging, start, tiny_run, digits):
    run = tiny_run(sparsifier=Channels(sparsity=0.5, criterion=criterion), start=tiny_run(), averaging=averaging)
    at_once = training.train(tiny_run(sparsifier=run.sparsifier, epochs=0), digits, start).model
    result = training.train(run, digits, start)
    layers = [tuple(f"members.0.blocks.{b}.{x}" for x in BLOCK["preact"]) for b in range(3)]
    assert removed(result.model, layers) == removed(at_once, layers) and sum(map(len, removed(at_once, layers))) > 4
    before, after = weights_of(at_once), weights_of(result.model)
    for name, w in before.items():
        kept = w != 0 if w.dim() > 1 else torch.ones_like(w) == 1
        assert torch.equal(w, kept * start[name])
        assert torch.equal(after[name] != w, kept), name  # the others move
    assert [row["sparsity"] for row in result.history] == [sparsity.sparsity(at_once)] * 2
    assert 0.5 <= sparsity.sparsity(at_once) < 0.7


def test_sparsity_zero_is_a_fixed_mask(start, tiny_run, digits):
    ours, fixed = (training.train(tiny_run(sparsifier=s), digits, start) for s in (Channels(sparsity=0), FixedMask()))
    assert ours.history == fixed.history and same(ours.model.state_dict(), fixed.model.state_dict())


# ---------------------------------------------------------------------------------------------- scale lasso


@every_net
def test_scale_lasso_by_hand(name):
    net = built(name)
    gammas = [f"{norm}.weight" for _, norm, _ in LAYERS[name]]
    added = ScaleLasso(lam=0.3).added_loss(net, {})
    by_hand = 0.3 * math.fsum(abs(x) for gamma in gammas for x in net.get_parameter(gamma).tolist())
    assert added.item() == pytest.approx(by_hand, rel=1e-5)
    added.backward()
    for n, p in net.named_parameters():
        if n in gammas:
            torch.testing.assert_close(p.grad, 0.3 * p.detach().sign())
        else:
            assert p.grad is None, n


def test_a_step_with_scale_lasso_is_a_step_without_and_the_sign_of_the_scales(start, tiny_run, digits):
    plain = {"epochs": 1, "batch_size": 64, "lr": 0.1, "schedule": "constant", "momentum": 0.0, "precision": "float32"}
    dense, ours = (weights_of(training.train(tiny_run(**plain, **more), digits, start).model)
                   for more in ({}, {"sparsifier": ScaleLasso(lam=0.2)}))
    for name in dense:
        pull = 0.1 * 0.2 * start[name].sign() if name.endswith("norm2.weight") else 0
        torch.testing.assert_close(ours[name], dense[name] - pull, rtol=1e-5, atol=1e-6)


def test_much_scale_lasso_makes_inner_scales_small(start, tiny_run, digits):
    run = tiny_run(epochs=6, schedule="constant", lr=0.02, momentum=0.0, sparsifier=ScaleLasso(lam=5.0))
    after = weights_of(training.train(run, digits, start).model)
    scales = {n: w.abs().mean() for n, w in after.items() if "norm" in n and n.endswith(".weight")}
    inner = [value for n, value in scales.items() if n.endswith("norm2.weight")]
    assert max(inner) < 0.15 and min(value for n, value in scales.items() if not n.endswith("norm2.weight")) > 0.5


# --------------------------------------------------------------------------------------------- bad settings


@pytest.mark.parametrize("model", [LeNet5(), VGGLike(width=1)], ids=lambda m: m.kind)
def test_networks_without_inner_channels_are_refused(model, refusal):
    net = model.build((1, 28, 28), 10)
    assert "no inner channels" in refusal(Channels(sparsity=0.0).start, net)
    assert "no inner channels" in refusal(ScaleLasso(lam=0.0).added_loss, net, {})


@pytest.mark.parametrize(("kind", "fields", "named"), [
    (Channels, {"sparsity": 1}, "sparsity"), (Channels, {"sparsity": -0.1}, "sparsity"),
    (Channels, {"sparsity": 0.5, "criterion": "gamma"}, "gamma"), (ScaleLasso, {"lam": -1e-9}, "lam"),
])  # fmt: skip
def test_bad_settings_are_refused_in_one_line(kind, fields, named, refusal):
    assert named in refusal(kind, **fields)


def test_settings_are_written_and_read_back():
    for sparsifier in (Channels(sparsity=0.5), Channels(sparsity=0.5, criterion="scales"), ScaleLasso(lam=1e-4)):
        assert Sparsifier.parse(sparsifier.plain()) == sparsifier
    assert Channels(sparsity=0.5).criterion == "filters"
