"""What makes a network sparse: one file per method, each a `config.Sparsifier`."""

from sparserobust.config import Dense
from sparserobust.sparsifiers.admm import ADMM, ReleasedADMM
from sparserobust.sparsifiers.magnitude import FixedMask, Magnitude
from sparserobust.sparsifiers.splitting import RGSM, RVSM

__all__ = ["ADMM", "RGSM", "RVSM", "Dense", "FixedMask", "Magnitude", "ReleasedADMM"]
