"""Forty kinds of file that are no plain image: each is skipped with its reason, or converted with a note."""

from __future__ import annotations

import io
import json
import os
import pathlib
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from cli_helpers import Small, attempt, make_folder, transform
from PIL import Image

from jepa_monitor.cli import Settings, info_of, score_dataset
from jepa_monitor.cli.errors import BadImage
from jepa_monitor.cli.sources import open_source

RGB = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8))
MOST = 100_000  # pixels


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(width: int, height: int, bits: int, colour: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


JPEG, PNG = encoded(RGB, "JPEG"), encoded(RGB, "PNG")
FRAMES = [RGB.rotate(90 * i) for i in range(3)]
DEEP = np.arange(400, dtype=np.uint16).reshape(20, 20) * 160
CLEAR = np.dstack([np.asarray(RGB), np.full((20, 20), 128, np.uint8)])

BAD: dict[str, tuple[bytes, str]] = {
    "empty.jpg": (b"", "is empty"),
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "cannot be decoded"),
    "truncated.png": (PNG[: len(PNG) // 2], "cannot be decoded"),
    "truncated.gif": (encoded(RGB, "GIF")[:-100], "cannot be decoded|is no image"),
    "truncated.bmp": (encoded(RGB, "BMP")[:500], "cannot be decoded"),
    "truncated.tiff": (encoded(RGB, "TIFF")[:200], "cannot be decoded|is no image"),
    "truncated.webp": (encoded(RGB, "WEBP", lossless=True)[:300], "cannot be decoded|is no image"),
    "truncated.ppm": (encoded(RGB, "PPM")[:300], "cannot be decoded"),
    "header_only.jpg": (JPEG[:4], "is no image|cannot be decoded"),
    "header_only.png": (PNG[:8], "is no image|cannot be decoded"),
    "checksum.png": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "cannot be decoded"),
    "no_pixels.png": (PNG[:33] + chunk(b"IEND", b""), "cannot be decoded"),
    "zero_wide.png": (png(0, 5, 8, 2, b""), "is no image|cannot be decoded"),
    "text.jpg": (b"This is not an image.\n", "is no image"),
    "page.jpg": (b"<!DOCTYPE html><title>404</title>", "is no image"),
    "vector.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is no image"),
    "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image"),
    "document.jpg": (b"%PDF-1.4\n", "is no image"),
    "archive.jpg": (b"PK\x03\x04" + bytes(60), "is no image"),
    "pickle.png": (b"\x80\x04cposix\nsystem\n", "is no image"),
    "zeros.jpg": (bytes(1000), "is no image"),
    "noise.png": (np.random.default_rng(0).bytes(1000), "is no image"),
    "photoshop.jpg": (b"8BPS\x00\x01" + bytes(100), "is no image"),
    "icon.png": (encoded(RGB, "ICO", sizes=[(16, 16)]), "is no image"),
    "huge.png": (encoded(Image.new("L", (400, 400)), "PNG"), "decompression bomb: 400x400"),
    "bomb.png": (png(60000, 60000, 1, 0, b"\0"), "decompression bomb"),
    "bomb.gif": (
        encoded(RGB, "GIF")[:6] + struct.pack("<HH", 65535, 65535) + bytes(9),
        "bomb|is no",
    ),
    "text_bomb.png": (
        PNG[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8))) + PNG[33:],
        "cannot be decoded",
    ),
    "thread.png": (encoded(Image.new("L", (1, 400)), "PNG"), "over 50 times"),
    "float.tiff": (encoded(Image.new("F", (9, 9), 0.5), "TIFF"), "no known range"),
    "deep_32.tiff": (encoded(Image.new("I", (9, 9), 10**8), "TIFF"), "no known range"),
}

CONVERTED: dict[str, tuple[bytes, str]] = {
    "cmyk.jpg": (encoded(RGB.convert("CMYK"), "JPEG"), "CMYK"),
    "cmyk.tiff": (encoded(RGB.convert("CMYK"), "TIFF"), "CMYK"),
    "lab.tiff": (encoded(RGB.convert("LAB"), "TIFF"), "LAB"),
    "palette.png": (encoded(RGB.quantize(16), "PNG"), "palette"),
    "palette_clear.png": (
        encoded(RGB.quantize(16), "PNG", transparency=3), "palette; transparency on white",
    ),
    "palette.gif": (encoded(RGB.convert("P"), "GIF"), "palette"),
    "bilevel.png": (encoded(RGB.convert("1"), "PNG"), "1 bit a pixel"),
    "clear.png": (encoded(Image.fromarray(CLEAR), "PNG"), "transparency on white"),
    "grey_clear.png": (encoded(Image.fromarray(CLEAR).convert("LA"), "PNG"), "transparency on white"),
    "deep.png": (encoded(Image.fromarray(DEEP), "PNG"), "16 bits reduced to 8"),
    "deep.tiff": (encoded(Image.fromarray(DEEP), "TIFF"), "16 bits reduced to 8"),
    "deep_rgb.png": (
        png(2, 2, 16, 2, 2 * (b"\0" + struct.pack(">6H", *range(0, 60000, 10000)))),
        "16 bits a channel reduced to 8",
    ),
    "animated.gif": (
        encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "first of several frames",
    ),
    "animated.png": (
        encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), "first of several frames",
    ),
    "animated.webp": (
        encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
        "first of several frames",
    ),
    "pages.tiff": (
        encoded(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]),
        "first of several frames",
    ),
}  # fmt: skip

FINE: dict[str, bytes] = {
    "wrong_suffix.jpg": PNG,  # the content decides
    "opaque.png": encoded(RGB.convert("RGBA"), "PNG"),
    "line\nbreak.png": PNG,
    "ünïcode ✓.png": PNG,
    "grey.png": encoded(RGB.convert("L"), "PNG"),
    "trailing.png": PNG + b"appended",
}


def special(root: pathlib.Path) -> dict[str, str]:
    """Make what is no ordinary file."""
    (root / "loop.png").symlink_to("loop.png")
    (root / "dangling.png").symlink_to("nowhere")
    (root / "up").symlink_to("..", target_is_directory=True)
    (root / "circle").symlink_to("circle")
    os.mkfifo(root / "pipe.png")
    (root / "device.png").symlink_to("/dev/zero")
    (root / os.fsdecode(b"\xff.png")).write_bytes(PNG)
    return {
        "loop.png": "cannot be opened",
        "dangling.png": "cannot be opened: No such file",
        "up": "links to a folder that is read elsewhere",
        "circle": "cannot be opened",
        "pipe.png": "is no ordinary file",
        "device.png": "is no ordinary file",
        "\\xff.png": "is not UTF-8",
    }


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict, dict]:  # type: ignore[type-arg]
    root = tmp_path_factory.mktemp("odd")
    make_folder(root / "data", 8)
    (root / "data" / "odd").mkdir()
    reasons = special(root / "data" / "odd")
    for name, (content, _) in (BAD | CONVERTED).items():
        (root / "data" / "odd" / name).write_bytes(content)
    for name, content in FINE.items():
        (root / "data" / "odd" / name).write_bytes(content)
    (root / "data" / "README.txt").write_text("no image by its name")
    settings = Settings(max_pixels=MOST, polarity_samples=0)
    table = score_dataset(
        Small(), str(root / "data"), root / "s.parquet", transform=transform, settings=settings
    )
    lines = (root / "s.errors.jsonl").read_text().split("\n")
    # An image can be in the reference and among the scored: both times it is skipped.
    problems = [json.loads(line) for line in lines if line]
    return (
        {p["path"]: p["reason"] for p in problems if p["set"] == "scores"},
        dict(zip(table["path"].to_pylist(), table["note"].to_pylist(), strict=True)),
        info_of(table) | {"reasons": reasons},
    )


def test_there_are_forty_kinds() -> None:
    assert len(BAD) + len(CONVERTED) >= 40


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_skipped_with_their_reason(scored: tuple, name: str) -> None:  # type: ignore[type-arg]
    assert re.search(BAD[name][1], scored[0][f"odd/{name}"])
    assert f"odd/{name}" not in scored[1]


@pytest.mark.parametrize("name", CONVERTED)
def test_odd_images_are_converted_with_a_note(scored: tuple, name: str) -> None:  # type: ignore[type-arg]
    assert CONVERTED[name][1] in scored[1][f"odd/{name}"]


@pytest.mark.parametrize("name", FINE)
def test_sound_images_are_scored_without_a_note(scored: tuple, name: str) -> None:  # type: ignore[type-arg]
    assert scored[1][f"odd/{name}"] == ""


def test_special_files_are_skipped_with_their_reason(scored: tuple) -> None:  # type: ignore[type-arg]
    for name, reason in scored[2]["reasons"].items():
        assert reason in scored[0][f"odd/{name}"], name


def test_all_is_counted(scored: tuple) -> None:  # type: ignore[type-arg]
    problems, rows, info = scored
    assert info["skipped"] == len(problems) == len(BAD) + len(info["reasons"])
    assert len(rows) == 8 + len(CONVERTED) + len(FINE)
    assert info["images"] == len(rows) + len(problems)
    assert info["ignored"] == 1


@pytest.mark.parametrize("name", CONVERTED)
def test_odd_images_can_be_refused(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / name).write_bytes(CONVERTED[name][0])
    with pytest.raises(BadImage, match="is not plain 8-bit RGB or grey"):
        open_source(str(tmp_path), MOST, convert=False).load(0)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "deep.png",
            CONVERTED["deep.png"][0],
            lambda: np.round(DEEP / 257)[..., None].repeat(3, 2),
        ),
        ("opaque.png", FINE["opaque.png"], lambda: np.asarray(RGB)),
        (
            "clear.png",
            CONVERTED["clear.png"][0],
            lambda: np.asarray(RGB) * (128 / 255) + 255 * (127 / 255),
        ),
    ],
)
def test_conversions_are_faithful(
    tmp_path: pathlib.Path, name: str, content: bytes, expected: Callable[[], np.ndarray]
) -> None:
    (tmp_path / name).write_bytes(content)
    image = open_source(str(tmp_path), MOST).load(0)[0]
    assert np.abs(np.asarray(image).astype(float) - expected()).max() <= 1


def test_strict_fails_at_the_first(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path / "data", 4)
    (tmp_path / "data" / "a" / "bad.png").write_bytes(b"bad")
    with pytest.raises(BadImage, match=r"'a/bad\.png' is no image"):
        score_dataset(
            Small(), str(tmp_path / "data"), tmp_path / "s.csv", transform=transform, strict=True
        )
    assert not (tmp_path / "s.csv").exists()


def test_a_file_that_vanishes_is_skipped(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path, 2)
    source = open_source(str(tmp_path), MOST)
    (tmp_path / "a" / "000.png").unlink()
    with pytest.raises(BadImage, match="cannot be opened: No such file"):
        source.load(0)


def test_what_may_not_be_read_is_skipped(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system is played: a superuser, as in a container, may read everything."""

    def denying(function: Callable, name: str) -> Callable:
        def denied(path: object, *rest: object) -> object:
            if os.fspath(path).endswith(name):  # type: ignore[call-overload]
                raise PermissionError(13, "Permission denied")
            return function(path, *rest)

        return denied

    make_folder(tmp_path, 4)
    monkeypatch.setattr(os, "open", denying(os.open, "000.png"))
    monkeypatch.setattr(os, "scandir", denying(os.scandir, "b"))
    source = open_source(str(tmp_path), MOST)
    found = {source.key(i): attempt(source, i) for i in range(len(source))}
    assert found["a/000.png"] == "cannot be opened: Permission denied"
    assert found["b/"] == "cannot be read: Permission denied"
    assert not isinstance(found["a/002.png"], str)


def test_links_to_folders_outside_are_followed_once(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path / "data", 4)
    make_folder(tmp_path / "other", 2, ("c",))
    for name in ("first", "second"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "other", target_is_directory=True)
    source = open_source(str(tmp_path / "data"), MOST)
    keys = [source.key(i) for i in range(len(source))]
    assert "first/c/000.png" in keys
    with pytest.raises(BadImage, match="read elsewhere"):
        source.load(keys.index("second"))


def test_nothing_but_bad_files(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path / "good", 4)
    (tmp_path / "bad").mkdir()
    for name in ("x.png", "y.png"):
        (tmp_path / "bad" / name).write_bytes(b"bad")
    for reference in (None, str(tmp_path / "good")):
        with pytest.raises(ValueError, match=r"none of 2 images can be read; 'x\.png' is no image"):
            score_dataset(Small(), str(tmp_path / "bad"), transform=transform, reference=reference)
