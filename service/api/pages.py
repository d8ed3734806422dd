from __future__ import annotations

from collections.abc import Iterable

from service.api.endpoint import ModelEndpoint


def docs_page(endpoints: Iterable[ModelEndpoint]) -> bytes:
    return b""
