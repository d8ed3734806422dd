"""Every setting: its name, default and help. The only reader of the environment.

A setting comes from its flag, else from CELLSTATE_<NAME>, else from its default. A bad value stops the start
with a SettingError that names it.
"""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from service.sessions.retention import Retention
from service.sessions.retention import read as read_retention

ENVIRONMENT_PREFIX = "CELLSTATE_"
SHIPPED_BUNDLES = Path(__file__).parent.parent / "model" / "bundles"


#: How the address of a store begins
STORES = ("memory:", "sqlite:", "redis://", "rediss://", "unix://")


#: The value of `replicas` that is no number
NODES = "nodes"


class SettingError(ValueError):
    """A setting has a value it can't have."""


def setting(
    default: Any,
    help: str,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    hidden: bool = False,
    word: str = "",
) -> Any:
    """hidden: no flag and no row in the README; the environment can set it all the same. word: what a number
    may be replaced by, alone or as `word:...`."""
    return field(
        default=default,
        metadata={"help": help, "choices": choices, "least": least, "hidden": hidden, "word": word},
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """One frozen value for the whole service. Sizes are counts, times are seconds unless the name says ms."""

    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(8000, "port of the front door", least=1)
    direct_ports: str = setting("8100-8199", "range from which each replica takes its own port")
    direct_host: str = setting(
        "", "host name in direct_url, if clients know the replica by another than `host`"
    )
    direct: str = setting(
        "on",
        "off: clients are told no direct_url, because they can't reach the replicas' own ports",
        choices=("on", "off"),
    )
    address: str = setting("", "Ray cluster to deploy to (auto, or ray://host:port); none: one of its own")
    models: str = setting(
        str(SHIPPED_BUNDLES),
        "directory of bundles to serve (or one bundle), or several with : between; a name may have versions",
    )
    replicas: int | str = setting(
        1,
        "replicas of each model: a number, `nodes` (one on each node of the Ray cluster, also of those that"
        " come later) or `nodes:RESOURCE` (on those with that custom resource); more than one needs a shared"
        " store",
        least=1,
        word=NODES,
    )
    max_replicas: int = setting(
        0,
        "most replicas of each model, as many as its load needs, `replicas` the least; 0: no autoscaling",
        least=0,
    )
    target_occupancy: float = setting(
        0.6,
        "share of its time (or room) in which each replica is to be busy, when they are scaled",
        least=0.05,
    )
    scale_out_s: float = setting(20.0, "seconds that the load is too much before replicas are added", least=0)
    scale_in_s: float = setting(300.0, "seconds that it is too little before any is stopped", least=0)
    device: str = setting("auto", "where the state lives: auto, cpu, cuda or cuda:N")
    num_gpus: float = setting(1.0, "share of a GPU each replica takes, where there is one", least=0)
    num_cpus: float = setting(
        0.0, "CPUs of the Ray cluster that each replica takes from others; 0: they are not counted", least=0
    )
    precision: str = setting(
        "bf16",
        "what the weights are kept in: fp32, bf16 or int8; sums, gates and states are float32 in all",
        choices=("fp32", "bf16", "int8"),
    )
    threads: int = setting(1, "threads of tensor arithmetic in each replica on a CPU", least=1)
    store: str = setting(
        "sqlite:",
        "where sessions are kept: sqlite:PATH (no path: cellstate/sessions.db below $XDG_STATE_HOME),"
        " redis://HOST:PORT/DATABASE or memory:",
    )
    durability: str = setting(
        "auto",
        "of a session that asks for none itself: none, journal or fsync; auto: journal if the store can",
        choices=("auto", "none", "journal", "fsync"),
    )
    lease_s: float = setting(
        5.0, "seconds after which the sessions of a replica that is silent may be taken over", least=0.5
    )
    history: str = setting(
        "256",
        "how much of a session's past it can be forked at or rewound to: steps (256) or a time (2h), and for"
        " some models another (256,ett=7d)",
    )
    upgrade: str = setting(
        "replay",
        "what becomes of live sessions with a new version of their model: pin, replay or reset",
        choices=("pin", "replay", "reset"),
    )
    unsafe: str = setting(
        "",
        "never set this: switches off the fence or the window, to test the tests",
        choices=("", "fence", "window"),
        hidden=True,
    )
    max_sessions: int = setting(2_000_000, "most open sessions of a model, for each replica", least=1)
    slots: int = setting(4096, "of these: states resident on the device, for each replica", least=3)
    host_sessions: int = setting(
        1_000_000, "and states in host memory; those beyond are parked in the store", least=0
    )
    ttl_s: float = setting(86400.0, "idle seconds after which a session ends", least=0.001)
    replay_window: int = setting(256, "newest steps of a session that a retry is answered from", least=1)
    max_batch: int = setting(256, "most sessions in one tick", least=1)
    tick_ms: float = setting(
        0.2,
        "a tick of long requests is made so small that it takes no longer, while short ones come",
        least=0.01,
    )
    quantum: int = setting(512, "most steps of one request in one tick, however short it is", least=1)
    tick_steps: int = setting(2048, "most steps of all requests in one tick together", least=1)
    max_requests: int = setting(
        512,
        "HTTP requests at once in a replica before 429, from the front door and on its own port each",
        least=2,
    )
    max_wait_ms: float = setting(
        2000.0, "longest that a request of several steps may have to wait for others before 429", least=0
    )
    max_queue: int = setting(
        8192, "requests waiting in a replica before 429, those of bulk bodies and streams included", least=1
    )
    max_connections: int = setting(10_000, "connections to a replica's own port, streams included", least=1)
    request_timeout_s: float = setting(60.0, "seconds that a request may take to arrive", least=1)
    max_body_bytes: int = setting(
        8 * 1024 * 1024, "largest body of a request, and largest stream message", least=1024
    )
    max_steps: int = setting(10_000, "most steps in one request", least=1)
    max_horizon: int = setting(1_000, "most steps of a horizon or of generated text", least=1)
    max_traced_steps: int = setting(256, "most steps of one request that asks for gates", least=1)
    keys: str = setting(
        "", "file of keys, made by `cellstate keys add`; none: no keys, everybody may do everything"
    )
    tls_cert: str = setting("", "PEM file of a certificate with its chain: all is HTTPS then")
    tls_key: str = setting("", "PEM file of its private key")
    tls_ca: str = setting(
        "", "PEM file of the authorities that replicas know each other by; none: those of the system"
    )
    drain_s: float = setting(10.0, "seconds that running requests get to end at a stop", least=0)
    log_level: str = setting(
        "info", "least level that is logged", choices=("debug", "info", "warning", "error")
    )
    log_format: str = setting(
        "auto",
        "lines of the log, on stderr: text or json; auto: text on a terminal, else json",
        choices=("auto", "text", "json"),
    )
    access_log: str = setting("off", "a line for every request: on or off", choices=("off", "on"))
    slow_ms: float = setting(1000.0, "a request that took longer is logged; 0: none is", least=0)
    traces: str = setting(
        "", "OTLP/HTTP endpoint that OpenTelemetry traces go to, such as http://127.0.0.1:4318; none: off"
    )
    trace_ratio: float = setting(
        1.0, "share of the requests that are traced, of those that do not say it themselves", least=0
    )
    log_to: str = setting("", "socket of the `cellstate serve` that shows this process's log", hidden=True)

    def __post_init__(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise SettingError("tls_cert: a certificate and its key, tls_key, go together")
        for f in fields(self):
            check(f, getattr(self, f.name))
        direct_port_range(self)
        retention(self, "")
        if not self.store.startswith(STORES):
            raise SettingError(f"store: {self.store!r} is not known; there are {', '.join(STORES)}")
        if self.store == "memory:" and self.durability in ("journal", "fsync"):
            raise SettingError(f"durability: memory: keeps nothing; {self.durability} needs another store")
        if self.trace_ratio > 1:
            raise SettingError(f"trace_ratio: must be at most 1, not {self.trace_ratio!r}")
        if self.traces and not self.traces.startswith(("http://", "https://")):
            raise SettingError(f"traces: must be the URL of an OTLP/HTTP endpoint, not {self.traces!r}")
        if self.address and self.store.startswith("sqlite:"):
            raise SettingError(
                "store: sqlite: is for one machine; on a cluster (--address) give a redis:// that all of it"
                " reaches, or memory: with one replica"
            )
        if self.replicas != 1 and self.store == "memory:":
            raise SettingError(
                "replicas: more than 1 needs a store that replicas share; memory: is one replica's own"
            )
        self._check_scale()

    def _check_scale(self) -> None:
        if self.target_occupancy > 1:
            raise SettingError(f"target_occupancy: is a share, at most 1, not {self.target_occupancy:g}")
        if self.max_replicas and self.store == "memory:":
            raise SettingError(
                "max_replicas: needs a store that replicas share; memory: is one replica's own"
            )
        if self.max_replicas and self.on_each_node:
            raise SettingError(
                "max_replicas: with replicas: nodes, the nodes are what decides; leave one of them"
            )
        if self.max_replicas and isinstance(self.replicas, int) and self.max_replicas < self.replicas:
            raise SettingError(
                f"max_replicas: must be at least replicas, {self.replicas}, not {self.max_replicas}"
            )
        if self.on_each_node and self.store.startswith("sqlite:"):
            raise SettingError(
                "replicas: nodes needs a redis:// store, which all nodes reach; sqlite: is a file"
            )
        if self.replicas == f"{NODES}:":
            raise SettingError(
                "replicas: nodes:RESOURCE names a custom resource of Ray's; nodes means all nodes"
            )

    @property
    def on_each_node(self) -> bool:
        """Whether there is to be one replica for each node."""
        return isinstance(self.replicas, str)

    @property
    def node_resource(self) -> str:
        """Of those nodes: the custom resource that they carry; "" if it is all nodes."""
        return str(self.replicas).partition(":")[2] if self.on_each_node else ""

    @property
    def store_address(self) -> str:
        """The store with its path, which is made if it is the default."""
        if self.store != "sqlite:":
            return self.store
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        directory = Path(state) / "cellstate"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return f"sqlite:{directory / 'sessions.db'}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it. A name but localhost counts as reachable."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def url(self) -> str:
        """Where this machine reaches the front door."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 (compared)
        return (
            f"{self.scheme}://[{host}]:{self.port}" if ":" in host else f"{self.scheme}://{host}:{self.port}"
        )

    @property
    def scheme(self) -> str:
        return "https" if self.tls_cert else "http"


def shown() -> list[Field[Any]]:
    """The settings that people are told of."""
    return [f for f in fields(Settings) if not f.metadata["hidden"]]


def check(f: Field[Any], value: Any) -> None:
    """Raises SettingError unless the value fits the setting's choices and bounds."""
    choices, least = f.metadata["choices"], f.metadata["least"]
    if isinstance(value, str) and f.metadata["word"]:
        if value.partition(":")[0] != f.metadata["word"]:
            raise SettingError(f"{f.name}: {value!r} is not a whole number or {f.metadata['word']}")
        return
    if choices and value not in choices:
        raise SettingError(f"{f.name}: {value!r} is not one of {', '.join(choices)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError(f"{f.name}: must be finite, not {value!r}")
    if least is not None and value < least:
        raise SettingError(f"{f.name}: must be at least {least}, not {value!r}")


def direct_port_range(settings: Settings) -> range:
    """The ports a replica may take for itself."""
    first, _, last = settings.direct_ports.partition("-")
    try:
        ports = range(int(first), int(last or first) + 1)
    except ValueError:
        ports = range(0)
    if not ports or ports[0] < 1 or ports[-1] > 65535:
        raise SettingError(f"direct_ports: must be a range such as 8100-8199, not {settings.direct_ports!r}")
    return ports


def retention(settings: Settings, model: str) -> Retention:
    """How much of the past of a model's sessions is kept."""
    try:
        return read_retention(settings.history, model)
    except ValueError as error:
        raise SettingError(f"history: {error}") from error


def parse(f: Field[Any], text: str) -> Any:
    """A setting's value from its text, by the type of its default."""
    if isinstance(f.default, str) or (f.metadata["word"] and text.startswith(f.metadata["word"])):
        return text
    kind, noun = (int, "a whole number") if isinstance(f.default, int) else (float, "a number")
    if f.metadata["word"]:
        noun += f" or {f.metadata['word']}"
    try:
        return kind(text)
    except ValueError as error:
        raise SettingError(f"{f.name}: {text!r} is not {noun}") from error


def one(name: str, environment: Mapping[str, str] | None = None) -> Any:
    """A single setting from the environment, or its default. Raises SettingError."""
    environment = os.environ if environment is None else environment
    f = next(f for f in fields(Settings) if f.name == name)
    text = environment.get(ENVIRONMENT_PREFIX + name.upper())
    value = f.default if text is None else parse(f, text)
    check(f, value)
    return value


def settings_table() -> str:
    """The settings as the README shows them: a Markdown table."""
    rows = ["| setting | default | what it is |", "| --- | --- | --- |"]
    for f in shown():
        default = "the shipped ones" if f.name == "models" else f"`{f.default}`" if f.default != "" else ""
        rows.append(f"| `{f.name}` | {default} | {f.metadata['help']} |")
    return "\n".join(rows)


def read(flags: Mapping[str, str | None], environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from flags (by name; None is not given), else the environment, else defaults.

    An unknown CELLSTATE_ variable is an error: a misspelt setting must not pass for a set one.
    """
    environment = os.environ if environment is None else environment
    known = {f.name: f for f in fields(Settings)}
    for name in environment:
        if name.startswith(ENVIRONMENT_PREFIX) and name[len(ENVIRONMENT_PREFIX) :].lower() not in known:
            raise SettingError(f"{name}: no such setting")
    values: dict[str, Any] = {}
    for name, f in known.items():
        text = flags.get(name)
        if text is None:
            text = environment.get(ENVIRONMENT_PREFIX + name.upper())
        if text is not None:
            values[name] = parse(f, text)
    return Settings(**values)
