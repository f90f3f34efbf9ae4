"""Lipschitz constants against dense matrices, random pairs of points, and attacks."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import resnet18

from scaffolding import built, lively
from sparserobust.analysis import lipschitz
from sparserobust.attacks import PGD, CarliniWagnerL2, DeepFool, l2_norm, predicted, random_in_ball
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


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_network_from_elsewhere_is_bounded_too(norm):
    torch.manual_seed(0)
    model, shape = shake(resnet18(num_classes=5)).double(), (3, 8, 8)
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
        shake(self)

    def forward(self, x):
        found = self.function(self, x)
        return found.flatten(1) if isinstance(found, torch.Tensor) else found


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
    "average": (lambda m, x: functional.avg_pool2d(x, 2), 1 / 2, 1),
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
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_constants_of_single_operations(name):
    """Against closed forms; and no Jacobian, at points far from each other and with ties, has a larger norm."""
    function, l2, linf = OPERATIONS[name]
    model = Calls(function)
    for norm, expected, unit in (("l2", l2, 2**0.5), ("frobenius", l2, 2**0.5), ("linf", linf, 2.0)):
        assert float(lipschitz.margin_bound(model, (2, 4, 4), norm)[0, 1]) == pytest.approx(expected * unit, rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    for x in [torch.randn(1, 2, 4, 4, generator=generator), torch.zeros(1, 2, 4, 4)]:
        jacobian = torch.autograd.functional.jacobian(model, x).reshape(-1, 32)
        assert torch.linalg.matrix_norm(jacobian, 2) <= l2 * (1 + 1e-5)
        assert jacobian.abs().sum(1).max() <= linf * (1 + 1e-5)


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


def test_a_layer_used_twice_has_a_norm_for_each_shape():
    def halves(m, x):
        return m.conv(functional.avg_pool2d(m.conv(x), 2))

    model = Calls(halves)
    large, small = (lipschitz.operator_norm(model.conv, model.conv.weight, torch.Size((2, side, side)), "frobenius")
                    for side in (4, 2))
    bound = lipschitz.margin_bound(model, (2, 4, 4), "frobenius")
    assert float(bound[0, 1]) == pytest.approx(2**0.5 * large * small / 2)


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
    "at another call": lambda m, x: functional.dropout(x),
    "group_norm": lambda m, x: m.group(x),
    "layer_norm": lambda m, x: functional.layer_norm(x, x.shape[1:]),
    "without running statistics": lambda m, x: functional.instance_norm(x),
    "copy_": lambda m, x: m.round(x),  # which pads by copying
    "looking at the numbers": lambda m, x: x if x.sum() > 0 else -x,
    "cannot be followed": lambda m, x: x * float(x.detach().numpy().max()),
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
    assert (linf > 0).any() and (coarse > 0).any() and (coarse <= fine * (1 + 1e-9)).all()

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


def test_unknown_norms_are_refused(refusal):
    model, images, labels = shaken(Linear()), torch.rand(2, *SHAPE), torch.tensor([0, 1])
    assert "l1" in refusal(lipschitz.margin_bound, model, SHAPE, "l1")
    assert "l1" in refusal(lipschitz.layer_norms, model, SHAPE, "l1")
    assert "l1" in refusal(lipschitz.gradient_norms, model, images, labels, 0.1, 1, "l1")
