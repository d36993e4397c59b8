"""Landing files of the Open Bandit sample, campaign "men": what two policies showed, and what was clicked.

As a program: python -m tests.real.open_bandit DATA_FOLDER OUT_FOLDER, where DATA_FOLDER holds random.csv.gz and
bts.csv.gz, and OUT_FOLDER is the landing folder of a lakehouse.
"""

import argparse
import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

LOG, EXPERIMENT = "open_bandit", "open_bandit_men"
POLICIES = ("random", "bts")
_USER_FEATURES = tuple(f"user_feature_{number}" for number in range(4))


class Impression(NamedTuple):
    """One row of a policy's file: an item shown at a position of a page."""

    impression_id: str
    policy: str
    time: str
    item: str
    position: int
    propensity: float
    user_features: dict[str, str]
    is_clicked: bool


class Written(NamedTuple):
    """Lines written."""

    records: int
    outcomes: int


def impressions(data: Path, policy: str) -> Iterator[Impression]:
    """The rows of `<policy>.csv.gz` in their order. They have no id: one is made of policy, campaign and row."""
    with gzip.open(data / f"{policy}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            yield Impression(
                impression_id=f"{policy}-men-{number}",
                policy=policy,
                time=datetime.fromisoformat(row["timestamp"]).isoformat(),
                item=row["item_id"],
                position=int(row["position"]),
                propensity=float(row["propensity_score"]),
                user_features={name: row[name] for name in _USER_FEATURES},
                is_clicked=row["click"] == "1",
            )


def record(shown: Impression) -> dict[str, object]:
    """The v02 record of an impression, which is request and unit in one."""
    return {
        "schema_version": "v02",
        "request_id": shown.impression_id,
        "item_id": "",
        "unit_id": shown.impression_id,
        "event_time": shown.time,
        "model_name": LOG,
        "model_version": shown.policy,
        "feature_version": "f01",
        "experiments": [{"experiment_id": EXPERIMENT, "variant": shown.policy}],
        "traffic": "production",
        "status": "ok",
        "action": shown.item,
        "propensity": shown.propensity,
        "features": {"position": shown.position, **shown.user_features},
    }


def click(shown: Impression) -> dict[str, object]:
    """The outcome of a clicked impression. The data do not say when it was clicked: it counts as at once."""
    return {
        "outcome_id": f"{shown.impression_id}-click",
        "request_id": shown.impression_id,
        "name": "click",
        "value": 1.0,
        "event_time": shown.time,
    }


def land(data: Path, landing: Path) -> Written:
    """Writes `<landing>/open_bandit/{records,outcomes}/<policy>-men.jsonl`; returns the lines written."""
    folder, n_records, n_outcomes = landing / LOG, 0, 0
    for policy in POLICIES:
        shown = list(impressions(data, policy))
        name = f"{policy}-men.jsonl"
        n_records += _write(folder / "records" / name, map(record, shown))
        n_outcomes += _write(folder / "outcomes" / name, (click(each) for each in shown if each.is_clicked))
    return Written(n_records, n_outcomes)


def _write(path: Path, rows: Iterable[dict[str, object]]) -> int:
    lines = [json.dumps(row) + "\n" for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Ingest reads a file once, as soon as it sees it, and leaves alone what begins with "_".
    unfinished = path.with_name(f"_{path.name}")
    unfinished.write_text("".join(lines), encoding="utf-8")
    unfinished.replace(path)
    return len(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="open_bandit", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA_FOLDER", help="holds random.csv.gz and bts.csv.gz")
    parser.add_argument("landing", type=Path, metavar="OUT_FOLDER", help="landing folder, as .lakehouse/landing")
    given = parser.parse_args(argv)
    written = land(given.data, given.landing)
    print(f"{written.records:,} records and {written.outcomes:,} clicks in {given.landing / LOG}")


if __name__ == "__main__":
    main()
