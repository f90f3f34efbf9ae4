"""What makes a network sparse: one file per method, each a `config.Sparsifier`."""

from sparserobust.config import Dense
from sparserobust.sparsifiers.admm import ADMM, ReleasedADMM
from sparserobust.sparsifiers.constraints import TSCNC
from sparserobust.sparsifiers.dynamic import DynamicSparse
from sparserobust.sparsifiers.lasso import Lasso, ProximalLasso
from sparserobust.sparsifiers.magnitude import FixedMask, Magnitude, RandomMask, RelativeThreshold
from sparserobust.sparsifiers.norms import OnlyNorms
from sparserobust.sparsifiers.rates import LearnedRates
from sparserobust.sparsifiers.scores import LearnedScores, SharpScores
from sparserobust.sparsifiers.splitting import RGSM, RVSM
from sparserobust.sparsifiers.structured import Channels, ScaleLasso
from sparserobust.sparsifiers.surgery import DynamicNetworkSurgery
from sparserobust.sparsifiers.ticket import MatchedHistogram, Ticket

__all__ = ["ADMM", "RGSM", "RVSM", "TSCNC", "Channels", "Dense", "DynamicNetworkSurgery", "DynamicSparse", "FixedMask",
           "Lasso", "LearnedRates", "LearnedScores", "Magnitude", "MatchedHistogram", "OnlyNorms", "ProximalLasso",
           "RandomMask", "RelativeThreshold", "ReleasedADMM", "ScaleLasso", "SharpScores", "Ticket"]
