"""The work in mosec: two stages in two processes, the second one batched."""

import sys
from typing import Any

import mosec

from scripts.bench.peers.work import BATCH, PATIENCE_S, PORT, make


class Decode(mosec.Worker):
    def __init__(self) -> None:
        super().__init__()
        self.work = make()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> Any:
        return self.work.decode(data)


class Run(mosec.Worker):
    def __init__(self) -> None:
        super().__init__()
        self.work = make()

    def forward(self, data: Any) -> Any:
        return self.work.run(data) if BATCH > 1 else self.work.run([data])[0]

    def serialize(self, data: str) -> bytes:
        return data.encode()


if __name__ == "__main__":
    sys.argv += ["--address", "127.0.0.1", "--port", str(PORT), "--log-level", "warning"]
    sys.argv += ["--timeout", str(PATIENCE_S * 1000)]
    server = mosec.Server()
    server.append_worker(Decode)
    server.append_worker(Run, max_batch_size=BATCH, max_wait_time=1 if BATCH > 1 else 0)
    server.run()
