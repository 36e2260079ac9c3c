"""What do the embeddings of all layers cost beside a forward pass? The table of docs/layers.md.

    python benchmarks/layers.py

Models of timm with random weights. A pass without gradients, and one with `layer_embeddings` (hooks on all blocks,
and what leaves them pooled), take turns `--repeats` times; the median of the processor's seconds counts.
"""

from __future__ import annotations

import timm
import torch
from _results import in_turns, parser, table
from torch import nn

from jepa_monitor.encoders.layers import layer_embeddings

# name: (timm model, its options, side of the images)
TIMM = {
    "ViT-Ti/8, 32 px": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}, 32),
    "ViT-S/16, 64 px": ("vit_small_patch16_224", {"img_size": 64}, 64),
    "ResNet-18, 64 px": ("resnet18", {}, 64),
    "ConvNeXt-Atto, 64 px": ("convnext_atto", {}, 64),
}


def main() -> None:
    asked = parser(__doc__, out=False)
    asked.add_argument("--repeats", type=int, default=15, help="of each (default: %(default)s)")
    asked.add_argument("--images", type=int, default=32, help="in a pass (default: %(default)s)")
    options = asked.parse_args()
    torch.set_num_threads(options.threads)
    lines = table("encoder", "layers", "pass, ms", "with all layers, ms", "ratio")
    for name, (model, settings, side) in TIMM.items():
        torch.manual_seed(0)
        encoder: nn.Module = timm.create_model(model, num_classes=0, **settings).eval()
        images = torch.randn(options.images, 3, side, side)
        with torch.no_grad():
            layers = len(layer_embeddings(encoder, [encoder], images))
            works = (
                lambda e=encoder, x=images: e(x),
                lambda e=encoder, x=images: layer_embeddings(e, [e], x),
            )
            plain, watched = in_turns(works, options.repeats)
        cells = [name, layers, f"{1e3 * plain:.0f}", f"{1e3 * watched:.0f}"]
        lines.append("| " + " | ".join(map(str, [*cells, f"{watched / plain:.2f}"])) + " |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
