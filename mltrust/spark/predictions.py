"""The columns of declared predictions, as sums that add up over days.

A row counts on its own day as if no outcome followed it, and an outcome on its own day adds what it changes, by the
score of the row that it belongs to. So neither a late outcome nor a late row changes a day but its own.
"""

from collections.abc import Callable, Iterator, Mapping

from pyspark.sql import Column
from pyspark.sql import functions as F

from mltrust.metrics import PREDICTION_COLUMNS, MetricColumns, PredictionColumns

#: Scores are kept this far from 0 and 1 in logarithms, so that one wrong certainty costs 35 and not infinity.
CLIP = 1e-15

# From a probability, null where a row is not scored, and the threshold.
_Term = Callable[[Column, float], Column]


def _one(p: Column, _threshold: float) -> Column:
    return F.when(p.isNotNull(), 1.0)


def _is_selected(p: Column, threshold: float) -> Column:
    return (p >= threshold).cast("double")


def _clipped(p: Column) -> Column:
    # greatest and least pass over null, which must stay null.
    return F.when(p.isNotNull(), F.greatest(F.lit(CLIP), F.least(p, F.lit(1 - CLIP))))


#: What a row adds as if no outcome followed it.
_OF_ROW: Mapping[str, _Term] = {
    "scored": _one,
    "scores": lambda p, _: p,
    "residual": lambda p, _: -p,
    "log_loss": lambda p, _: -F.log1p(-_clipped(p)),
    "squared_error": lambda p, _: p * p,
    "selected": _is_selected,
}
#: What the outcome adds that follows a row.
_OF_OUTCOME: Mapping[str, _Term] = {
    "positives": _one,
    "residual": _one,
    "log_loss": lambda p, _: F.log1p(-_clipped(p)) - F.log(_clipped(p)),
    "squared_error": lambda p, _: 1 - 2 * p,
    "true_positives": _is_selected,
}


def of_rows(columns: MetricColumns) -> list[Column]:
    """Sums over rows with `prediction_score`."""
    p = _probability("prediction_score")
    return [
        F.sum(term(p, each.threshold)).alias(f"{name}_{column} of rows")
        for name, each in columns.predictions.items()
        for column, term in _OF_ROW.items()
    ]


def of_outcomes(columns: MetricColumns) -> list[Column]:
    """Sums over outcomes with `name`, `value` and the `score` of the row that they belong to, null without one."""
    return [
        F.sum(F.when(_is_positive(each), term(_probability("score"), each.threshold))).alias(
            f"{name}_{column} of outcomes"
        )
        for name, each in columns.predictions.items()
        for column, term in _OF_OUTCOME.items()
    ]


def of_days(columns: MetricColumns) -> Iterator[Column]:
    """Every column of every prediction from its parts, null where there are none."""
    for name in columns.predictions:
        for column in PREDICTION_COLUMNS:
            terms = {"rows": _OF_ROW, "outcomes": _OF_OUTCOME}
            parts = [F.col(f"`{name}_{column} of {of}`") for of, known in terms.items() if column in known]
            yield F.coalesce(sum(parts[1:], parts[0]), *parts).alias(f"{name}_{column}")


def _probability(score: str) -> Column:
    """The score where it is a probability; NaN is above every number and so is none."""
    return F.when(F.col(score).between(0, 1), F.col(score))


def _is_positive(each: PredictionColumns) -> Column:
    return (F.col("name") == each.outcome) & (F.col("value") > 0)
