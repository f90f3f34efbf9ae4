"""Small networks without norms."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from sparserobust import sparsity
from sparserobust.models import LeNet5, LeNet300100, Linear

MNIST, DIGITS = (1, 28, 28), (1, 8, 8)


@pytest.mark.parametrize("model, shape, parameters, weights", [
    (Linear(), MNIST, 7_850, 7_840), (LeNet300100(), MNIST, 266_610, 266_200), (LeNet5(), MNIST, 431_080, 430_500),
    (LeNet5(), (3, 32, 32), 657_080, 656_500), (LeNet5(kernel=3), DIGITS, 39_760, 39_180),
    (LeNet5(width=10), MNIST, 109_295, 109_000), (LeNet5(kernel=3, width=2), DIGITS, 925, 858)])
def test_counts(model, shape, parameters, weights):
    net = model.build(shape, 10)
    assert sparsity.parameters(net) == parameters
    assert sparsity.zero_weights(net)[1] == weights  # biases do not count
    assert net(torch.rand(3, *shape)).shape == (3, 10)


def test_lenet5_has_no_relu_after_its_convolutions():
    net, images = LeNet5().build(MNIST, 10), torch.rand(4, *MNIST)
    for p in net.parameters():
        nn.init.normal_(p, 0.0, 0.1)
    one, two, three, four = [m for m in net if isinstance(m, nn.Conv2d | nn.Linear)]
    x = functional.max_pool2d(functional.conv2d(images, one.weight, one.bias), 2)
    x = functional.max_pool2d(functional.conv2d(x, two.weight, two.bias), 2)
    assert (x < 0).any()
    x = functional.relu(functional.linear(x.flatten(1), three.weight, three.bias))
    assert torch.allclose(net(images), functional.linear(x, four.weight, four.bias), atol=1e-5)


def test_lenet_300_100_by_hand():
    net, images = LeNet300100().build(DIGITS, 10), torch.rand(4, *DIGITS)
    x = images.flatten(1)
    layers = [m for m in net if isinstance(m, nn.Linear)]
    for layer in layers[:-1]:
        x = (x @ layer.weight.T + layer.bias).clamp_min(0)
    assert torch.allclose(net(images), x @ layers[-1].weight.T + layers[-1].bias, atol=1e-6)


def test_softmax_regression_begins_at_zero():
    assert not any(p.any() for p in Linear().build(MNIST, 10).parameters())


@pytest.mark.parametrize("model", [LeNet300100(), LeNet5()], ids=lambda m: m.kind)
def test_weights_are_drawn_as_glorot_and_bengio_do(model):
    for layer in model.build(MNIST, 10).requires_grad_(False).modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            window = layer.weight[0, 0].numel() if layer.weight.dim() == 4 else 1
            limit = (6 / ((layer.weight.shape[0] + layer.weight.shape[1]) * window)) ** 0.5
            assert 0.95 * limit < float(layer.weight.abs().max()) <= limit
            assert float(layer.weight.std()) == pytest.approx(limit / 3**0.5, rel=0.1)
            assert (layer.bias == 0).all()


def test_the_width_of_lenet5_scales_all_layers_and_the_cost(refusal):
    for width in (2, 10, 30):
        shapes = [p.shape[0] for p in LeNet5(width=width).build(MNIST, 10).parameters()][::2]
        assert shapes == [width, 2.5 * width, 25 * width, 10] and LeNet5(width=width).cost == width / 10
    for width in (0, 7, -2):
        assert "width" in refusal(LeNet5, width=width)


def test_images_too_small_for_the_kernel_are_refused(refusal):
    assert "8x8" in refusal(LeNet5().build, DIGITS, 10)
    assert "kernel" in refusal(LeNet5, kernel=0)
