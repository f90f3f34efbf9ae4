"""The last page: a network that a reader brings, judged."""

from sparserobust.studies.your_network.runs import experiment

__all__ = ["experiment"]
