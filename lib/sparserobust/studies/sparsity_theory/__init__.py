"""Sparse DNNs with Improved Adversarial Robustness (Guo et al. 2018)."""

from sparserobust.studies.sparsity_theory.comparisons import judged, words
from sparserobust.studies.sparsity_theory.runs import experiment

__all__ = ["experiment", "judged", "words"]
