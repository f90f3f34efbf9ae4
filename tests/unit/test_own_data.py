"""Data sets, networks and weights of one's own in runs: found everywhere, told apart by content, never stale."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scaffolding import same
from sparserobust import Data, Recipe, Run, cli, data, foreign, models, outside, training
from sparserobust.attacks import FGSM
from sparserobust.config import Inheritance
from sparserobust.evaluation import Accuracy
from sparserobust.objectives import Natural
from sparserobust.paths import PROJECT
from sparserobust.running import forecast, jobs, records, sweep
from sparserobust.running.jobs import Task
from sparserobust.running.store import Store
from sparserobust.sparsifiers import Channels, Magnitude
from sparserobust.sparsity import sparsity

SHAPES = """\
import torch

def shapes(n=40, shift=0.0):
    labels = torch.arange(n) % 3
    images = torch.rand(n, 1, 8, 8) / 2
    images[range(n), 0, 2 * labels] += 0.5 - shift
    return {"train": (images, labels), "test": (images[:12], labels[:12])}

class Shapes:
    classes = ["bar", "low bar", "lower bar"]

    def __init__(self):
        self.train = shapes()["train"]

    def test(self):
        return shapes()["test"]
"""
NARROW = """\
from torch import nn
from torchvision.models.mobilenetv2 import MobileNetV2

def small(in_channels, num_classes):
    net = MobileNetV2(num_classes, width_mult=0.1, inverted_residual_setting=[[1, 8, 1, 1], [2, 8, 2, 1]])
    net.features[0][0] = nn.Conv2d(in_channels, net.features[0][0].out_channels, 3, padding=1, bias=False)
    return net

class Strict(nn.Flatten):
    def forward(self, x):
        assert x.shape[-1] == 32
        return super().forward(x)

def strict():
    return Strict()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with files of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_data.py").write_text(SHAPES)
    (tmp_path / "my_net.py").write_text(NARROW)
    return tmp_path


def tensors(n=30, **changes) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(n)
    return {"images": torch.rand(n, 1, 6, 7, generator=chance), "labels": torch.arange(n) % 4} | changes


def folder(path="my_images", **splits) -> str:
    Path(path).mkdir()
    for split, content in splits.items():
        save_file(content, Path(path) / f"{split}.safetensors")
    return f"{path}/"


def run_of(**changes) -> Run:
    return Run(**{"data": Data(train_images=64), "model": models.Foreign(builder="my_net.py:small"),
                  "objective": Natural(), "recipe": Recipe(epochs=1, batch_size=32, lr=0.05)} | changes)


# ----------------------------------------------------------------------------------------------- data: what it is


def test_a_function_in_a_file_is_a_data_set(here):
    splits = data.load("my_data.py:shapes")
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [36, 4, 12]
    assert splits.classes == ("0", "1", "2") and splits.image_shape == (1, 8, 8)
    assert splits.train.images.dtype == torch.float32 and splits.train.labels.dtype == torch.int64
    whole = torch.cat([splits.train.images, splits.validation.images])
    assert len(whole.flatten(1).unique(dim=0)) == 40  # validation is carved from training


def test_a_class_in_a_file_is_one_and_names_its_classes(here):
    splits = data.load(Data(name="my_data.py:Shapes", classes=(2, 0), train_images=10))
    assert splits.classes == ("lower bar", "bar") and len(splits.train) == 10
    assert splits.test.labels.unique().tolist() == [0, 1]


def test_chance_in_it_is_the_same_in_every_process(here):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = data.load("my_data.py:shapes").train.images.sum()
    assert torch.equal(torch.get_rng_state(), before)
    code = "from sparserobust import data; print(float(data.load('my_data.py:shapes').train.images.sum()))"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(other.stdout) == float(one)


def test_a_folder_of_tensors_and_a_file_of_them(here):
    parts = {"train": tensors(30), "validation": tensors(8), "test": tensors(12)}
    save_file({f"{split}_{name}": t for split, part in parts.items() for name, t in part.items()}, "one.safetensors",
              {"format": "pt"})
    for name in (folder(**parts), "one.safetensors"):
        splits = data.load(name)
        for split, part in parts.items():
            assert torch.equal(getattr(splits, split).images, part["images"])
            assert torch.equal(getattr(splits, split).labels, part["labels"])
        assert splits.classes == tuple("0123") and splits.image_shape == (1, 6, 7)


IN_ORDER = """
def in_order(n=600):
    labels = torch.arange(n) * 3 // n
    images = torch.rand(n, 1, 8, 8)
    return {"train": (images, labels), "validation": (images, labels), "test": (images, labels)}
"""


def test_a_part_of_a_set_in_order_has_all_classes(here, monkeypatch, tiny_run):
    """As folders of images are, one class after another; a set of the library's is shuffled once and for all."""
    (here / "my_data.py").write_text(SHAPES + IN_ORDER)
    some = data.load(Data(name="my_data.py:in_order", train_images=30))
    assert some.train.labels.bincount().tolist() == [10, 10, 10]
    few = data.load(Data(name="digits", train_images=30)).train
    assert torch.equal(few.images, data.load("digits").train.images[:30])
    seen = []
    monkeypatch.setattr(training, "VALIDATION_IMAGES", 30)
    monkeypatch.setattr(training.TrainingState, "_validated", lambda self, split, epoch: seen.append(split) or {
        "validation": 0.0})
    run = tiny_run(data=Data(name="my_data.py:in_order"), epochs=1)
    training.train(run, data.load(run.data))
    assert seen[0].labels.bincount().tolist() == [10, 10, 10]


def test_half_precision_and_small_numbers_are_made_what_the_library_has(here):
    given = tensors()
    splits = data.load(folder(test={"images": given["images"].half(), "labels": given["labels"].to(torch.int16)}))
    assert splits.test.images.dtype == torch.float32 and splits.test.labels.dtype == torch.int64


def test_test_images_alone_serve_to_measure_and_not_to_train(here, tmp_path, refusal):
    own = Data(name=folder(test=tensors(12)))
    splits = data.load(own)
    assert len(splits.train) == len(splits.validation) == 0 and len(splits.test) == 12
    store = Store(tmp_path / "store")
    measured = store.measure(run_of(data=own, recipe=Recipe(epochs=0)), Accuracy())
    assert measured["total"] == 12
    assert "no training images" in refusal(store.train, run_of(data=own))


def test_what_is_known_of_a_set_without_its_files_is_known_of_ones_own_from_its_files(here):
    own = Data(name="my_data.py:shapes")
    assert (data.image_shape(own), data.channels(own), data.classes(own)) == ((1, 8, 8), 1, 3)
    assert data.training_images(own) == 36 and data.training_images(replace(own, train_images=9)) == 9
    assert data.training_images(replace(own, classes=(0, 1))) == 24


WRONG = {
    "pixels": ({"images": torch.full((30, 1, 6, 7), 1.5)}, "images should lie in [0, 1]"),
    "nan": ({"images": torch.full((30, 1, 6, 7), torch.nan)}, "images should lie in [0, 1]"),
    "bytes": ({"images": torch.zeros(30, 1, 6, 7, dtype=torch.uint8)}, "images should be floats"),
    "no channels": ({"images": torch.zeros(30, 6, 7)}, "of shape (n, c, h, w)"),
    "float labels": ({"labels": torch.zeros(30)}, "labels should be whole numbers"),
    "too few labels": ({"labels": torch.zeros(29, dtype=torch.long)}, "labels should be whole numbers of shape (30,)"),
    "negative labels": ({"labels": torch.full((30,), -1)}, "labels are counted from 0"),
    "another name": ({"targets": torch.zeros(30)}, "'test_targets' is unknown"),
}


@pytest.mark.parametrize(("change", "told"), WRONG.values(), ids=WRONG)
def test_tensors_that_are_no_images_and_labels_are_told_in_one_line(change, told, here, refusal):
    message = refusal(data.load, folder(train=tensors(), test=tensors(**change)))
    assert told in message and "my_images" in message and len(message) < 300


CODE = {
    "def it(): return None": "no test images",
    "def it(): return {'train': 3, 'test': 4}": "train should be (images, labels), not of type int",
    "def it(): return {'test': ([1], [2])}": "test: images should be a tensor, not of type list",
    "def it(): raise KeyError('x')": "it raised KeyError",
    "it = 3": "cannot be called",
    "def other(): pass": "has no 'it'; it has other",
    "import torch\ndef it(): return {'test': (torch.zeros(0, 1, 2, 2), torch.zeros(0).long())}": "no test images",
    "import torch\ndef it(): return {'test': (torch.zeros(2, 1, 2, 2), torch.tensor([0, 5])), 'classes': ['a', 'b']}":
        "label 5 is none of 2 classes",
    "import torch\ndef it(): return {'test': (torch.zeros(2, 1, 2, 2), torch.tensor([0, 1])), 'classes': 'ab'}":
        "classes should be their names",
    "import torch\ndef it(): return {'test': (torch.zeros(1, 1, 2, 2), torch.zeros(1)), 'classes': torch.tensor(2)}":
        "classes should be their names, one for each, not of type Tensor",
    "import torch\ndef it(): return {'test': (torch.zeros(2, 1, 2, 2), torch.tensor([0, 1_700_000_003]))}":
        "label 1700000003 is none",
    "import numpy, torch\ndef it(): return {'test': (torch.zeros(2, 1, 2, 2), numpy.array(['cat', 'dog']))}":
        "should be numbers",
    "class it:\n    def test(self): raise RuntimeError('no file')": "raised RuntimeError",
    "import torch\ndef it(): return {'test': (torch.zeros(2, 1, 2, 2), torch.tensor([0, 2])), 'classes': 3}":
        "classes should be their names",
    "import torch\ndef it(): return {s: (torch.zeros(2, 1, n, 2), torch.tensor([0, 1])) for s, n in "
    "{'train': 2, 'test': 3}.items()}": "one shape (c, h, w), not (1, 2, 2) and (1, 3, 2)",
}


@pytest.mark.parametrize(("code", "told"), CODE.items(), ids=range(len(CODE)))
def test_code_that_gives_no_data_is_told_in_one_line(code, told, here, refusal):
    (here / "wrong.py").write_text(code)
    message = refusal(data.load, "wrong.py:it")
    assert told in message and "wrong.py" in message


@pytest.mark.parametrize(("name", "told"), [
    ("gone.py:it", "'gone.py' is not here"), ("gone/", "'gone/' is not here"), ("./", "no test images"),
    ("gone.safetensors", "'gone.safetensors' is not here"), ("/" * 5000 + "x", "is not here"),
    ("my_data.py:", "is not here"), ("my_data.py", "write my_file.py:name"), ("./my_data.py", "write my_file.py:name"),
    ("shapes", "my_data.py:name, my_folder/ or my_file.safetensors"), ("x" * 5000, "unknown data set"),
    ("", "unknown data set"),
])
def test_a_set_that_is_not_there_is_told_in_one_line(name, told, here, refusal):
    message = refusal(data.load, name)
    assert told in message and len(message) < 400


def test_arrays_and_splits_are_taken_too(here):
    (here / "other.py").write_text(
        "import numpy as np\nimport sparserobust as sr\ndef arrays():\n"
        "    return {'test': (np.full((4, 1, 2, 2), 0.5), np.arange(4) % 2)}\n"
        "def splits():\n    return sr.data.load('digits')\n")
    assert data.load("other.py:arrays").test.images.eq(0.5).all()
    assert torch.equal(data.load("other.py:splits").test.images, data.load("digits").test.images)


def test_the_command_checks_one_of_ones_own(here, capsys):
    assert cli.main(["data", "my_data.py:shapes", "digits"]) == 0
    assert "my_data.py:shapes: 36 training, 4 validation, 12 test images of shape (1, 8, 8)" in capsys.readouterr().out
    (here / "my_data.py").write_text(SHAPES.replace("0.5 - shift", "0.6 - shift"))
    assert cli.main(["data", "my_data.py:shapes"]) == 1
    assert "train: images should lie in [0, 1]" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ identities


def contents(here):
    """Three settings, and what changes the content of what they name."""
    torch.save({"w": torch.ones(2)}, "w.pt")
    return {
        "data": (lambda at="": Data(name=f"{at}my_data.py:shapes"), "my_data.py", SHAPES + "\nN = 3\n"),
        "builder": (lambda at="": models.Foreign(builder=f"{at}my_net.py:small"), "my_net.py", NARROW + "\nN = 3\n"),
        "weights": (lambda at="": models.Pretrained(model=models.Linear(), weights=f"{at}w.pt"), "w.pt", "other"),
    }


@pytest.mark.parametrize("what", ["data", "builder", "weights"])
def test_the_content_counts_and_the_place_does_not(what, here, tmp_path):
    make, name, changed = contents(here)[what]
    one = make()
    assert "@" in json.dumps(one.plain()) and type(one).parse(json.loads(json.dumps(one.plain()))) == one
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(name, elsewhere)
    moved = make("elsewhere/")
    assert moved.identity == one.identity == make(f"{elsewhere}/").identity == make("./").identity
    run = run_of(**{"data" if what == "data" else "model": one})
    assert replace(run, **{"data" if what == "data" else "model": moved}).identity == run.identity
    (here / name).write_text(changed)
    assert make().identity != one.identity and run_of(**{"data" if what == "data" else "model": make()}) != run
    (here / name).unlink()
    assert type(one).parse(one.plain()).identity == one.identity  # a record is read where the file is not


def test_a_run_that_only_starts_with_it_has_its_content_too(here):
    def whole():
        start = run_of()
        return run_of(start=start, sparsifier=Magnitude(sparsity=0.5)).identity, Magnitude(sparsity=0.5).identity

    before = whole()
    (here / "my_net.py").write_text(NARROW + "#")
    after = whole()
    assert before[0] != after[0] and before[1] == after[1]


def test_a_file_that_changed_under_its_name_is_not_taken_for_what_it_was(here, refusal):
    settings = {what: make() for what, (make, _, _) in contents(here).items()}
    data._held.clear()
    for _, name, changed in contents(here).values():
        (here / name).write_text(changed)
    assert "my_data.py has changed" in refusal(data.load, settings["data"])
    assert "my_net.py has changed" in refusal(settings["builder"].build, (1, 8, 8), 10)
    assert "w.pt has changed" in refusal(settings["weights"].build, (1, 8, 8), 10)


def test_a_package_counts_by_the_file_that_defines_the_builder(here, monkeypatch, refusal):
    (here / "my_package").mkdir()
    (here / "my_package/__init__.py").write_text("from my_package.nets import small\n")
    (here / "my_package/nets.py").write_text("from .parts import WIDTH\n" + NARROW)
    (here / "my_package/parts.py").write_text("WIDTH = 3\n")
    monkeypatch.syspath_prepend(here)
    name = outside.pinned_code("my_package:small")
    (here / "my_package/parts.py").write_text("WIDTH = 4\n")
    assert outside.pinned_code("my_package:small") != name
    assert "my_package has changed" in refusal(foreign.network, name)
    for module in ("my_package", "my_package.nets", "my_package.parts"):
        del sys.modules[module]


def test_arguments_count_however_they_are_written():
    def name(part):
        return models.Foreign(builder=f"torchvision.models:resnet18({part})").identity

    assert name("num_classes = 10") == name("num_classes=10") != name("num_classes=11")


# -------------------------------------------------------------------------------------------------------- networks


def test_a_builder_gets_what_it_asks_for_and_its_network_is_drawn_from_the_seed(here):
    model = models.Foreign(builder="my_net.py:small", mean=(0.5,), std=(0.25,))
    torch.manual_seed(0)
    one = model.build((1, 8, 8), 10)
    torch.manual_seed(0)
    assert same(model.build((1, 8, 8), 10).state_dict(), one.state_dict())
    assert one.eval()(torch.rand(2, 1, 8, 8)).shape == (2, 10) and one[0].mean.item() == 0.5


@pytest.mark.parametrize(("model", "told"), [
    ({"builder": "torchvision.models:squeezenet1_1"}, "takes no images of shape (1, 8, 8)"),
    ({"builder": "my_net.py:small(num_classes=7)"}, "should give logits of shape (n, 10), not (2, 7)"),
    ({"builder": "my_net.py:small", "mean": (0.5,) * 3, "std": (0.2,) * 3}, "the images have 1 channels"),
    ({"builder": "my_net.py:strict"}, "takes no images of shape (1, 8, 8): AssertionError"),
    ({"builder": "torch.nn:Identity"}, "should give logits of shape (n, 10), not (2, 1, 8, 8)"),
])
def test_a_network_that_does_not_fit_the_data_is_told_before_it_is_trained(model, told, here, refusal):
    assert told in refusal(models.Foreign(**model).build, (1, 8, 8), 10)


@pytest.mark.slow
def test_a_foreign_network_is_swept_pruned_and_trained_on_like_any_other(here, tmp_path):
    """By worker processes, which start in another folder, on data of one's own."""
    dense = run_of(data=Data(name="my_data.py:shapes"), recipe=Recipe(epochs=2, batch_size=12, lr=0.05))
    pruned = dense.then(sparsifier=Magnitude(sparsity=0.8))
    store = Store(tmp_path / "store")
    measured = {"clean": Accuracy(), "attacked": Accuracy(attack=FGSM(epsilon=8 / 255))}
    frame = sweep.sweep([{"net": "dense", "run": dense}, {"net": "pruned", "run": pruned}], measured, store, 1)
    assert frame.groupby("net")["total"].unique().map(list).to_dict() == {"dense": [12], "pruned": [12]}
    assert frame["chance"].unique() == pytest.approx(1 / 3)
    record = store.record(pruned)
    assert record["sparsity"] == pytest.approx(0.8, abs=0.01) and str(here) not in json.dumps(record)
    assert sparsity(store.model(pruned)) == record["sparsity"]
    assert Run.parse(record["run"]).identity == pruned.identity


def test_orders_tell_workers_where_files_are_only_if_some_are_ones_own(here, tmp_path):
    store = Store(tmp_path / "store")
    task = Task(run_of(data=Data(name="my_data.py:shapes")), (), "", ())
    assert str(here) in jobs.order(task, store)["path"]
    assert {path.name for name in jobs.order(task, store)["outside"] for path in outside.files(name)} == {
        "my_data.py", "my_net.py"}
    assert jobs.order(Task(run_of(model=models.Linear()), (), "", ()), store)["path"] == []


def test_published_records_of_ones_own_hold_up_no_forecast(here, monkeypatch):
    entry = {"record": {"run": run_of(data=Data(name="my_data.py:shapes")).plain()}, "provenance": {"seconds": 1}}
    monkeypatch.setattr(records, "published", lambda path: entry)
    (here / "my_data.py").unlink()
    assert list(forecast._published()) == []


# --------------------------------------------------------------------------------------------------------- weights


def test_a_checkpoint_begins_a_run_of_the_librarys_own_models(here, tmp_path):
    small = models.PreActResNet(depth=8, width=2)
    torch.manual_seed(5)
    net = small.build((1, 8, 8), 10)
    torch.save({"state_dict": {f"module.{name}": t for name, t in net.state_dict().items()}}, "start.pt")
    store = Store(tmp_path / "store")
    as_it_is = run_of(model=models.Pretrained(model=small, weights="start.pt"), recipe=Recipe(epochs=0))
    assert same(dict(store.model(as_it_is).state_dict()), dict(net.state_dict()))
    pruned = as_it_is.then(sparsifier=Channels(share=0.5))
    assert store.record(pruned)["channel_sparsity"] > 0
    wider = run_of(model=models.PreActResNet(depth=8, width=4), start=as_it_is, inheritance=Inheritance(),
                   recipe=Recipe(epochs=0))
    assert torch.equal(store.model(wider).state_dict()["members.0.stem.weight"][:2],
                       net.state_dict()["members.0.stem.weight"])
    trained_on = store.model(replace(as_it_is, recipe=Recipe(epochs=1, batch_size=32)))
    assert not torch.equal(trained_on.members[0].stem.weight, net.members[0].stem.weight)


def test_a_checkpoint_goes_into_a_foreign_network_that_is_then_pruned(here, tmp_path, refusal):
    net = foreign.built("my_net.py:small", in_channels=1, num_classes=10)
    save_file(net.state_dict(), "w.safetensors")
    model = models.Pretrained(model=models.Foreign(builder="my_net.py:small", mean=(0.5,), std=(0.25,)),
                              weights="w.safetensors")
    store = Store(tmp_path / "store")
    run = run_of(model=model, sparsifier=Magnitude(sparsity=0.5), recipe=Recipe(epochs=0))
    weight = store.model(run)[1].classifier[1].weight
    kept = weight != 0
    assert torch.equal(weight[kept], net.classifier[1].weight[kept]) and store.record(run)["sparsity"] == 0.5
    assert "do not fit" in refusal(models.Pretrained(model=models.Linear(), weights="w.safetensors").build, (1, 8, 8),
                                   10)


# ------------------------------------------------------------------------------------------------------- the guide


@pytest.mark.slow
def test_the_guide_runs_as_it_stands(tmp_path):
    """Each block in its turn: one that begins with the name of a file is that file."""
    text = (PROJECT / "docs" / "own_network.md").read_text()
    blocks = re.findall(r"```(python|bash)\n(.*?)```", text, re.DOTALL)
    assert [language for language, _ in blocks].count("python") == 5
    path, printed = os.pathsep.join([str(tmp_path), *filter(None, sys.path)]), []
    for number, (language, block) in enumerate(blocks):
        named = re.match(r"# (\w+\.py)\n", block)
        file = tmp_path / (named[1] if named else f"block_{number}.py")
        words = [sys.executable, "-m", "sparserobust.cli", *shlex.split(block.replace("\\\n", ""))[1:]]
        if language == "python":
            file.write_text(block)
            words = [sys.executable, str(file)]
        ended = subprocess.run(words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True,
                               text=True)
        assert ended.returncode == 0, ended.stderr
        printed.append(ended.stdout)
    assert re.fullmatch("[0-9a-f]{16}\n", printed[2])
    assert "180 training, 20 validation, 100 test images of shape (1, 8, 8)" in printed[4]
    assert re.search(r"FGSM +clean\n.*\nas given +0\.\d+ +0\.\d+\npruned .*\ntrained ", printed[5])
    assert "of 50 images withstand everything tried within 0.1" in printed[6]
    assert (tmp_path / "audits" / "my_weights.html").exists()


def test_a_builder_that_gives_the_same_network_twice_is_refused(here, refusal):
    """Two seeds would train one network, and each would see the other's weights."""
    (here / "cached.py").write_text("""\
import functools
from torch import nn

@functools.cache
def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def anew():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
""")
    cached = models.Foreign(builder="cached.py:build")
    assert cached.build((1, 8, 8), 10)
    assert "gives the same network again" in refusal(cached.build, (1, 8, 8), 10)
    anew = models.Foreign(builder="cached.py:anew")
    assert anew.build((1, 8, 8), 10) is not anew.build((1, 8, 8), 10)
