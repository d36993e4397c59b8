"""Queries that go on: what an operator reads of one that failed, and how they end."""

import logging
import os
import re
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import yaml

from mltrust import conf, landing, queries
from mltrust.conf import Conf
from mltrust.errors import ConfError, DataError
from mltrust.landing import Inlet
from mltrust.queries import Running, Work
from mltrust.spark import kafka
from mltrust.spark.mistakes import FOLDER, TOPIC, Mistakes, operators_mistake
from tests.unit.conftest import SHIPPED

FAILED = "[STREAM_FAILED] Query [id = c6699fef, runId = 753c6d79] terminated with exception: {} SQLSTATE: XXKST\n{}"
PLAN = (
    "=== Streaming Query ===\nIdentifier: [id = c6699fef]\n+- ~StreamingDataSourceV2ScanRelation[value#47] KafkaTable"
)


class QueryError(Exception):
    """As PySpark gives it: the message of the outermost exception, and a stack trace that names the causes."""

    def __init__(self, message: str, *causes: str) -> None:
        super().__init__(FAILED.format(message, PLAN))
        self._stackTrace = "\n".join([f"org.Failed: {message}", *(f"Caused by: {each}" for each in causes)])


def said(error: Exception, signs: Mistakes = TOPIC) -> str | None:
    found = operators_mistake(error, "kafka:t", signs, "/lake/log/_checkpoints/t")
    return None if found is None else str(found)


TWICE = "Cannot start query with name t as a query with that name is already active in this SparkSession"
REDONE = 'invoke "IterableOps.map(scala.Function1)" because the return value of "scala.Option.get()" is null'
_NO_HOST = "org.apache.kafka.common.config.ConfigException: No resolvable bootstrap urls given in bootstrap.servers"
_NO_ANSWER = "org.apache.kafka.common.errors.TimeoutException: Timed out waiting for a node assignment"
_NO_RIGHT = "org.apache.kafka.common.errors.TopicAuthorizationException: Not authorized to access topics: [t]"
_NO_USER = "org.apache.kafka.common.errors.SaslAuthenticationException: Authentication failed: Invalid username"
_NO_CERTIFICATE = "org.apache.kafka.common.errors.SslAuthenticationException: SSL handshake failed"
_LOST = (
    "[FOREACH_BATCH_USER_FUNCTION_ERROR] An error occurred: Traceback (most recent call last):\n"
    "py4j.protocol.Py4JJavaError: An error occurred while calling o98.count.\n"
    ": org.apache.spark.sql.kafka010.KafkaIllegalStateException: Some data may have been lost because they are not "
    "available in Kafka any more;\nReason: Could not read records in offset [3, 6) for topic partition t-0\n"
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            QueryError("Failed to create new KafkaAdminClient", _NO_HOST),
            "servers and options: No resolvable bootstrap urls",
        ),
        (
            QueryError("Failed to construct kafka consumer", _NO_HOST),
            "servers and options: No resolvable bootstrap urls",
        ),
        (QueryError(_NO_ANSWER, _NO_ANSWER), "the brokers do not answer"),
        (
            QueryError("Not authorized to access topics: [t]", _NO_RIGHT),
            "user read the topic: Not authorized to access",
        ),
        (
            QueryError(_NO_USER, _NO_USER),
            "the brokers refuse the credentials, .*: Authentication failed: Invalid username",
        ),
        (QueryError("SSL handshake failed", _NO_CERTIFICATE), "the certificate: SSL handshake failed"),
        (
            QueryError(_LOST),
            "gone from the topic; to go on .* delete /lake/log/_checkpoints/t: what is in",
        ),
        (
            QueryError('Expected e.g. {"topicA":{"0":23}}, got foo'),
            "an option is refused: Expected e.g. .*, got foo$",
        ),
        (
            ValueError("\nKafka option 'auto.offset.reset' is not supported.\nInstead"),
            "auto.offset.reset' is not sup",
        ),
        (
            ValueError(
                "Cannot start query with name t as a query with that name is already active in this SparkSession"
            ),
            "another ingest of the same topic",
        ),
        (QueryError("Some partitions were lost during running query with Trigger.AvailableNow."), "run it again"),
    ],
)
def test_what_an_operator_can_mend_about_a_topic_is_said(error: Exception, expected: str) -> None:
    (line,) = (said(error) or "").splitlines()
    assert line.startswith("kafka:t: ")
    assert re.search(expected, line), line


def test_a_fault_elsewhere_is_not_taken_for_that_of_a_topic_or_folder() -> None:
    slow = QueryError("java.net.SocketTimeoutException: Read timed out")
    assert said(slow, TOPIC) is None
    assert said(QueryError(_NO_ANSWER), FOLDER) is None
    assert said(QueryError("[PATH_NOT_FOUND] file:/lake/part-0.parquet"), TOPIC) is None
    assert said(QueryError("Futures timed out after [120 seconds]"), TOPIC) is None


def test_a_landing_file_that_is_gone_is_named() -> None:
    found = said(QueryError("[FAILED_READ_FILE.FILE_NOT_EXIST] file:/landing/{a}.jsonl, it is possible"), FOLDER)
    assert found == "kafka:t: a landing file of an unfinished batch is gone; put it back (file:/landing/{a}.jsonl)"


def test_a_folder_that_another_query_takes_from_is_named() -> None:
    assert said(ValueError(TWICE), FOLDER) == "kafka:t: another ingest of the same landing folder is running"


def test_an_error_of_ours_is_kept_and_another_is_explained_once_it_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*_: object) -> None:
        raise ConfError("max_cells is 3")

    ours = Work(fails)
    with pytest.raises(ConfError):
        ours(None, 0)
    assert str(ours.explained(QueryError("ConfError"))) == "max_cells is 3"
    theirs = Work(lambda *_: None, partial(operators_mistake, where="kafka:t", signs=TOPIC, checkpoint="c"))
    caplog.set_level(logging.WARNING, "mltrust")
    with pytest.raises(DataError, match="^kafka:t: the brokers do not answer"), theirs.explaining():
        raise QueryError(_NO_ANSWER)
    assert "Timed out waiting for a node assignment" in caplog.text
    assert "Streaming Query" not in caplog.text
    unknown = QueryError("a fault of ours")
    assert theirs.explained(unknown) is unknown


until_stopped = partial(queries.until_stopped, look_seconds=0.02)


class Query:
    """A query whose batch takes so many seconds."""

    name = "ingest inference_log from kafka:t"

    def __init__(self, seconds: float, error: Exception | None = None, behind: Sequence[str | None] = ()) -> None:
        self._until, self._error, self._behind = time.monotonic() + seconds, error, list(behind)
        self.stopped_at: list[float] = []

    @property
    def isActive(self) -> bool:  # noqa: N802 - Spark's name
        return not self.stopped_at and self._error is None

    @property
    def status(self) -> dict[str, bool]:
        return {"isTriggerActive": time.monotonic() < self._until}

    @property
    def lastProgress(self) -> dict[str, list[dict[str, dict[str, str]]]] | None:  # noqa: N802 - Spark's name
        """How far it is behind, each of `behind` once; then the process is told to stop."""
        if not self._behind:
            os.kill(os.getpid(), signal.SIGTERM)
            return None
        n = self._behind.pop(0)
        return {"sources": [{"metrics": {} if n is None else {"maxOffsetsBehindLatest": n}}]}

    def awaitTermination(self) -> None:  # noqa: N802 - Spark's name
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        self.stopped_at.append(time.monotonic())


class Ending(Query):
    """A query that ends by itself after its batch, or by an error of how it is asked."""

    def __init__(self, seconds: float, error: Exception | None = None, asked: BaseException | None = None) -> None:
        super().__init__(seconds, error)
        self._asked = asked

    @property
    def isActive(self) -> bool:  # noqa: N802 - Spark's name
        if self._asked is not None:
            raise self._asked
        return super().isActive and self.status["isTriggerActive"]


def test_queries_end_between_two_batches_and_at_a_deadline_that_is_one_for_all() -> None:
    began, running = time.monotonic(), [Query(60), Query(60), Query(0.2), Query(0)]
    queries.end(running, patience=0.5)
    took = [[round(at - began, 1) for at in query.stopped_at] for query in running]
    assert [len(each) for each in took] == [1, 1, 1, 1]
    assert time.monotonic() - began < 5
    assert took[3][0] < took[2][0] < took[0][0] == took[1][0]


def test_a_query_that_fails_ends_the_others_and_the_process() -> None:
    healthy, failed = Query(0), Query(0, QueryError("Failed to create new KafkaAdminClient", _NO_HOST))
    work = Work(lambda *_: None, partial(operators_mistake, where="kafka:t", signs=TOPIC, checkpoint="c"))
    with pytest.raises(DataError, match="^kafka:t: no Kafka client can be made of the servers and options: No resol"):
        until_stopped([Running(healthy, work), Running(failed, work)])
    assert len(healthy.stopped_at) == 1


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """What starts the query of the one inlet that there is, a topic."""
    inlet, writer = Inlet("inference_log", "kafka:t", "c", kafka.batch_of, kafka.parse, TOPIC), mock.Mock()
    arrivals = mock.Mock()
    for step in ("foreachBatch", "queryName", "option", "trigger"):
        getattr(arrivals.writeStream, step).return_value = writer
        getattr(writer, step).return_value = writer
    monkeypatch.setattr(landing, "inlets", lambda *_: [(inlet, arrivals)])
    monkeypatch.setattr(landing.logs, "made", lambda *_: None)
    return writer


def shipped() -> Conf:
    return conf.load(SHIPPED / "contracts/recommendations.yaml", "local")


def test_a_query_that_cannot_start_is_explained_and_ends_those_that_have(writer: mock.Mock) -> None:
    healthy, refused = Query(0), QueryError("Failed to create new KafkaAdminClient", _NO_HOST)
    writer.start.side_effect = [healthy, refused]
    with pytest.raises(DataError, match="^kafka:t: no Kafka client can be made"):
        queries.until_stopped(landing.starting(mock.Mock(), shipped(), 1))
    assert len(healthy.stopped_at) == 1


def test_what_is_there_is_taken_by_a_second_start_behind_a_batch_that_an_earlier_run_began(writer: mock.Mock) -> None:
    writer.start.side_effect = [Query(0, QueryError(REDONE)), Ending(0.2)]
    assert landing.ingest_table(mock.Mock(), shipped(), "inference_log")
    assert writer.start.call_count == 2
    writer.start.side_effect = [Query(0, QueryError(REDONE)), Query(0, QueryError(REDONE))]
    with pytest.raises(QueryError):
        landing.ingest_table(mock.Mock(), shipped(), "inference_log")


def test_a_second_start_that_fails_is_explained_too(writer: mock.Mock) -> None:
    writer.start.side_effect = [Query(0, QueryError(REDONE)), QueryError(_NO_ANSWER)]
    with pytest.raises(DataError, match="^kafka:t: the brokers do not answer"):
        landing.ingest_table(mock.Mock(), shipped(), "inference_log")


@pytest.mark.parametrize("asked", [KeyboardInterrupt(), RuntimeError("reentrant call inside BufferedReader")])
def test_a_query_that_is_waited_for_no_more_is_ended(asked: BaseException) -> None:
    query = Ending(60, asked=asked)
    with pytest.raises(type(asked)):
        queries.until_ended(Running(query, Work(lambda *_: None)))
    assert len(query.stopped_at) == 1


def test_a_secret_that_is_unset_is_named_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    given = {"servers": "b:9092", "topics": {"records": "t"}, "options": {"kafka.sasl.jaas.config": "${UNSET}"}}
    (folder / "env/local.yaml").write_text(yaml.safe_dump({"root": "x", "ingest": {"kafka": given}}))
    monkeypatch.setattr(landing.logs, "is_there", lambda *_: False)
    with pytest.raises(ConfError, match=r"^kafka: kafka.sasl.jaas.config needs UNSET in the environment$"):
        landing.inlets(mock.Mock(), conf.load(folder / "contracts/recommendations.yaml", "local"), "inference_log")


def test_a_query_of_a_topic_is_started_again_behind_a_batch_that_an_earlier_run_began() -> None:
    first, second = Query(0, QueryError(REDONE)), Query(0, behind=["0"])
    until_stopped([Running(first, Work(lambda *_: None), again=lambda: second)])
    assert len(second.stopped_at) == 1
    with pytest.raises(QueryError):
        until_stopped([Running(first, Work(lambda *_: None), again=lambda: Query(0, QueryError(REDONE)))])


def test_how_far_a_topic_is_behind_is_said_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mltrust")
    until_stopped([Running(Query(0, behind=[None, "12000", "12000", "0"]), Work(lambda *_: None))])
    assert [line.partition(": ")[2] for line in caplog.messages] == [
        "12,000 messages behind in the partition with most",
        "0 messages behind in the partition with most",
    ]


def test_told_to_stop_again_the_process_ends_at_once() -> None:
    class Stuck(Query):
        @property
        def status(self) -> dict[str, bool]:
            signal.raise_signal(signal.SIGINT)
            return {"isTriggerActive": True}

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            until_stopped([Running(Stuck(60), Work(lambda *_: None))])
    finally:
        signal.signal(signal.SIGINT, before)


def test_progress_is_that_of_a_topic_of_the_same_brokers_however_they_are_listed() -> None:
    assert kafka.place("b:9092, A:9092", "t") == kafka.place("a:9092,b:9092", "t")
    assert len({kafka.place(*each) for each in (("a:1", "t"), ("a:2", "t"), ("a:1", "u"), ("a:1,b:1", "t"))}) == 4
