"""Measurements of trained networks other than accuracy."""

from sparserobust.analysis.weights import ChannelSparsity, RemainingParameters, WeightHistogram, WeightSparsity

__all__ = ["ChannelSparsity", "RemainingParameters", "WeightHistogram", "WeightSparsity"]
