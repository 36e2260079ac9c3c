"""LLM-JEPA and STP: losses, decoder, batches, and the command line from end to end."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import without_pictures
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jepa_monitor.functional import tube_loss, wilson_interval
from jepa_monitor.recipes import llm_jepa
from jepa_monitor.recipes.decoders import WordCodec, WordDecoder, answers
from jepa_monitor.recipes.exact_match import Answers, ExactMatch
from jepa_monitor.recipes.expressions import draw_pairs
from jepa_monitor.recipes.llm_jepa import LlmJepa, answer_loss, view_distance
from jepa_monitor.recipes.text_pairs import EncodedPairs, PairDataModule, collate

SMALL = [
    *("--model.width", "16", "--model.heads", "2", "--model.depth", "1", "--exact.pairs", "40"),
    *("--data.train_pairs", "48", "--data.held_out", "80", "--data.batch_size", "16"),
    *("--monitor.max_probe_samples", "2", "--monitor.max_embedding_samples", "80"),
    *("--monitor.every_n_steps", "2", "--monitor.max_overhead", "null"),
    *("--monitor.strict", "true", "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"),
    *("--trainer.max_epochs", "2", "--trainer.enable_model_summary", "false"),
]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def batch():
    codec = WordCodec()
    data = EncodedPairs(draw_pairs(6), codec, 2)
    return collate([data[index] for index in range(6)])


# ------------------------------------------------------------------------------------------ losses
def test_distances_of_views_are_those_of_their_equations() -> None:
    a, b = normal(7, 5), normal(7, 5, seed=1)
    x, y = a.numpy(), b.numpy()
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y)]
    logits = unit[0] @ unit[1].T / 0.07
    expected = {
        "cosine": 1 - (unit[0] * unit[1]).sum(1).mean(),
        "l2": np.linalg.norm(x - y, axis=1).mean(),
        "mse": np.mean((x - y) ** 2),
        "infonce": np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits)),
    }
    assert set(expected) == set(llm_jepa.DISTANCES)
    for kind, value in expected.items():
        assert view_distance(a, b, kind).item() == pytest.approx(value), kind
    assert view_distance(a, a, "cosine").item() == pytest.approx(0)


def test_neither_view_is_detached() -> None:
    a, b = normal(4, 3).requires_grad_(), normal(4, 3, seed=1).requires_grad_()
    view_distance(a, b, "cosine").backward()
    assert min(a.grad.abs().min(), b.grad.abs().min()) > 0


def test_only_answers_are_learned_and_each_token_from_what_stands_before_it() -> None:
    logits, ids = normal(2, 5, 7), torch.tensor([[1, 2, 3, 4, 0], [6, 5, 4, 3, 2]])
    answer = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]]).bool()
    chances = logits.exp() / logits.exp().sum(2, keepdim=True)
    truth = [-math.log(chances[r, t - 1, ids[r, t]]) for r, t in answer.nonzero().tolist()]
    assert answer_loss(logits, ids, answer).item() == pytest.approx(np.mean(truth))


def test_batches_have_both_views_and_the_pair(batch) -> None:
    codec = WordCodec()
    pairs = draw_pairs(6)
    for row, pair in enumerate(pairs):
        first = batch["input_ids"][row][batch["attention_mask"][row] > 0].tolist()
        second = batch["expression_ids"][row][batch["expression_mask"][row] > 0].tolist()
        whole = batch["pair_ids"][row][batch["pair_mask"][row] > 0].tolist()
        words = [codec.words[number] for number in first]
        assert words == ["<begin>", *pair.description.split(), "<between>", "<predict>0", "<predict>1"]  # fmt: skip
        assert [codec.words[n] for n in second] == [*pair.expression.split(), "<end>"]
        assert whole == first[:-2] + second
        assert batch["pair_ids"][row][batch["pair_answer"][row]].tolist() == second


def test_terms_are_those_of_the_arms(batch) -> None:
    torch.manual_seed(0)
    module = LlmJepa("jepa", width=16, depth=1, heads=2, predictors=2).double()
    terms = module.terms(batch)
    ends = [module.decoder(batch[ids])[torch.arange(6), batch[mask].sum(1) - 1] for ids, mask in (("input_ids", "attention_mask"), ("expression_ids", "expression_mask"))]  # fmt: skip
    cosines = torch.nn.functional.cosine_similarity(*ends)
    assert terms["jepa"].item() == pytest.approx(1 - cosines.mean().item())
    assert set(LlmJepa("lm").terms(batch)) == {"lm"}
    tube = LlmJepa("stp", width=16, depth=1, heads=2)
    torch.manual_seed(4)
    found = tube.terms(batch)["stp"]
    torch.manual_seed(4)
    keys = torch.rand(batch["pair_mask"].shape).masked_fill(batch["pair_mask"] == 0, 2.0)
    spans = keys.argsort(1)[:, :3].sort(1).values
    expected = tube_loss(tube.decoder(batch["pair_ids"]), spans).mean()
    torch.testing.assert_close(found, expected)
    collapse = LlmJepa("collapse")
    assert (collapse.weight, collapse.distance) == (100.0, "l2")
    assert (LlmJepa("jepa", distance="infonce", weight=3.0).weight, tube.weight) == (3.0, 0.02)


# ----------------------------------------------------------------------------------------- decoder
def test_the_decoder_is_causal_and_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    decoder = WordDecoder(30, 16, 2, 2, 12)
    ids = torch.randint(30, (3, 8))
    states = decoder(ids)
    changed = ids.clone()
    changed[:, 5:] = 7
    torch.testing.assert_close(decoder(changed)[:, :5], states[:, :5])
    assert not torch.allclose(decoder(changed)[:, 5:], states[:, 5:])
    torch.testing.assert_close(decoder(inputs_embeds=decoder.table(ids)), states)
    assert decoder.head.weight is decoder.table.weight


def test_greedy_answers_are_those_of_whole_passes() -> None:
    torch.manual_seed(1)
    decoder = WordDecoder(12, 16, 2, 2, 40)
    prompts = [torch.randint(12, (n,)).tolist() for n in (3, 5, 3, 9, 5)]
    found = answers(decoder, prompts, 8, end=4)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = list(prompt)
        for token in answer[: answer.index(4) + 1] if 4 in answer else answer:
            with torch.no_grad():
                likeliest = decoder.head(decoder(torch.tensor([ids])))[0, -1].argmax().item()
            assert token == likeliest
            ids.append(token)
        assert 4 in answer or len(answer) == 8
    assert len({tuple(answer) for answer in found}) > 1
    assert len(answers(decoder, [[1] * 38], 8, end=99)[0]) == 2  # the context is full


def test_answers_are_read_up_to_their_end() -> None:
    codec, pair = WordCodec(), draw_pairs(1)[0]
    ids = codec.expression(pair)
    assert codec.pattern([*ids, 5, 6]) == codec.pattern(ids[:-1]) == pair.pattern


def test_shares_are_counted_with_wilsons_interval() -> None:
    right, rare = torch.tensor([1, 0, 1, 1, 0]).bool(), torch.tensor([1, 1, 1, 0, 0]).bool()
    found = Answers(right, rare, torch.tensor([1, 0, 0, 1, 1]).bool()).scalars
    assert found["eval/exact_match"] == pytest.approx(0.6)
    assert found["text/rare_recall"] == pytest.approx(1 / 3)
    low, high = wilson_interval(torch.tensor(1), 3)
    assert found["text/rare_recall_low"] == pytest.approx(low.item())
    assert found["text/rare_recall_high"] == pytest.approx(high.item())
    none = Answers(right, ~right & right, right).scalars
    assert "text/rare_recall" not in none


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LlmJepa("ema"), "`arm` must be one of lm, jepa, stp, collapse"),
        (lambda: LlmJepa(distance="l1"), "`distance` must be one of"),
        (lambda: LlmJepa(predictors=5), "predictors=5 must be in 0 … 4"),
        (lambda: LlmJepa(weight=-1.0), "weight=-1.0 must be at least 0"),
        (lambda: LlmJepa(decoder="gpt2"), "decoder='gpt2' must be hf/NAME or hf/FOLDER"),
        (lambda: LlmJepa(heads=3), "heads=3 does not divide width=128"),
        (lambda: PairDataModule(held_out=0), "held_out=0 must be at least 1"),
        (lambda: PairDataModule(train_pairs=10), "batch_size=64 exceeds the 10 training pairs"),
        (lambda: ExactMatch(pairs=0), "pairs=0 must be at least 1"),
        (lambda: LlmJepa(context=4).decoder(torch.ones(1, 5).long()), "context=4 is less"),
    ],
)
def test_what_cannot_be_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------------------------ command line
@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["llm_jepa"])
    without_pictures(monkeypatch)
    return tmp_path


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_run_is_watched_tested_and_resumed_bit_for_bit(folder, capsys) -> None:
    arguments = [*SMALL, "--arm", "stp", "--checkpoint.save_top_k", "-1"]
    trainer = llm_jepa.main(arguments)
    printed = " ".join(capsys.readouterr().out.split())
    assert "Exact match: 0.0% of 40 held-out pairs (95 % interval 0.0% to 8.8%)" in printed
    for words in ("Rarest suffix answered with it", "common share", "tensorboard --logdir"):
        assert words in printed
    assert "raw pixels" not in printed
    events = EventAccumulator(trainer.log_dir).Reload()
    tags = {
        *("train/loss", "train/lm", "train/stp", "train/gradient_ratio", "train/lr"),
        *("val/lm", "val/jepa", "val/stp", "eval/exact_match", "text/rare_recall_high"),
        *("text/pair_gap", "text/common_share", "text/linear_r2", "text/curvature"),
        *("text/shortcut", "collapse/rankme", "jepa_score/mean"),
    }
    assert not tags - set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("text/pair_gap")] == [0, 1, 3, 5]
    run = folder / "runs" / "llm_jepa" / "version_0" / "checkpoints"
    first = next(run.glob("epoch=0-*.ckpt"))
    resumed = llm_jepa.main([*arguments, "--ckpt_path", str(first)])
    straight, again = (weights(Path(t.log_dir) / "checkpoints/last.ckpt") for t in (trainer, resumed))  # fmt: skip
    assert straight.keys() == again.keys()
    assert all(torch.equal(straight[name], again[name]) for name in straight)
    assert LlmJepa.load_from_checkpoint(first).hparams["arm"] == "stp"


def test_options_reach_model_data_and_monitor(folder) -> None:
    words = [*SMALL, "--arm=collapse", "--model.predictors", "1", "--seed_everything", "7"]
    words += ["--trainer.limit_train_batches=1", "--trainer.max_epochs=1"]
    trainer = llm_jepa.main(words)
    module, data = trainer.lightning_module, trainer.datamodule
    assert (module.weight, module.hparams["seed"], data.seed) == (100.0, 7, 7)
    first, second = data.text_pairs
    assert all(text[-1] == data.codec.predictors[0] for text in first["input_ids"])
    assert len(first["input_ids"]) == len(second["input_ids"]) == 80
    monitor = next(c for c in trainer.callbacks if type(c).__name__ == "JepaScoreCallback").monitor
    assert len(monitor.text_pairs[0]) == 80
    # The cosine of pairs is one minus the loss of LLM-JEPA on them, in an arm without it, too.
    with torch.no_grad():
        held = collate([data.val_set[index] for index in range(80)])
        cosine = 1 - view_distance(*module.eval().views(held), "cosine").item()
    scalars = monitor.evaluate(module.encoder).scalars
    assert scalars["text/aligned"] == pytest.approx(cosine, abs=1e-6)
