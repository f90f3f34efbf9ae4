"""The networks that come along: whole, and as good as their cards say."""

import runpy
import shutil

import pytest
import torch
import yaml
from torch import nn

from scaffolding import built, lively, splits_of
from sparserobust import Run, cli, data, files, networks, paths
from sparserobust.config import Measurement
from sparserobust.models import PreActResNet
from sparserobust.sparsity import parameters, zero_weights

NAMES = networks.names()


@pytest.fixture(scope="module", params=NAMES)
def known(request) -> tuple[dict, nn.Module]:
    """A card and its network."""
    return networks.card(request.param), networks.load(request.param)


def test_ten_come_along_in_ten_megabytes_at_most():
    assert NAMES == ["dense", "ensemble", "iwi", "lasso", "natural", "rsr", "small", "splitting", "ticket", "tscnc"]
    assert sum(path.stat().st_size for path in paths.networks_folder().iterdir()) < 10e6


def test_a_network_is_what_its_card_says(known):
    card, model = known
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    assert parameters(model) == card["parameters"]
    assert zero_weights(model) == (card["weights"] - card["weights_left"], card["weights"])
    assert Run.parse(card["run"]).identity == card["identity"]
    with torch.no_grad():
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_a_network_answers_the_sample_as_its_card_says(known):
    card, model = known
    sample = data.sample()
    splits = splits_of(sample.images, sample.labels)
    count = {key: Measurement.parse(m["measurement"])(model, splits)["count"] for key, m in card["sample"].items()}
    assert abs(count["clean"] - card["sample"]["clean"]["count"]) <= 1
    assert abs(count["pgd"] - card["sample"]["pgd"]["count"]) <= 1


def test_packing_has_changed_no_accuracy_by_more_than_a_fifth_of_a_point(known):
    card, _ = known
    for m, total in zip(card["measured"].values(), (10000, 1000), strict=True):
        assert m["total"] == total and m["low"] <= m["count"] / total <= m["high"]
        assert abs(m["count"] - m["before"]) <= 0.002 * total
    assert card["measured"]["pgd"]["count"] < card["measured"]["clean"]["count"] / 10


def test_what_is_packed_comes_back_in_half_precision_and_zeros_as_zeros():
    run = Run.parse({"data": {}, "model": {"kind": "preact_resnet", "depth": 8, "width": 2},
                     "objective": {"kind": "natural"}, "recipe": {"epochs": 1}})
    model = lively(built(PreActResNet(depth=8, width=2)))
    for p in model.parameters():
        p.data[torch.rand(p.shape) < 0.7] = 0
    weights = model.state_dict()
    state = torch.get_rng_state()
    packed = networks.packed(weights)
    found = networks.unpacked(run, packed).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    for key, t in weights.items():
        assert torch.equal(found[key], t.half().float() if t.dim() > 1 else t) and found[key].dtype == t.dtype
    assert sum(t.nbytes for t in packed.values()) < sum(t.nbytes for t in weights.values()) / 3
    whole = networks.unpacked(run, networks.packed(weights, torch.float)).state_dict()
    assert all(torch.equal(whole[key], t) for key, t in weights.items())


def test_weights_lie_in_memory_as_they_were_trained(known):
    """Noise on them is drawn in that order: another one is another network to whoever counts answers."""
    filters = [p for p in known[1].parameters() if p.dim() == 4]
    assert filters and all(p.is_contiguous(memory_format=torch.channels_last) for p in filters)


# --------------------------------------------------------------------------------------------------- what goes wrong


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A folder with one of the networks, under the name of another."""
    folder = tmp_path / "networks"
    folder.mkdir()
    for path in paths.networks_folder().glob(f"{NAMES[0]}.*"):
        shutil.copy(path, folder / f"lasso{path.suffix}")
    monkeypatch.setattr(paths, "networks_folder", lambda: folder)
    return folder


@pytest.mark.parametrize("name", ["laso", "LASSO", "../lasso", "lasso.json", "", None, 3])
def test_a_name_that_there_is_not_gets_the_nearest(name, copied, refusal):
    message = refusal(networks.load, name)
    assert "unknown network" in message and "lasso" in message


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_damaged_file_is_named_and_not_used(suffix, copied, refusal):
    path = copied / f"lasso.{suffix}"
    whole = path.read_bytes()
    for content in (whole[:-100], whole.replace(b"1", b"2"), b""):
        path.write_bytes(content)
        message = refusal(networks.load, "lasso")
        assert path.name in message and "restore it" in message
    path.write_bytes(whole)
    assert networks.load("lasso")


def test_weights_that_are_gone_are_named(copied, refusal):
    (copied / "lasso.safetensors").unlink()
    assert "lasso.safetensors" in refusal(networks.load, "lasso")


# -------------------------------------------------------------------------------------------------------- as a list


def test_the_command_lists_each_with_its_numbers(capsys):
    assert cli.main(["networks"]) == 0
    told = capsys.readouterr().out
    for name in NAMES:
        card = networks.card(name)
        (line,) = (line.split() for line in told.splitlines() if line.split()[:1] == [name])
        assert line[1] == f"{card['measured']['clean']['count'] / 100:.1f}" and card["identity"] in line


# ------------------------------------------------------------------------------------------------- hubs


def test_pytorchs_hub_lists_and_loads_them_from_a_checkout():
    hub = str(paths.PROJECT)
    offered = runpy.run_path(str(paths.PROJECT / "hubconf.py"))
    assert sorted(name for name, value in offered.items() if callable(value) and not name.startswith("_")) == NAMES
    net, sample = torch.hub.load(hub, "lasso", source="local"), data.sample()
    with torch.no_grad():
        assert torch.equal(net(sample.images), networks.load("lasso")(sample.images))
    card = networks.card("lasso")
    said = offered["lasso"].__doc__
    assert f"{card['weights_left']:,} of {card['weights']:,}" in said
    assert f"{card['measured']['pgd']['count'] / 10:.1f} % of 1,000" in said


def test_a_folder_for_a_model_hub_gives_the_network_back_bit_for_bit(known, tmp_path):
    card, model = known
    name = next(name for name in NAMES if networks.card(name) == card)
    written = networks.for_hub(name, tmp_path)
    assert [path.name for path in written] == ["config.json", "model.safetensors", "README.md"]
    assert sorted(tmp_path.iterdir()) == sorted(written)
    again = networks.from_hub(tmp_path)
    assert not again.training
    for key, t in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], t), key
    plain, metadata = files.read_tensors(tmp_path / "model.safetensors")  # what any other program reads
    assert plain.keys() == model.state_dict().keys() and metadata == {"format": "pt"}
    config = files.read_json(tmp_path / "config.json")
    assert Run.parse(config["run"]).identity == card["identity"] and config["id2label"]["3"] == "cat"
    _, front, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "mit" and text.startswith(f"\n# {name}\n")
    assert networks.described(name) in text


def test_a_damaged_folder_of_a_hub_is_one_line(tmp_path, refusal):
    networks.for_hub("lasso", tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = files.read_tensors(weights)[0]
    name = next(iter(tensors))
    for harmed in ({key: t for key, t in tensors.items() if key != name}, tensors | {name: tensors[name][:-1]}):
        files.write(weights, files.packed(harmed))
        assert name in refusal(networks.from_hub, tmp_path)
    assert "config.json" in refusal(networks.from_hub, tmp_path / "nowhere")
    files.write_json(tmp_path / "config.json", {"model_type": "bert"})
    assert "was not written by this library" in refusal(networks.from_hub, tmp_path)


def test_the_command_exports_them_all(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(networks, "names", lambda: ["lasso", "dense"])
    assert cli.main(["networks", "--export", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.glob("*/*")) == sorted(
        ["README.md", "config.json", "model.safetensors"] * 2)
    assert len(capsys.readouterr().out.splitlines()) == 2
