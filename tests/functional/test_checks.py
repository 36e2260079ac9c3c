import math

import pytest
import torch

from jepa_monitor.functional import _checks


@pytest.mark.parametrize(
    ("check", "value", "error", "message"),
    [
        (_checks.as_matrix, [[1.0]], TypeError, "`z` must be a torch.Tensor, got list."),
        (
            _checks.as_matrix,
            torch.ones(2, 2, dtype=torch.long),
            TypeError,
            "`z` must be a floating-point tensor, got torch.int64.",
        ),
        (
            _checks.as_matrix,
            torch.ones(2),
            ValueError,
            "`z` must have shape (N, K) with K ≥ 1, got (2,).",
        ),
        (
            _checks.as_matrix,
            torch.ones(2, 0),
            ValueError,
            "`z` must have shape (N, K) with K ≥ 1, got (2, 0).",
        ),
        (
            _checks.as_matrix,
            torch.ones(0, 2),
            ValueError,
            "`z` must have at least 1 row, got 0.",
        ),
        (
            _checks.as_matrix,
            torch.tensor([[1.0, math.nan], [math.inf, math.nan], [1.0, 1.0]]),
            ValueError,
            "`z` has 2 non-finite rows of 3; count them and filter them out first.",
        ),
        (
            _checks.as_vector,
            torch.ones(2, 2),
            ValueError,
            "`z` must have shape (N,), got (2, 2).",
        ),
        (
            _checks.as_vector,
            torch.tensor([1.0, -math.inf]),
            ValueError,
            "`z` has 1 non-finite values of 2; count them and filter them out first.",
        ),
        (
            _checks.as_unit_interval,
            torch.tensor([-0.5, 1.5]),
            ValueError,
            "`z` must lie in [0, 1], got values from -0.5 to 1.5.",
        ),
    ],
)
def test_tensor_checks_say_what_came(check, value, error, message):
    with pytest.raises(error) as caught:
        check(value, "z")
    assert str(caught.value) == message


def test_minimum_of_rows():
    with pytest.raises(ValueError, match=r"`z` must have at least 3 rows, got 2\."):
        _checks.as_matrix(torch.ones(2, 2), "z", min_rows=3)


@pytest.mark.parametrize("shape", [(4, 2), (4, 1, 2), (4, 2, 0)])
def test_views_need_three_dimensions(shape):
    with pytest.raises(ValueError, match=r"must have shape \(N, V, K\) with V ≥ 2 and K ≥ 1, got"):
        _checks.as_views(torch.ones(shape), "z", min_samples=2, min_views=2)


def test_views_count_broken_samples():
    z = torch.ones(3, 2, 2)
    z[1, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"1 non-finite rows of 3"):
        _checks.as_views(z, "z", min_samples=2, min_views=2)


def test_pairs():
    a, b = torch.ones(3, 2), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"`a` and `b` must have the same shape, got \(3, 2\) and"):
        _checks.require_same_shape(a, b, ("a", "b"))
    with pytest.raises(ValueError, match=r"same last dimension, got \(3, 2\) and \(2, 3\)\."):
        _checks.require_same_width(a, b, ("a", "b"))


@pytest.mark.parametrize(
    ("value", "high", "closed", "error", "message"),
    [
        ("1", 1, True, TypeError, "`x` must be a number, got str."),
        (True, 1, True, TypeError, "`x` must be a number, got bool."),
        (2, 1, True, ValueError, "`x` must lie in [0, 1], got 2."),
        (0, 1, False, ValueError, "`x` must lie in (0, 1), got 0."),
        (-1, math.inf, True, ValueError, "`x` must lie in [0, inf), got -1."),
        (math.inf, math.inf, True, ValueError, "`x` must lie in [0, inf), got inf."),
        (math.nan, 1, True, ValueError, "`x` must lie in [0, 1], got nan."),
    ],
)
def test_numbers(value, high, closed, error, message):
    with pytest.raises(error) as caught:
        _checks.require_number(value, "x", 0, high, closed=closed)
    assert str(caught.value) == message


def test_good_values_pass_in_float64():
    assert _checks.as_matrix(torch.ones(2, 2).half(), "z").dtype == torch.float64
    assert _checks.as_views(torch.ones(2, 2, 2), "z", 2, 2).dtype == torch.float64
    assert _checks.require_number(1, "x", 0) == 1.0
