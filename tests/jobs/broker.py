"""A Kafka broker of its own, from the JARs of Maven Central, for tests."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pyspark
import pytest
from confluent_kafka import OFFSET_END, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.conftest import ROOT

_KAFKA = ("org.apache.kafka", "kafka_2.13", "4.1.0")
#: Where the JARs are kept: what needs Maven has a folder of its own.
_JARS = ROOT / ".kafka"
_CONF = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={logs}
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
"""


def jars() -> Path:
    """The folder of the broker's JARs, which Spark's own Ivy brings the first time."""
    folder = _JARS / "jars"
    if not (_JARS / "whole").exists():
        (ivy,) = (Path(pyspark.__file__).parent / "jars").glob("ivy-*.jar")
        kept = str(folder / "[artifact]-[revision].[ext]")
        brought = subprocess.run(
            [
                *("java", "-jar", str(ivy), "-settings", str(ROOT / "mltrust/ivysettings.xml")),
                *("-cache", str(_JARS / "cache"), "-dependency", *_KAFKA, "-confs", "default", "-retrieve", kept),
            ],
            capture_output=True,
            text=True,
        )
        if brought.returncode != 0:
            pytest.skip(f"the broker's JARs need the network once: {brought.stdout[-300:]}")
        (_JARS / "whole").touch()
    return folder


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Broker:
    """A single broker with its data in `folder`; `start` after `stop` finds what was there."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self._conf = folder / "server.properties"
        self._process: subprocess.Popen[bytes] | None = None
        self._producer: Producer | None = None
        folder.mkdir(parents=True)
        self._conf.write_text(_CONF.format(port=self._port, controller=free_port(), logs=folder / "logs"))
        self._java("kafka.tools.StorageTool", "format", "-t", "4L6g3nShT-eMCtK--X86sw", "-c", str(self._conf)).wait()

    @property
    def servers(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Returns once the broker answers."""
        self._process = self._java("kafka.Kafka", str(self._conf))
        until = time.monotonic() + 60
        while True:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            assert self._process.poll() is None, (self._folder / "broker.log").read_text()[-4000:]
            assert time.monotonic() < until
            time.sleep(0.2)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def topic(self, name: str, partitions: int) -> None:
        admin = AdminClient({"bootstrap.servers": self.servers})
        (made,) = admin.create_topics([NewTopic(name, partitions)]).values()
        made.result(30)

    def lose(self, topic: str, partitions: int) -> None:
        """Removes all messages of a topic, as its retention would; the offsets go on."""
        admin = AdminClient({"bootstrap.servers": self.servers})
        ends = [TopicPartition(topic, each, OFFSET_END) for each in range(partitions)]
        for removed in admin.delete_records(ends).values():
            removed.result(30)

    def send_aborted(self, topic: str, lines: list[bytes]) -> None:
        """Sends lines in a transaction that is then aborted."""
        producer = Producer({"bootstrap.servers": self.servers, "transactional.id": topic})
        producer.init_transactions(60)
        producer.begin_transaction()
        for line in lines:
            producer.produce(topic, line)
        producer.flush(60)
        producer.abort_transaction(60)

    def send(self, topic: str, lines: Sequence[bytes | None]) -> None:
        """Sends lines as messages, None as one without a value, and waits until the broker has them."""
        producer = self._producer = self._producer or Producer({"bootstrap.servers": self.servers, "acks": "all"})
        for line in lines:
            producer.produce(topic, line)
        assert producer.flush(60) == 0

    def _java(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / "broker.log").open("ab") as out:
            return subprocess.Popen(
                ["java", "-Xmx512m", "-cp", f"{jars()}/*", *arguments],
                stdout=out,
                stderr=out,
                env=os.environ | {"LOG_DIR": str(self._folder)},
            )
