"""A self-contained HTML page: one file that opens from disk, in light and dark, and asks nothing of the network."""

from collections.abc import Sequence
from html import escape

_STYLE = """
:root {
  --ink: #1a2230; --quiet: #5b6675; --line: #dfe4ea; --paper: #fff; --card: #f6f8fa; --good: #1a7f4b;
  --bad: #b3261e; --warn: #9a5b00; --unknown: #5b6675; --blue: #1d5fb4; --band: #c9dcf3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6ebf2; --quiet: #a3aebd; --line: #333d4a; --paper: #11161d; --card: #1a212b; --good: #5fd39a;
    --bad: #ff8a80; --warn: #ffc069; --unknown: #a3aebd; --blue: #8ab8f5; --band: #27405f;
  }
}
* { box-sizing: border-box }
body {
  margin: 0 auto; max-width: 1240px; padding: 24px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1 { font-size: 26px; margin: 0 0 6px; display: flex; gap: 12px; align-items: center; flex-wrap: wrap }
h2 { font-size: 17px; margin: 28px 0 8px }
p { margin: 4px 0 }
a { color: var(--blue) }
.quiet { color: var(--quiet) }
.kicker { color: var(--quiet); font-size: 13px }
.pill {
  font-size: 13px; font-weight: 600; border: 1.5px solid currentColor; border-radius: 999px; padding: 1px 10px;
  white-space: nowrap;
}
.good { color: var(--good) }
.bad { color: var(--bad) }
.warn { color: var(--warn) }
.unknown { color: var(--unknown) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: 14px }
th, td { text-align: left; padding: 6px 10px; border-bottom: 1px solid var(--line); vertical-align: top }
thead th { color: var(--quiet); font-weight: 600; white-space: nowrap }
th.n, .n { text-align: right; font-variant-numeric: tabular-nums }
.state, td time { white-space: nowrap }
.blue { color: var(--blue) }
.bar { display: inline-block; width: 72px; height: 8px; border-radius: 4px; background: var(--line) }
.bar span { display: block; height: 100%; border-radius: 4px; background: var(--blue) }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(380px, 1fr)); gap: 16px }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px }
figcaption { font-weight: 600; font-size: 14px; margin-bottom: 4px }
figcaption .quiet { font-weight: 400 }
svg { width: 100%; max-width: 720px; height: auto; display: block }
svg text { font-size: 13px; fill: var(--quiet) }
.band { fill: var(--band); opacity: .7 }
.expected { fill: none; stroke: var(--quiet); stroke-width: 1; stroke-dasharray: 3 3 }
.value { fill: none; stroke: var(--blue); stroke-width: 1.6 }
.hit { fill: var(--bad) }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 12px; margin: 16px 0 }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 8px 12px }
dt { color: var(--quiet); font-size: 13px }
dd { margin: 0; font-weight: 600 }
ol { padding-left: 20px }
li { margin: 4px 0 }
li time { color: var(--quiet); font-variant-numeric: tabular-nums; margin-right: 8px }
footer { margin-top: 32px; font-size: 13px }
"""


def document(title: str, body: Sequence[str], refresh_seconds: int | None = None) -> str:
    """The page around pieces of HTML; with `refresh_seconds` a browser loads it again so often."""
    refresh = "" if refresh_seconds is None else f"<meta http-equiv='refresh' content='{refresh_seconds}'>"
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"{refresh}<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already; columns named by `numbers` are set to the right."""
    columns = "".join(_heading(name, at in numbers) for at, name in enumerate(head))
    lines = "".join(
        "<tr>" + "".join(_cell(cell, at in numbers) for at, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return f"<div class='scroll'><table><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>"


def _heading(name: str, is_number: bool) -> str:
    return f"<th scope='col'{' class=n' if is_number else ''}>{escape(name)}</th>"


def _cell(cell: str, is_number: bool) -> str:
    return f"<td class='n'>{cell}</td>" if is_number else f"<td>{cell}</td>"


def section(title: str, body: str) -> str:
    """A section with its heading."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def pill(status: str, word: str) -> str:
    """A word with the colour of a status: good, warn, bad or unknown."""
    return f"<span class='pill {status}'>{escape(word)}</span>"
