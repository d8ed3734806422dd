"""The LSTM as a Python backend of Triton: the sequence batcher says whose step each row is, by CORRID.

The states lie in one tensor, a row a sequence, and a batch gathers and scatters its rows.
"""

from __future__ import annotations

import os
import sys

# Triton's Python is the system's, and reads no PYTHONPATH: the packages are in an environment of their own.
sys.path[:0] = os.environ["PEER_PATH"].split(":")

import numpy as np  # noqa: E402  (behind the path, as all of these)
import torch  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402
from lstm import Lstm  # noqa: E402

ROWS = 8192  # sequences there is room for; sequences that end give theirs back


class TritonPythonModel:
    def initialize(self, args):
        self.lstm = Lstm()
        self.h, self.c = self.lstm.zeros(ROWS), self.lstm.zeros(ROWS)
        self.rows: dict[int, int] = {}
        self.free = list(range(ROWS))

    def execute(self, requests):
        # Each request is a batch of one: the batcher never merges sequences into one request.
        xs, rows, ended = [], [], []
        for request in requests:
            xs.append(pb_utils.get_input_tensor_by_name(request, "x").as_numpy())
            key = int(pb_utils.get_input_tensor_by_name(request, "CORRID").as_numpy()[0, 0])
            if pb_utils.get_input_tensor_by_name(request, "START").as_numpy()[0, 0]:
                row = self.rows.get(key)
                if row is None:
                    row = self.rows[key] = self.free.pop()
                self.h[:, row] = 0
                self.c[:, row] = 0
            rows.append(self.rows[key])
            if pb_utils.get_input_tensor_by_name(request, "END").as_numpy()[0, 0]:
                ended.append(key)
        index = torch.tensor(rows)
        y, h, c = self.lstm.step(torch.from_numpy(np.concatenate(xs)), self.h[:, index], self.c[:, index])
        self.h[:, index], self.c[:, index] = h, c
        for key in ended:
            self.free.append(self.rows.pop(key))
        y = y.numpy()
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", y[i : i + 1])]) for i in range(len(requests))
        ]
