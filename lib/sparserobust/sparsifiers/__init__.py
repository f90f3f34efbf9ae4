"""What makes a network sparse: one file per method, each a `config.Sparsifier`."""

from sparserobust.config import Dense
from sparserobust.sparsifiers.magnitude import Magnitude
from sparserobust.sparsifiers.splitting import RGSM, RVSM

__all__ = ["RGSM", "RVSM", "Dense", "Magnitude"]
