"""The work in LitServe, as its documentation serves images: base64 in JSON, batched."""

import base64
from typing import Any

import litserve
from fastapi import Request, Response

from scripts.bench.peers.work import BATCH, PATIENCE_S, PORT, make


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.work = make()

    def decode_request(self, request: Request) -> Any:  # which LitServe has read already
        return self.work.decode(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, inputs: Any) -> Any:
        return self.work.run(inputs) if BATCH > 1 else self.work.run([inputs])[0]

    def unbatch(self, output: list[str]) -> list[str]:
        return output

    def encode_response(self, output: str) -> Response:
        return Response(output, media_type="application/json")


if __name__ == "__main__":
    api = Api(max_batch_size=BATCH, batch_timeout=0.001 if BATCH > 1 else 0.0)
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=True, timeout=PATIENCE_S)
    server.run(host="127.0.0.1", port=PORT, log_level="warning", generate_client_file=False)
