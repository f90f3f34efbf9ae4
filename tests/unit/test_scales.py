"""Settings files: how scales and networks differ, which rows are measured, and mistakes in one line."""

import shutil
from copy import deepcopy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sparserobust import UserError, paths, studies
from sparserobust.config import Recipe
from sparserobust.running import scales
from sparserobust.running.experiment import planned
from sparserobust.running.scales import StudySettings, merged, selected
from sparserobust.settings import settings

TOY = """
shared:
  data: {name: digits}
  objective: {kind: natural}
  recipe: {epochs: 2, lr: 0.1}
  measurements:
    all:
      clean: {kind: accuracy}
    pruned:
      rows: {part: pruned, seed: first}
      fgsm: {kind: accuracy, attack: {kind: fgsm, epsilon: 0.1}}
quick:
  seeds: [0, 1]
  levels: [0.5, 0.9]
  fine_tuning: {epochs: 1}
  nets:
    small: {model: {kind: preact_resnet, depth: 8, width: 2}}
    large: {model: {kind: preact_resnet, depth: 8, width: 4}, recipe: {epochs: 5}, seeds: [1]}
laptop:
  seeds: [3]
  levels: []
  fine_tuning: {epochs: 1}
  model: {kind: preact_resnet, depth: 8, width: 2}
  measurements: {pruned: null}
"""


@settings
class ToySettings(StudySettings):
    levels: tuple[float, ...]
    fine_tuning: Recipe


def rows(own, net, seed, first):
    yield {"part": "dense", "level": None, "run": own.run(seed)}
    for level in own.levels:
        yield {"part": "pruned", "level": level, "run": own.run(seed).then(recipe=own.fine_tuning)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of settings files with the toy study in it."""
    shutil.copy(paths.settings_folder() / "scales.yaml", tmp_path)
    monkeypatch.setattr(scales, "settings_folder", lambda: tmp_path)
    (tmp_path / "toy.yaml").write_text(TOY)
    return tmp_path


def plan(scale="quick", seeds=None):
    return planned("toy", scale, seeds, ToySettings, rows)


# --------------------------------------------------------------------------------------------------------- merging


plain = st.recursive(st.integers() | st.text(max_size=2), lambda inner: st.dictionaries(st.sampled_from("abc"), inner),
                     max_leaves=6)
mappings = st.dictionaries(st.sampled_from("abcd"), plain)


@given(mappings, mappings)
def test_what_is_merged_has_the_later_value_of_each_key(one, other):
    before = deepcopy((one, other))
    result = merged(one, other)
    assert (one, other) == before
    assert result.keys() == one.keys() | other.keys()
    for key, value in result.items():
        if key in other and not (isinstance(other[key], dict) and isinstance(one.get(key), dict)):
            assert value == other[key]
        elif key not in other:
            assert value == one[key]
        else:
            assert value == merged(one[key], other[key])


def test_another_kind_replaces_and_null_takes_away():
    one = {"attack": {"kind": "pgd", "steps": 7}, "b": 1}
    assert merged(one, {"attack": {"steps": 3}}) == {"attack": {"kind": "pgd", "steps": 3}, "b": 1}
    assert merged(one, {"attack": {"kind": "pgd", "steps": 3}})["attack"] == {"kind": "pgd", "steps": 3}
    assert merged(one, {"attack": {"kind": "fgsm"}}) == {"attack": {"kind": "fgsm"}, "b": 1}
    assert merged(one, {"b": None}) == {"attack": {"kind": "pgd", "steps": 7}}


def test_what_is_not_there_cannot_be_taken_away(refusal):
    assert refusal(merged, {"levels": {0.1: 1}}, {"levels": {0.12: None}}) == (
        "null: unknown key to take away '0.12'; did you mean '0.1'?")


def test_scales_and_networks_say_only_what_differs(folder):
    found = scales.load("quick", "toy", ToySettings)
    assert list(found) == ["small", "large"]
    small, large = found.values()
    assert small.recipe == Recipe(epochs=2, lr=0.1) and large.recipe == Recipe(epochs=5, lr=0.1)
    assert (small.seeds, large.seeds, small.model.width, large.model.width) == ((0, 1), (1,), 2, 4)
    (alone,) = scales.load("laptop", "toy", ToySettings).values()
    assert alone.seeds == (3,) and list(alone.measurements) == ["all"]


# --------------------------------------------------------------------------------------------------------- the grid


def test_grid_rows_have_labels_and_what_the_selectors_pick(folder):
    grid = plan().grid
    assert [(row["net"], row["part"], row["level"], row["seed"], list(row["measurements"])) for row in grid] == [
        ("small", "dense", None, 0, ["clean"]), ("small", "pruned", 0.5, 0, ["clean", "fgsm"]),
        ("small", "pruned", 0.9, 0, ["clean", "fgsm"]), ("small", "dense", None, 1, ["clean"]),
        ("small", "pruned", 0.5, 1, ["clean"]), ("small", "pruned", 0.9, 1, ["clean"]),
        ("large", "dense", None, 1, ["clean"]), ("large", "pruned", 0.5, 1, ["clean"]),
        ("large", "pruned", 0.9, 1, ["clean"])]
    assert [row["seed"] for row in plan(seeds=[4]).rows(net="large")] == [4, 4, 4]
    assert list(plan(seeds=[4]).row(net="large", level=0.9)["measurements"]) == ["clean", "fgsm"]
    assert all("net" not in row for row in plan("laptop").grid)


def test_a_selector_lists_values_and_several_selectors_are_alternatives():
    row = {"method": "AT", "level": 0.5, "seed": 3}
    assert selected(row, [{}]) and not selected(row, [])
    assert selected(row, [{"method": ["RSR", "AT"], "level": 0.5}]) and not selected(row, [{"method": "RSR"}])
    assert selected(row, [{"method": "RSR"}, {"level": [0.5, 0.9]}])
    assert selected(row, [{"seed": "first"}], first_seed=3) and not selected(row, [{"seed": "first"}], first_seed=0)
    assert selected(row, [{"seed": [1, 3]}], first_seed=0)
    assert selected(row, [{"seed": ["first", 1]}], first_seed=3) and not selected(row, [{"seed": ["first", 1]}], 0)


# ------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("old", "new", "said"), [
    ("quick:", "quik:", "toy.yaml: unknown scale 'quik'; did you mean 'quick'?"),
    ("levels: [0.5, 0.9]", "levls: [0.5]",
     "toy.yaml, quick, small: ToySettings: unknown setting 'levls'; did you mean 'levels'?"),
    ("  levels: [0.5, 0.9]\n", "", "toy.yaml, quick, small: ToySettings: setting 'levels' is missing"),
    ("recipe: {epochs: 5}", "recipe: {epoch: 5}",
     "quick, large: ToySettings: recipe: Recipe: unknown setting 'epoch'; did you mean 'epochs'?"),
    ("fine_tuning: {epochs: 1}", "fine_tuning: 1", "ToySettings: fine_tuning should be Recipe, not 1"),
    ("part: pruned,", "prt: pruned,",
     "toy.yaml, quick, small, measurements, pruned: unknown label 'prt'; did you mean 'part'?"),
    ("part: pruned,", "part: prund,", "measurements, pruned: unknown part 'prund'; did you mean 'pruned'?"),
    ("epsilon: 0.1", "epsilon: wide", "attack: FGSM (fgsm): epsilon should be a number, not 'wide'"),
    ("      fgsm:", "      clean:", "two groups measure clean of the same rows, each in its own way"),
    ("{pruned: null}", "{pruned: null, prund: null}",
     "toy.yaml, laptop: null: unknown key to take away 'prund'; known: all"),
    ("    small: {", "    small: [{", "toy.yaml, line 18: not valid YAML"),
    ("    small: {model: {kind: preact_resnet, depth: 8, width: 2}}", "    small: 3",
     "toy.yaml, quick, small: expected settings such as {key: value}, got 3"),
    ("    large:", "    small:", "toy.yaml, line 18: key 'small' is given twice"),
    ("    large:", "    0.5:", "toy.yaml, quick: nets should map networks to their settings"),
    ("    large:", "    on:", "toy.yaml, line 18: key 'on' is read as True"),
    ("quick:\n", "quick:\n  based_on: []\n", "toy.yaml, quick: based_on: unknown scale '[]'"),
])
def test_a_mistake_in_a_file_is_one_line_with_the_nearest_known_word(folder, refusal, old, new, said):
    assert old in TOY
    (folder / "toy.yaml").write_text(TOY.replace(old, new, 1))
    assert said in refusal(plan, "laptop" if "laptop" in said else "quick")


def test_an_empty_section_and_a_file_that_is_no_mapping_are_refused(folder, refusal):
    (folder / "toy.yaml").write_text("quick:\n")
    assert refusal(plan) == "toy.yaml, quick: nothing stands in this section"
    (folder / "toy.yaml").write_text("- quick")
    assert refusal(plan) == "toy.yaml should map scales to their settings"
    (folder / "toy.yaml").unlink()
    assert not scales.has("quick", "toy")
    assert refusal(plan) == "toy has no scale: its settings, toy.yaml, have no section 'quick'"


def test_unknown_scales_and_bad_seeds_are_one_line(folder, refusal):
    assert refusal(scales.check, "labtop").startswith("unknown scale 'labtop': did you mean 'laptop'? known: quick")
    assert refusal(plan, "none").startswith("unknown scale 'none'")
    for seeds in ([], [0, 0], [-1], "0", [True]):
        assert refusal(plan, seeds=seeds).startswith("seeds should be")


def keys(content, path=()):
    """The paths of all keys in nested mappings."""
    for key, value in content.items() if isinstance(content, dict) else ():
        yield (*path, key)
        yield from keys(value, (*path, key))


def changed(content, path, change):
    """A copy in which the mapping that has the last key of a path is changed by `change(mapping, key)`."""
    content = deepcopy(content)
    mapping = content
    for key in path[:-1]:
        mapping = mapping[key]
    change(mapping, path[-1])
    return content


def misspelt(mapping, key):
    mapping[f"{key}x" if isinstance(key, str) else 17.5] = mapping.pop(key)


def emptied(mapping, key):
    mapping[key] = []


def lost(mapping, key):
    del mapping[key]


@pytest.mark.parametrize("change", [misspelt, emptied, lost])
@pytest.mark.parametrize("study", studies.modules())
def test_whatever_is_wrong_in_a_file_nothing_ends_in_a_traceback(folder, monkeypatch, study, change):
    """One key after another, of the quick scale and of what scales share, is misspelt, emptied or lost."""
    real = paths.PROJECT / "notebooks" / "settings" / f"{study}.yaml"
    content = yaml.safe_load(real.read_text())
    content = {name: content[name] for name in ("shared", "quick") if name in content}
    refused, places = 0, [path for path in keys(content) if len(path) > 1][::2]
    sections = content
    monkeypatch.setattr(scales, "_sections", lambda name: sections)
    for path in places:
        sections = changed(content, path, change)
        try:
            studies.modules()[study].experiment("quick", [0])
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > len(places) / 3  # names of networks, groups and measurements are free
