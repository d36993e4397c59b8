"""What a query of Spark ends with."""

from collections.abc import Iterator

import pytest
from pyspark.sql import DataFrame, SparkSession

from mltrust import queries
from mltrust.errors import ConfError, DataError
from mltrust.queries import Running


def test_an_error_of_ours_inside_a_query_is_what_the_process_ends_with(spark: SparkSession) -> None:
    def fails(_: DataFrame, number: int) -> None:
        raise ConfError(f"limits.max_cells: reached in scan {number}")

    with pytest.raises(ConfError, match=r"^limits.max_cells: reached in scan 0$"):
        queries.until_stopped(queries.every(spark, 1, fails, "failing"))


def test_a_fault_of_ours_inside_a_query_is_not_hidden(spark: SparkSession) -> None:
    def fails(*_: object) -> None:
        raise KeyError("a fault")

    with pytest.raises(Exception, match="KeyError: 'a fault'"):
        queries.until_stopped(queries.every(spark, 1, fails, "faulty"))
    assert spark.streams.active == []


def test_what_runs_already_is_named_and_what_was_started_beside_it_is_ended(spark: SparkSession) -> None:
    def twice() -> Iterator[Running]:
        for _ in range(2):
            yield from queries.every(spark, 1, lambda *_: None, "monitor m")

    with pytest.raises(DataError, match=r"^monitor m: is running already$"):
        queries.until_stopped(twice())
    assert spark.streams.active == []
