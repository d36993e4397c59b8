"""How many units a verdict needs."""

from mltrust.experiment.spec import Experiment
from mltrust.metrics import KINDS, Metric
from mltrust.stats.means import Comparison

#: Below these a slice has no verdict: units per arm, buckets per arm, events and non-events per arm of a share.
MIN_UNITS, MIN_BUCKETS, MIN_EVENTS = 50, 20, 5


def too_small(metric: Metric, compared: Comparison, experiment: Experiment) -> str:
    """What a comparison lacks for a verdict; '' where it has enough."""
    least = MIN_BUCKETS if experiment.unit == "bucket_id" else MIN_UNITS
    smaller = min(compared.n_control, compared.n_treatment)
    if smaller < least:
        return f"{smaller} units in an arm, at least {least} needed"
    if KINDS[metric.kind].unit_value == "any":
        arms = ((compared.n_control, compared.mean_control), (compared.n_treatment, compared.mean_treatment))
        events = min(n * share for n, mean in arms for share in (mean, 1 - mean))
        if round(events) < MIN_EVENTS:
            return f"{round(events)} units with or without the event in an arm, at least {MIN_EVENTS} needed"
    return ""
