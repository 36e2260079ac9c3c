"""TensorFloat-32 on any device: operands of products are rounded to 10 bits, sums stay float32, as tensor cores do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Which arguments of a product are rounded.
_PRODUCTS: dict[Any, range] = {
    torch.ops.aten.mm: range(2),
    torch.ops.aten.bmm: range(2),
    torch.ops.aten.addmm: range(1, 3),
    torch.ops.aten.baddbmm: range(1, 3),
    torch.ops.aten.convolution: range(2),
    torch.ops.aten.convolution_backward: range(3),
}


def rounded(value: Any) -> Any:
    """A float32 tensor to the nearest number of 10 bits of mantissa, ties away from zero (`cvt.rna.tf32`)."""
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    bits = value.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


class EmulatedTF32(TorchDispatchMode):
    """A context whose float32 products of matrices and convolutions are those of TF32.

    Fused attention is one operation: choose the kernel of plain products (`SDPBackend.MATH`).
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        packet: Callable[..., Any] = func.overloadpacket
        if "scaled_dot_product" in str(packet):
            raise NotImplementedError(f"{packet} is no plain product: choose SDPBackend.MATH.")
        asked = _PRODUCTS.get(packet, range(0))
        args = tuple(rounded(arg) if i in asked else arg for i, arg in enumerate(args))
        return func(*args, **(kwargs or {}))
