"""Sparse autoencoders of points: in go points (N, d), out come codes, a dictionary and what it explains.

Every way of training here yields a :class:`SparseAutoencoder`. To try another code, edit ``codes``; another dictionary,
``dictionary``; another way of training, ``train_sgd`` or ``train_pam``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from jepa_monitor._checks import check_choice, check_positive_int
from jepa_monitor.functional import batch_topk_codes, pam_decoder_step, topk_codes
from jepa_monitor.functional._kmeans import kmeans

VARIANTS = ("topk", "archetypal", "pam")
CODES = ("topk", "batch_topk", "signed")
STARTS = ("random", "kmeans")


@dataclass(frozen=True)
class Settings:
    """How to train; the defaults are those of ``python -m jepa_monitor.recipes.sae``.

    Args:
        variant: ``topk``: atoms are free; ``archetypal``: mixtures of k-means centroids (RA-SAE); ``pam``: the
            decoder is solved for exactly after each epoch of the encoder (PAM-SGD).
        codes: ``topk``, ``batch_topk``, or ``signed`` top k of absolute values, as published with PAM-SGD.
        atoms: c.
        k: How many fire for a point.
        tied: Whether the dictionary is the encoder's weight, as in the published baseline of PAM-SGD.
        start: Atoms at the start: ``random`` directions or ``kmeans`` centroids.
        start_seed: Of what they start from, k-means included; by default ``seed``. The published stability of archetypal
            dictionaries shares it between seeds.
        points_per_atom: Centroids for each atom, of which archetypal atoms are mixtures.
        relaxation: How far an archetypal atom may leave the hull of the centroids, in their units.
        auxiliary: Weight of what unused atoms make of the residual, against dead atoms, 0.1 as published; 0
            for none.
        alpha: α of the exact decoder step, of the sum over points; so are the next three.
        beta: β.
        mu: μ, also of the encoder's weight at each epoch.
        nu: ν, also of the encoder's bias.
        epochs: Passes over the points.
        batch_size: Points a step.
        learning_rate: Of Adam.
        seed: Of the weights and the order of points.
    """

    variant: str = "topk"
    codes: str = "topk"
    atoms: int = 512
    k: int = 8
    tied: bool = False
    start: str = "random"
    start_seed: int | None = None
    points_per_atom: int = 4
    relaxation: float = 1.0
    auxiliary: float = 0.0
    alpha: float = 1e-6
    beta: float = 1e-6
    mu: float = 1e-3
    nu: float = 1e-3
    epochs: int = 10
    batch_size: int = 256
    learning_rate: float = 1e-3
    seed: int = 0


def check(points: Tensor, settings: Settings) -> None:
    """Raise unless points and settings fit.

    Args:
        points: (N, d).
        settings: How to train.

    Raises:
        ValueError: If they do not.
    """
    for name, choices in (("variant", VARIANTS), ("codes", CODES), ("start", STARTS)):
        check_choice(getattr(settings, name), name, choices)
    for name in ("atoms", "k", "epochs", "batch_size", "points_per_atom"):
        check_positive_int(getattr(settings, name), name)
    if settings.k > settings.atoms:
        raise ValueError(f"`k` must be at most the {settings.atoms} atoms, got {settings.k}.")
    if points.ndim != 2 or not bool(torch.isfinite(points).all()):
        raise ValueError(f"`points` must be finite and (N, d), got shape {tuple(points.shape)}.")
    if len(points) < settings.atoms:
        raise ValueError(
            f"`atoms` must be at most the number of points, {len(points)}, got {settings.atoms}."
        )
    if not bool((points != points[0]).any()):
        raise ValueError("`points` are all the same: there is nothing to learn.")
    if settings.variant != "topk" and settings.tied:
        raise ValueError(f"`tied` is of variant 'topk', got {settings.variant!r}.")


def centroids(points: Tensor, count: int, seed: int, most: int = 20_000) -> Tensor:
    """Cluster points.

    Args:
        points: (N, d).
        count: Number of clusters; cut to that of points.
        seed: Of k-means, and of the points that it sees.
        most: How many these are, and at least as many as clusters.

    Returns:
        Centroids (count, d).
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(points), generator=generator)[: max(most, count)]
    found = kmeans(
        points[chosen][None], min(count, len(points)), seed, iterations=15, by_products=True
    )
    return found.centroids[0]


class SparseAutoencoder(nn.Module):
    """A linear encoder, sparse codes and a linear decoder.

    Args:
        points: To start from, (N, d).
        settings: How.
    """

    def __init__(self, points: Tensor, settings: Settings) -> None:
        super().__init__()
        check(points, settings)
        self.settings, width = settings, points.shape[1]
        generator = torch.Generator().manual_seed(settings.seed)
        start_seed = settings.seed if settings.start_seed is None else settings.start_seed
        archetypal = settings.variant == "archetypal"
        if archetypal:
            spread = centroids(points, settings.points_per_atom * settings.atoms, start_seed)
            self.register_buffer("spread", spread)
            self.spread: Tensor
            self.mixture = nn.Parameter(torch.zeros(settings.atoms, len(spread)))
            # A centroid of its own for each atom: with W = eye(c, n) and n < c the rest would be 0.
            order = torch.Generator().manual_seed(start_seed)
            picked = torch.randperm(len(spread), generator=order)[: settings.atoms]
            with torch.no_grad():
                self.mixture[range(settings.atoms), picked] = 1.0
            self.relaxed = nn.Parameter(torch.zeros(settings.atoms, width))
            self.size = nn.Parameter(torch.zeros(()))
            atoms = spread[picked]
        elif settings.start == "kmeans":
            atoms = centroids(points, settings.atoms, start_seed)
        else:
            drawn = (
                generator
                if settings.start_seed is None
                else torch.Generator().manual_seed(start_seed)
            )
            atoms = torch.randn(settings.atoms, width, generator=drawn)
        atoms = nn.functional.normalize(atoms, dim=1)
        self.weight = nn.Parameter(atoms.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(settings.atoms))
        self.bias = nn.Parameter(points.mean(0))
        self.atoms = None if settings.tied or archetypal else nn.Parameter(atoms.clone())
        self.register_buffer("threshold", torch.zeros(()))
        self.threshold: Tensor
        if not settings.tied:
            self.fit_scale(points[:4096])

    @torch.no_grad()
    def fit_scale(self, points: Tensor) -> None:
        """Scale the encoder so that the first reconstructions have the best length.

        Centroids crowd where points do: several fire along one direction, and their sum is too long.

        Args:
            points: (N, d).
        """
        found = self(points)[1] - self.bias
        length = found.square().sum()
        gain = (found * (points - self.bias)).sum() / length
        if bool(length > 0) and bool(gain > 0):
            self.weight.mul_(gain)
            self.threshold.zero_()

    def dictionary(self) -> Tensor:
        """Make the atoms.

        Returns:
            (c, d).
        """
        if self.atoms is not None:
            return self.atoms
        if self.settings.tied:
            return self.weight
        atoms: Tensor = (self.mixture @ self.spread + self.relaxed) * self.size.exp()
        return atoms

    def scores(self, points: Tensor) -> Tensor:
        """Encode points, before any is left out.

        Args:
            points: (N, d).

        Returns:
            (N, c).
        """
        return points @ self.weight.T + self.encoder_bias

    def codes(self, scores: Tensor) -> Tensor:
        """Let few atoms fire.

        A batch decides together on BatchTopK in training only; after it, a threshold does for each point.

        Args:
            scores: (N, c).

        Returns:
            (N, c).
        """
        kind, k = self.settings.codes, self.settings.k
        if kind != "batch_topk":
            return topk_codes(scores, k, signed=kind == "signed")
        if not self.training:
            return scores * (scores > self.threshold)
        codes = batch_topk_codes(scores, k)
        with torch.no_grad():
            fired = codes[codes > 0]
            if len(fired):
                first = self.threshold == 0
                self.threshold.lerp_(fired.amin(), 1.0 if bool(first) else 0.05)
        return codes

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Encode and decode.

        Args:
            points: (N, d).

        Returns:
            Codes (N, c) and reconstructions (N, d).
        """
        codes = self.codes(self.scores(points))
        return codes, codes @ self.dictionary() + self.bias

    @torch.no_grad()
    def constrain(self) -> None:
        """Put mixtures back onto the simplex and relaxations into their ball, after a step."""
        if self.settings.variant != "archetypal":
            return
        mixture = self.mixture.clamp_(min=0)
        empty = mixture.sum(1, keepdim=True) == 0
        mixture.add_(empty / mixture.shape[1]).div_(mixture.sum(1, keepdim=True))
        length = self.relaxed.norm(dim=1, keepdim=True)
        self.relaxed.mul_((self.settings.relaxation / length.clamp(min=1e-12)).clamp(max=1))


def loss(model: SparseAutoencoder, points: Tensor) -> Tensor:
    """Mean squared error, and what unused atoms make of the residual.

    Args:
        model: To train.
        points: (N, d).

    Returns:
        0-dimensional.
    """
    scores = model.scores(points)
    codes, dictionary = model.codes(scores), model.dictionary()
    residual = points - codes @ dictionary - model.bias
    value = residual.square().mean()
    if model.settings.auxiliary > 0:
        unused = scores.relu() - codes if model.settings.codes != "signed" else scores - codes
        half = topk_codes(unused, max(scores.shape[1] // 2, 1), model.settings.codes == "signed")
        value = value + model.settings.auxiliary * (residual - half @ dictionary).square().mean()
    return value


def train(points: Tensor, settings: Settings) -> SparseAutoencoder:
    """Train a sparse autoencoder.

    Args:
        points: (N, d), float32, centred.
        settings: How.

    Returns:
        The model in evaluation mode.
    """
    model = SparseAutoencoder(points, settings)
    learned = [model.weight, model.encoder_bias] if settings.variant == "pam" else None
    optimizer = torch.optim.Adam(learned or model.parameters(), settings.learning_rate)
    generator = torch.Generator().manual_seed(settings.seed)
    if settings.variant == "pam":
        solve_decoder(model, points)
    for _ in range(settings.epochs):
        before = model.weight.detach().clone(), model.encoder_bias.detach().clone()
        order = torch.randperm(len(points), generator=generator)
        for batch in torch.split(order, settings.batch_size):
            value = loss(model, points[batch])
            if settings.variant == "pam":
                # The objective is a sum over all points; this is its mean.
                near = settings.mu * (model.weight - before[0]).square().sum()
                near = near + settings.nu * (model.encoder_bias - before[1]).square().sum()
                value = value + near / points.numel()
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            model.constrain()
        if settings.variant == "pam":
            solve_decoder(model, points)
    return model.eval()


@torch.no_grad()
def solve_decoder(model: SparseAutoencoder, points: Tensor, ridge: float | None = None) -> None:
    """Solve for atoms and bias of the codes as they are: the step of PAM, or least squares after SGD.

    Args:
        model: Whose decoder to set.
        points: All of them, (N, d).
        ridge: α = β of a solve that is pulled to nothing else; by default the settings' penalties.

    Raises:
        ValueError: If the atoms are not free to be solved for.
    """
    if model.atoms is None:
        raise ValueError("`model` has no atoms of its own to solve for: they are tied or mixtures.")
    h = model.settings
    if ridge is None:
        alpha, beta, mu, nu = h.alpha, h.beta, h.mu, h.nu
    else:
        alpha, beta, mu, nu = ridge, ridge, 0.0, 0.0
    codes = torch.cat([model.codes(model.scores(part)) for part in torch.split(points, 8192)])
    found = pam_decoder_step(
        points, codes, model.atoms, model.bias, alpha=alpha, beta=beta, mu=mu, nu=nu
    )
    model.atoms.copy_(found.dictionary)
    model.bias.copy_(found.bias)


def untied(model: SparseAutoencoder) -> SparseAutoencoder:
    """Give a tied autoencoder atoms of its own, which start as the encoder's weight.

    Args:
        model: Tied.

    Returns:
        A copy that is not.
    """
    copy = SparseAutoencoder(
        model.weight.detach(), replace(model.settings, tied=False, start="random")
    )
    copy.load_state_dict({**model.state_dict(), "atoms": model.weight.detach()})
    return copy.eval()


@torch.no_grad()
def encode(model: SparseAutoencoder, points: Tensor) -> tuple[Tensor, Tensor]:
    """Encode and decode many points.

    Args:
        model: Trained.
        points: (N, d).

    Returns:
        Codes (N, c) and reconstructions (N, d).
    """
    parts = [model(part) for part in torch.split(points, 8192)]
    codes, reconstructions = (torch.cat(kind) for kind in zip(*parts, strict=True))
    return codes, reconstructions


def unexplained(points: Tensor, reconstructions: Tensor, *, scalar_mean: bool = False) -> float:
    """Share of the variance of points that reconstructions leave.

    Args:
        points: (N, d).
        reconstructions: (N, d).
        scalar_mean: Whether the variance is taken about one number instead of the mean of each coordinate, as in the
            published R², which looks better the more coordinates differ in their means.

    Returns:
        1 − R², from 0.
    """
    centre = points.mean() if scalar_mean else points.mean(0)
    total = (points - centre).double().square().sum()
    value = float((points - reconstructions).double().square().sum() / total)
    return value if math.isfinite(value) else math.nan
