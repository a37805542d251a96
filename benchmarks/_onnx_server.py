"""What one would write without this library: FastAPI around an ONNX Runtime session.

`python benchmarks/_onnx_server.py ARTEFACT KIND THREADS`, where KIND is "async" (the session runs
in the event loop), "threads" (in FastAPI's pool) or "processes" (as async, in two processes on one
socket, as uvicorn's workers are), prints the port on which it listens. Histories are not padded, so
that it computes no more than it must.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Ask(BaseModel):
    """A request."""

    history: list[str]
    k: int = 10


class Item(BaseModel):
    """An item of an answer."""

    id: str
    score: float


class Answer(BaseModel):
    """An answer."""

    items: list[Item]


def make_app(path: Path, kind: str, threads: int) -> FastAPI:
    """Returns the application over the artefact in `path`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path / "recommend.onnx"), options)
    manifest = json.loads((path / "manifest.json").read_text())
    ids = np.load(path / "item_ids.npy").tolist()
    index = {text: n for n, text in enumerate(ids)}
    fixed = {
        "exclude": np.zeros((1, 1), np.int32),
        "masks": np.ones((1, len(ids)), bool),
        "mask": np.zeros(1, np.int32),
        "mask_seen": np.ones(1, bool),
    }

    def answer(ask: Ask) -> Answer:
        known = [index[text] for text in ask.history if text in index]
        history = np.array([known[-manifest["max_len"] :]], np.int32)
        items, scores = session.run(["items", "scores"], {"history": history, **fixed})
        best = zip(items[0, : ask.k].tolist(), scores[0, : ask.k].tolist(), strict=True)
        return Answer(items=[Item(id=ids[n], score=score) for n, score in best])

    app = FastAPI()
    if kind != "threads":

        @app.post("/v1/recommend")
        async def recommend(ask: Ask) -> Answer:
            return answer(ask)
    else:
        app.post("/v1/recommend")(answer)
    return app


if __name__ == "__main__":
    path, kind, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    sock = uvicorn.Config("", port=0, log_level="error").bind_socket()
    sock.listen()  # who connects before the server runs waits
    print(f"ready: http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
    second = os.fork() if kind == "processes" else 0
    config = uvicorn.Config(make_app(path, kind, threads), access_log=False, log_level="warning")
    try:
        uvicorn.Server(config).run(sockets=[sock])
    finally:
        if second:
            os.kill(second, signal.SIGTERM)
