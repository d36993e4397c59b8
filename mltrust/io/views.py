"""Views on the tables: what dashboards and services read without knowing how a table keeps its history."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class View:
    """A view on a table of the log: its columns as SQL expressions, of the rows for which `where` holds.

    With `latest`, as (PARTITION BY, ORDER BY), only the first row of each partition is seen, and if `having` holds.
    """

    name: str
    of: str
    columns: tuple[str, ...]
    where: str
    latest: tuple[str, str] | None = None
    having: str = "true"

    @property
    def rank(self) -> str:
        """1 for the rows that are seen."""
        if self.latest is None:
            return "1"
        return f"row_number() OVER (PARTITION BY {self.latest[0]} ORDER BY {self.latest[1]})"


#: The version that a row of decisions is about: the one that was taken away, or the one that came back.
_DECIDED_VERSION = "CASE WHEN action = 'observe' THEN to_version ELSE from_version END"


VIEWS: Mapping[str, View] = {
    "drift_metrics": View(
        "drift_metrics",
        "drift_findings",
        (
            "named_struct('start', window_start, 'end', window_end) AS window",
            "concat(datediff(window_end, window_start), ' day') AS granularity",
            "nullif(slice_key, '') AS slice_key",
            "nullif(slice_value, '') AS slice_value",
            "model_version AS model_id",
            "`column` AS column_name",
            "drift_type",
            "named_struct('start', reference_start, 'end', reference_end) AS window_cmp",
            "js_distance",
            "named_struct('statistic', ks_statistic, 'pvalue', ks_pvalue) AS ks_test",
            "wasserstein_distance",
            "population_stability_index",
            "named_struct('statistic', chi_squared_statistic, 'pvalue', chi_squared_pvalue) AS chi_squared_test",
            "tv_distance",
            "l_infinity_distance",
        ),
        "family = 'window' AND measure = 'jsd' AND traffic = 'production' AND arm = '(all)'",
    ),
    "stopped_versions": View(
        "stopped_versions",
        "decisions",
        (
            "model_name",
            "from_version AS model_version",
            "action",
            "alias",
            "decided_at",
            "monitor_id",
            "rollback_rule",
            "incident_id",
            "reason",
        ),
        # The first look at an alias (revision 0) is nobody's doing; every later move to a version is, and so is the
        # tag of a person who put it back.
        "(action IN ('rollback', 'stop') AND state = 'done') OR (action = 'observe' AND revision > 0)",
        latest=(f"model_name, {_DECIDED_VERSION}", "decided_at DESC, action = 'observe'"),
        having="action <> 'observe'",
    ),
}
