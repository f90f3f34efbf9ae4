"""A slider above a picture that is redrawn as it moves. For notebooks with a kernel; beside each stands a picture that
needs none."""

from collections.abc import Callable, Sequence
from functools import cache

from matplotlib.figure import Figure

from sparserobust.reporting.artifacts import png


def slider(draw: Callable[[float], Figure], values: Sequence[float], label: str, start: float, form: str = "{:g}"):
    """A widget: one position per value, named by `form`, and under it what `draw` makes of the value. Pictures are
    kept, so that going back costs nothing. `draw` should take a tenth of a second, not more."""
    import ipywidgets

    drawn = cache(lambda value: png(draw(value), dpi=80))
    picture = ipywidgets.Image(format="png", value=drawn(start), layout={"max_width": "100%"})
    choice = ipywidgets.SelectionSlider(options=[(form.format(v), v) for v in values], value=start, description=label,
                                        style={"description_width": "initial"}, layout={"width": "32em"})
    choice.observe(lambda change: setattr(picture, "value", drawn(change["new"])), "value")
    return ipywidgets.VBox([choice, picture])
