"""The first page, for readers new to adversarial attacks."""

from sparserobust.studies.start_here.runs import experiment

__all__ = ["experiment"]
