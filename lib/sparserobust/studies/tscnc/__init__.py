"""TSCNC (Feng, Lin, Gao & Wei 2025)."""

from sparserobust.studies.tscnc.comparisons import judged, words
from sparserobust.studies.tscnc.runs import experiment

__all__ = ["experiment", "judged", "words"]
