"""One colour and marker for each method, over all figures of the project."""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple

import seaborn

# the palette without its light pink and its yellow, which are lost on white; and black
PALETTE = seaborn.color_palette("colorblind").as_hex()
BLUE, ORANGE, GREEN, RED, PINK, BROWN, _, GREY, _, SKY = PALETTE
BLACK = "#222222"
COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, BROWN, SKY, BLACK, GREY)
MARKERS = "osD^vPX*<>"
DASHES = dict(zip(MARKERS, ("-", "--", "-.", (0, (1, 1)), (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)),
                            (0, (4, 2, 1, 2)), (0, (8, 2)), (0, (2, 1)), (0, (1, 2))),
                  strict=True))  # a line style for each marker


class Style(NamedTuple):
    """How the marks and lines of a method look; marker "" draws none, dash "" joins no points."""

    colour: str
    marker: str
    dash: Any


# colour and marker to all names that one method has in figures; each pair stands here once
METHODS: dict[tuple[str, str], tuple[str, ...]] = {
    # trained without pruning
    (BLUE, "o"): ("dense", "AT", "AT, dense", "TRADES", "adversarial", "trained under attack",
                  "tickets, adversarial", "adversarial, pruned", "AT, by sparsity"),
    (ORANGE, "s"): ("natural", "trained as usual", "tickets, natural", "natural, pruned"),
    (SKY, "^"): ("trained on", "TRADES, trained on", "adversarial, trained on"),
    (BROWN, "v"): ("natural, trained on",),
    (GREY, "s"): ("small from the start",),
    (SKY, "D"): ("AT, narrow",),
    (ORANGE, "D"): ("natural, narrow", "inherits from natural narrow"),
    # pruned by magnitude or by scores
    (GREEN, "D"): ("magnitude", "magnitude, global", "zoo, magnitude, global"),
    (GREEN, "<"): ("step by step",),
    (BROWN, "s"): ("magnitude, layer by layer", "layer by layer", "LWM", "uniform"),
    (SKY, "v"): ("global, last kept",),
    (BLACK, "o"): ("layer by layer, last kept",),
    (PINK, "^"): ("learned scores", "HYDRA"),
    (GREY, "v"): ("one shot",),
    (BLACK, "P"): ("adversarial, pruned, not retrained",),
    (RED, "X"): ("natural, pruned, not retrained",),
    (BLACK, "v"): ("filters, L1 norm",),
    (RED, "P"): ("network slimming",),
    (GREY, "X"): ("random", "weights: random"),
    (BLACK, "X"): ("mask: random",),
    (RED, "^"): ("surgery",),
    # splitting (Dinh et al. 2020); networks by the paper's name and by that of what stands for them
    (ORANGE, "P"): ("splitting", "RVSM"),
    (GREEN, "*"): ("RGSM",),
    (BLUE, "X"): ("noisy ensemble, split",),
    (PINK, "v"): ("released ADMM channels", "released ADMM weights"),
    (BLACK, "D"): ("ADMM channels", "ADMM weights"),
    (BLUE, "s"): ("ResNet20", "ResNet8"),
    (ORANGE, "o"): ("En2ResNet20", "En2ResNet8"),
    (GREEN, "^"): ("En5ResNet20", "En3ResNet8"),
    (PINK, "D"): ("ResNet38", "ResNet14"),
    # tickets and inheritance (Wang et al. 2020)
    (SKY, "s"): ("lottery ticket", "ticket", "weights: initial"),
    (GREEN, "o"): ("weights: early",),
    (PINK, "<"): ("weights: trained",),
    (RED, "*"): ("IWI", "IWI, from narrow"),
    (PINK, ">"): ("IWI, from ticket",),
    (BLACK, "<"): ("AT, cost of IWI from narrow",),
    (GREY, "^"): ("AT, cost of IWI from ticket",),
    # noise and lasso (Rakin et al. 2019)
    (ORANGE, "v"): ("lasso", "AT + lasso"),
    (GREEN, "X"): ("AT + noise", "AT + noise, dense"),
    (BROWN, "*"): ("RSR", "RSR, dense", "RSR, by sparsity"),
    (RED, "D"): ("RSR, pruned", "pruned"),
    (BLACK, "^"): ("RSR, fine-tuned", "fine-tuned"),
    (SKY, "<"): ("RSR, by threshold",),
    (PINK, "X"): ("RSR, by lambda",),
    # sparse activations (Guo et al. 2018)
    (SKY, "P"): ("k-winners",),
    (BROWN, "D"): ("L1 on activations",),
    # constraints (Feng et al. 2025)
    (ORANGE, "X"): ("+TSC",),
    (GREEN, "v"): ("+CNC",),
    (BLACK, "*"): ("TSCNC",),
    (GREY, "P"): ("gates alone",),
    (GREY, "o"): ("other settings",),
    (GREEN, ">"): ("CNC, all layers",),
    (RED, "<"): ("TSCNC, as released",),
    (ORANGE, ">"): ("TSC, decay alone",),
    # the ring
    (BLUE, "D"): ("dense, in two stages",),
    (GREEN, "P"): ("magnitude, ERK", "ERK"),
    (PINK, "s"): ("learned rates",),
    (PINK, "*"): ("sharp scores",),
    (RED, "s"): ("dynamic",),
    (RED, "v"): ("dynamic, grown at random",),
    (GREEN, "s"): ("sparse, mask fixed",),
    (BROWN, "^"): ("N-FGSM",),
    (SKY, "o"): ("averaged weights",),
    (GREY, "D"): ("one shot, norms recomputed",),
    (BLUE, "P"): ("noisy ensemble, equal epochs",),
}
# what is computed and not measured has no marks; points of these methods are not steps of a path
LINES = {"null": Style(GREY, "", ":"), "lasso, theorem 3.1": Style(BLACK, "", ":"),
         "magnitude, theorem 3.1": Style(BLACK, "", "--"),
         "our bound, first path": Style(BLACK, "", (0, (6, 2)))}
UNJOINED = ("surgery",)
KNOWN = LINES | {name: Style(colour, marker, "" if name in UNJOINED else DASHES[marker])
                 for (colour, marker), names in METHODS.items() for name in names}


def of(names: Iterable[str]) -> dict[str, Style]:
    """The style of each name; one that is not in `METHODS` gets the next that the others here do
    not use, of a colour of its own as long as there is one."""
    names = list(dict.fromkeys(names))
    found = {name: KNOWN[name] for name in names if name in KNOWN}
    free = _free({(style.colour, style.marker) for style in found.values()})
    return {name: found.get(name) or next(free) for name in names}


def _free(used: set[tuple[str, str]]) -> Iterator[Style]:
    """Styles in a fixed order: first those whose colour and marker are both new, then those whose
    pair is."""
    colours, markers = {colour for colour, _ in used}, {marker for _, marker in used}
    alone = zip([colour for colour in COLOURS if colour not in colours],
                [marker for marker in MARKERS if marker not in markers], strict=False)
    given = set(used)
    for colour, marker in [*alone, *((c, m) for m, c in product(MARKERS, COLOURS))]:
        if (colour, marker) not in given:
            given.add((colour, marker))
            yield Style(colour, marker, DASHES[marker])


VERDICTS = {"holds": (GREEN, "o"), "does not hold": (RED, "X"), "no difference": (BLUE, "s"),
            "open": ("0.35", "D"), "not tested": ("0.65", "v")}  # colour and marker
