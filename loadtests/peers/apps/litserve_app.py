"""LitServe: its batching, one worker, and a dictionary with a state for each session in that worker."""

import sys
from typing import Any

import litserve
import torch
from fastapi import Request
from lstm import Lstm


class Steps(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.lstm = Lstm()
        self.states: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    # The annotation asks for the plain JSON body; what comes is a dictionary.
    def decode_request(self, request: Request) -> tuple[str, torch.Tensor]:
        return request["session_id"], torch.tensor(request["inputs"])

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def unbatch(self, output: Any) -> Any:
        return output

    def predict(self, x: Any) -> Any:
        rows = [x] if isinstance(x, tuple) else x
        zeros = self.lstm.zeros()
        states = [self.states.get(key) or (zeros, zeros) for key, _ in rows]
        y, h, c = self.lstm.step(
            torch.cat([row for _, row in rows]),
            torch.cat([h for h, _ in states], 1),
            torch.cat([c for _, c in states], 1),
        )
        hs, cs = h.split(1, 1), c.split(1, 1)
        for (key, _), h1, c1 in zip(rows, hs, cs, strict=True):
            # A copy: a view would keep the whole batch's states alive.
            self.states[key] = h1.clone(), c1.clone()
        outputs = y.split(1)
        return outputs[0] if isinstance(x, tuple) else list(outputs)

    def encode_response(self, output: torch.Tensor) -> dict[str, Any]:
        return {"outputs": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(
        # No waiting for a batch: 1 ms of it was slower at every number of connections.
        Steps(max_batch_size=64, batch_timeout=0.0, api_path="/step"),
        accelerator="cpu",
        workers_per_device=1,
    )
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
