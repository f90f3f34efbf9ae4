"""k-winners-take-all against brute force, and watching activations against every call of torch.relu."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional

from scaffolding import built
from sparserobust import training
from sparserobust.attacks import PGD
from sparserobust.models import (
    VGG16,
    LeNet5,
    LeNet300100,
    NoisyWeights,
    PreActResNet,
    ResNet,
    ResNet18,
    VGGLike,
    Winners,
)
from sparserobust.models.winners import KWinners, recorded_activations

SHAPE = (1, 8, 8)
PLAIN = {  # with how often a pass calls a ReLU
    "lenet_300_100": (LeNet300100(), 2), "lenet5": (LeNet5(kernel=3), 1), "vgg16": (VGG16(width=4), 13),
    "vgg_like": (VGGLike(width=4), 14), "resnet": (ResNet(depth=8, width=4), 7), "resnet18": (ResNet18(width=4), 17),
    "preact_resnet": (PreActResNet(depth=8, width=4, members=2, noise=0.1), 14),
    "noisy_weights": (NoisyWeights(model=ResNet(depth=8, width=4)), 7),
}
every_network = pytest.mark.parametrize(("plain", "calls"), PLAIN.values(), ids=PLAIN)
SHARES = [0.001, 0.1, 0.37, 0.5, 0.9]


@pytest.fixture
def every_relu(monkeypatch) -> list:
    """What each call of torch.relu gives, whoever makes it."""
    given, relu = [], torch.relu

    def noted(x):
        given.append(relu(x))
        return given[-1]

    monkeypatch.setattr(torch, "relu", noted)
    return given


def drawn(net, x):
    """A pass whose noise is the same each time."""
    torch.manual_seed(1)
    return net(x)


def all_of(outputs: dict[str, list]) -> list:
    return [output for calls in outputs.values() for output in calls]


def winners_of(row: list[float], share: float) -> list[float]:
    """By sorting."""
    k = max(1, round(share * len(row)))
    kept = sorted(range(len(row)), key=lambda i: -row[i])[:k]
    return [max(v, 0.0) if i in kept else 0.0 for i, v in enumerate(row)]


# --- the layer


@pytest.mark.parametrize("shape", [(5, 40), (3, 4, 5, 5), (2, 1, 3, 3), (4, 6, 1, 1)], ids=str)
@pytest.mark.parametrize("share", [*SHARES, 1.0])
def test_the_largest_of_each_image_are_kept(shape, share):
    x = torch.randn(shape)
    expected = torch.tensor([winners_of(row.tolist(), share) for row in x.flatten(1)]).view(shape)
    assert torch.equal(KWinners(share)(x), expected)
    spread = x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x.T.contiguous().T
    out = KWinners(share)(spread)
    assert torch.equal(out, expected) and out.stride() == torch.relu(spread).stride()


@pytest.mark.parametrize("share", SHARES)
def test_how_many_are_left(share):
    x = torch.rand(6, 4, 5, 5) + 0.1
    k = max(1, round(share * 100))
    assert ((KWinners(share)(x) != 0).flatten(1).sum(1) == k).all()
    equal = torch.full((6, 4, 5, 5), 0.5)  # as many as k of them, whichever
    assert ((KWinners(share)(equal) == 0.5).flatten(1).sum(1) == k).all()
    few = x.flatten(1).index_fill(1, torch.arange(1, 100), -1.0).view_as(x)  # fewer are positive than may win
    assert torch.equal(KWinners(share)(few), torch.relu(few))


def test_share_one_is_relu_and_so_is_its_gradient():
    x = torch.randn(4, 3, 5, 5).requires_grad_(True)
    x.data[0, 0] = 0
    gradients = [torch.autograd.grad(layer(x).sin().sum(), x)[0] for layer in (KWinners(1.0), nn.ReLU())]
    assert torch.equal(KWinners(1.0)(x), nn.ReLU()(x)) and torch.equal(*gradients)


@pytest.mark.parametrize("share", SHARES)
def test_gradient_flows_through_winners_only(share):
    x = torch.randn(4, 3, 5, 5).requires_grad_(True)
    out, upstream = KWinners(share)(x), torch.randn(4, 3, 5, 5)
    (gradient,) = torch.autograd.grad(out, x, upstream)
    assert torch.equal(gradient, torch.where(out > 0, upstream, 0.0)) and (out > 0).any()


def test_gradient_against_finite_differences():
    x = torch.randn(3, 12, dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: KWinners(0.3)(x).sin(), x, eps=1e-7)


def test_it_jumps():
    """Where the order of two units changes, however little they move."""
    before, after = KWinners(0.5)(torch.tensor([[1.0, 1.0 + 1e-6]])), KWinners(0.5)(torch.tensor([[1.0 + 1e-6, 1.0]]))
    assert (before - after).abs().max() >= 1


def test_in_bfloat16_many_are_equal_and_no_more_win():
    x = torch.rand(3, 16, 32, 32).bfloat16()
    out = KWinners(0.3)(x)
    assert out.dtype == torch.bfloat16 and ((out != 0).flatten(1).sum(1) == round(0.3 * 16 * 1024)).all()
    assert all(row[row != 0].min() == values.sort(descending=True).values[round(0.3 * 16 * 1024) - 1]
               for row, values in zip(out.flatten(1), x.flatten(1), strict=True))


# --- any network


@every_network
def test_every_activation_of_every_network_is_a_module(plain, calls, every_relu):
    net = built(plain)
    with recorded_activations(net) as outputs:
        net(torch.rand(3, *SHAPE))
    assert len(every_relu) == calls == len(all_of(outputs))
    assert {id(output) for output in all_of(outputs)} == {id(output) for output in every_relu}


@every_network
def test_weights_and_names_stay(plain, calls):
    net, after = built(plain), torch.get_rng_state()
    sparse = built(Winners(model=plain, share=0.2))
    assert torch.equal(torch.get_rng_state(), after)
    assert list(net.state_dict()) == list(sparse.state_dict())
    assert all(torch.equal(sparse.state_dict()[name], t) for name, t in net.state_dict().items())
    layers = [m for m in sparse.modules() if isinstance(m, KWinners)]
    assert len(layers) == sum(isinstance(m, nn.ReLU) for m in net.modules())
    assert {layer.share for layer in layers} == {0.2} and not any(isinstance(m, nn.ReLU) for m in sparse.modules())


@pytest.mark.parametrize("is_training", [False, True])
@every_network
def test_share_one_is_the_network_itself(plain, calls, is_training):
    net, same = built(plain).train(is_training), built(Winners(model=plain, share=1)).train(is_training)
    x = torch.rand(3, *SHAPE)
    expected = drawn(net, x)
    assert torch.equal(drawn(same, x), expected)
    other = built(Winners(model=plain, share=0.05)).train(is_training)
    assert not torch.allclose(drawn(other, x), expected, rtol=1e-2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels_last"])
@pytest.mark.parametrize("rough", [False, True], ids=["float32", "bfloat16"])
@every_network
def test_no_layer_has_more_winners_than_its_share(plain, calls, rough, layout):
    net = built(Winners(model=plain, share=0.1)).to(memory_format=layout)
    x = torch.rand(4, *SHAPE).to(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16, enabled=rough), recorded_activations(net) as outputs:
        loss = net(x).float().square().sum()
    loss.backward()
    recorded = [output.flatten(1) for output in all_of(outputs)]
    assert len(recorded) == calls and any(output.dtype == torch.bfloat16 for output in recorded) == rough
    for output in recorded:
        assert (output > 0).sum(1).max() <= max(1, round(0.1 * output.shape[1])) and (output > 0).any()
    assert all(p.grad.isfinite().all() for p in net.parameters()) and any(p.grad.any() for p in net.parameters())


def test_lenet_by_hand():
    net, x = built(Winners(model=LeNet300100(), share=0.1)), torch.rand(4, *SHAPE)
    one, two, three = [m for m in net if isinstance(m, nn.Linear)]
    hidden = x.flatten(1)
    for layer in (one, two):
        rows = functional.linear(hidden, layer.weight, layer.bias).tolist()
        hidden = torch.tensor([winners_of(row, 0.1) for row in rows])
    assert torch.allclose(net(x), functional.linear(hidden, three.weight, three.bias), atol=1e-6)


def test_whose_weights_it_can_take_over():
    dense, other = LeNet300100(), ResNet(depth=8, width=4)
    sparse = Winners(model=dense, share=0.2)
    assert all(sparse.fits(m) for m in (sparse, dense, Winners(model=dense, share=0.7)))
    assert not any(sparse.fits(m) for m in (other, Winners(model=other, share=0.2)))
    noisy = NoisyWeights(model=other)
    assert Winners(model=noisy, share=0.5).fits(NoisyWeights(model=other, masked=False))
    assert not Winners(model=noisy, share=0.5).fits(other)


def test_a_dense_run_handed_over_and_trained_further(tiny_run, digits):
    dense = tiny_run()
    sparse = tiny_run(model=Winners(model=dense.model, share=0.3), start=dense, epochs=1)
    weights = training.train(dense, digits).model.state_dict()
    before = training.train(tiny_run(model=sparse.model, epochs=0), digits, start=weights).model
    assert all(torch.equal(before.state_dict()[name], t) for name, t in weights.items())
    after = training.train(sparse, digits, start=weights)
    assert after.history[0]["loss"] > 0 and not any(isinstance(m, nn.ReLU) for m in after.model.modules())


@pytest.mark.parametrize("share", [0, -0.1, 1.01])
def test_shares_that_make_no_sense(refusal, share):
    assert "share" in refusal(Winners, model=LeNet300100(), share=share)


def test_selecting_costs():
    assert Winners(model=ResNet(), share=0.1).cost > ResNet().cost


# --- watching


def test_the_last_pass_is_kept(every_relu):
    net = built(ResNet(depth=8, width=4))
    with recorded_activations(net) as outputs:
        net(torch.rand(3, *SHAPE))
        net(torch.rand(2, *SHAPE))
    assert list(outputs) == ["relu", "blocks.0.relu", "blocks.1.relu", "blocks.2.relu"]
    assert [len(calls) for calls in outputs.values()] == [1, 2, 2, 2]
    assert all(a is b for a, b in zip(all_of(outputs), every_relu[7:], strict=True))


def test_only_training_passes_are_kept_where_only_they_are_wanted():
    net, x = built(LeNet300100()), torch.rand(3, *SHAPE)
    attack = PGD(epsilon=0.1, step_size=0.05, steps=2)
    for others in ("before", "after"):
        with recorded_activations(net, training_only=True) as outputs:
            for turn in ("before", "now", "after"):
                if turn == "now":
                    expected = torch.relu(net[1](x.flatten(1)))
                    net(x)
                elif turn == others:
                    attack(net, 1 - x, torch.tensor([0, 1, 2]))
                    net.eval()(1 - x)
                    with torch.no_grad():
                        net.train()(1 - x)
        assert torch.equal(outputs["2"][0], expected) and [len(calls) for calls in outputs.values()] == [1, 1]


@pytest.mark.parametrize("fails", [False, True])
def test_nobody_watches_afterwards(fails):
    net, images = built(Winners(model=ResNet(depth=8, width=4), share=0.5)), torch.rand(3, *SHAPE)
    twin = deepcopy(net)
    try:
        with recorded_activations(net) as outputs:
            net(images)
            assert outputs
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    kept = dict(outputs)
    assert torch.equal(net(images), twin.train()(images)) and outputs == kept
