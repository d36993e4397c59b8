"""Landing files of the CDC's FluSight season 2021-22: every forecast of 27 models as Avro, and what came true.

A forecast (model, day, location, target) is a request, each of its quantiles an item; the unit is the location.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from mltrust.contract import Contract
from mltrust.formats import avro

LOG = "flusight"
_ROWS_A_FILE = 100_000


def micros(day: str) -> int:
    """Midnight UTC of a day in microseconds since 1970."""
    return round(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 1_000_000


def record(row: dict[str, object]) -> dict[str, object]:
    """The v02 record of one quantile, or of a point forecast."""
    quantile = row["quantile"]
    return {
        "schema_version": "v02",
        "request_id": f"{row['forecast_date']}/{row['location']}/{row['target']}",
        "item_id": "point" if quantile is None else f"{quantile}",
        "unit_id": row["location"],
        "event_time": micros(str(row["forecast_date"])),
        "model_name": LOG,
        "model_version": row["model"],
        "feature_version": "f01",
        "traffic": "production",
        "status": "ok",
        "prediction_score": row["value"],
        "features": {name: row[name] for name in ("location", "target", "type", "quantile")}
        | {"target_end": micros(str(row["target_end_date"]))},
    }


def outcome(row: dict[str, object]) -> dict[str, object]:
    """What came true in a location in the week that ends on a day."""
    return {
        "outcome_id": f"{row['location']}/{row['date']}",
        "unit_id": row["location"],
        "name": "admissions",
        "value": row["value"],
        "event_time": micros(str(row["date"])),
    }


def land_forecasts(data: Path, folder: Path, contract: Contract) -> int:
    """Writes `<folder>/records/<n>.avro`; returns the records."""
    table, schema, n = pq.read_table(data / "forecasts.parquet"), avro.record_schema(contract), 0
    for at, batch in enumerate(_parts(table)):
        records = [record(row) for row in batch.to_pylist()]
        _write(folder / "records" / f"{at:03}.avro", avro.encode(records, schema))
        n += len(records)
    return n


def land_truth(data: Path, folder: Path) -> int:
    """Writes `<folder>/outcomes/truth.avro`; returns the outcomes."""
    strings = pyarrow.csv.ConvertOptions(column_types={"location": pa.string(), "date": pa.string()})
    truth = pyarrow.csv.read_csv(data / "truth.csv", convert_options=strings).to_pylist()
    outcomes = [outcome(row | {"value": float(row["value"])}) for row in truth]
    _write(folder / "outcomes" / "truth.avro", avro.encode(outcomes, avro.outcome_schema()))
    return len(outcomes)


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, _ROWS_A_FILE):
        yield table.slice(start, _ROWS_A_FILE)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"_{path.name}")
    unfinished.write_bytes(content)
    unfinished.replace(path)
