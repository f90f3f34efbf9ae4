"""All five papers on one network, one data set and one training budget."""

from sparserobust.studies.side_by_side.comparisons import judged, ledger
from sparserobust.studies.side_by_side.runs import experiment

__all__ = ["experiment", "judged", "ledger"]
