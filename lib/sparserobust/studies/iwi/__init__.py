"""Achieving Adversarial Robustness via Sparsity (Wang et al. 2020)."""

from sparserobust.studies.iwi.comparisons import judged, words
from sparserobust.studies.iwi.runs import experiment

__all__ = ["experiment", "judged", "words"]
