"""What an environment sets: conf/base.yaml, overridden by conf/env/<env>.yaml."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from mltrust.bounds import one_or_more


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where MLflow keeps runs; `uri` None leaves it to MLFLOW_TRACKING_URI or the platform."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    uri: str | None = None
    artifacts: str | None = None
    experiment: str = "mltrust"


@dataclass(frozen=True, slots=True)
class Kafka:
    """Topics from which ingest takes too: a message is what a line of a landing file is.

    `options` are those of Spark's Kafka source, `kafka.` before those of the consumer. `${NAME}` in them is taken
    from the environment, so that no secret is in the conf.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    servers: str
    topics: dict[Literal["records", "outcomes"], str]
    max_messages_per_batch: int = 100_000
    options: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.servers or not self.topics or not all(self.topics.values()):
            raise ValueError("servers and topics: expected host:port, and a topic of records, of outcomes or of both")
        if len(set(self.topics.values())) < len(self.topics):
            raise ValueError(
                f"topics: {self.topics['records']!r} is given twice, expected one of records, one of outcomes"
            )
        one_or_more(self, "max_messages_per_batch")
        if given := sorted({each.lower() for each in self.options} & _FIXED_OF_KAFKA):
            raise ValueError(f"options: {', '.join(given)} cannot be given: what is read, and once, rests on it")


_FIXED_OF_KAFKA = {
    *("subscribe", "assign", "subscribepattern", "kafka.bootstrap.servers", "maxoffsetspertrigger", "failondataloss"),
    "includeheaders",
}


@dataclass(frozen=True, slots=True)
class Ingest:
    """Limits of ingest: files in one batch, and the share of rejects above which the job ends with 4.

    Beside the landing folder it takes from `kafka` where that is given.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    max_files_per_batch: int = 1000
    max_reject_share: float = 0.05
    kafka: Kafka | None = None

    def __post_init__(self) -> None:
        one_or_more(self, "max_files_per_batch")
        if not 0 <= self.max_reject_share <= 1:
            raise ValueError(f"max_reject_share is {self.max_reject_share}, expected a share in [0, 1]")

    def topic(self, kind: Literal["records", "outcomes"]) -> str | None:
        """The topic of records or of outcomes, where there is one."""
        return None if self.kafka is None else self.kafka.topics.get(kind)


@dataclass(frozen=True, slots=True)
class Limits:
    """Finest cells reduced at once, and values kept per slice attribute (the rest is `(other)`)."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    max_cells: int = 20_000
    max_values: int = 50

    def __post_init__(self) -> None:
        one_or_more(self, "max_cells", "max_values")


@dataclass(frozen=True, slots=True)
class Retention:
    """Days that the tables of the audit trail and the rebuildable ones keep log and deleted files.

    Files of an erased unit are removed after `purge_hours`, when no reader or writer that began before needs them.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    audit_days: int = 400
    rebuild_days: int = 30
    purge_hours: int = 24

    def __post_init__(self) -> None:
        if min(self.audit_days, self.rebuild_days) < 1:
            raise ValueError("audit_days and rebuild_days: expected 1 or more")
        if self.purge_hours < 0:
            raise ValueError(f"purge_hours is {self.purge_hours}, expected 0 or more")


@dataclass(frozen=True, slots=True)
class Maintenance:
    """What maintain_lakehouse looks after: the last `days`, in which files below `small_file_mb` are compacted."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    days: int = 35
    small_file_mb: int = 64

    def __post_init__(self) -> None:
        one_or_more(self, "days", "small_file_mb")


@dataclass(frozen=True, slots=True)
class Health:
    """What report_log_health looks at: the last `days`, and for an outcome's request `match_days` before it.

    Above `max_drop_share`, the share of predictions that producers say they dropped, a day is a breach.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    days: int = 28
    match_days: int = 28
    max_drop_share: float = 0.01

    def __post_init__(self) -> None:
        one_or_more(self, "days")
        if self.match_days < 0:
            raise ValueError(f"match_days is {self.match_days}, expected 0 or more")
        if not 0 <= self.max_drop_share <= 1:
            raise ValueError(f"max_drop_share is {self.max_drop_share}, expected a share in [0, 1]")


@dataclass(frozen=True, slots=True)
class Settings:
    """What an environment sets: base.yaml, overridden by env/<env>.yaml.

    `root` is the lakehouse's folder or URI; relative ones are taken from the working folder. `catalog` names a
    `catalog.schema` that holds the tables instead; checkpoints and staging stay under `root`. `scrub_key` says where
    the key of pseudonyms is, never what it is: `env:<variable>` or `databricks:<scope>/<name>`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    root: str
    catalog: str | None = None
    landing: str | None = None
    tracking: Tracking = field(default_factory=Tracking)
    ingest: Ingest = field(default_factory=Ingest)
    limits: Limits = field(default_factory=Limits)
    retention: Retention = field(default_factory=Retention)
    maintenance: Maintenance = field(default_factory=Maintenance)
    health: Health = field(default_factory=Health)
    scrub_key: str = "env:MLTRUST_SCRUB_KEY"
    master: str | None = None
    spark: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.catalog is not None and self.catalog.count(".") != 1:
            raise ValueError(f"catalog is {self.catalog!r}, expected catalog.schema")

    def landing_folder(self, log: str, kind: Literal["records", "outcomes"]) -> str:
        """Where producers of `log` put their files: `<landing>/<log>/records` and `.../outcomes`."""
        return f"{self.landing or self.root + '/landing'}/{log}/{kind}"
