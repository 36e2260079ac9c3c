"""No image vanishes: what is known as an image is read or listed, at the depth that its file declares."""

from __future__ import annotations

import io
import json
import pathlib
import struct

import numpy as np
import pytest
from cli_helpers import Small, attempt, make_folder, transform
from PIL import Image

from jepa_monitor.cli import Settings, info_of, read_table, report, score_dataset
from jepa_monitor.cli.decoding import decode
from jepa_monitor.cli.entry import main
from jepa_monitor.cli.errors import BadImage
from jepa_monitor.cli.sources import open_source

MOST = 10_000  # pixels
PIXELS = np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def tiff(width: int, bits: int, photometric: int, pixels: bytes, **more: int) -> bytes:
    """One row of grey pixels, uncompressed, little-endian; by TIFF 6.0, sections 2 to 4."""
    tags = {
        256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1,
        279: len(pixels), **{int(name[1:]): value for name, value in more.items()},
    }  # fmt: skip
    entries = [struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags)]
    directory = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


def grey(content: bytes) -> list[int]:
    image, _ = decode(io.BytesIO(content), MOST)
    return np.asarray(image)[0, :, 0].tolist()


# 0, 1000, 2048 and 4095 in 12 bits each, the high ones first.
TWELVE = bytes([0x00, 0x03, 0xE8, 0x80, 0x0F, 0xFF])
SIXTEEN = [0, 128, 129, 257, 32896, 65407, 65535]
WIDE = np.array([SIXTEEN], dtype=np.uint16)


def test_twelve_bits_are_not_black() -> None:
    assert grey(tiff(4, 12, 1, TWELVE)) == [round(v * 255 / 4095) for v in (0, 1000, 2048, 4095)]


@pytest.mark.parametrize("kind", ["png", "tiff", "pgm", "jp2"])
def test_sixteen_bits_reach_white(kind: str) -> None:
    """By 257, not 256: 65535 / 256 rounds to 256, which is black."""
    content = {
        "png": lambda: encoded(Image.fromarray(WIDE), "PNG"),
        "tiff": lambda: tiff(len(SIXTEEN), 16, 1, WIDE.astype("<u2").tobytes()),
        "pgm": lambda: b"P5 %d 1 65535\n" % len(SIXTEEN) + WIDE.astype(">u2").tobytes(),
        "jp2": lambda: encoded(Image.fromarray(WIDE), "JPEG2000", irreversible=False),
    }[kind]()
    assert grey(content) == [0, 0, 1, 1, 128, 255, 255]


def test_sixteen_bits_that_are_white_at_zero() -> None:
    content = tiff(len(SIXTEEN), 16, 0, WIDE.astype("<u2").tobytes())
    assert grey(content) == [255, 255, 254, 254, 127, 0, 0]


def test_sixteen_bits_with_a_colour_that_is_clear() -> None:
    content = encoded(Image.fromarray(WIDE), "PNG", transparency=257)
    assert grey(content) == [0, 0, 1, 255, 128, 255, 255]
    assert decode(io.BytesIO(content), MOST).note == "16 bits reduced to 8; transparency on white"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(2, 32, 1, struct.pack("<2I", 1, 200)), "32-bit .* no known range"),
        (tiff(2, 16, 1, struct.pack("<2H", 1, 200), t339=2), "16-bit .* no known range"),
        (tiff(2, 8, 1, b"\1\2", t254=1), "its first image is a preview"),
        (tiff(2, 8, 1, b"\1\2", t50706=0x0401), "its first image is a preview"),
    ],
)
def test_what_would_have_to_be_guessed_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        decode(io.BytesIO(content), MOST)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
UNREAD = {
    "phone.HEIC": (HEIC, "it is HEIC: convert it"),
    "phone.heif": (HEIC, "it is HEIC"),
    "new.jxl": (b"\xff\x0a" + bytes(200), "it is JPEG XL"),
    "layers.psd": (b"8BPS\0\1" + bytes(200), "it is Photoshop"),
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "it is SVG"),
    "scan.dcm": (bytes(128) + b"DICM" + bytes(99), "it is DICOM"),
    "camera.CR3": (b"\0\0\0\x18ftypcrx " + bytes(200), "it is camera raw"),
    "film.exr": (b"\x76\x2f\x31\x01" + bytes(200), "it is OpenEXR"),
    "odd.tga": (bytes(200), "is no image in any of the formats JPEG"),
}
TWINS = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1])]
READ = {
    "stereo.mpo": encoded(TWINS[0], "MPO", save_all=True, append_images=TWINS[1:]),
    "stereo.jpg": encoded(TWINS[0], "MPO", save_all=True, append_images=TWINS[1:]),
    "renamed.heic": encoded(TWINS[0], "JPEG"),  # the content decides
    "codestream.j2c": encoded(TWINS[0], "JPEG2000"),
}


def test_images_that_are_not_read_are_listed(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(tmp_path / "data", 6)
    (tmp_path / "data" / "c").mkdir()
    for name, content in ({name: c for name, (c, _) in UNREAD.items()} | READ).items():
        (tmp_path / "data" / "c" / name).write_bytes(content)
    (tmp_path / "data" / "c" / "notes.txt").write_text("no image by its name")
    words = ["--model", "cli_helpers:encoder", "--polarity-samples", "0"]
    out = tmp_path / "s.jsonl"
    assert main(["score", *words, "--data", str(tmp_path / "data"), "--out", str(out)]) == 3
    assert f"{len(UNREAD)} could not be read" in capsys.readouterr().out
    lines = (tmp_path / "s.errors.jsonl").read_text().splitlines()
    problems = {p["path"]: p["reason"] for p in map(json.loads, lines) if p["set"] == "scores"}
    assert problems.keys() == {f"c/{name}" for name in UNREAD}
    for name, (_, reason) in UNREAD.items():
        assert reason in problems[f"c/{name}"], name
    table = read_table(out)
    assert {f"c/{name}" for name in READ} < set(table["path"].to_pylist())
    assert info_of(table)["ignored"] == 1


def test_hidden_folders_are_left_alone(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path / "data", 4)
    make_folder(tmp_path / "data" / ".thumbnails", 2)
    make_folder(tmp_path / "data" / "a" / ".cache", 2)
    (tmp_path / "data" / ".loop").symlink_to(".loop")
    source = open_source(str(tmp_path / "data"), MOST)
    assert [source.key(i) for i in range(len(source))] == [
        "a/000.png", "a/002.png", "b/001.png", "b/003.png"
    ]  # fmt: skip
    assert source.ignored == 3
    assert len(open_source(str(tmp_path / "data" / ".thumbnails"), MOST)) == 2  # asked for by name


def test_more_pixels_than_pillow_allows_by_itself(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # it raises at twice as many
    make_folder(tmp_path / "data", 4)
    Image.new("RGB", (30, 30), "red").save(tmp_path / "data" / "a" / "large.png")
    for most, read in ((899, False), (900, True)):
        source = open_source(str(tmp_path / "data"), most)
        found = {source.key(i): attempt(source, i) for i in range(len(source))}
        assert isinstance(found["a/large.png"], str) is not read
        assert Image.MAX_IMAGE_PIXELS == 300
    out = tmp_path / "s.parquet"
    settings = Settings(polarity_samples=0, max_pixels=900, leverage_maps=0)
    score_dataset(Small(), str(tmp_path / "data"), out, transform=transform, settings=settings)
    defaults = tuple(
        899 if v == Settings().max_pixels else v for v in Settings.__init__.__defaults__
    )
    monkeypatch.setattr(Settings.__init__, "__defaults__", defaults)
    assert Settings().max_pixels == 899  # but a page shows what was scored
    assert report(str(out)).read_text().count("data:image/jpeg;base64,") == 5


def test_what_libtiff_says_is_said_of_its_file(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = encoded(Image.fromarray(PIXELS), "TIFF", compression="tiff_adobe_deflate")
    start = whole.index(b"\x78")  # of the deflated pixels
    damaged = whole[: start + 40] + bytes(40) + whole[start + 80 :]
    (tmp_path / "damaged.tiff").write_bytes(damaged)
    found = attempt(open_source(str(tmp_path), MOST), 0)
    assert capfd.readouterr().err == ""
    assert isinstance(found, str)
    assert "ZIPDecode: " in found
