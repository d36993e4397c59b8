"""What every table of a log holds: columns, keys, constraints, partitions and retention."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mltrust.contract import Contract, FeatureType
from mltrust.metrics import BUILT_IN_COLUMNS, MetricColumns

Keep = Literal["audit", "rebuild"]

_SQL_TYPES: Mapping[FeatureType, str] = {
    "boolean": "BOOLEAN",
    "long": "BIGINT",
    "double": "DOUBLE",
    "string": "STRING",
    "timestamp": "TIMESTAMP",
}
_ARRIVAL = """
    content_hash STRING NOT NULL, ingested_at TIMESTAMP NOT NULL, source STRING NOT NULL,
    ingest_batch STRING NOT NULL"""
_RECORD = f"""
    schema_version STRING NOT NULL, request_id STRING NOT NULL, item_id STRING NOT NULL, unit_id STRING,
    event_time TIMESTAMP NOT NULL, event_date DATE NOT NULL,
    model_name STRING NOT NULL, model_version STRING NOT NULL, feature_version STRING NOT NULL,
    experiments ARRAY<STRUCT<experiment_id: STRING, bucket_id: STRING, variant: STRING>> NOT NULL,
    traffic STRING NOT NULL, status STRING NOT NULL, error_type STRING,
    prediction_score DOUBLE, action STRING, propensity DOUBLE, latency_ms DOUBLE, infra MAP<STRING, DOUBLE>,
    extra STRING,{_ARRIVAL}"""
_OUTCOME = f"""
    outcome_id STRING NOT NULL, revision BIGINT NOT NULL, request_id STRING, item_id STRING, unit_id STRING,
    name STRING NOT NULL, value DOUBLE, event_time TIMESTAMP NOT NULL, event_date DATE NOT NULL,
    extra STRING,{_ARRIVAL}"""
_REJECT = """
    ingest_batch STRING NOT NULL, source STRING NOT NULL, position BIGINT NOT NULL,
    raw STRING NOT NULL, raw_encoding STRING NOT NULL, reason_code STRING NOT NULL, reason STRING NOT NULL,
    model_name STRING, model_version STRING,
    experiments ARRAY<STRUCT<experiment_id: STRING, bucket_id: STRING, variant: STRING>>,
    ingested_at TIMESTAMP NOT NULL"""
_RESULT = """
    as_of TIMESTAMP NOT NULL, run_id STRING NOT NULL, conf_hash STRING NOT NULL,
    input_versions MAP<STRING, BIGINT> NOT NULL, written_at TIMESTAMP NOT NULL"""
_MODEL = "model_name STRING NOT NULL, model_version STRING NOT NULL"
_UNIT = "experiment_id STRING NOT NULL, unit_kind STRING NOT NULL, unit_id STRING NOT NULL"
_SLICE = "slice_key STRING NOT NULL, slice_value STRING NOT NULL"
_WINDOW = "window_start TIMESTAMP NOT NULL, window_end TIMESTAMP NOT NULL"
_DAY_OF_TIME = "unix_date(event_date) = floor(unix_micros(event_time) / 86400000000)"
_DRIFT_KEY = ("model_name", "model_version", "traffic", "arm", "window_start", "window_end", "slice_key",
              "slice_value", "column")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a log. `key` names one row; `keep` which retention it has; `subject` its partition column.

    `order` are the columns of its Z-order: a search for one of them passes over files that cannot hold it.
    """

    name: str
    columns: str
    key: tuple[str, ...]
    subject: str | None = None
    checks: tuple[tuple[str, str], ...] = ()
    append_only: bool = False
    keep: Keep = "audit"
    order: tuple[str, ...] = ()


def _result(name: str, key: tuple[str, ...], columns: str, subject: str) -> Table:
    return Table(name, f"{columns}, {_RESULT}", key, subject)


def _scores(role: str) -> str:
    """What a replayed row has of a model: `tried` are its scores under the perturbations of the plan, in order."""
    return (
        f"{role} DOUBLE, {role}_error STRING, {role}_ms DOUBLE, {role}_noise DOUBLE, {role}_tried ARRAY<DOUBLE>, "
        f"{role}_failed ARRAY<BIGINT>"
    )


_BOOKS = Table(
    "ingest_batches",
    """ingest_batch STRING NOT NULL, kind STRING NOT NULL, source STRING NOT NULL,
    file_size BIGINT NOT NULL, file_modified TIMESTAMP NOT NULL, records BIGINT NOT NULL,
    accepted BIGINT NOT NULL, rejected BIGINT NOT NULL, duplicates BIGINT NOT NULL,
    heartbeats BIGINT NOT NULL, ingested_at TIMESTAMP NOT NULL""",
    key=("ingest_batch", "source"),
    checks=(("balanced", "records = accepted + rejected + duplicates + heartbeats"),),
)
_HEARTBEATS = Table(
    "heartbeats",
    """producer_id STRING NOT NULL, sequence BIGINT NOT NULL, model_name STRING NOT NULL,
    model_version STRING NOT NULL, window_start TIMESTAMP NOT NULL, event_time TIMESTAMP NOT NULL,
    event_date DATE NOT NULL, logged BIGINT NOT NULL, written BIGINT NOT NULL, dropped BIGINT NOT NULL,
    invalid BIGINT NOT NULL, spilled BIGINT NOT NULL, host STRING,
    ingested_at TIMESTAMP NOT NULL, source STRING NOT NULL, ingest_batch STRING NOT NULL""",
    key=("event_date", "producer_id", "sequence", "model_name", "model_version"),
    subject="event_date",
    checks=(("event_date_is_the_utc_day", _DAY_OF_TIME),),
    append_only=True,
)
_EFFECTS = _result(
    "experiment_effects",
    ("experiment_id", "as_of", "treatment", "metric", "slice_key", "slice_value", "method"),
    f"""experiment_id STRING NOT NULL, treatment STRING NOT NULL, metric STRING NOT NULL, {_SLICE},
    method STRING NOT NULL, role STRING NOT NULL, direction STRING NOT NULL, control STRING NOT NULL,
    n_control BIGINT NOT NULL, n_treatment BIGINT NOT NULL,
    n_immature BIGINT NOT NULL, n_missing BIGINT NOT NULL,
    mean_control DOUBLE, mean_treatment DOUBLE, effect DOUBLE, std_error DOUBLE, df DOUBLE, statistic DOUBLE,
    pvalue DOUBLE, qvalue DOUBLE, n_family BIGINT NOT NULL, ci_low DOUBLE, ci_high DOUBLE,
    rel_effect DOUBLE, rel_ci_low DOUBLE, rel_ci_high DOUBLE, non_inferiority_pvalue DOUBLE,
    alpha DOUBLE NOT NULL, verdict STRING NOT NULL, reason STRING NOT NULL, decides BOOLEAN NOT NULL,
    mde DOUBLE, variance_reduction DOUBLE,
    against_rest DOUBLE, against_rest_pvalue DOUBLE, against_rest_qvalue DOUBLE,
    chance_to_beat DOUBLE, expected_loss DOUBLE, equivalence_pvalue DOUBLE""",
    "experiment_id",
)
_CHECKS = _result(
    "experiment_checks",
    ("experiment_id", "as_of", "treatment", "check", "metric", "slice_key", "slice_value", "method"),
    f"""experiment_id STRING NOT NULL, treatment STRING NOT NULL, `check` STRING NOT NULL, metric STRING NOT NULL,
    {_SLICE}, method STRING NOT NULL, n_units BIGINT NOT NULL, value DOUBLE, statistic DOUBLE, df DOUBLE,
    pvalue DOUBLE, qvalue DOUBLE, n_family BIGINT NOT NULL, threshold DOUBLE, verdict STRING NOT NULL,
    reason STRING NOT NULL, decides BOOLEAN NOT NULL""",
    "experiment_id",
)
_FAIRNESS = _result(
    "experiment_fairness",
    ("experiment_id", "as_of", "variant", "measure", "slice_key", "slice_value"),
    f"""experiment_id STRING NOT NULL, variant STRING NOT NULL, predictions STRING NOT NULL, measure STRING NOT NULL,
    {_SLICE}, n_units BIGINT NOT NULL, n_predictions BIGINT NOT NULL, value DOUBLE, std_error DOUBLE, df DOUBLE,
    ci_low DOUBLE, ci_high DOUBLE, difference DOUBLE, difference_ci_low DOUBLE, difference_ci_high DOUBLE,
    pvalue DOUBLE, qvalue DOUBLE, n_family BIGINT NOT NULL, threshold DOUBLE, verdict STRING NOT NULL,
    reason STRING NOT NULL""",
    "experiment_id",
)
_PLANS = _result(
    "experiment_plans",
    ("experiment_id", "as_of", "treatment", "metric", "slice_key", "slice_value", "method", "weeks"),
    f"""experiment_id STRING NOT NULL, treatment STRING NOT NULL, metric STRING NOT NULL, {_SLICE},
    method STRING NOT NULL, weeks BIGINT NOT NULL, role STRING NOT NULL, claim STRING NOT NULL,
    is_extrapolated BOOLEAN NOT NULL, n_control BIGINT NOT NULL, n_treatment BIGINT NOT NULL,
    n_units BIGINT NOT NULL, mean_control DOUBLE, std_error DOUBLE, half_width DOUBLE, mde DOUBLE, rel_mde DOUBLE,
    target DOUBLE, power DOUBLE, n_needed DOUBLE, variance_reduction DOUBLE, alpha DOUBLE NOT NULL,
    n_family BIGINT NOT NULL, leads BOOLEAN NOT NULL, decides BOOLEAN NOT NULL, verdict STRING NOT NULL,
    reason STRING NOT NULL""",
    "experiment_id",
)
_ERASURES = Table(
    "erasures",
    f"""erasure_id STRING NOT NULL, revision BIGINT NOT NULL, unit_hash STRING NOT NULL, state STRING NOT NULL,
    removed MAP<STRING, BIGINT> NOT NULL, versions_after MAP<STRING, BIGINT> NOT NULL,
    sources ARRAY<STRING> NOT NULL, experiments ARRAY<STRING> NOT NULL, {_RESULT}""",
    key=("erasure_id", "revision"),
    append_only=True,
)
_MAINTENANCE = _result(
    "maintenance",
    ("table", "as_of"),
    """table STRING NOT NULL, n_rows BIGINT NOT NULL, n_files BIGINT NOT NULL, n_small_files BIGINT NOT NULL,
    n_bytes BIGINT NOT NULL, n_compacted BIGINT NOT NULL, n_repeated_keys BIGINT, n_ids_on_several_dates BIGINT,
    verdict STRING NOT NULL, reason STRING NOT NULL""",
    "table",
)
_LAGS = "lag_p50 DOUBLE, lag_p95 DOUBLE, lag_max DOUBLE"
_LOG_HEALTH = _result(
    "log_health",
    ("model_name", "model_version", "day"),
    f"""{_MODEL}, day DATE NOT NULL, n_records BIGINT NOT NULL, n_requests BIGINT NOT NULL,
    n_production BIGINT NOT NULL, n_shadow BIGINT NOT NULL, n_errors BIGINT NOT NULL, n_rejected BIGINT NOT NULL,
    rejects MAP<STRING, BIGINT> NOT NULL, n_logged BIGINT NOT NULL, n_dropped BIGINT NOT NULL,
    n_invalid BIGINT NOT NULL, n_spilled BIGINT NOT NULL, n_producers BIGINT NOT NULL,
    schema_versions ARRAY<STRING> NOT NULL, feature_versions ARRAY<STRING> NOT NULL, {_LAGS},
    verdict STRING NOT NULL, reason STRING NOT NULL""",
    "day",
)
_OUTCOME_HEALTH = _result(
    "outcome_health",
    ("name", "day"),
    f"""name STRING NOT NULL, day DATE NOT NULL, n_outcomes BIGINT NOT NULL, n_corrected BIGINT NOT NULL,
    n_retracted BIGINT NOT NULL, n_by_request BIGINT NOT NULL, n_by_unit BIGINT NOT NULL,
    n_unmatched BIGINT NOT NULL, {_LAGS}""",
    "day",
)
_LATER = (
    Table(
        "drift_edges",
        f"""model_name STRING NOT NULL, basis_hash STRING NOT NULL, `column` STRING NOT NULL, kind STRING NOT NULL,
        edges_version STRING NOT NULL, {_WINDOW}, cells STRING NOT NULL, {_RESULT}""",
        ("model_name", "basis_hash", "kind", "column"),
        subject="model_name",
    ),
    Table(
        "drift_profile",
        f"""{_MODEL}, traffic STRING NOT NULL, arm STRING NOT NULL, {_WINDOW}, {_SLICE}, `column` STRING NOT NULL,
        edges_version STRING NOT NULL, survey_hash STRING NOT NULL, n_units BIGINT NOT NULL,
        counts ARRAY<ARRAY<BIGINT>> NOT NULL, units ARRAY<BIGINT> NOT NULL, location ARRAY<ARRAY<BIGINT>> NOT NULL,
        {_RESULT}""",
        (*_DRIFT_KEY, "edges_version", "survey_hash"),
        subject="model_name",
        keep="rebuild",
    ),
    _result(
        "drift_findings",
        ("monitor_id", "as_of", *_DRIFT_KEY, "reference", "family", "measure"),
        f"""monitor_id STRING NOT NULL, {_MODEL}, traffic STRING NOT NULL, arm STRING NOT NULL, {_WINDOW}, {_SLICE},
        `column` STRING NOT NULL, edges_version STRING NOT NULL, reference STRING NOT NULL,
        reference_start TIMESTAMP NOT NULL, reference_end TIMESTAMP NOT NULL, drift_type STRING NOT NULL,
        family STRING NOT NULL, measure STRING NOT NULL, unit STRING NOT NULL,
        n_reference BIGINT NOT NULL, n_current BIGINT NOT NULL, value DOUBLE, corrected DOUBLE, floor DOUBLE,
        std_error DOUBLE, statistic DOUBLE, df DOUBLE, design_effect DOUBLE, pvalue DOUBLE, qvalue DOUBLE,
        n_family BIGINT NOT NULL, threshold DOUBLE, detectable DOUBLE, verdict STRING NOT NULL,
        reason STRING NOT NULL, decides BOOLEAN NOT NULL, contributions ARRAY<DOUBLE> NOT NULL,
        js_distance DOUBLE, ks_statistic DOUBLE, ks_pvalue DOUBLE, wasserstein_distance DOUBLE,
        population_stability_index DOUBLE, chi_squared_statistic DOUBLE, chi_squared_pvalue DOUBLE,
        tv_distance DOUBLE, l_infinity_distance DOUBLE, psi_corrected BOOLEAN NOT NULL""",
        "model_name",
    ),
    _result(
        "performance",
        (
            "monitor_id",
            "as_of",
            "model_name",
            "model_version",
            "arm",
            "window_start",
            "window_end",
            "slice_key",
            "slice_value",
            "metric",
        ),
        f"""monitor_id STRING NOT NULL, {_MODEL}, arm STRING NOT NULL, {_WINDOW}, {_SLICE}, metric STRING NOT NULL,
        n_units BIGINT NOT NULL, n_predictions BIGINT NOT NULL, n_labelled BIGINT NOT NULL, value DOUBLE,
        std_error DOUBLE, ci_low DOUBLE, ci_high DOUBLE, reference DOUBLE, difference DOUBLE,
        difference_std_error DOUBLE, pvalue DOUBLE, qvalue DOUBLE, n_family BIGINT NOT NULL, threshold DOUBLE,
        mde DOUBLE, verdict STRING NOT NULL, reason STRING NOT NULL""",
        "model_name",
    ),
    _result(
        "replay_findings",
        ("replay_id", "kind", "measure", "role", "perturbation", "slice_key", "slice_value"),
        f"""replay_id STRING NOT NULL, kind STRING NOT NULL, plan STRING NOT NULL,
        champion STRING NOT NULL, candidate STRING NOT NULL, measure STRING NOT NULL, role STRING NOT NULL,
        perturbation STRING NOT NULL, {_SLICE}, n_rows BIGINT NOT NULL, n_units BIGINT NOT NULL,
        value DOUBLE, std_error DOUBLE, pvalue DOUBLE, qvalue DOUBLE, n_family BIGINT NOT NULL, threshold DOUBLE,
        verdict STRING, reason STRING NOT NULL, decides BOOLEAN NOT NULL""",
        "replay_id",
    ),
    _result(
        "replay_rows",
        ("replay_id", "event_date", "request_id", "item_id"),
        f"""replay_id STRING NOT NULL, plan STRING NOT NULL, part STRING NOT NULL,
        event_date DATE NOT NULL, request_id STRING NOT NULL, item_id STRING NOT NULL,
        logged DOUBLE, ulps BIGINT, {_scores("champion")}, {_scores("candidate")}""",
        "replay_id",
    ),
)
_MONITOR = "monitor_id STRING NOT NULL"
_JUDGED = "value DOUBLE, expected DOUBLE, low DOUBLE, high DOUBLE, score DOUBLE"
_MONITORING = (
    _result(
        "monitor_series",
        ("monitor_id", "model_name", "model_version", "arm", "metric", "slice_key", "slice_value", "bucket_start"),
        f"""{_MONITOR}, {_MODEL}, arm STRING NOT NULL, metric STRING NOT NULL, {_SLICE},
        bucket_start TIMESTAMP NOT NULL, n_requests BIGINT NOT NULL, value DOUBLE, std_error DOUBLE""",
        "monitor_id",
    ),
    _result(
        "monitor_findings",
        (
            "monitor_id",
            "model_name",
            "model_version",
            "arm",
            "metric",
            "slice_key",
            "slice_value",
            "detector",
            "bucket_start",
        ),
        f"""{_MONITOR}, {_MODEL}, arm STRING NOT NULL, metric STRING NOT NULL, {_SLICE}, detector STRING NOT NULL,
        bucket_start TIMESTAMP NOT NULL, judged_at TIMESTAMP NOT NULL, severity STRING NOT NULL,
        n_requests BIGINT NOT NULL, {_JUDGED}, pvalue DOUBLE, threshold DOUBLE, excess DOUBLE, noise DOUBLE,
        blamed_version STRING NOT NULL, reason STRING NOT NULL""",
        "monitor_id",
    ),
    _result(
        "incidents",
        ("monitor_id", "incident_id", "revision"),
        f"""{_MONITOR}, incident_id STRING NOT NULL, revision BIGINT NOT NULL, {_MODEL},
        blamed_version STRING NOT NULL, arm STRING NOT NULL, metric STRING NOT NULL, {_SLICE},
        detector STRING NOT NULL, state STRING NOT NULL, severity STRING NOT NULL, opened_at TIMESTAMP NOT NULL,
        seen_until TIMESTAMP NOT NULL, recovered_at TIMESTAMP, changed_at TIMESTAMP NOT NULL,
        n_buckets BIGINT NOT NULL, n_findings BIGINT NOT NULL, {_JUDGED}, contributors STRING NOT NULL,
        notify BOOLEAN NOT NULL, reason STRING NOT NULL""",
        "monitor_id",
    ),
    _result(
        "decisions",
        ("monitor_id", "decision_id", "revision"),
        f"""{_MONITOR}, decision_id STRING NOT NULL, revision BIGINT NOT NULL, incident_id STRING, {_MODEL},
        rollback_rule STRING NOT NULL, action STRING NOT NULL, alias STRING NOT NULL, from_version STRING,
        to_version STRING, state STRING NOT NULL, dry_run BOOLEAN NOT NULL, decided_at TIMESTAMP NOT NULL,
        reason STRING NOT NULL""",
        "monitor_id",
    ),
    _result(
        "notifications",
        ("monitor_id", "notice_id", "revision"),
        f"""{_MONITOR}, notice_id STRING NOT NULL, revision BIGINT NOT NULL, target STRING NOT NULL,
        model_name STRING NOT NULL, state STRING NOT NULL, attempts BIGINT NOT NULL, payload STRING NOT NULL,
        queued_at TIMESTAMP NOT NULL, changed_at TIMESTAMP NOT NULL, next_attempt_at TIMESTAMP NOT NULL,
        reason STRING NOT NULL""",
        "monitor_id",
    ),
)
_FIXED = (
    Table("inference_log_rejects", _REJECT, ("ingest_batch", "source", "position")),
    Table(
        "outcomes",
        _OUTCOME,
        ("event_date", "outcome_id", "revision"),
        subject="event_date",
        checks=(
            ("event_date_is_the_utc_day", _DAY_OF_TIME),
            ("keyed", "request_id IS NOT NULL OR unit_id IS NOT NULL"),
        ),
        append_only=True,
        order=("request_id", "outcome_id"),
    ),
    Table("outcomes_rejects", _REJECT, ("ingest_batch", "source", "position")),
    _BOOKS,
    _HEARTBEATS,
    Table(
        "exposures",
        f"""{_UNIT},
        first_exposure TIMESTAMP NOT NULL, request_id STRING NOT NULL, item_id STRING NOT NULL,
        {_MODEL}, variant STRING NOT NULL, bucket_id STRING, slice_values MAP<STRING, STRING> NOT NULL,
        days ARRAY<STRUCT<day: DATE, variant: STRING, model_version: STRING, triggered: BOOLEAN,
        slice_values: MAP<STRING, STRING>>> NOT NULL""",
        ("experiment_id", "unit_kind", "unit_id"),
        subject="experiment_id",
        keep="rebuild",
        order=("unit_id",),
    ),
    _EFFECTS,
    _CHECKS,
    _FAIRNESS,
    _PLANS,
    _LOG_HEALTH,
    _OUTCOME_HEALTH,
    _ERASURES,
    _MAINTENANCE,
    *_LATER,
    *_MONITORING,
)


def tables_of(contract: Contract, metric_columns: MetricColumns) -> dict[str, Table]:
    """All tables of a log by name. Features and metric columns give four of them their last columns."""
    typed = ", ".join(f"{quoted(name)}: {_SQL_TYPES[kind]}" for name, kind in contract.feature_types().items())
    features = f"features STRUCT<{typed}>"
    sets = (_training_sets(features), _replay_sets(features))
    tables = (_inference_log(contract, features), _unit_days(metric_columns), *sets, *_FIXED)
    return {table.name: table for table in tables}


def _inference_log(contract: Contract, features: str) -> Table:
    scored = "prediction_score IS NOT NULL"
    if contract.prediction == "action":
        scored += " OR action IS NOT NULL"
    return Table(
        "inference_log",
        # Features come last: Delta keeps statistics of the first 32 leaf columns.
        f"{_RECORD}, {features}",
        ("event_date", "request_id", "model_name", "model_version", "traffic", "item_id"),
        subject="event_date",
        checks=(
            ("event_date_is_the_utc_day", _DAY_OF_TIME),
            ("score", f"CASE WHEN status = 'error' THEN prediction_score IS NULL ELSE {scored} END"),
            ("traffic", "traffic IN ('production', 'shadow')"),
            ("status", "status IN ('ok', 'error')"),
        ),
        append_only=True,
        order=("request_id", "unit_id"),
    )


def _unit_days(metric_columns: MetricColumns) -> Table:
    sums = (f"{quoted(name)} DOUBLE" for name in metric_columns.names())
    histograms = (f"{quoted(name)} MAP<INT, BIGINT>" for name in metric_columns.histograms)
    counts = "day DATE NOT NULL, " + ", ".join(f"{name} BIGINT NOT NULL" for name in BUILT_IN_COLUMNS)
    return Table(
        "unit_days",
        ", ".join((_UNIT, counts, *sums, *histograms)),
        ("experiment_id", "unit_kind", "unit_id", "day"),
        subject="experiment_id",
        keep="rebuild",
        order=("day",),
    )


def _training_sets(features: str) -> Table:
    return Table(
        "training_sets",
        f"""training_set_id STRING NOT NULL, event_date DATE NOT NULL, request_id STRING NOT NULL, {_MODEL},
        item_id STRING NOT NULL, event_time TIMESTAMP NOT NULL, unit_id STRING, feature_version STRING NOT NULL,
        prediction_score DOUBLE, action STRING, propensity DOUBLE, label DOUBLE NOT NULL,
        n_outcomes BIGINT NOT NULL, fold STRING, {_RESULT}, {features}""",
        ("training_set_id", "event_date", "request_id", "model_name", "model_version", "item_id"),
        subject="training_set_id",
    )


def _replay_sets(features: str) -> Table:
    return Table(
        "replay_sets",
        f"""replay_id STRING NOT NULL, event_date DATE NOT NULL, request_id STRING NOT NULL, item_id STRING NOT NULL,
        {_MODEL}, event_time TIMESTAMP NOT NULL, unit_id STRING, feature_version STRING NOT NULL,
        prediction_score DOUBLE, action STRING, propensity DOUBLE, latency_ms DOUBLE, label DOUBLE,
        stratum STRING NOT NULL, weight DOUBLE NOT NULL, {_RESULT}, {features}""",
        ("replay_id", "event_date", "request_id", "item_id"),
        subject="replay_id",
    )


def quoted(name: str) -> str:
    """An identifier for SQL text."""
    return "`" + name.replace("`", "``") + "`"


def literal(value: str) -> str:
    """A string literal for SQL text."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
