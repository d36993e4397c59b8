"""What an export says of a training set: Markdown, and the metrics of its MLflow run."""

from datetime import datetime
from math import isnan

from mltrust.training import Exported, Label, TrainingSet


def metrics(found: Exported) -> dict[str, float]:
    """Metrics of the run: counts, the label's mean, and `null_share/<feature>`."""
    counts = {name: float(n) for name, n in found._asdict().items() if name.startswith("n_")}
    nulls = {f"null_share/{name}": share for name, share in found.null_shares.items()}
    return counts | {"label_mean": found.label_mean} | nulls


def why_not(found: Exported, training_set: TrainingSet, as_of: datetime) -> str | None:
    """Why nothing can be learnt from what was found; None where it can."""
    outcome = training_set.label.outcome
    if not found.n_rows and not found.n_missing:
        return (
            f"no mature prediction: {found.n_immature:,} immature ones, whose {training_set.label.window_days} days "
            f"are not over by {as_of:%Y-%m-%d}"
        )
    if not found.n_followed:
        return f"none of {found.n_rows + found.n_missing:,} mature predictions is followed by an outcome {outcome!r}"
    return None


def markdown(found: Exported, training_set: TrainingSet, as_of: datetime, path: str, version: int) -> str:
    """The training set in one page, after its verdict: rows, label, folds, nulls, and how to read it back."""
    label = training_set.label
    share = found.n_positive / found.n_rows
    parts = [
        f"{found.n_rows:,} rows of `{training_set.training_set_id}` as of {as_of:%Y-%m-%d}, "
        f"content hash `{found.content_hash}`. {training_set.description}",
        f"Predictions of {training_set.start} up to, not including, {training_set.end}: {_models(training_set)}. "
        f"Left out: {found.n_immature:,} immature (their {label.window_days} days are not over by as_of), "
        f"{found.n_missing:,} without a label.",
        f"Label: {_label(label)}. Mean {found.label_mean:.4g}; {found.n_positive:,} of {found.n_rows:,} above 0 "
        f"({share:.2%}); {found.n_followed:,} have an outcome.",
        _folds(found, training_set),
        _nulls(found),
        _read_back(training_set, path, version),
    ]
    return "\n\n".join(filter(None, parts))


def _models(training_set: TrainingSet) -> str:
    if training_set.model_name is None:
        return "of every model"
    versions = ", ".join(training_set.model_versions or ())
    return f"of {training_set.model_name}, " + (f"version {versions}" if versions else "every version")


def _label(label: Label) -> str:
    of = "its request" if label.by == "request" else "its unit"
    without = "zero" if label.missing == "zero" else "left out"
    within = f"{label.window_days} days"
    return f"`{label.aggregate}` of the outcomes `{label.outcome}` of {of} within {within}, none: {without}"


def _folds(found: Exported, training_set: TrainingSet) -> str:
    if training_set.split is None:
        return ""
    said = f"Folds by unit (seed {training_set.split.seed}): {found.n_train:,} train, {found.n_test:,} test."
    return said + (f" {found.n_no_fold:,} rows name no unit and have no fold." if found.n_no_fold else "")


def _nulls(found: Exported) -> str:
    lines = ["| feature | null |", "|---|--:|"]
    lines += [f"| {name} | {'–' if isnan(share) else f'{share:.2%}'} |" for name, share in found.null_shares.items()]
    return "\n".join(lines) if found.null_shares else ""


def _read_back(training_set: TrainingSet, path: str, version: int) -> str:
    reader = f'load("{path}")' if "/" in path else f'table("{path}")'
    return (
        "Read it back:\n\n```python\n"
        f'rows = spark.read.format("delta").option("versionAsOf", {version}).{reader}\n'
        f"rows.where(\"training_set_id = '{training_set.training_set_id}'\")\n```"
    )
