"""``/docs``: the API for people, one page with nothing from elsewhere. Made from the same table. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from html import escape

from router.api.openapi import INFO, PROBLEM_TEXTS, components, version
from router.api.operation import Operation
from router.api.operations import TAGS
from router.api.shapes import Param, Schema, Shape

ORIGIN = "http://127.0.0.1:8080"

STYLE = """
:root { color-scheme: light dark; --back: #fdfdfc; --panel: #f4f4f1; --line: #dfdfd9; --text: #22242a;
  --soft: #62656e; --accent: #2456b8; --code: #eeeeea; --get: #1d6f42; --put: #9a5b00; --post: #2456b8;
  --delete: #a8322a; --head: #62656e; }
@media (prefers-color-scheme: dark) { :root { --back: #16181c; --panel: #1e2126; --line: #33373f;
  --text: #e4e5e8; --soft: #9a9ea8; --accent: #86aef5; --code: #24282e; --get: #6cc795; --put: #e0a54f;
  --post: #86aef5; --delete: #ee8a80; --head: #9a9ea8; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
code, pre, .path { font-family: ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; font-size: .875em; }
code { background: var(--code); border-radius: 4px; padding: .1em .3em; overflow-wrap: anywhere; }
.layout { display: grid; grid-template-columns: 16.5rem minmax(0, 1fr); max-width: 82rem; margin: 0 auto; }
nav { position: sticky; top: 0; height: 100vh; overflow-y: auto; padding: 1.6rem 1rem; border-right: 1px solid var(--line);
  font-size: .9rem; }
nav b { display: block; margin: 1.1rem 0 .25rem; color: var(--soft); font-size: .75rem; letter-spacing: .06em;
  text-transform: uppercase; }
nav a { display: block; padding: .12rem 0; color: var(--text); }
nav .name { font-weight: 700; font-size: 1.15rem; }
main { padding: 1.6rem 2.2rem 5rem; }
h1 { margin: 0 0 .4rem; font-size: 1.9rem; } h2 { margin: 3rem 0 .2rem; font-size: 1.35rem; }
h2 + p { margin-top: 0; color: var(--soft); }
section { border: 1px solid var(--line); border-radius: 10px; margin: 1.1rem 0; background: var(--panel); }
section > header { padding: .8rem 1.1rem; border-bottom: 1px solid var(--line); display: flex; gap: .7rem;
  align-items: baseline; flex-wrap: wrap; }
section > header h3 { margin: 0; font-size: 1rem; flex: 1 0 auto; text-align: right; font-weight: 600; }
section > div { padding: .3rem 1.1rem 1rem; }
.method { font-weight: 700; font-size: .8rem; letter-spacing: .04em; }
.GET { color: var(--get); } .PUT { color: var(--put); } .POST { color: var(--post); } .DELETE { color: var(--delete); }
.HEAD { color: var(--head); }
.path { font-size: .95rem; overflow-wrap: anywhere; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: .78rem; }
th, td { padding: .35rem .6rem .35rem 0; border-top: 1px solid var(--line); vertical-align: top; }
td:first-child { white-space: nowrap; } tr:first-child th { border-top: 0; }
.errors a { font-weight: 600; margin-right: .45rem; } .soft { color: var(--soft); }
table.params td:first-child { width: 11.5rem; } table.params td:nth-child(2) { width: 12rem; }
table.answers td:first-child { width: 4.5rem; }
td small { color: var(--soft); display: block; white-space: normal; }
h4 { margin: 1rem 0 .1rem; font-size: .82rem; color: var(--soft); text-transform: uppercase; letter-spacing: .05em; }
pre { background: var(--code); border-radius: 7px; padding: .7rem .9rem; overflow-x: auto; margin: .5rem 0; position: relative; }
pre.curl { white-space: pre-wrap; padding-right: 4.5rem; }
pre code { background: none; padding: 0; overflow-wrap: normal; font-size: 1em; }
details { margin: .4rem 0; } summary { cursor: pointer; color: var(--accent); font-size: .9rem; }
button { position: absolute; top: .45rem; right: .5rem; font: inherit; font-size: .78rem; color: var(--soft);
  background: var(--panel); border: 1px solid var(--line); border-radius: 5px; padding: .1rem .5rem; cursor: pointer; }
button:hover { color: var(--text); }
.status { font-weight: 700; } .ok { color: var(--get); } .bad { color: var(--delete); }
@media (max-width: 60rem) { .layout { grid-template-columns: minmax(0, 1fr); } nav { display: none; }
  section > div { overflow-x: auto; } table.params td:first-child, table.params td:nth-child(2) { width: auto; } main { padding: 1.2rem; } section > header h3 { text-align: left; } }
"""
SCRIPT = """
for (const code of document.querySelectorAll('pre.curl code'))
  if (location.protocol.startsWith('http')) code.textContent = code.textContent.replaceAll('ORIGIN', location.origin);
for (const pre of document.querySelectorAll('pre.curl')) {
  const button = document.createElement('button');
  button.textContent = 'copy';
  button.onclick = async () => {
    await navigator.clipboard.writeText(pre.querySelector('code').textContent);
    button.textContent = 'copied';
    setTimeout(() => { button.textContent = 'copy'; }, 1200);
  };
  if (navigator.clipboard) pre.append(button);
}
""".replace("ORIGIN", ORIGIN)


def _source_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src {_source_hash(STYLE)}; script-src {_source_hash(SCRIPT)}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def prose(text: str) -> str:
    """Text with ``code`` in backquotes."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def kind(schema: Schema) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{name}">{name}</a>'
    if "enum" in schema:
        return " | ".join(f"<code>{escape(word)}</code>" for word in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(schema['const'])}</code>"
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(kind(part) for part in schema.get("anyOf") or schema["oneOf"])
    if schema.get("type") == "array":
        return f"list of {kind(schema['items'])}"
    if schema.get("type") in ("integer", "number"):
        what = "whole number" if schema["type"] == "integer" else "number"
        low, high = schema.get("minimum"), schema.get("maximum")
        if high is not None and high >= 1 << 53:
            return what + (f" from {_figure(low)}" if low in (0, 1) else "")
        return f"{what} from {_figure(low)} to {_figure(high)}"
    if schema.get("contentEncoding"):
        return "base64"
    return {"string": "text", "boolean": "true or false", "null": "null"}.get(schema.get("type", ""), "any")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _param_row(param: Param) -> str:
    place = param.place + (", required" if param.required else "")
    default = "" if param.default in (None, "") else f" Default: <code>{json.dumps(param.default)}</code>."
    return (
        f"<tr><td><code>{escape(param.name)}</code><small>{place}</small></td><td>{kind(param.shape.reference())}</td>"
        f"<td>{prose(param.text)}{default}</td></tr>"
    )


def _members(schema: Schema) -> str:
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code><small>{'required' if name in required else ''}</small></td>"
        f"<td>{kind(member)}</td><td>{prose(member.get('description', ''))}"
        + (f" Default: <code>{escape(json.dumps(member['default']))}</code>." if "default" in member else "")
        + "</td></tr>"
        for name, member in schema["properties"].items()
    )
    return f'<table class="params">{rows}</table>'


def _shape_text(shape: Shape) -> str:
    schema = shape.schema()
    return (
        f"<p>{kind(shape.reference())}</p>" if shape.name or "properties" not in schema else _members(schema)
    )


def _section(op: Operation) -> str:
    parts = [
        f'<section id="{op.id}"><header><span class="method {op.method}">{op.method}</span>'
        f'<span class="path">{escape(op.path)}</span><h3>{escape(op.summary)}</h3></header><div>',
        f"<p>{prose(op.text)}</p>",
    ]
    if op.example:
        parts.append(
            f'<pre class="curl"><code>{escape(op.example.replace("URL", ORIGIN), quote=False)}</code></pre>'
        )
    if op.params:
        rows = "".join(_param_row(param) for param in op.params)
        parts.append(f'<h4>Parameters</h4><table class="params">{rows}</table>')
    if op.body is not None:
        parts.append(f"<h4>Body</h4><p><code>{op.body.media}</code>: {prose(op.body.text)}</p>")
        if op.body.shape is not None:
            parts.append(_shape_text(op.body.shape))
    rows = ""
    for answer in op.answers:
        what = f" {kind(answer.shape.reference())}" if answer.shape is not None else ""
        extra = "".join(
            f"<small><code>{escape(name)}</code> {prose(text)}</small>"
            for name, text in answer.headers.items()
        )
        rows += f'<tr><td><span class="status ok">{answer.status}</span></td><td>{prose(answer.text)}{what}{extra}</td></tr>'
    errors = " ".join(
        f'<a class="bad" href="#error-{status}">{status}</a>' for status in sorted(set(op.problems))
    )
    rows += f'<tr><td class="soft">errors</td><td class="errors">{errors}</td></tr>'
    parts.append(f'<h4>Answers</h4><table class="answers">{rows}</table></div></section>')
    return "".join(parts)


def _schemas(operations: list[Operation]) -> str:
    parts = ['<h2 id="schemas">Schemas</h2><p>The JSON that goes in and comes out.</p>']
    for name, schema in components(operations).items():
        if "properties" in schema:
            inner = _members(schema)
        elif "oneOf" in schema or "anyOf" in schema:
            inner = f"<p>One of: {kind(schema)}</p>"
        else:
            inner = f"<p>{kind(schema)}</p>"
        text = f"<p>{prose(schema['description'])}</p>" if "description" in schema else ""
        raw = escape(json.dumps(schema, indent=2), quote=False)
        parts.append(
            f'<section id="schema-{name}"><header><span class="path">{name}</span></header><div>{text}{inner}'
            f"<details><summary>JSON Schema</summary><pre><code>{raw}</code></pre></details></div></section>"
        )
    return "".join(parts)


def _errors() -> str:
    rows = "".join(
        f'<tr id="error-{status}"><td><span class="status bad">{status}</span></td><td>{prose(text)}</td></tr>'
        for status, text in PROBLEM_TEXTS.items()
    )
    about = (
        "Every answer that is no success is a problem document, also for paths that do not exist and for what is "
        'not HTTP: <a href="#schema-Problem">Problem</a>. Look at <code>code</code>, never at the text.'
    )
    return f'<h2 id="errors">Errors</h2><p>{about}</p><section><div><table>{rows}</table></div></section>'


def page(operations: Iterable[Operation]) -> str:
    """The whole page."""
    operations = list(operations)
    nav = ['<span class="name">metastore</span> <small>HTTP API</small>']
    body = [f"<h1>metastore HTTP API</h1><p><small>version {escape(version())} · "]
    body.append('<a href="/openapi.json">openapi.json</a></small></p>')
    body += [f"<p>{prose(part)}</p>" for part in INFO.split("\n\n")]
    for tag, text in TAGS.items():
        nav.append(f"<b>{tag}</b>")
        body.append(f'<h2 id="{tag}">{tag}</h2><p>{prose(text)}</p>')
        for op in operations:
            if op.tag == tag:
                nav.append(f'<a href="#{op.id}">{escape(op.summary)}</a>')
                body.append(_section(op))
    nav.append('<b>Beside</b><a href="#errors">Errors</a><a href="#schemas">Schemas</a>')
    body += [_errors(), _schemas(operations)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>metastore HTTP API</title>'
        f'<style>{STYLE}</style></head><body><div class="layout"><nav>{"".join(nav)}</nav>'
        f"<main>{''.join(body)}</main></div><script>{SCRIPT}</script></body></html>"
    )
