"""Which columns another tool alarms on at its defaults: a script for an environment with that tool and no mltrust.

`python rival.py evidently|nannyml` reads requests from standard input, a JSON object of two Parquet files a line, and
answers each with a JSON list of columns.
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable

import pandas as pd

Alarms = Callable[[pd.DataFrame, pd.DataFrame], list[str]]


def evidently() -> Alarms:
    """DataDriftPreset with its own choice of method and threshold per column."""
    os.environ["DO_NOT_TRACK"] = "1"
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    def alarms(reference: pd.DataFrame, window: pd.DataFrame) -> list[str]:
        numbers = list(reference.select_dtypes("number"))
        definition = DataDefinition(
            numerical_columns=numbers, categorical_columns=[each for each in reference if each not in numbers]
        )
        both = (Dataset.from_pandas(each, definition) for each in (window, reference))
        told = json.loads(Report([DataDriftPreset()], include_tests=True).run(*both).json())
        failed = [each["metric_config"]["params"] for each in told["tests"] if each["status"] == "FAIL"]
        return [each["column"] for each in failed if "column" in each]

    return alarms


def nannyml() -> Alarms:
    """UnivariateDriftCalculator, its thresholds from chunks of the reference that are as large as the window."""
    os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"
    from nannyml import UnivariateDriftCalculator

    def alarms(reference: pd.DataFrame, window: pd.DataFrame) -> list[str]:
        columns = list(reference)
        calculator = UnivariateDriftCalculator(column_names=columns, chunk_size=len(window)).fit(reference)
        found = calculator.calculate(window).filter(period="analysis").to_df()
        return [each for each in columns if found[each].xs("alert", axis=1, level=1).to_numpy().any()]

    return alarms


def main() -> int:
    warnings.simplefilter("ignore")
    logging.disable()
    alarms = {"evidently": evidently, "nannyml": nannyml}[sys.argv[1]]()
    for line in sys.stdin:
        asked = json.loads(line)
        found = alarms(pd.read_parquet(asked["reference"]), pd.read_parquet(asked["window"]))
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
