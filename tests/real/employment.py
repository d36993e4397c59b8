"""Landing files of the employment data: predictions of four years as Protobuf, their labels apart and later."""

import gzip
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq

from mltrust.contract import Contract
from mltrust.formats import protobuf
from mltrust.formats.protobuf import Codec

LOG = "employment"
FEATURES = ("AGEP", "SCHL", "MAR", "SEX", "RAC1P", "ANC", "year")
YEARS = (2015, 2016, 2017, 2018)


def second(year: int, at: int) -> int:
    """A time of the year for its n-th row, in microseconds: the data know the year only."""
    return (round(datetime(year, 1, 1, tzinfo=UTC).timestamp()) + at % (360 * 86_400)) * 1_000_000


def record(row: dict[str, object]) -> dict[str, object]:
    """The v02 record of a person's prediction."""
    return {
        "schema_version": "v02",
        "request_id": f"p{row['id']}",
        "unit_id": f"p{row['id']}",
        "event_time": second(int(str(row["year"])), 100 * int(str(row["id"]))),
        "model_name": LOG,
        "model_version": "1",
        "feature_version": "f01",
        "traffic": "production",
        "status": "ok",
        "prediction_score": row["predicted_probability"],
        "features": {name: row[name] for name in FEATURES},
    }


def outcome(row: dict[str, object], year: int) -> dict[str, object]:
    """Whether the person was employed, known a year later."""
    return {
        "outcome_id": f"p{row['id']}-employed",
        "request_id": f"p{row['id']}",
        "name": "employed",
        "value": float(str(row["employed"])),
        "event_time": second(year + 1, 100 * int(str(row["id"]))),
    }


def land_predictions(data: Path, folder: Path, contract: Contract) -> int:
    """Writes `<folder>/records/<part>.pb.gz`; returns the records."""
    codec, n = Codec(contract, "Record"), 0
    for part in ("reference", "analysis"):
        rows = pq.read_table(data / f"{part}.parquet").to_pylist()
        _write(folder / "records" / f"{part}.pb.gz", [codec.encode(record(row)) for row in rows])
        n += len(rows)
    return n


def land_labels(data: Path, folder: Path, contract: Contract) -> int:
    """Writes `<folder>/outcomes/<part>.pb.gz`; returns the outcomes."""
    codec, n = Codec(contract, "Outcome"), 0
    years = {}
    for part in ("reference", "analysis"):
        rows = pq.read_table(data / f"{part}.parquet", columns=["id", "year"]).to_pylist()
        years |= {row["id"]: row["year"] for row in rows}
    for part in ("reference", "analysis_target"):
        rows = pq.read_table(data / f"{part}.parquet", columns=["id", "employed"]).to_pylist()
        _write(folder / "outcomes" / f"{part}.pb.gz", [codec.encode(outcome(row, years[row["id"]])) for row in rows])
        n += len(rows)
    return n


def _write(path: Path, messages: Sequence[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"_{path.name}")
    unfinished.write_bytes(gzip.compress(protobuf.delimited(messages), compresslevel=1))
    unfinished.replace(path)
