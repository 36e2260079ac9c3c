"""Adapt an encoder: in goes whatever the user trains, out comes a function images → (B, K)."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from jepa_monitor._checks import check_choice
from jepa_monitor.encoders.isolation import is_fsdp1, undisturbed
from jepa_monitor.encoders.processes import Processes

__all__ = ["Embedder", "Pool", "check_pool", "check_whole", "pool_output"]

_T = TypeVar("_T")
Pool = str | Callable[[Any], Tensor]
_POOLS = ("auto", "mean", "cls", "flatten")

# The whole image's embedding before token sequences; names of Hugging Face, DINOv2,
# stable-pretraining and torchvision.
_OUTPUT_KEYS = (
    "image_embeds",
    "x_norm_clstoken",
    "pooler_output",
    "embedding",
    "embeddings",
    "last_hidden_state",
    "encoded",
    "x_norm_patchtokens",
    "features",
)
_SAMPLE_MIXING = nn.modules.batchnorm._BatchNorm


def check_pool(pool: Any) -> Pool:
    """Return ``pool`` if it is a function or one of the rules of :func:`pool_output`.

    Args:
        pool: What the caller gave.

    Returns:
        The value.

    Raises:
        ValueError: If it is neither.
    """
    return pool if callable(pool) else check_choice(pool, "pool", _POOLS)


def _select(output: Any) -> Tensor:
    """Find the embedding in a structured output."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        for key in _OUTPUT_KEYS:
            if isinstance(found := output.get(key), Tensor):
                return found
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
        raise ValueError(
            f"`encoder` returned a {type(output).__name__} with the keys {sorted(map(str, output))}, "
            f"and none of {', '.join(_OUTPUT_KEYS)} holds a tensor. Pass `pool`, a function that "
            "takes this output and returns the (B, K) embedding."
        )
    if isinstance(output, tuple | list) and output:
        return _select(output[0])
    for key in _OUTPUT_KEYS:
        if isinstance(found := getattr(output, key, None), Tensor):
            return found
    raise TypeError(
        f"`encoder` must return a tensor or a structure that holds one, got {type(output).__name__}."
    )


def pool_output(output: Any, pool: Pool = "auto") -> Tensor:
    """Turn what an encoder returned into one embedding an image.

    Structures are searched first: of a dict or Hugging Face output the first of ``image_embeds``,
    ``x_norm_clstoken``, ``pooler_output``, ``embedding``, ``embeddings``, ``last_hidden_state``,
    ``encoded``, ``x_norm_patchtokens``, ``features``, or its only tensor; of a tuple or list the
    first element.

    Args:
        output: What the encoder returned.
        pool: ``"auto"`` and ``"mean"`` average tokens (B, N, K) over N and maps (B, K, H, W) or
            (B, K, T, H, W) over their positions, class tokens included; ``"cls"`` takes the first
            token; ``"flatten"`` keeps all numbers. (B, K) is taken as it is. A function gets the
            output as returned and must return (B, K).

    Returns:
        The embeddings, (B, K).

    Raises:
        TypeError: If the output holds no tensor.
        ValueError: If the shape cannot be pooled in this way.
    """
    if callable(pool):
        embeddings = pool(output)
        if not isinstance(embeddings, Tensor) or embeddings.ndim != 2:
            shape = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else None
            raise ValueError(
                f"`pool` must return a (B, K) tensor, got {type(embeddings).__name__} of shape {shape}."
            )
        return embeddings
    check_pool(pool)
    tensor = _select(output)
    if tensor.ndim < 2:
        raise ValueError(
            "`encoder` must return one embedding an image, (B, K), tokens (B, N, K) or maps "
            f"(B, K, H, W), got shape {tuple(tensor.shape)}."
        )
    if tensor.ndim == 2:
        return tensor
    if pool == "flatten":
        return tensor.flatten(1)
    if tensor.ndim == 3:
        return tensor[:, 0] if pool == "cls" else tensor.mean(1)
    if pool == "cls":
        raise ValueError(f"`pool='cls'` needs tokens (B, N, K), got shape {tuple(tensor.shape)}.")
    return tensor.flatten(2).mean(2)


def _modules_of(encoder: Any) -> list[nn.Module]:
    """Find the modules that a callable computes with: itself, its owner, what it closes over."""
    if isinstance(encoder, nn.Module):
        return [encoder]
    if isinstance(encoder, functools.partial):
        found = [encoder.func, *encoder.args, *encoder.keywords.values()]
        return [m for part in found if callable(part) for m in _modules_of(part)]
    if inspect.ismethod(encoder):
        return _modules_of(encoder.__self__)
    if inspect.isfunction(encoder):
        scope = inspect.getclosurevars(encoder)
        found = [*scope.nonlocals.values(), *scope.globals.values()]
    else:
        found = list(getattr(encoder, "__dict__", {}).values())
    return [value for value in found if isinstance(value, nn.Module)]


def _in_fsdp1(module: nn.Module) -> set[nn.Module]:
    """Find the submodules whose parameters a wrapper of FSDP1 inside ``module`` can make whole."""
    return {part for found in module.modules() if is_fsdp1(found) for part in found.modules()}


def check_whole(encoder: Any) -> None:
    """Refuse an encoder whose parameters are spread over processes and cannot be gathered.

    Args:
        encoder: What the user gave.

    Raises:
        ValueError: If it is sharded by DeepSpeed ZeRO-3, or by an FSDP1 out of its reach.
    """
    modules = {module for root in _modules_of(encoder) for module in root.modules()}
    reachable = {part for root in _modules_of(encoder) for part in _in_fsdp1(root)}
    for module in modules:
        parameters = [p for p in module.parameters(recurse=False) if not is_lazy(p)]
        if any(hasattr(parameter, "ds_id") for parameter in parameters):
            raise ValueError(
                "`encoder` is sharded by DeepSpeed ZeRO-3, which hides its parameters. Train with "
                "fully_shard (FSDP2: Lightning's ModelParallelStrategy), FSDP1, DDP or a lower "
                "stage of ZeRO."
            )
        # With use_orig_params=False, what is left of a parameter is a tensor without memory.
        left = [t for t in vars(module).values() if isinstance(t, Tensor) and t.numel()]
        if module not in reachable and (
            any(hasattr(parameter, "_fsdp_flattened") for parameter in parameters)
            or any(not t.is_meta and not t.untyped_storage().size() for t in left)
        ):
            raise ValueError(
                "`encoder` is a part of a module that FSDP1 has sharded, and its parameters can "
                "only be gathered through that module. Pass a function that calls it through the "
                "wrapper, such as lambda images: wrapper.module.encoder(images)."
            )


def _unwrap(encoder: Any) -> Any:
    """Take off the wrappers that get in the way of input gradients: compiled, (Distributed)DP."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while isinstance(encoder, nn.Module):
        if isinstance(encoder, wrappers):
            encoder = encoder.module
        elif hasattr(encoder, "_orig_mod"):
            encoder = encoder._orig_mod
        else:
            break
    return encoder


class _Host(nn.Module):
    """Holds the modules of any callable, so that one functional call can swap their tensors.

    The call spans everything that is done with the encoder, backward passes included: a
    checkpointed block runs its forward pass once more in them.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()


class Embedder:
    """An encoder as a pure function from images to (B, K) embeddings.

    The encoder runs on detached copies of its tensors' references: parameters as they are but
    without gradients (which makes the graph smaller), buffers as clones. So nothing that a forward
    pass writes reaches the user's module. Parameters that FSDP has spread over processes are gathered
    at construction, which all of those processes must then share.

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
        encoder = _unwrap(encoder)
        self.pool = check_pool(pool)
        self.modules = _modules_of(encoder)
        self._encoder = encoder
        self._host = _Host(self.modules)
        check_whole(self._host)
        if any(is_lazy(tensor) for tensor in self._host.parameters()):
            raise ValueError(
                "`encoder` has parameters without a shape (lazy modules): run it on a batch first."
            )
        # Gathered here, once: what follows talks to no other process until results are shared.
        self._gathered = self._gather()
        tensors = [t for t in self._parameters.values() if t.is_floating_point()]
        self.device: torch.device | None = tensors[0].device if tensors else None
        if dtype is None:
            dtypes = {t.dtype for t in tensors}
            dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        self.dtype = dtype
        self._tensors: dict[str, Tensor] = {}
        self._buffers: tuple[Tensor, ...] | None = None
        if processes is not None and processes.count > 1:
            self._buffers = processes.same(lambda: tuple(b.cpu() for b in self._host.buffers()))

    @property
    def parameter_dtypes(self) -> frozenset[torch.dtype]:
        """The floating-point types that the encoder's parameters are stored in."""
        return frozenset(t.dtype for t in self._parameters.values() if t.is_floating_point())

    @property
    def addresses(self) -> set[int]:
        """The storages of the tensors that the encoder runs on; only inside :meth:`run`."""
        return {tensor.untyped_storage().data_ptr() for tensor in self._tensors.values()}

    @property
    def parameter_bytes(self) -> int:
        """The memory that the encoder's parameters and buffers take as they are stored."""
        return sum(t.nbytes for t in (*self._parameters.values(), *self._host.buffers()))

    @property
    def _parameters(self) -> dict[str, Tensor]:
        """The whole parameters by name, as the user's module has them or as they were gathered."""
        own = dict(self._host.named_parameters())
        return {n: p for n, p in own.items() if not n.endswith("._flat_param")} | self._gathered

    def _gather(self) -> dict[str, Tensor]:
        """Gather the parameters that are spread over processes: FSDP2's one by one, FSDP1's at once."""
        gathered = {
            name: parameter.full_tensor().detach()
            for name, parameter in self._host.named_parameters()
            if hasattr(parameter, "full_tensor")  # a DTensor
        }
        wrappers = [module for module in self._host.modules() if is_fsdp1(module)]
        inner = {part for wrapper in wrappers for part in wrapper.modules() if part is not wrapper}
        for wrapper in wrappers:
            if wrapper not in inner:
                gathered |= self._summoned(wrapper)
        return gathered

    def _summoned(self, wrapper: Any) -> dict[str, Tensor]:
        """Copy the whole parameters inside an outermost wrapper of FSDP1."""
        parts = list(wrapper.modules())
        fresh = [part for part in parts if is_fsdp1(part) and part._is_root is None]
        copies: dict[int, Tensor] = {}  # a parameter that two layers share stays one
        gathered = {}
        with torch.inference_mode(False), wrapper.summon_full_params(wrapper, writeback=False):
            for name, module in self._host.named_modules(remove_duplicate=False):
                if module in parts:
                    for key, parameter in module.named_parameters(recurse=False):
                        copy = copies.setdefault(id(parameter), parameter.detach().clone())
                        gathered[f"{name}.{key}"] = copy
        # Summoning settles who the outermost wrapper is. Before the first training step that is not
        # ours to say: there may be one around this one, which would refuse to train.
        for part in fresh:
            part._is_root = None
        return gathered

    def to(self, dtype: torch.dtype) -> Embedder:
        """Give the same encoder in another type.

        Args:
            dtype: What to compute in.

        Returns:
            A new embedder.
        """
        other = copy.copy(self)
        other.dtype, other._tensors = dtype, {}
        return other

    def _convert(self, tensor: Tensor, *, copy: bool) -> Tensor:
        converted = tensor.detach()
        if converted.is_floating_point():
            converted = converted.to(self.dtype)
        shared = converted.data_ptr() == tensor.data_ptr()
        # A tensor born in inference mode cannot take part in a graph; its clone can.
        return converted.clone() if (shared and copy) or converted.is_inference() else converted

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
        for name, module in self._host.named_modules():
            if isinstance(module, _SAMPLE_MIXING) and module.running_mean is None:
                raise ValueError(
                    f"`encoder` has a BatchNorm without running statistics ({name}), which mixes "
                    "the samples of a batch: an image has no score of its own then. Use "
                    "track_running_stats=True or another normalisation."
                )
        with undisturbed(self.modules, device):
            converted: dict[int, Tensor] = {}
            for name, parameter in self._parameters.items():
                if id(parameter) not in converted:
                    converted[id(parameter)] = self._convert(parameter, copy=False)
                self._tensors[name] = converted[id(parameter)]
            own = dict(self._host.named_buffers())
            agreed = own.values() if self._buffers is None else self._buffers
            for (name, buffer), value in zip(own.items(), agreed, strict=True):
                self._tensors[name] = self._convert(value.to(buffer.device), copy=True)
            try:
                done: _T = torch.func.functional_call(self._host, self._tensors, (work,))
                return done
            finally:
                self._tensors = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Embed images; only inside :meth:`run`.

        Args:
            images: (B, ...), of this embedder's dtype.

        Returns:
            The embeddings, (B, K).

        Raises:
            RuntimeError: If the encoder kept a tensor from an earlier pass in inference mode.
            TypeError: If it takes integers.
            ValueError: If the output is not one floating-point embedding an image.
        """
        try:
            output = self._encoder(images)
        except RuntimeError as error:
            if "Inference tensors cannot be saved" in str(error):
                raise RuntimeError(
                    "`encoder` keeps a tensor that it made in inference mode (a cached position "
                    "table or mask, say), through which no gradient can be taken. Build it in "
                    "__init__, or validate with Trainer(inference_mode=False)."
                ) from error
            if "argument #1 'indices'" in str(error):
                raise TypeError(
                    "`encoder` takes token ids, which have no gradient. Score it with respect to "
                    "their embeddings: pass a function of these, and the embeddings as images."
                ) from error
            raise
        embeddings = pool_output(output, self.pool)
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
