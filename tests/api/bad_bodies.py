"""Requests that must be refused, as data: what is sent, and what must come back."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from typing import Any

from tests.api.serving import NARROW, SERIES, TEXT

STEPS = "{session}/steps"
PREDICT = "{model}/predict"
ROW = "[10.0,0.5]"


@dataclass(frozen=True)
class Bad:
    """One request. path: with {session} and {model} for the witness's own. says: a part of the detail.
    place: `field` of the problem; None: it has none."""

    name: str
    body: Any  # bytes and str as they are, everything else as JSON
    status: int
    code: str
    says: str = ""
    place: str | None = None
    path: str = STEPS
    method: str = "POST"
    model: str = SERIES
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes | None:
        if self.body is None or isinstance(self.body, bytes):
            return self.body
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def unread(name: str, body: Any, says: str = "not valid JSON", **more: Any) -> Bad:
    return Bad(name, body, 400, "bad_request", says, **more)


def wrong(name: str, body: Any, place: str, says: str = "", **more: Any) -> Bad:
    return Bad(name, body, 422, "invalid_value", says or place, place, **more)


def number(name: str, value: str, says: str = "inputs[0][1]") -> Bad:
    return wrong(name, f'{{"inputs":[[10.0,{value}]]}}', "inputs[0][1]", says)


NOT_JSON = [
    unread("malformed JSON", '{"inputs":[[10.0,0.5]],}', "trailing comma"),
    unread("truncated JSON", '{"inputs":[[10.0,', "EOF"),
    unread("empty body", b""),
    unread("words", "ten volts"),
    unread("two values", f'{{"inputs":[{ROW}]}} {{"inputs":[{ROW}]}}', "trailing characters"),
    unread("invalid UTF-8", b'{"text":"a\xff"}', model=TEXT),
    unread("UTF-16", json.dumps({"inputs": [[10.0, 0.5]]}).encode("utf-16")),
    unread("byte order mark", b"\xef\xbb\xbf" + f'{{"inputs":[{ROW}]}}'.encode()),
    unread("half a surrogate", '{"text":"\\ud800"}', model=TEXT),
    unread("10000 brackets", "[" * 10_000, "recursion"),
    unread("deeply nested", '{"inputs":' + "[" * 10_000 + "]" * 10_000 + "}", "recursion"),
    unread("a number of 5000 digits", f'{{"inputs":[[10.0,1{"0" * 5000}]]}}', "out of range"),
    unread("gzip without saying so", gzip.compress(f'{{"inputs":[{ROW}]}}'.encode())),
]

NOT_AN_OBJECT = [
    wrong("null", "null", "", "must be an object"),
    wrong("an array", f"[{ROW}]", "", "must be an object"),
    wrong("a string", '"inputs"', "", "must be an object"),
    wrong("a number", "1", "", "must be an object"),
]

NUMBERS = [
    number("NaN", "NaN", "finite"),
    number("Infinity", "Infinity", "finite"),
    number("minus Infinity", "-Infinity", "finite"),
    number("1e999", "1e999", "finite"),
    number("10 to the 400", "1" + "0" * 400, "finite"),
    number("null in a row", "null"),
    number("a string for a number", '"0.5"'),
    number("a boolean for a number", "true"),
    number("a list for a number", "[0.5]"),
    number("an object for a number", "{}"),
    number("1e300", "1e300", "standard deviations"),
    number("beyond a million deviations", "1e6", "amperes"),
]

SHAPES = [
    wrong("a row too short", {"inputs": [[10.0]]}, "inputs[0]", "has 1 numbers, must have 2"),
    wrong("a row too long", {"inputs": [[10.0, 0.5, 1.0]]}, "inputs[0]", "has 3 numbers, must have 2"),
    wrong("ragged rows", {"inputs": [[10.0, 0.5], [10.0]]}, "inputs[1]", "must have 2"),
    wrong("an empty row", {"inputs": [[]]}, "inputs[0]", "has 0 numbers"),
    wrong("no rows", {"inputs": []}, "inputs", "at least one step"),
    wrong("a flat list", {"inputs": [10.0, 0.5]}, "inputs[0]"),
    wrong("a row that is null", {"inputs": [[10.0, 0.5], None]}, "inputs[1]"),
    wrong("inputs as an object", {"inputs": {"volts": 10.0}}, "inputs"),
    wrong("three dimensions", {"inputs": [[[10.0, 0.5]]]}, "inputs[0][0]"),
    wrong("inputs and text", {"inputs": [[10.0, 0.5]], "text": "a"}, "text", "exclude each other"),
    wrong("neither inputs nor text", {"step": 3}, "inputs", "missing"),
    wrong("neither, of a text model", {}, "text", "missing", model=TEXT),
    wrong("text to a series model", {"text": "abc"}, "text", "takes inputs"),
    wrong("inputs to a text model", {"inputs": [[1.0]]}, "inputs", "takes text", model=TEXT),
    wrong("a character not in the vocabulary", {"text": "abz"}, "text[2]", "'z'", model=TEXT),
    wrong("empty text", {"text": ""}, "text", "at least one step", model=TEXT),
    wrong("text as a list", {"text": ["a"]}, "text", model=TEXT),
    Bad("too many steps", {"inputs": [[10, 0.5]] * 201}, 413, "too_large", "most in one request is 200"),
    Bad("too long a text", {"text": "a" * 201}, 413, "too_large", "has 201 steps", model=TEXT),
    Bad(
        "gates of too many steps",
        {"inputs": [[10, 0.5]] * 9, "return": ["gates"]},
        413,
        "too_large",
        "at most 8 steps",
    ),
]

ONE: dict[str, Any] = {"inputs": [[10.0, 0.5]]}
CHARACTER: dict[str, Any] = {"text": "a"}


def option(name: str, place: str, value: Any, says: str = "", model: str = SERIES) -> Bad:
    one = CHARACTER if model == TEXT else ONE
    return wrong(name, {**one, place.split(".")[0]: value}, place, says, model=model)


def sampling(name: str, key: str, value: Any) -> Bad:
    return option(name, f"generate.{key}", {"length": 5, key: value}, model=TEXT)


OPTIONS = [
    option("horizon 0", "horizon", 0),
    option("horizon -1", "horizon", -1),
    option("horizon too large", "horizon", 51, "at most 50"),
    option("horizon 1.5", "horizon", 1.5),
    option("horizon 3.0", "horizon", 3.0),
    option("horizon in a string", "horizon", "3"),
    option("horizon true", "horizon", True),
    option("horizon beyond the leads", "horizon", 4, "sees 3 steps ahead", model=NARROW),
    option("horizon of a text model", "horizon", 3, "use generate", model=TEXT),
    option("generate of a series model", "generate", {"length": 3}, "use horizon"),
    option("generate as a number", "generate", 3, model=TEXT),
    option("generate without length", "generate.length", {}, model=TEXT),
    option("generate with a surplus field", "generate.top_p", {"length": 3, "top_p": 0.9}, model=TEXT),
    sampling("length 0", "length", 0),
    sampling("length too large", "length", 51),
    sampling("length 2.5", "length", 2.5),
    sampling("temperature -1", "temperature", -1),
    sampling("temperature 101", "temperature", 101),
    sampling("temperature in a string", "temperature", "hot"),
    sampling("top_k -1", "top_k", -1),
    sampling("top_k 1.5", "top_k", 1.5),
    sampling("seed -1", "seed", -1),
    sampling("seed 2**63", "seed", 2**63),
    sampling("seed in a string", "seed", "1"),
    option("an unknown field", "horizons", 3, "Extra inputs"),
    option("the Python name of a field", "returns", ["state"], "Extra inputs"),
    wrong("return unknown", {**ONE, "return": ["hidden"]}, "return[0]"),
    option("return as a string", "return", "gates"),
    option("step -1", "step", -1),
    option("step 3.0", "step", 3.0),
    option("step in a string", "step", "3"),
    option("step true", "step", True),
    option("step 2**53", "step", 2**53),
    option("step 2**63", "step", 2**63),
    option("step 10**400", "step", 10**400),
    option("timeout 0", "timeout_ms", 0),
    option("timeout of a day", "timeout_ms", 86_400_000),
    wrong("a step in predict", {**ONE, "step": 0}, "step", "Extra inputs", path=PREDICT),
]

CONFLICTS = [
    Bad("a step ahead", {**ONE, "step": 5}, 409, "step_conflict", "the next step is 3"),
    Bad(
        "a retry with other inputs", {"inputs": [[0, 0]] * 3, "step": 0}, 409, "step_conflict", "other inputs"
    ),
    Bad("a retry partly new", {"inputs": [[10, 0.5]] * 3, "step": 2}, 409, "step_conflict", "partly"),
    Bad(
        "opening what is open",
        {"session_id": "{id}"},
        409,
        "session_exists",
        "open already",
        path="{model}/sessions",
    ),
]


def illegal_id(name: str, written: str) -> Bad:
    path = f"{{model}}/sessions/{written}/steps"
    return wrong(name, ONE, "session_id", "a session id is 1 to 128", path=path)


def nowhere(name: str, path: str, method: str = "GET", body: Any = None, says: str = "there is") -> Bad:
    return Bad(name, body, 404, "not_found", says, path=path, method=method)


PLACES = [
    illegal_id("an empty id", ""),
    illegal_id("an id too long", "a" * 129),
    illegal_id("an id with a space", "a%20b"),
    illegal_id("an id in Greek", "%CE%B1"),
    illegal_id("an id of invalid UTF-8", "%ff"),
    illegal_id("an id with a leading dot", ".hidden"),
    illegal_id("an id with NUL", "a%00b"),
    illegal_id("an id with a line break", "a%0A"),
    illegal_id("an id half encoded", "a%zz"),
    nowhere("an id with a slash", "{model}/sessions/a%2Fb/steps", "POST", ONE),
    nowhere("another model", "/v1/models/nobody/sessions/a/steps", "POST", ONE, "no model 'nobody'"),
    nowhere("another model to predict", "/v1/models/nobody/predict", "POST", ONE, "no model"),
    nowhere("a model named markup", "/v1/models/%3Cb%3E", says="no model '<b>'"),
    nowhere("an unknown path", "/v2/models"),
    nowhere("an unknown leaf", "{session}/stepz", "POST", ONE),
    nowhere("the root", "/"),
    nowhere("a trailing slash", "{session}/steps/", "POST", ONE),
    nowhere("a double slash", "/v1//models"),
    nowhere("a leading double slash", "//v1/models"),
    nowhere("capitals", "/V1/MODELS"),
    Bad("no such session", None, 404, "session_not_found", path="{model}/sessions/nobody", method="GET"),
    Bad(
        "a late step of no session",
        {**ONE, "step": 3},
        404,
        "session_not_found",
        path="{model}/sessions/n/steps",
    ),
]

METHODS = [
    Bad(f"{method} {path}", None, 405, "method_not_allowed", f"{method} is not for", path=path, method=method)
    for method, path in [
        ("GET", STEPS),
        ("PUT", STEPS),
        ("PATCH", "{session}"),
        ("OPTIONS", "{session}"),
        ("POST", "{session}/state"),
        ("DELETE", "/v1/models"),
        ("POST", "/healthz"),
        ("PROPFIND", "/docs"),
    ]
] + [
    Bad("GET the stream", None, 405, "method_not_allowed", "WebSocket", path="{session}/stream", method="GET")
]


def media(name: str, **headers: str) -> Bad:
    written = {key.replace("_", "-"): value for key, value in headers.items()}
    return Bad(name, ONE, 415, "unsupported_media_type", headers=written)


MEDIA = [
    media("a form", content_type="application/x-www-form-urlencoded"),
    media("plain text", content_type="text/plain; charset=utf-8"),
    media("multipart", content_type="multipart/form-data; boundary=x"),
    media("an empty type", content_type=""),
    Bad(
        "gzip",
        gzip.compress(f'{{"inputs":[{ROW}]}}'.encode()),
        415,
        "unsupported_media_type",
        "compressed",
        headers={"content-encoding": "gzip"},
    ),
    Bad("a body too large", b" " * 65_537, 413, "too_large", "larger than 65536 bytes"),
    Bad("a snapshot too large", b" " * 65_537, 413, "too_large", path="{session}/state", method="PUT"),
]

OPENING = [
    wrong(f"opening with {name}", body, place, path="{model}/sessions")
    for name, body, place in [
        ("an illegal id", {"session_id": "a b"}, "session_id"),
        ("an id that ends in a line break", {"session_id": "a\n"}, "session_id"),
        ("a number for an id", {"session_id": 7}, "session_id"),
        ("no time to live", {"ttl_s": 0}, "ttl_s"),
        ("an endless time to live", '{"ttl_s":1e999}', "ttl_s"),
        ("a time to live of ages", {"ttl_s": 1e12}, "ttl_s"),
        ("an unknown durability", {"durability": "forever"}, "durability"),
        ("an unknown field", {"id": "a"}, "id"),
    ]
]

FORKS = [
    Bad("a fork to itself", {"session_id": "{id}"}, 409, "session_exists", path="{session}/fork"),
    Bad("a fork of the past", {"at_step": 1}, 409, "step_conflict", "not kept", path="{session}/fork"),
    Bad("a fork of the future", {"at_step": 9}, 409, "step_conflict", path="{session}/fork"),
    wrong("a fork at step -1", {"at_step": -1}, "at_step", path="{session}/fork"),
    wrong("a fork to an illegal id", {"session_id": "-"}, "session_id", path="{session}/fork"),
    Bad("a fork of nobody", {}, 404, "session_not_found", path="{model}/sessions/nobody/fork"),
]

BULK = [
    wrong("no requests", {"requests": []}, "requests", path="{model}/steps"),
    wrong("requests missing", {}, "requests", path="{model}/steps"),
    wrong("requests as an object", {"requests": {}}, "requests", path="{model}/steps"),
    wrong("a field beside requests", {"requests": [ONE], "step": 1}, "step", path="{model}/steps"),
    unread("bulk cut short", '{"requests":[{"session_id":"a"', path="{model}/steps"),
]

BAD = [
    *(*NOT_JSON, *NOT_AN_OBJECT, *NUMBERS, *SHAPES, *OPTIONS, *CONFLICTS, *PLACES, *METHODS, *MEDIA),
    *(*OPENING, *FORKS, *BULK),
]
