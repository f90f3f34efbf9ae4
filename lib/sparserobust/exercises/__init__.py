"""The exercises at the end of each notebook: a module per notebook with one function per exercise, `exercise_1` and so
on, that takes the reader's answer, and what it needs of the notebook, and returns a line: `right: ` and why it
matters, or `not yet: ` and why not. What is right is computed, from the library or from the reader's own networks."""

from sparserobust.exercises import fk_resnet, iwi, rsr, side_by_side, sparsity_theory, start_here, tscnc

__all__ = ["fk_resnet", "iwi", "rsr", "side_by_side", "sparsity_theory", "start_here", "tscnc"]
