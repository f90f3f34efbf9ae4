"""Every kind of run that a GPU would be asked for, tried here in little: a misspelt setting, or a loss that is not
finite, should not be found after a night. What `paper` asks for is a part of `full`."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from scaffolding import generator
from sparserobust import data, studies, training
from sparserobust.config import Data, Measurement, Objective, Run
from sparserobust.data import Split, Splits
from sparserobust.running import scales
from sparserobust.running.experiment import Experiment
from sparserobust.running.store import Store
from sparserobust.settings import Settings

STUDIES = [name for name in studies.modules() if scales.has("full", name)]
IMAGES = 4  # to train on
# What makes attacks and measurements long: no more than so much of it
LENGTHS = {"images": 20, "steps": 2, "search_steps": 1, "queries": 20, "iterations": 2, "eot_draws": 2, "trials": 1,
           "samples": 4, "batches": 2, "draws": 2, "repeats": 1, "null_draws": 1}


def asked(experiment: Experiment) -> dict[str, set[str]]:
    """Identities of runs, and of what is measured on each."""
    found: dict[str, set[str]] = {}
    for row in experiment.grid:
        found.setdefault(row["run"].identity, set()).update(m.identity for m in row["measurements"].values())
    return found


@pytest.mark.parametrize("study", [name for name in STUDIES if scales.has("paper", name)])
def test_the_paper_scale_is_a_part_of_the_full_one(study):
    paper, full = (asked(studies.modules()[study].experiment(scale)) for scale in ("paper", "full"))
    assert len(paper) < len(full)
    for run, measured in paper.items():
        assert measured <= full[run]


@pytest.mark.parametrize("study", STUDIES)
def test_every_row_is_in_a_table_and_every_selector_picks_some(study):
    experiment = studies.modules()[study].experiment("full")
    for name, selectors in experiment.settings.tables.items():
        scales.checked(selectors, experiment.grid, name)
        assert all(scales.selected(row, selectors) for row in experiment.tables[name])
    shown = {row["run"].identity for rows in experiment.tables.values() for row in rows}
    waiting = {run.identity for row in experiment.grid for run in row["run"].lineage[:-1]}
    assert {row["run"].identity for row in experiment.grid} <= shown | waiting


# ------------------------------------------------------------------------------------------------------ in little


def shortened(some: Any) -> Any:
    """Settings of a measurement or of an objective, with no number of these names larger than that."""
    changes: dict[str, Any] = {}
    for name in some.__dataclass_fields__:
        value = getattr(some, name)
        if isinstance(value, Settings) and not isinstance(value, Run):
            changes[name] = shortened(value)
        elif name in LENGTHS and (value is None or (isinstance(value, int) and value > LENGTHS[name])):
            changes[name] = LENGTHS[name]
    return replace(some, **changes)


def little(plain: Any, narrow: bool) -> Any:
    """Plain settings of a run and of those that it needs: two steps each, since the first may have no learning rate;
    on few images; a narrow network, if asked."""
    if isinstance(plain, list):
        return [little(each, narrow) for each in plain]
    if not isinstance(plain, dict):
        return plain
    plain = {key: little(value, narrow) for key, value in plain.items()}
    if "recipe" in plain:
        plain["data"]["train_images"] = IMAGES
        recipe = plain["recipe"]
        recipe["epochs"] = min(recipe["epochs"], 2)
        if "stop" in recipe:
            recipe["stop"] = min(recipe["stop"], 1)
        if "milestones" in recipe:
            recipe["milestones"] = [1]
        objective = {key: value for key, value in plain["objective"].items() if key != "clean_epochs"}
        plain["objective"] = shortened(Objective.parse(objective)).plain()
        if narrow:
            plain["model"] = narrowed(plain["model"])
    return plain


def narrowed(model: dict) -> dict:
    """A wide network an eighth as wide (one that is written without its width has the default), a deep one of eight
    layers, an ensemble of two."""
    if "model" in model:
        return model | {"model": narrowed(model["model"])}
    if model["kind"] == "wide_resnet":
        return model | {"widen": 1}
    if model["kind"] == "preact_resnet":
        return model | {"depth": 8} | ({"members": 2} if model.get("members", 1) > 1 else {})
    if model["kind"] in ("resnet18", "vgg16", "vgg_like"):
        return model | {"width": model.get("width", 64) // 8}
    return model


def kind_of(plain: Any) -> str:
    """Settings without their numbers."""
    def bare(plain: Any) -> Any:
        if isinstance(plain, dict):
            return {key: bare(value) for key, value in plain.items() if key not in ("seed", "start", "train_images")}
        if isinstance(plain, list):
            return [bare(each) for each in plain][:1]
        return None if isinstance(plain, int | float) and not isinstance(plain, bool) else plain

    return json.dumps(bare(plain), sort_keys=True)


def made_up(name: str) -> Splits:
    """Random images as large as those of a data set, brighter from class to class: no data set has to be here."""
    classes = data.IMAGES[name][1]
    labels = torch.arange(400) % classes
    bright = labels[:, None, None, None] / classes
    split = Split((torch.rand(400, *data.image_shape(Data(name=name)), generator=generator()) + bright) / 2, labels)
    return Splits(split, split, split, tuple(map(str, range(classes))))


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_every_kind_of_run_is_trained_and_measured_in_little(study, tmp_path, monkeypatch, quick_suite):
    monkeypatch.setattr(training, "VALIDATION_IMAGES", IMAGES)
    monkeypatch.setattr(data, "_load", made_up)
    store = Store(tmp_path, use_published=False)
    tried: set[str] = set()

    def new(*settings) -> bool:
        known = len(tried)
        tried.add(" ".join(map(kind_of, settings)))
        return len(tried) > known

    for row in studies.modules()[study].experiment("full").grid:
        run = row["run"]
        before = [start.plain()["sparsifier"] for start in run.needs if "sparsifier" in start.plain()]
        if new(run.plain(), before):
            wide = new(run.model.plain())  # the first of its kind is as wide as it will be
            for narrow in (False, True) if wide else (True,):
                store.train(each := Run.parse(little(run.plain(), narrow)))
                assert all(t.isfinite().all() for t in store.model(each).state_dict().values() if t.is_floating_point())
        narrow_run = Run.parse(little(run.plain(), True))
        for measurement in row["measurements"].values():
            if new(measurement.plain(), run.model.plain()):
                short = Measurement.parse(little(shortened(measurement).plain(), True))
                value = store.measure(narrow_run, short)["value"]
                assert value is None or not math.isnan(value), measurement
