"""What is special to one paper, or to the pages that begin and end with all of them: grids per scale, tables, claims.
Nothing general."""

import importlib
import pkgutil
from types import ModuleType

from sparserobust.running import scales
from sparserobust.running.experiment import Experiment


def modules() -> dict[str, ModuleType]:
    """The modules of all papers by name, in alphabetical order."""
    return {m.name: importlib.import_module(f"{__name__}.{m.name}.report")
            for m in pkgutil.iter_modules(__path__) if m.ispkg}


def experiments(scale: str) -> dict[str, Experiment]:
    """What every paper runs at a scale, by its name, without those for which the scale has no settings."""
    return {name: module.experiment(scale) for name, module in modules().items() if scales.has(scale, name)}
