"""`quarterarc edit`: picture files in, a folder of results out, and one line for every wrong request."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import quarterarc as qa
from conftest import Cli
from quarterarc.edit.files import interpolated, varied
from quarterarc.edit.pictures import read_image, read_mask
from quarterarc.storage.pictures import read_png, write_png
from tools import draw_editing, draw_photo_editing, measure_editing

SHAPE = (1, 8, 8)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Pictures in the folder of the commands: two digits, masks, and a photograph of 30 x 40 pixels."""
    digits = qa.open_data(qa.DataSpec(source="digits", size=8, channels=1), progress=False).batch(range(4)).images
    for name, number in (("a", 0), ("b", 3)):
        write_png(tmp_path / f"{name}.png", digits[number])
    right = torch.zeros(SHAPE, dtype=torch.uint8)
    right[..., 4:] = 255
    for name, pixels in (("mask", right), ("black", 0 * right), ("white", 0 * right + 255), ("small", right[:, :5])):
        write_png(tmp_path / f"{name}.png", pixels)
    write_png(tmp_path / "red.png", torch.cat([right, 0 * right, 0 * right]))
    photo = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    large = np.zeros((30, 40), np.uint8)
    large[:, 20:] = 255
    Image.fromarray(large).convert("RGB").save(tmp_path / "large.jpg")
    edge = np.zeros((30, 40), np.uint8)
    edge[:, :4] = 255
    Image.fromarray(edge).save(tmp_path / "edge.png")
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


def pixels_of(folder: Path) -> torch.Tensor:
    return torch.stack([read_png(path) for path in sorted(folder.glob("0*.png"))])


def test_a_folder_of_inpainted_images(files: Path, tiny_run: Path, cli: Cli) -> None:
    command = ("edit", tiny_run, "--out", "out", "--image", "a.png", "--mask", "mask.png", "--steps", "2")
    done = cli(*command, "--seeds", "0-2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3 images, 2 network evaluations per image, in out (overview: contact-sheet.png)\n"
    assert "a.png: 8x8 (height x width), used as it is" in done.stderr
    made, image = pixels_of(files / "out"), read_png(files / "a.png")
    assert torch.equal(made[..., :4], image[..., :4].expand(3, 1, 8, 4))
    python = qa.edit.inpaint(qa.load(tiny_run), image, read_png(files / "mask.png")[0], seeds=range(3), steps=2)
    assert torch.equal(made, qa.to_uint8(python.images))
    about = json.loads((files / "out" / "samples.json").read_text())
    assert [about[key] for key in ("edit", "method", "image", "mask", "nfe")] == [
        "inpaint", "project", "a.png", "mask.png", 2,
    ]  # fmt: skip
    # image and masked image above the results: two rows of tiles of 64 pixels and gaps of 2
    assert read_png(files / "out" / "contact-sheet.png").shape[1] == 2 + 2 * 66
    assert torch.equal(read_png(files / "out" / "image.png"), image)
    assert set(read_png(files / "out" / "masked.png")[..., 4:].flatten().tolist()) == {128}

    (files / "out" / "000001.png").unlink()  # as of an interrupted command
    before = (files / "out" / "000000.png").stat().st_mtime_ns
    again = cli(*command, "--seeds", "0-3")
    assert again.stdout.startswith("4 images")
    assert "other file" not in again.stderr
    assert torch.equal(pixels_of(files / "out")[:3], made)
    assert (files / "out" / "000000.png").stat().st_mtime_ns == before
    other = cli(*command[:5], "b.png", *command[6:])
    assert (other.returncode, "other settings (image, image_sha256)" in other.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["--image", "a.png", "--strength", "0.5"], {"edit": "image-to-image", "strength": 0.5}),
        (["--image", "a.png", "--variations", "0.3"], {"edit": "variations", "amount": 0.3}),
        (["--between", "a.png", "b.png", "--count", "3"], {"edit": "interpolate", "second": "b.png"}),
        (["--image", "a.png", "--mask", "mask.png", "--method", "resample", "--resamplings", "2"], {"resamplings": 2}),
    ],
)
def test_the_command_makes_what_python_makes(
    words: list[str], settings: dict[str, object], files: Path, tiny_run: Path, cli: Cli
) -> None:
    seeds = [] if "--between" in words else ["--seeds", "5,7,9"]
    done = cli("edit", tiny_run, "--out", "out", *words, *seeds, "--steps", "3", "--batch-size", "2")
    assert done.returncode == 0, done.stderr
    denoise, a, b = qa.load(tiny_run), read_png(files / "a.png"), read_png(files / "b.png")
    mask = read_png(files / "mask.png")[0]
    made = {
        "--strength": lambda: qa.edit.image_to_image(denoise, a, 0.5, seeds=[5, 7, 9], steps=3),
        "--variations": lambda: qa.edit.variations(denoise, a, seeds=[5, 7, 9], amount=0.3, steps=3),
        "--count": lambda: qa.edit.interpolate(denoise, a, b, 3, steps=3),
        "--mask": lambda: qa.edit.inpaint(denoise, a, mask, seeds=[5, 7, 9], method="resample", resamplings=2, steps=3),
    }[words[2] if words[0] == "--image" else "--count"]()
    # the size of a batch changes rounding, by at most one level
    assert (pixels_of(files / "out").int() - qa.to_uint8(made.images).int()).abs().max() <= 1
    about = json.loads((files / "out" / "samples.json").read_text())
    assert about.items() >= settings.items()
    assert about["nfe"] == made.nfe


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "no edit was chosen: give one of --image A --mask M, --image A --strength S"),
        ("--image a.png", "no edit was chosen"),
        ("--image a.png --mask mask.png --strength 0.5", "--mask and --strength are two edits: give one of"),
        ("--mask mask.png", "--mask needs the image to edit: give --image"),
        ("--variations 0.2", "--variations needs the image to edit: give --image"),
        ("--between a.png b.png --image a.png", "--between takes its two images itself: leave out --image"),
        ("--between a.png b.png --seeds 0-3", "--between has no random part: leave out --seeds, and give --count"),
        ("--between a.png b.png --count 1", "--count 1: an interpolation has at least 2 results"),
        ("--image a.png --strength 0.5 --count 3", "--count belongs to --between A B, not to --strength"),
        ("--image a.png --strength 0.5 --method resample", "--method belongs to --mask M, not to --strength"),
        ("--image a.png --mask mask.png --jump 2", "--jump belongs to --method resample"),
        ("--image a.png --mask mask.png --method magic", "unknown method 'magic'"),
        (
            "--image a.png --mask mask.png --method resample --sampler heun",
            "takes the samplers ddpm, ddim and rotation",
        ),
        ("--image a.png --mask black.png", "the mask black.png is black, so there is nothing to make"),
        (
            "--image photo.png --mask edge.png",
            "the mask edge.png is white only outside the centre of the image that is used, of the aspect 8:8",
        ),
        ("--image a.png --mask mask.png --seeds=", "--seeds takes whole numbers and ranges"),
        ("--image a.png --mask mask.png --method=", "unknown method ''"),
        (
            "--image a.png --mask mask.png --method resample --jump 4 --steps 4 --resamplings 100",
            "jump=4 with 4 steps resamples nothing",
        ),
        ("--image a.png --mask mask.png --method resample --jump 3 --steps 4", "give at least 5 steps"),
        ("--image a.png --strength 0.5 --option eta=0.5 --option eta=0.7", "--option eta=0.7: 'eta' is given twice"),
        ("--image a.png --mask white.png", "the mask white.png is white, so nothing of the image is kept"),
        ("--image a.png --mask red.png", "the mask red.png has colours: paint white where new content is made"),
        (
            "--image a.png --mask small.png",
            "the mask small.png is 5x8 (height x width): give the size of the image, 8x8",
        ),
        ("--image a.png --mask text.png", "cannot use text.png: "),
        ("--image none.png --strength 0.5", "cannot use none.png: No such file or directory"),
        (
            "--image a.png --strength 0",
            "a strength lies in (0, 1], from the image itself to one made from noise, got 0",
        ),
        ("--image a.png --strength 0.5 --grid tuned", "a tuned grid begins at the noise"),
        ("--image a.png --variations 1.5", "an amount lies in [0, 1]"),
        ("--image a.png --strength 0.5 --labels 3", "the model was trained without labels"),
        ("--image a.png --strength 0.5 --guidance 2", "--guidance needs --labels"),
        ("--image a.png --strength 0.5 --batch-size 0", "batch"),
        ("--image a.png --strength 0.5 --out made.npz", "the results of an edit are a folder, not an npz"),
    ],
)
def test_wrong_requests(words: str, message: str, files: Path, tiny_run: Path, cli: Cli) -> None:
    done = cli("edit", tiny_run, "--out", "out", *words.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (files / "out").exists()


def test_pictures_are_converted_as_training_does(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "quarterarc"):
        gray = read_image(files / "photo.png", SHAPE)
    assert caplog.messages == [
        f"{files / 'photo.png'}: 30x40 (height x width), cropped to a square, resized to 8x8, colour read as gray"
    ]
    spec = qa.DataSpec(source=str(files / "only"), size=8, channels=1, crop="center")
    (files / "only").mkdir()
    (files / "only" / "photo.png").write_bytes((files / "photo.png").read_bytes())
    assert torch.equal(gray, qa.open_data(spec, progress=False).batch(range(1)).images[0])


def test_a_mask_is_cropped_and_resized_with_its_image(files: Path) -> None:
    unknown = read_mask(files / "large.jpg", files / "photo.png", (3, 8, 8))
    assert unknown.tolist() == [[False] * 4 + [True] * 4] * 8
    assert torch.equal(read_mask(files / "mask.png", files / "photo.png", (3, 8, 8)), unknown)


def test_the_time_of_solving_the_flow_is_shown(files: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def shows(description: str) -> AbstractContextManager[None]:
        shown.append(description)
        return nullcontext()

    monkeypatch.setattr("quarterarc.edit.files.working", shows)
    denoise, request, a, b = qa.load(tiny_run), qa.Sampling(steps=2), files / "a.png", files / "b.png"
    varied(denoise, request, a, 0.3, None)
    interpolated(denoise, request, a, b, 3, None)
    assert shown == ["solving the flow from image to noise"] * 2


def test_the_commands_and_the_picture_of_the_page_are_made(
    tmp_path: Path, tiny_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are written in docs/editing.md, with a small network and few steps."""
    page = (Path(__file__).parent.parent / "docs" / "editing.md").read_text(encoding="utf-8")
    shutil.copytree(tiny_run, "runs/digits")
    picture = ["draw_editing.py", "runs/digits", "editing.png", "--inputs", "."]
    assert f"python tools/{' '.join(picture[:2])} docs/images/editing.png" in page
    monkeypatch.setattr("sys.argv", picture)
    draw_editing.main()
    assert read_png(tmp_path / "editing.png").shape == (1, 4 + 4 * 68, 4 + 9 * 68)
    train, *lines, photos = re.findall(r"^quarterarc (.+)$", page, re.MULTILINE)
    assert train == "train digits --out runs/digits"
    assert photos.startswith("train photos --out runs/photos ")  # run by the test below
    assert [line.split()[0] for line in lines] == ["edit"] * 4
    for line in lines:
        done = cli(*line.split(), "--steps", "3", *([] if "--between" in line else ["--seeds", "0-1"]))
        assert done.returncode == 0, (line, done.stderr)
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"qa": qa, "image": read_png(Path("three.png")), "other": read_png(Path("eight.png")),
             "mask": read_png(Path("right.png"))[0]}  # fmt: skip
    exec(compile(block, "docs/editing.md", "exec"), names)
    assert len(names["way"].images) == 8


def test_the_commands_of_the_photographs_make_their_picture(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are written in docs/editing.md, with two crops of noise per photograph and a small network."""
    page = (Path(__file__).parent.parent / "docs" / "editing.md").read_text(encoding="utf-8")
    block = page.partition("```sh\npython tools/draw_photo_editing.py")[2].partition("```")[0]
    making, training, drawing = f"python tools/draw_photo_editing.py{block}".strip().splitlines()
    photograph = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    Image.fromarray(photograph).save("photograph.png")
    monkeypatch.setattr(
        draw_photo_editing, "originals", lambda: dict.fromkeys(draw_photo_editing.SUBJECTS, Path("photograph.png"))
    )
    monkeypatch.setattr(draw_photo_editing, "CROPS", 5)
    monkeypatch.setattr(draw_photo_editing, "STEPS", 3)
    monkeypatch.setattr("sys.argv", making.split()[1:])
    draw_photo_editing.main()
    assert len(list(Path("photos").glob("*/IMG_000[0-4].*"))) == 4 * 5
    small = ["data.size=8", "network.channels=8", "network.multipliers=[1]", "network.attention=[]", "training.batch=4",
             "training.steps=1"]  # fmt: skip
    trained = cli(*training.split()[1:], *small)
    assert trained.returncode == 0, trained.stderr
    monkeypatch.setattr("sys.argv", [*drawing.split()[1:-1], "photos.png"])
    draw_photo_editing.main()
    assert read_png(tmp_path / "photos.png").shape == (3, 4 + 4 * 68, 4 + 9 * 68)


def test_the_table_of_the_page_is_measured(monkeypatch: pytest.MonkeyPatch, tiny_run: Path, capsys: Any) -> None:
    monkeypatch.setattr(measure_editing, "SETTINGS", (("resample, 3 steps, 2 times", {"steps": 3, "resamplings": 2}),))
    monkeypatch.setattr("sys.argv", ["measure_editing.py", str(tiny_run), "--count", "20"])
    measure_editing.main()
    head, _, row = capsys.readouterr().out.splitlines()
    assert head in (Path(__file__).parent.parent / "docs" / "editing.md").read_text(encoding="utf-8")
    assert row.startswith("| resample, 3 steps, 2 times | 4 | ")
