"""Networks from elsewhere whose weights, products or chance are not where they are looked for: each is counted as it
acts, or refused in a line."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

import sparserobust as sr
from scaffolding import splits_of
from sparserobust import analysis, data, export, foreign, training
from sparserobust.analysis.clever import clever
from sparserobust.analysis.cost import macs
from sparserobust.analysis.layer_table import layers
from sparserobust.analysis.lipschitz import guaranteed_radius, layer_norms
from sparserobust.answers import is_random
from sparserobust.config import Inheritance
from sparserobust.inheritance import inherit
from sparserobust.models import Foreign, NoisyWeights, Winners
from sparserobust.models.compact import plain_copy
from sparserobust.sparsity import channel_sparsity, check_acting, convolutions, weights, zero_weights

SHAPE = (1, 8, 8)


class Calling(nn.Module):
    """What `function(self, x)` says, with these modules and parameters."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def encoder(**options) -> nn.Sequential:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)
    return nn.Sequential(nn.Flatten(1, 2), layer, nn.Flatten(), nn.Linear(64, 10)).eval()


def images(n: int = 4, shape=SHAPE) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------------ weights


HOOKS = [pytest.param(lambda layer: prune.random_unstructured(layer, "weight", 0.5), "weight_orig", id="prune"),
         pytest.param(nn.utils.weight_norm, "weight_g", id="weight_norm", marks=pytest.mark.filterwarnings("ignore"))]


@pytest.mark.parametrize(("hook", "source"), HOOKS)
def test_a_hook_that_attention_never_calls_is_refused_once_it_should_act(hook, source, refusal):
    hooked, plain = encoder(), encoder()
    layer = hooked[1].self_attn.out_proj
    hook(layer)
    counted = zero_weights(hooked)  # what the hook made at once acts
    assert torch.equal(plain_copy(hooked)(images()), hooked(images()))
    assert counted[0] == int((layer.weight == 0).sum()) and counted[1] == zero_weights(plain)[1]
    with torch.no_grad():
        getattr(layer, source).mul_(2)
    for refused in (weights, zero_weights, plain_copy):
        assert "out_proj is never called" in refusal(refused, hooked)


def test_spectral_norm_never_acts_on_what_attention_reads(refusal):
    hooked = encoder()
    nn.utils.spectral_norm(hooked[1].self_attn.out_proj)
    assert "out_proj is never called" in refusal(zero_weights, hooked)


@pytest.mark.parametrize("layer", ["self_attn.out_proj", "linear1"])
def test_weights_behind_masks_act_as_they_were_loaded(layer):
    masked, again = encoder(), encoder()
    for seed, net in enumerate((masked, again)):
        torch.manual_seed(seed)
        prune.random_unstructured(net[1].get_submodule(layer), "weight", 0.5)
    foreign.load(again, masked.state_dict())
    assert torch.equal(again(images()), masked(images())) and zero_weights(again) == zero_weights(masked)


def test_what_attention_reads_is_not_trained_behind_a_hook(builder, refusal):
    run = sr.Run(data=sr.Data(name="digits", train_images=64), model=builder("attentive"), recipe=sr.Recipe(epochs=1),
                 objective=sr.objectives.Natural())
    assert "out_proj is never called" in refusal(training.train, run, data.load(run.data))


def test_a_program_of_torchscript_does_not_tell_its_layers_apart(refusal):
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(144, 10)).eval()
    assert zero_weights(net)[1] == 4 + 36 + 1440
    with pytest.warns(FutureWarning, match="torch.jit"):
        programs = torch.jit.script(net), torch.jit.trace(net, images())
    for program in programs:
        assert "TorchScript" in refusal(zero_weights, program)
        assert "TorchScript" in refusal(analysis.ChannelSparsity(), program, splits_of(images()))


def test_complex_weights_are_refused(refusal):
    net = Calling(lambda net, x: net.last(x.flatten(1).to(torch.complex64)).abs(),
                  last=nn.Linear(64, 10, bias=False, dtype=torch.complex64))
    assert "last.weight is complex" in refusal(weights, net)
    assert "complex" in refusal(layer_norms, net, SHAPE)
    assert sr.sparsity.parameters(net) == 640


def test_parameters_of_a_program_are_counted():
    with pytest.warns(FutureWarning, match="torch.jit"):
        assert sr.sparsity.parameters(torch.jit.script(nn.Linear(64, 10))) == 650


@pytest.mark.parametrize("multiply", [
    lambda net, x: x.flatten(1) @ net.factor, lambda net, x: functional.linear(x.flatten(1), net.factor.T),
    lambda net, x: torch.addmm(torch.zeros(16), x.flatten(1), net.factor)])
def test_a_parameter_that_is_multiplied_by_and_not_counted_is_named(multiply, refusal):
    net = Calling(lambda net, x: net.last(multiply(net, x)), factor=nn.Parameter(torch.randn(64, 16)),
                  last=nn.Linear(16, 10))
    assert "its parameter factor" in refusal(check_acting, net, images())
    assert "its parameter factor" in refusal(analysis.WeightSparsity(), net, splits_of(images()))
    named = Calling(lambda net, x: net.last(x.flatten(1) @ net.weight), weight=nn.Parameter(torch.randn(64, 16)),
                    last=nn.Linear(16, 10))
    check_acting(named, images())
    assert zero_weights(named)[1] == 64 * 16 + 160


@pytest.mark.parametrize("last", [nn.Linear(64, 10), nn.utils.parametrizations.weight_norm(nn.Linear(64, 10))])
def test_a_parameter_that_stands_where_an_image_does_is_none(last):
    """As a learned query, which weights or features multiply."""
    net = Calling(lambda net, x: net.last(x.flatten(1)) + net.last(net.query) + net.query @ x.flatten(1).T @ torch.ones(
        len(x), 10), query=nn.Parameter(torch.randn(1, 64)), last=last)
    check_acting(net, images())
    assert zero_weights(net) == (0, 640)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_few_digits_are_counted_as_those_that_they_are(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.Linear(256, 10)).to(dtype)
    splits = splits_of(images())
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.Linear(256, 10))
    wide.load_state_dict({name: t.float() for name, t in net.state_dict().items()})
    for measurement in (analysis.WeightHistogram(), analysis.LayerSparsity()):
        assert measurement(net, splits) == measurement(wide, splits)


# ---------------------------------------------------------------------------------------- what is done with them


def test_products_of_other_libraries_are_not_counted_as_none(refusal):
    class Packed(nn.Module):
        def forward(self, x):
            return torch.ops.aten.mkldnn_linear(x.flatten(1).to_mkldnn(), torch.ones(10, 64)).to_dense()

    assert "not known here" in refusal(macs, Packed(), SHAPE)


def test_a_relu_on_the_fast_path_of_attention_is_seen(refusal):
    net = nn.Sequential(*encoder()[:2], nn.ReLU(), *encoder()[2:]).eval()
    assert "calls ReLU as a function" in refusal(analysis.Activations(images=4), net, splits_of(images(20)))


def test_units_behind_a_sure_softmax_are_not_called_dead(refusal):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10), nn.Softmax(1))
    assert any(row["dead"] < row["units"] for row in layers(net, images()))
    with torch.no_grad():
        net[3].weight.mul_(1e6)
    assert "nothing moves the answers" in refusal(layers, net, images())


def test_a_radius_is_proved_for_the_images_that_are_asked():
    """A network that turns images into doubles itself."""
    torch.manual_seed(0)
    last = nn.Linear(64, 10, dtype=torch.float64)
    net, single = Calling(lambda net, x: net.last(x.flatten(1).double()), last=last), images()
    labels = net(single).argmax(1)
    expected = guaranteed_radius(nn.Sequential(nn.Flatten(), last), single.double(), labels)
    assert guaranteed_radius(net, single, labels) == pytest.approx(expected, rel=1e-6)


def test_a_slope_that_is_no_number_is_no_score(refusal):
    net = Calling(lambda net, x: net.last((x - x.detach()).flatten(1).sqrt() + x.flatten(1)), last=nn.Linear(64, 10))
    assert "gradient that is not finite" in refusal(clever, net, images(), torch.zeros(4).long(), 0.1)


# ------------------------------------------------------------------------------------------------ noise and winners


@pytest.fixture
def builder(tmp_path, monkeypatch):
    """A file with networks that somebody else wrote."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text("""
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu, self.one, self.two = nn.ReLU(), nn.Linear(64, 16), nn.Linear(16, 10)
    def forward(self, x):
        return self.two(F.relu(self.relu(self.one(x.flatten(1))) - 0.1))

class State(nn.Linear):
    def get_extra_state(self):
        return {"asked": 0}
    def set_extra_state(self, state):
        pass

def normed():
    return nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(64, 10)))

def one_dimensional():
    return nn.Sequential(nn.Flatten(2), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(124, 10))

def solid():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 2, 1), nn.Flatten(),
                         nn.Linear(144, 10))

def attentive():
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    nn.utils.prune.identity(attention.self_attn.out_proj, "weight")
    return nn.Sequential(nn.Flatten(1, 2), attention, nn.Flatten(), nn.Linear(64, 10))

def stateful():
    return nn.Sequential(nn.Flatten(), State(64, 10))
""")
    return lambda name: Foreign(builder=f"nets.py:{name}")


def test_winners_take_every_relu_or_none(builder, refusal):
    assert "calls ReLU as a function" in refusal(Winners(model=builder("Mixed"), share=0.1).build, SHAPE, 10)
    Winners(model=builder("solid"), share=0.1).build(SHAPE, 10)  # which has none


@pytest.mark.parametrize("name", ["normed", "one_dimensional"])
def test_noise_lies_on_all_weights_or_is_refused(builder, name, refusal):
    assert "noise goes on the weights of plain" in refusal(NoisyWeights(model=builder(name)).build, SHAPE, 10)


def test_chance_in_a_function_that_a_layer_holds_is_seen():
    net = encoder(activation=lambda z: functional.dropout(functional.gelu(z), 0.5))
    assert is_random(net, images(20)) and not is_random(encoder(), images(20))


def test_health_without_noise_is_refused_where_noise_stays(refusal):
    net = Calling(lambda net, x: net.last((x + 0.3 * torch.randn_like(x)).flatten(1)), last=nn.Linear(64, 10))
    assert "still answers differently" in refusal(analysis.Health(epsilon=0.1, images=8, noise=False), net,
                                                  splits_of(images(8)))


# ------------------------------------------------------------------------------------------------ training, files


def test_a_convolution_of_three_dimensions_is_trained_stored_and_exported(builder, tmp_path):
    run = sr.Run(data=sr.Data(name="digits", train_images=64), model=builder("solid"), recipe=sr.Recipe(epochs=1),
                 objective=sr.objectives.Natural())
    store = sr.Store(tmp_path / "store")
    assert 0 <= store.measure(run, sr.Accuracy(images=20))["value"] <= 1
    net = store.model(run)
    mixed = training.build(run, data.load(run.data))
    for name, t in mixed.named_parameters():
        if t.dim() == 4:
            t.data = t.data.to(memory_format=torch.channels_last)
        t.data.copy_(dict(net.named_parameters())[name])
    for number, each in enumerate((net, mixed)):
        export.save(each, tmp_path / f"net{number}", {"licence": "MIT"})
        again = export.load(tmp_path / f"net{number}", into=training.build(run, data.load(run.data)))
        torch.testing.assert_close(again(images()), each.eval()(images()))


def test_what_a_network_keeps_beside_tensors_is_no_weight(builder, refusal):
    with_state = foreign.built(builder("stateful").builder)
    foreign.load(with_state, with_state.state_dict())
    assert "1._extra_state" in refusal(builder("stateful").build, SHAPE, 10)


def branches(width: int) -> nn.Module:
    torch.manual_seed(width)
    return Calling(lambda net, x: net.last(net.two(torch.cat([net.a(x), net.b(x)], 1)).relu().flatten(1)),
                   a=nn.Conv2d(1, width, 3), b=nn.Conv2d(1, width, 3), two=nn.Conv2d(2 * width, 4, 3),
                   last=nn.Linear(64, 10)).eval()


def grouped(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.GroupNorm(1, width), nn.Conv2d(width, 4, 3), nn.Flatten(),
                         nn.Linear(64, 10)).eval()


@pytest.mark.parametrize("network", [branches, grouped])
def test_channels_that_would_not_keep_to_themselves_are_seen(network, refusal):
    small, large = network(2), network(4)
    for kappa in (0.0, 0.5):
        settings = Inheritance(kappa=kappa)
        assert "inherited channels see new ones" in refusal(inherit, large, small.state_dict(), settings, images())
    noisy = nn.Sequential(Calling(lambda net, x: x + 0.1 * torch.randn_like(x)), large)
    state, before = {f"1.{name}": t for name, t in small.state_dict().items()}, torch.get_rng_state()
    inherit(noisy, state, Inheritance(), images())  # of which nothing can be said
    assert torch.equal(torch.get_rng_state(), before)
    same = network(2)  # of the same width there are no new ones
    inherit(same, small.state_dict(), Inheritance(), images())
    assert torch.equal(same(images()), small(images()))


class Scaled(nn.Module):
    """A convolution behind a norm that is written by hand, with a number for each channel."""

    def __init__(self, shape=(1, 4, 1, 1)):
        super().__init__()
        self.conv, self.weight = nn.Conv2d(4, 4, 3), nn.Parameter(torch.ones(shape))

    def forward(self, x):
        return (self.conv(x) * self.weight).mean((2, 3))


def test_numbers_for_channels_are_no_convolution():
    """What a channel is scaled by is not a weight that can be pruned away with it."""
    scaled = Scaled()
    assert list(weights(scaled)) == list(convolutions(scaled)) == ["conv.weight"]
    with torch.no_grad():
        scaled.weight[:, :2] = 0
    assert channel_sparsity(scaled) == 0
    own = Scaled((4, 4, 1, 1))  # a kernel, for all that is known
    assert list(convolutions(own)) == ["weight", "conv.weight"]
