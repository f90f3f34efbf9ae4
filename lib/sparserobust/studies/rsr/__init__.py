"""Robust Sparse Regularization (Rakin et al. 2019)."""

from sparserobust.studies.rsr.comparisons import judged
from sparserobust.studies.rsr.runs import experiment

__all__ = ["experiment", "judged"]
