"""What makes a network sparse: one file per method, each a `config.Sparsifier`."""

from sparserobust.config import Dense
from sparserobust.sparsifiers.admm import ADMM, ReleasedADMM
from sparserobust.sparsifiers.lasso import Lasso, ProximalLasso
from sparserobust.sparsifiers.magnitude import FixedMask, Magnitude, RelativeThreshold
from sparserobust.sparsifiers.splitting import RGSM, RVSM
from sparserobust.sparsifiers.surgery import DynamicNetworkSurgery

__all__ = ["ADMM", "RGSM", "RVSM", "Dense", "DynamicNetworkSurgery", "FixedMask", "Lasso", "Magnitude",
           "ProximalLasso", "RelativeThreshold", "ReleasedADMM"]
