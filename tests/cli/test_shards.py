"""WebDataset shards are scored as folders are, and a damaged one costs no more than what it lost."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
import random
import tarfile

import numpy as np
import pytest
from cli_helpers import Small, attempt, make_folder, transform
from PIL import Image

from jepa_monitor import ScoreOptions
from jepa_monitor.cli import RefusedError, Settings, info_of, report, score_dataset
from jepa_monitor.cli.shards import expand
from jepa_monitor.cli.sources import Source, open_source

MOST = 10_000  # pixels
QUICK = Settings(batch_size=4, polarity_samples=0, max_pixels=MOST)


def png(seed: int = 0, side: int = 9) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write(path: pathlib.Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def rows(source: Source) -> dict[str, str]:
    """Say of every image by what it fails; empty if it can be read."""
    found = {source.key(i): attempt(source, i) for i in range(len(source))}
    return {key: value if isinstance(value, str) else "" for key, value in found.items()}


def test_shards_are_scored_as_the_folder_they_are_of(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path / "data", 12)
    files = sorted((tmp_path / "data").rglob("*.png"))
    (tmp_path / "shards").mkdir()
    for shard in range(3):
        members = []
        for path in files[4 * shard : 4 * shard + 4]:
            label = path.parent.name
            members.append((f"{path.stem}.png", path.read_bytes()))
            if shard == 1:
                members.append((f"{path.stem}.json", json.dumps({"label": label}).encode()))
            else:
                members.append((f"{path.stem}.cls", f"{label}\n".encode()))
            members.append((f"{path.stem}.txt", b"a caption"))
        write(tmp_path / "shards" / f"s-{shard:03d}.tar", members)
    options = ScoreOptions(method="exact")
    tables = [
        score_dataset(
            Small(), str(tmp_path / name), transform=transform, options=options, settings=QUICK
        )
        for name in ("data", "shards/s-{000..002}.tar", "shards/*.tar")
    ]
    assert info_of(tables[1])["ignored"] == 12
    assert tables[1]["path"].to_pylist()[5] == f"s-001.tar/{files[5].name}"
    for table in tables[1:]:
        for name in ("label", "jepa_score", "knn", "mahalanobis", "quantile", "outlier"):
            assert table[name].equals(tables[0][name]), name


def test_expand() -> None:
    assert expand("a") == ["a"]
    assert expand("s-{008..011}.tar") == [f"s-{i:03d}.tar" for i in range(8, 12)]
    assert expand("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    assert expand("{odd}") == ["{odd}"]
    assert expand("nothing-*.tar") == []


def test_names_and_labels_are_grouped_as_webdataset_does(tmp_path: pathlib.Path) -> None:
    write(
        tmp_path / "s.tar",
        [
            ("a/0.left.PNG", png()),
            ("a/0.right.png", png()),
            ("a/0.json", b'{"label": "from json"}'),
            ("a/0.cls", b"from cls"),
            ("b/0.png", png()),  # another sample: its folder differs
            ("1.png", png()),
            ("1.json", b'{"cls": 7}'),
            ("2.png", png()),
            ("2.json", b"[1]"),
            ("._2.png", b"of another system"),
        ],
    )
    source = open_source(str(tmp_path / "s.tar"), MOST)
    labels = {source.key(i): source.label(i) for i in range(len(source))}
    assert labels == {
        "s.tar/a/0.left.PNG": "from cls",
        "s.tar/a/0.right.png": "from cls",
        "s.tar/b/0.png": None,
        "s.tar/1.png": "7",
        "s.tar/2.png": None,
    }
    assert source.ignored == 1


def test_bad_members_are_skipped_with_their_reason(tmp_path: pathlib.Path) -> None:
    write(
        tmp_path / "s.tar",
        [
            ("good.png", png()),
            ("../../outside.png", png()),
            ("/etc/absolute.png", png()),
            ("empty.png", b""),
            ("text.png", b"no image"),
            ("bomb.png", png(side=101)),
            ("twice.png", png()),
            ("twice.png", png()),
            ("line\nbreak.png", png()),
            (os.fsdecode(b"\xff.png"), png()),
            ("label.cls", b"\xff"),
            ("label.json", b"[" * 100_000),
        ],
    )
    with tarfile.open(tmp_path / "s.tar", "a") as archive:
        for name, kind in (("link.png", tarfile.SYMTYPE), ("pipe.png", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    found = rows(open_source(str(tmp_path / "s.tar"), MOST))
    expected = {
        "good.png": "",
        "../../outside.png": "leads out of the archive",
        "/etc/absolute.png": "leads out of the archive",
        "empty.png": "is empty",
        "text.png": "is no image",
        "bomb.png": "decompression bomb: 101x101",
        "twice.png": "",
        "line\nbreak.png": "",
        "\\xff.png": "is not UTF-8",
        "label.cls": "the label cannot be read",
        "label.json": "the label cannot be read",
        "link.png": "is no ordinary file",
        "pipe.png": "is no ordinary file",
    }
    for name, reason in expected.items():
        message = found.pop(f"s.tar/{name}")
        assert (reason in message) if reason else not message, name
    (name, reason), *others = found.items()
    assert name.startswith("s.tar/twice.png (at byte ")
    assert "same name" in reason
    assert not others


def test_damaged_shards_keep_what_can_be_read(tmp_path: pathlib.Path) -> None:
    members = [(f"{i}.png", png(i)) for i in range(3)]  # a header and a block or two each
    write(tmp_path / "good.tar", members)
    whole = (tmp_path / "good.tar").read_bytes()
    with tarfile.open(tmp_path / "good.tar") as archive:
        last = archive.getmembers()[-1]
    shards = {
        "cut_in_member.tar": (whole[: last.offset_data + 20], "cut off: unexpected end", 2),
        "cut_in_header.tar": (whole[: last.offset + 100], "has no end mark", 2),
        "cut_between.tar": (whole[: last.offset], "has no end mark", 2),
        "odd_header.tar": (
            whole[: last.offset] + b"\x07" * 512 + whole[last.offset + 512 :],
            "has no end mark",
            2,
        ),
        "glued.tar": (2 * whole, "holds more after its end mark", 3),
        "empty.tar": (b"", "is empty", 0),
        "text.tar": (b"no archive" * 100, "is no uncompressed tar archive", 0),
        "zipped.tar": (b"\x1f\x8b" + bytes(1000), "is no uncompressed tar archive", 0),
        "gone.tar": (None, "cannot be opened: No such file", 0),
    }
    for name, (content, reason, kept) in shards.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        pattern = str(tmp_path / f"{{good,{name.removesuffix('.tar')}}}.tar")
        found = rows(open_source(pattern, MOST))
        assert reason in found[name], name
        good = [key for key, problem in found.items() if not problem]
        assert good == [f"good.tar/{i}.png" for i in range(3)] + [
            f"{name}/{i}.png" for i in range(kept)
        ]
        if name == "cut_in_member.tar":
            assert found[f"{name}/2.png"] == f"is truncated: 20 of {last.size} bytes"


def test_a_declared_size_is_not_believed(tmp_path: pathlib.Path) -> None:
    member = tarfile.TarInfo("huge.png")
    member.size = 2**62
    (tmp_path / "s.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + png())
    found = rows(open_source(str(tmp_path / "s.tar"), MOST))
    assert "is truncated" in found["s.tar/huge.png"]


def test_no_damage_goes_unseen_or_raises(tmp_path: pathlib.Path) -> None:
    members = [(f"{i}.{kind}", c) for i in range(4) for kind, c in (("png", png(i)), ("cls", b"1"))]
    write(tmp_path / "s.tar", members)
    whole, generator = (tmp_path / "s.tar").read_bytes(), random.Random(0)
    used = 4 * (512 + 512 + 512 + 512)
    originals = [np.asarray(Image.open(io.BytesIO(png(i)))) for i in range(4)]
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 20])):
            damaged[generator.randrange(used)] = generator.randrange(256)
        length = generator.choice([len(whole), generator.randrange(1, used)])
        (tmp_path / "s.tar").write_bytes(damaged[:length])
        source = open_source(str(tmp_path / "s.tar"), MOST)
        read = [attempt(source, index) for index in range(len(source))]
        problems = [each for each in read if isinstance(each, str)]
        found = [np.asarray(each[0]) for each in read if not isinstance(each, str)]
        assert all(any(np.array_equal(image, each) for each in originals) for image in found)
        assert problems or len(found) == 4


def test_shards_without_images(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "s.tar", [("a.txt", b"text"), ("b.npy", b"array")])
    with pytest.raises(ValueError, match=r"no images in .*s\.tar \(2 files have no image's name\)"):
        open_source(str(tmp_path / "s.tar"), MOST)
    write(tmp_path / "t.tar", [("a.png", png())])
    assert len(open_source(str(tmp_path / "[st].tar"), MOST)) == 1
    for pattern in ("gone.tar", "gone-*.tar", "gone-{0..3}.tar"):
        with pytest.raises(ValueError, match="there is no file"):
            open_source(str(tmp_path / pattern), MOST)


def test_equal_names_in_two_folders_stay_apart(tmp_path: pathlib.Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "s.tar", [("0.png", png())])
    source = open_source(str(tmp_path / "*" / "s.tar"), MOST)
    assert [source.key(i) for i in range(2)] == ["a/s.tar/0.png", "b/s.tar/0.png"]


def test_an_interrupted_run_goes_on_and_a_changed_shard_is_refused(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "s.tar", [(f"{i:02d}.png", png(i)) for i in range(20)])
    options = ScoreOptions(method="exact", max_memory=2**28)

    def run(out: str, stop_at: int | None = None) -> object:
        def progress(phase: str, done: int, total: int) -> None:
            if phase == "scores" and stop_at is not None and done >= stop_at:
                raise KeyboardInterrupt

        return score_dataset(
            Small(), str(tmp_path / "s.tar"), tmp_path / out, transform=transform,
            settings=QUICK, options=options, progress=progress,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run("s.parquet", stop_at=8)
    assert len(list((tmp_path / "s.unfinished" / "scores").iterdir())) == 2
    assert run("s.parquet") == run("undisturbed.parquet")
    with pytest.raises(KeyboardInterrupt):
        run("t.parquet", stop_at=8)
    write(tmp_path / "s.tar", [(f"{i:02d}.png", png(i + 1)) for i in range(20)])
    with pytest.raises(RefusedError, match=r"data\.content"):
        run("t.parquet")


def test_the_report_shows_images_of_shards(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "s.tar", [(f"{i}.png", png(i)) for i in range(6)])
    out = tmp_path / "s.parquet"
    quick = dataclasses.replace(QUICK, leverage_maps=0)
    score_dataset(Small(), str(tmp_path / "s.tar"), out, transform=transform, settings=quick)
    assert report(str(out)).read_text().count("data:image/jpeg;base64,") == 6
