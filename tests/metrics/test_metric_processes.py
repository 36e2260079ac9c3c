"""Two processes find what one finds on all data, also if one of them has none."""

import warnings

import pytest
import torch
from helpers import in_two_processes
from metric_cases import CASES
from torch import nn

DEFAULTS = [name for name in CASES if "(" not in name]
SHARDS = {
    "strided": (slice(0, None, 2), slice(1, None, 2)),
    "uneven": (slice(0, 70), slice(70, None)),
    "empty rank": (slice(None), slice(0, 0)),
}


def batches(inputs, size):
    return zip(*(tensor.split(size) for tensor in inputs), strict=True)


def work(rank, folder):
    del folder
    warnings.simplefilter("ignore")  # of `compute` before `update` on the empty rank
    results = {}
    for kind, shards in SHARDS.items():
        for name in CASES if kind == "empty rank" else DEFAULTS:
            make, inputs, _ = CASES[name]
            metric = make()
            # As Lightning's bf16-true and its strategies do with the module that holds the metric.
            nn.ModuleList([metric]).to("cpu").to(torch.bfloat16)
            mine = tuple(x[shards[rank]] for x in inputs)
            if len(mine[0]):
                for batch in batches(mine, 40):
                    metric.update(*batch)
            results[kind, name] = metric.compute()
    return results


def in_order(value, name):
    """Scores come process by process: compare them as a set."""
    return value.sort().values if "reduction" in name else value


def test_two_processes_equal_one(tmp_path):
    results = in_two_processes(work, tmp_path)
    for result in results:
        assert len(result) == 2 * len(DEFAULTS) + len(CASES)
        for (_, name), value in result.items():
            _, inputs, function = CASES[name]
            expected = in_order(function(*inputs), name)
            torch.testing.assert_close(in_order(value, name), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["JepaScore", "JepaScore(reduction)"])
def test_scores_keep_their_dtype_without_data(name):
    metric = CASES[name][0]().to("cpu")
    assert metric.dtype == torch.float64
