"""The scale files, `notebooks/scales/*.yaml`: a scale is data, not a branch in the code."""

import difflib
from collections.abc import Iterator
from copy import deepcopy
from functools import cache

from sparserobust.errors import UserError
from sparserobust.paths import scales_folder


def names() -> list[str]:
    """Known scales, in alphabetical order."""
    return sorted(path.stem for path in scales_folder().glob("*.yaml"))


def check(scale: str) -> None:
    """`UserError` for an unknown scale, with the nearest known one."""
    if scale not in names():
        near = difflib.get_close_matches(str(scale), names(), n=1)
        raise UserError(f"unknown scale '{scale}': " + (f"did you mean '{near[0]}'? " if near else "")
                        + f"known: {', '.join(names())}")


def load(scale: str, paper: str) -> dict:
    """The settings of one paper at one scale. `UserError` for an unknown scale or a broken file."""
    content = _content(scale)
    if not isinstance(content.get(paper), dict) or not content[paper]:
        raise UserError(f"{scale}.yaml has no section '{paper}', or nothing stands in it")
    return content[paper]


def has(scale: str, paper: str) -> bool:
    """Whether a scale has settings of a paper."""
    return paper in _content(scale)


def _content(scale: str) -> dict:
    """Everything in the file of a scale, by paper; the caller's own."""
    check(scale)
    path = scales_folder() / f"{scale}.yaml"
    return deepcopy(_parsed(path.name, path.read_text()))


@cache
def _parsed(name: str, text: str) -> dict:
    """The content of a scale file; parsed once, as every paper asks for it and that takes a tenth of a second."""
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from None
    return content if isinstance(content, dict) else {}


def networks(settings: dict, seeds: list[int] | None = None) -> Iterator[tuple[str, dict, int]]:
    """(net, its settings, seed) of all networks that the settings of a paper list: a network's own settings come before
    those of all, and so do its seeds, unless some are given."""
    for net, own in settings["nets"].items():
        for seed in seeds or own.get("seeds", settings["seeds"]):
            yield net, settings | own, seed


def checked_seeds(seeds, scale_seeds: list[int]) -> list[int]:
    """The seeds to use: those given, or the scale's own for None; an empty or wrong list is a `UserError`."""
    seeds = scale_seeds if seeds is None else seeds
    whole = isinstance(seeds, list | tuple) and all(type(s) is int and s >= 0 for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds should be a list of different whole numbers from 0, such as [0, 1, 2], not {seeds!r}")
    return list(seeds)
