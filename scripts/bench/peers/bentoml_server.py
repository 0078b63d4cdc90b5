"""The work in BentoML: files in a form, adaptive batching."""

from pathlib import Path

import bentoml

from scripts.bench.peers.work import BATCH, PATIENCE_S, make

_BATCHED = {"batchable": True, "max_batch_size": BATCH, "max_latency_ms": PATIENCE_S * 1000}


@bentoml.service(
    workers=1,
    traffic={"timeout": PATIENCE_S, "concurrency": 256},
    logging={"access": {"enabled": False}},
)
class Peer:
    def __init__(self) -> None:
        self.work = make()

    @bentoml.api(route="/annotate", **(_BATCHED if BATCH > 1 else {}))
    def annotate(self, images: list[Path]) -> list[str]:
        return self.work.run([self.work.decode(path.read_bytes()) for path in images])
