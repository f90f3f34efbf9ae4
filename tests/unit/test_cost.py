"""What deployment costs: by formulas written out, and on a network small enough to count."""

import json
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from scaffolding import generator, seeded, splits_of
from sparserobust import analysis, files
from sparserobust.analysis import cost
from sparserobust.analysis.cost import Deployable, FileSize, Kept, macs
from sparserobust.analysis.shapes import shapes_of
from sparserobust.config import Measurement
from sparserobust.data import Splits
from sparserobust.models import Ensemble, PreActResNet, compact, is_noisy
from sparserobust.objectives import TRADES
from sparserobust.sparsity import convolutions, parameters


def built(image_shape=(3, 32, 32), **settings) -> Ensemble:
    with seeded():
        return PreActResNet(**settings).build(image_shape, 10).eval()


@pytest.fixture
def sparse() -> Ensemble:
    """Noisy, two members, on images 3x8x8; every other channel of the second convolutions is zero."""
    model = built((3, 8, 8), depth=8, width=4, members=2, noise=0.1)
    with torch.no_grad():
        for name, w in convolutions(model).items():
            if "conv2" in name:
                w[:, ::2] = 0
    return model


@pytest.fixture
def splits() -> Splits:
    return splits_of(torch.rand(7, 3, 8, 8, generator=generator()))


# --- multiply-accumulates


def by_hand(depth: int, width: int, channels: int, side: int, classes: int) -> int:
    total, n, before = 9 * channels * width * side**2, (depth - 2) // 6, width
    for stage in range(3):
        w, pixels = width * 2**stage, (side // 2**stage) ** 2
        total += 9 * (before * w + (2 * n - 1) * w * w) * pixels + (before * w * pixels if stage else 0)
        before = w
    return total + before * classes


@pytest.mark.parametrize(("depth", "expected"), [(20, 40_813_184), (38, 83_280_512)])
def test_of_the_networks_of_the_papers(depth, expected):
    assert by_hand(depth, 16, 3, 32, 10) == expected
    assert macs(built(depth=depth), (3, 32, 32)) == expected


@pytest.mark.parametrize(("depth", "width", "members", "shape"), [(8, 4, 1, (1, 8, 8)), (14, 3, 3, (3, 16, 16))])
def test_of_ensembles(depth, width, members, shape):
    model = built(shape, depth=depth, width=width, members=members, noise=0.1)
    assert macs(model, shape) == members * by_hand(depth, width, shape[0], shape[1], 10)


def test_of_layers_of_every_shape():
    model = nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), stride=2), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1, groups=3, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(3 * 3 * 4, 5))  # 7x9 becomes 3x4
    assert macs(model, (4, 7, 9)) == (4 * 6 * 6 + 3 * 2) * 12 + 36 * 5


class Functions(nn.Module):
    """Nothing in it is a layer that is called as such: attention, products and convolutions as functions."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.kernel, self.matrix = nn.Parameter(torch.rand(4, 1, 3)), nn.Parameter(torch.rand(5, 4, 6))

    def forward(self, x):  # 6x5x7
        tokens = functional.conv2d(x, self.kernel.view(2, 2, 3, 1).repeat(3, 1, 1, 1), groups=3).flatten(2).mT  # 21x6
        tokens, _ = self.attention(tokens, tokens, tokens)
        tokens = functional.scaled_dot_product_attention(tokens, tokens[:, :7], tokens[:, :7])
        tokens = functional.conv1d(tokens.mT, self.kernel.repeat(6, 2, 1)[:6, :2], groups=3).mT  # 19x6
        return torch.einsum("nld,hod->nhlo", tokens, self.matrix).flatten(1) @ torch.ones(19 * 20, 3)


def test_of_what_is_called_as_a_function():
    attention = 21 * 6 * (4 * 6 + 2 * 21)  # four linear maps, and two products of tokens
    expected = 21 * 6 * 6 + attention + 2 * 21 * 7 * 6 + 19 * 6 * 6 + 19 * 20 * 6 + 19 * 20 * 3
    model = Functions().eval()
    assert macs(model, (6, 5, 7)) == macs(nn.DataParallel(model), (6, 5, 7)) == expected
    assert macs(torch.compile(model), (6, 5, 7)) == expected
    with torch.inference_mode():
        assert macs(model, (6, 5, 7)) == expected


def test_of_layers_that_are_transposed_or_called_twice():
    layer = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2), layer, nn.ReLU(), layer)  # 5x6: 11x13
    assert macs(model, (2, 5, 6)) == 2 * 2 * 9 * 5 * 6 + 2 * 4 * 4 * 9 * 11 * 13


class Calls(nn.Module):
    """A network of a function of flat images (n, 20) and a matrix (20, 3)."""

    def __init__(self, call):
        super().__init__()
        self.call, self.matrix = call, nn.Parameter(torch.rand(20, 3))

    def forward(self, x):
        return self.call(x.flatten(1), self.matrix)


@pytest.mark.parametrize("call", [
    lambda x, w: torch.zeros(len(x), 3).addmm_(x, w), lambda x, w: torch.zeros(3).addmv_(w.t(), x[0])[None],
    lambda x, w: torch.zeros(1, len(x), 3).baddbmm_(x[None], w[None])[0]], ids=["addmm_", "addmv_", "baddbmm_"])
def test_of_products_that_are_added_in_place(call):
    assert macs(Calls(call), (1, 4, 5)) == 60


@pytest.mark.parametrize("call", [
    lambda x, w: torch.addbmm(torch.zeros(len(x), 3), x[None], w[None]),
    lambda x, w: torch._addmm_activation(torch.zeros(3), x, w),
    lambda x, w: torch.from_numpy(x.numpy() @ w.detach().numpy()), lambda x, w: torch.tensor(x.tolist()) @ w])
def test_what_would_not_be_counted_is_refused(call, refusal):
    assert "not known here" in refusal(macs, Calls(call), (1, 4, 5))


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "mobilenet_v2", "vit_b_32", "densenet121"])
def test_of_networks_of_torchvision_as_torch_counts_them(name):
    from torchvision import models

    model, counter = getattr(models, name)().eval(), FlopCounterMode(display=False)
    torch.backends.mha.set_fastpath_enabled(False)  # else attention is one operation, and not counted
    with counter, torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    torch.backends.mha.set_fastpath_enabled(True)
    assert macs(model, (3, 224, 224)) == counter.get_total_flops() / 2
    assert torch.backends.mha.get_fastpath_enabled()


def test_of_a_network_with_products_out_of_sight(refusal):
    class Pairs(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x[:, 0], x[:, 0])

    assert "_trilinear" in refusal(macs, Pairs(nn.Bilinear(4, 4, 2)), (1, 4, 4))
    assert "fft" in refusal(macs, Calls(lambda x, _: torch.fft.fft(x)), (1, 4, 4))


def test_counting_changes_nothing(sparse, refusal):
    sparse.train()
    sparse.members[0].blocks[0].norm1.eval()
    modes, chance = [m.training for m in sparse.modules()], torch.get_rng_state()
    before = {name: t.clone() for name, t in sparse.state_dict().items()}
    assert macs(sparse, (3, 8, 8)) == macs(sparse, (3, 8, 8))
    assert [m.training for m in sparse.modules()] == modes and is_noisy(sparse)
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(t, before[name]) for name, t in sparse.state_dict().items())
    assert "takes no images of shape (2, 8, 8)" in refusal(macs, sparse, (2, 8, 8))  # too few channels
    assert not any(m._forward_hooks for m in sparse.modules())


def no_answer(x):
    return x.nothing


class Two(nn.Module):
    def forward(self, x, y):
        return x + y


class Silent(nn.Module):
    def forward(self, x):
        assert x is None


@pytest.mark.parametrize("broken", [no_answer, Two(), Silent(), nn.Module(), nn.ModuleDict()])
def test_whatever_a_network_raises_is_one_line(broken, refusal):
    assert "takes no images of shape (1, 8, 8)" in refusal(macs, broken, (1, 8, 8))
    assert "takes no images of shape (1, 8, 8)" in refusal(shapes_of, broken, (1, 8, 8))


def test_of_a_function():
    layer = nn.Conv2d(1, 2, 3)
    assert macs(lambda x: layer(x), (1, 8, 8)) == macs(layer, (1, 8, 8)) == 2 * 9 * 36
    assert macs(torch.jit.script(layer), (1, 8, 8)) == 2 * 9 * 36


def test_measured_it_counts_zeros_in_full(sparse, splits):
    assert Measurement.parse({"kind": "macs"})(sparse, splits) == {"value": 2 * by_hand(8, 4, 3, 8, 10)}


# --- the measurement


def test_sizes_by_hand(sparse, splits, tmp_path):
    result = Deployable(repeats=1)(sparse, splits)
    dense = 2 * by_hand(8, 4, 3, 8, 10)
    # half of the inner channels: half of what conv1 and conv2 do, and half of norm2
    halved = sum(9 * (a * b + b * b) * pixels for a, b, pixels in ((4, 4, 64), (4, 8, 16), (8, 16, 4)))
    assert (result["macs"], result["macs_left"]) == (dense, dense - halved)
    assert (result["total"], result["count"], result["value"]) == (dense, dense - halved, (dense - halved) / dense)
    gone = 2 * sum(9 * (a * b + b * b) // 2 + 2 * b // 2 for a, b in ((4, 4), (4, 8), (8, 16)))
    assert (result["parameters"], result["parameters_left"]) == (parameters(sparse), parameters(sparse) - gone)
    for key, model in (("bytes", sparse), ("bytes_left", compact(sparse))):
        files.save_tensors(tmp_path / key, model.state_dict())
        assert result[key] == (tmp_path / key).stat().st_size
    assert result["bytes_left"] < result["bytes"] - 4 * gone  # what norms have besides parameters goes, too
    assert result["largest_difference"] < 1e-5
    assert json.loads(json.dumps(result)) == result


def test_scattered_zeros_save_nothing(splits):
    model = built((3, 8, 8), depth=8, width=4)
    with torch.no_grad():
        for w in convolutions(model).values():
            w[torch.rand(w.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = 0
    result = Deployable(repeats=1)(model, splits)
    assert result["value"] == 1 and result["largest_difference"] == 0
    assert all(result[key] == result[f"{key}_left"] for key in ("macs", "parameters", "bytes"))


def test_a_measurement_leaves_model_and_chance_alone(sparse, splits):
    sparse.train().requires_grad_(True)
    before, chance = {name: t.clone() for name, t in sparse.state_dict().items()}, torch.get_rng_state()
    Deployable(repeats=2)(sparse, splits)
    assert sparse.training and is_noisy(sparse) and all(p.requires_grad for p in sparse.parameters())
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(t, before[name]) for name, t in sparse.state_dict().items())


@pytest.mark.parametrize("images", [1, 3, 20])
def test_the_two_take_turns(sparse, splits, monkeypatch, images):
    seen = []

    def watched(model, **shape):
        small = compact(model, **shape)
        for name, net in (("dense", model), ("compact", small)):
            net.members[0].register_forward_pre_hook(
                lambda _, inputs, name=name: seen.append((name, len(inputs[0]), torch.is_inference_mode_enabled())))
        return small

    monkeypatch.setattr(cost, "compact", watched)
    Deployable(images=images, repeats=4)(sparse, splits)
    rounds = 4 + cost.WARM_UP
    assert seen[:2 * rounds] == [("dense", images, True), ("compact", images, True)] * rounds
    assert seen[2 * rounds:2 * rounds + 2] == [("dense", 7, True), ("compact", 7, True)]  # all there are to compare


def test_time_is_the_median_of_the_timed_passes(monkeypatch):
    class Slow(nn.Module):
        def __init__(self, *seconds):
            super().__init__()
            self.seconds = iter([100.0] * cost.WARM_UP + list(seconds))

        def forward(self, x):
            clock[0] += next(self.seconds)
            return x

    clock = [5.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    assert cost._milliseconds([Slow(1, 60, 4), Slow(30, 32, 1)], torch.zeros(1), 3) == [4000, 30_000]


def test_threads_are_those_in_force(sparse, splits):
    assert Deployable(repeats=1)(sparse, splits)["threads"] == torch.get_num_threads()


@pytest.mark.parametrize(("change", "wrong"), [(1e-6, False), (1e-2, True), (torch.nan, True)], ids=str)
def test_a_wrong_network_is_not_reported(sparse, splits, monkeypatch, change, wrong):
    def spoiled(model, **shape):
        small = compact(model, **shape)
        small.members[1].linear.bias.data[3] += change * model(splits.test.images).abs().max()
        return small

    monkeypatch.setattr(cost, "compact", spoiled)
    if wrong:
        with pytest.raises(RuntimeError, match="compact network is wrong"):
            Deployable(repeats=1)(sparse, splits)
    else:
        assert Deployable(repeats=1)(sparse, splits)["largest_difference"] > 0


def test_a_wrong_compact_network_is_seen_behind_a_number_added_to_all_logits(sparse, splits, monkeypatch):
    for member in sparse.members:
        member.linear.bias.data += 1000

    def spoiled(model, **shape):
        small = compact(model, **shape)
        small.members[1].linear.bias.data[3] += 0.005
        return small

    assert Deployable(repeats=1)(sparse, splits)["largest_difference"] < 0.001
    monkeypatch.setattr(cost, "compact", spoiled)
    with pytest.raises(RuntimeError, match="compact network is wrong"):
        Deployable(repeats=1)(sparse, splits)


def test_a_network_of_another_precision_is_not_deployed(splits, refusal):
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 4)).half().eval()
    assert "takes no float32 images" in refusal(Deployable(), net, splits)


@pytest.mark.parametrize("change", [{"images": 0}, {"repeats": 0}], ids=str)
def test_wrong_settings(refusal, change):
    assert "positive" in refusal(Measurement.parse, {"kind": "deployable"} | change)
    assert analysis.Deployable is Deployable


# --- a step of training


def test_what_is_kept_for_a_backward_pass_is_counted_once_and_without_weights():
    layer = nn.Linear(5, 7, bias=False)
    watch = Kept(layer)
    with torch.autograd.graph.saved_tensors_hooks(watch.pack, watch.unpack):
        x = torch.rand(3, 5)  # no gradient, kept for that of the weight
        y = layer(x).exp()  # kept by exp, and twice by the square
        loss = (y * y).sum()
        assert watch.bytes == watch.peak == 4 * (3 * 5 + 3 * 7)
        loss.backward()
    del loss, y
    assert watch.bytes == 0 and watch.peak == 4 * (3 * 5 + 3 * 7)
    watch = Kept(layer)
    with torch.autograd.graph.saved_tensors_hooks(watch.pack, watch.unpack):
        y = layer(x.requires_grad_())  # keeps its weight for the gradient of x, too
    assert watch.bytes == 4 * 3 * 5 and y.requires_grad


def test_a_step_with_more_to_do_costs_more(tiny_run):
    small = tiny_run(objective=TRADES(epsilon=0.1, step_size=0.05, steps=1))
    large = tiny_run(objective=TRADES(epsilon=0.1, step_size=0.05, steps=1), model=PreActResNet(depth=14, width=8))
    found = cost.step_costs({"small": small, "large": large}, (1, 8, 8), 10, repeats=3)
    assert list(found) == ["small", "large"]
    assert found["large"]["kept_bytes"] > 2 * found["small"]["kept_bytes"] > 0
    assert found["large"]["seconds"] > found["small"]["seconds"] > 0


def test_step_costs_take_turns_and_the_least(tiny_run, monkeypatch):
    seconds = {0: [9.0, 1.0, 5.0, 3.0, 4.0], 1: [9.0, 1.0, 8.0, 7.0, 6.0]}  # of each step, the first ones to warm up
    now, seen = [0.0], []

    def step(job, *_):
        seen.append(job.run.seed)
        now[0] += seconds[job.run.seed][seen.count(job.run.seed) - 1]
        return torch.zeros(())

    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(cost.TrainingState, "step", step)
    monkeypatch.setattr(cost, "WARM_UP", 2)
    found = cost.step_costs({"a": tiny_run(seed=0), "b": tiny_run(seed=1)}, (1, 8, 8), 10, repeats=3)
    assert seen == [0, 1] * 5
    assert {name: known["seconds"] for name, known in found.items()} == {"a": 3.0, "b": 6.0}


# --- a packed file


def test_scattered_zeros_and_removed_channels_save_bytes(splits):
    dense = built((3, 8, 8), depth=8, width=8)
    scattered, channels = deepcopy(dense), deepcopy(dense)
    with torch.no_grad():
        for w in convolutions(scattered).values():
            w[torch.rand(w.shape, generator=torch.Generator().manual_seed(0)) < 0.9] = 0
        for name, w in convolutions(channels).items():
            if "conv2" in name:
                w[:, ::2] = 0
    whole, thin, small = (analysis.FileSize()(model, splits) for model in (dense, scattered, channels))
    assert thin["parts"]["unpacked"] == whole["parts"]["unpacked"] > small["parts"]["unpacked"]
    assert thin["value"] < 0.35 * whole["value"] and small["value"] < whole["value"]
    assert small["parts"]["unpacked"] == Deployable(images=1, repeats=1)(channels, splits)["bytes_left"]


def test_a_size_is_not_told_of_weights_that_are_no_tensors(splits, refusal):
    class Packed(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1))

        def get_extra_state(self):
            return b"weights"

        def set_extra_state(self, state):
            pass

    assert "no tensor" in refusal(FileSize(), Packed(splits.train.images[0].numel(), 10), splits)
    assert "no gradient" in refusal(Deployable(repeats=1), nn.Flatten(), splits)
