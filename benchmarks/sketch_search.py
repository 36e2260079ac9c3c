"""Which few combinations of rows of the Jacobian order images as all rows do?

Trains small encoders, takes the full Jacobians of images at several stages of training, and then
tries estimators of the score that see a few rows only. All of them can be tried after the fact:
with the Gram matrix G = J Jᵀ of an image, that of the combined rows W J is W G Wᵀ.

Needs JEPA_MONITOR_DATA, a folder with cifar10_subset.npz, and Fashion-MNIST in idx-gzip form.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch
from _encoders import (
    Images,
    Snapshot,
    data_folder,
    fashion_images,
    in_colour,
    knn_accuracy,
    load_images,
    normalise,
    outliers,
    train,
)
from _results import parser
from torch import Tensor, nn

from jepa_monitor.functional.gaussian import Gaussian

IN, OUT, REFERENCES = 100, 20, 2000  # images: held-out, of each set of outliers, to fit laws on
NUDGED, SIZE = 1000, 1e-2  # images that are nudged, and by what noise
EPS = 1e-6


STAGES = {"lejepa": (0, 40, 120, 400), "vicreg": (40, 120, 400), "ema": (40, 120, 400)}
DRAWS = 5  # of a random estimator


class Dump(NamedTuple):
    """What the search needs of one encoder at one stage; float64.

    Args:
        name: Of the encoder and its output.
        step: Training steps so far.
        sets: Name of the set of each image; `in` for held-out images.
        gram: J Jᵀ of each image, (N, K, K).
        z: Embeddings of the same images, (N, K).
        references: Embeddings of training images, (M, K).
        responses: J u of training images for normal u, one an image, (M, K), from forward passes.
        knn: Accuracy of a nearest-neighbour classifier.
    """

    name: str
    step: int
    sets: list[str]
    gram: Tensor
    z: Tensor
    references: Tensor
    responses: Tensor
    knn: float


# ------------------------------------------------------------------------------------- measuring
def _embed(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(part) for part in images.split(250)])


def _rows(network: nn.Module, inputs: Tensor) -> Tensor:
    """All rows of the Jacobians, (N, K, D): one backward pass a row."""
    leaf = inputs.clone().requires_grad_()
    z = network(leaf)
    rows = leaf.new_empty(*z.shape, leaf[0].numel())
    for k in range(z.shape[1]):
        (gradient,) = torch.autograd.grad(z[:, k].sum(), leaf, retain_graph=True)
        rows[:, k] = gradient.flatten(1)
    return rows


def _nudged(images: Tensor, size: float) -> Tensor:
    """Add noise to images; J u of all their embeddings costs two forward passes in this way."""
    return images + size * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def measure(method: str, snapshot: Snapshot, images: Images, fashion: Tensor) -> list[Dump]:
    """Take Jacobians and embeddings of the backbone and of the projector behind it."""
    encoder = snapshot.encoder
    sets = {"in": images.test[:IN], **outliers(images.test[IN : IN + 5 * OUT], fashion)}
    names = [name for name, members in sets.items() for _ in members]
    probe = torch.cat(list(sets.values()))
    grams = []
    for part in probe.split(20):
        rows = _rows(encoder, part).double()
        grams.append(rows @ rows.mT)
    gram, z = torch.cat(grams), _embed(encoder, probe)
    head = _rows(snapshot.projector, z).double()
    shown, queries = images.train[:REFERENCES], slice(1000, 1500)
    inputs = (
        z,
        _embed(encoder, shown),
        _embed(encoder, _nudged(shown[:NUDGED], SIZE)),
        _embed(encoder, _nudged(shown[:NUDGED], -SIZE)),
        _embed(encoder, images.test[queries]),
    )
    found = []
    for output, network, matrices in (
        ("backbone", nn.Identity(), gram),
        ("projector", snapshot.projector, head @ gram @ head.mT),
    ):
        z, bank, ahead, behind, others = (_embed(network, part).double() for part in inputs)
        responses = (ahead - behind) / (2 * SIZE)
        accuracy = knn_accuracy(
            bank, images.train_labels[:REFERENCES], others, images.test_labels[queries]
        )
        fields = snapshot.step, names, matrices, z, bank, responses, accuracy
        found.append(Dump(f"{method} {output}", *fields))
    return found


def dumps(method: str, stages: tuple[int, ...], cache: Path, fashion: Path) -> list[Dump]:
    """Read what an earlier run has measured, or train and measure."""
    paths = {step: cache / f"{method}-{step}-of-{stages[-1]}.pt" for step in stages}
    if not all(path.exists() for path in paths.values()):
        cache.mkdir(parents=True, exist_ok=True)
        images, start = load_images(data_folder()), time.perf_counter()
        outside = normalise(in_colour(fashion_images(OUT, folder=fashion)))
        for snapshot in train(method, images.train, stages):
            if paths[snapshot.step].exists():
                continue
            found = measure(method, snapshot, images, outside)
            torch.save([tuple(dump) for dump in found], paths[snapshot.step])
            seconds = time.perf_counter() - start
            print(
                f"{method}: step {snapshot.step}, {seconds:.0f} s, k-NN {found[0].knn:.2f}",
                flush=True,
            )
    return [
        Dump(*fields) for path in paths.values() for fields in torch.load(path, weights_only=True)
    ]


# --------------------------------------------------------------------------------------- scoring
def exact_scores(gram: Tensor) -> Tensor:
    """JEPA-SCORE of each image from its Gram matrix.

    A LayerNorm at the end makes the Jacobian singular in one direction and, but for its eps, in a
    second, where float32 rows hold little else than rounding errors. Both count as zero.

    Args:
        gram: J Jᵀ, (N, K, K), float64.

    Returns:
        (N,), in nats.
    """
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    zero = values < 32 * torch.finfo(torch.float32).eps * values[:, -1:]
    return values.masked_fill(zero, 0.0).clamp_min(EPS).log().sum(1)


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of scores, which have no ties."""
    ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Chance that an image of the first kind scores higher than one of the second."""
    return float((inside[:, None] > outside).double().mean())


# ------------------------------------------------------------------------------------- estimators
def power(matrix: Tensor, exponent: float) -> Tensor:
    """Power of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(1e-12 * values[-1]) ** exponent) @ vectors.mT


def axes(matrix: Tensor) -> Tensor:
    """Eigenvectors of a symmetric matrix as rows, that of the largest eigenvalue first."""
    return torch.linalg.eigh(matrix).eigenvectors.flip(1).mT


def orthonormal(rows: int, width: int, seed: int) -> Tensor:
    """A random matrix (rows, width) with orthonormal rows."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(width, rows, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(normal).Q.mT


class Laws:
    """What forward passes of training images (and, to compare, a few full Jacobians) tell."""

    def __init__(self, dump: Dump) -> None:
        self.width = dump.z.shape[1]
        self._dump = dump

    @cached_property
    def sigma(self) -> Tensor:
        """Covariance of embeddings, shrunk as `Gaussian.fit` does."""
        return Gaussian.fit(self._dump.references).covariance

    def sigma_of(self, count: int, shrinkage: float) -> Tensor:
        """Covariance from fewer embeddings, or shrunk otherwise."""
        return Gaussian.fit(self._dump.references[:count], shrinkage).covariance

    @cached_property
    def noise(self) -> Tensor:
        """Covariance of the embeddings' response to noise: an estimate of the mean of J Jᵀ."""
        return Gaussian.fit(self._dump.responses).covariance

    @cached_property
    def joint(self) -> Tensor:
        """Rows in which both covariances are diagonal."""
        root = power(self.sigma, -0.5)
        return axes(root @ self.noise @ root) @ root

    @cached_property
    def few_exact(self) -> Tensor:
        """Mean of J Jᵀ of eight images; costs 8 K backward passes."""
        mean = self._dump.gram[:8].mean(0)
        return mean + 1e-4 * mean.trace() / self.width * torch.eye(self.width, dtype=mean.dtype)


def log_volume(weights: Tensor, gram: Tensor, spread: float = 1.0) -> Tensor:
    """Log-volume of the combined rows W J, scaled from R rows to K.

    Args:
        weights: W, (R, K).
        gram: J Jᵀ, (N, K, K).
        spread: Weight of the gap between geometric and arithmetic mean of the eigenvalues, which
            a sketch makes too small; 1 leaves the log-volume as it is.

    Returns:
        (N,).
    """
    values = torch.linalg.eigvalsh(weights @ gram @ weights.mT)
    level = values.mean(1).log()
    return gram.shape[1] / 2 * (level + spread * (values.log().mean(1) - level))


def krylov(basis: Tensor, matrices: Tensor, steps: int) -> Tensor:
    """Gauss quadrature of tr(P log(A) Pᵀ), A = X J Jᵀ X, from a block Krylov space (Lanczos).

    The rows of each block are those to which A sends the block before. One step is a sketch whose
    weights are P X.

    Args:
        basis: P with orthonormal rows, (n, K).
        matrices: A, (N, K, K).
        steps: Blocks.

    Returns:
        (N,), scaled from n rows to K.
    """
    count, width = basis.shape
    space = block = basis.mT.expand(len(matrices), -1, -1)
    for _ in range(steps - 1):
        block = matrices @ block
        for _ in range(2):  # once leaves rounding errors
            block = block - space @ (space.mT @ block)
        block = torch.linalg.qr(block).Q
        space = torch.cat([space, block], 2)
    values, vectors = torch.linalg.eigh(space.mT @ matrices @ space)
    share = vectors[:, :count].square().sum(1)
    return width / (2 * count) * (share * values.clamp_min(1e-20).log()).sum(1)


class Estimator(NamedTuple):
    """A way to estimate scores.

    Args:
        name: Of the estimator.
        vjp: Backward passes an image.
        jvp: Products J u an image besides, each as dear as one or two forward passes.
        scores: Gram matrices and a seed → scores.
        draws: Number of seeds to try.
    """

    name: str
    vjp: int
    jvp: int
    scores: Callable[[Tensor, int], Tensor]
    draws: int = DRAWS


def _random(name: str, rows: int, whitening: Tensor, spread: float = 1.0) -> Estimator:
    def scores(gram: Tensor, seed: int) -> Tensor:
        return log_volume(orthonormal(rows, len(whitening), seed) @ whitening, gram, spread)

    return Estimator(name, rows, 0, scores)


def _picked(name: str, rows: Tensor) -> Estimator:
    return Estimator(name, len(rows), 0, lambda gram, _: log_volume(rows, gram), draws=1)


def _deep(name: str, rows: int, steps: int, matrices: Tensor) -> Estimator:
    def scores(_: Tensor, seed: int) -> Tensor:
        return krylov(orthonormal(rows, matrices.shape[1], seed), matrices, steps)

    return Estimator(f"{name}, {rows} × {steps}", rows * steps, rows * (steps - 1), scores)


def fixed_weights(laws: Laws, rows: int) -> list[Estimator]:
    """All estimators with one W for all images, at R rows."""
    width, stride = laws.width, laws.width // rows
    sigma, noise = laws.sigma, laws.noise
    root = power(sigma, -0.5)
    found = [_random("random", rows, torch.eye(width, dtype=torch.float64))]
    found += [_random(f"Σ^−{a}, random", rows, power(sigma, -a)) for a in (0.25, 0.5, 0.75, 1.0)]
    found += [_random(f"M^−{a}, random", rows, power(noise, -a)) for a in (0.25, 0.5)]
    for spread in (1.5, 2.0, 3.0):
        found.append(_random(f"Σ^−0.5, random, spread × {spread:g}", rows, root, spread))
    found += [
        _random("Σ^−0.5 not shrunk, random", rows, power(laws.sigma_of(REFERENCES, 0.0), -0.5)),
        _random("Σ^−0.5 shrunk by 0.1, random", rows, power(laws.sigma_of(REFERENCES, 0.1), -0.5)),
        _random("Σ^−0.5 of 500 images, random", rows, power(laws.sigma_of(500, 0.05), -0.5)),
        _random("8 exact^−0.5, random", rows, power(laws.few_exact, -0.5)),
    ]
    for name, basis in (("Σ", axes(sigma)), ("M", axes(noise)), ("joint", laws.joint)):
        found += [
            _picked(f"axes of {name}, first of each {stride}", basis[::stride][:rows]),
            _picked(f"axes of {name}, middle", basis[stride // 2 :: stride][:rows]),
            _picked(f"axes of {name}, last", basis[stride - 1 :: stride][:rows]),
        ]
    basis = axes(sigma)
    logarithmic = torch.logspace(0, torch.log10(torch.tensor(float(width))), rows).long() - 1
    found += [
        _picked("axes of Σ, log-spaced", basis[logarithmic.clamp(0, width - 1).unique()]),
        _picked("axes of Σ, top", basis[:rows]),
        _picked("axes of Σ, bottom", basis[-rows:]),
    ]
    whitened = basis @ root

    def combined(gram: Tensor, seed: int, groups: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        weights = torch.zeros(rows, width, dtype=torch.float64)
        weights[groups, torch.arange(width)] = torch.randn(
            width, generator=generator, dtype=torch.float64
        )
        return log_volume(weights @ whitened, gram)

    def one_of_each(gram: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        picks = torch.arange(rows) * stride + torch.randint(stride, (rows,), generator=generator)
        return log_volume(basis[picks], gram)

    neighbours, interleaved = torch.arange(width) * rows // width, torch.arange(width) % rows
    found += [
        Estimator("axes of Σ, random one of each group", rows, 0, one_of_each),
        Estimator("mixed neighbouring axes of Σ", rows, 0, partial(combined, groups=neighbours)),
        Estimator("mixed distant axes of Σ", rows, 0, partial(combined, groups=interleaved)),
    ]
    return found


def candidates(laws: Laws, gram: Tensor) -> list[Estimator]:
    """All estimators to try for one encoder."""
    roots = {"Σ^−0.5": power(laws.sigma, -0.5), "M^−0.5": power(laws.noise, -0.5)}
    found = fixed_weights(laws, laws.width // 16)
    for name, root in roots.items():
        matrices = root @ gram @ root
        for rows in (1, 2, 4, 8, 12, 16, 24, 32, 48):
            found.append(_random(f"{name}, R = {rows}", rows, root))
        for rows, steps in ((4, 2), (8, 2), (12, 2), (2, 3), (3, 3), (4, 3), (2, 4), (1, 6)):
            found.append(_deep(f"{name}, Krylov", rows, steps, matrices))
    return found


# ------------------------------------------------------------------------------------ comparison
def calibration(scores: Tensor, exact: Tensor, distance: Tensor, count: int) -> dict[str, float]:
    """Error in nats on the other images once `count` exact scores are known.

    Args:
        scores: Estimated, scaled from R rows to K.
        exact: The exact scores.
        distance: Squared Mahalanobis distance of the embeddings.
        count: Images to fit on; the first ones.

    Returns:
        Root mean square error with an offset alone, with a slope besides, and with a weight of the
        distance besides.
    """
    one = torch.ones_like(scores)
    fits = {
        "offset": (exact - scores, [one]),
        "slope": (exact, [one, scores]),
        "distance": (exact, [one, scores, distance]),
    }
    errors = {}
    for name, (target, columns) in fits.items():
        design = torch.stack(columns, 1)
        weights = torch.linalg.lstsq(design[:count], target[:count, None], driver="gelsd").solution
        errors[name] = float((target - (design @ weights)[:, 0])[count:].square().mean().sqrt())
    return errors


def compare(dump: Dump) -> list[dict[str, object]]:
    """Judge all estimators on one encoder at one stage."""
    laws, inside = Laws(dump), torch.tensor([name == "in" for name in dump.sets])
    exact = exact_scores(dump.gram)
    gaussian = Gaussian.fit(dump.references)
    distance = gaussian.mahalanobis_squared(dump.z)
    records: list[dict[str, object]] = []
    for estimator in candidates(laws, dump.gram):
        rows = []
        for seed in range(estimator.draws):
            scores = estimator.scores(dump.gram, seed)
            result = {
                "all": spearman(scores, exact),
                "in": spearman(scores[inside], exact[inside]),
                "log_density": spearman(scores - distance / 2, exact - distance / 2),
                "auroc_error": max(
                    abs(
                        auroc(scores[inside], scores[members])
                        - auroc(exact[inside], exact[members])
                    )
                    for name in dict.fromkeys(dump.sets)
                    if name != "in"
                    for members in [torch.tensor([other == name for other in dump.sets])]
                ),
            }
            for count in (8, 16):
                found = calibration(scores[inside], exact[inside], distance[inside], count)
                result |= {f"rmse_{name}_{count}": error for name, error in found.items()}
            rows.append(result)
        mean = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        record: dict[str, object] = {
            "encoder": dump.name,
            "step": dump.step,
            "estimator": estimator.name,
            "vjp": estimator.vjp,
            "jvp": estimator.jvp,
        }
        record |= {key: round(value, 4) for key, value in mean.items()}
        record |= {f"{key}_min": round(min(row[key] for row in rows), 4) for key in ("all", "in")}
        records.append(record)
    return records


def print_table(records: list[dict[str, object]], output: str) -> None:
    """Spearman × 100 with the exact score: of all images | of held-out images alone."""
    chosen = [r for r in records if str(r["encoder"]).endswith(output)]
    columns = list(dict.fromkeys((r["encoder"], r["step"]) for r in chosen))
    heads = [f"{str(encoder).split()[0]} {step}" for encoder, step in columns]
    print(
        f"\n{output}: Spearman × 100, all images | held-out alone; worst: of the means, of the draws"
    )
    print(f"{'estimator':38}{'passes':>7} " + " ".join(f"{head:>11}" for head in heads) + "  worst")
    for name in dict.fromkeys(r["estimator"] for r in chosen):
        line = {(r["encoder"], r["step"]): r for r in chosen if r["estimator"] == name}
        first = next(iter(line.values()))
        cells = " ".join(f"{100 * r['all']:5.1f}|{100 * r['in']:5.1f}" for r in line.values())
        worst = min(min(r["all"], r["in"]) for r in line.values())
        lowest = min(min(r["all_min"], r["in_min"]) for r in line.values())
        passes = f"{first['vjp']}+{first['jvp']}" if first["jvp"] else f"{first['vjp']}"
        print(f"{name:38}{passes:>7} {cells}  {100 * worst:.1f} {100 * lowest:.1f}")


def main() -> None:
    """Train and measure what the cache lacks, then compare."""
    options = parser(__doc__)
    options.add_argument("--cache", type=Path, required=True, help="folder for Jacobians (700 MB)")
    options.add_argument(
        "--fashion",
        type=Path,
        default=Path("/usr/share/datasets/fashion-mnist"),
        help="folder with t10k-images-idx3-ubyte.gz (default: where Debian's package puts it)",
    )
    options.add_argument("--methods", nargs="+", choices=STAGES, default=list(STAGES))
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    records, encoders = [], []
    for method in arguments.methods:
        for dump in dumps(method, STAGES[method], arguments.cache, arguments.fashion):
            exact = exact_scores(dump.gram)[:IN]
            encoders.append(
                {
                    "encoder": dump.name,
                    "step": dump.step,
                    "knn": round(dump.knn, 4),
                    "score_mean": round(float(exact.mean()), 2),
                    "score_std": round(float(exact.std()), 2),
                }
            )
            records += compare(dump)
    for output in ("backbone", "projector"):
        print_table(records, output)
    if arguments.out:
        lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
        heads = ",\n".join(json.dumps(encoder) for encoder in encoders)
        arguments.out.write_text(f'{{"encoders": [\n{heads}\n],\n"results": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
