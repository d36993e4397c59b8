"""Small tables as frames: they lie in the plan itself, so that no query on them waits for a Python worker."""

from collections.abc import Sequence

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType


def frame(spark: SparkSession, rows: Sequence[Sequence[object]], ddl: str | StructType) -> DataFrame:
    """A frame of `rows`, each a tuple in the order of the schema."""
    schema = ddl if isinstance(ddl, StructType) else StructType.fromDDL(ddl)
    assert isinstance(schema, StructType)
    arrow = to_arrow_schema(schema)
    columns = [pa.array([row[at] for row in rows], field.type) for at, field in enumerate(arrow)]
    return spark.createDataFrame(pa.Table.from_arrays(columns, schema=arrow), schema)
