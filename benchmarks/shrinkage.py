"""Which shrunk law predicts held-out embeddings best? The table of docs/theory.md.

    python -m jepa_monitor.recipes.ijepa --config recipes/configs/ijepa_digits.yaml        # trains; 4 minutes on two cores
    python benchmarks/shrinkage.py runs/ijepa/version_0/checkpoints/last.ckpt

Fits the law of a target encoder's embeddings of augmented digits with three kinds of shrinkage, before
and after training, and says how well it fits 360 held-out digits: log-density (higher is better), mean
squared Mahalanobis distance over K (1 is right), and calibration error (0 is right).
"""

from __future__ import annotations

import torch
from _results import parser

from jepa_monitor.functional import calibration_error, hdr_pit
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.ijepa import IJepa


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("checkpoint", help="of the I-JEPA recipe")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    data = ImageDataModule("digits", image_size=24)
    data.setup()
    seen = torch.stack([data.train_set[(1, i)][0] for i in range(1000)])
    held_out = torch.stack([data.val_set[i][0] for i in range(len(data.val_set))])
    trained = IJepa.load_from_checkpoint(args.checkpoint, map_location="cpu").target_encoder.eval()
    torch.manual_seed(0)
    encoders = {"before": IJepa(depth=6).target_encoder.eval(), "after": trained}
    print("| training | N | shrinkage | s | log-density | distance² / K | calibration error |")
    print("|---|---|---|---|---|---|---|")
    for name, encoder in encoders.items():
        with torch.no_grad():
            reference, probe = (
                torch.cat([encoder(batch) for batch in images.split(100)])
                for images in (seen, held_out)
            )
        for count in (48, 448, 1000):
            for kind in ("leave_one_out", "ledoit_wolf", 0.0):
                law = Gaussian.fit(reference[:count], kind)
                distance = law.mahalanobis_squared(probe).mean() / law.width
                error = calibration_error(hdr_pit(probe, law))
                print(
                    f"| {name} | {count} | {kind or 'none'} | {law.shrinkage:.1g} | "
                    f"{law.log_prob(probe).mean():.1f} | {distance:.2f} | {error:.2f} |"
                )


if __name__ == "__main__":
    main()
