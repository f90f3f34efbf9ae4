"""Zagoruyko's VGG-like network against the same layers written out one by one."""

import pytest
import torch
from torch import nn

from scaffolding import assert_same_training, interrupted
from sparserobust import sparsity, training
from sparserobust.models import VGG16, VGGLike
from sparserobust.models.normalise import Normalise


def written_out(channels: int, classes: int, pixels: int = 1) -> nn.Sequential:
    """Width 4, layer by layer, as the author's torch script goes."""
    def block(given, out):
        return [nn.Conv2d(given, out, 3, 1, 1), nn.BatchNorm2d(out, eps=1e-3), nn.ReLU()]

    def pool():
        return nn.MaxPool2d(2, 2, ceil_mode=True)

    return nn.Sequential(
        *block(channels, 4), nn.Dropout(0.3), *block(4, 4), pool(),
        *block(4, 8), nn.Dropout(0.4), *block(8, 8), pool(),
        *block(8, 16), nn.Dropout(0.4), *block(16, 16), nn.Dropout(0.4), *block(16, 16), pool(),
        *block(16, 32), nn.Dropout(0.4), *block(32, 32), nn.Dropout(0.4), *block(32, 32), pool(),
        *block(32, 32), nn.Dropout(0.4), *block(32, 32), nn.Dropout(0.4), *block(32, 32), pool(),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(32 * pixels, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(32, classes)).double()


def lively(net):
    """In double precision, with biases and norms that do something."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.running_var.uniform_(5e-4, 2e-3)  # small, so that the epsilon of the norms shows
            m.weight.data.uniform_(0.02, 0.06)
            m.bias.data.uniform_(-0.5, 0.5)
            m.running_mean.uniform_(-0.5, 0.5)
        elif isinstance(m, nn.Conv2d):
            m.bias.data.uniform_(-1, 1)
    return net.double()


def with_weights(reference, net):
    """`reference` with the weights of `net`, whose layers come in the same order."""
    values = list(net.state_dict().values())
    assert [t.shape for t in reference.state_dict().values()] == [t.shape for t in values]
    reference.load_state_dict(dict(zip(reference.state_dict(), values, strict=True)))
    return reference


@pytest.mark.parametrize(("shape", "pixels"), [((3, 32, 32), 1), ((1, 8, 8), 1), ((1, 28, 28), 1), ((2, 33, 65), 6),
                                               ((1, 1, 1), 1)])
@pytest.mark.parametrize("training", [False, True])
def test_it_is_the_network_written_out(shape, pixels, training):
    """In training mode both throw the same dice: dropout has its rates and stands in its places."""
    net = lively(VGGLike(width=4).build(shape, 5)).train(training)
    reference = with_weights(written_out(shape[0], 5, pixels), net).train(training)
    images, logits = torch.rand(6, *shape, dtype=torch.float64), []
    for one in (net, reference):
        torch.manual_seed(1)
        logits.append(one(images))
    assert torch.allclose(*logits, rtol=1e-9, atol=1e-9)
    assert logits[0].shape == (6, 5) and (max(shape) == 1 or logits[0].std(0).min() > 0)


def test_without_dropout_training_throws_no_dice():
    net = lively(VGGLike(width=4, dropout=False).build((1, 8, 8), 5)).train()
    reference = with_weights(written_out(1, 5), net).train()
    for m in reference.modules():
        if isinstance(m, nn.Dropout):
            m.eval()
    images, before = torch.rand(6, 1, 8, 8, dtype=torch.float64), torch.get_rng_state()
    assert torch.allclose(net(images), reference(images), rtol=1e-9, atol=1e-9)
    assert torch.equal(torch.get_rng_state(), before)


def test_number_of_parameters():
    convolutions = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512),
                    *[(512, 512)] * 5]
    weights = sum(9 * a * b for a, b in convolutions) + 512 * 512 + 512 * 10
    others = sum(3 * b for _, b in convolutions) + 3 * 512 + 10  # a bias and two numbers of a norm, but for the last
    with torch.device("meta"):
        net = VGGLike().build((3, 32, 32), 10)
    assert sparsity.parameters(net) == weights + others == 14_991_946
    assert sum(w.numel() for w in sparsity.prunable(net).values()) == weights
    assert len(sparsity.prunable(net)) == 15


def test_initialisation():
    net = VGGLike(width=32).build((3, 32, 32), 10)
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            assert float(m.weight.detach().std()) == pytest.approx((2 / (9 * m.out_channels)) ** 0.5, rel=0.08)
            assert (m.bias == 0).all() and m.bias.requires_grad
        elif isinstance(m, nn.Linear):
            limit = 256**-0.5  # uniform
            assert 0.97 * limit < float(m.weight.detach().abs().max()) <= limit
            assert float(m.weight.detach().std()) == pytest.approx(limit / 3**0.5, rel=0.05)
            assert 0 < float(m.bias.detach().abs().max()) <= limit


def test_names_of_vgg16_are_what_stored_results_know():
    names = [name for name, _ in VGG16(width=2).build((1, 8, 8), 3).named_parameters()]
    assert names[:4] == ["layers.0.weight", "layers.1.weight", "layers.1.bias", "layers.3.weight"]
    assert names[-5:] == ["layers.40.weight", "layers.41.weight", "layers.41.bias", "linear.weight", "linear.bias"]


def test_images_are_normalised_first_and_wrong_settings_are_refused(refusal):
    net = VGGLike(width=2, mean_255=(1, 2, 3), std_255=(4, 5, 6)).build((3, 8, 8), 3)
    assert isinstance(net.first, Normalise)
    assert "width" in refusal(VGGLike, width=0)
    assert "dropout" in refusal(VGGLike, dropout=0.5)
    assert "channels" in refusal(VGGLike(mean_255=(1,), std_255=(4,)).build, (3, 8, 8), 3)


def test_cost():
    assert VGGLike(dropout=False).cost == VGG16().cost
    assert VGGLike().cost == pytest.approx(4 / 3 * VGG16().cost)


def test_it_trains_on_small_images_and_takes_up_where_it_was_interrupted(tiny_run, digits, tmp_path):
    run = tiny_run(model=VGGLike(width=8, dropout=False), epochs=12, batch_size=16, lr=0.05)
    history = training.train(run, digits).history
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    run = tiny_run(model=VGGLike(width=4))
    assert_same_training(interrupted(run, digits, tmp_path / "checkpoint", [1]), training.train(run, digits))
