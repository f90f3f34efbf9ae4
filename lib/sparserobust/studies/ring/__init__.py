"""The five papers' methods and what anybody would try today, in one ring."""

from sparserobust.studies.ring.comparisons import judged, ledger
from sparserobust.studies.ring.runs import experiment

__all__ = ["experiment", "judged", "ledger"]
