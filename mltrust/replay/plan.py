"""What a replay will do, by a hash: parts of one plan may be finished by different runs, parts of two may not mix."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from mltrust.contract import FeatureType, Scrubbing
from mltrust.replay.spec import Perturbation, Replay

#: Changes whenever scoring itself does, so that no half of a replay comes from before.
_REVISION = 2
#: The types of a signature in which a feature can be given.
_FITTING: Mapping[FeatureType, tuple[str, ...]] = {
    "boolean": ("boolean",),
    "long": ("long", "integer", "double", "float"),
    "double": ("double", "float"),
    "string": ("string",),
    "timestamp": ("datetime",),
}


def plan_id(
    replay: Replay,
    *,
    set_hash: str,
    champion: str,
    candidate: str,
    perturbations: Sequence[Perturbation],
    environment: Sequence[str] = (),
    n_tasks: int = 1,
) -> str:
    """16 hex digits of everything that a score of the replay depends on.

    Of the `environment`, which names installed packages, and of the batches that `n_tasks` tasks make, its last bits
    may.
    """
    parts = {
        "revision": _REVISION,
        "set": set_hash,
        "models": [champion, candidate, replay.champion.output, replay.candidate.output],
        "perturbations": [asdict(each) for each in perturbations],
        "how": [replay.perturbed_share, replay.batch_rows, replay.parts, n_tasks],
        "environment": sorted(environment),
    }
    return hashed(parts)


def selection_id(replay: Replay, scrub: Scrubbing | None) -> str:
    """16 hex digits of everything that the rows of a replay's set depend on, beside the log."""
    chosen = replay.the_selection()
    by = (*chosen.where, *(chosen.sample.by if chosen.sample is not None else ()))
    parts = {
        "select": asdict(chosen),
        "label": None if replay.label is None else asdict(replay.label),
        "near": replay.threshold if chosen.hard_within is not None else None,
        "attributes": {name: [replay.slices.attributes[name], replay.slices.edges.get(name)] for name in by},
        "scrub": None if scrub is None else asdict(scrub),
    }
    return hashed(parts)


def hashed(parts: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


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
