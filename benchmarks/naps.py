"""A measurement that takes a given time and no processor, for `engine.py`."""

import time

from sparserobust.config import Measurement
from sparserobust.settings import settings


@settings
class Nap(Measurement, kind="nap"):
    seconds: float

    def __call__(self, model, splits) -> dict:
        time.sleep(self.seconds)
        return {"value": self.seconds}
