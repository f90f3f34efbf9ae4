"""Lipschitz constants against dense matrices, random pairs of points, and attacks."""

import pickle
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torchvision.models import mobilenet_v2, resnet18

from scaffolding import built, lively
from sparserobust.analysis import lipschitz
from sparserobust.analysis.linear import smallest_radius
from sparserobust.attacks import PGD, CarliniWagnerL2, DeepFool, l2_norm, predicted, random_in_ball
from sparserobust.errors import UserError
from sparserobust.models import (
    VGG16,
    LeNet5,
    LeNet300100,
    Linear,
    NoisyWeights,
    PreActResNet,
    ResNet,
    ResNet18,
    VGGLike,
    compact,
    noise_off,
)
from sparserobust.models.normalise import Normalise
from sparserobust.sparsity import prunable

MODELS = {"linear": Linear(), "lenet_300_100": LeNet300100(), "lenet5": LeNet5(kernel=3),
          "resnet": ResNet(depth=8, width=4, mean_255=(100.0,), std_255=(60.0,)), "resnet18": ResNet18(width=2),
          "vgg16": VGG16(width=4), "vgg_like": VGGLike(width=4),
          "ensemble": PreActResNet(depth=8, width=2, members=2)}
SHAPE = (1, 8, 8)


def shaken(settings, seed: int = 0) -> nn.Module:
    """A network whose weights, norms and statistics are not those of a fresh one."""
    return shake(built(settings, seed=seed))


def shake(model: nn.Module) -> nn.Module:
    for module in lively(model, both_signs=True).modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    return model.eval()


def matrix(layer, shape) -> torch.Tensor:
    """The map of a layer without bias as a dense matrix (out, in)."""
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).view(-1, *shape)
    return lipschitz._applied(layer, layer.weight.detach().double(), basis).flatten(1).T


LAYERS = [(nn.Linear(7, 5), (7,)), (nn.Conv2d(2, 3, 3, padding=1), (2, 5, 4)), (nn.Conv2d(3, 2, 3, 2, 1), (3, 6, 5)),
          (nn.Conv2d(2, 4, 1, 2), (2, 5, 5)), (nn.Conv2d(1, 2, 3, padding=1), (1, 1, 1)),
          (nn.Conv2d(2, 2, 5), (2, 6, 6))]


@pytest.mark.parametrize("layer, shape", LAYERS, ids=str)
def test_operator_norms_are_those_of_the_dense_matrix(layer, shape):
    torch.manual_seed(0)
    layer.reset_parameters()
    dense = matrix(layer, shape)
    norms = {norm: lipschitz.operator_norm(layer, layer.weight, torch.Size(shape), norm) for norm in lipschitz.NORMS}
    assert norms["l2"] == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)), rel=1e-6)
    assert norms["linf"] == pytest.approx(float(dense.abs().sum(1).max()), rel=1e-12)
    assert norms["frobenius"] == pytest.approx(float(dense.norm()), rel=1e-12)


def test_a_layer_of_zeros_has_norm_zero():
    layer = nn.Conv2d(2, 3, 3)
    shape = torch.Size((2, 5, 5))
    assert {lipschitz.operator_norm(layer, 0 * layer.weight, shape, norm) for norm in lipschitz.NORMS} == {0.0}


def assert_no_two_points_break(bound, model, shape, norm):
    """No logit difference of two random points, near or far, changes by more than the bound allows."""
    generator = torch.Generator().manual_seed(1)
    x, step = (draw(60, *shape, generator=generator, dtype=torch.float64) for draw in (torch.rand, torch.randn))
    step *= (10.0 ** torch.linspace(-4, 0, 60)).view(-1, 1, 1, 1)
    size = step.flatten(1).abs().amax(1) if norm == "linf" else l2_norm(step)
    with torch.no_grad():
        change = model(x + step) - model(x)
    gaps = (change[:, :, None] - change[:, None]).abs()
    assert (gaps <= bound * size.view(-1, 1, 1) * (1 + 1e-6) + 1e-12).all()
    assert (gaps / size.view(-1, 1, 1)).amax() > 0
    assert (bound - bound.T).abs().max() <= 1e-9 * bound.max() and (bound.diagonal() == 0).all()


@pytest.mark.parametrize("norm", lipschitz.NORMS)
@pytest.mark.parametrize("name", MODELS)
def test_no_two_points_are_further_apart_than_the_bound_allows(name, norm):
    model = shaken(MODELS[name]).double()
    assert_no_two_points_break(lipschitz.margin_bound(model, SHAPE, norm), model, SHAPE, norm)


@pytest.mark.parametrize("norm", ["frobenius", "linf"])
@pytest.mark.parametrize("build", [resnet18, mobilenet_v2])
def test_a_network_from_elsewhere_is_bounded_too(build, norm):
    torch.manual_seed(0)
    model, shape = shake(build(num_classes=5)).double(), (3, 32, 32)
    assert_no_two_points_break(lipschitz.margin_bound(model, shape, norm), model, shape, norm)


class Calls(nn.Module):
    """A network that is one function of itself and the image, with some layers to call."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.conv, self.linear, self.last = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(4, 6), nn.Linear(6, 3)
        self.norm, self.norm_1d = nn.BatchNorm2d(2), nn.BatchNorm1d(6)
        self.normalise = Normalise([10.0, 20.0], [51.0, 102.0])
        self.register_buffer("scale", torch.tensor([0.5, -3.0]).view(2, 1, 1))
        self.register_buffer("matrix", torch.tensor([[3.0, 4, 0, 0], [-4, 3, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
        shake(self)

    def forward(self, x):
        found = self.function(self, x)
        return found.flatten(1) if isinstance(found, torch.Tensor) else found


def tripled(x, scale=3.0):
    return scale * x


def unrecorded(function, *given):
    with torch.inference_mode():
        return function(*given)


# What is called on images (2, 4, 4): its Lipschitz constant in l2 and in linf
OPERATIONS = {
    "relu": (lambda m, x: torch.relu(x), 1, 1),
    "functional relu": (lambda m, x: functional.relu(x.relu()), 1, 1),
    "view": (lambda m, x: x.view(x.size(0), -1), 1, 1),
    "reshape": (lambda m, x: x.reshape(x.shape[0], -1).flatten(1), 1, 1),
    "dropout": (lambda m, x: functional.dropout(x, training=m.training), 1, 1),
    "max, disjoint": (lambda m, x: functional.max_pool2d(x, 2), 1, 1),
    "max, in rows": (lambda m, x: functional.max_pool2d(x, (1, 3), stride=1), 3**0.5, 1),
    "max, overlapping": (lambda m, x: functional.max_pool2d(x, 3, stride=2, padding=1), 2, 1),
    "max, dilated": (lambda m, x: functional.max_pool2d(x, (3, 1), (2, 1), (1, 0), (2, 1)), 3**0.5, 1),
    "max, one number in lists": (lambda m, x: functional.max_pool2d(x, [3], [1], [1], [1]), 3, 1),
    "max, one stride": (lambda m, x: functional.max_pool2d(x, 3, stride=(1,)), 3, 1),
    "max, one dilation": (lambda m, x: functional.max_pool2d(x, (2, 1), 1, 0, (2,)), 2**0.5, 1),
    "average": (lambda m, x: functional.avg_pool2d(x, 2), 1 / 2, 1),
    "average, one number in lists": (lambda m, x: functional.avg_pool2d(x, [2], [2]), 1 / 2, 1),
    "average of a side asked for": (lambda m, x: functional.avg_pool2d(x, x.size()[3]), 1 / 4, 1),
    "average of rows": (lambda m, x: functional.avg_pool2d(x, (1, 4)), 1 / 2, 1),
    "average, padded": (lambda m, x: functional.avg_pool2d(x, 2, padding=1, count_include_pad=False), 1, 1),
    "adaptive average": (lambda m, x: functional.adaptive_avg_pool2d(x, 1), 1 / 4, 1),
    "adaptive, enlarging": (lambda m, x: functional.adaptive_avg_pool2d(x, (8, 8)), 2, 1),
    "mean": (lambda m, x: x.mean((2, 3)), 1 / 4, 1),
    "mean of rows": (lambda m, x: torch.mean(x, dim=-1), 1 / 2, 1),
    "sum of copies": (lambda m, x: x + x.mean((2, 3), keepdim=True), 2, 2),
    "difference": (lambda m, x: 1 - (x - m.scale) - 3 * x, 4, 4),
    "product": (lambda m, x: m.scale * x, 3, 3),
    "product of copies": (lambda m, x: x.mean((1, 2, 3), keepdim=True) * m.scale, 3 / 32**0.5 * 2**0.5, 3),
    "quotient": (lambda m, x: x / m.scale / 2, 1, 1),
    "normalised": (lambda m, x: m.normalise(x), 5, 5),
    "concatenation": (lambda m, x: torch.cat([x, 2 * x], 1), 5**0.5, 2),
    "constant": (lambda m, x: x + torch.sigmoid(m.scale), 1, 1),
    "multiple of a sum": (lambda m, x: torch.add(x, x, alpha=-3), 4, 4),
    "function of a default": (lambda m, x: tripled(x), 3, 3),
    "shapes": (lambda m, x: x.permute(0, 2, 3, 1).transpose(1, 2).contiguous()[..., None].squeeze(), 1, 1),
    "slices": (lambda m, x: x[:, 1:, ::2, None, 3], 1, 1),
    "indices": (lambda m, x: x[:, [0, 1, 1, 1]], 3**0.5, 1),
    "chunks": (lambda m, x: sum(x.chunk(2, 1)), 2, 2),
    "split, unbound, stacked": (lambda m, x: torch.stack([*x.split([1, 3], 2)[1].unbind(2)[:2]], 1), 2**0.5, 1),
    "padding": (lambda m, x: functional.pad(x, (1, 2, 0, 1), value=0.3), 1, 1),
    "replicated": (lambda m, x: functional.pad(x, (0, 2, 0, 0), mode="replicate"), 3**0.5, 1),
    "reflected": (lambda m, x: functional.pad(x, (1, 1, 0, 0), mode="reflect"), 2**0.5, 1),
    "enlarged": (lambda m, x: functional.interpolate(x, scale_factor=2), 2, 1),
    "channels dropped": (lambda m, x: functional.dropout2d(x, training=m.training), 1, 1),
    "in place": (lambda m, x: functional.relu(x.clone().mul_(2).add_(1), inplace=True), 2, 2),
    "in place, of itself": (lambda m, x: (2 * x).add_(x), 3, 3),
    "largest": (lambda m, x: x.amax((2, 3)) - x.flatten(2).max(2)[0], 2, 2),
    "larger": (lambda m, x: torch.maximum(x, 2 * x), 5**0.5, 2),
    "adaptive max": (lambda m, x: functional.adaptive_max_pool2d(x, 2), 1, 1),
    "adaptive max, overlapping": (lambda m, x: functional.adaptive_max_pool2d(x, (1, 3)), 2**0.5, 1),
    "adaptive max of planes": (lambda m, x: functional.adaptive_max_pool2d(x[:, 0], (3, 3)), 2, 1),
    "max of rows": (lambda m, x: functional.max_pool1d(x.flatten(2), 3, 1), 3**0.5, 1),
    "max of a volume": (lambda m, x: functional.max_pool3d(x[:, None], 2, 1), 8**0.5, 1),
    "softmax": (lambda m, x: 4 * x.flatten(1).softmax(1), 2, 2),
    "below a larger one": (lambda m, x: torch.clamp(x.mean((1, 2, 3), keepdim=True), max=torch.ones(2, 1, 1)),
                           1 / 4, 1),
    "above a larger one": (lambda m, x: torch.max(x.mean((1, 2, 3), keepdim=True), -torch.ones(2, 1, 1)), 1 / 4, 1),
    "mask": (lambda m, x: x * (m.scale > 0), 1, 1),
    "sums, in place": (lambda m, x: x.clone().cumsum_(3), 4, 4),
    "triangle, in place": (lambda m, x: x.clone().tril_(), 1, 1),
    "log of sum of exp": (lambda m, x: x.logsumexp((2, 3)), 1, 1),
    "log_softmax": (lambda m, x: x.log_softmax(3), 2, 2),
    "random slope": (lambda m, x: functional.rrelu(functional.rrelu(1.0 * x, inplace=True), 2.0, 4.0), 3, 3),
    "inside inference mode": (lambda m, x: unrecorded(functional.conv2d, x, torch.ones(2, 1, 2, 1), None, (2, 1), 0, 1,
                                                      2), 2**0.5, 2),
    "product from the right": (lambda m, x: x @ m.matrix, 5, 7),
    "product from the left": (lambda m, x: m.matrix.T @ x, 5, 7),
    "einsum": (lambda m, x: torch.einsum("nchw,wk->nkch", x, m.matrix), 5, 7),
    "linear": (lambda m, x: functional.linear(x, m.matrix.T, torch.ones(4)), 5, 7),
    "transposed convolution": (lambda m, x: functional.conv_transpose2d(x, torch.ones(2, 1, 2, 2), stride=2),
                               8**0.5, 2),
    "convolution of rows": (lambda m, x: functional.conv1d(x.flatten(2), torch.ones(2, 1, 2), stride=2, groups=2),
                            2**0.5, 2),
    "convolution of a volume": (lambda m, x: functional.conv3d(x[:, None], torch.ones(1, 1, 2, 1, 1)), 2**0.5, 2),
}


# Their Frobenius norms are not their spectral ones.
COARSE = {name for name in OPERATIONS if "product from" in name or "convolution" in name} | {
    "einsum", "linear", "inside inference mode"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_constants_of_single_operations(name):
    """Against closed forms; and no Jacobian, at points far from each other and with ties, has a larger norm."""
    function, l2, linf = OPERATIONS[name]
    model = Calls(function)
    for norm, expected, unit in (("l2", l2, 2**0.5), ("frobenius", l2, 2**0.5), ("linf", linf, 2.0)):
        bound = float(lipschitz.margin_bound(model, (2, 4, 4), norm)[0, 1]) / unit
        coarse = norm == "frobenius" and name in COARSE
        assert bound > expected if coarse else bound == pytest.approx(expected, rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    for x in [torch.randn(1, 2, 4, 4, generator=generator), torch.zeros(1, 2, 4, 4)]:
        jacobian = torch.autograd.functional.jacobian(model, x).reshape(-1, 32)
        assert torch.linalg.matrix_norm(jacobian, 2) <= l2 * (1 + 1e-5)
        assert jacobian.abs().sum(1).max() <= linf * (1 + 1e-5)


ACTIVATIONS = [nn.ReLU(), nn.LeakyReLU(0.2), nn.LeakyReLU(-3.0), nn.PReLU(2, 1.5), nn.ReLU6(), nn.Hardtanh(-0.5, 2.0),
               nn.Tanh(), nn.Sigmoid(), nn.Hardsigmoid(), nn.Hardswish(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(),
               nn.Mish(), nn.ELU(), nn.ELU(2.0), nn.SELU(), nn.CELU(2.0), nn.Softplus(3.0), nn.LogSigmoid(),
               nn.Softshrink(), nn.Threshold(0.5, 0.5), nn.LeakyReLU(1.0, inplace=True), nn.SiLU(inplace=True)]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_the_constant_of_an_activation_is_its_steepest_slope(activation):
    """By finite differences, which no constant lies below, nor far above."""
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64).expand(1, 2, -1)
    with torch.no_grad():
        slopes = activation.double()(x.clone()).diff().abs() / x.diff()
    model = Calls(lambda m, x: activation.to(x.dtype)(x + 0))
    for norm, unit in (("l2", 2**0.5), ("linf", 2.0)):
        constant = float(lipschitz.margin_bound(model, (2, 4, 4), norm)[0, 1]) / unit
        assert slopes.max() * (1 - 1e-9) <= constant <= slopes.max() * 1.0005


@pytest.mark.parametrize("n", [2, 5, 11])
def test_the_constants_of_log_softmax_and_logsumexp_are_met_and_not_passed(n):
    """At random points, at the ends of rays, and uphill along the norm of the Jacobian."""
    constants = {torch.log_softmax: {2: n**0.5, torch.inf: 2.0}, torch.logsumexp: {2: 1.0, torch.inf: 1.0}}
    for function, expected in constants.items():
        for order, constant in expected.items():
            largest = 0.0
            for size in (0.1, 1.0, 10.0, 30.0):
                x = size * torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
                for _ in range(20):
                    x.requires_grad_(True)
                    jacobian = torch.autograd.functional.jacobian(lambda z, f=function: f(z, 0), x, create_graph=True)
                    found = torch.linalg.matrix_norm(jacobian.reshape(-1, n), order)
                    largest = max(largest, float(found.detach()))
                    (uphill,) = torch.autograd.grad(found, x)
                    x = (x + 5 * uphill).detach()
            assert 0.95 * constant <= largest <= constant * (1 + 1e-9)


@pytest.mark.parametrize("mode", ["bicubic", "trilinear"])
@pytest.mark.parametrize("aligned", [False, True])
def test_an_enlargement_against_the_dense_matrix(mode, aligned):
    def enlarged(_, x):
        x = x[:, None] if mode == "trilinear" else x
        return functional.interpolate(x, scale_factor=1.5, mode=mode, align_corners=aligned)

    dense = torch.autograd.functional.jacobian(Calls(enlarged), torch.zeros(1, 2, 4, 6)).reshape(-1, 48).double()
    for norm, unit, order in (("l2", 2**0.5, 2), ("frobenius", 2**0.5, 2), ("linf", 2.0, torch.inf)):
        bound = float(lipschitz.margin_bound(Calls(enlarged), (2, 4, 6), norm)[0, 1]) / unit
        exact = float(torch.linalg.matrix_norm(dense, order))
        assert exact * (1 - 1e-6) <= bound <= exact * (1.3 if mode == "trilinear" else 1 + 1e-6)


def test_log_softmax_leaves_differences_as_they_are():
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 5))
    bound = lipschitz.margin_bound(nn.Sequential(model, nn.LogSoftmax(1)), (2, 4, 4), "l2")
    assert torch.equal(bound, lipschitz.margin_bound(model, (2, 4, 4), "l2"))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("layer", [
    nn.ConvTranspose2d(2, 4, 3, 2, 1, 1, groups=2), nn.Conv2d(2, 4, 3, 2, 2, 2, groups=2),
    nn.Conv2d(2, 3, 3, padding="same"), nn.Conv2d(2, 3, 3, 1, 2, padding_mode="reflect")], ids=str)
def test_convolutions_of_all_kinds_against_the_dense_matrix(layer, norm):
    """What pads by reflection is two maps, and their product lies above."""
    model = nn.Sequential(layer, nn.Flatten()).double().eval()
    jacobian = torch.autograd.functional.jacobian(model, torch.zeros(1, 2, 5, 6).double())
    dense = jacobian.reshape(-1, 60)
    exact = float(dense.abs().sum(1).max() if norm == "linf" else torch.linalg.matrix_norm(dense, 2))
    bound = float(lipschitz.margin_bound(model, (2, 5, 6), norm)[0, 1]) / (2 if norm == "linf" else 2**0.5)
    assert exact * (1 - 1e-6) <= bound <= exact * (1 + 1e-6) * (2 if layer.padding_mode == "reflect" else 1)


def test_a_norm_behind_a_transposed_convolution_is_not_folded_on_the_wrong_axis():
    model = shake(nn.Sequential(nn.ConvTranspose2d(2, 2, 3, 2), nn.BatchNorm2d(2), nn.Flatten())).double()
    bounds = [lipschitz.margin_bound(net, (2, 4, 4), "linf") for net in (model, nn.Sequential(model[0], model[2]))]
    assert torch.allclose(bounds[0], bounds[1] * scale_of(model[1]).abs().max())


# ------------------------------------------------------------------- what stands in the way of symbolic tracing


class Plain(nn.Sequential):
    """A linear network on images (3, 4, 4)."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(48, 5))


class Sharper(Plain):
    def __call__(self, x):
        return 4 * super().__call__(x)


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 4 * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 1000


class Times(nn.Module):
    def forward(self, weight):
        return 4 * weight


def hooked(net):
    net.register_forward_hook(lambda module, inputs, logits: logits / 0.25)
    return net


def pre_hooked(net):
    net.register_forward_pre_hook(lambda module, inputs: ((inputs[0] - 0.5) / 0.25,))
    return net


def pre_hooked_layer(net):
    pre_hooked(net[1])
    return net


def told_by_keywords(net):
    net[1].register_forward_pre_hook(lambda module, inputs, options: ((4 * inputs[0],), options), with_kwargs=True)
    return net


def shadowed(net):
    net.forward = lambda x, forward=net.forward: 4 * forward(x)
    return net


def shadowed_layer(net):
    net[1].forward = lambda x: functional.linear(x, 4 * net[1].weight)
    return net


def parametrised(net):
    nn.utils.parametrize.register_parametrization(net[1], "weight", Times())
    return net


def changed_in_place(net):
    net.register_forward_pre_hook(lambda module, inputs: (inputs[0].clone().data.mul_(4),))
    return net


def with_own_gradient(net):
    net.register_forward_hook(lambda module, inputs, logits: Backwards.apply(logits))
    return net


HIDDEN = {"hook": hooked, "pre-hook": pre_hooked, "pre-hook of a layer": pre_hooked_layer, "hook with keywords":
          told_by_keywords, "__call__": lambda net: Sharper(), "forward of an object": shadowed,
          "forward of a layer": shadowed_layer, "parametrisation": parametrised, "in place": changed_in_place,
          "function with a gradient of its own": with_own_gradient,
          "data parallel": lambda net: nn.DataParallel(hooked(net)),
          "compiled": lambda net: torch.compile(hooked(net)), "nested": lambda net: nn.Sequential(hooked(net))}


@pytest.mark.parametrize("norm", lipschitz.NORMS)
@pytest.mark.parametrize("hide", HIDDEN)
def test_what_acts_on_the_way_is_bounded(hide, norm):
    """A factor of four, wherever it hides."""
    shape = (3, 4, 4)
    bound = lipschitz.margin_bound(HIDDEN[hide](Plain().eval()), shape, norm)
    plain = lipschitz.margin_bound(Plain().eval(), shape, norm)
    rows = 4 * lipschitz.row_distances(torch.eye(5).double(), norm) * lipschitz.operator_norm(
        Plain()[1], Plain()[1].weight, torch.Size([48]), norm)  # of a network that goes on behind its last layer
    assert torch.allclose(bound, 4 * plain) or torch.allclose(bound, rows)


def test_what_acts_on_the_way_cannot_be_fooled_inside_its_radius():
    images = torch.rand(6, 3, 4, 4)
    for hide in ("hook", "pre-hook", "pre-hook of a layer", "__call__", "parametrisation"):
        net = HIDDEN[hide](Plain().eval())
        labels = predicted(net, images)
        moved = DeepFool()(net, images, labels)
        assert (predicted(net, moved) != labels).all()
        assert (lipschitz.guaranteed_radius(net, images, labels) <= l2_norm(moved - images) * (1 + 1e-5)).all()


def test_a_hook_of_all_modules_is_seen():
    plain = lipschitz.margin_bound(Plain().eval(), (3, 4, 4))
    hook = nn.modules.module.register_module_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    try:
        bound = lipschitz.margin_bound(Plain().eval(), (3, 4, 4))
    finally:
        hook.remove()
    assert torch.allclose(bound, 8 * plain)  # the network, the flattening, the layer


@pytest.mark.parametrize("wrap", [lambda layer: nn.utils.parametrizations.weight_norm(layer),
                                  lambda layer: nn.utils.parametrizations.spectral_norm(layer),
                                  lambda layer: nn.utils.parametrizations.orthogonal(layer),
                                  lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.9)],
                         ids=["weight norm", "spectral norm", "orthogonal", "pruned"])
def test_the_weight_that_acts_is_bounded(wrap):
    net = Plain().eval()
    with torch.no_grad():
        net[1].weight *= 3
    wrap(net[1])
    net.eval()
    images = torch.eye(48).view(48, 3, 4, 4)
    weight = (net(images) - net(torch.zeros_like(images))).T.detach().double()
    assert torch.allclose(lipschitz.margin_bound(net, (3, 4, 4)), lipschitz.row_distances(weight, "l2"), atol=1e-5)


class Hostile(Plain):
    """Answers by `function(net, x)`, and knows how often it was asked."""

    def __init__(self, function):
        super().__init__()
        self.function, self.asked = function, 0
        self.register_buffer("memory", torch.zeros(2, 3, 4, 4))

    def forward(self, x):
        self.asked += 1
        return self.function(self, super().forward, x)


def by_memory(net, logits, x):
    net.memory[:len(x)] = x[:2]
    return logits(4 * net.memory)


def in_part(net, logits, x):
    x = x.clone()
    x[:, 0] *= 4
    return logits(x)


def by_another_view(net, logits, x):
    x = x.clone()
    x.flatten(1).mul_(4)
    return logits(x)


def unseen(net, logits, x):
    try:
        return logits(x if x.mean() < 0.9 else 4 * x)
    except UserError:
        return logits(x)


def by_numpy(net, logits, x):
    return logits(torch.from_numpy(4 * x.detach().numpy()))


def cast(net, logits, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return logits(x).float()


def counted(net, logits, x):
    net.memory += 1
    return logits(x if net.memory.max() < 4 else 4 * x)


def leaving(way):
    """A network that takes its images out of PyTorch, and goes on if it may not: who knows what for?"""
    def answer(net, logits, x):
        with suppress(Exception):
            way(x.detach())
        return logits(x)

    return answer


def clipped_where_it_is_dark(net, logits, x):
    return logits(torch.where(x < 1e-3, 1000 * x, x))


REFUSED_NETWORKS = {
    "another call": lambda net, logits, x: logits(x) * net.asked,
    "noise": lambda net, logits, x: logits(x) + 0.01 * torch.randn(5),
    "images beside": lambda net, logits, x: logits(x - x.mean(0)),
    "few images": lambda net, logits, x: logits(x if len(x) < 3 else 4 * x),
    "training mode": lambda net, logits, x: functional.dropout(logits(x), 0.5, True),
    "memory": by_memory, "in part": in_part, "another view": by_another_view, "numpy": by_numpy, "cast": cast,
    "nothing caught": unseen,
    "list": lambda net, logits, x: logits(torch.tensor(x.tolist())),
    "dark": clipped_where_it_is_dark,
    "sign": lambda net, logits, x: logits(x) + x.flatten(1)[:, :5].sign(),
    "rank": lambda net, logits, x: logits(x.flatten(1).sort(1)[0].view_as(x)),
    "attention": lambda net, logits, x: logits(x) * x.mean((1, 2, 3))[:, None],
    "own scale": lambda net, logits, x: logits(x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)),
    "weights": lambda net, logits, x: logits(x + functional.conv2d(torch.ones(1, 3, 1, 1), x[:, :, :1, :1]).view(
        -1, 1, 1, 1)),
    "rounding": lambda net, logits, x: logits((x + 2**20) - 2**20),
    "counter": counted,
    "images beside, and an offset": lambda net, logits, x: logits(x - x.mean(0)) + 1e5,
    "noise and an offset": lambda net, logits, x: 0.01 * logits(x) + 0.003 * torch.randn(5) + 1e3,
} | {f"leaving by {name}": leaving(way) for name, way in {
    "numpy": lambda x: x.numpy(), "asarray": np.asarray, "tolist": lambda x: x.tolist(),
    "item": lambda x: x.sum().item(), "float": lambda x: float(x.sum()), "dlpack": torch.from_dlpack,
    "address": lambda x: x.data_ptr(), "storage": lambda x: x.untyped_storage(), "pickle": pickle.dumps}.items()}


@pytest.mark.parametrize("name", REFUSED_NETWORKS)
def test_a_network_of_which_nothing_is_sure_is_refused(name, refusal):
    net, images = Hostile(REFUSED_NETWORKS[name]).eval(), torch.rand(4, 3, 4, 4)
    refusal(lipschitz.margin_bound, net, (3, 4, 4))
    refusal(lipschitz.guaranteed_radius, net, images, torch.zeros(4).long(), "linf")


@torch.library.custom_op("mine::relu", mutates_args=())
def relu_of_mine(x: torch.Tensor) -> torch.Tensor:
    return 1000 * x


@pytest.mark.parametrize("size", [4, 9])
def test_a_network_that_answers_otherwise_to_all_images_together_is_refused(size, refusal):
    net = Hostile(lambda net, logits, x: logits(x) * (30 if len(x) >= size else 1)).eval()
    images = torch.rand(size, 3, 4, 4)
    message = refusal(lipschitz.guaranteed_radius, net, images, predicted(net, images))
    assert f"{size} images together" in message


def test_the_radius_of_an_image_is_the_same_beside_any_others():
    net, images = Plain().eval(), torch.rand(5, 3, 4, 4)
    labels = predicted(net, images)
    each = [lipschitz.guaranteed_radius(net, images[i:i + 1], labels[i:i + 1]) for i in range(5)]
    assert torch.allclose(lipschitz.guaranteed_radius(net, images, labels), torch.cat(each), rtol=1e-4)
    assert lipschitz.guaranteed_radius(net, images[:0], labels[:0]).shape == (0,)


def test_only_what_pytorch_does_goes_by_its_name(refusal):
    assert "mine.relu" in refusal(lipschitz.margin_bound, Calls(lambda m, x: relu_of_mine(x)), (2, 4, 4))


def test_logits_of_a_bright_image_that_are_not_finite_are_refused(refusal):
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()
    net[1].weight.data = torch.tensor([[1e37], [0.0]]).expand(2, 48).clone()
    bright = torch.ones(1, 3, 4, 4)
    for ask in (lipschitz.guaranteed_radius, lipschitz.margins):
        assert "not finite" in refusal(ask, net, bright, torch.tensor([0]))


@pytest.mark.parametrize("hidden, offset", [(0.0, 0.0), (0.0, 2.0**18), (0.0, 2.0**22), (2.0**12, 0.0)])
def test_nobody_gets_inside_the_radius_by_rounding(hidden, offset):
    """Of logits, or of pixels; straight towards each other class, which is the shortest way in a linear network."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()
    torch.manual_seed(0)
    net[1].reset_parameters()
    net[1].bias.data += offset
    net[1].register_forward_pre_hook(lambda layer, given: ((given[0] + hidden) - hidden,))
    images = torch.rand(50, 3, 4, 4)
    labels, weight = predicted(net, images), net[1].weight.detach()
    radius = lipschitz.guaranteed_radius(net, images, labels)
    assert (radius > 0).any() or offset == 2.0**22
    for k in range(3):
        way = functional.normalize(weight[k] - weight[labels], dim=1)
        for share in torch.linspace(0, 0.999, 40):
            moved = images + (share * radius[:, None] * way).view_as(images).float()
            assert ((predicted(net, moved) == labels) | (radius == 0)).all()


def test_the_rounding_of_ordinary_logits_hardly_shortens_a_radius():
    model = shaken(MODELS["resnet"])
    images = torch.rand(20, *SHAPE)
    with torch.no_grad():
        logits = model(images).double()
    labels, bound = logits.argmax(1), lipschitz.margin_bound(model, SHAPE)
    whole, found = smallest_radius(logits, labels, bound), lipschitz.guaranteed_radius(model, images, labels)
    assert (found < whole).all() and float(found.mean()) == pytest.approx(float(whole.mean()), rel=1e-5)


@pytest.mark.parametrize("ask", [lipschitz.guaranteed_radius, lipschitz.margins,
                                 partial(lipschitz.gradient_norms, radius=0.1, samples=2)],
                         ids=["radius", "margins", "slopes"])
def test_functions_and_all_whole_labels_are_taken_and_the_rest_is_refused(ask, refusal):
    net, images, labels = Plain().eval(), torch.rand(3, 3, 4, 4), torch.tensor([0, 1, 1])

    def same(*given):
        torch.manual_seed(0)
        return torch.equal(ask(*given), expected)

    torch.manual_seed(0)
    expected = ask(net, images, labels)
    assert same(lambda x: net(x), images, labels)
    assert same(net, images, labels.byte()) and same(net, images, labels.bool())
    with torch.inference_mode():
        assert same(net, images.clone(), labels.clone())
    assert "takes no float64 images" in refusal(ask, net, images.double(), labels)
    assert "none of 5 classes" in refusal(ask, net, images, labels + 4)
    assert "a torch.nn.Module" in refusal(ask, "net", images, labels)


def test_a_quantised_network_is_refused(refusal):
    net = torch.ao.quantization.quantize_dynamic(Plain().eval())
    assert "quantized.linear" in refusal(lipschitz.margin_bound, net, (3, 4, 4))


def test_norms_of_weights_that_are_not_finite_are_refused(refusal):
    for layer in LAYERS[0], LAYERS[1]:
        for norm in lipschitz.NORMS:
            assert "not finite" in refusal(lipschitz.operator_norm, layer[0], layer[0].weight * torch.nan,
                                           torch.Size(layer[1]), norm)


def test_a_pixel_moves_all_windows_it_lies_in():
    """So overlapping max-pooling is not 1-Lipschitz in l2, and the bound is met."""
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 1.0
    assert functional.max_pool2d(x, 3, 2).norm() == 2.0
    model = Calls(lambda m, x: functional.max_pool2d(x, 3, 2))
    assert float(lipschitz.margin_bound(model, (2, 5, 5))[0, 1]) == pytest.approx(2 * 2**0.5)


def scale_of(norm):
    return (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()


@pytest.mark.parametrize("norm", lipschitz.NORMS)
def test_batch_norm_is_folded_where_it_alone_reads_the_layer(norm):
    def constant(function):
        return float(lipschitz.margin_bound(Calls(function), (2, 4, 4), norm)[0, 1])

    model, unit = Calls(None), 2.0 if norm == "linf" else 2**0.5
    scale, plane, rows = scale_of(model.norm), torch.Size((2, 4, 4)), scale_of(model.norm_1d)
    weight, dense = model.conv.weight, model.linear.weight
    conv = lipschitz.operator_norm(model.conv, weight, plane, norm)
    folded = lipschitz.operator_norm(model.conv, weight * scale.view(-1, 1, 1, 1), plane, norm)
    alone = float(scale.abs().max())
    linear = lipschitz.operator_norm(model.linear, dense * rows[:, None], torch.Size((4,)), norm)
    assert constant(lambda m, x: m.norm(m.conv(x))) == pytest.approx(unit * folded)
    assert constant(lambda m, x: m.norm(torch.relu(m.conv(x)))) == pytest.approx(unit * conv * alone)
    assert constant(lambda m, x: m.norm(x)) == pytest.approx(unit * alone)

    def shared(m, x):
        read = m.conv(x)
        return m.norm(read) + read

    assert constant(shared) == pytest.approx(unit * (conv * alone + conv))
    rowwise = lipschitz.operator_norm(model.linear, dense, torch.Size((4,)), norm) * float(rows.abs().max())
    bound = lipschitz.margin_bound(Calls(lambda m, x: m.norm_1d(m.linear(x.flatten(1, 2)))), (2, 3, 4), norm)
    assert float(bound[0, 1]) == pytest.approx(unit * rowwise)  # here the norm goes by row, and not by output
    pixels = 1.0 if norm == "linf" else 2**-1.5  # the mean over 8 numbers
    assert constant(lambda m, x: m.norm_1d(m.linear(x.mean((1, 2))))) == pytest.approx(unit * pixels * linear)
    row = (model.last.weight[0] - model.last.weight[1]).detach()
    row = float(row.abs().sum() if norm == "linf" else row.norm())
    assert constant(lambda m, x: m.last(m.norm_1d(m.linear(x.mean((1, 2)))))) == pytest.approx(row * pixels * linear)


def test_a_layer_used_twice_has_a_norm_for_each_shape(refusal):
    def halves(m, x):
        return m.conv(functional.avg_pool2d(m.conv(x), 2))

    model = Calls(halves)
    large, small = (lipschitz.operator_norm(model.conv, model.conv.weight, torch.Size((2, side, side)), "frobenius")
                    for side in (4, 2))
    bound = lipschitz.margin_bound(model, (2, 4, 4), "frobenius")
    assert float(bound[0, 1]) == pytest.approx(2**0.5 * large * small / 2)
    assert "it has several norms" in refusal(lipschitz.layer_norms, model, (2, 4, 4))
    again = Calls(lambda m, x: m.conv(m.conv(x)))  # of one shape: one norm
    assert lipschitz.layer_norms(again, (2, 4, 4), "frobenius").keys() == {"conv"}


REFUSED = {
    "exp": lambda m, x: torch.exp(x),
    "mul": lambda m, x: x * x,
    "bmm": lambda m, x: x.mT @ x,
    "reciprocal": lambda m, x: 2 / (1 + x),
    "div": lambda m, x: torch.div(x, 2, rounding_mode="floor"),
    "round": lambda m, x: (15 * x).round() / 15,
    "gt": lambda m, x: torch.where(x > 0.5, x, 0.0),
    "softplus": lambda m, x: functional.softplus(x, threshold=1),
    "threshold": lambda m, x: functional.threshold(x, 0.5, 0.0),
    "argmax": lambda m, x: functional.one_hot(x.flatten(1).argmax(1), 32).float(),
    "to torch.int64": lambda m, x: functional.max_pool2d(x, 2, return_indices=True)[1] / 2,
    "to torch.bfloat16": lambda m, x: m.conv(x.bfloat16().float()),
    "beside other images": lambda m, x: x - x.mean(0),
    "asked again": lambda m, x: functional.dropout(x),
    "group_norm": lambda m, x: m.group(x),
    "layer_norm": lambda m, x: functional.layer_norm(x, x.shape[1:]),
    "without running statistics": lambda m, x: functional.instance_norm(x),
    "copy_": lambda m, x: m.round(x),  # which pads by copying
    "looking at the numbers": lambda m, x: x if x.sum() > 0 else -x,
    "cannot be followed: AttributeError": lambda m, x: x.nothing,
    "(numpy)": lambda m, x: x * float(x.detach().numpy().max()),
    "avg_pool2d": lambda m, x: functional.avg_pool2d(x, 2, divisor_override=-1),
    "of celu": lambda m, x: functional.celu(x - 3, alpha=-1.0),
    "of elu": lambda m, x: torch.ops.aten.elu(x - 3, 1, 1, -1),
    "view.dtype": lambda m, x: x.double().view(torch.float32),
    "is_same_size, which makes a bool": lambda m, x: torch.func.jvp(torch.sin, (x,), (torch.ones_like(x),))[1],
    "as circular padding does": lambda m, x: functional.pad(x, (1, 1, 1, 1), mode="circular"),
    "logits only": lambda m, x: (x, x),
    "which depend on": lambda m, x: m.last.weight[:2],
    "two classes or more": lambda m, x: x.mean((1, 2, 3))[:, None],
    "not finite": lambda m, x: x / 0,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_known_constant_is_refused_by_name(name, refusal):
    model = Calls(REFUSED[name])
    model.group, model.round = nn.GroupNorm(1, 2), nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
    assert name in refusal(lipschitz.margin_bound, model, (2, 4, 4))


@pytest.mark.parametrize("settings", [PreActResNet(depth=8, width=2, members=2, noise=0.1),
                                      NoisyWeights(model=LeNet300100())], ids=lambda s: s.kind)
def test_a_noisy_network_is_bounded_with_its_noise_off(settings, refusal):
    model = shaken(settings)
    assert "noise" in refusal(lipschitz.margin_bound, model, SHAPE)
    with noise_off(model):
        bound = lipschitz.margin_bound(model, SHAPE, "linf")
        assert_no_two_points_break(bound, model.double(), SHAPE, "linf")


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_ensemble_is_the_mean_of_its_members(norm):
    model = shaken(PreActResNet(depth=8, width=2, members=2))
    members = [lipschitz.margin_bound(Calls(lambda _, x, m=m: 1.0 * m(x)), SHAPE, norm) for m in model.members]
    assert torch.allclose(lipschitz.margin_bound(model, SHAPE, norm), sum(members) / 2)


@pytest.mark.parametrize("norm", lipschitz.NORMS)
def test_a_network_without_its_dead_channels_is_bounded(norm):
    model = shaken(PreActResNet(depth=8, width=4))
    model.members[0].blocks[0].conv1.weight.data[:, [0, 2]] = 0  # compact puts a `Pick` there
    model.members[0].blocks[1].conv2.weight.data[:, [0, 1]] = 0
    small = compact(model)
    bound = lipschitz.margin_bound(small, SHAPE, norm)
    assert (bound <= lipschitz.margin_bound(model, SHAPE, norm) * (1 + 1e-6)).all()
    assert_no_two_points_break(bound, small.double(), SHAPE, norm)


def test_frobenius_is_coarser_than_spectral():
    model = shaken(MODELS["lenet5"])
    fine, coarse = (lipschitz.layer_norms(model, SHAPE, norm) for norm in ("l2", "frobenius"))
    assert list(fine) == list(coarse) == ["0", "2", "5", "7"] and all(fine[name] <= coarse[name] for name in fine)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("settings", [ResNet(depth=8, width=4, mean_255=(100.0,), std_255=(60.0,)), ResNet18(width=2)],
                         ids=lambda s: s.kind)
def test_the_bound_is_the_product_of_its_parts(settings, norm):
    """Of stem, blocks (branch plus shortcut), the mean over the pixels that are left, and the last rows."""
    model = shaken(settings)
    shapes = lipschitz.input_shapes(model, SHAPE)

    def folded(layer, follower):
        weight = layer.weight * scale_of(follower).view(-1, 1, 1, 1)
        return lipschitz.operator_norm(layer, weight, shapes[layer], norm)

    expected = (255 / 60 if settings.std_255 else 1.0) * folded(model.stem, model.norm)
    for block in model.blocks:
        direct = folded(*block.shortcut) if isinstance(block.shortcut, nn.Sequential) else 1.0
        expected *= direct + folded(block.conv1, block.norm1) * folded(block.conv2, block.norm2)
    if norm == "l2":
        expected *= 0.5 if isinstance(settings, ResNet) else 1.0  # 2x2 pixels are left, or one
    row = (model.linear.weight[0] - model.linear.weight[1]).detach().double()
    expected *= float(row.abs().sum() if norm == "linf" else row.norm())
    assert float(lipschitz.margin_bound(model, SHAPE, norm)[0, 1]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kept", [1.0, 0.3])
@pytest.mark.parametrize("name", MODELS)
def test_nobody_gets_inside_the_guaranteed_radius(name, kept):
    """Nor with weights removed at random; Frobenius norms guarantee less than spectral ones."""
    model = shaken(MODELS[name], seed=3)
    for weight in prunable(model).values():
        weight.data *= torch.rand_like(weight) < kept
    images = torch.rand(5, *SHAPE)
    centre = model(images).mean(0).detach()
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer.out_features == 10:
            layer.bias.data -= centre  # so that no class leads everywhere
    labels = predicted(model, images)
    coarse, fine, linf = (lipschitz.guaranteed_radius(model, images, labels, norm) for norm in
                          ("frobenius", "l2", "linf"))
    assert ((linf > 0).any() and (coarse > 0).any()) or "vgg" in name  # whose logits may differ by rounding alone
    assert (coarse <= fine * (1 + 1e-9)).all()

    def fooled(attack):
        adversarial = attack(model, images, labels)
        return adversarial - images, predicted(model, adversarial) != labels

    for attack in (DeepFool(steps=10), CarliniWagnerL2(steps=10, search_steps=3, constant=10)):
        moved, found = fooled(attack)
        assert found.any() or "vgg" in name  # what a random VGG says hardly depends on the image
        assert (fine[found] <= l2_norm(moved)[found] * (1 + 1e-5)).all()
    for epsilon in (0.05, 0.5):
        moved, found = fooled(PGD(epsilon=epsilon, step_size=epsilon / 2, steps=3))
        assert (linf[found] <= moved.flatten(1).abs().amax(1)[found] * (1 + 1e-5)).all()
    assert found.any() or "vgg" in name


class Sum(nn.Module):
    """Of an image and what a layer makes of it, in place."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        y = self.layer(x)
        y += x
        return y


class Turned(nn.Module):
    def forward(self, x):
        first, second = x.permute(0, 1, 3, 2).contiguous().chunk(2, 1)
        return torch.cat([second, first.flip(2)], 1)


def scaled(layer):
    layer.register_forward_hook(lambda module, inputs, result: 3 * result)
    return layer


# Layers for images of 4 channels, to the same shape.
PIECES = {
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1), "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "reflecting": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1),
    "normed": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)),
    "transposed, normed": lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)),
    "max": lambda: nn.MaxPool2d(3, 1, 1), "average": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "up": lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.MaxPool2d(2)), "turned": Turned,
    "residual": lambda: Sum(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True),
                                          nn.Conv2d(4, 4, 1))),
    "dropped": nn.Dropout2d,
    "rows": lambda: nn.Linear(6, 6), "hook": lambda: scaled(nn.SiLU()),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
    "relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.3), "relu6": nn.ReLU6, "gelu": nn.GELU, "elu": nn.ELU,
    "hardswish": nn.Hardswish, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "softplus": nn.Softplus,
}


@hypothesis_settings(max_examples=25)
@given(pieces=st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_nobody_gets_inside_the_radius_of_any_network_of_known_pieces(pieces, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *(PIECES[piece]() for piece in pieces), nn.Flatten(),
                        nn.Linear(144, 4))
    shake(net)
    images = torch.rand(6, 1, 6, 6)
    with torch.no_grad():
        net[-1].bias -= net(images).mean(0)  # so that no class leads everywhere
    labels = predicted(net, images)
    coarse, fine, linf = (lipschitz.guaranteed_radius(net, images, labels, n) for n in ("frobenius", "l2", "linf"))
    assert (coarse <= fine * (1 + 1e-5)).all() and (fine >= 0).all() and fine.isfinite().all()
    for attack in (DeepFool(steps=10), CarliniWagnerL2(steps=5, search_steps=2, constant=10)):
        adversarial = attack(net, images, labels)
        found = predicted(net, adversarial) != labels
        assert (fine[found] <= l2_norm(adversarial - images)[found] * (1 + 1e-4)).all()
    for epsilon in (0.02, 0.2):
        adversarial = PGD(epsilon=epsilon, step_size=epsilon / 2, steps=3)(net, images, labels)
        found = predicted(net, adversarial) != labels
        assert (linf[found] <= (adversarial - images).flatten(1).abs().amax(1)[found] * (1 + 1e-4)).all()


def test_misclassified_images_have_no_radius():
    model, images = shaken(LeNet300100()), torch.rand(5, *SHAPE)
    wrong = (model(images).argmax(1) + 1) % 10
    assert (lipschitz.guaranteed_radius(model, images, wrong) == 0).all()
    assert (lipschitz.margins(model, images, wrong) < 0).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_gradients_in_the_ball_stay_below_the_bound(norm):
    model, images = shaken(LeNet300100()), torch.rand(6, *SHAPE)
    labels = model(images).argmax(1)
    found = lipschitz.gradient_norms(model, images, labels, 0.5, 7, norm, torch.Generator().manual_seed(0))
    assert found.shape == (7, 6) and (found > 0).all() and (found.amax(0) > found.amin(0)).any()
    assert (found.amax(0) <= lipschitz.margin_bound(model, SHAPE, norm)[labels].amax(1) * (1 + 1e-5)).all()
    again = lipschitz.gradient_norms(model, images, labels, 0.5, 7, norm, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_gradient_of_a_linear_network_is_its_weights(norm):
    model, images = shaken(Linear()), torch.rand(6, *SHAPE)
    logits = model(images)
    labels, rivals = logits.topk(2).indices.unbind(1)
    rows = (model[1].weight[labels] - model[1].weight[rivals]).detach()
    expected = rows.abs().sum(1) if norm == "linf" else rows.norm(dim=1)
    found = lipschitz.gradient_norms(model, images, labels, 0.5, 3, norm, torch.Generator().manual_seed(0))
    assert torch.allclose(found, expected.expand(3, -1), rtol=1e-5)


def test_points_lie_in_their_ball():
    images, generator = torch.zeros(500, *SHAPE), torch.Generator().manual_seed(0)
    inside = l2_norm(random_in_ball(images, 0.3, "l2", generator))
    assert inside.max() <= 0.3 + 1e-6 and inside.mean() == pytest.approx(0.3 * 64 / 65, rel=0.01)
    assert 0.29 < random_in_ball(images, 0.3, "linf", generator).abs().max() <= 0.3


def test_models_come_back_as_they_were():
    model = shaken(MODELS["resnet"]).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    lipschitz.margin_bound(model, SHAPE)
    lipschitz.gradient_norms(model, torch.rand(2, *SHAPE), torch.tensor([0, 1]), 0.1, 2)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_network_without_gradients_has_no_slope(refusal):
    model = Hostile(lambda net, logits, x: logits(x).detach())
    images, labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    assert "no gradients" in refusal(lipschitz.gradient_norms, model, images, labels, 1, 1)
    assert "lie in [0, 1]" in refusal(lipschitz.guaranteed_radius, model, 255 * images, labels)


def test_unknown_norms_are_refused(refusal):
    model, images, labels = shaken(Linear()), torch.rand(2, *SHAPE), torch.tensor([0, 1])
    assert "l1" in refusal(lipschitz.margin_bound, model, SHAPE, "l1")
    assert "l1" in refusal(lipschitz.layer_norms, model, SHAPE, "l1")
    assert "l1" in refusal(lipschitz.gradient_norms, model, images, labels, 0.1, 1, "l1")
