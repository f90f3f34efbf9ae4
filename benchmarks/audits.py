"""Networks of torchvision through the audit: how long it takes, and what it can and cannot say.

    python benchmarks/audits.py [--only NAME ...] [--images 12] [--few 4] [--queries 3] [--record]

Each network has random weights, drawn from a fixed seed, ten classes, and norms that have seen a batch; it is judged on
photographs that come along (`data/sample`) at radius 8/255, without AutoAttack, on one thread; seconds are the
processor's. Accuracies are those of guessing; what is told is whether an architecture can be judged: images classified
correctly, images that withstand everything tried, images whose class is proved (or why none can be), kinds of flags,
and what was not measured. `--record` writes the table into benchmarks/audits.csv.
"""

import argparse
import time
from pathlib import Path

from compact import built, printed, record  # beside this file

import sparserobust as sr
from sparserobust import provenance
from sparserobust.data import Split, Splits

TABLE = Path(__file__).with_suffix(".csv")
NETWORKS = ["resnet18", "resnext50_32x4d", "squeezenet1_1", "densenet121", "googlenet", "mobilenet_v2",
            "mobilenet_v3_small", "efficientnet_b0", "mnasnet0_5", "regnet_y_400mf", "shufflenet_v2_x0_5",
            "convnext_tiny"]


def judged(name: str, images: int, few: int, queries: int) -> dict:
    """A line of the table."""
    sample = sr.data.sample()
    split = Split(sample.images[:images], sample.labels[:images])
    model = built(name, (3, 32, 32))
    begun = time.process_time()
    with provenance.with_threads(1):
        report = sr.audit(model, Splits(split, split, split, sample.classes), "8/255", None, few=few, queries=queries,
                          autoattack=False, progress=False, name=name)
    result, missing = report.result, dict(report.result["not_measured"])
    proved, why = result["certificate"], missing.pop("certificate", "")
    kinds = dict.fromkeys(flag["kind"] for flag in report.flags if flag["kind"] != "not measured")
    return {"network": name, "seconds": round(time.process_time() - begun), "images": result["total"],
            "clean": result["attacks"]["clean"]["count"], "withstand": result["count"],
            "proved": f"{proved['count']} of {proved['total']}" if proved else why, "flags": "; ".join(kinds),
            "not measured": "; ".join(f"{what}: {reason}" for what, reason in missing.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME", help="these networks")
    parser.add_argument("--images", type=int, default=12, help="photographs, a hundred at most")
    parser.add_argument("--few", type=int, default=4, help="of these for what is dear")
    parser.add_argument("--queries", type=int, default=3, help="of Square, per image")
    parser.add_argument("--record", action="store_true", help=f"write the table into {TABLE.name}")
    chosen = parser.parse_args()
    if chosen.record and set(chosen.only) != set(NETWORKS):
        parser.error("--record writes the whole table: leave out --only")
    print(provenance.summary())
    lines = printed(judged(name, chosen.images, chosen.few, chosen.queries) for name in chosen.only)
    if chosen.record:
        record(TABLE, lines)


if __name__ == "__main__":
    main()
