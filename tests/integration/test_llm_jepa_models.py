"""The recipe of pairs with decoders of transformers, random and small, and a tokenizer without a padding token."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from jepa_monitor.recipes import llm_jepa
from jepa_monitor.recipes.decoders import HubCodec
from jepa_monitor.recipes.expressions import draw_pairs

PAIRS = draw_pairs(60)
SIZES: dict[str, Any] = {
    "GPT2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 160},
    "Llama": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 160, "num_key_value_heads": 1,
    },
}  # fmt: skip


def saved(folder: pathlib.Path, kind: str, end: str | None = "<end>") -> str:
    """A decoder and a tokenizer of bytes, as a hub has them."""
    plain = tokenizers.Tokenizer(tokenizers.models.BPE())
    plain.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<end>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    plain.train_from_iterator([f"{p.description}\n{p.pattern}" for p in PAIRS], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=end)
    tokenizer.save_pretrained(folder)
    transformers.set_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **SIZES[kind]
    )
    config.architectures = None
    name = {"GPT2": "GPT2LMHeadModel", "Llama": "LlamaForCausalLM"}[kind]
    getattr(transformers, name)(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "arm"), [("GPT2", "jepa"), ("Llama", "stp")])
def test_a_run_of_a_decoder_of_transformers(
    kind: str, arm: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["llm_jepa"])
    trainer = llm_jepa.main(
        [
            *("--model", f"hf/{saved(tmp_path / 'hub', kind)}", "--arm", arm),
            *("--model.predictors", "1", "--exact.pairs", "6", "--exact.tokens", "5"),
            *("--data.train_pairs", "16", "--data.held_out", "70", "--data.batch_size", "8"),
            *("--monitor.max_probe_samples", "2", "--monitor.every_n_steps", "1"),
            *("--monitor.max_overhead", "null", "--monitor.strict", "true"),
            *("--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"),
            *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
        ]
    )
    metrics = trainer.callback_metrics
    assert {"eval/exact_match", "text/pair_gap", "text/curvature", "text/shortcut"} <= set(metrics)
    module: Any = trainer.lightning_module
    vocabulary = module.decoder.get_input_embeddings().weight.shape[0]
    assert vocabulary == module.codec.size
    assert module.codec.predictors[-1] == vocabulary - 1


def test_pairs_survive_the_tokenizer(tmp_path: pathlib.Path) -> None:
    codec = HubCodec(saved(tmp_path, "GPT2"))
    assert codec.tokenizer.pad_token is None
    for pair in PAIRS[:20]:
        assert codec.pattern([*codec.expression(pair), 5]) == pair.pattern
        assert codec.end not in codec.description(pair)
        assert pair.description in codec.tokenizer.decode(codec.description(pair))


def test_padding_in_a_batch_changes_no_embedding(tmp_path: pathlib.Path) -> None:
    module = llm_jepa.LlmJepa(decoder=f"hf/{saved(tmp_path, 'Llama')}").eval()
    texts = [module.codec.description(pair) for pair in PAIRS[:3]]
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    together = module.embeddings(ids, mask)
    for text, found in zip(texts, together, strict=True):
        alone = module.embeddings(torch.tensor([text]), torch.ones(1, len(text)).long())
        torch.testing.assert_close(alone[0], found, rtol=1e-4, atol=1e-5)


def test_a_tokenizer_that_ends_nothing_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="a tokenizer without an end-of-text token"):
        llm_jepa.LlmJepa(decoder=f"hf/{saved(tmp_path, 'GPT2', None)}")
