#!/opt/cellstate/bin/python -I
"""For HEALTHCHECK: says what is wrong with this container's part, and exits with 1 if something is.

The front door must lead to every model. A worker's Ray must answer, and each replica on it that listens be
ready; a worker may have none.
"""

import http.client
import os
import socket
import ssl
import sys
from pathlib import Path

ROLE = Path("/tmp/cellstate/role")  # noqa: S108 (written by cellstate-node)
RAYLET_PORT = 6380
PATIENCE_S = 4.0


def main() -> int:
    if ROLE.exists() and ROLE.read_text() == "worker":
        wrong = worker()
    else:
        wrong = ready(int(os.environ.get("CELLSTATE_PORT", "8000")))
    print(wrong or "ok")
    return 1 if wrong else 0


def worker() -> str:
    if not listens(RAYLET_PORT):
        return "Ray does not answer"
    first, _, last = os.environ.get("CELLSTATE_DIRECT_PORTS", "8100-8199").partition("-")
    replicas = [port for port in range(int(first), int(last or first) + 1) if listens(port)]
    return "; ".join(filter(None, map(ready, replicas)))


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
    except OSError:
        return False
    return True


def ready(port: int) -> str:
    """What port's /readyz has against it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    if os.environ.get("CELLSTATE_TLS_CERT"):
        # To this container itself, by an address that no certificate names
        unverified = ssl._create_unverified_context()  # noqa: S323 (as said)
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE_S, context=unverified)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        said = response.read(500).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"port {port}: {error}"
    finally:
        connection.close()
    return "" if response.status == http.client.OK else f"port {port}: {response.status} {said}"


if __name__ == "__main__":
    sys.exit(main())
