"""What makes a network sparse: one file per method, each a `config.Sparsifier`."""

from sparserobust.config import Dense
from sparserobust.sparsifiers.admm import ADMM, ReleasedADMM
from sparserobust.sparsifiers.lasso import Lasso
from sparserobust.sparsifiers.magnitude import FixedMask, Magnitude, RelativeThreshold
from sparserobust.sparsifiers.splitting import RGSM, RVSM

__all__ = ["ADMM", "RGSM", "RVSM", "Dense", "FixedMask", "Lasso", "Magnitude", "RelativeThreshold",
           "ReleasedADMM"]
