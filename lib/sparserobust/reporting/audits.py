"""What an audit found of a network (`analysis.Audit`), as tables, figures, a page and a record."""

import html
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import seaborn

from sparserobust import files
from sparserobust.analysis import masking as names
from sparserobust.analysis.audit import Audit
from sparserobust.analysis.masking import unreliable
from sparserobust.reporting.artifacts import described, png
from sparserobust.reporting.axes import Figure, grid, styled
from sparserobust.reporting.estimates import binomial_interval

WORST = "all of these"
SAYS = {
    names.CLEAN: "no attack", names.ONE_STEP: "one step along the gradient", names.NOISE: "the worst of ten draws",
    names.PGD20: "20 steps up the cross entropy", names.AGAIN: "what chance finds in a second go",
    names.MARGIN: "a loss that confident answers do not flatten", names.LONGER: "100 steps",
    names.AVERAGED: "gradients of ten draws, averaged", names.SQUARE: "sees answers alone, no gradients",
    names.AUTOATTACK: "four attacks, three with gradients", WORST: "images that withstand every one"}
LAYER = {"name": "layer", "kind": "kind", "shape": "shape", "zeros": "zero weights", "unused": "channels not read",
         "dead": "dead units", "norm": "l2 norm", "condition": "condition number"}
SHARES = {"zeros": "weights", "unused": "inputs", "dead": "units"}  # of what they are counts
HEADINGS = ("withstand [%]", "95 % interval", "images", "what it is")
NOT_TAKEN = "not measured"
LONGEST = 100  # letters of a file's name
BLUE = "#0072B2"


@dataclass(frozen=True)
class Report:
    """What an audit with these settings found of the network called `name`; `about` says what was judged, where, and
    on what. Shown by itself in a notebook; `print` gives it as text."""

    settings: Audit
    result: dict
    name: str = "network"
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def flags(self) -> list[dict[str, str]]:
        """Why the numbers may be too good: `kind`, `found`, `means`; none for a network that showed nothing odd."""
        return self.result["flags"]

    @property
    def unreliable(self) -> bool:
        """Whether the accuracies under attack should not be quoted as they are."""
        return unreliable(self.flags)

    @property
    def radius(self) -> str:
        """The radius in words: in 255ths where that is the rounder number."""
        in_255, short = 255 * self.settings.epsilon, f"{self.settings.epsilon:.4g}"
        size = f"{round(in_255)}/255" if len(short) > 4 and abs(in_255 - round(in_255)) < 1e-6 else short
        return f"{size} ({'l-infinity' if self.settings.norm == 'linf' else 'l2'})"

    def attacks(self) -> pandas.DataFrame:
        """A line for each attack: how many images withstand it, with Wilson's interval; last, how many all."""
        lines = []
        for name, row in self._counts().items():
            low, high = binomial_interval(row["count"], row["total"])
            lines.append({"": name, HEADINGS[0]: f"{100 * row['count'] / row['total']:.1f}",
                          HEADINGS[1]: f"[{100 * low:.1f}, {100 * high:.1f}]",
                          HEADINGS[2]: f"{round(row['count'], 2):.15g} of {row['total']}", HEADINGS[3]: SAYS[name]})
        for name in self.result["not_measured"]:
            if name in SAYS:
                lines.append({"": name, HEADINGS[0]: NOT_TAKEN, HEADINGS[3]: SAYS[name]})
        return pandas.DataFrame(lines).set_index("").fillna("")

    def _counts(self) -> dict[str, dict]:
        """Name of each attack, in the order in which they are told, and of all together, to its counts."""
        found = self.result["attacks"] | {WORST: self.result}
        return {name: found[name] for name in SAYS if name in found}

    def size(self) -> pandas.DataFrame:
        """What the network weighs: a line for each quantity, what it is, and what is left when zero channels go."""
        found, lines = self.result["network"], {}

        def add(what: str, now: str, left: str = "") -> None:
            lines[what] = {"now": now, "zero channels removed": left}

        if sparse := found.get("sparsity"):
            add("zero weights [%]", f"{100 * sparse['value']:.1f} of {sparse['total']:,}")
        if channels := found.get("channel_sparsity"):
            add("zero channels [%]", f"{100 * channels['value']:.1f} of {channels['total']:,}")
        if (deployable := found.get("deployable")) is not None:
            for what, key, scale, digits in (("parameters", "parameters", 1, 0), ("multiply-accumulates", "macs", 1, 0),
                                             ("file [KB]", "bytes", 1e-3, 1), ("latency [ms]", "latency_ms", 1, 2)):
                add(what, *(f"{scale * deployable[key + end]:,.{digits}f}" for end in ("", "_left")))
        else:
            if count := found.get("parameters"):
                add("parameters", f"{count['total']:,}")
            if macs := found.get("macs"):
                add("multiply-accumulates", f"{macs['value']:,}")
        if packed := found.get("file_size"):
            add("file, zeros packed [KB]", "", f"{packed['value'] / 1000:,.1f}")
        if found := self.result["certificate"]:
            add("class proved within the radius [images]", f"{found['count']} of {found['total']}")
        if found := self.result["distance"]:
            fooled = found["total"] - found["not_fooled"]
            add(f"l2 distance to another class, by DeepFool [of {fooled} images]", f"{found['value']:.3f}")
        return pandas.DataFrame.from_dict(lines, orient="index")

    def layers(self) -> pandas.DataFrame:
        """A line for each layer with weights."""
        rows = self.result["network"].get("layers", {}).get("layers", [])
        lines = [{heading: self._of_layer(row, key) for key, heading in LAYER.items()} for row in rows]
        table = pandas.DataFrame(lines, columns=list(LAYER.values()))
        return table.set_index(LAYER["name"])

    @staticmethod
    def _of_layer(row: dict, key: str) -> str:
        if key in SHARES:
            count, total = row[key], row[SHARES[key]]
            return "" if count is None else f"{count:,} of {total:,}"
        if key == "condition":
            return "infinite" if row["lost"] else f"{row[key]:.4g}"
        return f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key])

    # -------------------------------------------------------------------------------------------------- figures

    @styled
    def figure(self) -> Figure:
        """Left, the share of images that withstand each attack, with its interval; right, along the radius."""
        figure, ((bars, line),) = grid(1, 2, (11, 3.9), width_ratios=(1.5, 1))
        rows = self._counts()
        self._points(bars, list(rows.values()), np.arange(len(rows)), sideways=True)
        bars.set_yticks(np.arange(len(rows)), list(rows))
        bars.get_yticklabels()[-1].set_fontweight("bold")
        bars.set(xlim=(-2, 102), ylim=(len(rows) - 0.4, -0.6), xlabel=f"images that withstand radius {self.radius} [%]")
        if curve := self.result["curve"]:
            places = [row["radius"] / self.settings.epsilon for row in curve]
            seaborn.lineplot(x=places, y=[100 * row["count"] / row["total"] for row in curve], color=BLUE, ax=line)
            self._points(line, curve, places, sideways=False)
            line.axvline(1, color="0.5", linestyle=":", linewidth=1.5)
            line.set_xscale("symlog", linthresh=1, linscale=1)
            line.set_xticks(sorted({0, 1, *places}), [f"{place:.3g}" for place in sorted({0, 1, *places})], rotation=45)
            line.minorticks_off()
            line.set(ylim=(-2, 102), xlabel=f"radius, in multiples of {self.radius.split(' ')[0]}",
                     ylabel=f"withstand PGD-20 [%], of {curve[0]['total']}")
        else:
            line.text(0.5, 0.5, NOT_TAKEN, color="0.5", ha="center", transform=line.transAxes)
        return figure

    @staticmethod
    def _points(axis, rows: list[dict], places, sideways: bool) -> None:
        for row, place in zip(rows, places, strict=True):
            low, high = (100 * end for end in binomial_interval(row["count"], row["total"]))
            share = 100 * row["count"] / row["total"]
            (axis.hlines if sideways else axis.vlines)(place, low, high, color=BLUE, linewidth=2)
            axis.plot(*((share, place) if sideways else (place, share)), "o", color=BLUE, markersize=7, clip_on=False)

    # ---------------------------------------------------------------------------------------------------- telling

    def verdict(self) -> str:
        """One sentence: what may be said of the network."""
        result = self.result
        low, high = binomial_interval(result["count"], result["total"])
        share = (f"{100 * result['value']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {result['total']} images "
                 f"withstand everything tried within {self.radius}")
        if self.unreliable:
            return f"Not to be relied on: {share}, but a better attack is likely to find less (see the flags)."
        return f"{share[0].upper()}{share[1:]}. Nothing says that gradients were masked; that is no proof."

    def judged(self) -> str:
        """What was judged, in a line."""
        return ", ".join(f"{key} {value}" for key, value in self.about.items() if value not in (None, ""))

    def __str__(self) -> str:
        parts = [f"{self.name}: {self.judged()}", self.verdict(), self.attacks().to_markdown(disable_numparse=True),
                 self.size().to_markdown(disable_numparse=True)]
        parts += [f"flag, {flag['kind']}: {flag['found']}\n    {flag['means']}" for flag in self.flags]
        parts += [f"not measured, {what}: {why}" for what, why in self.result["not_measured"].items()]
        return "\n\n".join(parts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.body()

    def body(self) -> str:
        """The report as HTML, without anything from elsewhere: verdict, flags, tables, the figure."""
        def table(frame: pandas.DataFrame) -> str:
            return f"<div class='wide'>{frame.to_html(na_rep='', border=0)}</div>"

        flags = "".join(f"<li><b>{html.escape(flag['kind'])}</b>: {html.escape(flag['found'])}. "
                        f"<i>{html.escape(flag['means'])}</i></li>" for flag in self.flags)
        missing = "".join(f"<li><b>{html.escape(what)}</b>: {html.escape(why)}</li>"
                          for what, why in self.result["not_measured"].items())
        picture = described(png(self.figure(), dpi=110), FIGURE)
        return "\n".join([
            f"<h1>{html.escape(self.name)}</h1><p>{html.escape(self.judged())}</p>",
            f"<p class='{'warned' if self.unreliable else 'verdict'}'>{html.escape(self.verdict())}</p>",
            f"<h2>Flags</h2><ul>{flags}</ul>" if flags else "<h2>Flags</h2><p>None.</p>",
            f"<h2>What it withstands</h2>{picture}",
            table(self.attacks()),
            f"<p>{html.escape(AFTER)}</p><h2>What it weighs</h2>{table(self.size())}",
            f"<details><summary>Layer by layer</summary>{table(self.layers())}</details>" if len(self.layers()) else "",
            f"<h2>Not measured</h2><ul>{missing}</ul>" if missing else ""])

    def page(self) -> str:
        """A whole page of HTML."""
        return (f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(self.name)}</title>"
                f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head><body>"
                f"{self.body()}</body></html>\n")

    def record(self) -> dict:
        """For programs: RobustBench's keys as far as an audit knows them, accuracies in percent; and everything found,
        under `audit`."""
        attacks, flags = self.result["attacks"], "; ".join(f"{flag['kind']}: {flag['found']}" for flag in self.flags)
        known: dict[str, Any] = {"name": self.name, "dataset": self.about.get("data"),
                                 "architecture": self.about.get("architecture"),
                                 "number_forward_passes": 1, "eps": self.radius.split(" ")[0],
                                 "clean_acc": f"{100 * attacks[names.CLEAN]['value']:.2f}"}
        if names.AUTOATTACK in attacks:
            known["autoattack_acc"] = f"{100 * attacks[names.AUTOATTACK]['value']:.2f}"
        known |= {"unreliable": self.unreliable, "footnote": flags}
        return known | {"audit": {"settings": self.settings.plain(), "about": self.about} | self.result}

    def save(self, folder: Path | str) -> list[Path]:
        """Write `NAME.html` and `NAME.json` into a folder, or `NAME-2` and so on where another audit has that name;
        returns the files."""
        stem = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in self.name).strip(".") or "_"
        stems = (stem[:LONGEST] + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
        page, record = next(found for stem in stems if self._may_be(
            *(found := [Path(folder) / f"{stem}.{ending}" for ending in ("html", "json")])))
        files.write(page, self.page().encode())
        files.write(record, (json.dumps(self.record(), indent=1, allow_nan=False) + "\n").encode())
        return [page, record]

    def _may_be(self, page: Path, record: Path) -> bool:
        """Whether these files are not there yet, or are of the same network, judged by the same settings."""
        if not (page.exists() or record.exists()):
            return True
        try:
            found = files.read_json(record)["audit"]
            return (found["settings"] == self.settings.plain()
                    and all(found["about"].get(key) == self.about.get(key) for key in ("content", "data", "images")))
        except (files.Corrupt, KeyError, TypeError):  # not what an audit writes
            return False

    def row(self) -> pandas.DataFrame:
        """One line, with the headings of the tables of notebook 06 as far as an audit knows them."""
        attacks, found = self.result["attacks"], self.result["network"]
        line = {heading: self._cell(attacks[name]) for heading, name in (
            ("clean [%]", names.CLEAN), ("PGD [%]", names.PGD20), ("PGD, averaged [%]", self._gradients()),
            ("AutoAttack [%]", names.AUTOATTACK)) if name in attacks}
        if sparse := found.get("sparsity"):
            line["weights left [%]"] = f"{100 * (1 - sparse['value']):.1f}"
        if channels := found.get("channel_sparsity"):
            line["channels left [%]"] = f"{100 * (1 - channels['value']):.1f}"
        if packed := found.get("file_size"):
            line["file, packed [KB]"] = f"{packed['value'] / 1000:.1f}"
        if deployable := found.get("deployable"):
            line["latency [ms]"] = f"{deployable['latency_ms_left']:.2f}"
        return pandas.DataFrame([line], index=[self.name])

    def _gradients(self) -> str:
        """The PGD of this network that deserves the name: averaged if it is random."""
        return names.AVERAGED if self.result["random"] else names.PGD20

    @staticmethod
    def _cell(row: dict) -> str:
        low, high = binomial_interval(row["count"], row["total"])
        return f"{100 * row['count'] / row['total']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


FIGURE = ("Left: images that withstand each attack, with 95 % intervals. Right: along the radius, up to the whole box, "
          "where nothing should be left.")
AFTER = ("What follows PGD-20 was tried on the images that withstand it, as an attacker would go on; they count if "
         "they withstand both.")
STYLE = ("body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222;"
         "background:#fff}img{max-width:100%}.wide{overflow-x:auto}table{border-collapse:collapse;font-size:15px}"
         "td,th{padding:.25rem .7rem;text-align:left;border-bottom:1px solid #ddd}h1{margin-bottom:0}"
         ".verdict,.warned{padding:.7rem 1rem;border-left:5px solid #0072B2;background:#eef5fa}"
         ".warned{border-color:#D55E00;background:#fdf0e8}summary{cursor:pointer}")


def beside(table: pandas.DataFrame, *reports: Report) -> pandas.DataFrame:
    """A table of notebook 06 with a line for each of these networks: columns that an audit does not know are empty."""
    rows = [report.row().reindex(columns=table.columns) for report in reports]
    return pandas.concat([table, *rows]).fillna("")
