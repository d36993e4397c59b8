"""A model of 2015 that served from 2016 to 2018, replayed with a candidate; what the report says of both."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

from jobs import export_replay_set, ingest_logs, replay_traffic
from mltrust import conf as confs
from mltrust import runtime
from mltrust.conf import Conf
from mltrust.formats.protobuf import Codec
from mltrust.io import models as registry
from mltrust.io import tracking
from mltrust.verdicts import Exit
from tests.real import employment
from tests.real.test_open_bandit import CONF

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("MLTRUST_DATA"), reason="MLTRUST_DATA is unset: it names the folder of the real data"
    ),
    pytest.mark.filterwarnings("ignore"),
]
AS_OF = datetime(2026, 1, 1, tzinfo=UTC)
TEXTS, NUMBERS = ["SCHL", "MAR", "SEX", "RAC1P", "ANC"], ["AGEP"]
INPUTS = [*NUMBERS, *TEXTS]


def pipeline(model: RandomForestClassifier | HistGradientBoostingClassifier) -> Pipeline:
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)
    return Pipeline(
        [
            ("encode", ColumnTransformer([("codes", codes, TEXTS), ("numbers", "passthrough", NUMBERS)])),
            ("model", model),
        ]
    )


def rows_of(data: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """2015, and 2016 to 2018 with their labels."""
    reference = pd.read_parquet(data / "reference.parquet")
    analysis = pd.read_parquet(data / "analysis.parquet")
    labels = pd.read_parquet(data / "analysis_target.parquet").set_index("id")["employed"]
    analysis = analysis.assign(employed=analysis["id"].map(labels))
    return tuple(each.assign(**{name: each[name].astype(str) for name in TEXTS}) for each in (reference, analysis))  # type: ignore[return-value]


def of_registry(conf: Conf, root: Path) -> Conf:
    tracking = replace(conf.settings.tracking, uri=f"sqlite:///{root}/mlflow.db", artifacts=str(root / "runs"))
    return replace(conf, settings=replace(conf.settings, root=str(root), tracking=tracking))


@contextmanager
def registry_at(conf: Conf) -> Iterator[None]:
    before, to = mlflow.get_tracking_uri(), conf.settings.tracking
    tracking.connect(tracking.Server(to.uri, to.artifacts, to.experiment))
    yield
    mlflow.set_tracking_uri(before)


def land(rows: pd.DataFrame, scores: np.ndarray, version: str, folder: Path, conf: Conf) -> None:
    """What the champion answered, and what became true a year later."""
    records, outcomes = Codec(conf.contract, "Record"), Codec(conf.contract, "Outcome")
    served = [
        employment.record(row | {"predicted_probability": score}) | {"model_version": version}
        for row, score in zip(rows.to_dict("records"), scores.tolist(), strict=True)
    ]
    told = [employment.outcome(row, int(row["year"])) for row in rows.to_dict("records")]
    employment._write(folder / "records" / "served.pb.gz", [records.encode(each) for each in served])
    employment._write(folder / "outcomes" / "told.pb.gz", [outcomes.encode(each) for each in told])


def test_a_model_of_2015_is_given_again_over_three_years_and_held_against_a_candidate(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLTRUST_SCRUB_KEY", "a secret of 32 bytes for the test")
    conf = of_registry(confs.load(CONF / "replays/employment.yaml", "local"), tmp_path)
    past, rows = rows_of(Path(os.environ["MLTRUST_DATA"], "employment_ma"))
    X, y = past[INPUTS], past["employed"].astype(int)
    champion = pipeline(RandomForestClassifier(60, max_depth=8, n_jobs=1, random_state=1)).fit(X, y)
    candidate = pipeline(HistGradientBoostingClassifier(max_iter=150, random_state=1)).fit(X, y)
    with registry_at(conf):
        versions = [
            registry.register(model, name="employment", alias=alias, example=X.head())
            for alias, model in (("champion", champion), ("candidate", candidate))
        ]
        scores = champion.predict_proba(rows[INPUTS])[:, 1]
        land(rows, scores, versions[0], tmp_path / "landing" / "employment", conf)
        assert ingest_logs.run(spark, conf, AS_OF) == Exit.PASS
        assert export_replay_set.run(spark, conf, AS_OF) == Exit.PASS
        exit_code = replay_traffic.run(spark, conf, AS_OF, summary=str(tmp_path / "report.md"))
    page = (tmp_path / "report.md").read_text()
    print(page)
    lake = runtime.lakehouse(spark, conf)
    found = lake.read("replay_findings").where("slice_key = ''").toPandas()
    value = {(row["measure"], row["role"], row["perturbation"]): row["value"] for row in found.to_dict("records")}
    assert value["exact", "champion", ""] == 1.0
    assert lake.read("replay_rows").count() == len(rows) == 208_892
    # What the jobs say is what the models say of all rows at once.
    again = candidate.predict_proba(rows[INPUTS])[:, 1]
    truth = rows["employed"].to_numpy(dtype=float)
    flips = (scores >= 0.5) != (again >= 0.5)
    assert value["churn", "pair", ""] == pytest.approx(flips.mean(), rel=1e-9)
    change = ((again - truth) ** 2 - (scores - truth) ** 2).mean()
    assert value["squared_error_change", "pair", ""] == pytest.approx(change, rel=1e-9)
    right = (again >= 0.5) == (truth > 0)
    assert value["win_balance", "pair", ""] == pytest.approx(
        (flips & right).mean() - (flips & ~right).mean(), abs=1e-12
    )
    assert exit_code in (Exit.PASS, Exit.BREACH, Exit.INCONCLUSIVE)
    assert page.startswith(f"**{ {0: 'pass', 4: 'breach', 3: 'inconclusive'}[exit_code] }**")
