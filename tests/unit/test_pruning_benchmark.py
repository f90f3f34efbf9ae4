"""The benchmark's row: numbers are those of the measurements, and what does not fit it is said."""

import json
from dataclasses import replace

import pytest

from scaffolding import splits_of
from sparserobust import UserError, cli, data, networks, sparsity
from sparserobust.attacks import PGD, AutoAttack
from sparserobust.config import Recipe
from sparserobust.evaluation import Accuracy
from sparserobust.models import VGG16, LeNet300100, NoisyWeights, PreActResNet, ResNet18
from sparserobust.objectives import TRADES, Adversarial, Natural
from sparserobust.reporting import pruning_benchmark as benchmark
from sparserobust.running.store import Store
from sparserobust.sparsifiers import ADMM, Channels, DynamicSparse, FixedMask, Lasso, Magnitude, OnlyNorms, Ticket
from sparserobust.studies import side_by_side


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def pruned(tiny_run):
    """Trained densely, then with a penalty, cut and fine-tuned."""
    dense = tiny_run(epochs=1)
    penalised = dense.then(sparsifier=Lasso(lam=1e-4), recipe=replace(dense.recipe, epochs=2))
    cut = penalised.then(sparsifier=Magnitude(sparsity=0.9), recipe=replace(dense.recipe, epochs=3))
    return cut.then(sparsifier=FixedMask(), recipe=replace(dense.recipe, epochs=4, stop=1))


def test_a_row_says_what_was_measured(store, pruned, digits, quick_suite):
    entry = benchmark.of_run(pruned, store, images=15)
    model = store.model(pruned)
    for key, measurement in (("clean", Accuracy(images=15)),
                             ("autoattack", Accuracy(images=15, attack=AutoAttack(epsilon=0.031)))):
        result = measurement(model, digits)
        assert (entry[key]["count"], entry[key]["total"], entry[key]["value"]) == (
            result["count"], 15, result["value"])
        assert 0 <= entry[key]["low"] <= entry[key]["value"] <= entry[key]["high"] <= 1
        assert store.find(pruned, measurement)  # kept
    assert entry["autoattack"]["count"] < entry["clean"]["count"]
    assert entry["weights_removed"] == sparsity.sparsity(model)
    assert entry["channels_removed"] == sparsity.channel_sparsity(model)
    assert (entry["parameters"], entry["parameters_left"]) == (
        sparsity.parameters(model), sparsity.remaining_parameters(model))
    assert entry["epochs"] == {"before": 1, "during": 2, "after": 4}
    assert [stage["when"] for stage in entry["stages"]] == ["before", "during", "after", "after"]
    assert (entry["run"], entry["structure"], entry["training"]) == (pruned.identity, "weights", "natural")
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert any("measured on 15 test images" in note for note in entry["notes"])
    text = benchmark.markdown([entry, entry])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and rows[2] == rows[3] and len({row.count("|") for row in rows}) == 1
    assert f"{100 * entry['clean']['value']:.2f} [" in rows[2] and "1 / 2 / 4" in rows[2]
    assert text.endswith(benchmark.ALSO) and "HO-FMN" in text


def test_a_network_without_convolutions_has_no_channels(store, tiny_run, quick_suite):
    entry = benchmark.of_run(tiny_run(epochs=0, model=LeNet300100()), store, images=4)
    assert entry["channels_removed"] == 0 == entry["weights_removed"]


def test_epochs_are_those_of_all_that_a_run_needs(tiny_run):
    """A ticket's own dense network counts; what is sparse from the start is pruned during training."""
    dense = tiny_run(epochs=3)
    ticket = tiny_run(epochs=4, sparsifier=Ticket(pruned=dense.then(sparsifier=Magnitude(sparsity=0.5), recipe=Recipe(
        epochs=0))))
    dynamic = tiny_run(epochs=5, sparsifier=DynamicSparse(sparsity=0.5, every=1, stop=9))
    normed = dense.then(sparsifier=OnlyNorms(), recipe=Recipe(epochs=1))
    for run, expected in ((ticket, [3, 0, 4]), (dynamic, [0, 5, 0]), (normed, [3, 0, 1])):
        epochs = dict.fromkeys(benchmark.TIMES, 0)
        for each in run.lineage:
            epochs[benchmark._time(each)] += each.recipe.trained_epochs
        assert list(epochs.values()) == expected


@pytest.mark.parametrize(("sparsifier", "structure"), [
    (Magnitude(sparsity=0.5), "weights"), (Channels(share=0.5), "channels"), (ADMM(sparsity=0.5), "weights"),
    (ADMM(sparsity=0.5, granularity="channel"), "channels")])
def test_whole_channels_are_told_from_weights(sparsifier, structure, tiny_run):
    run = tiny_run(sparsifier=sparsifier)
    assert benchmark._structure(run) == benchmark._structure(run.then(sparsifier=FixedMask())) == structure


@pytest.mark.parametrize(("objective", "words"), [
    (Natural(), "natural"),
    (Adversarial(attack=PGD(epsilon=0.1, step_size=0.05, steps=3)), "adversarial, pgd, 3 steps, radius 0.1"),
    (TRADES(epsilon=8 / 255, step_size=2 / 255), "trades, 10 steps, radius 0.03137")])
def test_the_attack_in_training_in_words(objective, words):
    assert benchmark.told(objective) == words


def entry_of(run, removed: float, images: int = 10_000) -> dict:
    structure = benchmark._structure(run)
    return {"data": benchmark.DATA.get(run.data.name, run.data.name), "structure": structure,
            f"{structure}_removed": removed, "clean": {"total": images}}


def test_what_fits_the_benchmark_needs_no_note_and_what_does_not_gets_one(tiny_run):
    full = tiny_run(data=data.Data(name="cifar10"), model=ResNet18(), sparsifier=Magnitude(sparsity=0.95))
    assert benchmark._notes(entry_of(full, 0.9504), full) == []
    assert benchmark._notes(entry_of(replace(full, model=VGG16()), 0.99), replace(full, model=VGG16())) == []
    structured = replace(full, sparsifier=Channels(share=0.75))
    assert not any("%" in note for note in benchmark._notes(entry_of(structured, 0.748), structured))
    for run, removed, images, words in (
            (replace(full, data=data.Data(name="digits")), 0.95, 10_000, "not digits"),
            (replace(full, data=data.Data(name="cifar10", train_images=500)), 0.95, 10_000, "part of the training"),
            (replace(full, model=ResNet18(width=16)), 0.95, 10_000, "full width"),
            (replace(full, model=PreActResNet()), 0.95, 10_000, "not preact_resnet"),
            (full, 0.97, 10_000, "97.0 % of the weights are removed, where the benchmark has 90, 95 and 99 %"),
            (structured, 0.95, 10_000, "has 50, 75 and 90 %"),
            (full, 0.95, 500, "measured on 500 test images"),
            (replace(full, data=data.Data(name="svhn")), 0.95, 10_000, "first 10,000"),
            (replace(full, model=NoisyWeights(model=ResNet18())), 0.95, 10_000, "answers are random")):
        assert words in " ".join(benchmark._notes(entry_of(run, removed, images), run))


def test_a_network_that_comes_along_is_measured_as_it_is_packed(store, monkeypatch, tmp_path, quick_suite):
    sample = data.sample()
    monkeypatch.setattr(data, "load", lambda *_: splits_of(sample.images, sample.labels))
    monkeypatch.setenv("SPARSEROBUST_BUILD", str(tmp_path))
    entry, card = benchmark.of_network("lasso", store, 2), networks.card("lasso")
    found = Accuracy(images=2)(networks.load("lasso"), splits_of(sample.images, sample.labels))
    assert entry["clean"]["count"] == found["count"] and entry["autoattack"]["count"] <= found["count"]
    assert (entry["name"], entry["run"], entry["data"]) == ("lasso", card["identity"], "CIFAR10")
    assert entry["parameters"] == card["parameters"]
    assert entry["weights_removed"] == 1 - card["weights_left"] / card["weights"]
    assert entry["epochs"] == {"before": 0, "during": 8, "after": 4}


def test_images_are_those_that_autoattack_usually_gets():
    attack = AutoAttack(epsilon=0.1)
    assert benchmark.usual_images([Accuracy(images=5), Accuracy(attack=attack, images=64)]) == 64
    assert benchmark.usual_images([Accuracy(images=5)]) is None


# ------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def asked(monkeypatch) -> list:
    """What the command asks for: runs or networks, with images; it writes rows of nothing."""
    calls: list = []
    entry = {"name": "a_name", "notes": []}

    def row(what, store, images):
        calls.append((what, images))
        return entry

    for name in ("of_run", "of_network"):
        monkeypatch.setattr(benchmark, name, row)
    monkeypatch.setattr(benchmark, "markdown", lambda entries: f"{len(entries)} rows")
    return calls


def test_the_command_finds_runs_by_study_and_labels_and_by_identity(asked, tmp_path, capsys):
    row = side_by_side.experiment("quick").row(method="lasso", cut="weights", level=0.9, seed=1)
    by_labels = ["--study", "side_by_side"]
    for label, value in {"method": "lasso", "cut": "weights", "level": "0.9", "seed": "1"}.items():
        by_labels += ["-l", label, value]
    for words in (by_labels, [row["run"].identity]):
        assert cli.main(["benchmark-row", *words, "-o", str(tmp_path)]) == 0
    assert [(run.identity, images) for run, images in asked] == [(row["run"].identity, 60)] * 2
    assert "1 rows" in capsys.readouterr().out
    assert json.loads((tmp_path / "a_name.json").read_text()) == [{"name": "a_name", "notes": []}]
    assert (tmp_path / "a_name.md").read_text() == "1 rows\n"
    assert cli.main(["benchmark-row", *by_labels[:5], "--images", "7", "-o", str(tmp_path)]) == 0
    assert len(asked) > 7 and {images for _, images in asked[2:]} == {7}
    assert len({run.identity for run, _ in asked[2:]}) == len(asked[2:])
    assert (tmp_path / "side_by_side.md").exists()
    assert cli.main(["benchmark-row", "--network", "lasso", "-o", str(tmp_path)]) == 0
    assert asked[-1] == ("lasso", 64)


@pytest.mark.parametrize(("words", "said"), [
    ([], "say which runs"), (["0123456789ab"], "no such run"), (["--study", "side_by"], "did you mean"),
    (["--study", "side_by_side", "-l", "methods", "lasso"], "method"),
    (["--study", "side_by_side", "-l", "method", "laso"], "lasso"),
    (["--study", "side_by_side", "-l", "seed", "99"], "no such run"),
    (["--network", "laso"], "lasso"), (["--network", "lasso", "--study", "iwi"], "combined"),
])  # fmt: skip
def test_a_mistake_on_the_command_line_is_one_line(words, said, asked, tmp_path, capsys):
    assert cli.main(["benchmark-row", *words, "-o", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not asked


def test_a_wrong_number_of_images_is_refused(store, pruned):
    for images in (-1, 0):
        with pytest.raises(UserError, match="images"):
            benchmark.of_run(pruned, store, images=images)
