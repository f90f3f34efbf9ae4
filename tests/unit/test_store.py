"""The run store: trained once and found again, and what happens to it when disks and processes fail."""

import errno
import importlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scaffolding import Interrupt, experiment_of, published_entry
from sparserobust import UserError, cli, data, files, imagewise, paths, provenance, studies, training
from sparserobust.analysis import WeightSparsity, WithoutBlankPixels
from sparserobust.attacks import FGSM
from sparserobust.config import Measurement, Run, Sparsifier
from sparserobust.evaluation import Accuracy
from sparserobust.running import engine, records, scales, sweep
from sparserobust.running import store as store_module
from sparserobust.running.store import Store
from sparserobust.settings import settings
from sparserobust.sparsifiers import RGSM, Magnitude, Ticket

PARTS = {"record.json", "model.safetensors", "provenance.json"}


@pytest.fixture(autouse=True)
def published(tmp_path, monkeypatch) -> Path:
    """An empty folder of published records, instead of the repository's."""
    monkeypatch.setattr(paths, "published_folder", lambda: tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Identities of the runs that were trained, in order."""
    train, identities = training.train, []

    def counted(run, *args, **more):
        identities.append(run.identity)
        return train(run, *args, **more)

    monkeypatch.setattr(training, "train", counted)
    return identities


@pytest.fixture
def fresh(tmp_path):
    """A store as a new process would open it."""
    return lambda **more: Store(tmp_path / "store", **more)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name in ("record.json", "model.safetensors")}


# ------------------------------------------------------------------------------------- once, and found again


def test_a_run_is_trained_once_and_found_again(fresh, trained, tiny_run):
    run, store = tiny_run(), fresh()
    record = store.train(run)
    for again in (store, fresh(), fresh()):
        assert again.train(run) == record
        assert again.record(run) == record
        assert again.model(run) is not None
        assert again.seconds(run) > 0
    assert trained == [run.identity]
    assert names(store.folder / run.identity) == PARTS
    assert fresh().train(tiny_run(seed=1)) != record
    assert trained == [run.identity, tiny_run(seed=1).identity]


def test_the_record_says_what_was_trained(fresh, tiny_run, digits):
    run = tiny_run(sparsifier=RGSM(lambda1=0.75))
    record, direct = fresh().train(run), training.train(run, digits)
    assert record["run"] == run.plain()
    assert record["history"] == direct.history
    assert record["parameters"] == sum(p.numel() for p in direct.model.parameters())
    weights = torch.cat([p.flatten() for p in direct.model.parameters() if p.dim() > 1])
    assert record["sparsity"] == pytest.approx((weights == 0).double().mean().item())
    assert 0 < record["channel_sparsity"] == direct.history[-1]["channel_sparsity"]
    assert record["weights_sha256"] == files.sha256(fresh().folder / run.identity / "model.safetensors")
    stored = fresh().model(run)
    assert not stored.training
    assert all(torch.equal(a, b) for a, b in zip(stored.state_dict().values(), direct.model.state_dict().values(),
                                                 strict=True))


def test_two_stores_hold_the_same_bit_for_bit(tmp_path, tiny_run):
    run = tiny_run(sparsifier=RGSM(lambda1=0.75))
    for name in ("one", "two"):
        Store(tmp_path / name).train(run)
    assert content(tmp_path / "one" / run.identity) == content(tmp_path / "two" / run.identity)
    assert content(tmp_path / "one" / run.identity)["record.json"]


def test_measurements_are_taken_once(fresh, trained, monkeypatch, tiny_run, digits):
    run, taken = tiny_run(), []
    call = Accuracy.__call__
    monkeypatch.setattr(Accuracy, "__call__", lambda self, *a: taken.append(self.identity) or call(self, *a))
    clean, few = Accuracy(), Accuracy(images=100)
    assert fresh().find(run, clean) is None
    first = fresh().measure(run, clean)
    assert first == fresh().measure(run, clean) == fresh().find(run, clean)
    assert fresh().measure(run, few)["total"] == 100
    assert taken == [clean.identity, few.identity]
    assert trained == [run.identity]
    model = training.train(run, digits).model
    assert first["count"] == (model(digits.test.images).argmax(1) == digits.test.labels).sum()
    assert (first["value"], first["total"], first["where"]) == (first["count"] / 500, 500, "store")


def test_chains_share_their_beginning(fresh, trained, tiny_run):
    dense = tiny_run()
    pruned = [tiny_run(start=dense, epochs=0, sparsifier=Magnitude(sparsity=s)) for s in (0.3, 0.6)]
    tuned = tiny_run(start=pruned[1], sparsifier=Magnitude(sparsity=0.6), epochs=1)
    for run in (tuned, *pruned):
        fresh().train(run)
    assert trained == [r.identity for r in (dense, pruned[1], tuned, pruned[0])]
    weights = {r.identity: fresh().model(r).state_dict() for r in (dense, pruned[0])}
    for name, t in weights[pruned[0].identity].items():
        assert torch.equal(t, torch.where(t == 0, t, weights[dense.identity][name]))


@pytest.mark.parametrize("changes", [{}, {"averaging": 0.5}, {"sparsifier": RGSM(beta=0.5, lambda1=5e-3)}],
                         ids=["plain", "averaged", "split"])
def test_a_twin_gets_the_last_epoch_of_a_training_that_hands_over_the_best(changes, fresh, trained, tiny_run, tmp_path):
    """As it would have trained itself, to the bit."""
    common = {"epochs": 4, "schedule": "constant", "lr": 0.2, "precision": "float32", "watched": True} | changes
    for seed in range(20):
        best, last = (tiny_run(**common, select=select, seed=seed) for select in ("best", "last"))
        history = [row["validation"] for row in fresh().train(best)["history"]]
        if history[-1] < max(history):
            break
    else:
        pytest.fail("of no seed the last epoch is worse than the best")
    assert last.twin == best and best.twin is None and tiny_run(**common | {"watched": False}).twin is None
    trained.clear()
    fresh().train(last)
    assert not trained
    alone = Store(tmp_path / "alone")
    alone.train(last)
    assert content(fresh()._home(last)) == content(alone._home(last))
    assert content(fresh()._home(last))["model.safetensors"] != content(fresh()._home(best))["model.safetensors"]
    assert fresh().seconds(last) == fresh().seconds(best)


@pytest.mark.parametrize("harm", ["none", "damaged", "of another", "missing"])
def test_a_twin_is_trained_itself_where_the_last_epoch_of_the_other_is_not_to_be_had(harm, fresh, trained, tiny_run,
                                                                                    caplog):
    best, last = tiny_run(watched=True, select="best"), tiny_run(watched=True)
    fresh().train(best)
    kept = fresh()._home(best) / "last.safetensors"
    if harm == "damaged":
        kept.write_bytes(kept.read_bytes()[:-4] + b"1234")
    elif harm == "of another":
        files.save_tensors(kept, files.load_tensors(kept)[0], {"run": last.identity})
    elif harm == "missing":
        kept.unlink()
    trained.clear()
    fresh().train(last)
    assert trained == [last.identity] * (harm != "none")
    assert caplog.text.count("it is trained itself") == (harm in ("damaged", "of another"))


def test_what_an_attack_follows_is_not_run_again_where_it_is_stored(fresh, tiny_run, monkeypatch):
    first = Accuracy(images=30, attack=FGSM(epsilon=0.1))
    then, calls, call = Accuracy(images=20, attack=FGSM(epsilon=0.2), after=first), [], FGSM.__call__
    alone = fresh().measure(tiny_run(), then)

    def counted(self, *given):
        calls.append(self.epsilon)
        return call(self, *given)

    monkeypatch.setattr(FGSM, "__call__", counted)
    other = Store(fresh().folder.with_name("other"), use_published=False)
    other.measure(tiny_run(), first)
    assert other.measure(tiny_run(), then) == alone and calls == [0.1, 0.2]


def test_what_a_sparsifier_needs_is_trained_before_and_handed_to_it(fresh, trained, tiny_run):
    dense = tiny_run()
    pruned = tiny_run(start=dense, epochs=0, sparsifier=Magnitude(sparsity=0.5))
    ticket = tiny_run(sparsifier=Ticket(pruned=pruned), epochs=1)
    fresh().train(ticket)
    assert trained == [run.identity for run in (dense, pruned, ticket)]
    assert [run.identity for run in ticket.lineage] == trained and ticket.needs == (pruned,)
    zero = {run.identity: {n: t == 0 for n, t in fresh().model(run).state_dict().items() if t.dim() in (2, 4)}
            for run in (pruned, ticket)}
    assert all(torch.equal(t, zero[ticket.identity][name]) for name, t in zero[pruned.identity].items())


def test_a_sparsifier_gets_the_weights_of_the_runs_it_names_in_their_order(fresh, tiny_run):
    handed = []

    @settings
    class Two(Sparsifier):
        first: Run
        second: Run

        @property
        def required_runs(self):
            return self.first, self.second

        def start(self, model, *others):
            handed.extend(others)
            return {}

    named = tiny_run(seed=1, epochs=0), tiny_run(seed=2, epochs=0)
    fresh().train(tiny_run(start=tiny_run(epochs=0), sparsifier=Two(first=named[0], second=named[1]), epochs=0))
    for run, weights in zip(named, handed, strict=True):
        assert all(torch.equal(t, weights[name]) for name, t in fresh().model(run).state_dict().items())


def test_progress_counts_the_epochs_that_are_trained(fresh, tiny_run):
    told = []
    fresh().measure(tiny_run(epochs=3, stop=1), WeightSparsity(), lambda *what: told.append(what))
    assert told[-2:] == [("training", 1), (f"measuring {WeightSparsity.kind}", 1)]


# ----------------------------------------------------------------------------------------------- damage


def cut_record(home):
    (home / "record.json").write_bytes((home / "record.json").read_bytes()[:-10])


def empty_record(home):
    (home / "record.json").write_text("{}")


def other_settings(home):
    record = json.loads((home / "record.json").read_text())
    record["run"]["seed"] = 77
    (home / "record.json").write_text(json.dumps(record))


def altered_weights(home):
    weights = bytearray((home / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (home / "model.safetensors").write_bytes(weights)


def no_weights(home):
    (home / "model.safetensors").unlink()


def one_digit(path):
    """Changes the first digit of a result, or of the seconds it took."""
    text, changed = re.subn(r'("value"|"seconds"): (\d)', lambda m: f"{m[1]}: {(int(m[2]) + 1) % 10}", path.read_text(),
                            count=1)
    assert changed
    path.write_text(text)


def another_count(home):
    record = json.loads((home / "record.json").read_text())
    record["history"][0]["loss"] += 1e-9
    (home / "record.json").write_text(json.dumps(record))


def of_another_run(home):
    other = Store(home.parent.parent / "other")
    run = Run.parse(json.loads((home / "record.json").read_text())["run"] | {"seed": 77})
    other.train(run)
    for name in PARTS:
        (home / name).write_bytes((other.folder / run.identity / name).read_bytes())


def a_folder(home):
    (home / "record.json").unlink()
    (home / "record.json").mkdir()


def weights_are_a_folder(home):
    (home / "model.safetensors").unlink()
    (home / "model.safetensors").mkdir()


def without_seal(home):
    record = json.loads((home / "record.json").read_text())
    (home / "record.json").write_text(json.dumps({key: v for key, v in record.items() if key != "sha256"}))


@pytest.mark.parametrize("damage", [
    cut_record, empty_record, other_settings, altered_weights, no_weights, another_count, of_another_run, a_folder,
    weights_are_a_folder, without_seal])
def test_a_damaged_run_is_said_and_trained_anew(damage, fresh, trained, caplog, tiny_run):
    run, home = tiny_run(), fresh().folder / tiny_run().identity
    value = fresh().measure(run, Accuracy())
    whole = content(home)
    damage(home)
    trained.clear()
    fresh().train(run)
    assert any(run.identity in line and "damaged" in line and "\n" not in line for line in caplog.messages)
    assert trained == [run.identity]
    assert content(home) == whole
    assert fresh().find(run, Accuracy()) is None  # measured on weights that are gone
    assert fresh().measure(run, Accuracy()) == value


@pytest.mark.parametrize("damage", [b"", b'{"result": {"value": 1', b"[]", b"{}", b'{"result": 3}', b"\xff\xfe"])
def test_a_damaged_measurement_is_said_and_taken_anew(damage, fresh, trained, caplog, tiny_run):
    run = tiny_run()
    value = fresh().measure(run, WeightSparsity())
    (path,) = (fresh().folder / run.identity / "measured").iterdir()
    path.write_bytes(damage)
    assert fresh().measure(run, WeightSparsity()) == value
    assert any(run.identity in line and path.name in line for line in caplog.messages)
    assert trained == [run.identity]
    assert files.read_json(path)["result"]["value"] == value["value"]


@pytest.mark.parametrize("damage", [
    one_digit,
    lambda path: path.write_text(re.sub('"value": [0-9.]+', '"value": 7', path.read_text())),
    lambda path: path.write_text(path.read_text().replace('"value": ', '"value": NaN, "x": ')),
    lambda path: (path.unlink(), path.mkdir()),
    lambda path: path.write_text("[" * 100_000),
])
def test_no_number_is_believed_that_was_changed_since_it_was_measured(damage, fresh, trained, caplog, tiny_run):
    run = tiny_run()
    found = fresh().measure(run, Accuracy(images=30))
    (path,) = (fresh().folder / run.identity / "measured").iterdir()
    damage(path)
    assert fresh().find(run, Accuracy(images=30)) is None
    assert any(run.identity in line and path.name in line and "\n" not in line for line in caplog.messages)
    assert fresh().measure(run, Accuracy(images=30)) == found
    assert trained == [run.identity]


def test_a_measurement_copied_from_another_run_or_of_another_measurement_is_taken_anew(fresh, caplog, tiny_run):
    runs = tiny_run(), tiny_run(seed=1)
    few, fewer = Accuracy(images=30), Accuracy(images=20)
    right = {(n, m): fresh().measure(run, m)["count"] for n, run in enumerate(runs) for m in (few, fewer)}

    def place(n, measurement):
        return fresh().folder / runs[n].identity / "measured" / f"{measurement.identity}.json"

    for source in ((1, few), (0, fewer)):
        place(0, few).write_bytes(place(*source).read_bytes())
        caplog.clear()
        assert fresh().measure(runs[0], few)["count"] == right[0, few]
        assert len(caplog.messages) == 1 and place(0, few).name in caplog.messages[0]


def test_a_transfer_attack_from_a_network_that_has_other_weights_now_is_taken_anew(fresh, tiny_run, caplog):
    run, source = tiny_run(), tiny_run(seed=1)
    transfer = Accuracy(attack=FGSM(epsilon=0.1), images=30, source=source)
    first = fresh().measure(run, transfer)
    (path,) = (fresh().folder / run.identity / "measured").iterdir()
    taken = files.read_json(path)
    assert taken["weights"] == {each.identity: fresh().record(each)["weights_sha256"] for each in (run, source)}
    other = {key: value for key, value in taken.items() if key != "sha256"}
    other["weights"][source.identity] = "0"
    files.write_json(path, files.sealed(other, "test"))
    assert fresh().find(run, transfer) is None and "other weights" in caplog.messages[0]
    assert fresh().measure(run, transfer) == first


@pytest.mark.parametrize("part", ["record", "provenance", "measured"])
@pytest.mark.parametrize("change", [
    lambda text: re.sub('"(value|loss|seconds)": ', '"\\1": 7', text),
    lambda text: text.replace('"sha256": "', '"sha256": "0'),
    lambda text: text.replace('"identity": "', '"identity": "0'),
    lambda text: text.replace('"sha256"', '"sha255"'),
])
def test_a_changed_published_record_is_named_and_not_believed(part, change, fresh, published, tmp_path, tiny_run,
                                                              refusal):
    run = tiny_run()
    fresh().measure(run, Accuracy(images=30))
    (path,) = fresh().publish([run], "quick")
    entry = json.loads(path.read_text())
    entry[part] = json.loads(change(json.dumps(entry[part])))
    path.write_text(json.dumps(entry))
    assert path.name in refusal(Store(tmp_path / "elsewhere").find, run, Accuracy(images=30))


def test_the_published_record_of_another_run_is_not_believed(fresh, published, tmp_path, tiny_run, refusal):
    fresh().train(tiny_run())
    (path,) = fresh().publish([tiny_run()], "quick")
    copy = path.with_name(f"{tiny_run(seed=1).identity}.json")
    copy.write_bytes(path.read_bytes())
    assert copy.name in refusal(Store(tmp_path / "elsewhere").record, tiny_run(seed=1))


def test_a_result_that_is_not_finite_is_not_stored(fresh, monkeypatch, tiny_run, refusal):
    monkeypatch.setattr(WeightSparsity, "__call__", lambda *_: {"value": 0.5, "parts": {"norm": math.nan}})
    message = refusal(fresh().measure, tiny_run(), WeightSparsity())
    assert WeightSparsity.kind in message and "not finite" in message
    assert fresh().find(tiny_run(), WeightSparsity()) is None


def test_damaged_provenance_is_said_where_it_is_asked_for(fresh, tiny_run, refusal):
    fresh().train(tiny_run())
    one_digit(fresh().folder / tiny_run().identity / "provenance.json")
    assert "provenance.json" in refusal(fresh().seconds, tiny_run())
    assert fresh().measure(tiny_run(), WeightSparsity())["value"] == 0  # which needs it not


def test_the_number_of_threads_is_the_recipes(fresh, tmp_path, tiny_run):
    """Whatever torch is set to: another number would add up in another order, to another network."""
    run, two = tiny_run(epochs=2), tiny_run(epochs=2, threads=2)
    with provenance.with_threads(2):
        Store(tmp_path / "other").measure(run, Accuracy(images=30))
        assert torch.get_num_threads() == 2
    fresh().measure(run, Accuracy(images=30))
    assert content(tmp_path / "other" / run.identity) == content(fresh().folder / run.identity)
    (path,) = (fresh().folder / run.identity / "measured").iterdir()
    made = [files.read_json(path)["provenance"], files.read_json(fresh().folder / run.identity / "provenance.json")]
    assert [each["threads"] for each in made] == [1, 1]
    used = []
    fresh().train(two, lambda *_: used.append(torch.get_num_threads()))
    assert set(used) == {2} and two.identity != run.identity


def test_whoever_waits_for_another_process_says_for_whom_and_since_when(fresh, tmp_path, monkeypatch, caplog, tiny_run):
    store, holds, done = fresh(), threading.Event(), threading.Event()
    monkeypatch.setattr(store_module, "PATIENCE", 0.1)

    def hold():
        with store._locked(tiny_run()):
            holds.set()
            while not caplog.messages and not done.is_set():
                time.sleep(0.01)

    with ThreadPoolExecutor() as threads:
        held = threads.submit(hold)
        holds.wait()
        try:
            fresh().train(tiny_run())
        finally:
            done.set()
        held.result()
    assert f"waiting for process {os.getpid()} on " in caplog.messages[0] and time.strftime("%Y") in caplog.messages[0]
    assert names(store.folder / ".locks") == {f"{tiny_run().identity}.lock"}


def test_another_format_is_trained_anew(fresh, trained, monkeypatch, tiny_run):
    run = tiny_run()
    assert fresh().train(run)["format"] == records.FORMAT
    monkeypatch.setattr(records, "FORMAT", records.FORMAT + 1)
    assert fresh().train(run)["format"] == records.FORMAT
    assert trained == [run.identity] * 2


def test_a_run_damaged_twice_is_still_mended(fresh, trained, tiny_run):
    for _ in range(3):
        fresh().train(tiny_run())
        cut_record(fresh().folder / tiny_run().identity)
    assert fresh().train(tiny_run())["run"] == tiny_run().plain()
    assert len(trained) == 4


# ------------------------------------------------------------------------------------------- interruption


def test_an_interrupted_run_is_not_there_and_goes_on_to_the_same_record(fresh, tmp_path, tiny_run):
    run, told = tiny_run(epochs=3), []

    def stop(doing, epochs):
        if epochs >= 2:
            raise Interrupt

    with pytest.raises(Interrupt):
        fresh().train(run, stop)
    assert not (fresh().folder / run.identity).exists()
    assert fresh().find(run, Accuracy()) is None
    fresh().train(run, lambda doing, epochs: told.append((doing, epochs)))
    assert told == [("training", 3)]
    Store(tmp_path / "undisturbed").train(run)
    assert content(fresh().folder / run.identity) == content(tmp_path / "undisturbed" / run.identity)
    assert names(fresh().folder / run.identity) == PARTS
    assert names(fresh().folder) == {run.identity, ".locks"}


@pytest.mark.parametrize("last", ["model.safetensors", "provenance.json", "record.json"])
def test_a_crash_between_the_last_files_leaves_no_half_run(last, fresh, tmp_path, monkeypatch, tiny_run):
    run, write = tiny_run(), files.write
    Store(tmp_path / "undisturbed").train(run)

    def crash(path, content):
        write(path, content)
        if path.name == last:
            raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", crash)
        with pytest.raises(Interrupt):
            fresh().train(run)
    assert not (fresh().folder / run.identity).exists()
    fresh().train(run)
    assert content(fresh().folder / run.identity) == content(tmp_path / "undisturbed" / run.identity)
    assert names(fresh().folder / run.identity) == PARTS


def test_what_a_killed_write_left_behind_does_not_end_up_in_the_run(fresh, tiny_run):
    partial = fresh().folder / f".partial-{tiny_run().identity}"
    partial.mkdir(parents=True)
    (partial / ".checkpoint.safetensors.4711").write_bytes(b"half a checkpoint")
    fresh().train(tiny_run())
    assert names(fresh().folder / tiny_run().identity) == PARTS


def test_a_failing_run_leaves_nothing_complete(fresh, tiny_run, refusal):
    run = tiny_run(lr=1e20)
    assert run.identity in refusal(fresh().train, run)
    assert not (fresh().folder / run.identity).exists()


# --------------------------------------------------------------------------------------------- publishing


def test_published_records_stand_in_for_computing(fresh, trained, published, tmp_path, tiny_run):
    run = tiny_run()
    value = fresh().measure(run, Accuracy())
    record, seconds = fresh().record(run), fresh().seconds(run)
    (path,) = fresh().publish([run], "quick")
    assert path == published / "quick" / f"{run.identity}.json"
    assert str(tmp_path) not in path.read_text()
    elsewhere = Store(tmp_path / "elsewhere")
    assert elsewhere.measure(run, Accuracy()) == value | {"where": "published"}
    assert elsewhere.record(run) == record
    assert elsewhere.seconds(run) == seconds
    assert trained == [run.identity]
    assert elsewhere.find(run, Accuracy(images=7)) is None  # not measured when it was published
    own = Store(tmp_path / "elsewhere", use_published=False)
    assert own.find(run, Accuracy()) is None
    assert own.measure(run, Accuracy()) == value
    assert trained == [run.identity] * 2
    assert Store(tmp_path / "elsewhere").measure(run, Accuracy())["where"] == "store"


def test_a_published_record_has_no_weights_to_begin_with(fresh, trained, tmp_path, tiny_run):
    dense = tiny_run()
    pruned = tiny_run(start=dense, epochs=0, sparsifier=Magnitude(sparsity=0.5))
    fresh().train(dense)
    fresh().publish([dense], "quick")
    Store(tmp_path / "elsewhere").train(pruned)
    assert trained == [dense.identity, dense.identity, pruned.identity]


def test_published_records_of_another_format_do_not_count(fresh, trained, published, monkeypatch, tmp_path, tiny_run):
    fresh().train(tiny_run())
    fresh().publish([tiny_run()], "quick")
    monkeypatch.setattr(records, "FORMAT", records.FORMAT + 1)
    assert Store(tmp_path / "elsewhere").record(tiny_run())["format"] == records.FORMAT
    assert len(trained) == 2


def test_only_complete_runs_are_published(fresh, published, tiny_run, refusal):
    assert tiny_run().identity in refusal(fresh().publish, [tiny_run()], "quick")
    assert not published.exists()


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_publishing_keeps_what_another_machine_computed_and_whatever_else_is_there(fresh, published, tiny_run):
    ours, theirs, other = (tiny_run(seed=seed) for seed in (0, 1, 2))
    fresh().train(ours)
    for run in (theirs, other):
        files.write_json(published / "quick" / f"{run.identity}.json", published_entry(run))
    files.write(published / "laptop" / "0123.json", b"another scale")
    before = everything(published)
    written = fresh().publish([ours, theirs], "quick")
    assert {path.stem for path in written} == {ours.identity, theirs.identity}
    assert {path.parent for path in written} == {published / "quick"}
    after = everything(published)
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {published / "quick" / f"{ours.identity}.json"}


def test_what_is_measured_in_part_does_not_replace_what_is_published_of_other_weights(fresh, published, tiny_run):
    run = tiny_run()
    fresh().train(run)
    path = published / "quick" / f"{run.identity}.json"
    files.write_json(path, published_entry(run, {Accuracy().identity: (Accuracy(), {})}))
    before = path.read_text()
    fresh().publish([run], "quick", in_part={run.identity})
    assert path.read_text() == before
    fresh().publish([run], "quick")
    assert path.read_text() != before


def test_what_replaces_more_than_was_measured_here_is_told_and_what_is_the_same_is_left(fresh, published, tiny_run,
                                                                                        caplog):
    run = tiny_run()
    fresh().measure(run, Accuracy())
    path = published / "quick" / f"{run.identity}.json"
    files.write_json(path, published_entry(run, {Accuracy().identity: (Accuracy(), {})}))
    fresh().publish([run], "quick")
    assert not caplog.records  # all of it was measured anew
    made = path.stat().st_mtime_ns
    fresh().publish([run], "quick")
    assert path.stat().st_mtime_ns == made
    files.write_json(path, published_entry(run, {m.identity: (m, {}) for m in (Accuracy(), Accuracy(images=9))}))
    fresh().publish([run], "quick")
    (record,) = caplog.records
    assert "1 published records" in record.getMessage() and path.name in record.getMessage()


def test_nothing_is_written_unless_all_that_is_asked_for_is_known(fresh, published, tiny_run, refusal):
    fresh().train(tiny_run())
    files.write_json(published / "quick" / f"{tiny_run(seed=1).identity}.json", published_entry(tiny_run(seed=1)))
    before = everything(published)
    message = refusal(fresh().publish, [tiny_run(seed=seed) for seed in (0, 1, 2, 0)], "quick")
    assert "1 of 3 runs" in message and tiny_run(seed=2).identity in message
    assert everything(published) == before


def test_a_run_may_be_published_at_two_scales(fresh, published, tmp_path, tiny_run):
    run, clean, few = tiny_run(), Accuracy(), Accuracy(images=100)
    value = fresh().measure(run, clean)
    (first,) = fresh().publish([run], "quick")
    elsewhere = Store(tmp_path / "elsewhere")  # where the run is known from the other scale alone
    (second,) = elsewhere.publish([run], "laptop")
    assert second == published / "laptop" / first.name and second.read_bytes() == first.read_bytes()
    second.unlink()
    elsewhere.train(run)  # to the same weights: what was measured then holds
    elsewhere.measure(run, few)
    assert elsewhere.publish([run], "laptop") == [second]
    assert files.read_json(second)["measured"].keys() == {clean.identity, few.identity}
    assert files.read_json(first)["measured"].keys() == {clean.identity}
    assert Store(tmp_path / "third").find(run, clean) == value | {"where": "published"}


def test_what_a_run_begins_with_does_not_replace_what_was_measured_of_other_weights(fresh, published, tiny_run):
    """Pages show those measurements, and of the new weights none may be known."""
    first = tiny_run()
    second = tiny_run(start=first)
    path, theirs = published / "quick" / f"{first.identity}.json", published_entry(
        first, {Accuracy().identity: (Accuracy(), {"value": 0.1})})
    files.write_json(path, theirs)
    store = fresh()
    store.train(second)
    store.publish([second], "quick")
    assert files.read_json(path) == theirs
    store.publish([first, second], "quick")  # unless it is asked for
    assert files.read_json(path)["record"]["weights_sha256"] == store.record(first)["weights_sha256"]


def test_an_earlier_result_on_fewer_images_stands_in_only_where_that_is_asked_for(earlier, fresh):
    run, find = earlier("cifar10", Accuracy(images=500), {"value": 0.5, "total": 500})
    wanted = Accuracy(images=2000)
    assert fresh().find(run, wanted) is None and fresh().find(run, Accuracy(images=100), fewer_images=True) is None
    for measurement in (wanted, Accuracy()):
        assert fresh().find(run, measurement, fewer_images=True) == find()
    assert fresh(use_earlier=False).find(run, wanted, fewer_images=True) is None
    assert fresh().find(run, Accuracy(images=2000, noise=False), fewer_images=True) is None


def test_of_two_published_records_that_of_the_scale_counts(fresh, published, tiny_run):
    run = tiny_run()
    x, y, z = WeightSparsity(), Accuracy(images=7), Accuracy(images=8)
    same, here, there = ({"value": value} for value in (0.1, 0.2, 0.3))
    other = published_entry(run, {z.identity: (z, there)}, weights="1")
    for scale, known in (("a", published_entry(run, {x.identity: (x, there), y.identity: (y, same)})),
                         ("b", published_entry(run, {x.identity: (x, here)})), ("c", other)):
        files.write_json(published / scale / f"{run.identity}.json", known)
    (path,) = fresh().publish([run], "b")
    assert files.read_json(path) == published_entry(run, {x.identity: (x, here), y.identity: (y, same)})
    (path,) = fresh().publish([run], "c")
    assert files.read_json(path) == other


@pytest.fixture
def publish(tmp_path, monkeypatch, capsys, tiny_run):
    """`publish(names of studies, ...)`: exit code, output and errors of the command where these have settings of the
    scale, for a store in which the run of study `one` and the two of study `two` are complete."""
    grids = {"one": [tiny_run()], "two": [tiny_run(seed=1), tiny_run(seed=2)], "none": []}

    def experiment(paper):
        return lambda scale: experiment_of([{"run": run} for run in grids[paper]], scale)

    modules = {paper: SimpleNamespace(experiment=experiment(paper)) for paper in grids}
    monkeypatch.setattr(studies, "modules", lambda: modules)
    monkeypatch.setattr(scales, "settings_folder", lambda: tmp_path)
    (tmp_path / "scales.yaml").write_text("small: for this test")
    monkeypatch.setenv("SPARSEROBUST_STORE", str(tmp_path / "store"))
    for run in (*grids["one"], *grids["two"]):
        Store().train(run)

    def publish(studies, *options):
        for name in grids:
            section = "small" if name in studies.split() else "shared"
            (tmp_path / f"{name}.yaml").write_text(f"{section}: {{seeds: [0]}}")
        capsys.readouterr()
        code = cli.main(["publish", "--scale", "small", *options])
        return code, *capsys.readouterr()

    return publish


def test_a_shortened_scale_file_removes_nothing_unless_told_to(publish, published, tiny_run):
    code, out, _ = publish("one two none")
    assert code == 0 and f"3 records in {published / 'small'}" in out and "more records" not in out
    files.write(published / "other" / "0123.json", b"another scale")
    before = everything(published)
    assert len(before) == 4
    code, out, err = publish("one")
    assert code == 0 and not err and everything(published) == before
    assert "1 records in" in out and "no settings for two, none" in out
    (line,) = (line for line in out.splitlines() if line.startswith("2 more records"))
    kept = {published / "small" / f"{tiny_run(seed=seed).identity}.json" for seed in (1, 2)}
    assert min(kept).name in line and "kept" in line and "--scale small --prune" in line
    code, out, _ = publish("one", "--prune")
    assert code == 0 and f"2 more records that scale small does not ask for, such as {min(kept).name}: removed" in out
    assert everything(published).keys() == before.keys() - kept
    assert "more records" not in publish("one", "--prune")[1]


@pytest.mark.parametrize("text", ["", "none", "unknown"])
@pytest.mark.parametrize("options", [[], ["--prune"]])
def test_a_scale_that_asks_for_no_runs_is_said_and_removes_nothing(text, options, publish, published):
    publish("one two")
    before = everything(published)
    assert len(before) == 3
    code, out, err = publish(text, *options)
    assert code == 1 and not out and "scale small asks for no runs" in err and err.count("\n") == 1
    assert everything(published) == before


@pytest.mark.parametrize("options", [[], ["--prune"]])
def test_publishing_where_nothing_is_computed_says_so_and_removes_nothing(options, publish, published, tmp_path,
                                                                          monkeypatch):
    files.write(published / "small" / "0123.json", b"of another run")
    monkeypatch.setenv("SPARSEROBUST_STORE", str(tmp_path / "empty"))
    code, out, err = publish("one two", *options)
    assert code == 1 and not out and "3 of 3 runs are not complete" in err and err.count("\n") == 1
    assert everything(published) == {published / "small" / "0123.json": b"of another run"}


def test_a_record_of_another_format_is_not_kept(fresh, published, tiny_run, refusal):
    path = published / "quick" / f"{tiny_run().identity}.json"
    files.write_json(path, {"record": {"format": records.FORMAT - 1}})
    assert tiny_run().identity in refusal(fresh().publish, [tiny_run()], "quick")


@pytest.mark.parametrize("same", [True, False])
def test_published_numbers_are_not_mixed_with_those_of_other_weights(same, fresh, published, tiny_run):
    run = tiny_run()
    record = fresh().train(run)
    path, known = published / "quick" / f"{run.identity}.json", Accuracy(images=7)
    files.write_json(path, published_entry(run, {known.identity: (known, {"value": 0.5})},
                                           record["weights_sha256"] if same else "0"))
    found = fresh().find(run, Accuracy(images=7))
    assert (found is not None) == same
    fresh().publish([run], "quick")
    assert (Accuracy(images=7).identity in files.read_json(path)["measured"]) == same


# ------------------------------------------------------------------------ results of the first revision

KNOWN = {  # keys and settings as published at commit fc385eb, before images were drawn at random
    "c35e7fd91e7c": {"kind": "accuracy"},
    "0286af32cfe5": {"kind": "distance", "attack": {"kind": "deepfool"}, "images": 50},
    "0591b16b59d1": {"kind": "margins"},
    "9a611ea2013c": {"kind": "activations"},
    "0030934f08b5": {"kind": "stability", "direction": "gradient", "draws": 8, "images": 50},
    "9cec3f75f5c7": {"kind": "radius_order", "radius": 3.0,
                     "cw": {"kind": "cw_l2", "constant": 0.3, "lr": 0.1, "search_steps": 5}},
    "5e55c7eadead": {"kind": "linear_radii", "radii": [0.05, 0.1, 0.2, 0.3]},
    "3adcbe978c35": {"kind": "theorem_31", "radii": [0.05, 0.1, 0.2, 0.3]},
    "37f8ec222390": {"kind": "without_blank_pixels", "measurement": {
        "kind": "accuracy", "images": 500, "precision": "bfloat16",
        "attack": {"kind": "pgd", "epsilon": 0.1, "step_size": 0.01, "steps": 40}}},
}


@pytest.mark.parametrize("key", KNOWN)
def test_what_images_are_drawn_for_has_another_identity_than_before(key):
    measurement = Measurement.parse(KNOWN[key])
    assert measurement.first_identity == key and measurement.identity != key
    assert (measurement.revision, measurement.sampled) == (2, True)
    assert len(measurement.identity) == 12 and int(measurement.identity, 16) >= 0
    assert Measurement.parse(measurement.plain()).identity == measurement.identity


def test_identities_of_all_that_was_revised_differ():
    assert len({Measurement.parse(plain).identity for plain in KNOWN.values()} | KNOWN.keys()) == 2 * len(KNOWN)


def test_what_is_not_revised_keeps_its_identity():
    for key, plain in {"a4292680aa82": {"kind": "sparsity"}, "1d2dc543695f": {"kind": "macs"}}.items():
        measurement = Measurement.parse(plain)
        assert measurement.identity == measurement.first_identity == key
        assert (measurement.revision, measurement.sampled) == (1, False)


def test_without_blank_pixels_a_measurement_has_the_revision_of_what_it_measures():
    for inner in (Accuracy(images=7), WeightSparsity()):
        outer = WithoutBlankPixels(measurement=inner)
        assert outer.revision == inner.revision and (outer.identity == outer.first_identity) == (inner.revision == 1)


def test_published_keys_are_identities_of_the_first_revision_or_of_this_one():
    keys, revised = 0, 0
    for path in (paths.PROJECT / "data" / "published").glob("*/*.json"):
        for key, entry in files.read_json(path)["measured"].items():
            measurement = Measurement.parse(entry["measurement"])
            assert key in (measurement.first_identity, measurement.identity), (path, entry["measurement"])
            assert "right" not in entry["result"] or key == measurement.first_identity
            assert "each" not in entry["result"] or key == measurement.identity
            keys, revised = keys + 1, revised + (measurement.revision > 1)
    assert keys > revised > 100


@pytest.fixture
def earlier(published, fresh):
    """`earlier(data name, measurement, result)`: publish a result of the first revision, of weights that are not here;
    returns the run, and how a store finds it."""
    def earlier(name, measurement, result, **newer):
        run = Run.parse({"data": {"name": name}, "model": {"kind": "resnet", "depth": 8, "width": 2},
                         "objective": {"kind": "natural"}, "recipe": {"epochs": 1}})
        measured = {identity: (measurement, each)
                    for identity, each in ({measurement.first_identity: result} | newer).items()}
        files.write_json(published / "laptop" / f"{run.identity}.json", published_entry(run, measured))
        return run, lambda **more: fresh(**more).find(run, measurement)

    return earlier


@pytest.mark.parametrize(("name", "found"), [("cifar10", True), ("fashion_mnist", True), ("mnist", False)])
def test_an_earlier_published_result_counts_where_test_images_are_in_random_order(name, found, earlier):
    _, find = earlier(name, Accuracy(images=500), {"value": 0.5, "count": 250, "total": 500})
    known = {"value": 0.5, "count": 250, "total": 500, "where": "published", "processor": "P"}
    assert find() == (known if found else None)  # without values of single images
    assert find(use_earlier=False) is find(use_published=False) is None


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_what_was_not_revised_is_not_earlier(name, earlier):
    _, find = earlier(name, WeightSparsity(), {"value": 0.25})
    assert find()["value"] == find(use_earlier=False)["value"] == 0.25


def test_a_newer_published_result_comes_before_an_earlier_one(earlier):
    measurement = Accuracy(images=500)
    for name in ("cifar10", "mnist"):
        _, find = earlier(name, measurement, {"value": 0.5}, **{measurement.identity: {"value": 0.75}})
        assert find()["value"] == find(use_earlier=False)["value"] == 0.75


def test_earlier_answers_come_back_and_are_no_sample(earlier):
    _, find = earlier("cifar10", Accuracy(images=6, answers=True), {"value": 0.5, "total": 6, "right": "011010"})
    result = find()
    assert "right" not in result and result["value"] == 0.5 and result["each"].keys() == {""}
    text = result["each"][""]
    assert imagewise.unpack(text).tolist() == [0, 1, 1, 0, 1, 0] and not imagewise.is_sample(text)
    assert find() == result  # what was read is not changed


def test_an_earlier_result_of_other_weights_does_not_count(fresh, published, tiny_run):
    run, measurement = tiny_run(), Accuracy(images=7)
    record = fresh().train(run)
    for weights, there in ((record["weights_sha256"], True), ("0", False)):
        files.write_json(published / "quick" / f"{run.identity}.json", published_entry(
            run, {measurement.first_identity: (measurement, {"value": 0.5})}, weights))
        assert (fresh().find(run, measurement) is not None) == there
        assert fresh().find(run, Accuracy(images=8)) is None


def test_an_earlier_result_in_the_store_is_not_found(fresh, tiny_run):
    """It is measured anew, as its weights are here."""
    run, measurement = tiny_run(), Accuracy(images=7)
    fresh().train(run)
    files.write_json(fresh().folder / run.identity / "measured" / f"{measurement.first_identity}.json",
                     {"measurement": measurement.plain(), "result": {"value": 9}, "provenance": {"processor": "P"}})
    assert fresh().find(run, measurement) is None
    assert fresh().measure(run, measurement)["value"] <= 1
    assert (fresh().folder / run.identity / "measured" / f"{measurement.identity}.json").exists()


# ------------------------------------------------------------------------------------ damaged records


def test_publishing_over_a_damaged_record_names_it(fresh, published, tiny_run, refusal):
    files.write(published / "quick" / f"{tiny_run().identity}.json", b'{"record": ')
    assert tiny_run().identity in refusal(fresh().publish, [tiny_run()], "quick")


def test_a_damaged_published_record_is_named(published, tmp_path, tiny_run, refusal):
    name = f"{tiny_run().identity}.json"
    files.write(published / "quick" / name, b'{"record": ')
    assert name in refusal(Store(tmp_path / "store").record, tiny_run())


@pytest.mark.parametrize("name", ["measured", "provenance.json"])
def test_publishing_damaged_files_is_refused_in_one_line(name, fresh, tiny_run, refusal):
    fresh().measure(tiny_run(), WeightSparsity())
    path = fresh().folder / tiny_run().identity / name
    path = next(path.iterdir()) if path.is_dir() else path
    path.write_bytes(b"{")
    assert path.name in refusal(fresh().publish, [tiny_run()], "quick")


# --------------------------------------------------------------------------------------------------- disks


def test_threads_may_ask_at_once_for_a_folder_to_write_to(tmp_path):
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(paths.writable, [tmp_path / "folder"] * 2000)) == {tmp_path / "folder"}
    assert not list((tmp_path / "folder").iterdir())


def test_an_unwritable_store_is_one_line_before_any_work(tmp_path, trained, refusal):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "store"):
        assert str(folder) in refusal(Store, folder)


@pytest.mark.parametrize("write", [files.write, lambda path, content: files.write_json(path, 3)])
def test_an_unwritable_place_is_one_line(write, tmp_path, refusal):
    (tmp_path / "file").touch()
    assert str(tmp_path / "file" / "x") in refusal(write, tmp_path / "file" / "x", b"content")


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("patched", ["os.fsync", "pathlib.Path.open", "pathlib.Path.replace"])
@pytest.mark.parametrize(("number", "word"), [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "no space left"),
                                              (errno.EROFS, "Read-only")])
def test_a_full_disk_is_one_line_and_the_old_file_stays(patched, number, word, tmp_path, monkeypatch, refusal):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "folder" / "file"
    files.write(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(patched, fail)
        message = refusal(files.write, path, b"new")
    assert word in message
    assert str(path) in message
    assert path.read_bytes() == b"old"
    assert names(tmp_path / "folder") == {"file"}
    files.write(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_disk_that_fills_up_while_training_costs_nothing_that_is_finished(fresh, tmp_path, monkeypatch, tiny_run,
                                                                            refusal):
    run, told = tiny_run(epochs=3), []
    Store(tmp_path / "undisturbed").train(run)
    fsync, calls = os.fsync, []

    def full_after_two(descriptor):
        calls.append(descriptor)
        no_space() if len(calls) > 2 else fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_after_two)
        assert "no space left" in refusal(fresh().train, run)
    assert not (fresh().folder / run.identity).exists()
    fresh().train(run, lambda doing, epochs: told.append(epochs))
    assert told == [3]  # two epochs were kept
    assert content(fresh().folder / run.identity) == content(tmp_path / "undisturbed" / run.identity)
    assert names(fresh().folder / run.identity) == PARTS


def test_a_disk_full_at_a_measurement_keeps_the_run(fresh, trained, monkeypatch, tiny_run, refusal):
    fresh().train(tiny_run())
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        assert "no space left" in refusal(fresh().measure, tiny_run(), WeightSparsity())
    assert fresh().find(tiny_run(), WeightSparsity()) is None
    assert fresh().measure(tiny_run(), WeightSparsity())["value"] == 0
    assert len(trained) == 1


def test_a_disk_that_is_full_when_a_run_is_whole_is_one_line(fresh, trained, monkeypatch, tiny_run, refusal):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", no_space)
        assert "no space left" in refusal(fresh().train, tiny_run())
    assert not fresh().trained(tiny_run())
    fresh().train(tiny_run())
    assert names(fresh().folder / tiny_run().identity) == PARTS


def test_a_lock_that_cannot_be_made_is_one_line(fresh, monkeypatch, tiny_run, refusal):
    fresh().train(tiny_run())
    (lock,) = (fresh().folder / ".locks").iterdir()
    opened = os.open
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda path, *more: no_space() if str(path) == str(lock) else opened(path, *more))
        message = refusal(fresh().measure, tiny_run(), WeightSparsity())
    assert "no space left" in message and str(lock) in message


def test_what_a_killed_write_left_is_removed_by_the_next_and_nothing_else(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = platform.node()
    theirs = {f".a.json.{here}.{os.getpid()}", f".a.json.elsewhere.{ended.pid}", f".b.json.{here}.{ended.pid}"}
    for name in (*theirs, f".a.json.{here}.{ended.pid}", f".a.json.{here}.{'9' * 30}"):
        (tmp_path / name).write_text("{")
    files.write(tmp_path / "a.json", b"whole")
    assert names(tmp_path) == {"a.json", *theirs} - {f".a.json.{here}.{os.getpid()}"}


def test_tied_weights_are_written_under_each_name(tmp_path):
    one = torch.randn(3, 4)
    files.save_tensors(tmp_path / "t", {"a": one, "b": one, "c": one.T, "d": one[1:]}, {"epoch": "3"})
    loaded, _ = files.load_tensors(tmp_path / "t")
    assert all(torch.equal(loaded[name], t) for name, t in {"a": one, "b": one, "c": one.T, "d": one[1:]}.items())


def test_tensors_survive_and_damage_is_seen(tmp_path):
    tensors = {"a/b": torch.randn(3, 2, 4, 4).to(memory_format=torch.channels_last), "n": torch.tensor(3),
               "h": torch.ones(2, dtype=torch.bfloat16), "t": torch.randn(4, 5).T}
    files.save_tensors(tmp_path / "t", tensors, {"epoch": "3"})
    loaded, metadata = files.load_tensors(tmp_path / "t")
    assert metadata == {"epoch": "3"}
    assert loaded.keys() == tensors.keys()
    for name, t in tensors.items():
        assert torch.equal(loaded[name], t)
        assert loaded[name].dtype == t.dtype
    (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes()[:-1])
    for path in (tmp_path / "t", tmp_path / "none"):
        with pytest.raises(files.Corrupt):
            files.load_tensors(path)


def test_settings_of_unknown_data_are_refused_before_anything_is_stored(fresh, tiny_run, refusal):
    assert "digits" in refusal(fresh().train, tiny_run(data=data.Data(name="digit")))
    with pytest.raises(UserError):
        fresh().model(tiny_run(data=data.Data(name="digit")))


def test_what_a_run_began_with_is_published_where_it_is_here(fresh, published, tiny_run):
    dense = tiny_run()
    pruned = tiny_run(start=dense, epochs=0, sparsifier=Magnitude(sparsity=0.5))
    fresh().train(pruned)
    assert {path.stem for path in fresh().publish([pruned], "quick")} == {dense.identity, pruned.identity}


# ---------------------------------------------------------------------------------- a method of one's own

OWN = """\
from sparserobust.config import Measurement, settings
from sparserobust.sparsifiers import FixedMask
from sparserobust.sparsity import all_but_smallest, prunable

SHARE = {share}

@settings
class Cut(FixedMask, kind="cut_of_my_own"):
    def start(self, model):
        masks = {{name: all_but_smallest(w.abs().flatten(), round(SHARE * w.numel())).view_as(w)
                 for name, w in prunable(model).items()}}
        self.after_step(model, masks, 0.0)
        return masks

@settings
class Told(Measurement, kind="told_of_my_own"):
    def __call__(self, model, splits):
        return {{"value": SHARE}}
"""


@pytest.mark.slow
def test_a_changed_formula_gives_its_own_numbers_and_workers_know_it_by_the_same_name(
        fresh, trained, tmp_path, monkeypatch, tiny_run):
    monkeypatch.syspath_prepend(tmp_path)
    for family in (Sparsifier, Measurement):
        monkeypatch.setattr(family, "family", dict(family.family))

    def swept(share):
        (tmp_path / "method_of_my_own.py").write_text(OWN.format(share=share))
        sys.modules.pop("method_of_my_own", None)  # as Python started anew would find it
        importlib.invalidate_caches()
        module = importlib.import_module("method_of_my_own")
        run, measured = tiny_run(sparsifier=module.Cut()), {"sparsity": WeightSparsity(), "told": module.Told()}
        sweep.compute([{"run": run}], measured, fresh(), workers=1)
        assert fresh().find(run, module.Told())["value"] == share
        return run.identity, fresh().find(run, WeightSparsity())["value"]

    (one, half), (two, quarter) = swept(0.5), swept(0.25)
    assert half == pytest.approx(0.5, abs=0.01) and quarter == pytest.approx(0.25, abs=0.01)
    assert names(fresh().folder) == {one, two, ".locks"}
    monkeypatch.setattr(engine, "work", None)
    assert swept(0.5) == (one, half)  # as it was: nothing is computed
    assert trained == []  # in this process
    sys.modules.pop("method_of_my_own")
