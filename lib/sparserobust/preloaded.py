"""What notebooks import, to be imported once: kernels are forked from a process that has imported this module. It must
compute nothing: threads and a GPU would not survive the fork."""

import importlib
import os
import pkgutil

# as in a kernel, and before matplotlib is imported; the backend itself is loaded by the kernel
os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")

import ipykernel.kernelapp
import ipywidgets
import pandas
import seaborn
import sklearn.datasets

from sparserobust import studies

__all__ = ["ipykernel", "ipywidgets", "seaborn", "sklearn"]

pandas.set_option("display.max_columns", 20)  # as in a kernel: it takes this process for a terminal

for _module in pkgutil.walk_packages(studies.__path__, f"{studies.__name__}."):
    importlib.import_module(_module.name)
