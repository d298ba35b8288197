"""The page to play with: images as of `sample`, bounds, nothing else is served; and a visit in a browser."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import quarterarc as qa
from browser import CHROMIUM, Browser
from conftest import TINY, Cli
from quarterarc.app import html, server
from quarterarc.app.guard import LARGEST_BODY, Guard
from quarterarc.app.page import QUEUE
from quarterarc.app.pictures import decode_mask, decode_picture
from quarterarc.app.player import MOST_IMAGES, MOST_POINTS, MOST_STEPS, Player, Settings
from quarterarc.cli import main
from quarterarc.storage.pictures import read_png
from quarterarc.training.api import train
from quarterarc.training.recipe_text import read_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with classes, trained with some labels dropped."""
    path = tmp_path_factory.mktemp("app") / "labelled"
    train(read_recipe("digits", (*TINY, "data.labels=true", "training.steps=2")), path, progress=False)
    return path


@pytest.fixture(scope="module")
def player(run: Path) -> Player:
    return server.player_of(run, "cpu")


# the images and the trajectory


@pytest.mark.parametrize("values", [(3, 2, 5, "multistep"), (7, 1, 3, "ddpm", 4), (0, 3, 2, "ddim", 2, 2.5)])
def test_images_are_those_of_the_command_that_the_page_shows(
    player: Player, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: tuple[Any, ...]
) -> None:
    settings = player.settings(*values)
    program, *words = shlex.split(settings.command)
    assert program == "quarterarc"
    monkeypatch.chdir(tmp_path)
    assert main([str(run) if word == "RUN" else word for word in words]) == 0
    images = player.images(settings)
    assert len(images) == values[1]
    for seed, image in zip(settings.seeds, images, strict=True):
        assert torch.equal(image, read_png(Path("made") / f"{seed:06d}.png"))


def test_the_strip_has_x_and_the_estimate_at_each_angle_of_the_first_image(player: Player) -> None:
    settings = player.settings(5, 2, 6, "ddim", 3)
    *frames, last = player.frames(settings)
    states = [*qa.trajectory(player.denoise, qa.noise([5, 6], player.shape), "ddim", 6, labels=[3, 3], seeds=[5, 6])]
    assert [frame.done for frame in [*frames, last]] == list(range(7))
    assert all(frame.images is None for frame in frames)
    assert [point.angle for point in last.points] == [state.angle for state in states]
    for point, state in zip(last.points, states, strict=True):
        assert torch.equal(point.x, qa.to_uint8(state.x[:1])[0])
        if state.estimate is None:
            assert point.estimate is None
        else:
            assert point.estimate is not None
            assert torch.equal(point.estimate, qa.to_uint8(state.estimate.image[:1])[0])
    assert last.images is not None
    assert torch.equal(last.points[-1].x, last.images[0])
    assert last.nfe == 6


def test_a_long_trajectory_is_shown_at_a_bounded_number_of_angles(player: Player) -> None:
    *_, last = player.frames(player.settings(0, 1, MOST_STEPS, "rotation"))
    assert len(last.points) == MOST_POINTS
    assert last.points[0].angle == pytest.approx(np.pi / 2)
    assert last.points[-1].angle == 0
    assert html.trajectory(last, 0).count("<img") == 2 * MOST_POINTS - 1


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": -1}, "Seed"), ({"seed": 2**64}, "Seed"), ({"seed": 0.5}, "Seed"), ({"seed": "x" * 1000}, "Seed"),
        ({"seed": float("nan")}, "Seed"), ({"images": MOST_IMAGES + 1}, "Images"), ({"images": 0}, "Images"),
        ({"images": True}, "Images"), ({"steps": MOST_STEPS + 1}, "Steps"), ({"steps": None}, "Steps"),
        ({"sampler": "os:system"}, "Sampler"), ({"sampler": ["ddim"]}, "Sampler"), ({"sampler": "jump"}, "Sampler"),
        ({"label": 10}, "Class"), ({"label": "3"}, "Class"), ({"guidance": float("inf")}, "Guidance"),
        ({"guidance": "2"}, "Guidance"),
    ],
)  # fmt: skip
def test_a_value_out_of_bounds_is_an_error_of_one_line(player: Player, change: dict[str, Any], name: str) -> None:
    values = {"seed": 0, "images": 1, "steps": 2, "sampler": "ddim", "label": -1, "guidance": 1.0, **change}
    with pytest.raises(qa.InputError, match=name) as raised:
        player.settings(**values)
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)


def test_large_images_are_fewer_and_those_without_a_png_an_error() -> None:
    def model(*shape: int) -> Any:
        data = qa.GaussianData(torch.zeros(shape), torch.tensor(1.0))
        return qa.Clipped(data)

    class Shaped:
        def __init__(self, *shape: int) -> None:
            self.traits = qa.Traits(shape=(shape[0], shape[1], shape[2]))

        def __call__(self, x: torch.Tensor, angle: Any) -> qa.Estimate:
            return qa.Estimate(x, x)

    assert [Player(Shaped(3, side, side)).most_images for side in (8, 256, 512, 1024, 2048)] == [16, 16, 4, 1, 1]
    with pytest.raises(qa.InputError, match="5 channels"):
        Player(Shaped(5, 8, 8))


def test_a_model_without_classes_has_neither_class_nor_guidance(tiny_run: Path) -> None:
    player = server.player_of(tiny_run, "cpu")
    assert (player.classes, player.guided) == ([], False)
    assert player.settings(0, 1, 2, "ddim") == Settings(range(1), 2, "ddim")


# what visitors send


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def encoded(array: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, format=format, **options)
    return content.getvalue()


def test_a_picture_is_cropped_and_resized_as_for_training_and_returned_unchanged_at_the_size_of_the_network() -> None:
    photograph = np.zeros((60, 100, 3), np.uint8)
    photograph[:, 20:80] = 255
    assert decode_picture(data_url(encoded(photograph, "JPEG", quality=100), "image/jpeg"), (1, 8, 8)).min() > 250
    exact = torch.arange(192, dtype=torch.uint8).reshape(3, 8, 8)
    assert torch.equal(decode_picture(html.picture(exact), (3, 8, 8)), exact)


def test_a_mask_is_where_the_canvas_was_painted() -> None:
    canvas = np.zeros((8, 8, 4), np.uint8)
    canvas[2:4, 5] = (224, 53, 107, 255)
    mask = decode_mask(data_url(encoded(canvas)), (1, 8, 8))
    assert mask.dtype == torch.bool
    assert mask.nonzero().tolist() == [[2, 5], [3, 5]]
    with pytest.raises(qa.InputError, match="the mask has 8x8 pixels, the picture 16x16"):
        decode_mask(data_url(encoded(canvas)), (1, 16, 16))


def bomb() -> bytes:
    """A PNG of few bytes and 36 million pixels."""
    return encoded(np.zeros((6000, 6000), np.uint8), optimize=True)


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, "not sent as a file"), ("/etc/passwd", "not sent as a file"), ("file:///etc/passwd", "not sent"),
        ({"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "not sent as a file"),
        ("data:image/png;base64,%%%", "damaged"), (data_url(b"no image"), "not an image"),
        (data_url(bomb()), "34 million pixels, more than 16"), (data_url(encoded(NOISE)[:2000]), "cannot be used"),
        (data_url(b"\0" * (8 * 2**20 + 100)), "more than 8 MB"),
    ],
)  # fmt: skip
def test_what_is_no_usable_picture_is_an_error_of_one_line(url: Any, message: str) -> None:
    with pytest.raises(qa.InputError, match=message) as raised:
        decode_picture(url, (3, 8, 8))
    assert "data.max_pixels" not in str(raised.value)


# training images


def test_training_images_are_those_of_the_run_by_number(run: Path, player: Player) -> None:
    images = server.training_of(run, player.shape)
    assert images is not None
    digits = qa.open_data(qa.DataSpec(source="digits", size=8, channels=1))
    assert images.count == digits.count
    chosen = replace(player, training=images)
    assert torch.equal(chosen.training_picture(7.0), digits.batch([7]).images[0])
    for number in (-1, images.count, 0.5, None, "7", "../recipe.yaml", ["7"]):
        with pytest.raises(qa.InputError, match=f"Training image is a whole number from 0 to {images.count - 1}, got"):
            chosen.training_picture(number)
    with pytest.raises(qa.InputError, match="not at hand"):
        player.training_picture(0)
    assert server.training_of(run, (3, 8, 8)) is None
    assert server.training_of(player.denoise, player.shape) is None


@pytest.mark.parametrize("source", ["absent", "memory", "hub:owner/name", "cifar10"])
def test_without_its_images_a_run_has_none_on_the_page(tmp_path: Path, player: Player, source: str) -> None:
    (tmp_path / "recipe.yaml").write_text(f"data: {{source: '{source}', size: 8, channels: 1}}")
    assert server.training_of(tmp_path, player.shape) is None


def test_a_damaged_training_image_is_an_error_that_names_no_path(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "0.png").write_bytes(encoded(np.zeros((8, 8), np.uint8))[:40])
    (tmp_path / "recipe.yaml").write_text(f"data: {{source: '{folder}', size: 8, channels: 1}}")
    images = server.training_of(tmp_path, (1, 8, 8))
    assert images is not None
    with pytest.raises(qa.InputError, match=r"^training image 0 cannot be read$"):
        images.picture(0)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_training_images_are_not_for_other_machines(
    run: Path, monkeypatch: pytest.MonkeyPatch, host: str, shown: bool
) -> None:
    class Served(Exception):
        pass

    def application(player: Player, host: str) -> None:
        assert (player.training is not None) == shown
        raise Served

    monkeypatch.setattr(server, "application", application)
    monkeypatch.setattr(server, "gradio", lambda: None)  # whose import takes seconds
    with pytest.raises(Served):
        server.play(run, host=host, port=0, device="cpu")


# the guard, alone


async def _page(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers everything."""
    text = b'<meta property="og:image" content="https://elsewhere/x.jpg" />\n<meta charset="utf-8"><p>page</p>'
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"999")]})
    await send({"type": "http.response.body", "body": text[:30], "more_body": True})
    await send({"type": "http.response.body", "body": text[30:]})


def status(path: str, method: str = "GET", hosts: Any = ("127.0.0.1",), **headers: str) -> tuple[int, bytes]:
    """Status and body of a request to a guarded application."""
    import asyncio

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"host": "127.0.0.1:7860", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {"type": "http", "path": path, "method": method, "query_string": b"",
             "headers": [(name.encode(), value.encode()) for name, value in given.items()]}  # fmt: skip

    async def receive() -> Any:
        return {"type": "http.request", "body": b'{"data": []}'}

    asyncio.run(Guard(_page, hosts)(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


UNREACHABLE = (
    "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../etc/passwd", "/file=/etc/passwd", "/file/etc/passwd",
    "/gradio_api/upload", "/gradio_api/upload_progress", "/gradio_api/proxy=http://elsewhere/", "/gradio_api/info",
    "/gradio_api/openapi.json", "/gradio_api/call/show", "/gradio_api/run/show", "/gradio_api/api/show", "/monitoring",
    "/docs", "/openapi.json", "/gradio_api/runs", "/gradio_api/token", "/gradio_api/vibe-code", "/gradio_api/deep_link",
    "/gradio_api/component_server", "/gradio_api/process_recording", "/gradio_api/stream/a/b/c/playlist-file",
    "/assets/../../../etc/passwd", "/assets/..", "/static/./../x", "/assets//etc/passwd", "/assets/%2e%2e/x",
    "/assets/a\\..\\b", "/svelte/x.js", "/custom_component/x", "/login", "/dev/reload", "/recipe.yaml",
)  # fmt: skip


@pytest.mark.parametrize("path", UNREACHABLE)
def test_an_address_that_the_page_does_not_need_is_not_there(path: str) -> None:
    assert status(path)[0] == 404
    assert status(path, "POST")[0] == 404


def test_the_guard_passes_the_page_on_without_the_names_of_other_hosts() -> None:
    assert status("/") == (200, b'<meta charset="utf-8"><p>page</p>')
    for path in ("/config", "/theme.css", "/assets/index-Ab_1.js", "/static/img/logo.svg", "/gradio_api/queue/data"):
        assert status(path)[0] == 200
    assert status("/gradio_api/queue/join", "POST", content_length="2")[0] == 200


def test_methods_hosts_origins_and_sizes_that_are_not_the_page_s_are_errors() -> None:
    assert status("/", "DELETE")[0] == status("/gradio_api/queue/join", "PUT")[0] == 405
    assert status("/", host="elsewhere.example")[0] == 403  # a name that leads here: DNS rebinding
    assert status("/", host="[::1]:1", hosts=("::1",))[0] == 200
    assert status("/", host="elsewhere.example", hosts=None)[0] == 200
    join = ("/gradio_api/queue/join", "POST")
    assert status(*join, origin="https://elsewhere.example")[0] == 403
    assert status(*join, origin="http://127.0.0.1:7860", content_length="0")[0] == 200
    assert status(*join, content_length=str(LARGEST_BODY + 1))[0] == 413
    assert status(*join, transfer_encoding="chunked")[0] == 411
    assert status(*join, content_length="-1")[0] == 411


# the command


def test_a_port_in_use_and_a_host_that_is_not_here_are_errors_of_one_line(cli: Cli, run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        done = cli("play", run, "--port", number)
        assert done.returncode == 2
        assert re.fullmatch(
            rf"quarterarc: error: port {number} of 127\.0\.0\.1 cannot be used \(.+\): give another --port, or "
            "--port 0 for any free one\n",
            done.stderr,
        )
    assert "--port is a number from 0" in cli("play", run, "--port", 70000).stderr
    assert "--host 256.0.0.1: no such name" in cli("play", run, "--host", "256.0.0.1").stderr


def test_a_missing_extra_and_a_folder_without_a_model_are_the_usual_errors(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace())  # whose import takes seconds
    done = cli("play", tmp_path, "--port", 0)
    assert done.returncode == 2
    assert done.stderr.startswith("quarterarc: error: ")
    assert str(tmp_path) in done.stderr
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli("play", tmp_path, "--port", 0).stderr == (
        "quarterarc: error: the page to play with needs gradio, which is not installed: pip install 'quarterarc[app]'\n"
    )


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.1.2.3", False)],
)
def test_only_addresses_of_this_machine_alone_are_local(host: str, local: bool) -> None:
    assert server._is_local(host) is local


# the server, in a process of its own


@dataclass(frozen=True)
class Served:
    """The page of a run, served by the command.

    Attributes:
        port: its port on 127.0.0.1.
        temporary: the folder for temporary files of its process.
    """

    port: int
    temporary: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def request(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        """Status and body of a request, whose path is sent as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {"content-type": "application/json"} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def join(self, name: str, values: list[Any], session: str, sent: Any = None) -> tuple[int, bytes]:
        """Ask for an event of the page."""
        config = json.loads(self.request("GET", "/config")[1])
        number = next(one["id"] for one in config["dependencies"] if name in [target[1] for target in one["targets"]])
        body = {"data": values, "fn_index": number, "session_hash": session, "event_data": sent, "trigger_id": None}
        return self.request("POST", "/gradio_api/queue/join", json.dumps(body))

    def event(self, name: str, values: list[Any], session: str, sent: Any = None) -> list[Any]:
        """Whether an event of the page succeeds, and what it returns in the end: its outputs, or an error."""
        code, content = self.join(name, values, session, sent)
        assert code == 200, content
        stream = self.request("GET", f"/gradio_api/queue/data?session_hash={session}")[1].decode()
        messages = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
        (done,) = [message for message in messages if message["msg"] == "process_completed"]
        generated = [message["output"]["data"] for message in messages if message["msg"] == "process_generating"]
        return [done["success"], *(generated[0] if generated else done["output"].get("data", [done["output"]]))]


@pytest.fixture(scope="module")
def served(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page of a run; at the end more visitors come than may wait, Ctrl-C stops it in order, and no file is left."""
    temporary = tmp_path_factory.mktemp("temporary")
    command = [sys.executable, "-m", "quarterarc", "play", str(run), "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    environment.pop("GRADIO_ANALYTICS_ENABLED", None)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 120)[0]
    line = process.stdout.readline()
    match = re.fullmatch(r"labelled: http://127\.0\.0\.1:(\d+)/? \(Ctrl-C ends\)\n", line)
    if match is None:
        process.kill()
        raise AssertionError(line + process.communicate()[1])
    page = Served(int(match[1]), temporary)
    yield page
    statuses = [page.join("input", [0, 16, 100, "rk4", -1, 1], f"waiting{number}")[0] for number in range(QUEUE + 4)]
    assert (statuses[0], statuses[-1]) == (200, 503)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert errors == "quarterarc: stopped by SIGINT\n"
    assert time.monotonic() - started < 15
    assert [*temporary.iterdir()] == []


def test_the_server_serves_no_file(served: Served, run: Path) -> None:
    link = run / "link"
    link.symlink_to("/etc/passwd")
    more = [f"/gradio_api/file={path}" for path in (run / "recipe.yaml", link, Path(__file__))]
    more += [
        "/assets/..%2f..%2f..%2f..%2fetc/passwd",
        "/static/%2e%2e/%2e%2e/x",
        "/assets/%252e%252e/x",
        "/.//etc/passwd",
    ]
    for path in [*UNREACHABLE, *more]:
        code, content = served.request("GET", path)
        assert 400 <= code < 500, path
        assert len(content) < 50, path
    code, _ = served.request("POST", "/gradio_api/upload", "x")
    assert code == 404


def test_the_page_names_no_other_host_and_no_path_of_this_machine(served: Served, run: Path) -> None:
    for path in ("/", "/config", "/theme.css"):
        code, content = served.request("GET", path)
        text = content.decode()
        assert code == 200
        assert {*re.findall(r"(?:https?:)?//(?!www\.w3\.org)([a-z0-9.-]+\.[a-z0-9.]+)", text)} <= {"127.0.0.1"}, path
        assert str(run) not in text
        assert str(Path.home()) not in text or str(Path.home()) == "/"
        assert str(Path(qa.__file__).parent) not in text
        assert '"analytics_enabled":true' not in text.replace(" ", "")


def test_a_path_in_place_of_a_value_is_an_error_and_nothing_is_read(served: Served, run: Path) -> None:
    file = {"path": str(run / "recipe.yaml"), "meta": {"_type": "gradio.FileData"}}
    good = [0, 1, 2, "ddim", -1, 1]
    for changed in ({"data": [file, *good[1:]]}, {"data": [*good[:3], [file], -1, 1]}, {"event_data": {"file": file}}):
        body = {"data": good, "fn_index": 0, "session_hash": "paths", "event_data": None, **changed}
        assert served.request("POST", "/gradio_api/queue/join", json.dumps(body))[0] == 400
    for wrong in ("[]", "{}", "x", "[" * 10000, '{"data": []', json.dumps({"data": [0] * 1000})):
        assert served.request("POST", "/gradio_api/queue/join", wrong)[0] == 400
    outcome = json.dumps(served.event("upload", good, "paths", {"file": str(run / "recipe.yaml")}))
    assert "your picture was not sent as a file" in outcome
    assert not [path for path in served.temporary.rglob("*") if path.is_file()]


def test_each_of_several_visitors_at_once_has_the_images_of_their_own_seed(served: Served, player: Player) -> None:
    def visit(seed: int) -> str:
        _, pictures, _ = served.event("input", [seed, 1, 3, "ddpm", seed % 10, 1], f"visitor{seed}")
        return unescape(pictures)

    seeds = range(20, 28)
    with ThreadPoolExecutor(len(seeds)) as visitors:
        for seed, pictures in zip(seeds, visitors.map(visit, seeds), strict=True):
            image = player.images(player.settings(seed, 1, 3, "ddpm", seed % 10))[0]
            assert html.picture(image) in pictures
            assert f"Seed {seed}<" in pictures
            assert pictures.count("<img") == 1


def test_a_value_out_of_bounds_is_a_line_on_the_page(served: Served) -> None:
    success, message, _ = served.event("input", [0, 1, 2, "ddpm", 3, 1], "good")
    assert success
    assert message.startswith('<div class="qa-pictures')
    picture = html.picture(torch.zeros(1, 8, 8, dtype=torch.uint8))
    success, *_, message = served.event("fill", [0, 1, 2, "ddim", -1, 1], "bad", {"picture": picture, "mask": "no"})
    assert success
    assert message == '<p class="qa-error" role="alert">the mask was not sent as a file</p>'


def test_a_training_image_is_sent_by_number_alone(served: Served) -> None:
    digits = qa.open_data(qa.DataSpec(source="digits", size=8, channels=1))
    values = [0, 1, 2, "ddim", -1, 1]
    success, picture, message = served.event("training", values, "training", {"number": 5})
    assert (success, message) == (True, "")
    assert picture == html.picture(digits.batch([5]).images[0])
    *_, message = served.event("training", values, "training", {"number": "/etc/passwd"})
    assert message.startswith('<p class="qa-error" role="alert">Training image is a whole number from 0 to 1796')


def test_new_content_is_made_where_the_visitor_painted_and_nowhere_else(served: Served) -> None:
    picture = torch.randint(256, (1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    canvas = np.zeros((8, 8, 4), np.uint8)
    canvas[:, 4:, 3] = 255
    sent = {"picture": html.picture(picture), "mask": data_url(encoded(canvas))}
    *_, result = served.event("fill", [3, 2, 3, "multistep", 1, 1], "fill", sent)
    images = [
        decode_picture(unescape(url), (1, 8, 8)) for url in re.findall(r'src="(data:image/png;base64,[^"]+)"', result)
    ]
    assert len(images) == 2
    for image in images:
        assert torch.equal(image[..., :4], picture[..., :4])
        assert not torch.equal(image[..., 4:], picture[..., 4:])
    assert not torch.equal(*images)


# in a browser

MOVE = """(() => {{
  const slider = document.querySelector('#{} input[type=range]');
  slider.value = {};
  slider.dispatchEvent(new Event('input', {{bubbles: true}}));
}})()"""
SMALLEST = """Math.min(...[...document.querySelectorAll('body *')]
  .filter(e => e.offsetParent && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
  .map(e => parseFloat(getComputedStyle(e).fontSize)))"""
CANVAS = """(() => {
  const mask = document.querySelector('.qa-mask'), box = mask?.getBoundingClientRect();
  return mask?.width === 8 && box.width > 100 && [box.x, box.y, box.width, box.height];
})()"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(tmp_path)
    yield opened
    opened.close()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")
def test_in_a_browser_a_slider_gives_another_image_and_a_painted_part_is_filled(
    served: Served, browser: Browser, player: Player
) -> None:
    browser.show(1280, 900)
    browser.call("Page.navigate", url=served.url)
    first = browser.wait("document.querySelector('#images img')?.src")
    assert first == html.picture(player.images(player.settings(0, 4, 10, "multistep", 0))[0])  # the first class
    text = browser.evaluate("document.body.innerText")
    assert all(label in text for label in ("Seed", "Images", "Steps", "Sampler", "Class", "Guidance"))

    browser.evaluate(MOVE.format("seed", 7))
    browser.wait("document.querySelector('#images').innerText.includes('Seed 7')")
    second = browser.evaluate("document.querySelector('#images img').src")
    assert second != first
    assert second == html.picture(player.images(player.settings(7, 4, 10, "multistep", 0))[0])
    browser.evaluate(MOVE.format("steps", 3))
    browser.wait("document.querySelectorAll('#trajectory figure').length === 5")  # 3 steps after a free first one

    for width, dark in ((390, True), (390, False), (1280, True), (1280, False)):
        browser.show(width, 900, dark)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate(SMALLEST) >= 12

    browser.evaluate("[...document.querySelectorAll('button[role=tab]')].at(-1).click()")
    browser.wait(CANVAS)
    before = browser.evaluate("document.querySelector('.qa-picture').toDataURL()")
    browser.evaluate("document.querySelector('.qa-number').value = 5; document.querySelector('.qa-training').click()")
    browser.wait(f"document.querySelector('.qa-picture').toDataURL() !== '{before}'")
    for wide in (390, 1280):
        browser.show(wide, 900)
        assert browser.evaluate("document.documentElement.scrollWidth") <= wide
        assert browser.evaluate(SMALLEST) >= 12
    left, top, width, height = browser.wait(CANVAS)
    for kind, across in (("mousePressed", 0.5), ("mouseMoved", 0.75), ("mouseReleased", 0.75)):
        browser.call("Input.dispatchMouseEvent", type=kind, x=left + across * width, y=top + height / 2, button="left",
                     clickCount=1)  # fmt: skip
    browser.evaluate("document.querySelector('.qa-fill').click()")
    browser.wait("document.querySelectorAll('#filled img').length === 4")
    assert browser.errors == []
    assert all(url.startswith(served.url) for url in browser.requests)


# the page of the documentation


def test_every_command_of_the_documentation_starts_the_page(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[Any, ...]] = []
    monkeypatch.setattr("quarterarc.app.play", lambda model, **given: started.append((model, given)))
    root = Path(__file__).parent.parent
    for path in (root / "README.md", root / "docs" / "play.md"):
        (line,) = re.findall(r"^`?(quarterarc play [^`\n]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert cli(*shlex.split(line)[1:]).returncode == 0
    (block,) = re.findall(
        r"^```python\n(.*?)^```$", (root / "docs" / "play.md").read_text(encoding="utf-8"), re.S | re.M
    )
    exec(compile(block, "docs/play.md", "exec"), {})
    usual = {"host": "127.0.0.1", "port": 7860, "device": "auto"}
    assert started == [("runs/mine", usual), ("runs/mine", usual), ("runs/mine", {"port": 0})]
