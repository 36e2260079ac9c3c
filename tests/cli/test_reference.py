"""The scored part of a reference: who learns from it, what is judged by it, and what if it is small."""

from __future__ import annotations

import io
import json
import pathlib
import tarfile

import numpy as np
import pyarrow as pa
import pytest
import torch
from cli_helpers import Small, make_folder, transform
from helpers import Hidden
from rich.console import Console
from scipy.stats import betabinom, false_discovery_control, pearsonr
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from jepa_monitor import ScoreOptions, jacobian_spectrum, jepa_score, log_density
from jepa_monitor.cli import (
    RefusedError,
    Settings,
    compare,
    curate,
    info_of,
    read_table,
    report,
    score_dataset,
)
from jepa_monitor.cli.closing import closing_table, facts
from jepa_monitor.cli.tables import with_info, write_table
from jepa_monitor.detectors import (
    DETECTORS,
    Combined,
    Detector,
    Reference,
    ScoredSet,
    SpectrumShape,
    choose_detectors,
    detect,
)
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.functional.outliers import outlier_fraction

EXACT = ScoreOptions(method="exact")
QUICK = Settings(batch_size=32, polarity_samples=0)
LEARNED = ("combined", "spectrum_shape")


class Curved(nn.Module):
    """K = 24, of images of 3 x 6 x 6 numbers, with Jacobians that differ."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(108, 24, generator=generator) / 10)

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(images.flatten(1) @ self.weight)


def some(count: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, 3, 6, 6, generator=generator)


def known(images: Tensor, law: Gaussian, own: bool = False) -> ScoredSet:
    """What detectors may know of images, by the functions for everybody."""
    with torch.no_grad():
        z = Curved()(images).double()
    return ScoredSet(
        images,
        z,
        jepa_score(Curved(), images),
        log_density(Curved(), images, law).log_density,
        jacobian_spectrum(Curved(), images),
        torch.zeros(len(images), dtype=torch.float64),
        torch.full((len(images),), own),
    )


def column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()


def printed(table: pa.Table) -> str:
    stream = io.StringIO()
    Console(width=250, file=stream).print(closing_table(table, info_of(table)["rank_by"]))
    return stream.getvalue()


def test_three_parts_of_a_reference_and_what_follows_against_scipy() -> None:
    data, reference = torch.cat([some(40, 1), some(8, 2, 8.0)]), some(150, 3)
    table = score_dataset(
        Curved(), TensorDataset(data), reference=TensorDataset(reference), options=EXACT,
        settings=QUICK, detectors=LEARNED,
    )  # fmt: skip
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    scored, fitted = order[:75], order[75:]  # at most half, the law has the others
    with torch.no_grad():
        base = Curved()(reference[fitted.sort().values]).double()
    law = Gaussian.fit(base)
    examples = known(reference[scored], law)
    usual = Reference(base, law, examples)
    detectors = choose_detectors([*choose_detectors(), "spectrum_shape"])
    sets = {"data": known(data, law), "reference": examples}
    found, failed = detect(detectors, usual, sets)
    assert not failed
    for name, expected in found["data"].items():
        assert column(table, name) == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-3), name
    levels = found["reference"]["combined"]
    assert int(torch.isnan(levels).sum()) == 37  # the half that was learned from
    levels = levels[37:].numpy()
    values = column(table, "combined")
    p = np.array([(1 + (levels <= value).sum()) / 39 for value in values])
    assert column(table, "p_value") == pytest.approx(p)
    assert column(table, "q_value") == pytest.approx(false_discovery_control(p))
    odd = np.arange(48) >= 40
    assert roc_auc_score(odd, -values) > 0.95
    info = info_of(table)
    assert (info["reference"], info["reference_scored"]) == (150, 75)
    share = (values < np.sort(levels)[int(0.05 * 39) - 1]).mean()  # the first of 38
    assert info["outliers/combined"] == pytest.approx(share)
    text = printed(table)
    usual_up_to = betabinom(48, 1, 38).ppf(0.975) / 48  # the law of exceedances
    assert f"{share:.1%}, {'NOT ' if share > usual_up_to else ''}as usual (0.0% to" in text
    assert f"to {usual_up_to:.1%} in 95 % of cases" in text
    assert "exact, 24 rows, compared with 150 images, 75 of them scored" in text


def test_of_one_law_the_share_of_outliers_is_usual_by_every_detector() -> None:
    count, data, reference = 300, some(300, 5), some(160, 6)
    names = ("spectrum_shape", "mahalanobis_normalized", "knn_normalized", "jepa_score_two_sided")
    table = score_dataset(
        Curved(), TensorDataset(data), reference=TensorDataset(reference), options=EXACT,
        settings=QUICK, detectors=names,
    )  # fmt: skip
    info = info_of(table)
    assert info["reference_scored"] == 80

    def p_value(share: float, size: int) -> float:
        order = int(0.05 * (size + 1))
        law, below = betabinom(count, order, size + 1 - order), round(share * count)
        return float(2 * min(law.cdf(below), law.sf(below - 1)))

    for name in (*names, "combined", "log_density", "mahalanobis", "knn", "jepa_score"):
        size = 40 if DETECTORS[name].least_examples else 80
        assert p_value(info[f"outliers/{name}"], size) > 0.001, name
    assert info["outliers/alarm"] == 0
    assert column(table, "q_value").min() > 0.1
    assert abs(column(table, "p_value").mean() - 0.5) < 4 * (1 / 12 / 40) ** 0.5
    assert ", as usual (" in printed(table)
    # To what a law is fitted to it is far closer than to others: had the images served twice …
    with torch.no_grad():
        z, base = (Curved()(images).double() for images in (data, reference[:80]))
    inside, outside = (-Gaussian.fit(base).mahalanobis_squared(some) for some in (base, z))
    share = outlier_fraction(outside, inside).fraction.item()
    assert p_value(share, 80) < 1e-6


def test_images_that_are_their_own_reference_are_judged_by_what_others_taught() -> None:
    data = torch.cat([some(160, 1), some(8, 2, 3.0)])
    table = score_dataset(
        Curved(), TensorDataset(data), options=EXACT, settings=QUICK, detectors=LEARNED
    )
    order = torch.randperm(168, generator=torch.Generator().manual_seed(0))[:84]
    with torch.no_grad():
        z = Curved()(data).double()
    law = Gaussian.fit(z)  # of all: they are judged alike
    halves, everything = order.split(42), known(data, law, own=True)
    for name, detector in (("combined", Combined()), ("spectrum_shape", SpectrumShape())):
        both = []
        for turn in (halves, halves[::-1]):
            reference = Reference(z, law, known(data[torch.cat(turn)], law, own=True))
            both.append(detector.fit(reference).score(everything))
        expected = both[0]
        expected[halves[0]] = both[1][halves[0]]
        assert column(table, name) == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-3)
    assert roc_auc_score(np.arange(168) >= 160, -column(table, "combined")) > 0.9
    # Their rank among themselves is `quantile`: there is nothing else to compare them with.
    assert table["p_value"].null_count == table["q_value"].null_count == 168
    assert not [tag for tag in info_of(table) if tag.startswith("outliers/")]


class Counting(TensorDataset):
    """Counts how often each image is read."""

    def __init__(self, images: Tensor) -> None:
        super().__init__(images)
        self.read = [0] * len(images)

    def __getitem__(self, index: int) -> Tensor:
        self.read[index] += 1
        return super().__getitem__(index)[0]


def test_interrupted_while_the_reference_is_scored_it_goes_on(tmp_path: pathlib.Path) -> None:
    data, reference = some(20, 1), some(140, 3)

    def run(out: pathlib.Path, progress: object = None) -> tuple[pa.Table, Counting]:
        counting = Counting(reference)
        table = score_dataset(
            Curved(), TensorDataset(data), out, reference=counting,
            settings=Settings(batch_size=16, polarity_samples=0), progress=progress,
        )  # fmt: skip
        return table, counting

    expected, whole = run(tmp_path / "whole.parquet")

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "examples" and done >= 32:
            raise KeyboardInterrupt

    out = tmp_path / "s.parquet"
    with pytest.raises(KeyboardInterrupt):
        run(out, stop)
    assert not out.exists()
    kept = sorted((tmp_path / "s.unfinished" / "examples").iterdir())
    assert len(kept) == 2
    table, rest = run(out)
    assert table.drop_columns([]).equals(expected, check_metadata=False)
    assert info_of(table)["outliers/combined"] == info_of(expected)["outliers/combined"]
    # Twice to score an image and to show it to the detectors, once of what had been scored.
    assert sum(whole.read) - sum(rest.read) == 140 + 32
    assert not (tmp_path / "s.unfinished").exists()


def test_shards_are_a_reference_too(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path / "data", 12)
    make_folder(tmp_path / "usual", 132)
    files = sorted((tmp_path / "usual").rglob("*.png"))
    for shard in range(3):
        with tarfile.open(tmp_path / f"s-{shard}.tar", "w") as archive:
            for path in files[44 * shard : 44 * shard + 44]:
                member = tarfile.TarInfo(f"{path.parent.name}-{path.name}")
                member.size = path.stat().st_size
                archive.addfile(member, io.BytesIO(path.read_bytes()))
    tables = [
        score_dataset(
            Small(), str(tmp_path / "data"), transform=transform, reference=name, settings=QUICK
        )
        for name in (str(tmp_path / "usual"), str(tmp_path / "s-{0..2}.tar"))
    ]
    for name in ("combined", "log_density", "p_value"):
        assert tables[0][name].null_count == 0, name
        assert tables[0][name].equals(tables[1][name]), name


@pytest.mark.parametrize(
    ("count", "asked", "words"),
    [
        (127, 128, "of whose 127 at most half are scored and at most 128 (--reference-scored)"),
        (160, 63, "of whose 160 at most half are scored and at most 63 (--reference-scored)"),
        (12, 128, "of whose 12 at most half are scored and at most 128 (--reference-scored)"),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_a_small_reference_says_what_it_would_take(
    count: int, asked: int, words: str, own: bool
) -> None:
    settings = Settings(batch_size=32, polarity_samples=0, reference_scored=asked)
    data, reference = (some(count, 3), None) if own else (some(14, 1), some(count, 3))
    table = score_dataset(
        Curved(), TensorDataset(data), options=EXACT, settings=settings,
        reference=None if reference is None else TensorDataset(reference),
    )  # fmt: skip
    info = info_of(table)
    best = "log_density" if count > 24 else "knn"
    assert (info["rank_by"], info["outlier_by"]) == (best, best)
    assert table["combined"].null_count == table["p_value"].null_count == len(table)
    assert info["missing"] == {"combined": f"it takes 64 scored images of the reference, {words}"}
    assert info["reference_scored"] == 0  # none is scored that nothing learns from
    text = printed(table)
    assert f"{best}, for want of combined" in text
    assert words in text


def test_a_law_is_not_made_void_by_scoring_its_reference() -> None:
    for count, scored in ((128, 64), (127, 0)):
        table = score_dataset(
            Curved(), TensorDataset(some(10, 1)), reference=TensorDataset(some(count, 2)),
            options=EXACT, settings=QUICK,
        )  # fmt: skip
        assert info_of(table)["reference_scored"] == scored
        assert table["log_density"].null_count == 0

    class Wide(Curved):
        def forward(self, images: Tensor) -> Tensor:
            z = images.flatten(1) @ torch.cat([self.weight] * 4, 1)
            return torch.sin(z + torch.arange(96) / 7)

    # Of 168 images 97 fit a law of 96 dimensions, which leaves 71 to be scored.
    table = score_dataset(
        Wide(), TensorDataset(some(10, 1)), reference=TensorDataset(some(168, 2)),
        options=EXACT, settings=QUICK,
    )  # fmt: skip
    assert info_of(table)["reference_scored"] == 71
    assert table["log_density"].null_count == table["combined"].null_count == 0


def test_a_score_that_is_asked_for_and_missing_is_replaced_by_the_next_best() -> None:
    settings = Settings(
        batch_size=32, polarity_samples=0, rank_by="spectrum_shape", outlier_by="spectrum_shape"
    )
    for count, best in ((140, "spectrum_shape"), (40, "log_density")):
        table = score_dataset(
            Curved(), TensorDataset(some(count, 3)), options=EXACT, settings=settings,
            detectors=["spectrum_shape"],
        )  # fmt: skip
        assert (info_of(table)["rank_by"], info_of(table)["outlier_by"]) == (best, best)
        assert len(set(table["quantile"].to_pylist())) == count


def test_inputs_without_bands_and_scores_that_fail_leave_the_rest() -> None:
    class NoScore(nn.Module):
        """A Jacobian that is never finite."""

        def forward(self, images: Tensor) -> Tensor:
            flat = images.flatten(1)
            return flat[:, :6] + (flat[:, 6:12] * 0).sqrt()

    data = TensorDataset(some(140, 1).flatten(1).abs())
    table = score_dataset(NoScore(), data, options=EXACT, settings=QUICK)
    assert table["jepa_score"].null_count == table["log_density"].null_count == 140
    assert table["knn"].null_count == 0
    assert table["combined"].null_count == 0  # k-NN and Mahalanobis are what it has


class Learner(Detector):
    """Somebody's own that cannot learn."""

    name = "learner"
    least_examples = 2

    def fit(self, reference: Reference) -> Learner:
        raise ValueError("`reference` has nothing for me.")

    def score(self, data: ScoredSet) -> Tensor:
        return data.scores


def test_a_detector_of_ones_own_that_cannot_learn_is_an_error() -> None:
    with pytest.raises(ValueError, match="`detectors`: learner has failed: ValueError: `ref"):
        score_dataset(
            Curved(), TensorDataset(some(140, 1)), options=EXACT, settings=QUICK,
            detectors=[Learner()],
        )  # fmt: skip


def test_rows_are_added_once_where_a_sketch_is_blind(tmp_path: pathlib.Path) -> None:
    data = some(160, 1)
    sketch = ScoreOptions(method="sketch", rows=16)
    table = score_dataset(Hidden(108), TensorDataset(data), options=sketch, settings=QUICK)
    drawn = torch.randperm(160, generator=torch.Generator().manual_seed(0))[:8]
    exact = jepa_score(Hidden(108), data)
    truth = pearsonr(column(table, "jepa_score")[drawn], exact[drawn]).statistic
    assert truth < 0.9
    info = info_of(table)
    assert info["agreement"]["correlation"] == pytest.approx(truth, abs=1e-3)
    assert info["agreement"]["rows"] == 16
    assert f"correlate {truth:.2f}" in dict(facts(table, "combined"))["method"]

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "scores" and done >= 32:
            raise KeyboardInterrupt

    out = tmp_path / "s.csv"
    with pytest.raises(KeyboardInterrupt):
        score_dataset(Hidden(108), TensorDataset(data), out, settings=QUICK, progress=stop)
    kept = tmp_path / "s.unfinished" / "sketch" / "00000000.npz"
    content = kept.read_bytes()
    phases = []
    table = score_dataset(
        Hidden(108), TensorDataset(data), out, settings=QUICK,
        progress=lambda phase, done, total: phases.append((phase, kept.read_bytes() == content)),
    )  # fmt: skip
    assert all(same for _, same in phases)  # decided once, for all of the run
    assert column(table, "jepa_score") == pytest.approx(exact.numpy(), abs=1e-3)
    assert info_of(table)["method"].startswith("exact, 48 rows; sketches of ")
    page = report(str(out)).read_text()
    assert "exact, 48 rows; sketches of " in page


def test_a_table_of_an_earlier_version_says_what_it_lacks(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path / "data", 20)
    words = {"transform": transform, "settings": QUICK, "options": EXACT}
    table = score_dataset(Small(), str(tmp_path / "data"), tmp_path / "s.parquet", **words)
    info = info_of(table)
    for name in ("missing", "reference_scored", "agreement"):
        del info[name]
    info |= {"rank_by": "jepa_score", "outlier_by": "log_density"}
    info["identity"] |= {"format": 3}
    info["identity"]["settings"] |= {"rank_by": "jepa_score", "outlier_by": "log_density"}
    del info["identity"]["settings"]["reference_scored"]
    old = with_info(table.drop_columns(["combined", "p_value", "q_value"]), info)
    out = tmp_path / "old.parquet"
    write_table(old, out)
    page = report(str(out)).read_text()
    assert '"rank_by":"jepa_score"' in page
    assert "jepa_score: the table is of an earlier version and has no combined" in page
    assert curate(str(out), str(tmp_path / "keep.txt"), low=0.5) == 10
    least = np.argsort(column(old, "jepa_score"))[:10]
    kept = (tmp_path / "keep.txt").read_text()
    assert not [i for i in least if old["path"][int(i)].as_py() in kept]
    found = compare(str(out), str(out))
    assert dict(found.facts)["Spearman correlation"] == "1.000"
    with pytest.raises(ValueError, match="`rank_by` must be one of jepa_score"):
        report(str(out), rank_by="combined")
    with pytest.raises(RefusedError, match="format: 3 → 4"):
        score_dataset(Small(), str(tmp_path / "data"), out, **words)


def test_a_table_without_its_run_is_ranked_by_the_best_that_it_has(tmp_path: pathlib.Path) -> None:
    generator = np.random.default_rng(0)
    columns = {"path": [f"{i}.png" for i in range(20)], "jepa_score": generator.normal(size=20)}
    for name in ("jepa_score", "log_density", "combined"):
        columns[name] = generator.normal(size=20)
        write_table(pa.table(columns), tmp_path / "s.jsonl")
        page = report(str(tmp_path / "s.jsonl")).read_text()
        assert f'"rank_by":{json.dumps(name)}' in page
        assert read_table(tmp_path / "s.jsonl").column_names == list(columns)


def test_how_many_to_score_is_checked() -> None:
    for wrong, kind in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(kind, match="`reference_scored` must be"):
            Settings(reference_scored=wrong)  # type: ignore[arg-type]
