"""gRPC streams to Triton, each with a sequence of its own: prints the time of every step.

    python streams.py HOST:PORT STREAMS SECONDS PREFIX

Prints one line of JSON: microseconds of each step, and how many replies were errors. The requests are made
once and sent as bytes, and replies are not parsed beyond their length: the cheapest client that Python has.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"


def request(sequence: int, start: bool) -> bytes:
    message = service_pb2.ModelInferRequest(model_name="lstm")
    message.parameters["sequence_id"].int64_param = sequence
    if start:
        message.parameters["sequence_start"].bool_param = True
    x = message.inputs.add(name="x", datatype="FP32", shape=[1, 8])
    assert x is not None
    message.raw_input_contents.append(struct.pack("8f", *(0.1 * i for i in range(8))))
    return bytes(message.SerializeToString())


async def run(address: str, streams: int, seconds: float, prefix: str) -> tuple[list[int], int]:
    times: list[int] = []
    errors = 0
    opened = asyncio.Barrier(streams)
    options = [("grpc.use_local_subchannel_pool", 1)]

    async def one(number: int) -> None:
        nonlocal errors
        sequence = int(f"{prefix}{number}")
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            call: Any = channel.stream_stream(METHOD)()
            await call.write(request(sequence, start=True))
            reply = service_pb2.ModelStreamInferResponse.FromString(await call.read())
            if reply.error_message:
                raise SystemExit(reply.error_message)
            good = len(reply.SerializeToString())
            await opened.wait()
            message = request(sequence, start=False)
            until = time.perf_counter() + seconds
            while (began := time.perf_counter()) < until:
                await call.write(message)
                reply = await call.read()
                times.append(round(1e6 * (time.perf_counter() - began)))
                errors += len(reply) < good // 2  # an error has no outputs
            await call.done_writing()

    await asyncio.gather(*(one(number) for number in range(streams)))
    return times, errors


def main() -> None:
    address, streams, seconds, prefix = sys.argv[1:]
    times, errors = asyncio.run(run(address, int(streams), float(seconds), prefix))
    print(json.dumps({"us": times, "errors": errors}))


if __name__ == "__main__":
    main()
