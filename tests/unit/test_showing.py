"""`sparserobust show`: one run is found by the beginning of its identity or by its labels, and all of it is told."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sparserobust import Accuracy, cli, files, paths, provenance, showing
from sparserobust.analysis import Activations, LayerTable, WeightSparsity
from sparserobust.attacks import FGSM
from sparserobust.reporting.estimates import binomial_interval
from sparserobust.running import scales
from sparserobust.running.store import Store
from sparserobust.sparsifiers import Magnitude
from sparserobust.studies import fk_resnet

CLEAN = Accuracy()
ATTACKED = Accuracy(attack=FGSM(epsilon=0.1), images=50)


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """An empty store, which the command uses, too; nothing is published, and one scale is looked at."""
    monkeypatch.setenv("SPARSEROBUST_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("SPARSEROBUST_BUILD", str(tmp_path / "build"))
    monkeypatch.setattr(paths, "published_folder", lambda: tmp_path / "published")
    monkeypatch.setattr(showing, "scales", SimpleNamespace(names=lambda: ["quick"], checked=scales.checked))
    return Store()


@pytest.fixture
def pruned(tiny_run, store):
    """A pruned run that is stored with the one it begins with, measured."""
    run = tiny_run().then(sparsifier=Magnitude(sparsity=0.5))
    for measurement in (CLEAN, ATTACKED, WeightSparsity()):
        store.measure(run, measurement)
    return run


def shown(capsys, *words: str) -> str:
    assert cli.main(["show", *words]) == 0
    return capsys.readouterr().out


def test_processors_of_one_name_are_told_apart_where_their_instructions_are_known(monkeypatch):
    for known in ("AVX2", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda known=known: known)
        made = provenance.provenance() | {"seconds": 1}
        assert f"{made['processor']}, {known} (cpu)" in showing.machine(made)
        assert f", {known} (cpu" in provenance.summary()
    del made["instructions"]  # as records of before
    assert showing.machine(made).startswith(f"{made['processor']} (cpu)")


def test_all_that_is_known_of_a_run_is_told(pruned, store, capsys):
    text, entry = shown(capsys, pruned.identity[:6]), store.known(pruned)
    assert text.startswith(f"run {pruned.identity}\n") and f"begins with run {pruned.start.identity}" in text
    assert "\n  sparsifier: magnitude\n    sparsity: 0.5\n    scope: global  (default)\n" in text
    assert "\n    batch_size: 24\n" in text and "\n    momentum: 0.9  (default)\n" in text
    assert entry["provenance"]["processor"] in text and entry["provenance"]["commit"] in text
    assert "weight sparsity 50.00%" in text
    for row in entry["record"]["history"]:
        assert re.search(rf"^ *{row['epoch']} .*{row['loss']:.4g}", text, re.MULTILINE)
    result = store.find(pruned, ATTACKED)
    low, high = binomial_interval(result["count"], result["total"])
    assert (f"accuracy fgsm epsilon 0.1 images 50 {result['value']:.6g} {result['count']} of 50 "
            f"[{low:.4f}, {high:.4f}] ") in re.sub(" +", " ", text)
    (line,) = re.findall(r"^ *sparsity +(.*)$", text, re.MULTILINE)
    assert "[" not in line  # no sample: no interval
    assert "no scale asks for it" in text


@pytest.mark.parametrize("measurement", [Activations(images=1000), LayerTable()])
def test_counts_are_whole_and_units_over_images_have_no_interval(pruned, measurement):
    made = {"processor": "a processor", "commit": "a commit"}
    result = {"value": 0.7, "count": 2_885_041, "total": 4_000_000}
    entry = {"measured": {measurement.identity: {
        "measurement": measurement.plain(), "result": result, "provenance": made}}}
    line, = showing.numbers(pruned, entry, []).to_dict("records")
    assert line["count"] == "2885041 of 4000000" and "interval" not in line


def test_a_change_of_one_setting_is_told(pruned):
    lines = list(showing.setting_lines(replace(pruned, recipe=replace(pruned.recipe, momentum=0.5))))
    assert "  momentum: 0.5" in lines and f"start: run {pruned.start.identity}" in lines


def test_every_number_is_computed_again_in_a_store_of_its_own(pruned, store, capsys, tmp_path):
    text = shown(capsys, pruned.identity, "--again")
    assert Store(tmp_path / "build" / "again").trained(pruned.start)
    for measurement, name in ((CLEAN, "accuracy"), (WeightSparsity(), "sparsity")):
        value = f"{store.find(pruned, measurement)['value']:.6g}"
        assert re.search(rf"^ *{name} +{value} +{value} ", text, re.MULTILINE), name
    assert " again " in text and "--again" not in text


def test_what_would_be_ignored_is_refused(pruned, store, capsys):
    assert cli.main(["show", pruned.identity, "-l", "seed", "7"]) == 1
    assert "labels go with --study" in capsys.readouterr().err
    assert cli.main(["show", "--study", "fk_resnet", "-l", "method", "RVSM", "--again"]) == 1
    assert "until one is left" in capsys.readouterr().err


def test_a_number_that_is_none_is_told(pruned, store, capsys):
    none = WeightSparsity()
    path = store.places(pruned, [none])[3]
    entry = files.read_json(path)
    entry["result"] |= {"value": None, "parts": {"kappa": None}}
    files.write_json(path, files.sealed({key: entry[key] for key in entry if key != "sha256"}, "a test"))
    text = shown(capsys, pruned.identity)
    assert re.search(r"^ *sparsity +none ", text, re.MULTILINE)
    assert re.search(r"^ *sparsity kappa +none ", text, re.MULTILINE)


def test_a_run_of_a_study_has_its_place_and_the_command_of_its_table(store, capsys):
    experiment = fk_resnet.experiment("quick")
    row = experiment.tables["table 2"][-1]
    words = {name: str(value) for name, value in row.items() if name not in ("run", "measurements")}
    text = shown(capsys, "--study", "fk_resnet", *(word for pair in words.items() for word in ("-l", *pair)))
    assert text.startswith(f"run {row['run'].identity}\n")
    assert f"  fk_resnet at scale quick: net {row['net']}, " in text and "table 2" in text
    assert 'not computed here yet: sparserobust compute --scale quick --study fk_resnet --table "' in text
    assert shown(capsys, row["run"].identity) == text


def test_several_runs_of_a_study_are_listed(store, capsys):
    lines = shown(capsys, "--study", "rsr", "-l", "seed", "0").splitlines()
    found = showing.chosen("quick", "rsr", {"seed": "0"})
    assert len(lines) == len(found) + 1 > 3
    assert {word for line in lines for word in line.split()} >= found.keys()


def test_a_published_run_is_found_without_a_store(pruned, store, capsys, tmp_path, monkeypatch):
    store.publish([pruned], "laptop")
    monkeypatch.setenv("SPARSEROBUST_STORE", str(tmp_path / "empty"))
    assert "accuracy fgsm epsilon 0.1" in shown(capsys, pruned.identity[:8])
    path = tmp_path / "published" / "laptop" / f"{pruned.identity}.json"
    content = json.loads(path.read_text())
    content["record"]["parameters"] += 1
    path.write_text(json.dumps(content))
    assert cli.main(["show", pruned.identity]) == 1 and "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["nonsense"], ["fffffffffffff"], ["0" * 12], ["--study", "rsrr"],
                                   ["--study", "rsr", "-l", "seeed", "0"], ["--study", "rsr", "-l", "seed", "77"],
                                   ["../x"], ["abc", "--study", "rsr"],
                                   ["--study", "rsr", "-l", "seed", "0", "-l", "seed", "1"]])
def test_what_is_no_run_is_one_line(words, store, capsys):
    assert cli.main(["show", *words]) == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1


def test_a_beginning_that_several_have_names_them(store, refusal, tmp_path):
    for identity in ("abc000000000", "abc111111111"):
        files.write(tmp_path / "published" / "laptop" / f"{identity}.json", b"{}")
    assert refusal(showing.find, "abc", store) == "2 runs begin with abc: abc000000000, abc111111111"
