"""The settings files, `notebooks/settings/<study>.yaml`: a scale is data, not a branch in the code.

    shared:                 what all scales share
    quick:                  what is different at a scale: mappings are merged key by key; one of another `kind`
                            replaces that of `shared`, and null takes a key away
      nets:                 the paper's networks, each with what is different for it, merged in the same way
        ResNet-18: {stand_in: narrow ResNet-18, model: {...}}
      measurements:         in groups; `rows` says of which grid rows a group is measured, by their labels
        extended: {rows: {method: [AT, RSR], seed: first}, autoattack: {kind: accuracy, ...}}
      tables:               by name, the grid rows that each of the paper's tables and figures shows
        table 1: [{method: [dense, RVSM]}]
    paper:
      based_on: full        what is different from another scale, rather than from what all share

`scales.yaml` beside them lists the scales.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import field
from functools import cache
from typing import Any, Self, TypeVar

from sparserobust import yamls
from sparserobust.config import Data, Measurement, Model, Objective, Recipe, Run
from sparserobust.errors import UserError, quoted
from sparserobust.paths import settings_folder
from sparserobust.settings import Settings, located, settings, unknown

SHARED, BASED_ON = "shared", "based_on"
FIRST = "first"  # of the seeds, in a selector
Selector = Mapping[str, Any]  # labels of grid rows: a value, or a list of them


@settings
class Group(Settings):
    """Measurements that are taken of the same grid rows: of those that one of the selectors `rows` picks."""

    rows: tuple[dict[str, Any], ...] = ({},)
    measurements: dict[str, Measurement]

    @classmethod
    def parse(cls, plain: Mapping) -> Self:
        """From `{rows: selector or list of selectors, <name>: measurement, ...}`."""
        if not isinstance(plain, Mapping):
            raise UserError(f"expected measurements by name, and `rows`, not {plain!r}")
        rows = plain.get("rows", {})
        return cls(rows=[rows] if isinstance(rows, Mapping) else rows,  # type: ignore[arg-type]
                   measurements={name: entry for name, entry in plain.items() if name != "rows"})


@settings
class StudySettings(Settings):
    """What the settings of every study have, of one network at one scale."""

    seeds: tuple[int, ...]
    redraw: bool = False  # a page shows what is stored or published and computes nothing
    stand_in: str = ""  # what stands for the paper's network
    data: Data
    model: Model
    objective: Objective
    recipe: Recipe
    measurements: dict[str, Group]
    tables: dict[str, tuple[dict[str, Any], ...]] = field(default_factory=dict)  # which grid rows each of them shows

    def run(self, seed: int, **changes) -> Run:
        """A run from nothing, with some of its parts changed."""
        parts: dict[str, Any] = {"data": self.data, "model": self.model, "objective": self.objective,
                                 "recipe": self.recipe, "seed": seed}
        return Run(**(parts | changes))

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds of any grid row; some of a study's rows may have others than `seeds`."""
        return self.seeds

    @property
    def groups(self) -> dict[str, Group]:
        """All that is measured: what stands under `measurements`, and what a study makes of its other settings."""
        return self.measurements


S = TypeVar("S", bound=StudySettings)


# ------------------------------------------------------------------------------------------------------ the files


def names() -> list[str]:
    """Known scales. `UserError` where the project's folder is not what it should be."""
    if known := list(_parsed("scales.yaml")):
        return known
    raise UserError(f"{settings_folder() / 'scales.yaml'} is missing or empty: SPARSEROBUST_HOME should name the "
                    "project's folder, or be unset in the project itself")


def check(scale: str) -> None:
    """`UserError` for an unknown scale, with the nearest known one."""
    if scale not in names():
        near = difflib.get_close_matches(str(scale), names(), n=1)
        raise UserError(f"unknown scale {quoted(scale)}: " + (f"did you mean '{near[0]}'? " if near else "")
                        + f"known: {', '.join(names())}")


def has(scale: str, study: str) -> bool:
    """Whether a study can be run at a scale."""
    check(scale)
    return scale in _sections(study)


def load(scale: str, study: str, form: type[S]) -> dict[str, S]:
    """The settings of each network of a study at a scale; of a study that lists no `nets`, under the name "".
    `UserError` for an unknown scale, and for anything in the file that `form` does not know or misses."""
    if not has(scale, study):
        own = ", ".join(name for name in names() if has(name, study))
        raise UserError(f"{study} has {f'only {own}' if own else 'no scale'}: its settings, {study}.yaml, have no "
                        f"section '{scale}'")
    with located(f"{study}.yaml, {scale}"):
        section = _section(_sections(study), scale)
    nets = section.pop("nets", {"": {}})
    if not isinstance(nets, Mapping) or not nets or not all(isinstance(net, str) for net in nets):
        raise UserError(f"{study}.yaml, {scale}: nets should map networks to their settings, not {nets!r}")
    found = {}
    for net, changes in nets.items():
        where = f"{study}.yaml, {scale}{f', {net}' if net else ''}"
        if not isinstance(changes, Mapping):
            raise UserError(f"{where}: expected settings such as {{key: value}}, got {changes!r}")
        with located(where):
            found[net] = form.parse(merged(section, changes))
    return found


def _section(sections: Mapping[str, dict], scale: str) -> dict:
    """What holds at a scale, with what is said where it is based on another. `UserError` if that is in a circle."""
    own = dict(sections.get(scale, {}))
    base = own.pop(BASED_ON, SHARED)
    if scale == SHARED:
        return own
    if base not in [*sections, SHARED]:
        unknown("scale", base, BASED_ON, sections)
    below = {name: section for name, section in sections.items() if name != scale}
    return merged(_section(below, base), own)


def merged(one: Mapping, other: Mapping) -> dict:
    """`other` over `one`: mappings are merged key by key, unless their `kind` differs; None takes a key away.
    `UserError` if there is no key to take away."""
    result = dict(deepcopy(one))
    for key, value in other.items():
        known = result.get(key)
        if value is None:
            if key not in result:
                unknown("key to take away", key, "null", result)
            del result[key]
        elif (isinstance(value, Mapping) and isinstance(known, Mapping)
              and value.get("kind", known.get("kind")) == known.get("kind")):
            result[key] = merged(known, value)
        else:
            result[key] = deepcopy(value)
    return result


def _sections(study: str) -> dict[str, dict]:
    """What the file of a study says, by scale."""
    content = _parsed(f"{study}.yaml")
    for name, section in content.items():
        if name not in (SHARED, *names()):
            unknown("scale", name, f"{study}.yaml", dict.fromkeys([SHARED, *names()]))
        if not isinstance(section, dict) or not section:
            raise UserError(f"{study}.yaml, {name}: nothing stands in this section")
    return content


def _parsed(name: str) -> dict:
    path = settings_folder() / name
    return _from_text(name, yamls.text(path)) if path.exists() else {}


@cache
def _from_text(name: str, text: str) -> dict:
    """The content of a settings file; parsed once, as that takes a hundredth of a second."""
    content = yamls.parsed(text, name)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{name} should map scales to their settings")
    return content


# ------------------------------------------------------------------------------------------------------ selectors


def selected(row: Mapping, selectors: Iterable[Selector], first_seed: int | None = None) -> bool:
    """Whether one of the selectors picks a grid row: all its labels have one of the values that it lists. The seed
    may be given as `first`."""
    def picked(label: str, wanted: Any) -> bool:
        values = _values(wanted)
        first = label == "seed" and FIRST in values and row["seed"] == first_seed
        return row[label] in values or first

    return any(all(label in row and picked(label, wanted) for label, wanted in selector.items())
               for selector in selectors)


def _values(wanted: Any) -> list:
    return list(wanted) if isinstance(wanted, list | tuple) else [wanted]


def checked(selectors: Iterable[Selector], grid: Sequence[Mapping], where: str) -> None:
    """`UserError` for a label in a selector that no grid row has, or a value that none has (but for seeds), with the
    nearest that one has: it would pick nothing, without a word."""
    labels = {label: None for row in grid for label in row if label not in ("run", "measurements")}
    for selector in selectors:
        for label, wanted in selector.items():
            if label not in labels:
                unknown("label", label, where, labels)
            known = {str(row.get(label)): None for row in grid}
            for value in _values(wanted):
                if label != "seed" and str(value) not in known:
                    unknown(label, value, where, known)


def checked_seeds(seeds, scale_seeds: Sequence[int]) -> list[int]:
    """The seeds to use: those given, or the scale's own for None; an empty or wrong list is a `UserError`."""
    seeds = scale_seeds if seeds is None else seeds
    whole = isinstance(seeds, list | tuple) and all(type(s) is int and s >= 0 for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds should be a list of different whole numbers from 0, such as [0, 1, 2], "
                        f"not {quoted(seeds)}")
    return list(seeds)
