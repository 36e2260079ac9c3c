"""A model of token ids as an encoder: in go embeddings of tokens, which have derivatives, out comes (B, K)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from jepa_monitor._checks import check_choice
from jepa_monitor.encoders.attention import attention_by
from jepa_monitor.encoders.modules import unwrap
from jepa_monitor.encoders.pooling import Pool
from jepa_monitor.encoders.texts import as_texts, is_texts, text_lengths, trim_texts

__all__ = ["TokenEncoder", "TokenPool", "as_token_encoder", "encoder_for"]

TokenPool = str | Callable[[Tensor, Tensor], Tensor]
_POOLS = ("mean", "last", "first")
_PLAIN = ("eager", "sdpa")  # attention of which every derivative can be taken, in any precision


class TokenEncoder(nn.Module):
    """A language model or text encoder whose derivatives are taken to the embeddings of its tokens.

    Ids have no gradient. So a text is scored at the point that the model itself computes with: the T
    vectors of d numbers that its input embedding gives, and the Jacobian of the pooled state is (K, T·d).
    Everything that takes an encoder takes this, with texts in the place of images.

    Padding changes nothing: it lies behind the text, is masked, and no derivative is taken to it.

    Args:
        model: With ``get_input_embeddings()``, and a forward pass that takes ``inputs_embeds`` and
            ``attention_mask`` and returns states (B, T, K): a tensor, the first of a tuple, or
            ``last_hidden_state``. Of a Hugging Face model with a head, ``base_model`` is taken; of an
            encoder-decoder, its encoder.
        pool: What becomes of the states of a text: their ``"mean"``, the ``"last"`` one, which is that of a
            decoder that has seen all, the ``"first"`` one, such as ``[CLS]``, or a function of states
            (B, T, K) and of which tokens are real, (B, T), that returns (B, K).

    Raises:
        TypeError: If ``model`` is no such module.
        ValueError: If ``pool`` is neither.

    Example:
        >>> import torch
        >>> from jepa_monitor import jepa_score
        >>> from jepa_monitor.encoders import TokenEncoder
        >>> class Words(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.table, self.mix = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4)
        ...
        ...     def get_input_embeddings(self):
        ...         return self.table
        ...
        ...     def forward(self, inputs_embeds, attention_mask):
        ...         return self.mix(inputs_embeds)
        >>> texts = {"input_ids": [[3, 1, 4], [1, 5]]}
        >>> jepa_score(TokenEncoder(Words()), texts, method="exact").shape
        torch.Size([2])
    """

    def __init__(self, model: nn.Module, pool: TokenPool = "mean") -> None:
        super().__init__()
        self.model = _body(model)
        self.pool = pool if callable(pool) else check_choice(pool, "pool", _POOLS)
        taken = inspect.signature(self.model.forward).parameters
        anything = any(each.kind is each.VAR_KEYWORD for each in taken.values())
        missing = {"inputs_embeds", "attention_mask"} - taken.keys()
        if not callable(getattr(self.model, "get_input_embeddings", None)):
            missing |= {"get_input_embeddings()"}
        if missing and not (anything and missing <= {"attention_mask"}):
            raise TypeError(
                "`model` must have `get_input_embeddings()` and a forward pass that takes `inputs_embeds` "
                f"and `attention_mask`; {type(self.model).__name__} lacks {', '.join(sorted(missing))}."
            )
        self._options = {"use_cache": False} if "use_cache" in taken else {}

    @property
    def table(self) -> nn.Module:
        """The input embedding of the model.

        Raises:
            TypeError: If it has none.
        """
        found: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        if not isinstance(found, nn.Module) or not isinstance(
            getattr(found, "weight", None), Tensor
        ):
            raise TypeError(
                f"`model` must have an input embedding, {type(self.model).__name__} has none."
            )
        return found

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return int(self.table.weight.shape[0])  # type: ignore[index]

    @property
    def width(self) -> int:
        """How many numbers the embedding of a token has, d."""
        return int(self.table.weight.shape[1])  # type: ignore[index]

    def tokens(self, batch: Any) -> Tensor:
        """Take texts as a tokenizer gives them.

        Args:
            batch: See :func:`~jepa_monitor.encoders.texts.as_texts`.

        Returns:
            (B, T, 2), int64: ids, and 0 for padding or 1 + token type.

        Raises:
            ValueError: If an id is beyond the vocabulary, or padding is not masked.
        """
        texts = as_texts(batch)
        highest = int(texts[..., 0].max())
        if highest >= self.vocabulary:
            row = int((texts[..., 0] >= self.vocabulary).any(1).nonzero()[0])
            raise ValueError(
                f"`texts` must have ids below {self.vocabulary}, the size of the model's vocabulary, "
                f"text {row} has {int(texts[row, :, 0].max())}: another tokenizer's?"
            )
        self._check_masked(texts)
        return texts

    def _check_masked(self, texts: Tensor) -> None:
        """Refuse texts that begin or end in the padding token: a mask has been left out."""
        config = getattr(self.model, "config", None)
        pad, *others = (
            getattr(config, f"{name}_token_id", None)
            for name in ("pad", "bos", "eos", "cls", "sep")
        )
        if not isinstance(pad, int) or pad in others:
            return  # a decoder's padding is often its end of text, which may be meant
        last = (text_lengths(texts) - 1)[:, None]
        ends = torch.cat([texts[:, :1, 0], texts[..., 0].gather(1, last)], 1)
        if bool((ends == pad).any()):
            row = int((ends == pad).any(1).nonzero()[0])
            raise ValueError(
                f"`texts` must have an `attention_mask` where they are padded: text {row} begins or ends "
                f"in the padding token, {pad}, which is not masked."
            )

    def embed(self, texts: Tensor) -> Tensor:
        """Give what derivatives are taken to.

        Args:
            texts: (B, T, 2).

        Returns:
            (B, t, d + 1), t the length of the longest: the embedding of each token, and its kind, to
            which the encoder has no derivative. Padding has the embedding of the text's first token,
            so that nothing divides by zero there.
        """
        texts = trim_texts(self.tokens(texts))
        ids, kinds = texts.unbind(2)
        vectors: Tensor = self.table(torch.where(kinds > 0, ids, ids[:, :1]))
        return torch.cat([vectors, kinds[..., None].to(vectors.dtype)], 2)

    def states(self, inputs: Tensor, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Compute the states of all tokens.

        Args:
            inputs: From :meth:`embed`, (B, T, d + 1).
            layer: Of which layer, where the model gives ``hidden_states``; ``None`` for the last.

        Returns:
            States, (B, T, K), and which tokens are real, (B, T), bool.

        Raises:
            TypeError: If the model returns none.
            ValueError: If it has no such layer.
        """
        vectors, kinds = inputs[..., :-1], inputs[..., -1].detach().round().long()
        options: dict[str, Any] = dict(self._options)
        if bool((kinds > 1).any()):
            options["token_type_ids"] = (kinds - 1).clamp_min(0)
        if layer is not None:
            options["output_hidden_states"] = True
        with _plain_attention(self.model):
            output = self.model(inputs_embeds=vectors, attention_mask=(kinds > 0).long(), **options)
        return _chosen(output, layer, kinds), kinds > 0

    def forward(self, inputs: Tensor) -> Tensor:
        """Encode texts.

        Args:
            inputs: Texts, (B, T, 2), int64, or their embeddings from :meth:`embed`.

        Returns:
            (B, K).

        Raises:
            ValueError: If a ``pool`` of your own does not return that.
        """
        states, real = self.states(self.embed(inputs) if is_texts(inputs) else inputs)
        if callable(self.pool):
            pooled = self.pool(states, real)
            if not isinstance(pooled, Tensor) or pooled.ndim != 2 or len(pooled) != len(states):
                shape = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
                raise ValueError(
                    f"`pool` must return a (B, K) tensor for {len(states)} texts, got {shape}."
                )
            return pooled
        if self.pool == "first":
            return states[:, 0]
        counts = real.sum(1)
        if self.pool == "last":
            return states[torch.arange(len(states), device=states.device), counts - 1]
        # Not by a product with the mask: a state of padding may be infinite.
        kept = states.masked_fill(~real[..., None], 0.0)
        return kept.sum(1) / counts[:, None]


def as_token_encoder(encoder: Any, pool: Pool = "auto") -> TokenEncoder:
    """Make an encoder of texts of what is watched.

    Args:
        encoder: A :class:`TokenEncoder`, or a model that it takes.
        pool: As of images: ``"auto"`` and ``"mean"`` average, ``"cls"`` takes the first token, a function
            is one of states and of which tokens are real.

    Returns:
        The encoder.

    Raises:
        TypeError: If it is neither.
        ValueError: If texts cannot be pooled in this way.
    """
    found = unwrap(encoder)
    if isinstance(found, TokenEncoder):
        return found
    if not isinstance(found, nn.Module):
        raise TypeError(
            "`encoder` must be a model with `get_input_embeddings()`, or a TokenEncoder of one, where the "
            f"data are texts, got {type(encoder).__name__}."
        )
    if pool == "flatten":
        raise ValueError(
            "`pool` must be 'auto', 'mean', 'cls' or a function for texts, got 'flatten'."
        )
    named: Any = {"auto": "mean", "cls": "first"}.get(pool, pool) if isinstance(pool, str) else pool
    return TokenEncoder(found, named)


def encoder_for(data: Tensor, encoder: Any, pool: Pool = "auto") -> tuple[Any, Pool]:
    """Make what takes the data of what is watched.

    Args:
        data: Images, or texts, (B, T, 2).
        encoder: An encoder of them.
        pool: How its outputs become (B, K).

    Returns:
        The same for images; for texts a :class:`TokenEncoder`, which pools by itself.
    """
    return (as_token_encoder(encoder, pool), "auto") if is_texts(data) else (encoder, pool)


def _body(model: Any) -> nn.Module:
    """Find what computes states: without wrappers, without a head, without a decoder."""
    model = unwrap(model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a module, got {type(model).__name__}.")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        encoder: nn.Module = model.get_encoder()  # type: ignore[operator]
        return encoder
    while isinstance(inner := getattr(model, "base_model", None), nn.Module) and inner is not model:
        model = inner
    body: nn.Module = model
    return body


def _chosen(output: Any, layer: int | None, kinds: Tensor) -> Tensor:
    """Find the states in what a model has returned."""
    if layer is not None:
        layers = _field(output, "hidden_states")
        if layers is None or not -len(layers) <= layer < len(layers):
            count = "none" if layers is None else f"{len(layers)}"
            raise ValueError(
                f"`layer` must be one of the model's `hidden_states`, {count}, got {layer}."
            )
        output = layers[layer]
    found = _field(output, "last_hidden_state")
    if found is None:
        found = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(found, Tensor) or found.ndim != 3 or found.shape[:2] != kinds.shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(
            f"`model` must return states (B, T, K) for {tuple(kinds.shape)} tokens, got {got}."
        )
    return found


def _field(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _plain_attention(model: nn.Module) -> AbstractContextManager[None]:
    """Do without kernels that want half precision or a compiler, such as flash and flex attention."""
    plain = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
    return attention_by(model, plain, instead_of=_PLAIN)
