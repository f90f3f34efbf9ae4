"""Networks and checkpoints from outside: whatever form the weights come in, the network computes what it did."""

import argparse
import os
import re
import subprocess
import sys
import threading
import warnings
from collections import OrderedDict, deque
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from scaffolding import seeded
from sparserobust import foreign, outside
from sparserobust.models import PreActResNet
from sparserobust.models.normalise import Normalise

NET = """\
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4, classes=3):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Linear(width, classes)

    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))

def build(width=4):
    return Net(width)

def broken():
    raise ValueError("two\\nlines")

ready, words = Net(), {"Net": Net}
"""
IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with `my_net.py` in it; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "my_net.py").write_text(NET)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def trained(here):
    """A network unlike a fresh one, in eval mode."""
    net = foreign.network("my_net.py:build")
    for t in net.state_dict().values():
        if t.is_floating_point():
            nn.init.uniform_(t, 0.5, 1.5)
    return net


def logits(net) -> torch.Tensor:
    with torch.no_grad():
        return net(IMAGES)


def saved(tensors, path="weights.pt") -> str:
    torch.save(tensors, path)
    return path


# ------------------------------------------------------------------------------------------------- files


def test_a_checkpoint_of_a_wrapped_network_in_four_lines(trained):
    saved({"state_dict": nn.DataParallel(trained).state_dict(), "epoch": 7})
    net = foreign.network("my_net.py:build", weights="weights.pt")
    assert torch.equal(logits(net), logits(trained)) and not net.training


def prefixed(prefix):
    return lambda weights: {f"{prefix}{name}": t for name, t in weights.items()}


INSIDE = {name: lambda weights, name=name: {name: weights, "epoch": 3} for name in (
    "state_dict", "model", "net", "model_state_dict", "params_ema", "anything")}
WRITTEN = INSIDE | {
    "nested": lambda weights: {"checkpoint": {"state_dict": OrderedDict(weights)}, "best": torch.tensor(0.9)},
    "with an optimiser": lambda weights: {"model": weights, "optimizer": {
        "state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}},
    "with numbers beside": lambda weights: weights | {"epoch": 3},
    "without counters": lambda weights: {name: t for name, t in weights.items() if "num_batches" not in name},
    "half": lambda weights: {name: t.half() if t.is_floating_point() else t for name, t in weights.items()},
    "half, counters too": lambda weights: {name: t.half() for name, t in weights.items()},
    "bfloat16": lambda weights: {name: t.bfloat16() if t.is_floating_point() else t for name, t in weights.items()},
    "double": lambda weights: {name: t.double() if t.is_floating_point() else t for name, t in weights.items()},
} | {prefix: prefixed(prefix) for prefix in (
    "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module.model.", "student.network.")} | {
    "in the middle": lambda weights: {name.replace(".", ".module.", 1): t for name, t in weights.items()},
}


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("into", [nn.Identity(), nn.DataParallel, torch.compile], ids=["plain", "parallel", "compiled"])
def test_however_weights_are_written_the_network_computes_the_same(written, into, trained):
    with torch.no_grad():
        for t in trained.state_dict().values():
            t.copy_(t.bfloat16().half())  # so that half precision loses nothing
    weights = foreign.state(saved(written(dict(trained.state_dict()))))
    assert {t.dtype for t in weights.values()} <= {torch.float32, torch.int64}
    net = into(foreign.built("my_net.py:build"))
    foreign.load(net, weights)
    inner = getattr(net, "module", getattr(net, "_orig_mod", net))
    assert torch.equal(logits(inner.eval()), logits(trained))


def test_safetensors_are_told_by_content(trained):
    save_file(trained.state_dict(), "weights.bin", {"format": "pt"})
    assert torch.equal(logits(foreign.network("my_net.py:Net", "weights.bin")), logits(trained))


def test_a_network_that_holds_another_takes_the_weights_of_the_inner_one(trained):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.resnet = foreign.built("my_net.py:build")

    net = foreign.network(Outer, saved(trained.state_dict()))
    assert torch.equal(logits(net.resnet), logits(trained))


def test_names_that_look_like_a_wrapper_are_kept_where_the_network_has_them(here):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.net = nn.Linear(2, 2), nn.Linear(2, 2)

    one = Two()
    again = foreign.network(Two, saved(prefixed("module.")(one.state_dict())))
    assert torch.equal(again.net.weight, one.net.weight) and torch.equal(again.model.weight, one.model.weight)


def test_of_several_weights_one_is_named(trained, refusal):
    other = {name: t + 1 for name, t in trained.state_dict().items()}
    saved({"params": trained.state_dict(), "ema": {"params": other}})
    assert refusal(foreign.state, "weights.pt") == (
        "weights.pt has weights under params, ema.params: say which, as in weights.pt:params")
    assert torch.equal(foreign.state("weights.pt:ema.params")["conv.bias"], other["conv.bias"])
    assert "no weights under 'emma'; it has params, ema.params" in refusal(foreign.state, "weights.pt:emma")
    both = prefixed("student.")(trained.state_dict()) | prefixed("teacher.")(other)
    assert "left over: teacher" in refusal(foreign.network, "my_net.py:build", saved(both))
    assert torch.equal(foreign.state("weights.pt:teacher")["conv.bias"], other["conv.bias"])


def test_tied_weights_may_be_stored_under_one_name(here):
    def tied():
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        net[1].weight = net[0].weight
        return net

    weights = tied().state_dict()
    kept = weights.pop("1.weight")
    assert torch.equal(foreign.network(tied, saved(weights))[1].weight, kept)


@pytest.mark.parametrize("change", [
    lambda w: w | {"conv.weight": torch.zeros(9, 1, 3, 3)}, lambda w: w | {"conv.weight": w["conv.weight"].int()},
    lambda w: {k: t for k, t in w.items() if k != "conv.bias"}, lambda w: w | {"head.bias": torch.zeros(2)},
    lambda w: {f"{k}s": t for k, t in w.items()}, lambda w: w | {"norm.running_mean": torch.zeros(2)},
], ids=["shape", "type", "missing", "left over", "all", "buffer"])
def test_weights_that_do_not_fit_are_told_by_name_and_nothing_is_loaded(change, trained, refusal):
    net = foreign.built("my_net.py:build")
    before = deepcopy(net.state_dict())
    saved(change(dict(trained.state_dict())))
    message = refusal(foreign.load, net, foreign.state("weights.pt"))
    assert message.startswith("the weights do not fit the network: ") and len(message) < 400
    assert re.search(r"conv\.|head\.|norm\.", message)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_untied_weights_do_not_go_into_a_tied_network(here, refusal):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    weights = {key: t.clone() for key, t in net.state_dict().items()}
    net[1].weight = net[0].weight
    before = net[0].weight.clone()
    assert "0.weight and 1.weight are one tensor in the network" in refusal(foreign.load, net, weights)
    assert torch.equal(net[0].weight, before)
    foreign.load(net, weights | {"1.weight": weights["0.weight"].clone()})
    assert torch.equal(net[1].weight, weights["0.weight"])


@pytest.mark.parametrize(("own", "given", "told"), [
    (torch.arange(4), [0.9, 1.9, 2.9, 2.2], "2.9 becomes 2"), (torch.zeros(2, dtype=torch.half), [1.0, 1e6], "inf"),
    (torch.zeros(2, dtype=torch.bool), [0.0, 2.0], "2 becomes"), (torch.zeros(2, dtype=torch.uint8), [1, 300], "300"),
    (torch.arange(4), [0.0, 1.0, 2.0, 4.0], ""), (torch.zeros(2, dtype=torch.half), [0.1, 1e-9], ""),
    (torch.zeros(2), [torch.nan, torch.inf], ""), (torch.zeros(2, dtype=torch.bfloat16), [0.1, 1e30], "")])
def test_numbers_that_the_network_cannot_hold_are_told(own, given, told, refusal):
    net = nn.Linear(2, 2)
    net.register_buffer("own", own.clone())
    weights = net.state_dict() | {"own": torch.tensor(given)}
    if told:
        assert told in refusal(foreign.load, net, weights) and torch.equal(net.own, own)
    else:
        foreign.load(net, weights)
        assert torch.allclose(net.own.double(), torch.tensor(given).double(), rtol=1e-2, equal_nan=True)


def test_weights_without_numbers_are_told(here, refusal):
    weights = nn.Linear(2, 2).state_dict()
    arrays = {key: t.numpy() for key, t in weights.items()}
    assert "'weight' is of type ndarray" in refusal(foreign.load, nn.Linear(2, 2), arrays)
    assert "of type list" in refusal(foreign.load, nn.Linear(2, 2), list(weights.items()))
    weights["weight"] = weights["weight"].to("meta")
    assert "'weight' holds no numbers" in refusal(foreign.load, nn.Linear(2, 2), weights)
    assert "no numbers for 'weight'" in refusal(foreign.state, saved(weights))


def test_another_shape_or_type_is_told_beside_the_networks(trained, refusal):
    saved(trained.state_dict() | {"conv.bias": torch.zeros(9), "conv.weight": torch.zeros(4, 1, 3, 3).byte()})
    assert refusal(foreign.network, "my_net.py:build", "weights.pt") == (
        "the weights do not fit the network: of another shape or type: conv.weight (4, 1, 3, 3) uint8, not "
        "(4, 1, 3, 3), conv.bias (9,), not (4,)")


class Odd:
    pass


@pytest.mark.parametrize(("write", "told"), [
    (lambda: b"", "damaged"), (lambda: b"PK\3\4 and then nothing", "damaged"), (lambda: b"\x80\x02}q\0", "damaged"),
    (lambda: b"x" * 5000, "damaged"), (lambda: b"\xff" * 8 + b"{}", "cannot be read"),
    (lambda: {"state_dict": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
    (lambda: Odd(), "Odd"), (lambda: nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    (lambda: {"epoch": 3}, "holds no weights"), (lambda: torch.ones(3), "holds no weights"),
    (lambda: {}, "holds no weights"), (lambda: [torch.ones(2)], "holds no weights"),
], ids=range(12))
def test_files_that_hold_no_weights_are_told_in_one_line(write, told, here, refusal):
    content = write()
    if isinstance(content, bytes):
        (here / "weights.pt").write_bytes(content)
    else:
        saved(content)
    message = refusal(foreign.state, "weights.pt")
    assert told in message and "weights.pt" in message and len(message) < 400


def test_a_truncated_file_a_program_a_folder_and_none_are_told_in_one_line(trained, here, refusal):
    saved(trained.state_dict())
    whole = (here / "weights.pt").read_bytes()
    for part in (0.3, 0.9, 0.99):
        (here / "weights.pt").write_bytes(whole[:int(part * len(whole))])
        assert "damaged" in refusal(foreign.state, "weights.pt")
    save_file(trained.state_dict(), "whole.safetensors")
    (here / "cut.safetensors").write_bytes((here / "whole.safetensors").read_bytes()[:-10])
    assert "cannot be read" in refusal(foreign.state, "cut.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save("program.pt")
    assert "a TorchScript program" in refusal(foreign.state, "program.pt")
    assert "is no file" in refusal(foreign.state, ".")
    assert "'gone.pt' is not here" in refusal(foreign.state, "gone.pt")


# ------------------------------------------------------------------------- weights in another form


def everywhere(apply, net):
    for layer in (net[0], net[1], net[2]):
        apply(layer)
    return net


def layers() -> nn.Sequential:
    """A convolution, a transposed one with as many inputs as outputs, a linear layer; for images of one channel."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Linear(8, 3))


def masked(layer):
    prune.l1_unstructured(layer, "weight", 0.5)


def warmed(net):
    with torch.no_grad():
        for _ in range(30):
            net.train()(IMAGES)  # power iterations
    return net.eval()


def quiet(apply):
    def applied(layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            apply(layer)

    return applied


APPLIED = {"masks": masked, "old weight norm": quiet(nn.utils.weight_norm), "new": parametrizations.weight_norm,
           "of all": quiet(lambda layer: nn.utils.weight_norm(layer, dim=None)),  # type: ignore[arg-type]  # it may be
           "of inputs": lambda layer: parametrizations.weight_norm(layer, dim=1),
           "old spectral norm": nn.utils.spectral_norm, "new spectral": parametrizations.spectral_norm}


@pytest.mark.parametrize("form", APPLIED.values(), ids=APPLIED)
def test_masks_and_norms_of_weights_are_multiplied_in_where_the_network_has_none(form, here):
    net = warmed(everywhere(form, layers()))
    plain = foreign.network(layers, saved(net.state_dict()))
    torch.testing.assert_close(logits(plain), logits(net))
    assert not any(parametrize.is_parametrized(layer) for layer in plain)
    if form is masked:
        assert float((plain[0].weight == 0).float().mean()) == 0.5


@pytest.mark.parametrize("form", list(APPLIED.values())[:5], ids=list(APPLIED)[:5])
def test_plain_weights_go_into_a_network_with_masks_or_norms(form, here):
    plain = layers().eval()
    with torch.no_grad():
        plain[0].weight[0] = 0  # a filter of length 0
    net = foreign.network(everywhere(form, layers()), saved(plain.state_dict()))
    torch.testing.assert_close(logits(net), logits(plain))


def test_a_norm_of_the_old_kind_goes_into_one_of_the_new(here):
    old = everywhere(APPLIED["old weight norm"], layers()).eval()
    new = foreign.network(everywhere(parametrizations.weight_norm, layers()), saved(old.state_dict()))
    torch.testing.assert_close(logits(new), logits(old))
    old = warmed(everywhere(nn.utils.spectral_norm, layers()))
    new = foreign.network(everywhere(parametrizations.spectral_norm, layers()), saved(old.state_dict()))
    torch.testing.assert_close(logits(new), logits(old))


def test_spectral_norm_takes_plain_weights_only_of_norm_one(here, refusal):
    plain = layers()
    saved(plain.state_dict())
    assert "0.weight: the network divides it by its spectral norm" in refusal(
        foreign.network, everywhere(parametrizations.spectral_norm, layers()), "weights.pt")
    for layer in plain:
        matrix = layer.weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight
        layer.weight.data /= torch.linalg.matrix_norm(matrix.flatten(1), 2)
    net = foreign.network(everywhere(parametrizations.spectral_norm, layers()), saved(plain.state_dict()))
    torch.testing.assert_close(logits(net), logits(plain), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------ normalisation


def test_images_are_normalised_in_units_of_zero_to_one(trained):
    net = foreign.network(deepcopy(trained), mean=(0.4,), std=(0.2,))
    torch.testing.assert_close(logits(net), trained((IMAGES - 0.4) / 0.2))


@pytest.mark.parametrize("names", [("normalize.mean", "normalize.std", "model."), ("mu", "sigma", ""),
                                   ("module.0.mean", "module.0.std", "module.1.")])
def test_numbers_that_normalise_are_never_dropped_in_silence(names, trained, refusal):
    mean, std, prefix = names
    saved(prefixed(prefix)(trained.state_dict()) | {mean: torch.tensor([0.4]).view(1, 1, 1, 1),
                                                    std: torch.tensor([0.2])})
    message = refusal(foreign.network, "my_net.py:build", "weights.pt")
    assert f"{mean} [0.4]" in message and "give mean and std" in message
    assert "now [0.5] and [0.2]" in refusal(foreign.network, "my_net.py:build", "weights.pt", (0.5,), (0.2,))
    net = foreign.network("my_net.py:build", "weights.pt", (0.4,), (0.2,))
    torch.testing.assert_close(logits(net), trained((IMAGES - 0.4) / 0.2))
    saved(prefixed(prefix)(trained.state_dict()) | {mean: torch.tensor([0.4], dtype=torch.double),
                                                    std: torch.tensor([0.2], dtype=torch.double)})
    assert foreign.network("my_net.py:build", "weights.pt", (0.4,), (0.2,)) is not None


def test_a_network_that_normalises_by_itself_keeps_its_numbers_and_is_not_given_others(trained, refusal):
    def wrapped():
        return nn.Sequential(OrderedDict(normalize=Normalise([102.0], [51.0]), model=foreign.built("my_net.py:Net")))

    saved(trained.state_dict())
    torch.testing.assert_close(logits(foreign.network(wrapped, "weights.pt")), trained((IMAGES - 0.4) / 0.2))
    assert "(normalize.mean): leave mean and std out" in refusal(foreign.network, wrapped, None, (0.4,), (0.2,))
    whole = foreign.network(wrapped, "weights.pt").state_dict() | {"normalize.mean": torch.full((1, 1, 1), 0.3)}
    torch.testing.assert_close(logits(foreign.network(wrapped, saved(whole))), trained((IMAGES - 0.3) / 0.2))


class Scaled(nn.Module):
    """A network with numbers that are called as those by which images are normalised."""

    def __init__(self, place, kind, mean, std):
        super().__init__()
        self.norm, self.head = nn.Module(), nn.Linear(64, 10)
        holder = self.norm if "inner" in place else self
        for name, value in (("mean", mean), ("std", std)):
            if value is not None:
                t = torch.full((3,), value)
                setattr(holder, name, nn.Parameter(t) if kind is nn.Parameter else nn.Buffer(t))
        if place == "inner, learnt":
            holder.weight = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(("place", "kind", "mean", "std", "told"), [
    ("inner", nn.Parameter, 0.4, 0.2, "norm.mean, norm.std"), ("outer", nn.Parameter, 0.4, 0.2, "mean, std"),
    ("inner", torch.Tensor, 0.0, 1.0, "norm.mean, norm.std"), ("inner, learnt", torch.Tensor, 0.4, 0.2, "norm.mean"),
    ("outer", torch.Tensor, 0.4, None, "mean"), ("inner", torch.Tensor, 0.4, 0.2, None),
    ("inner", torch.Tensor, 0.0, 0.2, None), ("outer", torch.Tensor, 0.4, 0.2, None)], ids=str)
def test_only_constants_by_which_images_are_normalised_may_be_missing(place, kind, mean, std, told, here, refusal):
    def build():
        return Scaled(place, kind, mean, std)

    saved({name: t for name, t in build().state_dict().items() if not name.endswith(("mean", "std"))})
    if told is None:
        foreign.network(build, "weights.pt")
    else:
        assert f"missing: {told}" in refusal(foreign.network, build, "weights.pt")


@pytest.mark.parametrize("given", [{"mean": (0.4,)}, {"mean": (0.4, 0.4), "std": (0.2,)},
                                   {"mean": (0.4,), "std": (0.0,)}])
def test_mean_and_std_go_together(given, here, refusal):
    assert "mean and std go together" in refusal(foreign.network, "my_net.py:build", **given)


# ------------------------------------------------------------------------------------------------- builders


@pytest.mark.parametrize(("builder", "width"), [
    ("my_net.py:build", 4), ("my_net.py:build()", 4), ("my_net.py:build(width=6)", 6), ("my_net.py:build( 6 )", 6),
    ("./my_net.py:Net(5, classes = 3)", 5), ("my_net.py:ready", 4), (lambda: nn.Sequential(nn.Conv2d(1, 7, 3)), 7)])
def test_builders_are_named_with_their_arguments(builder, width, here):
    net = foreign.network(builder)
    assert next(net.parameters()).shape[0] == width and not net.training
    assert foreign.network(builder) is not net


def test_a_builder_in_a_package_is_named_by_its_module():
    net = foreign.network("torchvision.models:squeezenet1_1(num_classes=7)")
    assert net(torch.rand(1, 3, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize(("builder", "told"), [
    ("my_net.py", "names no code"), ("my_net.py:", "names no code"),
    ("my_net.py:biuld", "my_net.py has no 'biuld'; it has torch, nn, Net, build, broken"),
    ("gone.py:build", "'gone.py' is not here"), ("my_net:build", "named with its ending, as in my_file.py:name"),
    ("no.such.module:build", "there is no module 'no.such.module'"),
    ("my_net.py:broken", "my_net.py:broken raised ValueError: 'two\\nlines'"),
    ("my_net.py:build(width=-1)", "raised"), ("my_net.py:build(depth=2)", "raised TypeError"),
    ("my_net.py:words", "cannot be called"), ("torch:ones(3)", "should give a torch.nn.Module, not something of type "
                                                               "Tensor"),
    ("my_net.py:build(width=__import__('os'))", "plain values"), ("my_net.py:build(**{'width': 4})", "plain values"),
    ("my_net.py:build(width=", "names no code"), ("wrong.py:build", "wrong.py"), ("leaves.py:build", "SystemExit"),
    ("other.txt:build", "named with its ending"), ("", "empty"), (3, "type int"), (None, "type NoneType"),
    (dict, "should give a torch.nn.Module"),
], ids=range(21))
def test_builders_that_give_no_network_are_told_in_one_line(builder, told, here, refusal):
    (here / "wrong.py").write_text("def build(:")
    (here / "leaves.py").write_text("import sys\nsys.exit(2)")
    (here / "other.txt").write_text(NET)
    message = refusal(foreign.network, builder)
    assert told in message and len(message) < 500


def test_a_file_of_code_finds_what_lies_beside_it_and_is_read_anew_when_that_changes(here):
    (here / "my_layers.py").write_text("WIDTH = 5\n")
    (here / "my_whole.py").write_text("from my_net import Net\nimport my_layers\n\ndef build():\n"
                                      "    import my_layers as late\n    return Net(my_layers.WIDTH + late.WIDTH)\n")
    first = outside.pinned_code("my_whole.py:build")
    assert foreign.network(first).conv.out_channels == 10
    (here / "my_layers.py").write_text("WIDTH = 6\n")
    second = outside.pinned_code("my_whole.py:build")
    assert first != second and foreign.network(second).conv.out_channels == 12


# --------------------------------------------------------------------------------------------- fingerprints


def test_equal_networks_have_equal_fingerprints_in_every_mode(trained, here):
    name = foreign.fingerprint(trained)
    assert re.fullmatch("[0-9a-f]{16}", name)
    other = foreign.network("my_net.py:build", saved(trained.state_dict()))
    other.train()
    logits(deepcopy(other))
    assert foreign.fingerprint(other) == foreign.fingerprint(deepcopy(other)) == name
    assert foreign.fingerprint(nn.DataParallel(other)) == foreign.fingerprint(torch.compile(other)) == name
    other.eval()(IMAGES).sum().backward()
    assert foreign.fingerprint(other) == name
    (here / "my_net.py").write_text("# the same\n" + NET)
    assert foreign.fingerprint(foreign.network("my_net.py:build", "weights.pt")) == name


def scaled(scale):
    return lambda layer, given, output: scale * output


CHANGES = {
    "weight": lambda net: net.conv.weight.data[0, 0, 0, 0].add_(1e-3),
    "buffer": lambda net: net.norm.running_mean[0].add_(1e-3),
    "a new buffer": lambda net: net.register_buffer("extra", torch.ones(1), persistent=False),
    "precision": lambda net: net.double(),
    "a setting of a layer": lambda net: setattr(net.norm, "eps", 1e-3),
    "a number in forward": lambda net: setattr(net, "temperature", 2.0),
    "a tensor that is no buffer": lambda net: setattr(net, "offset", [torch.ones(2)]),
    "a layer": lambda net: net.add_module("more", nn.Identity()),
    "another layer of the same tensors": lambda net: setattr(net, "norm", nn.BatchNorm3d(4)),
    "a hook": lambda net: net.conv.register_forward_hook(scaled(2.0)),
    "a hook's constant": lambda net: net.conv.register_forward_hook(scaled(3.0)),
    "a forward of its own": lambda net: setattr(net, "forward", lambda x: x),
}


def test_whatever_changes_a_network_changes_its_fingerprint(trained):
    names = [foreign.fingerprint(trained)]
    for change in CHANGES.values():
        net = deepcopy(trained)
        change(net)
        names.append(foreign.fingerprint(net))
    assert len(set(names)) == len(names)


def test_another_formula_under_the_same_name_is_another_network(here):
    names, seen = [], []
    for formula in ("relu()", "sigmoid()", "relu()"):
        (here / "my_net.py").write_text(NET.replace("relu()", formula))
        with seeded():
            net = foreign.network("my_net.py:build")
        names.append(foreign.fingerprint(net))
        seen.append(net)
    assert names[0] == names[2] != names[1]
    assert [foreign.fingerprint(net) for net in seen] == names  # each is what it was made of


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def doubled(x):
    return SCALE * x


SCALE = 2.0
HELD = {  # pairs of attributes under which networks may answer otherwise
    "array": (np.array([0.1]), np.array([0.9])), "array of objects": (np.array([[]], object), np.array([None])),
    "number": (np.float32(0.1), np.float32(0.2)), "type": (torch.float16, torch.float32),
    "range": (range(3), range(4)), "queue": (deque([1]), deque([2])), "bytes": (bytearray(b"a"), bytearray(b"b")),
    "networks": ([nn.Linear(2, 2)], [nn.Linear(2, 2)]), "slots": (Slotted(1), Slotted(2)),
    "lambdas": (lambda x: x, lambda x: x + 1), "pattern": (re.compile("a"), re.compile("b")),
    "one or two": ([Slotted, Slotted], [Slotted, Normalise]), "slice": (slice(1), slice(2)),
    "chance": (np.random.default_rng(0), np.random.default_rng(1)),
}


@pytest.mark.parametrize("name", HELD)
def test_whatever_a_network_holds_is_part_of_its_fingerprint(name, trained):
    names = []
    for value in HELD[name]:
        trained.held = value
        names.append(foreign.fingerprint(trained))
        assert foreign.fingerprint(deepcopy(trained)) == names[-1]
    assert names[0] != names[1]


def test_what_forward_refers_to_is_part_of_a_fingerprint(trained, monkeypatch):
    trained.forward = doubled
    first = foreign.fingerprint(trained)
    assert first == foreign.fingerprint(trained)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    second = foreign.fingerprint(trained)
    trained.forward = lambda x: doubled(x)
    third = foreign.fingerprint(trained)
    monkeypatch.setitem(globals(), "doubled", lambda x: x)
    assert len({first, second, third, foreign.fingerprint(trained)}) == 4


def test_what_is_called_like_an_attribute_is_no_part_of_a_fingerprint(monkeypatch):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.results = nn.Flatten()

        def forward(self, x):
            return self.results(x)

    first = foreign.fingerprint(Net())
    monkeypatch.setitem(globals(), "results", [1, 2, (i for i in range(3))])  # a notebook's own list
    assert foreign.fingerprint(Net()) == first


def test_networks_that_hold_themselves_and_what_cannot_be_told(trained, refusal):
    trained.held = [trained]
    assert foreign.fingerprint(trained) == foreign.fingerprint(deepcopy(trained))
    trained.held.append(trained.held)
    assert foreign.fingerprint(trained) == foreign.fingerprint(deepcopy(trained))
    trained.held = [(1, 2), (1, 2)]
    once = foreign.fingerprint(trained)
    trained.held = [trained.held[0]] * 2
    assert foreign.fingerprint(trained) == once  # whether equal things are one does not matter
    trained.held = threading.Lock()
    assert foreign.fingerprint(trained) != once
    trained.held = (x for x in range(3))
    assert "of type generator" in refusal(foreign.fingerprint, trained)
    trained.held = []
    for _ in range(5000):
        trained.held = [trained.held]
    assert "too deep" in refusal(foreign.fingerprint, trained)


class Chosen(nn.Module):
    def __init__(self, choice=Slotted(1), make=partial(nn.LayerNorm, eps=1e-3)):  # noqa: B008
        super().__init__()
        self.choice, self.make, self.again = choice, make, [make, choice, CHOICE]

    def forward(self, x):
        return CHOICE.value * x


CHOICE = Slotted(3)


def test_a_copy_has_the_fingerprint_of_its_original_though_code_holds_the_same_objects():
    net = nn.Sequential(Chosen(), Chosen(), nn.Linear(2, 2))
    net.more = CHOICE
    assert foreign.fingerprint(deepcopy(net)) == foreign.fingerprint(net)


def test_a_fingerprint_is_the_same_in_every_process(trained):
    """Though Python orders the words of a set in another way."""
    code = ("from sparserobust import foreign\n"
            "net = foreign.network('my_net.py:build', 'weights.pt')\n"
            "net.held, net.asked = {'a', 'b', 'c'}, lambda x: x in {'a', 'b', 'c', 'd'}\n"
            "print(foreign.fingerprint(net))")
    saved(trained.state_dict())
    found = {subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, check=True,
                            capture_output=True, text=True).stdout for seed in "12"}
    assert len(found) == 1 and re.fullmatch("[0-9a-f]{16}\n", found.pop())


def test_own_networks_have_fingerprints_too():
    nets = []
    for seed in (0, 0, 1):
        with seeded(seed):
            nets.append(PreActResNet(depth=8, width=4, noise=0.1).build((1, 8, 8), 10))
    first, same, other = map(foreign.fingerprint, nets)
    assert first == same != other
