"""Reads conf files into the specs of the package; every mistake is named with its file, path and expectation."""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from mltrust.contract import Contract
from mltrust.drift.spec import Drift
from mltrust.errors import ConfError
from mltrust.experiment.spec import Experiment
from mltrust.metrics import MetricColumns
from mltrust.monitor.scan import problems as monitor_problems
from mltrust.monitor.spec import Monitor
from mltrust.replay.gate import known_measures
from mltrust.replay.spec import SET_COLUMNS, Replay
from mltrust.settings import Settings
from mltrust.training import TrainingSet

T = TypeVar("T")
Plain = dict[str, Any]  # what YAML holds, before it is read into a spec


@dataclass(frozen=True, slots=True)
class Conf:
    """Everything a job was told: its settings, its subject and what the subject names.

    `conf_hash` names what results depend on, `units_hash` what of it the unit tables of the experiment depend on,
    `columns_hash` what those of everyone do. `compared` are the experiments whose arms a monitor compares.
    """

    path: Path
    env: str
    settings: Settings
    contract: Contract
    columns: MetricColumns
    experiment: Experiment | None
    resolved: str
    conf_hash: str
    units_hash: str
    columns_hash: str
    training_set: TrainingSet | None = None
    monitor: Monitor | None = None
    drift: Drift | None = None
    compared: tuple[Experiment, ...] = ()
    replay: Replay | None = None

    @property
    def log(self) -> str:
        return self.contract.log

    def the_experiment(self) -> Experiment:
        if self.experiment is None:
            raise ConfError(f"{self.path}: expected the conf of an experiment (conf/experiments/<id>.yaml)")
        return self.experiment

    def the_training_set(self) -> TrainingSet:
        if self.training_set is None:
            raise ConfError(f"{self.path}: expected the conf of a training set (conf/training_sets/<id>.yaml)")
        return self.training_set

    def the_monitor(self) -> Monitor:
        if self.monitor is None:
            raise ConfError(f"{self.path}: expected the conf of a monitor (conf/monitors/<id>.yaml)")
        return self.monitor

    def the_drift(self) -> Drift:
        self.the_monitor()
        if self.drift is None:
            raise ConfError(f"{self.path}: drift: missing; expected what is held against which reference")
        return self.drift

    def the_replay(self) -> Replay:
        if self.replay is None:
            raise ConfError(f"{self.path}: expected the conf of a replay (conf/replays/<id>.yaml)")
        return self.replay


def refuse(path: Path, problems: Sequence[str]) -> None:
    """Raises ConfError with all problems of a conf file, if there are any."""
    if problems:
        raise ConfError("\n".join(f"{path}: {problem}" for problem in problems))


def load(config: Path, env: str) -> Conf:
    """The conf of a job whose subject is in `config`, whose folder says what it is; it names its `log`.

    Raises ConfError with every mistake of every file at once.
    """
    if not config.is_file():
        raise ConfError(f"{config}: no such file; expected conf/contracts/<log>.yaml or conf/experiments/<id>.yaml")
    root = conf_root(config)
    settings, settings_plain = _settings(root, env)
    resolved: dict[str, Plain] = {"settings": settings_plain}
    resolved["subject"] = subject = _yaml(config)
    experiment = _validated(Experiment, subject, str(config)) if config.parent.name == "experiments" else None
    training_set = _validated(TrainingSet, subject, str(config)) if config.parent.name == "training_sets" else None
    monitor, drift, compared = (
        _monitored(subject, config, root, resolved) if config.parent.name == "monitors" else (None, None, ())
    )
    replay = _validated(Replay, subject, str(config)) if config.parent.name == "replays" else None
    log = subject.get("log")
    if not isinstance(log, str):
        raise ConfError(f"{config}: log: missing; expected the name of a contract in {root / 'contracts'}")
    contract, resolved["contract"] = read(Contract, _named(root / "contracts", log, config))
    if contract.log != log:
        raise ConfError(f"{root / 'contracts' / log}.yaml: log is {contract.log!r}, expected {log!r} as the file")
    columns_file = root / "metrics" / f"{log}.yaml"
    columns, resolved["metrics"] = (
        read(MetricColumns, columns_file) if columns_file.is_file() else (MetricColumns(), {})
    )
    if experiment is not None:
        refuse(config, _problems(experiment, columns, contract))
    if training_set is not None:
        refuse(config, training_set.problems(contract.feature_types()))
    if drift is not None:
        refuse(config, drift.problems(contract.feature_types(), contract.columns()))
    if monitor is not None:
        refuse(config, monitor_problems(monitor, contract.columns()) + _arm_problems(monitor, root / "experiments"))
    if replay is not None:
        refuse(config, _replay_problems(replay, contract))
    # What the result depends on: where it is kept is not part of it.
    limits = {name: settings_plain.get(name, {}) for name in ("limits", "health", "ingest")}
    hashed = resolved | {"settings": limits if config.parent.name == "contracts" else limits["limits"]}
    shaping = [subject.get(name) for name in ("experiment_id", "unit", "phases", "buckets", "trigger")]
    slices = subject.get("slices") or {}
    return Conf(
        path=config,
        env=env,
        settings=settings,
        contract=contract,
        columns=columns,
        experiment=experiment,
        resolved=yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True),
        conf_hash=_hash(hashed),
        units_hash=_hash([shaping, slices.get("attributes"), slices.get("edges"), resolved["metrics"]]),
        columns_hash=_hash(resolved["metrics"]),
        training_set=training_set,
        monitor=monitor,
        drift=drift,
        compared=compared,
        replay=replay,
    )


def _monitored(
    subject: Plain, config: Path, root: Path, resolved: dict[str, Plain]
) -> tuple[Monitor, Drift | None, tuple[Experiment, ...]]:
    """A monitor, its section on drift, and the experiments that this names, which are added to `resolved`."""
    rest = {name: value for name, value in subject.items() if name != "drift"}
    monitor, section = _validated(Monitor, rest, str(config)), subject.get("drift")
    if section is None:
        return monitor, None, ()
    drift = _validated(Drift, section, f"{config}: drift")
    compared = []
    for name in drift.experiments:
        experiment, resolved[f"experiment {name}"] = read(Experiment, root / "experiments" / f"{name}.yaml")
        compared.append(experiment)
    return monitor, drift, tuple(compared)


def _arm_problems(monitor: Monitor, folder: Path) -> list[str]:
    """What is wrong with the control of a monitor, where the conf of its experiment is there to tell."""
    arms = monitor.series.arms
    if arms is None or arms.experiment_id is None or arms.control is None:
        return []
    path = folder / f"{arms.experiment_id}.yaml"
    known = read(Experiment, path)[0].arms if path.is_file() else (arms.control,)
    if arms.control in known:
        return []
    return [f"series.arms.control is {arms.control!r}, expected an arm of {path}: {', '.join(known)}"]


def _replay_problems(replay: Replay, contract: Contract) -> list[str]:
    features = contract.feature_types()
    columns = (*SET_COLUMNS, *(f"features.{name}" for name in features))
    return replay.problems(features, columns, known_measures())


def _problems(experiment: Experiment, columns: MetricColumns, contract: Contract) -> list[str]:
    texts = [
        f"features.{name}" for name, type_ in contract.feature_types().items() if type_ not in ("long", "double")
    ]
    return experiment.problems(columns, contract.columns(), texts)


def _hash(plain: object) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def read(spec: type[T], path: Path) -> tuple[T, Plain]:
    """The spec in a YAML file, and the plain values it was made of."""
    plain = _yaml(path)
    return _validated(spec, plain, str(path)), plain


def _validated(spec: type[T], plain: Plain, where: str) -> T:
    try:
        # JSON, because the Python mode of strict refuses lists for tuples.
        return TypeAdapter(spec).validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        raise ConfError("\n".join(f"{where}: {line}" for line in _explain(spec, error))) from None


def _explain(spec: type[object], error: ValidationError) -> list[str]:
    lines = []
    for each in error.errors(include_url=False):
        path = ".".join(str(step) for step in each["loc"]) or "(top level)"
        if each["type"] == "unexpected_keyword_argument":
            known = _names_at(spec, each["loc"][:-1])
            near = difflib.get_close_matches(str(each["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
            lines.append(f"{path}: unknown key; {hint}")
        elif each["type"] == "missing":
            lines.append(f"{path}: missing")
        else:
            message = each["msg"].removeprefix("Value error, ")
            given = "" if isinstance(each["input"], dict) else f" (given {json.dumps(each['input'], default=str)})"
            lines.append(f"{path}: {message}{given}")
    return lines


def _names_at(spec: object, path: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the dataclass that lies at `path` inside `spec`."""
    if typing.get_origin(spec) in (typing.Union, types.UnionType):
        spec = next((each for each in typing.get_args(spec) if each is not type(None)), spec)
    if not path:
        return (
            [each.name for each in dataclasses.fields(spec)]
            if isinstance(spec, type) and dataclasses.is_dataclass(spec)
            else []
        )
    if isinstance(spec, type) and dataclasses.is_dataclass(spec):
        return _names_at(typing.get_type_hints(spec).get(str(path[0])), path[1:])
    inner = typing.get_args(spec)
    if typing.get_origin(spec) is dict:
        return _names_at(inner[1], path[1:])
    return _names_at(inner[0], path[1:]) if inner else []


class _UniqueKeyLoader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key given twice, of which plain YAML keeps the last without a word."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[object, object]:
    own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    seen: set[object] = set()
    for key in own:
        name = loader.construct_object(key)
        if name in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {name!r} is given twice", key.start_mark)
        seen.add(name)
    loader.flatten_mapping(node)
    mapping: dict[object, object] = loader.construct_mapping(node, deep=True)
    return mapping


_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def _yaml(path: Path) -> Plain:
    try:
        plain = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, TypeError) as error:  # TypeError: a mapping as a key, as in {{ template }}
        raise ConfError(f"{path}: no YAML: {error}") from None
    if not isinstance(plain, dict):
        raise ConfError(f"{path}: expected a mapping at the top level, given {type(plain).__name__}")
    return typing.cast(Plain, _jsonable(plain))


def _jsonable(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_jsonable(each) for each in value]
    return value.isoformat() if isinstance(value, date) else value


def conf_root(config: Path) -> Path:
    """The conf folder that a file lies in; ConfError where there is none."""
    for folder in config.resolve().parents:
        if (folder / "env").is_dir():
            return folder
    raise ConfError(f"{config}: no folder above it holds env/; expected a file inside a conf/ folder")


def _named(folder: Path, name: str, asked_by: Path) -> Path:
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(each.stem for each in folder.glob("*.yaml"))
        raise ConfError(f"{asked_by}: log {name!r} has no {path}; known logs are {', '.join(known) or 'none'}")
    return path


def _settings(root: Path, env: str) -> tuple[Settings, Plain]:
    path = root / "env" / f"{env}.yaml"
    if not path.is_file():
        known = sorted(each.stem for each in (root / "env").glob("*.yaml"))
        raise ConfError(f"--env {env}: no {path}; expected one of {', '.join(known)}")
    base = root / "base.yaml"
    plain = _merged(_yaml(base) if base.is_file() else {}, _yaml(path))
    return _validated(Settings, plain, f"{base} with {path}"), plain


def _merged(base: Plain, over: Plain) -> Plain:
    both = {
        key: _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in over.items()
    }
    return base | both
