"""The page: settings, the images and the trajectory they give, and a canvas on which a part is marked to be filled."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..common.errors import InputError
from ..common.optional import need
from . import html
from .pictures import MOST_BYTES, decode_mask, decode_picture
from .player import MOST_GUIDANCE, MOST_STEPS, Player, Settings

__all__ = ["PURPOSE", "build", "gradio", "theme"]

PURPOSE = "the page to play with"
QUEUE = 16
"""Requests that wait; further ones are an error at once."""
EVERY = 0.5
"""Least seconds between two updates of a trajectory while it is sampled."""
SEEDS = 9999
"""The largest seed of the slider."""


def build(player: Player) -> Any:
    """The page of a model, a `gradio.Blocks`; `application` serves it with its theme, behind the guard.

    Raises:
        InputError: if Gradio is not installed.
    """
    gr = gradio()
    with gr.Blocks(title=f"{player.name} - quarterarc", analytics_enabled=False) as blocks:
        gr.HTML(f"<h1>{html.escaped(player.name)}</h1>", elem_classes="qa")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=260):
                controls = _controls(gr, player)
            with gr.Column(scale=3, min_width=300), gr.Tabs():
                with gr.Tab("Images"):
                    images = gr.HTML(elem_id="images", elem_classes="qa")
                    strip = gr.HTML(elem_id="trajectory", elem_classes="qa")
                with gr.Tab("Fill a part"):
                    canvas = _canvas(gr, player)
                    filled = gr.HTML(elem_id="filled", elem_classes="qa")
        # the requests of all visitors that compute are done one at a time
        common = {"concurrency_limit": 1, "concurrency_id": "device", "api_visibility": "private"}
        common["show_progress"] = "hidden"

        def load(*values: Any) -> Iterator[tuple[Any, Any, Any]]:
            for pictures, points, first in _shown(player, values):
                yield pictures or gr.skip(), points, first or gr.skip()

        def show(*values: Any) -> Iterator[tuple[Any, Any]]:
            for pictures, points, _ in _shown(player, values):
                yield pictures or gr.skip(), points

        blocks.load(load, controls, [images, strip, canvas], **common)
        gr.on([one.input for one in controls], show, controls, [images, strip], trigger_mode="always_last", **common)
        answers = [("upload", _upload), ("take", _take), ("fill", _fill)]
        for event, answer in answers + [("training", _training)] * (player.training is not None):
            function = _answering(gr, player, answer)
            getattr(canvas, event)(function, controls, [canvas, filled], **common)
    blocks.queue(max_size=QUEUE, api_open=False)
    return blocks


def gradio() -> Any:
    """Gradio, which then reports nothing to its makers."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    return need("gradio", "app", PURPOSE)


def theme() -> Any:
    """The theme of the page, with fonts of the visitor's system: others would be loaded from another host."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "monospace"]
    return gradio().themes.Default(font=fonts, font_mono=mono, primary_hue="indigo")


def _controls(gr: Any, player: Player) -> list[Any]:
    """The controls, in the order of the arguments of `Player.settings`."""
    controls = [
        gr.Slider(0, SEEDS, value=0, step=1, label="Seed", elem_id="seed"),
        gr.Slider(1, player.most_images, value=min(4, player.most_images), step=1, label="Images", elem_id="count",
                  visible=player.most_images > 1),
        gr.Slider(1, MOST_STEPS, value=player.default_steps, step=1, label="Steps", elem_id="steps"),
        gr.Dropdown(player.samplers, value=player.default_sampler, label="Sampler", elem_id="sampler"),
    ]  # fmt: skip
    if player.classes:
        controls.append(gr.Dropdown(player.classes, value=player.classes[0][1], label="Class", elem_id="class"))
    if player.guided:
        controls.append(gr.Slider(0, MOST_GUIDANCE, value=1, step=0.1, label="Guidance", info="1: none; needs a class",
                                  elem_id="guidance"))  # fmt: skip
    return controls


def _canvas(gr: Any, player: Player) -> Any:
    """The canvas: its value is the data URL of a picture; it sends pictures and masks as data URLs with its events."""
    side = min(player.shape[1:])
    training = html.text_of("training.html").format(last=player.training.count - 1) if player.training else ""
    template = html.text_of("canvas.html").format(
        side=side, brush=max(1, side // 5), most=MOST_BYTES, training=training
    )
    return gr.HTML(
        elem_id="canvas",
        elem_classes="qa",
        html_template=template,  # without properties, which are not there if a tab is opened early
        js_on_load=html.text_of("canvas.js"),
    )


def _shown(player: Player, values: Sequence[Any]) -> Iterator[tuple[str | None, str, str | None]]:
    """Images, trajectory and the data URL of the first image for the values of the controls; None: as before."""
    try:
        settings = player.settings(*values)
        shown = time.monotonic()
        for frame in player.frames(settings):
            if frame.images is None and time.monotonic() - shown < EVERY:
                continue
            shown = time.monotonic()
            strip = html.trajectory(frame, settings.seeds[0])
            if frame.images is None:
                yield None, strip, None
            else:
                yield html.pictures(frame.images, settings), strip, html.picture(frame.images[0])
    except InputError as error:
        yield html.error(str(error)), "", None


Answer = Callable[[Player, Settings, dict[str, Any]], tuple[str | None, str]]
"""A function of the settings and of what the canvas sent; returns its new picture, None for none, and a result."""


def _answering(gr: Any, player: Player, answer: Answer) -> Callable[..., Any]:
    """An event of the canvas."""

    def respond(event: Any, *values: Any) -> tuple[Any, str]:
        sent = event._data if isinstance(event._data, dict) else {}
        try:
            picture, result = answer(player, player.settings(*values), sent)
        except InputError as error:
            return gr.skip(), html.error(str(error))
        return picture or gr.skip(), result

    respond.__annotations__["event"] = gr.EventData  # by which Gradio finds that the function takes one
    return respond


def _upload(player: Player, settings: Settings, sent: dict[str, Any]) -> tuple[str | None, str]:
    """A picture of a visitor, as the network sees images."""
    return html.picture(decode_picture(sent.get("file"), player.shape)), ""


def _take(player: Player, settings: Settings, sent: dict[str, Any]) -> tuple[str | None, str]:
    """The first image of these settings."""
    return html.picture(player.images(settings)[0]), ""


def _training(player: Player, settings: Settings, sent: dict[str, Any]) -> tuple[str | None, str]:
    """A training image, by its number."""
    return html.picture(player.training_picture(sent.get("number"))), ""


def _fill(player: Player, settings: Settings, sent: dict[str, Any]) -> tuple[str | None, str]:
    """The picture of the canvas with new content where it was painted."""
    picture, mask = decode_picture(sent.get("picture"), player.shape), decode_mask(sent.get("mask"), player.shape)
    images = player.filled(picture, mask, settings)
    return None, html.pictures(images, settings, "New content where you painted, one image per seed.")
