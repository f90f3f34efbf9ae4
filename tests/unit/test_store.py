"""The run store: trained once and found again, and what happens to it when disks and processes fail."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from sparserobust import UserError, data, files, paths, runs, training
from sparserobust.analysis import WeightSparsity
from sparserobust.config import Run, Sparsifier, settings
from sparserobust.evaluation import Accuracy
from sparserobust.runs import Store
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
        def others(self):
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


@pytest.mark.parametrize("damage", [cut_record, empty_record, other_settings, altered_weights, no_weights])
def test_a_damaged_run_is_said_and_trained_anew(damage, fresh, trained, caplog, tiny_run):
    run, home = tiny_run(), fresh().folder / tiny_run().identity
    value = fresh().measure(run, Accuracy())
    whole = content(home)
    damage(home)
    fresh().train(run)
    assert any(run.identity in line and "damaged" in line and "\n" not in line for line in caplog.messages)
    assert trained == [run.identity] * 2
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


def test_another_format_is_trained_anew(fresh, trained, monkeypatch, tiny_run):
    run = tiny_run()
    assert fresh().train(run)["format"] == runs.FORMAT
    monkeypatch.setattr(runs, "FORMAT", runs.FORMAT + 1)
    assert fresh().train(run)["format"] == runs.FORMAT
    assert trained == [run.identity] * 2


def test_a_run_damaged_twice_is_still_mended(fresh, trained, tiny_run):
    for _ in range(3):
        fresh().train(tiny_run())
        cut_record(fresh().folder / tiny_run().identity)
    assert fresh().train(tiny_run())["run"] == tiny_run().plain()
    assert len(trained) == 4


# ------------------------------------------------------------------------------------------- interruption


class Interrupt(Exception):
    pass


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
    monkeypatch.setattr(runs, "FORMAT", runs.FORMAT + 1)
    assert Store(tmp_path / "elsewhere").record(tiny_run())["format"] == runs.FORMAT
    assert len(trained) == 2


def test_only_complete_runs_are_published(fresh, published, tiny_run, refusal):
    assert tiny_run().identity in refusal(fresh().publish, [tiny_run()], "quick")
    assert not published.exists()


def test_publishing_replaces_a_scale_but_keeps_what_another_machine_computed(fresh, published, tmp_path, tiny_run):
    ours, theirs, outdated = (tiny_run(seed=seed) for seed in (0, 1, 2))
    fresh().train(ours)
    for run in (theirs, outdated):
        files.write_json(published / "quick" / f"{run.identity}.json", {"record": {"format": runs.FORMAT}})
    files.write(published / "laptop" / "0123.json", b"another scale")
    written = fresh().publish([ours, theirs], "quick")
    assert sorted(written) == sorted((published / "quick").glob("*.json"))
    assert {path.stem for path in written} == {ours.identity, theirs.identity}
    assert (published / "laptop" / "0123.json").exists()


def test_a_record_of_another_format_is_not_kept(fresh, published, tiny_run, refusal):
    path = published / "quick" / f"{tiny_run().identity}.json"
    files.write_json(path, {"record": {"format": runs.FORMAT - 1}})
    assert tiny_run().identity in refusal(fresh().publish, [tiny_run()], "quick")


@pytest.mark.parametrize("same", [True, False])
def test_published_numbers_are_not_mixed_with_those_of_other_weights(same, fresh, published, tiny_run):
    run = tiny_run()
    record = fresh().train(run)
    known = {"measurement": Accuracy(images=7).plain(), "result": {"value": 0.5},
             "provenance": {"processor": "another"}}
    path = published / "quick" / f"{run.identity}.json"
    files.write_json(path, {"record": record | ({} if same else {"weights_sha256": "0"}), "provenance": {"seconds": 1},
                            "measured": {Accuracy(images=7).identity: known}})
    found = fresh().find(run, Accuracy(images=7))
    assert (found is not None) == same
    fresh().publish([run], "quick")
    assert (Accuracy(images=7).identity in files.read_json(path)["measured"]) == same


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
