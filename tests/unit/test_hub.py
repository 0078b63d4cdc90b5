"""Where the weights of open-vocabulary models come from: folders, the user's cache, the hub."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from worker import models
from worker.models import ModelUnavailable, hub

CPU = torch.device("cpu")
COMMIT = hashlib.sha1(b"of the tests").hexdigest()
REPOSITORY = hub.KINDS["owlv2"].repository


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository's files, with some that nobody should fetch."""
    folder = tiny.owlv2(tmp_path_factory.mktemp("published"))
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Not that of whoever runs the tests."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def copied(published: Path, folder: Path) -> Path:
    return Path(shutil.copytree(published, folder))


# --- where they lie ---


@pytest.mark.parametrize("name", models.OPEN_VOCABULARY)
def test_what_is_missing_is_told_with_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelUnavailable, match=f"mayfly models fetch {name}"):
        models.load(name, CPU, tmp_path, {})
    with pytest.raises(ModelUnavailable, match="nothing is no folder with a model"):
        models.load(name, CPU, tmp_path, {name: tmp_path / "nothing"})
    (info,) = [info for info in models.describe(tmp_path, {}) if info.name == name]
    assert not info.ready
    assert f"MAYFLY_CHECKPOINTS={name}=FOLDER" in str(info.problem)
    monkeypatch.setattr(hub, "find_spec", lambda _: None)
    with pytest.raises(ModelUnavailable, match=r"pip install 'mayfly\[hub\]'"):
        models.load(name, CPU, tmp_path, {})
    with pytest.raises(ModelUnavailable, match=r"pip install 'mayfly\[hub\]'"):
        models.fetch(name, tmp_path)


def test_a_fetched_folder_says_what_it_is_a_copy_of(published: Path, tmp_path: Path) -> None:
    folder = copied(published, tmp_path / "owlv2")
    assert models.load("owlv2", CPU, tmp_path, {}).info.version.startswith("sha256:")
    record = {"repository": REPOSITORY, "revision": "main", "commit": COMMIT}
    (folder / "mayfly-source.json").write_text(json.dumps(record))
    loaded = models.load("owlv2", CPU, tmp_path, {}).info
    assert loaded.version == f"{REPOSITORY}@{COMMIT[:12]}"
    (described,) = [info for info in models.describe(tmp_path, {}) if info.name == "owlv2"]
    assert described == loaded


def test_the_users_cache_is_read_and_ones_own_folder_goes_first(
    published: Path, cache: Path, tmp_path: Path
) -> None:
    place = cache / f"models--{REPOSITORY.replace('/', '--')}"
    copied(published, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    assert models.load("owlv2", CPU, tmp_path, {}).info.version == f"{REPOSITORY}@{COMMIT[:12]}"
    own = models.load("owlv2", CPU, tmp_path, {"owlv2": published})
    assert own.info.version == "sha256:" + own._identity.hex()[:12]  # type: ignore[attr-defined]


# --- what is refused ---


def test_weights_that_could_run_code_are_refused(published: Path, tmp_path: Path) -> None:
    folder = copied(published, tmp_path / "own")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(ModelUnavailable, match="that can be read"):
        models.load("owlv2", CPU, None, {"owlv2": folder})
    (folder / "other.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match="loading them can run code"):
        models.load("owlv2", CPU, None, {"owlv2": folder})


def test_code_that_comes_with_weights_is_not_run(published: Path, tmp_path: Path) -> None:
    """Neither for the model nor for what prepares its input."""
    folder, trace = copied(published, tmp_path / "own"), tmp_path / "trace"
    code = f"open({str(trace)!r}, 'w').close()\nclass Evil: pass\n"
    (folder / "modeling_evil.py").write_text(code)
    evil = "modeling_evil.Evil"
    for file, classes in (
        ("config.json", {"AutoConfig": evil, "AutoModelForZeroShotObjectDetection": evil}),
        ("preprocessor_config.json", {"AutoImageProcessor": evil, "AutoProcessor": evil}),
        ("tokenizer_config.json", {"AutoTokenizer": [evil, evil]}),
    ):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | {"auto_map": classes}))
    assert models.load("owlv2", CPU, None, {"owlv2": folder}).info.ready
    assert not trace.exists()


def test_weights_that_do_not_fit_are_refused(published: Path, tmp_path: Path) -> None:
    """None is made up, and another model's are not taken."""
    folder = copied(published, tmp_path / "own")
    state = load_file(folder / "model.safetensors")
    whole = dict(state)
    del state["box_head.dense2.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelUnavailable, match=r"lacks 1 weights.*box_head.dense2.weight"):
        models.load("owlv2", CPU, None, {"owlv2": folder})
    whole["box_head.dense2.weight"] = torch.zeros(3, 3)
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelUnavailable, match="that can be read"):
        models.load("owlv2", CPU, None, {"owlv2": folder})
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelUnavailable, match="that can be read"):
        models.load("owlv2", CPU, None, {"owlv2": folder})
    with pytest.raises(ModelUnavailable):
        models.load("grounding-dino", CPU, None, {"grounding-dino": published})


# --- fetching ---


class Hub(ThreadingHTTPServer):
    """As much of the hub's interface as its own client asks for, on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), HubHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        files = {path.name: path for path in self.server.folder.iterdir()}
        _, _, after = self.path.partition(f"/{REPOSITORY}/")
        if self.path.startswith(f"/api/models/{REPOSITORY}") and "tree" not in self.path:
            names = [{"rfilename": name} for name in files]
            answer = {"_id": "0", "id": REPOSITORY, "sha": COMMIT, "siblings": names}
            self._send(json.dumps(answer).encode(), "application/json")
        elif f"/tree/{COMMIT}" in self.path:
            entries = [
                {"type": "file", "path": n, "size": p.stat().st_size, "oid": _etag(p)}
                for n, p in files.items()
            ]
            self._send(json.dumps(entries).encode(), "application/json")
        elif after.startswith(f"resolve/{COMMIT}/") and after.split("/")[-1] in files:
            path = files[after.split("/")[-1]]
            self._send(path.read_bytes(), "application/octet-stream", _etag(path))
        else:
            self.send_error(404)

    def _send(self, body: bytes, kind: str, etag: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if etag:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture
def server(published: Path) -> Iterator[Hub]:
    with Hub(published) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def mayfly(folder: Path, endpoint: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "scripts.cli", "models", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "",
            "HF_HUB_DISABLE_XET": "1",
            "MAYFLY_WEIGHTS_DIR": str(folder / "weights"),
        },
    )


def test_fetching_takes_what_is_needed_and_notes_the_commit(
    server: Hub, published: Path, tmp_path: Path
) -> None:
    ran = mayfly(tmp_path, server.url, "fetch", "owlv2", "--revision", "v1")
    assert ran.returncode == 0, ran.stderr
    folder = tmp_path / "weights" / "owlv2"
    assert str(folder) in ran.stdout
    assert any(f"{REPOSITORY}/revision/v1" in path for path in server.asked)
    got = {path.name for path in folder.iterdir() if path.is_file()}
    wanted = {path.name for path in published.iterdir()}
    assert got == wanted - {"pytorch_model.bin", "modeling_evil.py"} | {"mayfly-source.json"}
    record = json.loads((folder / "mayfly-source.json").read_text())
    assert record == {"repository": REPOSITORY, "revision": "v1", "commit": COMMIT}
    assert not any("pytorch_model" in path or "evil" in path for path in server.asked)
    loaded = models.load("owlv2", CPU, tmp_path / "weights", {})
    assert loaded.info.version == f"{REPOSITORY}@{COMMIT[:12]}"
    asked = len(server.asked)
    shown = mayfly(tmp_path, server.url, "list")
    assert len(server.asked) == asked, "listing asks nobody"
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("owlv2")]
    assert "ready" in line
    assert "text, box, point, embedding" in line


def test_where_there_is_no_network_fetching_says_so(tmp_path: Path) -> None:
    ran = mayfly(tmp_path, "http://127.0.0.1:9", "fetch", "grounding-dino")
    assert ran.returncode == 78
    assert "IDEA-Research/grounding-dino-tiny could not be fetched" in ran.stderr
    assert f"copy its folder to {tmp_path}" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_revisions_are_the_hubs_only(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no revisions"):
        models.fetch("ssdlite320_mobilenet_v3_large", tmp_path, "v1")
