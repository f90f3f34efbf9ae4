"""A method of your own, in one file, which the worker processes of a sweep import too.
Copy it and change the formula."""

# A copy needs another kind. The text of this file is part of what a run is: after a change it is
# trained anew. The text of other files of yours that it imports is not. In an open notebook,
# restart the kernel after a change.

import torch
from torch.linalg import vector_norm

from sparserobust.settings import settings
from sparserobust.sparsifiers import FixedMask
from sparserobust.sparsity import all_but_smallest, prunable


@settings
class OutputShare(FixedMask, kind="output_share"):
    """Prunes, layer by layer, the weights that are smallest against the norm of the output they
    belong to."""

    sparsity: float

    @torch.no_grad()
    def start(self, model):
        scores = {}
        for name, w in prunable(model).items():
            norm = vector_norm(w, dim=tuple(range(1, w.dim())), keepdim=True)  # of each output
            scores[name] = w.abs() / (norm + 1e-12)
        masks = {name: all_but_smallest(s.flatten(), round(self.sparsity * s.numel())).view_as(s)
                 for name, s in scores.items()}
        self.after_step(model, masks, 0.0)
        return masks
