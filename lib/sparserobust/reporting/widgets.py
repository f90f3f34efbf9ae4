"""A slider above a picture that is redrawn as it moves, by mouse or arrow keys: for notebooks with a kernel; beside it
stands a picture that needs none. And how far a page is."""

from collections.abc import Callable, Sequence
from functools import cache

from matplotlib.figure import Figure

from sparserobust import paths
from sparserobust.reporting.artifacts import described, png


def slider(draw: Callable[[float], Figure], values: Sequence[float], label: str, start: float, form: str = "{:g}"):
    """A widget: one position per value, named by `form`, and under it what `draw` makes of the value, its titles or
    the names of its axes as alternative text. Pictures are kept, so that going back costs nothing. `draw` should take a
    tenth of a second, not more."""
    import ipywidgets

    @cache
    def drawn(value: float) -> str:
        figure = draw(value)
        shown = dict.fromkeys(axes.get_title() or " against ".join(filter(None, (axes.get_ylabel(), axes.get_xlabel())))
                              for axes in figure.axes)
        seen = " ".join("; ".join(filter(None, shown)).split()) or "the picture"
        return described(png(figure, dpi=80), f"{seen[0].upper()}{seen[1:]}, at {label} {form.format(value)}.")

    picture = ipywidgets.HTML(drawn(start))
    choice = ipywidgets.SelectionSlider(options=[(form.format(v), v) for v in values], value=start, description=label,
                                        style={"description_width": "initial"}, layout={"width": "32em"})
    choice.observe(lambda change: setattr(picture, "value", drawn(change["new"])), "value")
    return ipywidgets.VBox([choice, picture])


def page_progress(page: str) -> None:
    """Show here how many code cells of a page have run, and count on after each cell, while *Run All* works."""
    import nbformat
    from IPython import get_ipython
    from IPython.display import display

    cells = nbformat.read(paths.PROJECT / "notebooks" / f"{page}.ipynb", as_version=4).cells
    total = sum(cell.cell_type == "code" for cell in cells)
    line, shell = display({"text/plain": ""}, raw=True, display_id=True), get_ipython()

    def count(result=None) -> None:
        done = min(len({text for text in shell.user_ns["In"] if text}), total)
        line.update({"text/plain": f"{done} of the {total} cells of this page have run"}, raw=True)

    shell.events.register("post_run_cell", count)
