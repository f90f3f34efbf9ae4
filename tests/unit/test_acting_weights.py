"""Weights count as they act: behind masks and parametrisations, in groups, transposed, in one or three dimensions."""

from copy import deepcopy
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn import utils as old
from torch.nn.utils import parametrizations, parametrize, prune

from scaffolding import seeded, weights_of
from sparserobust import Run, sparsity, training
from sparserobust.analysis import (
    Activations,
    ChannelNorms,
    ChannelSparsity,
    LayerSparsity,
    RemainingParameters,
    WeightHistogram,
    WeightSparsity,
    layers,
)
from sparserobust.analysis.conditioning import Conditioning, conditioning, effective_weights, spectrum
from sparserobust.config import Inheritance, Model
from sparserobust.data import Split, Splits
from sparserobust.inheritance import inherit
from sparserobust.models import LeNet300100, PreActResNet, ResNet18
from sparserobust.settings import settings
from sparserobust.sparsifiers import (
    ADMM,
    RGSM,
    RVSM,
    TSCNC,
    Channels,
    DynamicNetworkSurgery,
    DynamicSparse,
    FixedMask,
    Lasso,
    LearnedRates,
    LearnedScores,
    Magnitude,
    MatchedHistogram,
    OnlyNorms,
    ProximalLasso,
    RandomMask,
    RelativeThreshold,
    ReleasedADMM,
    ScaleLasso,
    Ticket,
)


class Symmetric(nn.Module):
    """A weight that no mask of its source can make zero entry by entry."""

    def forward(self, x):
        return x + x.flip(0)


class LowRank(nn.Module):
    """What comes out of a source and of tensors of its own."""

    def __init__(self, rows: int, columns: int):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(rows, 1)), nn.Parameter(torch.randn(1, columns))

    def forward(self, x):
        return x + (self.a @ self.b).view_as(x)


def low_rank(layer):
    return parametrize.register_parametrization(layer, "weight", LowRank(len(layer.weight), layer.weight[0].numel()))


COMPUTED: dict[str, tuple[Any, Any]] = {  # ways to compute a weight, and to make it plain again
    "weight_norm": (parametrizations.weight_norm, lambda m: parametrize.remove_parametrizations(m, "weight")),
    "weight_norm of all": (lambda m: parametrizations.weight_norm(m, dim=-1),
                           lambda m: parametrize.remove_parametrizations(m, "weight")),
    "spectral_norm": (parametrizations.spectral_norm, lambda m: parametrize.remove_parametrizations(m, "weight")),
    "low rank": (low_rank, lambda m: parametrize.remove_parametrizations(m, "weight")),
    "old weight_norm": (old.weight_norm, old.remove_weight_norm),
    "old spectral_norm": (old.spectral_norm, old.remove_spectral_norm),
    "a mask": (lambda m: prune.l1_unstructured(m, "weight", 0.6), lambda m: prune.remove(m, "weight")),
    "channel masks": (lambda m: prune.ln_structured(m, "weight", 0.5, n=2, dim=1), lambda m: prune.remove(m, "weight")),
    "two masks": (lambda m: prune.random_unstructured(prune.l1_unstructured(m, "weight", 0.3), "weight", 0.5),
                  lambda m: prune.remove(m, "weight")),
}  # fmt: skip
computed = pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm).* is deprecated")


def stack() -> Any:
    """For images 3x8x8, in eval mode; some weights are zero."""
    net: Any
    with seeded():
        net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.Flatten(), nn.Linear(96, 7))
    with torch.no_grad():
        net[0].weight[:, :, 0] = 0
        net[2].weight[:, 1] = 0
        net[4].weight[:, :3] = 0  # no whole row, of which weight_norm makes 0 / 0
    return net.eval()


def counts(net) -> dict:
    """All that is counted."""
    told = {"zero": sparsity.zero_weights(net), "groups": sparsity.channel_groups(net),
            "removed": sparsity.removed_channels(net), "parameters": sparsity.parameters(net),
            "remaining": sparsity.remaining_parameters(net)}
    for measurement in (WeightSparsity(), ChannelSparsity(), RemainingParameters(), WeightHistogram(), ChannelNorms(),
                        LayerSparsity()):
        told[measurement.kind] = measurement(net, None)
    return told


@computed
@pytest.mark.parametrize(("how", "training_mode"), [*product(COMPUTED, [False, True])])
def test_a_computed_weight_counts_as_the_plain_one_that_it_is(how, training_mode):
    compute, make_plain = COMPUTED[how]
    net = stack()
    with seeded(1):
        for layer in (net[0], net[2], net[4]):
            compute(layer)
    images = torch.rand(2, 3, 8, 8)
    net(images)  # where a hook writes the weight anew
    logits = net(images)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    found = counts(net.train(training_mode))
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())  # no power iteration on the way
    net.eval()
    for layer in (net[0], net[2], net[4]):
        make_plain(layer)
    assert torch.allclose(net(images), logits, atol=1e-6)
    plain = counts(net)
    assert (found["parameters"], found["zero"][1], found["groups"]) == (6 * 28 + 6 * 28 + 7 * 97, 324 + 7 * 96, 9)
    assert found["zero"][0] == sum(int((layer.weight == 0).sum()) for layer in (net[0], net[2], net[4]))
    assert {key: found[key] for key in plain if key != "channel_norms"} == {
        key: plain[key] for key in plain if key != "channel_norms"}
    for key, norms in plain["channel_norms"]["norms"].items():
        assert found["channel_norms"]["norms"][key] == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("amount", [0.9, 0.25])
def test_masks_of_torch_by_hand(amount):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10))
    for layer in (net[0], net[2]):
        prune.l1_unstructured(layer, "weight", amount)
    prune.random_unstructured(net[2], "bias", 4)
    zero = round(amount * 216) + round(amount * 2880)
    assert sparsity.zero_weights(net) == (zero, 216 + 2880)
    assert sparsity.sparsity(net) == pytest.approx(amount, abs=1e-3)
    assert (sparsity.parameters(net), sparsity.remaining_parameters(net)) == (3114, 3114 - zero - 4)


def test_a_mask_that_was_loaded_counts_before_the_next_forward_pass():
    """The attribute `weight` still is that of the old mask."""
    net = prune.identity(nn.Linear(4, 4), "weight")
    net.weight_mask[:3] = 0
    assert sparsity.sparsity(net) == 3 / 4
    net.load_state_dict(net.state_dict() | {"weight_mask": torch.zeros(4, 4)})
    assert sparsity.sparsity(net) == 1


def test_the_gradient_of_a_penalty_goes_through_the_computation():
    layer = parametrizations.weight_norm(nn.Conv2d(2, 3, 3))
    Lasso(lam=0.5).added_loss(layer, {}).backward()
    g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    expected = 0.5 * (v / v.flatten(1).norm(dim=1).view_as(g)).abs().sum((1, 2, 3))  # d |g v / |v||_1 / d g
    torch.testing.assert_close(g.grad.flatten(), expected)


# --- which layers count, and how their channels


@st.composite
def convolution(draw) -> nn.Module:
    dims, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kind = draw(st.sampled_from([(nn.Conv1d, nn.ConvTranspose1d), (nn.Conv2d, nn.ConvTranspose2d),
                                 (nn.Conv3d, nn.ConvTranspose3d)][dims - 1:dims]))[draw(st.integers(0, 1))]
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    with seeded(draw(st.integers(0, 99))):
        return kind(inputs, outputs, draw(st.integers(1, 2)), groups=groups, bias=False)


@given(convolution(), st.data())
def test_a_channel_is_what_its_input_meets(layer, data):
    """With channel i of the weight set to zero, the layer answers as if its input had no channel i; filters come in the
    order of the outputs."""
    dims = layer.weight.dim() - 2
    images = torch.rand(2, layer.in_channels, *[3] * dims)
    found = sparsity.weights(layer)["weight"]
    gone = data.draw(st.integers(0, layer.in_channels - 1))
    kept = (torch.arange(layer.in_channels) != gone).view(-1, *[1] * dims)
    pruned = deepcopy(layer)
    pruned.weight.data = found.by_channels(lambda w: w * kept, layer.weight.data)
    torch.testing.assert_close(pruned(images), layer(images * kept))
    assert (sparsity.channel_groups(layer), sparsity.removed_channels(pruned)) == (layer.in_channels, 1)
    assert found.channels.numel() == found.filters.numel() == layer.weight.numel()
    assert torch.equal(found.by_channels(lambda w: w, layer.weight), layer.weight)
    assert len(found.filters) == layer.out_channels
    row = data.draw(st.integers(0, layer.out_channels - 1))
    impulse = torch.zeros(1, layer.in_channels, *[1 if layer.transposed else k for k in layer.kernel_size])
    inner = layer.in_channels // layer.groups
    group = row // (layer.out_channels // layer.groups)
    impulse[:, group * inner] = 1
    answer = float(layer(impulse)[0, row].detach().sum())
    assert answer == pytest.approx(float(found.filters[row, 0].detach().sum()), rel=1e-4, abs=1e-5)


def test_depthwise_and_transposed_channels_by_hand():
    deep = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6)).requires_grad_(False)
    up = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 2, 3)).requires_grad_(False)
    for net in (deep, up):
        net[1].weight[:3] = 0
        assert (sparsity.removed_channels(net), sparsity.channel_groups(net)) == (3, 9)
        norms = ChannelNorms()(net, None)["norms"]["1.weight"]
        assert norms[:3] == [0, 0, 0]
        assert norms[3:] == pytest.approx(net[1].weight[3:].flatten(1).norm(dim=1).tolist(), rel=1e-5)


def test_attention_recurrence_and_layers_of_ones_own_count_and_tables_do_not():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias_table = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.zeros(4, 4))

    net = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "other": nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
                         "lstm": nn.LSTM(3, 2), "own": Own(), "words": nn.Embedding(9, 4), "norm": nn.LayerNorm((3, 4)),
                         "slope": nn.PReLU(7)})
    assert {name: tuple(w.shape) for name, w in sparsity.prunable(net).items()} == {
        "attention.in_proj_weight": (12, 4), "attention.out_proj.weight": (4, 4), "other.q_proj_weight": (4, 4),
        "other.k_proj_weight": (4, 3), "other.v_proj_weight": (4, 5), "other.out_proj.weight": (4, 4),
        "lstm.weight_ih_l0": (8, 3), "lstm.weight_hh_l0": (8, 2), "own.weight": (2, 3)}
    assert sparsity.parameters(net) == sum(p.numel() for p in net.parameters())


def test_a_tied_weight_counts_once_though_an_embedding_comes_first():
    words, classes, again = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False), nn.Linear(3, 5, bias=False)
    classes.weight = again.weight = words.weight
    net = nn.Sequential(words, classes, again)
    assert list(sparsity.prunable(net)) == ["1.weight"]
    assert list(sparsity.weights(net, shared=True)) == ["1.weight", "2.weight"]
    for layer in (classes, again):
        prune.l1_unstructured(layer, "weight", 5)
    assert sparsity.zero_weights(net) == (5, 15)


def test_a_tensor_that_one_layer_masks_and_another_does_not_counts_in_both():
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    net[1].weight = net[0].weight
    prune.l1_unstructured(net[0], "weight", 0.5)
    assert sparsity.zero_weights(net) == (18, 72)
    assert sparsity.parameters(net) == sparsity.remaining_parameters(net) == 36  # there is one tensor to train
    prune.l1_unstructured(net[1], "weight", 0.5)
    assert sparsity.zero_weights(net) == (18, 36)


def test_weights_of_three_dimensions_count():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([0.0, 1, 2] * 4).view(4, 1, 3))

    both = nn.Bilinear(2, 3, 4)
    both.weight.data[:2] = 0
    assert sparsity.zero_weights(nn.Sequential(Own(), both)) == (4 + 12, 12 + 24)
    assert list(sparsity.convolutions(nn.Sequential(Own(), both))) == ["0.weight"]


class MaskedLinear(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight * (self.weight > 0), self.bias)


class SubnetConv(nn.Conv2d):
    """As in HYDRA: the scores say which weights act."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.scores = nn.Parameter(torch.randn_like(self.weight))

    def forward(self, x):
        self.w = self.weight * (self.scores > self.scores.median())
        return functional.conv2d(x, self.w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Scaled(nn.Linear):
    def forward(self, x, scale):
        return scale * super().forward(x)


class SameConv(nn.Conv2d):
    """With a padding of its own, which is nothing to the weight."""

    def forward(self, x):
        return functional.conv2d(functional.pad(x, (1, 1)), self.weight, None, self.stride, 0, 1, self.groups)


def test_masks_in_a_forward_are_not_overlooked(refusal):
    for layer in (MaskedLinear(5, 6), SubnetConv(4, 6, 3, groups=2), SubnetConv(4, 4, 5, dilation=2), Scaled(3, 4)):
        assert "multiplies by other numbers" in refusal(sparsity.sparsity, nn.Sequential(layer))
    assert "multiplies by other numbers" in refusal(sparsity.channel_sparsity, SubnetConv(4, 6, 3))
    replaced = nn.Linear(3, 4)
    replaced.forward = lambda x: functional.linear(x, replaced.weight.relu())
    assert "multiplies by other numbers" in refusal(sparsity.sparsity, replaced)
    net = nn.Sequential(SameConv(4, 6, 3, groups=2, stride=2), MaskedLinear(5, 6), SubnetConv(4, 6, 1))
    net[0].weight.data[0] = 0
    net[1].weight.data.abs_()
    net[2].weight.data[:] = 0
    chance = torch.get_rng_state()
    assert sparsity.zero_weights(net) == (18 + 24, 108 + 30 + 24)  # their zeros are those of the weights
    assert torch.equal(chance, torch.get_rng_state())


class PlainConv(nn.Module):
    """No layer of PyTorch, with a mask, as much code for research has it."""

    def __init__(self, masked=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        if masked:
            self.register_buffer("mask", (torch.rand(4, 3, 3, 3) < 0.5).float())

    def forward(self, x):
        return functional.conv2d(x, self.weight * self.mask if hasattr(self, "mask") else self.weight)


class Parent(nn.Module):
    """Uses the weights of two layers that it does not call, beside one that it does."""

    def __init__(self, body, acts):
        super().__init__()
        self.body, self.whole, self.beside, self.acts = body, deepcopy(body), deepcopy(body), acts
        self.whole.weight.data *= 3
        self.beside.weight.data *= 5
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        found = functional.conv2d(x, self.acts(self.body.weight)) + functional.conv2d(x, 7 * self.whole.weight)
        return self.head((found + self.beside(x)).mean((2, 3)))


def asked(net):
    """Weight and channel sparsity, remaining parameters, each as a measurement on images of 3 channels."""
    test = Split(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))
    splits = Splits(test, test, test, ("one", "other"))
    layers(net, test.images)
    return [measure(net, splits)["value"] for measure in (WeightSparsity(), RemainingParameters(), LayerSparsity())]


def test_masks_in_a_module_that_is_no_layer_are_not_overlooked(refusal):
    masked = nn.Sequential(PlainConv(), nn.Flatten(), nn.LazyLinear(2))
    masked(torch.zeros(1, 3, 8, 8))
    assert "multiplies by other numbers" in refusal(sparsity.sparsity, masked)
    assert "multiplies by other numbers" in refusal(asked, masked)
    masked[0].weight.data.mul_(masked[0].mask)
    assert sparsity.zero_weights(masked)[0] == int((masked[0].mask == 0).sum()) > 0
    assert asked(masked)[0] == sparsity.sparsity(masked)
    plain = nn.Sequential(PlainConv(masked=False), nn.Flatten(), nn.Linear(144, 2))
    assert sparsity.sparsity(plain) == 0 and asked(plain)[:2] == [0, 1]


def test_a_module_that_may_be_masked_and_cannot_be_asked_is_refused(refusal):
    class Odd(PlainConv):
        def forward(self, x, scale):
            return scale * super().forward(x)

    assert "multiplies by other numbers" in refusal(sparsity.sparsity, nn.Sequential(Odd()))
    assert sparsity.zero_weights(nn.Sequential(Odd(masked=False))) == (0, 108)


@pytest.mark.parametrize("acts", {"mask": lambda w: w * (w > 0), "whole numbers": torch.round,
                                  "centred": lambda w: w - w.mean()}.items(), ids=lambda item: item[0])
def test_what_another_module_makes_of_a_weight_is_not_overlooked(acts, refusal):
    """Though layers of the same shape and with the same zeros are beside it."""
    body = nn.Conv2d(3, 4, 3, bias=False)
    body.weight.data[0] = 0
    assert "multiplies by other numbers" in refusal(asked, Parent(body, acts[1]))
    assert asked(Parent(body, lambda w: 2 * w))[0] == 81 / 332  # whose zeros are those that act


def test_zeros_that_a_hook_writes_as_images_pass_are_counted():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))

    def masks(layer, images):
        layer.weight.data.clamp_(min=0)

    net[0].register_forward_pre_hook(masks)
    assert asked(net)[0] == sparsity.sparsity(net) > 0.02


def test_weights_that_a_hook_writes_are_refused(refusal):
    layer = nn.Linear(5, 6)
    layer.full = nn.Parameter(layer.weight.detach())
    del layer._parameters["weight"]
    layer.weight = layer.full.detach()
    layer.register_forward_pre_hook(lambda layer, given: setattr(layer, "weight", layer.full * (layer.full > 0)))
    assert "hook" in refusal(sparsity.sparsity, nn.Sequential(layer))
    plain = nn.Linear(5, 6)
    plain.register_forward_pre_hook(lambda *_: None)
    assert sparsity.zero_weights(plain) == (0, 30)


@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_are_refused(refusal):
    net = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(30, 3)).eval())
    for count in (sparsity.sparsity, sparsity.parameters, sparsity.remaining_parameters):
        assert "quantised" in refusal(count, net)


def test_what_has_no_weights_to_count_says_so(refusal):
    assert "'0' has no weight yet" in refusal(sparsity.sparsity, nn.Sequential(nn.LazyLinear(3)))
    for count in (sparsity.sparsity, *(lambda net, m=m: m(net, None)
                                       for m in (WeightSparsity(), WeightHistogram(), LayerSparsity()))):
        assert "no convolution or linear weights" in refusal(count, nn.Sequential(nn.BatchNorm2d(3)))
    for measurement in (ChannelSparsity(), ChannelNorms()):
        assert "networks with a convolution" in refusal(measurement, nn.Linear(2, 3), None)


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_0"])
def test_architectures_of_torchvision_count_every_convolution(name):
    net = torchvision.models.get_model(name, weights=None)
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert list(map(id, sparsity.prunable(net).values())) == [id(m.weight) for m in layers]
    assert sparsity.channel_groups(net) == sum(m.in_channels for m in layers if isinstance(m, nn.Conv2d))
    assert sparsity.parameters(net) == sum(p.numel() for p in net.parameters())


# --- as matrices


@given(convolution())
def test_singular_values_are_those_of_the_whole_matrix(layer):
    """Of (out, in * kernel), with zeros where an output does not read a channel, as is found by unfolding the input."""
    weight = sparsity.weights(layer)["weight"]
    inner = weight.filters.shape[1]
    whole = torch.zeros(layer.out_channels, layer.in_channels, weight.filters[0, 0].numel(), dtype=torch.float64)
    for row, w in enumerate(weight.filters.detach().double()):
        group = row // (layer.out_channels // layer.groups)
        whole[row, group * inner:(group + 1) * inner] = w.flatten(1)
    expected = torch.linalg.svdvals(whole.flatten(1))
    found = spectrum(weight.filters, weight.groups)
    torch.testing.assert_close(found, expected[:len(found)])
    assert (expected[len(found):] < 1e-12).all()


def test_conditioning_of_a_depthwise_convolution_is_the_ratio_of_its_filters():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False)).requires_grad_(False)
    norms = net[0].weight.flatten(1).norm(dim=1)
    result = Conditioning(null_draws=2)(net.eval(), None)
    assert result["value"] == pytest.approx(float(norms.max() / norms.min()), rel=1e-4)
    assert result["layers"]["0"]["zero"] == 0 and result["parts"]["zero"] == 0
    assert conditioning(net[0].weight, 4)["condition"] == result["layers"]["0"]["condition"]


def test_the_fullest_rank_of_groups_is_that_of_their_blocks():
    net = nn.Sequential(nn.Conv2d(2, 8, 1, groups=2)).requires_grad_(False)  # two columns of four
    net[0].weight.fill_(1)
    parts = Conditioning()(net.eval(), None)["parts"]
    assert (parts["effective_rank"], parts["zero"]) == (pytest.approx(1), 0)


def test_effective_weights_name_layers_and_turn_transposed_ones_around():
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.MultiheadAttention(4, 2))
    shapes = {name: tuple(w.shape) for name, w in effective_weights(net).items()}
    assert shapes == {"0": (4, 2, 3), "1": (6, 2, 2, 2), "2.in_proj_weight": (12, 4), "2.out_proj": (4, 4)}
    assert list(effective_weights(nn.Linear(2, 3))) == [""]


def test_activations_tell_what_is_not_used_in_groups(digits):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(144, 10))
    with torch.no_grad():
        net[2].weight[2:, 1] = 0  # input 3 is in the second group
        net[2].weight[0] = 0
    told = Activations(images=4)(net.eval(), digits)["weights"]["2"]
    assert told == {"dead_outputs": 1, "outputs": 4, "unused_inputs": 1, "inputs": 4, "nonzero": 4, "total": 8}


# --- sparsifiers


RUN = Run.parse({"data": {}, "model": {"kind": "linear"}, "objective": {"kind": "natural"}, "recipe": {"epochs": 0}})
SPARSIFIERS: dict[str, list[Any]] = {
    "convolutions": [ADMM(sparsity=0.5), ADMM(sparsity=0.5, granularity="channel"), ReleasedADMM(sparsity=0.5),
                     RVSM(beta=0.5, lam=0.1), RGSM(lambda1=0.1)],
    "masks": [FixedMask(), OnlyNorms(), Magnitude(sparsity=0.5), Magnitude(sparsity=0.5, scope="layerwise"),
              Magnitude(sparsity=0.5, scope="erk"), RandomMask(sparsity=0.5), RelativeThreshold(threshold=0.5)],
    "writers": [ProximalLasso(lam=0.1), LearnedScores(sparsity=0.5), LearnedRates(sparsity=0.5),
                DynamicNetworkSurgery(rates=(1.0,), stop=5), DynamicSparse(sparsity=0.5, every=1, stop=5),
                Ticket(pruned=RUN), MatchedHistogram(target=RUN)],
    "others": [Lasso(lam=0.1), Channels(share=0.5), ScaleLasso(lam=0.1), TSCNC(sparse=0.0)],
}  # fmt: skip


def name(sparsifier) -> str:
    return sparsifier.label()


def start(sparsifier, net) -> dict:
    return sparsifier.start(net, *[dict(net.state_dict()) for _ in sparsifier.required_runs])


@pytest.mark.parametrize("sparsifier", [s for group in SPARSIFIERS.values() for s in group], ids=name)
def test_nothing_to_act_on_is_one_line_before_training(sparsifier, refusal):
    nothing = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64))
    assert sparsifier.kind in refusal(start, sparsifier, nothing)


@pytest.mark.parametrize("sparsifier", SPARSIFIERS["convolutions"], ids=name)
def test_a_run_without_convolutions_is_not_trained(sparsifier, digits, refusal, tiny_run):
    run = tiny_run(model=LeNet300100(), sparsifier=sparsifier)
    said = refusal(training.train, run, digits, report=lambda done: pytest.fail("an epoch was trained"))
    assert sparsifier.kind in said and "no convolution weights" in said


@computed
@pytest.mark.parametrize("how", COMPUTED)
@pytest.mark.parametrize("sparsifier", SPARSIFIERS["convolutions"] + SPARSIFIERS["writers"], ids=name)
def test_what_writes_into_weights_does_not_know_computed_ones(sparsifier, how, refusal):
    net = COMPUTED[how][0](stack()[0])
    before = {key: t.clone() for key, t in net.state_dict().items()}
    assert "weight is computed from other parameters" in refusal(start, sparsifier, net)
    assert all(torch.equal(t, before[key]) for key, t in net.state_dict().items())


@computed
@pytest.mark.parametrize(("how", "share"), [*product([how for how in COMPUTED if how != "low rank"], [0.5, 0.97])])
def test_a_mask_acts_through_a_computed_weight(how, share, refusal):
    """97 % leaves whole filters empty. Only spectral norms, which normalise anew, change what is left: of a layer that
    is empty they have none."""
    net = stack()
    with seeded(1):
        for layer in (net[0], net[2], net[4]):
            COMPUTED[how][0](layer)
    wanted = {key: w.detach().clone() for key, w in sparsity.prunable(net).items()}
    magnitude = Magnitude(sparsity=share)
    if share == 0.97 and "spectral" in how:
        assert "cannot make it zero" in refusal(magnitude.start, net)
        return
    masks = magnitude.start(net)
    assert sparsity.sparsity(net) >= share - 1e-3
    for step in range(2):
        net(torch.rand(2, 3, 8, 8)).square().mean().backward()
        with torch.no_grad():
            for key, w in sparsity.prunable(net).items():
                assert w.isfinite().all() and not w[masks[key] == 0].any()
                if "spectral" not in how and step == 0:
                    torch.testing.assert_close(w, wanted[key] * masks[key])
            for p in net.parameters():
                p.sub_(p.grad, alpha=0.1)
        magnitude.after_step(net, masks, 0.1)
    assert all(not w[masks[key] == 0].any() for key, w in sparsity.prunable(net).items())


@pytest.mark.parametrize("how", [low_rank, lambda m: parametrize.register_parametrization(m, "weight", Symmetric())])
def test_a_weight_that_cannot_be_zero_where_it_is_pruned_says_so(how, refusal):
    net = how(nn.Linear(5, 6))
    assert "cannot make it zero" in refusal(Magnitude(sparsity=0.5).start, net)


@pytest.mark.parametrize("sparsifier", [RGSM(lambda1=1.0, lambda2=0.3), RGSM(lambda1=1.0, penalty="group_l1"),
                                        ADMM(sparsity=0.5, granularity="channel"), RVSM(beta=1.0, lam=0.02)], ids=name)
@given(convolution())
def test_a_grouped_or_transposed_convolution_is_projected_as_its_channels(sparsifier, layer):
    """What a group reads, and a convolution turned around, are as good as plain ones."""
    assume(layer.in_channels > 1)
    state, found = sparsifier.start(layer), sparsity.weights(layer)["weight"]
    nearest = sparsifier.project if isinstance(sparsifier, ADMM) else sparsifier.prox
    u = state["weight"]
    expected = nearest(found.channels.detach())
    assert torch.equal(sparsity.Acting(layer, u, ()).channels, expected) and u.shape == layer.weight.shape
    if isinstance(sparsifier, RGSM):
        norms = found.channels.detach().double().pow(2).sum((0, *range(2, layer.weight.dim())))
        assert float(sparsifier.added_loss(layer, {}).detach()) == pytest.approx(
            sparsifier.lambda2 * float((norms + 1e-8).sqrt().sum()), rel=1e-5)


def test_one_channel_a_layer_leaves_nothing_to_remove(refusal):
    narrow = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3))
    assert "nothing to remove" in refusal(ADMM(sparsity=0.5, granularity="channel").start, narrow)
    assert ADMM(sparsity=0.0, granularity="channel").start(narrow)
    net = PreActResNet(depth=8, width=2).build((1, 8, 8), 10)
    for block in net.members[0].blocks:  # one channel inside each block
        block.conv1, block.norm2 = nn.Conv2d(block.conv1.in_channels, 1, 3), nn.BatchNorm2d(1)
        block.conv2 = nn.Conv2d(1, block.conv2.out_channels, 3)
    assert "nothing to remove" in refusal(Channels(share=0.5).start, net)
    net = ResNet18(width=2).build((1, 8, 8), 10)  # a share that is rounded down to none is no mistake
    assert sparsity.sparsity(net) == 0 and Channels(share=0.01).start(net)


def test_layers_that_no_image_reaches_are_pruned_too(digits, tiny_run):
    """Without a gradient: an auxiliary head, say."""
    @settings
    class Unused(Model):
        cost = 1.0

        def build(self, image_shape, classes):
            net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, classes))
            net[0].aside = nn.Conv2d(2, 4, 3)
            return net

    for sparsifier in (RVSM(beta=0.5, lam=5e-3, pull="gradient"), LearnedScores(sparsity=0.5)):
        trained = training.train(tiny_run(model=Unused(), sparsifier=sparsifier), digits).model
        assert not trained[0].aside.weight.all()


# --- inheritance


def test_inheritance_into_another_width_knows_plain_layers(refusal):
    for small, large in ((nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(4, 4, 3, groups=2)),
                         (nn.ConvTranspose2d(2, 4, 3), nn.ConvTranspose2d(3, 4, 3)),
                         (nn.MultiheadAttention(2, 1), nn.MultiheadAttention(4, 1))):
        small, large = nn.Sequential(small), nn.Sequential(large)
        assert type(large[0]).__name__ in refusal(inherit, large, small.state_dict(), Inheritance())
        same = deepcopy(small)
        inherit(same, small.state_dict(), Inheritance(kappa=0.5))  # of the same width, any
        assert all(torch.equal(w, weights_of(small)[key]) for key, w in weights_of(same).items() if "bias" not in key)
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 3)))
    assert "computed from other parameters" in refusal(inherit, net, net.state_dict(), Inheritance())


# --- training


class Fixed(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.linear, self.answer = nn.Linear(64, 10), answer

    def forward(self, x):
        return self.answer(self, self.linear(functional.adaptive_avg_pool2d(x, 8).flatten(1)))


UNFIT = {
    "images of shape (1, 8, 8)": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10)),
    "takes no float32 images": lambda: torchvision.models.VisionTransformer(32, 16, 1, 1, 4, 4, num_classes=10),
    "answers an image with (1, 7)": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 7)),
    "answers an image with dict": lambda: Fixed(lambda net, x: {"logits": x}),
    "in training mode": lambda: Fixed(lambda net, x: (x, x) if net.training else x),
    "no convolution or linear weights": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64)),
}


@pytest.mark.parametrize("says", UNFIT)
def test_a_network_that_does_not_fit_is_one_line(says, digits, tiny_run, refusal):
    @settings
    class Unfit(Model):
        cost = 1.0

        def build(self, image_shape, classes):
            return UNFIT[says]()

    assert says in refusal(training.train, tiny_run(model=Unfit()), digits)


def test_a_trained_network_keeps_no_hook(digits, tiny_run):
    model = training.train(tiny_run(), digits).model
    assert not model._forward_hooks and not model._forward_pre_hooks


@given(st.integers(1, 300), st.integers(1, 100))
def test_no_batch_has_a_single_image_unless_all_have(images, size):
    batches = training.in_batches(torch.arange(images), size)
    assert torch.equal(torch.cat(batches), torch.arange(images))
    sizes = list(map(len, batches))
    if size == 1 or images == 1:
        assert sizes == [1] * images
    elif images % size == 1:
        assert sizes == [size] * (images // size - 1) + [size + 1]
    else:
        assert sizes == list(map(len, torch.arange(images).split(size)))


@pytest.mark.parametrize(("images", "batch_size", "trains"), [(33, 32, True), (1, 32, False), (4, 1, False)])
def test_norms_of_single_pixels_and_single_images(images, batch_size, trains, digits, tiny_run, refusal):
    """The last maps of this network have one pixel, whose norms need two images at least."""
    run = tiny_run(model=ResNet18(width=2), batch_size=batch_size, epochs=1)
    few = replace(digits, train=digits.train.first(images))
    if trains:
        assert training.train(run, few).history[-1]["loss"] > 0
    else:
        assert "raise batch_size or train_images" in refusal(training.train, run, few)
