"""Reads one wire record by its contract: a typed row, or a rejection that says why.

The same rules serve the producer and ingest; nothing here needs Spark. A row is a dict of the table's columns
with Python values: event_time in microseconds since the epoch, event_date in days since the epoch.
"""

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import date, timedelta
from typing import NamedTuple

from mltrust.coercion import (
    COERCE,
    EPOCH,
    RecordError,
    shown,
    to_double,
    to_long,
    to_string,
    to_timestamp,
    wrong_type,
)
from mltrust.contract import (
    EXPERIMENT_FIELDS,
    STATUS,
    TRAFFIC,
    Contract,
    Feature,
    Reason,
    SchemaVersion,
)

Row = dict[str, object]
_MICROS_A_DAY = 86_400_000_000
TOO_DEEP = "nested too deeply to be read"


class Rejected(NamedTuple):
    """A record that the contract refuses, with what could be read of it."""

    reason_code: Reason
    reason: str
    model_name: str | None = None
    model_version: str | None = None
    experiments: tuple[dict[str, str | None], ...] = ()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def parse(raw: bytes) -> dict[str, object]:
    """The JSON object in `raw`; RecordError (unparsable) for anything else, and for a key given twice."""
    try:
        record = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_not_json)
        # A lone surrogate is legal in JSON text and in no UTF-8 file; it must not reach a table.
        if b"\\u" in raw:
            json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(Reason.UNPARSABLE, f"no UTF-8 text: {error.reason} at byte {error.start}") from None
    except UnicodeEncodeError:
        raise RecordError(Reason.UNPARSABLE, "a \\u escape is half of a surrogate pair") from None
    except (ValueError, RecursionError) as error:
        raise RecordError(Reason.UNPARSABLE, f"no JSON: {error}") from None
    if not isinstance(record, dict):
        raise RecordError(Reason.UNPARSABLE, f"expected a JSON object, given {shown(record)}")
    return record


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


def _not_json(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON number")


def canonical(row: Row) -> str:
    """Canonical JSON of an accepted row: keys sorted, nulls left out, typed values, times in ISO 8601 UTC."""
    told = row | {
        "event_time": (EPOCH + timedelta(microseconds=_int(row["event_time"]))).isoformat(timespec="microseconds"),
        "event_date": (date(1970, 1, 1) + timedelta(days=_int(row["event_date"]))).isoformat(),
    }
    return json.dumps(_without_nulls(told), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value


def content_hash(row: Row) -> str:
    """SHA-256 (hex) of the canonical JSON of an accepted row, by which sameness is decided."""
    return hashlib.sha256(canonical(row).encode("utf-8")).hexdigest()


def raw_text(raw: bytes) -> tuple[str, str]:
    """(text, encoding) to keep a rejected record by: itself where it is text, else base64."""
    try:
        return raw.decode("utf-8"), "text"
    except UnicodeDecodeError:
        return base64.b64encode(raw).decode("ascii"), "base64"


class _Fields:
    """The wire fields of one record; what nobody asked for is `extra`."""

    def __init__(self, record: dict[str, object]) -> None:
        self.left = dict(record)

    def take(self, name: str) -> object:
        outer, _, inner = name.partition(".")
        if not inner:
            return self.left.pop(outer, None)
        nested = self.left.get(outer)
        if not isinstance(nested, dict) or inner not in nested:
            return None
        self.left[outer] = {key: value for key, value in nested.items() if key != inner}
        return nested[inner]

    def take_object(self, name: str) -> dict[str, object]:
        value = self.left.pop(name, None)
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        raise wrong_type(name, value, "an object")

    def keep(self, name: str, value: object) -> None:
        """Puts back what was inside `name` and is unknown."""
        if value:
            self.left[name] = value

    def extra(self) -> str | None:
        """JSON of the fields that nobody took, without nulls, None where there are none."""
        left = _without_nulls(self.left)
        if not left:
            return None
        try:
            return json.dumps(left, sort_keys=True, ensure_ascii=False, allow_nan=False)
        except ValueError:  # 1e999 is read as infinity, which JSON cannot say
            raise wrong_type("an unknown field", self.left, "finite numbers") from None


def _required(name: str, value: object) -> str:
    if value is None or value == "":
        raise RecordError(Reason.MISSING_FIELD, f"{name} is missing")
    return to_string(name, value)


def _optional(name: str, value: object) -> str | None:
    return None if value is None else to_string(name, value)


def _one_of(name: str, value: object, admitted: tuple[str, ...]) -> str:
    text = _required(name, value)
    if text not in admitted:
        raise RecordError(Reason.OUTSIDE_DOMAIN, f"{name} is {shown(text)}, expected one of {', '.join(admitted)}")
    return text


def _number(name: str, value: object, holds: Callable[[float], bool], expected: str) -> float | None:
    if value is None:
        return None
    number = to_double(name, value)
    if not holds(number):
        raise RecordError(Reason.OUTSIDE_DOMAIN, f"{name} is {shown(value)}, expected {expected}")
    return number


def read_line(raw: bytes, read: Callable[[dict[str, object]], Row | Rejected]) -> Row | Rejected:
    """What `read` says of the object in a line of JSON; a refusal where there is none, or one too deep to be read."""
    try:
        return read(parse(raw))
    except RecordError as error:
        return Rejected(error.code, str(error))
    except RecursionError:
        return Rejected(Reason.UNPARSABLE, TOO_DEEP)


class RecordReader:
    """Reads the records of one log. Stateless after construction, picklable."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._feature_types = contract.feature_types()

    def read(self, raw: bytes) -> Row | Rejected:
        """The row of an accepted record with its content_hash, else why it is refused."""
        return read_line(raw, self.read_object)

    def read_object(self, record: dict[str, object]) -> Row | Rejected:
        """As `read`, of a record that is an object already."""
        row = self.typed(record)
        if not isinstance(row, Rejected):
            row["content_hash"] = content_hash(row)
        return row

    def typed(self, record: dict[str, object]) -> Row | Rejected:
        """As `read_object` without the hash: what a producer checks."""
        try:
            version, layout = self._version(record)
            return self._row(version, layout, _Fields(record))
        except RecordError as error:
            return Rejected(error.code, str(error), *self._glimpse(record))
        except RecursionError:
            return Rejected(Reason.UNPARSABLE, TOO_DEEP)

    def _version(self, record: dict[str, object]) -> tuple[str, SchemaVersion]:
        for version, layout in self._contract.versions.items():
            if _Fields(record).take(layout.wire_name("schema_version")) == version:
                return version, layout
        names = sorted({layout.wire_name("schema_version") for layout in self._contract.versions.values()})
        given = next((record[name] for name in names if name in record), None)
        raise RecordError(
            Reason.UNKNOWN_SCHEMA_VERSION,
            f"{' or '.join(names)} is {shown(given)}, expected one of {', '.join(self._contract.versions)}",
        )

    def _glimpse(self, record: dict[str, object]) -> tuple[str | None, str | None, tuple[dict[str, str | None], ...]]:
        """model_name, model_version and experiments, as far as any known layout finds them."""
        try:
            layout = self._version(record)[1]
        except RecordError:
            layout = SchemaVersion()
        fields = _Fields(record | layout.constants)
        listed = fields.take("experiments")
        elements = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        if not elements:
            flat = {name: fields.take(layout.wire_name(f"experiments.{name}")) for name in EXPERIMENT_FIELDS}
            elements = [flat] if any(_text(value) for value in flat.values()) else []
        experiments = tuple({name: _text(each.get(name)) for name in EXPERIMENT_FIELDS} for each in elements)
        model_name, model_version = (
            _text(fields.take(layout.wire_name(name))) for name in ("model_name", "model_version")
        )
        return model_name, model_version, experiments

    def _row(self, version: str, layout: SchemaVersion, fields: _Fields) -> Row:
        def take(column: str) -> object:
            constant = layout.constants.get(column)
            return fields.take(layout.wire_name(column)) if constant is None else constant

        take("schema_version")
        experiments = self._experiments(layout, fields)
        event_time = take("event_time")
        if event_time is None:
            raise RecordError(Reason.MISSING_FIELD, f"{layout.wire_name('event_time')} is missing")
        micros = to_timestamp(layout.wire_name("event_time"), event_time)
        feature_version = _required(layout.wire_name("feature_version"), take("feature_version"))
        infra = fields.take_object(layout.wire_name("infra"))
        score = take("prediction_score")
        row: Row = {
            "schema_version": version,
            "request_id": _required(layout.wire_name("request_id"), take("request_id")),
            "item_id": _optional("item_id", take("item_id")) or "",
            "unit_id": _optional("unit_id", take("unit_id")) or None,
            "event_time": micros,
            "event_date": micros // _MICROS_A_DAY,
            "model_name": _required(layout.wire_name("model_name"), take("model_name")),
            "model_version": _required(layout.wire_name("model_version"), take("model_version")),
            "feature_version": feature_version,
            "experiments": experiments,
            "traffic": _one_of("traffic", take("traffic"), TRAFFIC),
            "status": _one_of("status", take("status"), STATUS),
            "error_type": _optional("error_type", take("error_type")),
            "prediction_score": None if score is None else to_double("prediction_score", score),
            "action": _optional("action", take("action")),
            "propensity": _number("propensity", take("propensity"), lambda p: 0 < p <= 1, "(0, 1]"),
            "latency_ms": _number("latency_ms", take("latency_ms"), lambda ms: ms >= 0, "0 or more"),
            "infra": {name: to_double(f"infra.{name}", value) for name, value in sorted(infra.items())} or None,
            "features": self._features(feature_version, layout, fields),
        }
        row["extra"] = fields.extra()
        self._check_prediction(row)
        return row

    def _check_prediction(self, row: Row) -> None:
        score, action, failed = row["prediction_score"], row["action"], row["status"] == "error"
        if failed and score is not None:
            raise RecordError(Reason.INCONSISTENT, "prediction_score is given although status is error")
        if failed or score is not None:
            return
        if self._contract.prediction == "score":
            raise RecordError(Reason.MISSING_FIELD, "prediction_score is missing and status is ok")
        if action is None:
            raise RecordError(Reason.MISSING_FIELD, "both action and prediction_score are missing and status is ok")

    def _features(self, version: str, layout: SchemaVersion, fields: _Fields) -> Row:
        declared = self._contract.features.get(version)
        if declared is None:
            raise RecordError(
                Reason.UNKNOWN_FEATURE_VERSION,
                f"feature_version is {shown(version)}, expected one of {', '.join(self._contract.features)}",
            )
        given = fields.take_object(layout.wire_name("features"))
        values: Row = dict.fromkeys(self._feature_types)
        for name, feature in declared.items():
            if given.get(name) is not None:
                values[name] = self._feature(name, feature, given[name])
        unknown = given.keys() - declared.keys()
        fields.keep("features", {name: given[name] for name in unknown if given[name] is not None})
        return values

    def _feature(self, name: str, feature: Feature, given: object) -> object:
        value = COERCE[feature.type](f"features.{name}", given)
        assert isinstance(value, bool | int | float | str)
        if not feature.domain.holds(value):
            raise RecordError(Reason.OUTSIDE_DOMAIN, f"features.{name} is {shown(given)}, expected {feature.domain}")
        return value

    def _experiments(self, layout: SchemaVersion, fields: _Fields) -> list[Row]:
        wire = {name: layout.wire.get(f"experiments.{name}") for name in EXPERIMENT_FIELDS}
        if any(wire.values()):
            one = {name: fields.take(wired) for name, wired in wire.items() if wired}
            given: object = [one] if any(value is not None for value in one.values()) else []
        else:
            given = fields.take("experiments")
        if given is None:
            return []
        if not isinstance(given, list):
            raise wrong_type("experiments", given, "an array of objects")
        experiments: list[Row] = []
        unknown: list[Row] = []
        for element in given:
            if not isinstance(element, dict):
                raise wrong_type("experiments", element, "an array of objects")
            experiments.append(
                {
                    "experiment_id": _required("experiment_id", element.get("experiment_id")),
                    "bucket_id": _optional("bucket_id", element.get("bucket_id")),
                    "variant": _optional("variant", element.get("variant")),
                }
            )
            strange = element.keys() - set(EXPERIMENT_FIELDS)
            unknown.append({name: element[name] for name in strange if element[name] is not None})
        ids = [each["experiment_id"] for each in experiments]
        if len(set(ids)) < len(ids):
            raise RecordError(Reason.INCONSISTENT, "experiments names one experiment_id twice")
        fields.keep("experiments", unknown if any(unknown) else None)
        return experiments


class OutcomeReader:
    """Reads outcomes; their wire names are the columns of the table. Stateless, picklable."""

    def read(self, raw: bytes) -> Row | Rejected:
        """The row of an accepted outcome with its content_hash, else why it is refused."""
        return read_line(raw, self.read_object)

    def read_object(self, record: dict[str, object]) -> Row | Rejected:
        """As `read`, of an outcome that is an object already."""
        try:
            row = self._row(_Fields(record))
        except RecordError as error:
            return Rejected(error.code, str(error))
        except RecursionError:
            return Rejected(Reason.UNPARSABLE, TOO_DEEP)
        row["content_hash"] = content_hash(row)
        return row

    def _row(self, fields: _Fields) -> Row:
        event_time, value, revision = fields.take("event_time"), fields.take("value"), fields.take("revision")
        if event_time is None:
            raise RecordError(Reason.MISSING_FIELD, "event_time is missing")
        micros = to_timestamp("event_time", event_time)
        row: Row = {
            "outcome_id": _required("outcome_id", fields.take("outcome_id")),
            "revision": 0 if revision is None else to_long("revision", revision),
            "request_id": _optional("request_id", fields.take("request_id")) or None,
            "item_id": _optional("item_id", fields.take("item_id")),
            "unit_id": _optional("unit_id", fields.take("unit_id")) or None,
            "name": _required("name", fields.take("name")),
            "value": None if value is None else to_double("value", value),
            "event_time": micros,
            "event_date": micros // _MICROS_A_DAY,
        }
        row["extra"] = fields.extra()
        if row["request_id"] is None and row["unit_id"] is None:
            raise RecordError(Reason.MISSING_FIELD, "both request_id and unit_id are missing")
        if _int(row["revision"]) < 0:
            raise RecordError(Reason.OUTSIDE_DOMAIN, f"revision is {row['revision']}, expected 0 or more")
        return row


#: The one key of a wire line that is no record but what a producer says of itself.
HEARTBEAT = "heartbeat"
_COUNTS = ("logged", "written", "dropped", "invalid", "spilled")


class HeartbeatReader:
    """Reads heartbeats, `{"heartbeat": {...}}`: what a producer counted of one model since its last heartbeat."""

    def read_object(self, record: dict[str, object]) -> Row | Rejected:
        """The row of a heartbeat, else why it is refused."""
        given = record[HEARTBEAT]
        try:
            if not isinstance(given, dict):
                raise wrong_type(HEARTBEAT, given, "an object")
            return self._row(given)
        except RecordError as error:
            return Rejected(error.code, str(error))

    def _row(self, given: dict[str, object]) -> Row:
        micros = to_timestamp("heartbeat.event_time", given.get("event_time"))
        counts = {name: to_long(f"heartbeat.{name}", given.get(name)) for name in ("sequence", *_COUNTS)}
        for name, count in counts.items():
            if count < 0:
                raise RecordError(Reason.OUTSIDE_DOMAIN, f"heartbeat.{name} is {count}, expected 0 or more")
        return {
            "producer_id": _required("heartbeat.producer_id", given.get("producer_id")),
            "model_name": _required("heartbeat.model_name", given.get("model_name")),
            "model_version": _required("heartbeat.model_version", given.get("model_version")),
            "window_start": to_timestamp("heartbeat.window_start", given.get("window_start")),
            "event_time": micros,
            "event_date": micros // _MICROS_A_DAY,
            **counts,
            "host": _optional("heartbeat.host", given.get("host")),
        }
