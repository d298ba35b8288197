"""`quarterarc push`, against a local stand-in of the hub's interface."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import quarterarc as qa
from conftest import Cli
from quarterarc.sharing.hub import push

hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")


class StandIn:
    """Answers the creation of a repository, and keeps what is uploaded to it."""

    def __init__(self) -> None:
        self.status = 200
        self.created: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        self.uploaded: dict[str, set[str]] = {}
        self.messages: list[str] = []


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    kept = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            kept.created.append(request)
            kept.tokens.append(self.headers["Authorization"])
            name = f"{request.get('organization', 'me')}/{request['name']}"
            answer = json.dumps({"url": f"https://huggingface.co/{name}", "error": "no"}).encode()
            self.send_response(kept.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: Any) -> None: ...

    def upload_folder(self: Any, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        kept.uploaded[repo_id] = {str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*")}
        kept.messages.append(commit_message)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield kept
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_run_is_uploaded_with_its_card(tiny_run: Path, stand_in: StandIn, cli: Cli) -> None:
    words = ("push", tiny_run, "me/digits", "--format", "safetensors", "--samples", 1, "--device", "cpu", "--private")
    done = cli(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("uploaded: ")
    assert done.stdout.strip().endswith("me/digits")
    (created,) = stand_in.created
    assert (created["organization"], created["name"]) == ("me", "digits")
    assert "private" in json.dumps(created)
    assert stand_in.tokens == ["Bearer hf_secret"]
    names = {"README.md", "config.json", "mean.safetensors", "model.safetensors", "quarterarc.json", "samples.png"}
    assert stand_in.uploaded == {"me/digits": names}


def test_an_export_is_uploaded_as_it_is(tiny_run: Path, stand_in: StandIn, tmp_path: Path) -> None:
    out = qa.export(tiny_run, tmp_path / "out", format="safetensors", samples=0, device="cpu")
    (out / "README.md").write_text("my own words")
    qa.push(out, "me/digits", token="hf_other", message="First")
    assert stand_in.tokens == ["Bearer hf_other"]
    assert stand_in.messages == ["First"]
    assert stand_in.uploaded["me/digits"] == {
        "README.md",
        "config.json",
        "mean.safetensors",
        "model.safetensors",
        "quarterarc.json",
    }
    assert (out / "README.md").read_text() == "my own words"


@pytest.mark.parametrize(("status", "message"), [(401, "the token is not valid, or may not"), (500, "does not accept")])
def test_what_the_hub_does_not_accept_is_one_line(
    status: int, message: str, tiny_run: Path, stand_in: StandIn, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.status = status
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of retries
    out = qa.export(tiny_run, "out", format="safetensors", samples=0, device="cpu")
    wrong = cli("push", out, "me/digits")
    assert wrong.returncode == 2
    assert f"the hub does not accept the upload to me/digits{': ' if status == 401 else ''}" in wrong.stderr
    assert message in wrong.stderr
    assert wrong.stderr.splitlines()[-1].startswith("quarterarc: error: ")
    assert "hf_secret" not in wrong.stderr
    assert not stand_in.uploaded


def test_without_a_network_a_token_or_a_name_nothing_is_uploaded(
    tiny_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = cli("push", tiny_run, "digits")
    assert (wrong.returncode, wrong.stderr) == (
        2, "quarterarc: error: a repository of the hub is named OWNER/NAME, got 'digits'\n",
    )  # fmt: skip
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(
        qa.InputError, match=r"needs a token of huggingface.co: log in with `hf auth login`, or set HF_TO"
    ):
        push(tiny_run, "me/digits")
    out = qa.export(tiny_run, "out", format="safetensors", samples=0, device="cpu")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    with pytest.raises(qa.InputError, match=r"me/digits cannot be uploaded \(ConnectError: .* run the same command"):
        push(out, "me/digits", token="hf_secret")
