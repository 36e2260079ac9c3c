"""What is said of directions does not depend on how long the embeddings are."""

import pytest
import torch

from jepa_monitor import functional
from jepa_monitor.insights.collapse import collapse_scalars
from jepa_monitor.monitor.alarm import collapse_measures


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


Z = normal(60, 12) @ normal(12, 12, seed=1) + 1
OTHER = normal(60, 12, seed=2)
CLASSES = torch.arange(60) % 3
SCALE_FREE = {
    "rankme": functional.rankme,
    "effective_rank": functional.effective_rank,
    "participation_ratio": functional.participation_ratio,
    "stable_rank": functional.stable_rank,
    "stable_rank uncentred": lambda z: functional.stable_rank(z, centred=False),
    "alpha_req": lambda z: functional.alpha_req(z, (2, 11)),
    "normalized_std": functional.normalized_std,
    "collapse_level": functional.collapse_level,
    "uniformity": functional.uniformity,
    "alignment": lambda z: functional.alignment(z, OTHER),
    "mean_cosine": functional.mean_cosine,
    "mean_squared_cosine": functional.mean_squared_cosine,
    "mutual_knn": lambda z: functional.mutual_knn(z, OTHER),
    "knn_score": lambda z: functional.knn_score(OTHER, z),
    "separation": lambda z: functional.separation(z, CLASSES),
    "task_prior_performance": lambda z: functional.task_prior_performance(z, CLASSES),
    "prior_kernel": functional.prior_kernel,
    "centroid_alignment": lambda z: functional.centroid_alignment(z, OTHER),
    "jacobian_alignment": lambda z: functional.jacobian_alignment(z.view(20, 3, 12), OTHER[:20]),
    "rank_one_share": lambda z: functional.rank_one_share(z.abs()),
    "collapse_measures": collapse_measures,
    "collapse_scalars": lambda z: tuple(collapse_scalars(z).values()),
}


@pytest.mark.parametrize("name", SCALE_FREE)
@pytest.mark.parametrize("size", [1e-200, 1e-13, 1e-6, 1e13, 1e200])
def test_the_size_of_embeddings_does_not_matter(name, size):
    function = SCALE_FREE[name]
    torch.testing.assert_close(function(size * Z), function(Z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1e-300, 1e-20, 1.0])
def test_a_few_long_rows_do_not_hide_the_directions_of_short_ones(size):
    z = Z.clone()
    z[10:] *= size
    for name in ("uniformity", "mean_cosine", "mean_squared_cosine", "normalized_std", "alignment"):
        torch.testing.assert_close(SCALE_FREE[name](z), SCALE_FREE[name](Z), rtol=1e-9, atol=1e-9)
