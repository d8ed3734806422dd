"""The page at /docs: the OpenAPI document as people read it. One file, no request to any other server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from service.api.advice import ADVICE
from service.api.html import STYLE, Html, code, join, prose, table, tag
from service.api.openapi import document, kept
from service.api.operations import example_bodies
from service.api.routes import MODEL, SESSION
from service.api.shapes import fields, kind

Object = dict[str, Any]

#: Puts the address that the page came from into the commands; without it they show this one.
HERE = "http://localhost:8000"
SCRIPT = (
    "if (location.protocol.startsWith('http'))"
    " for (const e of document.querySelectorAll('.here')) e.textContent = location.origin"
)


@kept
def docs_page(models: Sequence[Object]) -> bytes:
    """The page of a process's endpoints."""
    return page(document(models), models).encode()


def page(api: Object, models: Sequence[Object]) -> str:
    """The page of an OpenAPI document and the models (as the schema ModelFacts) that it is about."""
    title = tag("h1", api["info"]["title"], tag("small", "version ", api["info"]["version"]))
    body = tag(
        "main",
        tag("header", title, tag("p", api["info"]["description"], class_="lead")),
        _models(models),
        _quick_start(models),
        _keys(api),
        *_routes(api),
        _stream(api, models),
        _errors(api),
    )
    head = join(
        (
            Html(
                '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            ),
            Html('<link rel="icon" href="data:,">'),
            tag("title", "Cellstate API"),
            Html(f"<style>{STYLE}</style>"),
        )
    )
    script = Html(f"<script>{SCRIPT}</script>")
    shown = tag("body", tag("div", _navigation(api, models), body, class_="page"), script)
    return f"<!doctype html>\n{tag('html', tag('head', head), shown, lang='en')}\n"


def _navigation(api: Object, models: Sequence[Object]) -> Html:
    groups = [("Served models", [(f"model-{m['name']}", m["name"]) for m in models])]
    groups.append(("Quick start", [("quick-start", "with curl"), ("stream", "a stream"), ("keys", "keys")]))
    groups += [(name, [(o["operationId"], o["summary"]) for _, _, o in of]) for name, of in _by_tag(api)]
    groups.append(("Errors", [(name, name) for name in api["x-errors"]]))
    return tag(
        "nav",
        *(
            tag("div", tag("b", name), *(tag("a", label, href=f"#{anchor}") for anchor, label in links))
            for name, links in groups
        ),
        aria_label="Contents",
    )


# The models


def _models(models: Sequence[Object]) -> Html:
    return tag("section", tag("h2", "Served models"), *(_model(model) for model in models), id="models")


def _model(model: Object) -> Html:
    arch = model["architecture"]
    sizes = (
        f"{model['task']} · {arch['num_layers']} × {arch['hidden_size']} units"
        f" · {model['parameters']:,} parameters · version {model['version']}"
    )
    parts = [tag("h3", model["name"]), tag("p", model["description"]), tag("p", sizes, class_="soft")]
    if model["vocabulary"]:
        shown = json.dumps(model["vocabulary"], ensure_ascii=False)[1:-1]
        parts.append(tag("p", f"Takes text of these {len(model['vocabulary'])} characters: ", code(shown)))
        parts.append(tag("p", "Outputs are their log-probabilities for the next step, in this order."))
    for side in ("inputs", "outputs"):
        if model[side]:
            head = (side.capitalize(), "unit", "mean", "deviation")
            rows = [
                (code(s["name"]), s["unit"] or "–", f"{s['mean']:.4g}", f"{s['std']:.4g}")
                for s in model[side]
            ]
            parts.append(table(head, rows))
    if calendar := model.get("calendar"):
        told = f"The last input is the time, of which it reads {', '.join(calendar['features'])}."
        parts.append(tag("p", told))
    if arch["leads"] > 1:
        parts.append(tag("p", f"Sees {arch['leads']} steps ahead at once."))
    parts += _quality(model["quality"])
    return tag("section", *parts, id=f"model-{model['name']}")


def _quality(quality: Object) -> Iterator[Html]:
    figures = quality.get("table")
    if not isinstance(figures, dict) or not all(isinstance(row, dict) for row in figures.values()):
        return
    names = list(dict.fromkeys(name for row in figures.values() for name in row))
    rows = [(row, *(_figure(cells.get(name)) for name in names)) for row, cells in figures.items()]
    part = quality.get("part")
    yield tag("h4", f"Quality on the {part} part of its data" if part else "Quality")
    yield table(("", *names), rows, "figures")


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "" if value is None else str(value)


# What to paste


def _quick_start(models: Sequence[Object]) -> Html:
    parts: list[object] = [tag("h2", "Quick start")]
    for model in models:
        name = model["name"]
        steps, predict = example_bodies("step", model), example_bodies("predict", model)
        url = SESSION.format(model=name, session_id="first") + "/steps"
        again = {key: value for key, value in steps["onward"].items() if key in ("inputs", "text")}
        moved = len(again.get("inputs") or again.get("text", ""))
        parts += [
            tag("h3", name),
            tag("p", prose("Step 0 opens the session. Paste it again: it is a retry, and steps nothing.")),
            _curl(url, steps[""]),
            tag("p", "The next steps, and what the model expects behind them."),
            _curl(url, {"step": moved, **steps["onward"]}),
            tag("p", "A whole sequence, without a session."),
            _curl(MODEL.format(model=name) + "/predict", predict["onward"]),
        ]
    return tag("section", *parts, id="quick-start")


def _curl(path: str, body: Object) -> Html:
    data = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    where = tag("span", HERE, class_="here")
    line = join(("curl ", where, f"{path} \\\n  -H 'Content-Type: application/json' \\\n  -d '{data}'"))
    return tag("pre", tag("code", line))


def _stream(api: Object, models: Sequence[Object]) -> Html:
    stream = api["x-websocket"]
    model = models[0]["name"] if models else "MODEL"
    message = example_bodies("step", models[0])[""] if models else {"step": 0}
    path = stream["path"].format(model=model, session_id="first")
    example = (
        f"const stream = new WebSocket(location.origin.replace('http', 'ws') + {json.dumps(path)})\n"
        "stream.onmessage = event => console.log(JSON.parse(event.data))\n"
        f"stream.onopen = () => stream.send(JSON.stringify({json.dumps(message)}))"
    )
    return tag(
        "section",
        tag("h2", "Stream"),
        tag("div", tag("span", "WS", class_="method get"), code(stream["path"]), class_="route"),
        tag("p", prose(stream["description"])),
        tag("p", "From this page's console:"),
        tag("pre", tag("code", example)),
        id="stream",
    )


def _keys(api: Object) -> Html:
    parts = [
        tag("p", prose(scheme["description"])) for scheme in api["components"]["securitySchemes"].values()
    ]
    header = tag("pre", tag("code", 'curl -H "Authorization: Bearer $KEY" ...'))
    return tag("section", tag("h2", "Keys"), *parts, header, id="keys")


# The routes


def _by_tag(api: Object) -> Iterator[tuple[str, list[tuple[str, str, Object]]]]:
    for entry in api["tags"]:
        of = [
            (path, method, operation)
            for path, item in api["paths"].items()
            for method, operation in item.items()
            if method != "parameters" and entry["name"] in operation["tags"]
        ]
        if of:
            yield entry["name"], of


def _routes(api: Object) -> Iterator[Html]:
    texts = {entry["name"]: entry["description"] for entry in api["tags"]}
    for name, of in _by_tag(api):
        yield tag(
            "section",
            tag("h2", name),
            tag("p", prose(texts[name])),
            *(_operation(api, path, method, operation) for path, method, operation in of),
        )


def _operation(api: Object, path: str, method: str, operation: Object) -> Html:
    badge = tag("span", method.upper(), class_=f"method {method}")
    parts: list[object] = [
        tag("h3", operation["summary"]),
        tag("div", badge, code(path), class_="route"),
        tag("p", prose(operation["description"])),
    ]
    if parameters := api["paths"][path].get("parameters"):
        rows = [(code(p["name"]), prose(p["description"]), kind(p["schema"])) for p in parameters]
        parts += [tag("h4", "In the path"), table(("name", "what", "type"), rows)]
    parts += _body(api, operation)
    parts += [tag("h4", "Replies")]
    good = {status: reply for status, reply in operation["responses"].items() if status < "400"}
    for status, reply in good.items():
        parts.append(tag("p", tag("span", status, class_="status"), " ", prose(reply["description"])))
        for media, content in reply.get("content", {}).items():
            parts.append(fields(api, content["schema"], f"{media}: its fields") or tag("p", code(media)))
    if bad := [(status, r) for status, r in operation["responses"].items() if status not in good]:
        parts += [tag("h4", "Errors"), tag("p", *(_error_links(status, reply) for status, reply in bad))]
    return tag("section", *parts, id=operation["operationId"])


def _error_links(status: str, reply: Object) -> Html:
    (content,) = reply["content"].values()
    links = [tag("a", name, href=f"#{name}") for name in content["examples"]]
    spaced = [part for link in links for part in (link, ", ")][:-1]
    return tag("span", tag("span", status, class_="status"), " ", *spaced, Html("&emsp;"), class_="pair")


def _body(api: Object, operation: Object) -> Iterator[Html]:
    body = operation.get("requestBody")
    if body is None:
        return
    media, content = next(iter(body["content"].items()))
    yield tag("h4", "Body" if body["required"] else "Body, if any")
    yield fields(api, content["schema"]) or tag("p", code(media))
    for name, example in content.get("examples", {}).items():
        shown = json.dumps(example["value"], ensure_ascii=False)
        yield tag("details", tag("summary", f"Example: {name}"), tag("pre", tag("code", shown)))


# The errors


def _errors(api: Object) -> Html:
    intro = (
        "Errors are RFC 9457 `application/problem+json`: `type`, `title`, `status`, `detail`, `code`, and"
        " what helps: `field`, `expected_step`, `retry_after_s`, `limit`. The session is as it was; after"
        " `unavailable` and `moving` the request may have been executed whole, and a retry tells."
    )
    parts = [tag("h2", "Errors"), tag("p", prose(intro))]
    for name, error in api["x-errors"].items():
        happened, do = ADVICE[name]
        close = (
            "the stream stays open" if error["close"] is None else f"closes a stream with {error['close']}"
        )
        parts.append(
            tag(
                "section",
                tag("h3", code(name)),
                tag(
                    "p",
                    tag("span", error["status"], class_="status"),
                    f" {error['title']} · {close}",
                    class_="soft",
                ),
                tag("p", prose(happened)),
                tag("p", tag("b", "Do: "), prose(do)),
                id=name,
            )
        )
    return tag("section", *parts, id="errors")
