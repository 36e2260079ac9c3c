"""What the metrics of codes and tokens refuse, and codes without places."""

from __future__ import annotations

import pytest
import torch

from jepa_monitor.metrics import DictionaryGeometry, TokenGeometry


def test_codes_with_and_without_images_are_the_same_points():
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(6, 5, 8, generator=generator) * (
        torch.rand(6, 5, 8, generator=generator) < 0.3
    )
    flat, images = (DictionaryGeometry(torch.eye(8)) for _ in range(2))
    flat.update(codes.flatten(0, 1))
    images.update(codes)
    found = flat.compute()
    torch.testing.assert_close(images.compute(), found)
    assert found["active"].item() == pytest.approx((codes > 0).sum(2).double().mean().item())
    placed = DictionaryGeometry(torch.eye(8), places=5)
    placed.update(codes)
    torch.testing.assert_close({name: placed.compute()[name] for name in found}, found)
    assert "footprint_entropy" not in found


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: DictionaryGeometry(torch.eye(3)).update(torch.eye(4)),
            r"\(B, 3\) or \(B, P, 3\), got",
        ),
        (
            lambda: DictionaryGeometry(torch.eye(3), places=2).update(torch.ones(4, 3)),
            r"must have shape \(B, 2, 3\), got \(4, 3\)",
        ),
        (lambda: DictionaryGeometry(torch.eye(3), places=1), "`places` must be at least 2"),
        (lambda: DictionaryGeometry(torch.zeros(3, 3)), "at least 2 atoms that are not 0"),
        (lambda: DictionaryGeometry(torch.eye(3), other=torch.eye(2)), "same last dimension"),
        (lambda: TokenGeometry(8, 4), "at most the 8 tokens of an image, got 10"),
        (lambda: TokenGeometry(8, 4, 3, neighbors=8), "`neighbors` must be at most 7, got 8"),
        (lambda: TokenGeometry(8, 4, 3, place_axes=5), "`place_axes` must be at most 4, got 5"),
        (
            lambda: TokenGeometry(8, 4, 3).update(torch.ones(2, 7, 4)),
            r"`tokens` must have shape \(B, 8, 4\), got \(2, 7, 4\)",
        ),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
