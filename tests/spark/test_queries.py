"""What a query of Spark ends with."""

import pytest
from pyspark.sql import DataFrame, SparkSession

from mltrust import queries
from mltrust.errors import ConfError


def test_an_error_of_ours_inside_a_query_is_what_the_process_ends_with(spark: SparkSession) -> None:
    def fails(_: DataFrame, number: int) -> None:
        raise ConfError(f"limits.max_cells: reached in scan {number}")

    with pytest.raises(ConfError, match=r"^limits.max_cells: reached in scan 0$"):
        queries.until_stopped([queries.every(spark, 1, fails, "failing")])


def test_a_fault_of_ours_inside_a_query_is_not_hidden(spark: SparkSession) -> None:
    def fails(*_: object) -> None:
        raise KeyError("a fault")

    with pytest.raises(Exception, match="KeyError: 'a fault'"):
        queries.until_stopped([queries.every(spark, 1, fails, "faulty")])
    assert spark.streams.active == []
