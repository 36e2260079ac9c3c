"""Two processes find what one finds on all data, also if one of them has none."""

import pickle
import socket
import warnings

import pytest
import torch
from metric_cases import CASES
from torch import distributed, multiprocessing, nn

DEFAULTS = [name for name in CASES if "(" not in name]
SHARDS = {
    "strided": (slice(0, None, 2), slice(1, None, 2)),
    "uneven": (slice(0, 70), slice(70, None)),
    "empty rank": (slice(None), slice(0, 0)),
}


def batches(inputs, size):
    return zip(*(tensor.split(size) for tensor in inputs), strict=True)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def work(rank, port, queue):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of `compute` before `update` on the empty rank
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
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
    queue.put(pickle.dumps(results))
    distributed.destroy_process_group()


def in_order(value, name):
    """Scores come process by process: compare them as a set."""
    return value.sort().values if "reduction" in name else value


def test_two_processes_equal_one():
    context = multiprocessing.get_context("spawn")
    queue, port = context.Queue(), free_port()
    processes = [context.Process(target=work, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        results = [pickle.loads(queue.get(timeout=120)) for _ in processes]
    finally:
        for process in processes:
            process.join(timeout=30)
            process.kill()
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
