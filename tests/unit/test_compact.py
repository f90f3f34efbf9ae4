"""Really removing zero channels: the same outputs, and just the sizes that counting by hand gives."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaffolding import generator, lively, seeded
from sparserobust import files, sparsity
from sparserobust.models import (
    Ensemble,
    NoisyWeights,
    PreActResNet,
    Winners,
    compact,
    gated,
    is_noisy,
    noise_off,
    noise_scales,
)
from sparserobust.models.compact import Pick
from sparserobust.models.noise import NoisyConv2d
from sparserobust.models.preact_resnet import Block

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def frozen(model, seed: int = 0):
    """In eval mode, without gradients; norms and gates are unlike those of a fresh network."""
    with seeded(seed):
        return lively(model, both_signs=True).eval().requires_grad_(False)


def built(channels: int = 2, **changes) -> Ensemble:
    with seeded():
        return frozen(PreActResNet(**{"depth": 8, "width": 4} | changes).build((channels, 8, 8), 5))


def block_of(out: int = 4, stride: int = 1, noise: float = 0.0) -> tuple[Ensemble, Block]:
    """A network whose first block, given apart, maps 4 channels to `out`."""
    model: Any = built()
    with seeded():
        model.members[0].blocks[0] = frozen(Block(4, out, stride, noise))
    return model, model.members[0].blocks[0]


def zero(convolution, *channels: int) -> None:
    convolution.weight.data[:, list(channels)] = 0


def with_random_zeros(model, share: float, seed: int):
    chance = generator(seed)
    for w in sparsity.convolutions(model).values():
        w.data[:, torch.rand(w.shape[1], generator=chance) < share] = 0
    return model


def first_block(model) -> Block:
    return model.members[0].blocks[0]


def pass_of(model, images, seed: int = 0):
    with seeded(seed), torch.no_grad():
        return model(images)


def assert_same(model, small, images) -> None:
    """Outputs, with the noise, if any, of one seed."""
    expected = pass_of(model, images)
    scale = max(1.0, float(expected.abs().max()))
    assert expected.isfinite().all() and torch.allclose(pass_of(small, images), expected, rtol=0, atol=1e-5 * scale)
    assert is_noisy(model) == is_noisy(small)


def used(weight) -> set[int]:
    """Input channels with a weight that is not zero, looked at one by one."""
    return {i for i in range(weight.shape[1]) if any(v != 0 for v in weight[:, i].flatten().tolist())}


def count_by_hand(model: Ensemble) -> int:
    """Parameters that the compact network has, out of the zeros of the full one."""
    total = 0
    member: Any
    for member in model.members:
        out = member.stem.weight.shape[0]
        total += 9 * max(1, len(used(member.stem.weight))) * out
        for block in member.blocks:
            inner = sorted(used(block.conv2.weight)) or [0]
            outer = used(block.conv1.weight[inner])
            out = block.conv2.weight.shape[0]
            if block.shortcut is not None:
                outer |= used(block.shortcut.weight)
                total += max(1, len(outer)) * out
            total += max(1, len(outer)) * (2 + 9 * len(inner)) + len(inner) * (2 + 9 * out)
        total += 2 * out + 5 * out + 5
    return total


# --- the whole network


@settings(max_examples=40)
@given(seed=st.integers(0, 999), share=st.sampled_from([0.0, 0.2, 0.5, 0.8, 0.95, 1.0]),
       depth=st.sampled_from([8, 14]), width=st.integers(1, 6), members=st.integers(1, 3), channels=st.integers(1, 3),
       noise=st.sampled_from([0.0, 0.1]), layout=st.sampled_from(LAYOUTS), layout_of_images=st.sampled_from(LAYOUTS))
def test_random_zeros(seed, share, depth, width, members, channels, noise, layout, layout_of_images):
    model = built(channels, depth=depth, width=width, members=members, noise=noise).to(memory_format=layout)
    with_random_zeros(frozen(model, seed), share, seed)
    small = compact(model)
    assert sparsity.parameters(small) == count_by_hand(model)
    images = torch.rand(3, channels, 8, 8, generator=generator(seed)).contiguous(memory_format=layout_of_images)
    with noise_off(model), noise_off(small):
        assert_same(model, small, images)
    if layout == torch.channels_last or layout == layout_of_images:  # else a single channel loses its layout
        assert_same(model, small, images)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("layout_of_images", LAYOUTS, ids=str)
def test_noise_in_every_layout(layout, layout_of_images):
    model = with_random_zeros(built(3, noise=0.1, width=8).to(memory_format=layout), 0.4, 0)
    small, images = compact(model), torch.rand(3, 3, 8, 8).contiguous(memory_format=layout_of_images)
    assert all(w.is_contiguous(memory_format=layout) for w in sparsity.convolutions(small).values())
    assert all(m.num_features > 1 for m in small.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert not torch.allclose(pass_of(model, images), pass_of(model, images, seed=1), atol=1e-2)
    assert_same(model, small, images)


def test_without_zeros_nothing_changes():
    model = built(members=2, noise=0.1)
    small = compact(model)
    assert not any(isinstance(m, Pick) for m in small.modules())
    before, after = model.state_dict(), small.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(t, after[name]) for name, t in before.items())


def test_what_is_not_removed():
    """Zeros here and there, output channels, and weights that are merely small."""
    model = built()
    for w in sparsity.convolutions(model).values():
        w.data[0] = 0
        w.data[:, :, :2, :2] = 0 if w.shape[-1] == 3 else 1e-40
    assert sparsity.parameters(compact(model)) == sparsity.parameters(model)


@pytest.mark.parametrize("training", [False, True])
def test_the_network_itself_is_left_alone(training):
    model = with_random_zeros(built(noise=0.1), 0.5, 0).train(training)
    model.members[0].stem.requires_grad_(True)
    before, chance = deepcopy(model.state_dict()), torch.get_rng_state()
    small = compact(model)
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(m.training == training for m in small.modules() if not isinstance(m, Pick | torch.nn.Sequential))
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    for t in small.state_dict().values():
        t.zero_()
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(t, after[name]) for name, t in before.items())


def test_training_goes_on_alike():
    """Statistics of batches, and gradients with respect to images and to the weights that are left."""
    model = with_random_zeros(built(), 0.5, 0).train().requires_grad_(True)
    small = compact(model)
    images = torch.rand(6, 2, 8, 8, generator=generator(0))
    gradients = []
    for net in (model, small):
        x = images.clone().requires_grad_(True)
        net(x).square().sum().backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients, atol=1e-5 * float(gradients[0].abs().max())) and gradients[0].abs().max() > 1e-3
    wide, narrow = first_block(model), first_block(small)
    inner = sorted(used(wide.conv2.weight))
    assert 0 < len(inner) < 4
    assert torch.allclose(narrow.norm2.running_mean, wide.norm2.running_mean[inner], atol=1e-5)
    assert torch.allclose(narrow.conv2.weight.grad, wide.conv2.weight.grad[:, inner], rtol=1e-3, atol=1e-4)


def test_weights_are_saved_and_loaded(tmp_path):
    model = with_random_zeros(built(members=2), 0.5, 0)
    small, other = compact(model), compact(model)
    files.save_tensors(tmp_path / "small", small.state_dict())
    for t in other.state_dict().values():
        t.zero_()
    weights, _ = files.load_tensors(tmp_path / "small")
    other.load_state_dict(weights)
    assert_same(model, other, torch.rand(3, 2, 8, 8))


def test_layers_say_what_they_are():
    small = compact(with_random_zeros(built(3, width=6), 0.5, 0))
    for m in small.modules():
        if isinstance(m, torch.nn.Conv2d):
            assert m.weight.shape[:2] == (m.out_channels, m.in_channels)
        if isinstance(m, torch.nn.BatchNorm2d):
            assert m.weight.shape == m.bias.shape == m.running_mean.shape == m.running_var.shape == (m.num_features,)


# --- one block, by hand


def test_an_inner_channel_goes_with_what_makes_it():
    model, wide = block_of()
    zero(wide.conv2, 1)
    narrow = first_block(compact(model))
    left = [0, 2, 3]
    assert torch.equal(narrow.conv1.weight, wide.conv1.weight[left])
    assert torch.equal(narrow.conv2.weight, wide.conv2.weight[:, left])
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(narrow.norm2, name), getattr(wide.norm2, name)[left])
        assert torch.equal(getattr(narrow.norm1, name), getattr(wide.norm1, name))


def test_a_channel_of_the_stream_is_not_read():
    model, wide = block_of()
    zero(wide.conv1, 0, 2)
    narrow = first_block(compact(model))
    pick, norm = narrow.norm1
    assert pick.channels.tolist() == [1, 3] and "2 channels" in repr(pick)
    assert torch.equal(narrow.conv1.weight, wide.conv1.weight[:, [1, 3]])
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(norm, name), getattr(wide.norm1, name)[[1, 3]])
    x = torch.randn(3, 4, 8, 8)
    assert torch.allclose(narrow(x), wide(x), atol=1e-5)
    assert torch.allclose(narrow(x) - x, wide(x) - x, atol=1e-5)  # the whole stream passes by


@pytest.mark.parametrize(("first", "shortcut", "read"), [
    ((0, 1), (1, 2), [0, 2, 3]),
    ((0, 1), (), [0, 1, 2, 3]),
    ((), (0, 1), [0, 1, 2, 3]),
    ((0, 1, 2, 3), (0, 1), [2, 3]),
    ((1, 2), (0, 1, 2, 3), [0, 3]),
    ((0, 1, 2, 3), (0, 1, 2, 3), [0]),
], ids=str)
def test_first_convolution_and_shortcut_read_the_union(first, shortcut, read):
    model, wide = block_of(out=6, stride=2)
    zero(wide.conv1, *first)
    zero(wide.shortcut, *shortcut)
    narrow = first_block(compact(model))
    assert isinstance(narrow.norm1, torch.nn.Sequential) == (len(read) < 4)
    assert torch.equal(narrow.conv1.weight, wide.conv1.weight[:, read])
    assert torch.equal(narrow.shortcut.weight, wide.shortcut.weight[:, read])
    x = torch.randn(3, 4, 8, 8)
    assert torch.allclose(narrow(x), wide(x), atol=1e-5)


def test_what_only_removed_outputs_read_is_not_read():
    model, wide = block_of()
    wide.conv1.weight.data[[0, 1, 3], 2] = 0
    zero(wide.conv2, 2)
    narrow = first_block(compact(model))
    assert narrow.norm1[0].channels.tolist() == [0, 1, 3]
    x = torch.randn(3, 4, 8, 8)
    assert torch.allclose(narrow(x), wide(x), atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_branch_whose_first_convolution_is_zero_is_a_constant(stride):
    """Not nothing: the shift of the second norm goes through the second convolution."""
    model, wide = block_of(out=4 * stride, stride=stride)
    zero(wide.conv1, 0, 1, 2, 3)
    narrow = first_block(compact(model))
    assert narrow.conv1.weight.shape == (4 * stride, 4 if stride == 2 else 1, 3, 3)
    x = torch.randn(3, 4, 8, 8)
    assert torch.allclose(narrow(x), wide(x), atol=1e-5)
    by_pass = x if stride == 1 else wide.shortcut(wide.norm1(x).relu())
    assert (wide(x) - by_pass).abs().max() > 0.1


def test_a_branch_whose_second_convolution_is_zero_is_nothing():
    model, wide = block_of()
    zero(wide.conv2, 0, 1, 2, 3)
    narrow = first_block(compact(model))
    assert narrow.conv1.weight.shape == (1, 4, 3, 3) and narrow.conv2.weight.shape == (4, 1, 3, 3)
    x = torch.randn(3, 4, 8, 8)
    assert torch.equal(narrow(x), x)


def test_an_image_channel_is_not_read():
    model = built(3)
    zero(model.members[0].stem, 1)
    pick, stem = compact(model).members[0].stem
    assert pick.channels.tolist() == [0, 2]
    assert torch.equal(stem.weight, model.members[0].stem.weight[:, [0, 2]])
    images = torch.rand(2, 3, 8, 8)
    changed = images.clone()
    changed[:, 1] = torch.nan
    assert torch.equal(compact(model)(changed), compact(model)(images))
    assert_same(model, compact(model), images)


def test_noise_is_scaled_by_the_whole_stream():
    model, wide = block_of(noise=0.5)
    zero(wide.conv1, 0, 1, 2)
    zero(wide.conv2, 3)
    narrow, x = first_block(compact(model)), torch.randn(3, 4, 8, 8) * torch.tensor([9.0, 5.0, 3.0, 1.0]).view(4, 1, 1)
    assert torch.allclose(pass_of(narrow, x), pass_of(wide, x), atol=1e-4)
    assert not torch.allclose(pass_of(narrow, x), pass_of(narrow, x, seed=1), atol=0.1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("channels", [[0], [2], [1, 3], [0, 2, 3]], ids=str)
def test_pick(channels, layout):
    x = torch.randn(3, 4, 5, 6).contiguous(memory_format=layout)
    picked = Pick(torch.tensor(channels))(x)
    assert torch.equal(picked, torch.stack([x[:, i] for i in channels], 1))
    assert picked.stride() == torch.empty(3, len(channels), 5, 6).to(memory_format=layout).stride()


def noisy_net(**changes):
    """With noise on its weights, its scales random, and zero channels."""
    with seeded():
        model = NoisyWeights(model=PreActResNet(depth=8, width=4), **changes).build((2, 8, 8), 5)
        for scale in noise_scales(model).values():
            scale.data.uniform_(0.1, 0.5)
    return with_random_zeros(frozen(model), 0.4, seed=1)


def test_noise_on_weights_keeps_its_spread():
    model = noisy_net()
    small = compact(model)
    assert sparsity.parameters(small) < sparsity.parameters(model)
    for before, after in zip(noisy_layers(model), noisy_layers(small), strict=True):
        spread = before.weight.std() * before.noise.scale  # of the noise on each output channel's weights
        kept = [i for i in range(len(spread)) if any(
            torch.isclose(spread[i], s, rtol=1e-4) for s in after.weight.std() * after.noise.scale)]
        assert len(kept) >= len(after.noise.scale)
    x = torch.rand(3, 2, 8, 8)
    with noise_off(model), noise_off(small):
        assert torch.allclose(model(x), small(x), atol=1e-5)


def noisy_layers(model) -> list:
    return [layer for layer in model.modules() if isinstance(layer, NoisyConv2d)]


@pytest.mark.parametrize("changes", [{"granularity": "layer"}, {"granularity": "element"}, {"masked": False}], ids=str)
def test_noise_that_removal_would_change_is_refused(changes, refusal):
    assert "noise on weights" in refusal(compact, noisy_net(**changes))


def test_gates_are_multiplied_into_the_weights():
    with seeded():
        model = frozen(PreActResNet(depth=8, width=4, gated=True).build((2, 8, 8), 5))
    for gate in gated(model).values():
        gate.log_alpha.data.uniform_(-3, 3)
        gate.log_alpha.data[0] = -4.6  # shut: its filter is zero as it acts
    x = torch.rand(3, 2, 8, 8)
    small = compact(with_random_zeros(model, 0.3, seed=2))
    assert not gated(small) and len(gated(model)) == 3
    assert torch.allclose(model(x), small(x), atol=1e-5)


def test_k_winners_are_refused(refusal):
    model = Winners(model=PreActResNet(depth=8, width=2), share=0.5).build((1, 8, 8), 10)
    assert "k-winners" in refusal(compact, model)
