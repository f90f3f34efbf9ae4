"""How alike two networks are in which of their weights are left."""

from sparserobust.config import Measurement, Run
from sparserobust.errors import UserError
from sparserobust.settings import settings
from sparserobust.sparsity import prunable


@settings
class MaskOverlap(Measurement, kind="mask_overlap"):
    """Share of the convolution and linear weights kept here, those that are not zero as they act, that the network of
    another run keeps, too: another seed, an earlier epoch (`Recipe.stop`), another method. `parts`:

        chance      the same, expected if each layer's kept weights were drawn at random with the layers' own counts
        jaccard     those that both keep, as a share of those that either keeps

    `layers` has of each layer how many weights are kept here, by the other, by both, and how many there are."""

    other: Run

    @property
    def required_runs(self):
        return (self.other,)

    def __call__(self, model, splits, other):
        ours, theirs = ({name: w != 0 for name, w in prunable(net).items()} for net in (model, other))
        if {name: mask.shape for name, mask in ours.items()} != {name: mask.shape for name, mask in theirs.items()}:
            raise UserError(f"{self.kind} compares networks whose layers have equal names and shapes: name a run with "
                            "the same model")
        layers = {name.removesuffix(".weight"): {
            "kept": int(mask.sum()), "other": int(theirs[name].sum()), "both": int((mask & theirs[name]).sum()),
            "total": mask.numel()} for name, mask in ours.items()}
        kept, other_kept, both = (sum(layer[key] for layer in layers.values()) for key in ("kept", "other", "both"))
        if not kept:
            raise UserError(f"{self.kind} asks which weights are kept: all of this network's are zero, or it has none")
        expected = sum(layer["kept"] * layer["other"] / layer["total"] for layer in layers.values())
        return {"value": both / kept, "count": both, "total": kept, "layers": layers,
                "parts": {"chance": expected / kept, "jaccard": both / (kept + other_kept - both)}}
