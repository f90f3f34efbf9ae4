"""What one-shot pruning is owed before it is judged: norms that have seen the pruned network."""

from torch.nn.modules.batchnorm import _BatchNorm

from sparserobust.settings import settings
from sparserobust.sparsifiers.magnitude import FixedMask
from sparserobust.sparsifiers.targets import as_trained, drop_gradients


@settings
class OnlyNorms(FixedMask, kind="only_norms"):
    """Nothing is trained: all parameters stay bit for bit those of the run's `start`, which has been cut. Only the
    running means and variances of batch norms are estimated anew, as plain averages over all batches that training
    passes through the network: attacked, in training mode, each batch as the objective sees it (one that passes clean
    images as well counts them as a batch of its own). One epoch is enough. Attacks, which see the network in eval
    mode, meet the averages so far; the first batch's meets those of the `start`. The recipe's rates, momentum, decay
    and averaging have nothing to act on."""

    def start(self, model):
        masks = super().start(model)
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        self.require(all(norm.num_batches_tracked is not None for norm in norms), "this network has batch norms that "
                     "do not count their batches (num_batches_tracked is None), of which no average could be taken")
        self.require(bool(norms), "this network has no batch norms with running statistics, so there is nothing to "
                     "estimate")
        for norm in norms:
            norm.momentum = None  # the module's word for a plain average; where training is taken up again, too
            norm.num_batches_tracked.zero_()  # the first batch replaces what is there
        return masks

    def before_step(self, model, state, lr):
        drop_gradients(model)

    def sparse_weights(self, model, state):
        return as_trained(model)
