"""Ray Serve: `@serve.batch`, and each session's h and c in Redis, where every replica finds them."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np
import ray
import torch
from lstm import Lstm
from ray import serve
from ray.serve.schema import LoggingConfig
from redis.asyncio import Redis
from starlette.requests import Request

TUNED = os.environ.get("PEER_TUNED") == "1"
OPTIONS: dict[str, Any] = {"max_ongoing_requests": 1024} if TUNED else {}


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 1}, **OPTIONS)
class Steps:
    def __init__(self) -> None:
        self.lstm = Lstm()
        self.redis = Redis.from_url(os.environ["PEER_REDIS"])

    async def __call__(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        return {"outputs": await self.step((body["session_id"], body["inputs"][0]))}

    # One batch at a time: two at once could read one session's state and both write it.
    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.0, max_concurrent_batches=1)
    async def step(self, rows: list[tuple[str, list[float]]]) -> list[list[list[float]]]:
        keys = [key for key, _ in rows]
        shape = (2, self.lstm.layers, 1, self.lstm.hidden)
        zeros = np.zeros(shape, np.float32)
        found = await self.redis.mget(keys)
        state = np.concatenate(
            [zeros if one is None else np.frombuffer(one, np.float32).reshape(shape) for one in found], 2
        )
        h, c = torch.from_numpy(state)
        y, h, c = self.lstm.step(torch.tensor([x for _, x in rows]), h, c)
        new = torch.stack([h, c]).numpy()
        await self.redis.mset({key: new[:, :, i : i + 1].tobytes() for i, key in enumerate(keys)})
        return [[row] for row in y.tolist()]


if __name__ == "__main__":
    port, scratch = sys.argv[1:]
    # More processors than there are, for Ray's own count: nothing waits for one.
    ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=5, _temp_dir=scratch)
    if TUNED:
        serve.start(
            http_options={"host": "127.0.0.1", "port": int(port)},
            logging_config=LoggingConfig(enable_access_log=False),
        )
    else:
        serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    serve.run(Steps.bind(), route_prefix="/")  # type: ignore[attr-defined]  # made by its decorator
    print("ready", flush=True)
    while True:  # until it is killed, and Ray's processes with it
        time.sleep(60)
