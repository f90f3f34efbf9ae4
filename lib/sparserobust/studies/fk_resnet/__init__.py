"""Sparsity Meets Robustness (Dinh et al. 2020)."""

from sparserobust.studies.fk_resnet.comparisons import judged
from sparserobust.studies.fk_resnet.runs import experiment

__all__ = ["experiment", "judged"]
