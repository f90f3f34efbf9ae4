"""The run store: every run is trained once, every measurement taken once, and both are found again by their settings.

    <store>/<run identity>/record.json         settings, history, counts; there if and only if the run is complete
                           model.safetensors   its weights; their sha256 is in the record
                           last.safetensors    where those are of the best epoch: of the last, for its twin (`Run.twin`)
                           provenance.json     machine, versions, seconds
                           measured/*.json     one file per measurement
    data/published/<scale>/<run identity>.json record, provenance and measurements of a run, without weights

What was altered since it was written, or is of another run, is said and computed anew; published records are not
replaced in silence, so that a damaged one is an error. Same settings, same kind of processor: the record is the same
bit for bit, whether training was interrupted or not.
"""

import logging
import os
import platform
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from sparserobust import data, files, imagewise, paths, sparsity, training
from sparserobust.config import Measurement, Run
from sparserobust.errors import UserError
from sparserobust.provenance import device, measuring_device, provenance, with_threads
from sparserobust.running import records

LAST = "last.safetensors"
PATIENCE = 2  # seconds, after which is said for whom it waits
log = logging.getLogger("sparserobust")
Report = Callable[[str, float], None]  # what is being done, and the epochs done


def _silent(doing: str, epochs_done: float) -> None:
    pass


class Store:
    """A folder of runs. `use_published` lets records that are part of the repository stand in for computing,
    `use_earlier` those measurements among them that were taken before images were drawn at random."""

    def __init__(self, folder: Path | str | None = None, use_published: bool = True, use_earlier: bool = True):
        self.folder = paths.writable(Path(folder or paths.store_folder()))
        self.use_published, self.use_earlier = use_published, use_earlier
        self._verified: dict[str, dict] = {}
        self._read: dict[str, dict | None] = {}  # published records
        self._at_hand: tuple[str, torch.nn.Module] | None = None  # the network that was measured last

    # ------------------------------------------------------------------------------------------------ reading

    def measure(self, run: Run, measurement: Measurement, report: Report = _silent) -> dict:
        """The result of a measurement on a run: stored, published, or taken now, training the run if need be. Has
        `value`; most have `count` and `total`; `where` says whether it is `published`, and `processor` on what."""
        found = self.find(run, measurement)
        if found is None:
            self._take(run, measurement, report)
            found = self.find(run, measurement)
            assert found is not None  # it was written just now
        return found

    def find(self, run: Run, measurement: Measurement, fewer_images: bool = False) -> dict | None:
        """As `measure`, but None where it would have to be computed. With `fewer_images` an earlier result on fewer
        images than are asked for may stand in while there is no other (its `total` says of how many)."""
        path, complete = self._measured(run, measurement), self._complete(run)
        if path.exists() and complete:
            try:
                entry = records.read(path, measurement.identity)
                if not self._of_these_weights(entry, run, measurement):
                    raise files.Corrupt(f"{path} was taken of other weights")
                return entry["result"] | {"where": "store", "processor": entry["provenance"]["processor"]}
            except files.Corrupt as error:
                log.warning("run %s: %s; it is measured anew", run.identity, error)
                files.discard(path)
        if not (published := self._published(run)):
            return None
        known = (published["measured"].get(measurement.identity)
                 or self._earlier(published, run, measurement, fewer_images))
        if known is None or not self._of_these_weights(known, run, measurement):  # those were of another machine
            return None
        return known["result"] | {"where": "published", "processor": known["provenance"]["processor"]}

    def _of_these_weights(self, entry: dict, run: Run, measurement: Measurement) -> bool:
        """Whether a measurement was taken of the weights that are known here of the runs it needs."""
        known = {each.identity: record for each in (run, *measurement.required_runs) if (record := self._known(each))}
        return all(entry["weights"].get(identity) == record["weights_sha256"] for identity, record in known.items())

    def _earlier(self, published: dict, run: Run, measurement: Measurement, fewer_images: bool) -> dict | None:
        """What the first revision of a measurement published, while there is nothing newer: its images were the first
        of the test set, which is as good as a sample where that is in random order. It has no values of single images,
        unless its answers were asked for."""
        if not self.use_earlier or run.data.name in data.ORDERED:
            return None
        known = published["measured"]
        others = records.of_fewer_images(measurement, known.values()) if fewer_images else []
        entry = next((known[m.first_identity] for m in (measurement, *others) if m.first_identity in known), None)
        if entry is None:
            return None
        result = {key: value for key, value in entry["result"].items() if key != "right"}
        if "right" in entry["result"]:
            result["each"] = {"": imagewise.FIRST + entry["result"]["right"]}
        return entry | {"result": result}

    def known(self, run: Run) -> dict | None:
        """Record, provenance and measurements of a run, from here or else as published; None if there is nothing."""
        return self._publishable(run, scale="", asked=True)

    def record(self, run: Run, report: Report = _silent) -> dict:
        """Settings, history and counts of a run, trained if it is nowhere to be found."""
        return self._known(run) or self.train(run, report)

    def seconds(self, run: Run, measurement: Measurement | None = None) -> float:
        """Training time of a run that is stored or published; or the time a measurement took that is stored."""
        if measurement is not None:
            return records.read(self._measured(run, measurement), measurement.identity)["provenance"]["seconds"]
        published = self._published(run)
        if self._complete(run) is None and published:
            return published["provenance"]["seconds"]
        return self._made(run)["seconds"]

    def model(self, run: Run) -> torch.nn.Module:
        """The trained network, in eval mode on this machine's device; trained now if its weights are not here."""
        self.train(run)
        model = training.build(run, data.load(run.data))
        model.load_state_dict(self._weights(run))
        layout = training.usual_layout(model)
        return model.to(measuring_device(), memory_format=layout).eval()  # type: ignore[call-overload]

    def trained(self, run: Run) -> bool:
        """Whether the trained network is here, in the store itself."""
        return self._complete(run) is not None

    def has_twin(self, run: Run) -> bool:
        """Whether the weights of a run are here as the last epoch of its twin, without a look at them."""
        return run.twin is not None and (self._home(run.twin) / LAST).exists()

    def has_record(self, run: Run) -> bool:
        """Whether there is a record of it here, without a look at whether it is whole."""
        return (self._home(run) / "record.json").exists()

    def places(self, run: Run, measurements: Iterable[Measurement] = ()) -> list[Path]:
        """The files, there or not, that hold what is known of a run and of these measurements on it."""
        names = ("record.json", "provenance.json", "model.safetensors")
        published = records.of_run(run, paths.published_folder()) if self.use_published else []
        return [*(self._home(run) / name for name in names), *(self._measured(run, m) for m in measurements),
                *published]

    # ------------------------------------------------------------------------------------------------ working

    def train(self, run: Run, report: Report = _silent) -> dict:
        """Train a run unless it is complete, and return its record. Of several processes that want the same run one
        trains and the others wait."""
        complete = self._complete(run)
        if complete:
            return complete
        for needed in run.needs:
            self.train(needed, report)
        with self._locked(run):
            return self._complete(run) or self._train(run, report)

    def _train(self, run: Run, report: Report) -> dict:
        aside, home = self.folder / f".partial-{run.identity}", self._home(run)
        if home.exists():
            _set_aside(home)
        checkpoint = paths.writable(aside) / "checkpoint.safetensors"
        begun = time.monotonic()
        splits = data.load(run.data, device())
        trained, made = self._of_twin(run, splits) or (training.train(
            run, splits, self._weights(run.start) if run.start else None, checkpoint,
            lambda epochs: report("training", epochs),
            [self._weights(other) for other in run.sparsifier.required_runs]), None)
        files.save_tensors(aside / "model.safetensors", trained.model.state_dict())
        if trained.last:
            files.save_tensors(aside / LAST, trained.last, {"run": run.identity})
        record = {
            "format": records.FORMAT, "identity": run.identity, "run": run.plain(), "history": trained.history,
            "parameters": sparsity.parameters(trained.model), "sparsity": sparsity.sparsity(trained.model),
            "channel_sparsity": sparsity.channel_sparsity(trained.model),
            "weights_sha256": files.sha256(aside / "model.safetensors"),
        }
        made = {"identity": run.identity} | (made or _provenance(run, begun))
        for name, part in (("provenance.json", made), ("record.json", record)):
            files.write_json(aside / name, files.sealed(part, f"run {run.identity}"))
        for leftover in (checkpoint, *aside.glob(".*")):  # of writes that were killed
            leftover.unlink(missing_ok=True)
        with files.one_line(home):
            aside.rename(home)
        complete = self._complete(run)
        assert complete is not None  # it was written just now
        return complete

    def _of_twin(self, run: Run, splits: data.Splits) -> tuple[training.TrainingResult, dict] | None:
        """The result of training a run as its twin has it, and how that was made; None if it has no twin here."""
        if run.twin is None or (record := self._complete(run.twin)) is None:
            return None
        kept = self._home(run.twin) / LAST
        try:
            weights, of = files.load_tensors(kept)
            if of.get("run") != run.twin.identity:
                raise files.Corrupt(f"{kept} is of another run")
        except files.Corrupt as error:
            if kept.exists():
                log.warning("run %s: %s; it is trained itself", run.identity, error)
            return None
        model = training.build(run, splits)
        model.load_state_dict(weights)
        made = {key: value for key, value in self._made(run.twin).items() if key not in ("identity", "sha256")}
        return training.TrainingResult(model, record["history"]), made

    def _take(self, run: Run, measurement: Measurement, report: Report) -> None:
        self.train(run, report)
        if self._at_hand is None or self._at_hand[0] != run.identity:  # measurements leave a model as they found it
            self._at_hand = run.identity, self.model(run)
        model, others = self._at_hand[1], [self.model(other) for other in measurement.required_runs]
        report(f"measuring {measurement.kind}", run.recipe.trained_epochs)
        begun = time.monotonic()
        first = getattr(measurement, "after", None)
        known = first and self.find(run, first)
        more = {"before": known} if known and known["where"] == "store" else {}
        with with_threads(run.recipe.threads):
            result = measurement(model, data.load(run.data, measuring_device()), *others, **more)
        weights = {each.identity: self.train(each)["weights_sha256"] for each in (run, *measurement.required_runs)}
        entry = {"identity": measurement.identity, "measurement": measurement.plain(), "weights": weights,
                 "result": result, "provenance": _provenance(run, begun, measuring_device())}
        path = self._measured(run, measurement)
        with self._locked(run):
            files.write_json(path, files.sealed(entry, f"{measurement.label()} of run {run.identity}"))

    @contextmanager
    def _locked(self, run: Run) -> Iterator[None]:
        """One process at a time is inside the block: the others wait, and say for whom."""
        from filelock import FileLock, Timeout

        path = paths.writable(self.folder / ".locks") / f"{run.identity}.lock"
        lock, holder = FileLock(path), path.with_suffix(".holder")
        with files.one_line(path):
            try:
                lock.acquire(timeout=PATIENCE)
            except Timeout:
                whom = ""
                with suppress(OSError):  # it may be through just now
                    whom = holder.read_text(encoding="utf-8")
                log.warning("run %s: waiting for %s", run.identity, whom or "another process")
                lock.acquire()
        try:
            with files.one_line(holder):
                holder.write_text(f"process {os.getpid()} on {platform.node()}, which has it since "
                                  f"{time.strftime('%Y-%m-%d %H:%M')}", encoding="utf-8")
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    # ---------------------------------------------------------------------------------------------- publishing

    def publish(self, runs: list[Run], scale: str, in_part: Container[str] = ()) -> list[Path]:
        """Write what is known of these runs, weights apart, into `data/published/<scale>/`, and of
        those that they began with where that is known, since they cost training time, too. Returns
        the files of these records; others in the folder stay. Of runs that are measured `in_part`
        (their identities) nothing replaces what is published of other weights; where something
        else does, and nobody measured that here, it is told. `UserError`, and nothing is written,
        if one of `runs` is neither complete in the store nor published."""
        asked = {run.identity for run in runs}
        lineage = {each.identity: each for run in runs for each in run.lineage}
        known = {identity: self._publishable(run, scale, identity in asked and identity not in in_part)
                 for identity, run in lineage.items()}
        if missing := sorted(identity for identity in asked if known[identity] is None):
            raise UserError(f"{len(missing)} of {len(asked)} runs are not complete in {self.folder}, "
                            f"such as run {missing[0]}: compute them before publishing")
        entries = {paths.published_folder() / scale / f"{identity}.json": entry
                   for identity, entry in known.items() if entry}
        paths.writable(paths.published_folder() / scale)
        gone = []
        for path, entry in entries.items():
            before = records.published(path) if path.exists() else None
            if before == entry:  # it stays as old as it is, and so do pages that were drawn from it
                continue
            gone += [path] * bool(before and before["measured"].keys() - entry["measured"].keys())
            files.write_json(path, entry)
        if gone:
            log.warning("%d published records, such as %s, were replaced by those of networks trained anew, on which "
                        "less was measured: git restore brings the old ones back", len(gone), gone[0].name)
        return list(entries)

    def _publishable(self, run: Run, scale: str, asked: bool) -> dict | None:
        """Record, provenance and measurements of a run from the store, or else as published, first
        at this scale; with measurements of the same weights that are published at any scale. Unless
        it is `asked` for, what is published stays if it has other weights and was measured: pages
        show it, and nobody has measured the new weights as a whole."""
        found = sorted(records.of_run(run, paths.published_folder()), key=lambda path: path.parent.name != scale)
        published = [entry for path in found if (entry := records.published(path))]
        record = self._complete(run)
        others = [entry for entry in published if record and entry["measured"]
                  and entry["record"]["weights_sha256"] != record["weights_sha256"]]
        if record and (asked or not others):
            try:
                measured = {path.stem: records.read(path, path.stem)
                            for path in (self._home(run) / "measured").glob("*.json")}
            except files.Corrupt as error:
                raise UserError(f"{error}: delete it, sweep again, then publish") from None
            measured = {identity: entry for identity, entry in measured.items()
                        if entry["weights"].get(run.identity) == record["weights_sha256"]}
            published.insert(0, {"record": record, "provenance": self._made(run), "measured": measured})
        return records.merged(published)

    def _published(self, run: Run) -> dict | None:
        """The published record of a run with its measurements, read once; None if there is none."""
        if self.use_published and run.identity not in self._read:
            found = records.of_run(run, paths.published_folder())
            self._read[run.identity] = records.merged([entry for path in found if (entry := records.published(path))])
        return self._read.get(run.identity)

    def _known(self, run: Run) -> dict | None:
        """The record of a run, from here or else as published."""
        return self._complete(run) or (self._published(run) or {}).get("record")

    # ------------------------------------------------------------------------------------------------- layout

    def _home(self, run: Run) -> Path:
        return self.folder / run.identity

    def _weights(self, run: Run) -> dict[str, torch.Tensor]:
        return files.load_tensors(self._home(run) / "model.safetensors")[0]

    def _measured(self, run: Run, measurement: Measurement) -> Path:
        return self._home(run) / "measured" / f"{measurement.identity}.json"

    def _made(self, run: Run) -> dict:
        """The provenance of a run that is here."""
        try:
            return records.read(self._home(run) / "provenance.json", run.identity)
        except files.Corrupt as error:
            raise UserError(f"{error}: delete the folder around it, and the run is trained anew") from None

    def _complete(self, run: Run) -> dict | None:
        """The record of a run if it is whole: as it was written, of this format and run, its weights unaltered."""
        if run.identity in self._verified:
            return self._verified[run.identity]
        home = self._home(run)
        if not (home / "record.json").exists():
            return None
        try:
            record = records.read(home / "record.json", run.identity)
            if record["format"] != records.FORMAT:
                return None
            if files.sha256(home / "model.safetensors") != record["weights_sha256"]:
                raise files.Corrupt(f"{home / 'model.safetensors'} is not what was written")
        except files.Corrupt as error:
            log.warning("run %s is damaged and will be trained anew: %s", run.identity, error)
            return None
        self._verified[run.identity] = record
        return record


def _provenance(run: Run, begun: float, where: torch.device | None = None) -> dict:
    return provenance(where) | {"threads": run.recipe.threads, "seconds": time.monotonic() - begun}


def _set_aside(home: Path) -> None:
    """Move a damaged or outdated run out of the way, replacing an earlier one."""
    aside = home.with_name(f".damaged-{home.name}")
    files.discard(aside)
    with files.one_line(home):
        home.rename(aside)
