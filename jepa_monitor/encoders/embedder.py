"""Adapt an encoder: in goes whatever the user trains, out comes a function images → (B, K)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from jepa_monitor.encoders.explaining import explained, tell_of_randomness
from jepa_monitor.encoders.holdings import Holdings
from jepa_monitor.encoders.isolation import neutralise, seed_all, undisturbed
from jepa_monitor.encoders.modules import modules_of, unwrap
from jepa_monitor.encoders.pooling import Pool, check_pool, pool_output
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.encoders.sharding import check_whole, gather, tensor_at
from jepa_monitor.encoders.texts import is_texts
from jepa_monitor.encoders.token_encoder import TokenEncoder

__all__ = ["Embedder"]

_T = TypeVar("_T")
_EMBEDDED_TWICE = 4  # images that tell whether an encoder repeats itself
_SAMPLE_MIXING = nn.modules.batchnorm._BatchNorm


class Embedder:
    """An encoder as a pure function from images to (B, K) embeddings.

    For the time of a look the modules hold other tensors: parameters as they are but without
    gradients (which makes the graph smaller), buffers and tables as copies, all in the type to
    compute in. Afterwards every name of every module has the very object back that it had, and so
    has every attribute that a forward pass wrote. Parameters that FSDP has spread over processes are
    gathered at construction, which all of those processes must then share.

    Args:
        encoder: A module, or any callable; the modules that a function closes over, a bound method
            belongs to, or an object holds are found by themselves.
        pool: See :func:`pool_output`.
        dtype: What to compute in. Default: float64 if the encoder's parameters are float64, else
            float32; half-precision parameters are scored through float32 copies.
        processes: Those that share the work. They take the buffers of the first one, whose are also
            those in a checkpoint: BatchNorm's running statistics differ between the processes of DDP.

    Raises:
        TypeError: If ``encoder`` is not callable.
        ValueError: If its parameters have no shape yet, or cannot be gathered.
    """

    def __init__(
        self,
        encoder: Any,
        pool: Pool = "auto",
        dtype: torch.dtype | None = None,
        *,
        processes: Processes | None = None,
    ) -> None:
        if not callable(encoder):
            raise TypeError(
                f"`encoder` must be a module or a callable, got {type(encoder).__name__}."
            )
        encoder = unwrap(encoder)
        self.pool = check_pool(pool)
        self.modules = modules_of(encoder)
        self._parts = list(dict.fromkeys(part for root in self.modules for part in root.modules()))
        self._encoder = encoder
        check_whole(encoder)
        if any(is_lazy(tensor) for part in self._parts for tensor in part.parameters(False)):
            raise ValueError(
                "`encoder` has parameters without a shape (lazy modules): run it on a batch first."
            )
        # Gathered here, once: what follows talks to no other process until results are shared.
        self._gathered = gather(self._parts)
        tensors = [t for t in self._parameters() if t.is_floating_point()]
        self.device: torch.device | None = tensors[0].device if tensors else None
        if dtype is None:
            dtypes = {t.dtype for t in tensors}
            dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        self.dtype = dtype
        self._seed = 0
        self._measured: list[float] = []  # shared with copies
        self._speaks = processes is None or processes.rank == 0
        self._forget()
        self._agreed: tuple[Tensor, ...] | None = None
        if processes is not None and processes.count > 1:
            self._agreed = processes.same(lambda: tuple(b.cpu() for b in self._buffers()))

    def _forget(self) -> None:
        """Be outside :meth:`run`."""
        self._holdings: Holdings | None = None
        self._addresses: set[int] = set()
        self._converted: dict[int, Tensor] = {}  # parameters in the type to compute in

    @property
    def parameter_dtypes(self) -> frozenset[torch.dtype]:
        """The floating-point types that the encoder's parameters are stored in."""
        return frozenset(t.dtype for t in self._parameters() if t.is_floating_point())

    @property
    def addresses(self) -> set[int]:
        """The storages of the tensors that the encoder runs on; only inside :meth:`run`."""
        return self._addresses

    @property
    def parameter_bytes(self) -> int:
        """The memory that the encoder's parameters and buffers take as they are stored."""
        return sum(t.nbytes for t in (*self._parameters(), *self._buffers()))

    @property
    def trainable(self) -> list[Tensor]:
        """The parameters that require gradients, each once.

        Raises:
            ValueError: If they are spread over processes.
        """
        if self._gathered:
            raise ValueError(
                "`encoder` has parameters that are spread over processes: no gradient of a score "
                "can be taken to them."
            )
        return [tensor for tensor in self._parameters() if tensor.requires_grad]

    def substitutes(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Give what the modules hold in the place of their parameters; only inside :meth:`run`.

        Args:
            parameters: Of :attr:`trainable`.

        Returns:
            As many tensors, in the type to compute in.
        """
        return [self._converted[id(tensor)] for tensor in parameters]

    def with_own_buffers(self) -> Embedder:
        """Give the same encoder with its buffers as they are now, whatever becomes of them.

        Returns:
            A new embedder.
        """
        other = copy.copy(self)
        other._forget()
        other._agreed = tuple(tensor.detach().clone() for tensor in self._buffers())
        return other

    def _parameters(self) -> list[Tensor]:
        """The whole parameters, each once, as the user's modules have them or as gathered."""
        whole = list(self._gathered.values())
        for part in self._parts:
            for name, tensor in part._parameters.items():
                sharded = (part, name) in self._gathered or name == "_flat_param"
                if tensor is not None and not sharded:
                    whole.append(tensor)
        return list({id(tensor): tensor for tensor in whole}.values())

    def _buffers(self) -> list[Tensor]:
        """The buffers, each once, in a fixed order."""
        found = (t for part in self._parts for t in part._buffers.values() if t is not None)
        return list({id(tensor): tensor for tensor in found}.values())

    def to(self, dtype: torch.dtype) -> Embedder:
        """Give the same encoder in another type.

        Args:
            dtype: What to compute in.

        Returns:
            A new embedder.
        """
        other = copy.copy(self)
        other.dtype = dtype
        other._forget()
        return other

    def _convert(self, tensor: Tensor, *, copy: bool) -> Tensor:
        converted = tensor.detach()
        if converted.is_floating_point():
            converted = converted.to(self.dtype)
        shared = converted.dtype == tensor.dtype
        # A tensor born in inference mode cannot take part in a graph; its clone can.
        return converted.clone() if (shared and copy) or converted.is_inference() else converted

    def _exchange(self, holdings: Holdings) -> None:
        """Have the modules hold the tensors to compute with."""

        def once(tensor: Tensor) -> Tensor:
            if id(tensor) not in self._converted:
                self._converted[id(tensor)] = self._convert(tensor, copy=False)
            return self._converted[id(tensor)]

        known = {id(tensor_at(place)): once(whole) for place, whole in self._gathered.items()}
        if self._agreed is not None:
            for buffer, value in zip(self._buffers(), self._agreed, strict=True):
                known[id(buffer)] = self._convert(value.to(buffer.device), copy=True)
        used = holdings.exchange(known, once, lambda tensor: self._convert(tensor, copy=True))
        self._addresses = {tensor.untyped_storage().data_ptr() for tensor in used}

    def _start_afresh(self) -> None:
        """Have the modules hold what they held when the look began."""
        assert self._holdings is not None
        self._holdings.restore()
        neutralise(self._parts)
        self._exchange(self._holdings)

    def run(self, work: Callable[[], _T], device: torch.device) -> _T:
        """Do some work with the embedder, undisturbed and on its own tensors.

        Args:
            work: What to do; may call the embedder and take gradients.
            device: Where the images are.

        Returns:
            What ``work`` returns.

        Raises:
            ValueError: If the encoder is on another device, or a layer of it mixes the samples of
                a batch even in eval mode.
        """
        if self.device is not None and self.device != device:
            raise ValueError(
                f"`images` are on {device}, but `encoder` is on {self.device}: move one of them."
            )
        for root in self.modules:
            for name, module in root.named_modules():
                if isinstance(module, _SAMPLE_MIXING) and module.running_mean is None:
                    raise ValueError(
                        f"`encoder` has a BatchNorm without running statistics ({name}), which "
                        "mixes the samples of a batch: an image has no score of its own then. Use "
                        "track_running_stats=True or another normalisation."
                    )
        with undisturbed(self.modules, device) as holdings:
            self._holdings = holdings
            try:
                self._exchange(holdings)
                return work()
            finally:
                self._forget()

    def inputs(self, images: Tensor) -> Tensor:
        """Give what derivatives are taken to; only inside :meth:`run`.

        Args:
            images: (B, ...), or texts, (B, T, 2), for a
                :class:`~jepa_monitor.encoders.token_encoder.TokenEncoder`.

        Returns:
            The images in this embedder's dtype; of texts the embeddings of their tokens, (B, t, d + 1).

        Raises:
            TypeError: If the encoder takes no texts.
        """
        if not is_texts(images):
            return images.to(self.dtype)
        if not isinstance(self._encoder, TokenEncoder):
            raise TypeError(
                "`encoder` must be a TokenEncoder where the data are texts, got "
                f"{type(self._encoder).__name__}: pass TokenEncoder(model)."
            )
        return self._encoder.embed(images).to(self.dtype)

    def input_count(self, images: Tensor) -> int:
        """Count the numbers of an input to which derivatives are taken, D.

        Args:
            images: (B, ...), or texts.

        Returns:
            Those of an image, or of the longest text.
        """
        if is_texts(images) and isinstance(self._encoder, TokenEncoder):
            return images.shape[1] * self._encoder.width
        return images[0].numel()

    @property
    def randomness(self) -> float | None:
        """How far a second pass moves the embeddings, relative to their length.

        0 for an encoder that repeats itself; ``None`` before the first call. One that masks, drops or
        samples in eval mode has a score for a seed, not for an image.
        """
        return self._measured[0] if self._measured else None

    def reseeded(self, seed: int) -> Embedder:
        """Give the same encoder with other random numbers.

        Args:
            seed: Of every forward pass; 0 by default.

        Returns:
            A new embedder.
        """
        other = copy.copy(self)
        other._seed = seed
        other._forget()
        return other

    def __call__(self, images: Tensor) -> Tensor:
        """Embed images; only inside :meth:`run`.

        Every forward pass begins with the same random numbers. An encoder that does not repeat itself
        embeds one image at a time, and begins each time with what its modules held when the look
        began: so no image's embedding depends on how many others there are, or on the process. It is
        warned of, once.

        Args:
            images: (B, ...), of this embedder's dtype.

        Returns:
            The embeddings, (B, K).

        Raises:
            RuntimeError: If the encoder kept a tensor from an earlier pass in inference mode.
            TypeError: If it takes integers.
            ValueError: If the output is not one floating-point embedding an image.
        """
        return torch.cat(self._apart(images, lambda part: self._embed(part, self._seed)))

    def inside(
        self,
        images: Tensor,
        find: Callable[[Callable[[Tensor], Any], Sequence[nn.Module], Tensor], _T],
    ) -> list[_T]:
        """Look into forward passes; only inside :meth:`run`, with the random numbers of a call.

        Args:
            images: (B, ...), of this embedder's dtype.
            find: Takes the encoder, the modules that it computes with, and images; such as
                :func:`~jepa_monitor.encoders.tokens.encoder_tokens`.

        Returns:
            What it found, of one pass, or of one for each image if the encoder is random.
        """

        def work(part: Tensor) -> _T:
            seed_all(self._seed, part.device)
            return find(self._output, self.modules, part)

        return self._apart(images, work)

    def _apart(self, images: Tensor, pass_through: Callable[[Tensor], _T]) -> list[_T]:
        """Pass images together, or one by one and each time afresh if the encoder is random."""
        if not self._measured:
            self._measured.append(self._movement(images[:_EMBEDDED_TWICE].detach()))
            if self.randomness:
                self._tell()
                self._start_afresh()
        if not self.randomness:
            return [pass_through(images)]
        found = []
        for image in torch.split(images, 1):
            found.append(pass_through(image))
            self._start_afresh()
        return found

    def _movement(self, images: Tensor) -> float:
        """Embed images twice, from different random states, and compare."""
        with torch.no_grad():
            first, second = (self._embed(images, self._seed + i).nan_to_num() for i in (0, 1))
        if first.shape != second.shape:
            return math.inf
        moved = float(((second - first).norm() / first.norm()).nan_to_num(0.0))
        # Sums of parallel threads, on a GPU, differ in their last digits.
        return moved if moved > 100 * torch.finfo(first.dtype).eps else 0.0

    def _tell(self) -> None:
        known = self.modules[0] if self.modules else self._encoder
        if self._speaks:
            # A TokenEncoder may be made anew for every look.
            known = known.model if isinstance(known, TokenEncoder) else known
            tell_of_randomness(known, self.randomness)

    def _embed(self, images: Tensor, seed: int) -> Tensor:
        seed_all(seed, images.device)
        embeddings = pool_output(self._output(images), self.pool)
        if len(embeddings) != len(images):
            raise ValueError(
                f"`encoder` must return one embedding an image, got {len(embeddings)} for "
                f"{len(images)} images."
            )
        if not embeddings.is_floating_point():
            raise ValueError(f"`encoder` must return floating point, got {embeddings.dtype}.")
        if embeddings.shape[1] == 0:
            raise ValueError("`encoder` returned embeddings of width 0.")
        return embeddings

    def _output(self, images: Tensor) -> Any:
        with explained(images):
            return self._encoder(images)
