"""Networks written as files: they come back bit for bit, the card says what they are, ONNX is run."""

import builtins
import importlib.util
import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from scaffolding import built, generator, lively, same
from sparserobust import Run, export, files, training
from sparserobust.models import (
    VGG16,
    LeNet5,
    LeNet300100,
    NoisyWeights,
    PreActResNet,
    ResNet,
    VGGLike,
    WideResNet,
    Winners,
    compact,
    noise_off,
)
from sparserobust.sparsity import parameters

CARD = {"licence": "MIT", "numbers": {"clean": {"value": 0.9, "count": 9, "total": 10}}}
MODELS = [LeNet300100(), LeNet5(kernel=3, width=4), ResNet(depth=8, width=4, mean_255=(90.0,), std_255=(60.0,)),
          VGG16(width=2, gated=True), VGGLike(width=2), WideResNet(depth=10, widen=1, width=4),
          PreActResNet(depth=8, width=2, members=2, noise=0.1), NoisyWeights(model=ResNet(depth=8, width=2)),
          Winners(model=ResNet(depth=8, width=2), share=0.5)]


def weights(net: nn.Module) -> dict:
    return {name: t.clone() for name, t in net.state_dict().items()}


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_run_comes_back_bit_for_bit(tmp_path, tiny_run, digits, model, layout):
    run = tiny_run(model=model)
    net = lively(training.build(run, digits)).to(memory_format=layout).eval()
    before, chance = weights(net), torch.get_rng_state()
    written = export.save(net, tmp_path / "net", CARD, run)
    again = export.load(tmp_path / "net.safetensors")
    assert torch.equal(torch.get_rng_state(), chance)
    assert written == (tmp_path / "net.safetensors", tmp_path / "net.json")
    assert type(again) is type(net) and not again.training
    assert same(before, weights(again)) and same(before, weights(net))
    with torch.no_grad(), noise_off(net), noise_off(again):
        assert torch.equal(net(digits.test.images), again(digits.test.images))


def test_the_card(tmp_path, tiny_run, digits):
    run = tiny_run()
    net = training.build(run, digits)
    net.members[0].stem.weight.data[0] = 0
    path, about = export.save(net, tmp_path / "a.b.safetensors", CARD, run)
    assert (path.name, about.name) == ("a.b.safetensors", "a.b.json")
    card = json.loads(about.read_text())
    assert card.items() >= CARD.items() and files.check_seal(card, about)
    assert Run.parse(card["run"]) == run and card["identity"] == run.identity
    assert (card["image_shape"], card["classes"], card["network"]) == ([1, 8, 8], 10, "Ensemble")
    assert card["weights_sha256"] == files.sha256(path) and card["versions"]["torch"] == torch.__version__
    zero = sum(int((p == 0).sum()) for p in net.parameters())
    assert card["parameters"] == parameters(net) == card["remaining_parameters"] + zero and zero >= 9


def test_the_lines_of_the_card_load_it(tmp_path, tiny_run, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tiny_run()
    export.save(training.build(run, digits), "net", CARD, run)
    lines = json.loads((tmp_path / "net.json").read_text())["load"]
    known = {"images": digits.test.images[:2]}
    exec("\n".join(lines), known)
    assert len(lines) == 3 and known["logits"].shape == (2, 10)
    export.save(small(), "other", CARD)
    lines = json.loads((tmp_path / "other.json").read_text())["load"]
    known = {"small": small}
    exec("\n".join(lines).replace("...", "small()"), known)
    assert len(lines) == 3 and "Sequential" in lines[1] and same(
        weights(known["model"]), files.load_tensors(tmp_path / "other.safetensors")[0])


def test_networks_from_elsewhere_are_put_into_one_that_is_given(tmp_path, refusal):
    net = lively(small())
    export.save(net, tmp_path / "net", CARD)
    assert "Sequential" in refusal(export.load, tmp_path / "net")
    again = export.load(tmp_path / "net", into=small())
    assert same(weights(net), weights(again)) and not again.training
    assert "does not fit" in refusal(export.load, tmp_path / "net", into=nn.Sequential(nn.Conv2d(3, 4, 3)))


def test_what_is_no_network(tmp_path, refusal):
    assert "a torch.nn.Module" in refusal(export.save, lambda x: x, tmp_path / "net", {"licence": "MIT"})
    export.save(small(), tmp_path / "net", {"licence": "MIT"})
    assert "a torch.nn.Module" in refusal(export.load, tmp_path / "net", nn.Linear)


def test_masks_are_multiplied_in(tmp_path):
    net = small()
    prune.l1_unstructured(net[4], "weight", 0.5)
    export.save(net, tmp_path / "net", CARD)
    again = export.load(tmp_path / "net", into=small())
    assert torch.equal(again[4].weight, net[4].weight) and int((again[4].weight == 0).sum()) == 360
    assert prune.is_pruned(net)


def test_weights_with_two_names(tmp_path):
    def tied() -> nn.Module:
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        net[1].weight = net[0].weight
        return net

    net = tied()
    export.save(net, tmp_path / "net", CARD)
    assert same(weights(net), weights(export.load(tmp_path / "net", into=tied())))


@pytest.mark.parametrize(("card", "words"), [
    ({}, "licence"), ({"licence": ""}, "licence"), (None, "licence"), (CARD | {"parameters": 3}, "parameters"),
    (CARD | {"numbers": {"clean": float("nan")}}, "not finite")], ids=str)
def test_wrong_cards(tmp_path, card, words, refusal):
    assert words in refusal(export.save, small(), tmp_path / "net", card)
    assert not list(tmp_path.iterdir())


def test_weights_of_another_run(tmp_path, tiny_run, digits, refusal):
    run = tiny_run()
    net = training.build(run, digits)
    other = tiny_run(model=PreActResNet(depth=8, width=4))
    assert "does not fit" in refusal(export.save, net, tmp_path / "net", CARD, other)
    net.members[0].blocks[0].conv2.weight.data[:, 0] = 0
    assert "does not fit" in refusal(export.save, compact(net), tmp_path / "net", CARD, run)
    assert not list(tmp_path.iterdir())


def test_what_was_altered_is_not_loaded(tmp_path, tiny_run, digits, refusal):
    run = tiny_run()
    path, about = export.save(training.build(run, digits), tmp_path / "net", CARD, run)
    content, card = path.read_bytes(), about.read_text()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "net.json" in refusal(export.load, path)
    path.write_bytes(content)
    about.write_text(card.replace("MIT", "GPL"))
    assert "once written" in refusal(export.load, path)
    about.write_text(json.dumps(files.sealed({**json.loads(card), "format": 2, "sha256": ""}, about)))
    assert refusal(export.load, path)
    about.unlink()
    assert "not there" in refusal(export.load, path)


def test_another_format_is_not_read(tmp_path, refusal):
    _, about = export.save(small(), tmp_path / "net", CARD)
    card = json.loads(about.read_text())
    card.pop("sha256")
    files.write_json(about, files.sealed(card | {"format": 2}, about))
    assert "format 2" in refusal(export.load, tmp_path / "net", into=small())


# --- ONNX


has_onnx = pytest.mark.skipif(not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript")),
                              reason="the extra onnx is not installed")


@has_onnx
@pytest.mark.parametrize("model", [PreActResNet(depth=8, width=2, members=2), VGG16(width=2, gated=True)],
                         ids=lambda model: model.kind)
def test_onnx_answers_alike(tmp_path, model):
    import onnxruntime

    net = lively(built(model)).eval()
    path = export.onnx(net.train(), tmp_path / "net.onnx", (1, 8, 8))
    assert net.training and path == tmp_path / "net.onnx"
    session = onnxruntime.InferenceSession(path)
    for count in (1, 5):
        images = torch.rand(count, 1, 8, 8, generator=generator(count))
        logits = session.run(["logits"], {"images": images.numpy()})[0]
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(logits), net.eval()(images), atol=1e-4)


@has_onnx
def test_a_compact_network_is_written_smaller(tmp_path):
    net = lively(built(VGG16(width=4))).eval()
    for reader in net.modules():
        if isinstance(reader, nn.Conv2d) and reader.in_channels > 1:
            reader.weight.data[:, ::2] = 0
    wide = export.onnx(net, tmp_path / "wide.onnx", (1, 8, 8)).stat().st_size
    narrow = export.onnx(compact(net, image_shape=(1, 8, 8)), tmp_path / "narrow.onnx", (1, 8, 8)).stat().st_size
    assert narrow < 0.6 * wide


@has_onnx
@pytest.mark.parametrize("common", [0.0, 2e3])
def test_a_wrong_onnx_file_is_not_written(tmp_path, monkeypatch, common):
    """Also where the logits are large by a number that all have in common."""
    net: Any = lively(built(ResNet(depth=8, width=2))).eval()
    net.linear.bias.data += common
    original = torch.onnx.export

    def spoiled(model, *arguments, **more):
        model.linear.bias.data[0] += 0.1
        return original(model, *arguments, **more)

    monkeypatch.setattr(torch.onnx, "export", spoiled)
    with pytest.raises(RuntimeError, match="wrong"):
        export.onnx(net, tmp_path / "net.onnx", (1, 8, 8))
    assert not list(tmp_path.iterdir())


@has_onnx
def test_what_onnx_does_not_know(tmp_path, refusal):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x.mean(1))

    class Random(nn.Module):
        def forward(self, x):
            return torch.rand_like(x).mean((2, 3))

    noisy = built(PreActResNet(depth=8, width=2, noise=0.1))
    winners = built(Winners(model=ResNet(depth=8, width=2), share=0.5))
    assert "a torch.nn.Module" in refusal(export.onnx, lambda x: x, tmp_path / "net.onnx", (1, 8, 8))
    assert "k-winners" in refusal(export.onnx, winners, tmp_path / "net.onnx", (1, 8, 8))
    assert "noise_off" in refusal(export.onnx, noisy, tmp_path / "net.onnx", (1, 8, 8))
    assert "Odd cannot be written" in refusal(export.onnx, Odd(), tmp_path / "net.onnx", (1, 8, 8))
    assert "at random" in refusal(export.onnx, Random(), tmp_path / "net.onnx", (1, 8, 8))
    assert "takes no images" in refusal(export.onnx, noisy_off(noisy), tmp_path / "net.onnx", (3, 8, 8))
    assert not list(tmp_path.iterdir())


def noisy_off(net: nn.Module) -> nn.Module:
    for block in net.members[0].blocks:  # type: ignore[union-attr, index]
        block.noise.level = 0.0
    return net


def test_without_the_extra(tmp_path, monkeypatch, refusal):
    original = builtins.__import__

    def missing(name, *arguments, **more):
        if name == "onnxruntime":
            raise ImportError(f"No module named {name!r}", name=name)
        return original(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert "sparserobust[onnx]" in refusal(export.onnx, small(), tmp_path / "net.onnx", (3, 8, 8))


class Remembering(nn.Linear):
    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        pass


def test_what_is_no_tensor_is_not_written(tmp_path, refusal):
    net = nn.Sequential(nn.Flatten(), Remembering(4, 2))
    assert "is no tensor" in refusal(export.save, net, tmp_path / "net", {"licence": "MIT"})
    assert not list(tmp_path.iterdir())
