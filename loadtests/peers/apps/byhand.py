"""What people write first: FastAPI, a torch.nn.LSTM, and a dictionary with a state for each session."""

from __future__ import annotations

import torch
from fastapi import FastAPI
from lstm import Lstm
from pydantic import BaseModel

app = FastAPI()
model = Lstm(few=0)  # nn.LSTM, as one would
states: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}


class Step(BaseModel):
    inputs: list[list[float]]


@app.post("/sessions/{session_id}/steps")
async def step(session_id: str, body: Step) -> dict[str, list[list[float]]]:
    # On the loop, not in a thread: a thread a request would cost more than the step, and need a lock.
    h, c = states.get(session_id) or (model.zeros(), model.zeros())
    y, h, c = model.step(torch.tensor(body.inputs), h, c)
    states[session_id] = h, c
    return {"outputs": y.tolist()}


@app.get("/ready")
async def ready() -> dict[str, str]:
    return {}
