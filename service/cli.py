"""The command: `cellstate serve` and `bench`, and the model side's train, evaluate, inspect and explain."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service import keys_command
from service.settings import SettingError, Settings, read, shown

if TYPE_CHECKING:
    from service.launch import Found

#: Settings that are files
FILES = ("keys", "tls_cert", "tls_key", "tls_ca")

SERVE_EPILOG = """\
Each setting may also come from the environment, as CELLSTATE_ and its name in capitals: CELLSTATE_PORT=8080.
Exit code: 0 after a stop by Ctrl-C or SIGTERM, 2 when the service can't start as asked, 1 when it failed.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    args = parser().parse_args(arguments)
    try:
        code = args.func(args)
    except KeyboardInterrupt:
        return 130
    return int(code or 0)


def parser() -> argparse.ArgumentParser:
    """Every command with its flags."""
    from model.commands import register
    from service.bench.command import register as register_bench

    top = argparse.ArgumentParser(
        prog="cellstate", description="Serves a PyTorch LSTM together with its memory: sessions over HTTP."
    )
    top.add_argument("--version", action="version", version=f"cellstate {_version()}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve = commands.add_parser(
        "serve",
        help="serve models over HTTP",
        description="Serves models over HTTP, on Ray Serve, until Ctrl-C.",
        epilog=SERVE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.set_defaults(func=run_serve)
    serve.add_argument("--local", action="store_true", help="all models in this process, without Ray")
    settings = serve.add_argument_group("settings")
    for f in shown():
        kind = "TEXT" if isinstance(f.default, str) else "N"
        default = f" (default: {f.default})" if f.default != "" else ""
        settings.add_argument(
            f"--{f.name.replace('_', '-')}",
            dest=f.name,
            metavar=kind,
            help=(f.metadata["help"] + default).replace("%", "%%"),
        )
    _add_deploy(commands)
    keys_command.register(commands)
    register(commands)
    _add_precision(commands.choices["evaluate"])
    register_bench(commands)
    return top


def _add_deploy(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    deploy = commands.add_parser(
        "deploy",
        help="give a running service a new version of a model",
        description="Gives a service that runs new versions of its models: new sessions go to the newest,"
        " live ones go by the service's setting `upgrade`. The bundles must stay where they are.",
    )
    deploy.set_defaults(func=run_deploy)
    deploy.add_argument("bundles", metavar="BUNDLE", nargs="+", type=Path, help="directory of a bundle")
    where = deploy.add_mutually_exclusive_group()
    where.add_argument("--port", help="door of a `cellstate serve` on this machine (default: 8000)")
    where.add_argument("--address", default="", help="the Ray cluster that was deployed to")


def run_deploy(args: argparse.Namespace) -> int:
    """`cellstate deploy`."""
    try:
        settings = read({"port": args.port})
    except SettingError as error:
        print(f"cellstate: {error}", file=sys.stderr)
        return 2
    from service import deploying

    return deploying.main(
        args.bundles, settings.port, args.address or ("" if args.port else settings.address)
    )


def _add_precision(evaluate: argparse.ArgumentParser) -> None:
    """The engine's part of `evaluate`: the model's side knows no precision but its own."""
    from model.commands import guarded
    from service.bench.options import PRECISIONS  # without torch

    evaluate.add_argument(
        "--precision",
        choices=(*PRECISIONS, "all"),
        help="measure the bundle as the engine serves it in this precision, beside the float32 network; "
        "the tolerance, if given, is then between the two",
    )
    of_the_model = evaluate.get_default("func")

    def run(args: argparse.Namespace) -> int:
        if args.precision is None:
            return int(of_the_model(args))
        from service.precision import command

        return guarded(command)(args)

    evaluate.set_defaults(func=run)


def _version() -> str:
    try:
        return version("cellstate")
    except PackageNotFoundError:
        return "(not installed)"


def run_serve(args: argparse.Namespace) -> int:
    """`cellstate serve`: on a Ray of its own, on a given one, or in this process."""
    try:
        settings = read({f.name: getattr(args, f.name) for f in shown()})
    except SettingError as error:
        print(f"cellstate: {error}", file=sys.stderr)
        return 2
    settings = replace(
        settings,
        models=os.pathsep.join(str(Path(p).absolute()) for p in settings.models.split(os.pathsep)),
        **_absolute(settings),
    )
    try:
        _check_keys(settings)
    except ValueError as error:
        print(f"cellstate: {error}", file=sys.stderr)
        return 2
    if args.local:
        return _serve_local(settings)
    if settings.address:
        return _serve_on_cluster(settings)
    # Neither torch nor Ray in this process: it must answer a signal at once, whatever they do below.
    from service import supervisor

    return supervisor.supervise(lambda directory: supervisor.launch(settings, directory))


def _absolute(settings: Settings) -> dict[str, Any]:
    """The settings that are files, wherever the processes that read them are."""
    return {name: str(Path(path).absolute()) for name in FILES if (path := getattr(settings, name))}


def _check_keys(settings: Settings) -> None:
    """Raises KeysError or SettingError for a file that can't be used; warns of a service that is open to
    everybody, and of one where keys are sent in the clear."""
    if settings.tls_cert or settings.tls_ca:
        from service import certificates

        certificates.check(settings)
    if settings.keys:
        from service.keys import load

        load(Path(settings.keys))
        if not settings.loopback and not settings.tls_cert:
            print(
                f"cellstate: warning: keys go over the network in the clear on {settings.host}, unless"
                " something before this service ends TLS (the settings `tls_cert` and `tls_key`)",
                file=sys.stderr,
            )
    elif not settings.loopback:
        print(
            f"cellstate: warning: {settings.host} is reachable from outside and there are no keys: everybody"
            " there may use every session (`cellstate keys add`, and the setting `keys`)",
            file=sys.stderr,
        )


def _serve_local(settings: Settings) -> int:
    from service import launch, logs

    logs.configure(settings.log_level, settings.log_format)
    try:
        launch.check_port(settings)
        launch.check_traces(settings)
        served = launch.bundles(settings)
    except launch.Refused as error:
        print(f"cellstate: {error}", file=sys.stderr)
        return 2
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_local(settings, served))
    return 0


async def _local(settings: Settings, served: Found) -> None:
    from service import launch, listener
    from service.wiring import build

    loop = asyncio.get_running_loop()
    began, stop = loop.time(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, _ask, stop)
    application = build(settings, [path for paths in launch.paths(served).values() for path in paths])
    socket = listener.bind(settings.host, [settings.port])
    if settings.store != "memory:":
        application.direct_url = listener.url(socket, settings.direct_host or settings.host, settings.scheme)
    await application.startup()
    server = listener.Listener(
        application, socket, settings, application.requests.refused, application.expect
    )
    server.open()
    print(launch.banner(settings, served, loop.time() - began), flush=True)
    await stop.wait()
    await application.shutdown()
    await server.close()


def _ask(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(130)  # asked twice: now
    print("\nstopping: running requests may end (again to stop at once)", file=sys.stderr, flush=True)
    stop.set()


def _serve_on_cluster(settings: Settings) -> int:
    from service import deployments, launch

    try:
        served = launch.bundles(settings)
        deployments.connect(settings.address)
        deployments.deploy(settings, launch.paths(served))
    except (launch.Refused, ConnectionError, RuntimeError) as error:
        print(f"cellstate: {error}", file=sys.stderr)
        return 2
    print(f"deployed to {settings.address}: {', '.join(served)}; Ray goes on running them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
