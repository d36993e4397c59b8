"""A small log, and everything that build_units makes of it."""

from collections.abc import Sequence
from datetime import UTC, date, datetime

from pyspark.sql import DataFrame, SparkSession

from mltrust.experiment.spec import Experiment
from mltrust.metrics import (
    BUILT_IN_COLUMNS,
    Metric,
    MetricColumns,
    OutcomeColumn,
    PredictionColumns,
    RequestColumn,
    prediction_columns,
)
from mltrust.slices import Slicing
from mltrust.spark import exposure, outcome, unit_frame, units
from tests.spark.frames import frame

LOG = """event_date DATE, event_time TIMESTAMP, request_id STRING, item_id STRING, unit_id STRING,
model_name STRING, model_version STRING, traffic STRING, status STRING, latency_ms DOUBLE,
prediction_score DOUBLE,
experiments ARRAY<STRUCT<experiment_id: STRING, bucket_id: STRING, variant: STRING>>,
features STRUCT<device: STRING>"""
OUTCOMES = """event_date DATE, event_time TIMESTAMP, outcome_id STRING, revision BIGINT, request_id STRING,
item_id STRING, unit_id STRING, name STRING, value DOUBLE, content_hash STRING"""
COLUMNS = MetricColumns(
    requests={
        "latency": RequestColumn("latency_ms"),
    },
    outcomes={
        "clicks": OutcomeColumn("click", "count"),
        "money": OutcomeColumn("sale"),
        "wait": OutcomeColumn("sale", "delay"),
    },
    predictions={"sale": PredictionColumns("sale"), "click": PredictionColumns("click", threshold=0.2)},
)
CLICKED = Metric("clicked", "proportion", "clicks", role="goal", window_days=2)
MONEY = Metric("money", "mean", "money", missing="exclude")
SPEED = Metric("speed", "ratio", "latency", denominator="n_predictions", role="goal")
EXPERIMENT = Experiment(
    experiment_id="e",
    log="log",
    control="c",
    phases={date(2026, 10, 5): {"c": 1.0, "t": 1.0}},
    metrics=(CLICKED, MONEY, SPEED),
    unit="unit_id",
    buckets={"b1": "c", "b2": "t"},
    slices=Slicing({"device": "features.device"}),
)
AS_OF = datetime(2026, 10, 9, tzinfo=UTC)


def at(day: int, hour: int = 12) -> datetime:
    return datetime(2026, 10, day, hour, tzinfo=UTC)


def row(
    when: datetime,
    request: str,
    unit: str | None,
    *,
    variant: str | None = None,
    bucket: str | None = None,
    device: str | None = "ios",
    traffic: str = "production",
    status: str = "ok",
    item: str = "",
    version: str = "1",
    carries: str = "e",
    latency: float | None = 10.0,
    score: float | None = 0.25,
) -> tuple[object, ...]:
    element = [(carries, bucket, variant)]
    model = ("m", version, traffic, status, latency, score)
    return (when.date(), when, request, item, unit, *model, element, (device,))


def an_outcome(
    when: datetime,
    outcome_id: str,
    name: str = "click",
    value: float | None = 1.0,
    *,
    request: str | None = None,
    item: str | None = None,
    unit: str | None = None,
    revision: int = 0,
) -> tuple[object, ...]:
    return (when.date(), when, outcome_id, revision, request, item, unit, name, value, f"{value}")


class Built:
    """Everything that build_units makes of rows and outcomes."""

    def __init__(
        self,
        spark: SparkSession,
        rows: Sequence[tuple[object, ...]],
        outcomes: Sequence[tuple[object, ...]] = (),
        experiment: Experiment = EXPERIMENT,
        as_of: datetime = AS_OF,
    ) -> None:
        production = exposure.production(frame(spark, rows, LOG), as_of)
        told = frame(spark, outcomes, OUTCOMES)
        current = outcome.current(told, outcome.corrected(told), as_of)
        candidates = exposure.candidates(production, experiment)
        self.experiment, self.as_of = experiment, as_of
        self.left_out = exposure.unexposed(candidates)
        self.exposures = exposure.found(candidates, experiment)
        counted = units.counted(production, self.exposures, experiment)
        resolved = outcome.resolved(current, production, experiment)
        counting = outcome.counted(current, resolved, self.exposures, experiment)
        self.days = units.unit_days(counted, counting, experiment, COLUMNS)

    def first(self) -> dict[str, tuple[str, datetime]]:
        return {
            each["unit_id"]: (each["variant"], each["first_exposure"].astimezone(UTC))
            for each in self.exposures.collect()
        }

    def sums(self) -> dict[tuple[str, int], dict[str, object]]:
        names = (*BUILT_IN_COLUMNS, *COLUMNS.requests, *COLUMNS.outcomes)
        return {
            (each["unit_id"], each["day"].day): {name: each[name] for name in names} for each in self.days.collect()
        }

    def predictions(self, name: str) -> dict[tuple[str, int], dict[str, float | None]]:
        """The columns of a prediction that are not null, by unit and day; days without any are left out."""
        found = {
            (each["unit_id"], each["day"].day): {
                column.removeprefix(f"{name}_"): each[column]
                for column in prediction_columns(name)
                if each[column] is not None
            }
            for each in self.days.collect()
        }
        return {key: columns for key, columns in found.items() if columns}

    def frame(self, kept: dict[str, tuple[str, ...]] | None = None) -> DataFrame:
        exposed = unit_frame.exposed_units(self.exposures, self.experiment, self.as_of)
        return unit_frame.of_units(exposed, self.days, self.experiment, self.as_of, kept or {})


def flags(built: Built, name: str) -> dict[str, object]:
    exposed = unit_frame.exposed_units(built.exposures, built.experiment, built.as_of)
    return {each["unit_id"]: each[name] for each in exposed.collect()}
