"""Lipschitz constants against dense matrices, random pairs of points, and attacks."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from sparserobust.analysis import lipschitz
from sparserobust.attacks import PGD, CarliniWagnerL2, l2_norm, random_in_ball
from sparserobust.models import VGG16, LeNet5, LeNet300100, Linear, PreActResNet, ResNet, ResNet18

MODELS = {"linear": Linear(), "lenet_300_100": LeNet300100(), "lenet5": LeNet5(kernel=3),
          "resnet": ResNet(depth=8, width=4, mean_255=[100.0], std_255=[60.0]), "resnet18": ResNet18(width=4),
          "vgg16": VGG16(width=4)}
SHAPE = (1, 8, 8)


def shaken(settings, seed: int = 0) -> nn.Module:
    """A network whose norms and statistics are not those of a fresh one."""
    torch.manual_seed(seed)
    model = settings.build(SHAPE, 10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.0, 1.0)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
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
    dense = matrix(layer, shape)
    norms = {norm: lipschitz.operator_norm(layer, layer.weight, torch.Size(shape), norm) for norm in lipschitz.NORMS}
    assert norms["l2"] == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)), rel=1e-6)
    assert norms["linf"] == pytest.approx(float(dense.abs().sum(1).max()), rel=1e-12)
    assert norms["frobenius"] == pytest.approx(float(dense.norm()), rel=1e-12)


def test_a_layer_of_zeros_has_norm_zero():
    layer = nn.Conv2d(2, 3, 3)
    shape = torch.Size((2, 5, 5))
    assert {lipschitz.operator_norm(layer, 0 * layer.weight, shape, norm) for norm in lipschitz.NORMS} == {0.0}


@pytest.mark.parametrize("norm", lipschitz.NORMS)
@pytest.mark.parametrize("name", MODELS)
def test_no_two_points_are_further_apart_than_the_bound_allows(name, norm):
    model = shaken(MODELS[name]).double()
    bound = lipschitz.margin_bound(model, SHAPE, norm)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(60, *SHAPE, generator=generator, dtype=torch.float64)
    step = torch.randn(60, *SHAPE, generator=generator, dtype=torch.float64)
    step *= (10.0 ** torch.linspace(-4, 0, 60)).view(-1, 1, 1, 1)
    size = step.flatten(1).abs().amax(1) if norm == "linf" else l2_norm(step)
    change = model(x + step) - model(x)
    gaps = (change[:, :, None] - change[:, None]).abs().detach()
    assert (gaps <= bound * size.view(-1, 1, 1) * (1 + 1e-6) + 1e-12).all()
    assert (gaps / size.view(-1, 1, 1)).amax() > 0
    assert (bound - bound.T).abs().max() <= 1e-9 * bound.max() and (bound.diagonal() == 0).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_linear_network_reaches_its_bound(norm):
    model = shaken(Linear())
    bound = lipschitz.margin_bound(model, SHAPE, norm)
    row = (model[1].weight[3] - model[1].weight[7]).detach().double()
    step = row.sign() if norm == "linf" else row / row.norm()
    assert bound[3, 7] == pytest.approx(float(row @ step), rel=1e-6)


def test_frobenius_is_coarser_than_spectral():
    for settings in MODELS.values():
        model = shaken(settings)
        fine, coarse = (lipschitz.margin_bound(model, SHAPE, norm) for norm in ("l2", "frobenius"))
        assert (fine <= coarse * (1 + 1e-9)).all()
        fine, coarse = (lipschitz.layer_norms(model, SHAPE, norm) for norm in ("l2", "frobenius"))
        assert list(fine) == list(coarse) and all(fine[name] <= coarse[name] * (1 + 1e-9) for name in fine)


def test_a_residual_block_is_one_plus_its_branch():
    model = shaken(ResNet(depth=8, width=4))
    whole = lipschitz.margin_bound(model, SHAPE)
    shapes = lipschitz.input_shapes(model, SHAPE)
    branch = lipschitz._constant(model.blocks[0], None, "l2", shapes) - 1
    silent = deepcopy(model)
    silent.blocks[0].conv2.weight.data.zero_()
    assert torch.allclose(lipschitz.margin_bound(silent, SHAPE) * (1 + branch), whole, rtol=1e-9)


@pytest.mark.parametrize("norm, mean", [("l2", 0.5), ("linf", 1.0)])
def test_the_bound_is_the_product_of_its_parts(norm, mean):
    """8x8 images leave 2x2 pixels, of which the mean is taken: a map of spectral norm 1 / 2."""
    model = shaken(ResNet(depth=8, width=4, mean_255=[100.0], std_255=[60.0]))
    shapes = lipschitz.input_shapes(model, SHAPE)

    def folded(layer, follower):
        scale = follower.weight / (follower.running_var + follower.eps).sqrt()
        return lipschitz.operator_norm(layer, layer.weight * scale.view(-1, 1, 1, 1), shapes[layer], norm)

    expected = 255 / 60 * folded(model.stem, model.norm) * mean
    for block in model.blocks:
        expected *= 1 + folded(block.conv1, block.norm1) * folded(block.conv2, block.norm2)
    row = (model.linear.weight[0] - model.linear.weight[1]).detach().double()
    expected *= float(row.abs().sum() if norm == "linf" else row.norm())
    assert float(lipschitz.margin_bound(model, SHAPE, norm)[0, 1]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["lenet_300_100", "lenet5", "resnet"])
@hypothesis_settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_nobody_gets_inside_the_guaranteed_radius(name, seed):
    model = shaken(MODELS[name], seed)
    images = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(seed))
    labels = model(images).argmax(1)
    radii = lipschitz.guaranteed_radius(model, images, labels)
    moved = l2_norm(CarliniWagnerL2(steps=20, search_steps=3)(model, images, labels) - images)
    found = moved > 0
    assert (radii > 0).all() and (radii[found] <= moved[found]).all()
    radii = lipschitz.guaranteed_radius(model, images, labels, "linf")
    for image, label, radius in zip(images, labels, radii, strict=True):
        attack = PGD(epsilon=min(0.999 * float(radius), 1.0), step_size=min(float(radius) / 4, 1.0), steps=5)
        assert model(attack(model, image[None], label[None])).argmax() == label


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


def test_networks_of_unknown_make_are_refused(refusal):
    model = PreActResNet(depth=8, width=2).build(SHAPE, 10)
    assert "Lipschitz" in refusal(lipschitz.margin_bound, model, SHAPE)


def test_unknown_norms_are_refused(refusal):
    assert "l1" in refusal(lipschitz.margin_bound, shaken(LeNet300100()), SHAPE, "l1")
