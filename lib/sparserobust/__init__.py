"""Sparse & Robust: five papers on pruning and adversarial robustness, as notebooks that run.

    import sparserobust as sr

    run = sr.Run(data=sr.Data(name="digits"), model=sr.models.PreActResNet(depth=8, width=8),
                 objective=sr.objectives.Natural(), recipe=sr.Recipe(epochs=3), seed=0)
    model = sr.Store().model(run)

Importing this needs torch and numpy only; tables, figures and attack suites are imported where they are used.
"""

from sparserobust import (
    analysis,
    apgd,
    attacks,
    data,
    evaluation,
    export,
    foreign,
    models,
    networks,
    objectives,
    query_attacks,
    sparsifiers,
    sparsity,
)
from sparserobust.auditing import audit
from sparserobust.config import Data, Dense, Measurement, Recipe, Run
from sparserobust.errors import UserError
from sparserobust.evaluation import Accuracy
from sparserobust.running.store import Store

__version__ = "0.2.0"
__all__ = ["Accuracy", "Data", "Dense", "Measurement", "Recipe", "Run", "Store", "UserError", "analysis", "apgd",
           "attacks", "audit", "data", "evaluation", "export", "foreign", "models", "networks", "objectives",
           "query_attacks", "sparsifiers", "sparsity"]
