"""Delivers notices: a JSON webhook and a file of JSON lines; anything else by apprise (extra `notify`)."""

import json
import os
import urllib.error
import urllib.request
from pathlib import Path

from mltrust.errors import ConfError
from mltrust.io.secrets import VARIABLE, from_environment
from mltrust.monitor.notices import Notice
from mltrust.monitor.spec import Target

_TIMEOUT_SECONDS = 10.0


def deliver(notice: Notice, target: Target) -> str | None:
    """None where the notice arrived, else why it did not."""
    try:
        _SENDERS[target.kind](notice, address_of(target))
    except Exception as error:  # whatever one address makes a client raise, the others are to be told
        return _without_secrets(f"{type(error).__name__}: {error}", target)
    return None


def _without_secrets(text: str, target: Target) -> str:
    """An error's text, which goes into tables and logs, without what the address has from the environment."""
    for name in VARIABLE.findall(target.address):
        if value := os.environ.get(name):
            text = text.replace(value, f"${{{name}}}")
    return text


def address_of(target: Target) -> str:
    """The address with `${NAME}` from the environment; ConfError where that has no such name."""
    return from_environment(target.address, f"notify: {target.address}")


class _Unmoved(urllib.request.HTTPRedirectHandler):
    """Follows nobody elsewhere: a POST would arrive there as a GET without its payload, and count as sent."""

    def redirect_request(self, *_: object) -> None:
        return None


_WEB = urllib.request.build_opener(_Unmoved)


def _webhook(notice: Notice, url: str) -> None:
    """POSTs the payload. A receiver that has seen the Idempotency-Key has it already and may drop it."""
    if not url.startswith(("http://", "https://")):
        raise ConfError(f"notify: a webhook's address begins with http:// or https://, given {url[:8]!r}...")
    request = urllib.request.Request(
        url,
        data=notice.payload.encode(),
        headers={"Content-Type": "application/json", "Idempotency-Key": notice.notice_id},
        method="POST",
    )
    with _WEB.open(request, timeout=_TIMEOUT_SECONDS) as answer:
        answer.read()


def _file(notice: Notice, path: str) -> None:
    """Appends the payload as a line, unless the file has one with its id."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    key = json.dumps({"notice_id": notice.notice_id})[1:-1]
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if key in text.rpartition("\n")[0]:  # a line that a killed writer left half does not count, and is ended first
        return
    with file.open("a", encoding="utf-8") as lines:
        lines.write(("\n" if text and not text.endswith("\n") else "") + notice.payload + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def _apprise(notice: Notice, url: str) -> None:
    try:
        import apprise
    except ImportError:
        raise ConfError("notify: kind apprise needs the package apprise: pip install 'mltrust[notify]'") from None
    told = json.loads(notice.payload)
    sender = apprise.Apprise()
    if not sender.add(url):
        raise ConfError("notify: apprise does not know this address")
    title = f"{told.get('model_name')}: {told.get('kind')} {told.get('state')}"
    if not sender.notify(title=title, body=str(told.get("text"))):
        raise ConnectionError("apprise could not deliver it")


_SENDERS = {"webhook": _webhook, "file": _file, "apprise": _apprise}
