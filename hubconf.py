"""Networks that come along, by PyTorch's hub: `torch.hub.load("OWNER/NAME", "lasso")`, or, of a checkout,
`torch.hub.load("path/to/it", "lasso", source="local")`. Of OWNER/NAME `torch.hub.list` names them and `torch.hub.help` says
what one is; in a checkout `sparserobust networks` does.
"""

import functools
import importlib.util
import pathlib
import sys

dependencies = ["torch", "numpy", "safetensors"]

if importlib.util.find_spec("sparserobust") is None:
    sys.path.append(str(pathlib.Path(__file__).parent / "lib"))

from sparserobust import networks  # noqa: E402

for _name in networks.names():  # whatever else can be called and has no underscore would be listed, too
    globals()[_name] = _entry = functools.partial(networks.load, _name)
    _entry.__doc__ = networks.described(_name)
