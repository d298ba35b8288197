"""A page to play with a trained model, in the browser: the extra `app` (Gradio).

| module     | contents                                                        |
|------------|-----------------------------------------------------------------|
| `player`   | settings within bounds, and the images and trajectory they give |
| `html`     | results as HTML, with all pictures embedded                     |
| `page`     | the page: controls, results, a canvas to draw on                |
| `pictures` | pictures that visitors send                                     |
| `training` | the training images of a run, by number                         |
| `guard`    | the few addresses that the server answers                       |
| `server`   | the server: one host, one port, until Ctrl-C                    |

Only `page` and `server` import Gradio, when they are called.
"""

from __future__ import annotations

from .page import build
from .player import Player
from .server import application, play

__all__ = ["Player", "application", "build", "play"]
