"""What an operator can mend about a query that failed, told from the text of its error."""

import re
from collections.abc import Mapping

from mltrust.errors import DataError

#: Words by a sign in the text, the first one that is found; `{file}`, `{checkpoint}` and `{why}` are put in.
Mistakes = Mapping[str, str]

_SAME_NAME = "is already active in this SparkSession"
ANY: Mistakes = {_SAME_NAME: "is running already"}

_GONE = "a landing file of an unfinished batch is gone; put it back{file}"
_TWO_OF_FOLDER = "another ingest of the same landing folder is running"
FOLDER: Mistakes = {
    "PATH_NOT_FOUND": _GONE,
    "FILE_NOT_EXIST": _GONE,
    "FileNotFoundException": _GONE,
    "ConcurrentModificationException": _TWO_OF_FOLDER,
    "CONCURRENT_STREAM_LOG_UPDATE": _TWO_OF_FOLDER,
    _SAME_NAME: _TWO_OF_FOLDER,
}

_NO_SOURCE = "Spark has no Kafka source; add its package, as docs/ingest.md says"
_TWO_OF_TOPIC = "another ingest of the same topic is running"
_LOST = (
    "messages that were not read yet are gone from the topic; to go on with those that are left, "
    "delete {checkpoint}: what is in the log already counts as duplicates, "
    "what was erased comes back while the topic holds it"
)
_REFUSED = "the brokers refuse the credentials, their mechanism or the certificate: {why}"
_SILENT = "the brokers do not answer, or not by this kafka.security.protocol"
_CLIENT = "no Kafka client can be made of the servers and options: {why}"
_OPTION = "an option is refused: {why}"
TOPIC: Mistakes = {
    "ConcurrentModificationException": _TWO_OF_TOPIC,
    "CONCURRENT_STREAM_LOG_UPDATE": _TWO_OF_TOPIC,
    _SAME_NAME: _TWO_OF_TOPIC,
    "Failed to find data source: kafka": _NO_SOURCE,
    "DATA_SOURCE_NOT_FOUND": _NO_SOURCE,
    # Spark's conditions of Kafka are not in the texts of their errors.
    "Some data may have been lost because they are not available in Kafka": _LOST,
    "KAFKA_DATA_LOSS": _LOST,
    "Trigger.AvailableNow": "partitions of the topic were lost or made again during the run; run it again",
    "UnknownTopicOrPartition": "the brokers have no such topic",
    "AuthorizationException": "the brokers do not let this user read the topic: {why}",
    "AuthenticationException": _REFUSED,
    "SaslStateException": _REFUSED,
    "SaslMechanismException": _REFUSED,
    "org.apache.kafka.common.errors.TimeoutException": _SILENT,
    "Cannot fetch record for offset": _SILENT,
    "Failed to create new KafkaAdminClient": _CLIENT,
    "Failed to construct kafka": _CLIENT,
    "No resolvable bootstrap urls": _CLIENT,
    "Kafka option '": _OPTION,
    "Expected e.g. {": _OPTION,
    "If startingOffsets contains": _OPTION,
    "Kafka start offsets don't match": _OPTION,
    "org.apache.kafka.common.config.ConfigException": _OPTION,
    "No enum constant org.apache.kafka": _OPTION,
}


def operators_mistake(error: Exception, where: str, signs: Mistakes, checkpoint: str) -> DataError | None:
    """What an operator can mend about a failed query that takes from `where`; None where the fault lies elsewhere."""
    # The message is that of the outermost exception of the JVM; the causes are in its stack trace only.
    text = f"{error}\n{getattr(error, '_stackTrace', '')}"
    words = next((words for sign, words in signs.items() if sign in text), None)
    if words is None:
        return None
    found = re.search(r"file:/[^\s,;'\")]+", text)
    file = f" ({found[0]})" if found else ""
    return DataError(f"{where}: {words.format(file=file, checkpoint=checkpoint, why=_why(text))}")


def is_mended_by_a_start(error: Exception) -> bool:
    """Whether a query of a topic failed after its batch was done, and goes on when it is started again.

    Spark 4.1.1 does behind every batch that an earlier run began: https://issues.apache.org/jira/browse/SPARK-57438
    """
    return 'IterableOps.map(scala.Function1)" because the return value of "scala.Option.get()" is null' in str(error)


def _why(text: str) -> str:
    """The innermost cause that a text names, else its first line."""
    if causes := re.findall(r"^Caused by: (?:[\w.$]+: )?(.+)", text, re.MULTILINE):
        return str(causes[-1]).strip()
    first = text.strip().partition("\n")[0]
    return re.sub(r"^\[STREAM_FAILED].* terminated with exception: | SQLSTATE: \w+$", "", first)
