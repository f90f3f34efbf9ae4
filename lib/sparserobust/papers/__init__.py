"""What is special to one paper: its grids per scale, its tables, its claims. Nothing general."""

import importlib
import pkgutil
from types import ModuleType


def modules() -> dict[str, ModuleType]:
    """The modules of all papers by name, in alphabetical order."""
    return {m.name: importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)}
