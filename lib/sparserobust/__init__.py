"""Sparse & Robust: five papers on pruning and adversarial robustness, as notebooks that run.

    import sparserobust as sr
"""

from sparserobust import attacks, models, objectives, sparsifiers
from sparserobust.config import Data, Dense, Recipe, Run
from sparserobust.errors import UserError

__version__ = "0.1.0"
__all__ = ["Data", "Dense", "Recipe", "Run", "UserError", "attacks", "models", "objectives", "sparsifiers"]
