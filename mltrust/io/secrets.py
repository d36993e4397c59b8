"""Secrets, by where they are: the environment, or a Databricks secret scope. They are in no conf, log or table."""

import os
import re
from typing import Protocol, cast

from mltrust.errors import ConfError
from mltrust.replay.masking import Key

#: What stands for a value of the environment: `${NAME}`.
VARIABLE = re.compile(r"\$\{(\w+)\}")


def from_environment(text: str, what: str) -> str:
    """`text` with `${NAME}` from the environment; ConfError, which says `what` that is, where it has no such name."""
    if missing := [name for name in VARIABLE.findall(text) if name not in os.environ]:
        raise ConfError(f"{what} needs {', '.join(missing)} in the environment")
    return VARIABLE.sub(lambda found: os.environ[found[1]], text)


class _Secrets(Protocol):
    def get(self, scope: str, key: str) -> str: ...


def scrub_key(where: str) -> Key:
    """The key of pseudonyms that lies at `where`: `env:<variable>` or `databricks:<scope>/<name>`.

    Raises ConfError where nothing lies there, or what does is too short.
    """
    source, _, name = where.partition(":")
    if source == "env" and name:
        if not (secret := os.environ.get(name)):
            raise ConfError(f"scrub_key: {name} is not set in the environment; expected the key of pseudonyms in it")
        return Key(secret.encode())
    scope, _, key = name.partition("/")
    if source == "databricks" and scope and key:
        scopes = _databricks()
        try:
            secret = scopes.get(scope, key)
        except Exception as error:  # of whatever the platform's client is made
            raise ConfError(f"scrub_key: {where} cannot be read: {type(error).__name__}: {error}") from None
        return Key(secret.encode())
    raise ConfError(f"scrub_key is {where!r}, expected env:<variable> or databricks:<scope>/<name>")


def _databricks() -> _Secrets:
    try:
        from databricks.sdk.runtime import dbutils
    except Exception as error:  # outside of Databricks it fails in several ways
        raise ConfError(
            f"scrub_key: there is no Databricks here ({type(error).__name__}); expected env:<variable>"
        ) from None
    return cast(_Secrets, dbutils.secrets)
