"""Layers over the epochs of training: their noise, their gates."""

import pandas
import seaborn
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sparserobust.reporting.axes import facets, from_image_to_answer, styled


@styled
def layers_over_epochs(histories: dict[str, list[dict]], key: str, initial: float,
                       ylabel: str) -> Figure:
    """What `history` of records holds for each layer under `key` against epochs, a panel per label,
    from the value with which all layers begin: dark lines are layers near the image, light ones
    near the answer."""
    layers = from_image_to_answer(next(iter(histories.values()))[0][key])
    rows = [{"label": label, "epoch": epoch, "layer": number, "value": value}
            for label, history in histories.items()
            for epoch, values in enumerate([dict.fromkeys(history[0][key], initial),
                                            *(entry[key] for entry in history)])
            for number, value in enumerate(map(values.get, layers), start=1)]
    data = pandas.DataFrame(rows)
    figure, panels = facets(data, col="label", size=(4.4, 3.8))
    scale = Normalize(1, max(2, data["layer"].max()) / 0.95)  # without the lightest yellow
    for axis, chosen, *_ in panels:
        seaborn.lineplot(chosen, x="epoch", y="value", hue="layer", palette="viridis", ax=axis,
                         hue_norm=scale, legend=False)
        axis.set(xlabel="epoch", ylabel=ylabel if axis is panels[0].axis else "")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(ScalarMappable(scale, colormaps["viridis"]), ax=figure.axes,
                    ticks=MaxNLocator(6, integer=True), label="layer, from image to answer")
    return figure
