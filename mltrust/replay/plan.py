"""What a replay will do, by a hash: parts of one plan may be finished by different runs, parts of two may not mix."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from mltrust.contract import FeatureType
from mltrust.replay.spec import Perturbation, Replay

#: Changes whenever scoring itself does, so that no half of a replay comes from before.
_REVISION = 1
#: The types of a signature in which a feature can be given.
_FITTING: Mapping[FeatureType, tuple[str, ...]] = {
    "boolean": ("boolean",),
    "long": ("long", "integer", "double", "float"),
    "double": ("double", "float"),
    "string": ("string",),
    "timestamp": ("datetime",),
}


def plan_id(
    replay: Replay, *, set_hash: str, champion: str, candidate: str, perturbations: Sequence[Perturbation]
) -> str:
    """16 hex digits of everything that a score of the replay depends on."""
    parts = {
        "revision": _REVISION,
        "set": set_hash,
        "models": [champion, candidate, replay.champion.output, replay.candidate.output],
        "perturbations": [asdict(each) for each in perturbations],
        "how": [replay.perturbed_share, replay.batch_rows, replay.parts],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def mismatches(model: str, inputs: Iterable[tuple[str, str, bool]], features: Mapping[str, FeatureType]) -> list[str]:
    """Inputs of a model (name, type, whether required) that the log's features cannot give, in words."""
    found = []
    for name, kind, required in inputs:
        if name not in features:
            if required:
                found.append(
                    f"{model} reads {name!r} ({kind}), which is no feature of the log; known: {', '.join(features)}"
                )
        elif kind not in _FITTING[features[name]]:
            fitting = " or ".join(_FITTING[features[name]])
            found.append(f"{model} reads {name!r} as {kind}; the log has a {features[name]}, which fits {fitting}")
    return found
