"""The command ``replay``: in go words, out come lines on the console and, of two runs, a page.

Nothing that takes long to import is imported before it is used: help and errors come at once.
"""

from __future__ import annotations

from jepa_monitor.cli.settings import ModelSettings, ReplaySettings
from jepa_monitor.jacobian.options import ScoreOptions

__all__ = ["EXAMPLES", "replay"]

EXAMPLES = """
examples:
  jepa-monitor replay 'runs/ijepa/version_0/checkpoints/*.ckpt' --data images.npz --out runs/replay
  jepa-monitor replay 'logs/jepa-ep*.pth.tar' --model my_code:vit --data val/ --reference train/ \\
      --out runs/replay --steps-per-epoch 1250
  jepa-monitor replay 'eval/training_*/teacher_checkpoint.pth' --model my_code:vit --data imagenet/ \\
      --out runs/replay --workers 4
  jepa-monitor replay hf_run/ --data photos/ --out runs/replay      # folders checkpoint-500, …
  jepa-monitor replay --compare runs/replay_a runs/replay_b --page differences.html
  tensorboard --logdir runs/replay

a checkpoint:
  of one of the recipes, or of any LightningModule (--module package.module:Class); a folder of
  Hugging Face; or any file of weights with --model, which says the architecture: the encoder's keys
  are found under whatever prefix they have (target_encoder, teacher.backbone, module., …), those of
  EMA targets first; --encoder names another

exit status:
  0 all checkpoints were looked at; 3 some were not, see the console and replay.json; 1 failed; 2
  refused: a wrong argument, or looks of other settings in --out; 130 interrupted: the same command
  goes on
"""

_PROBLEMS = 5  # that are shown


def replay(
    checkpoints: list[str],
    /,
    data: str | None = None,
    out: str | None = None,
    model: str | None = None,
    reference: str | None = None,
    overwrite: bool = False,
    compare: list[str] | None = None,
    page: str | None = None,
    *,
    model_settings: ModelSettings,
    options: ScoreOptions,
    settings: ReplaySettings,
) -> int:
    """Look at a folder of checkpoints as the callback would have: dashboard and verdict, after the fact.

    Interrupted at any point, the same command goes on where it was; new checkpoints are added.

    Args:
        checkpoints: Files, patterns such as 'ckpts/*.ckpt', or folders.
        data: Held-out images, named as for jepa-monitor score; a folder with train and val, or a FILE.npz
            with train_images and test_images, also gives the training images; default: must be given,
            except with ``compare``.
        out: Folder for TensorBoard's event file, the looks and replay.json; default: must be given,
            except with ``compare``.
        model: The architecture that the weights are loaded into, named as for jepa-monitor score;
            default: what each checkpoint says itself.
        reference: Training images; default: those that ``data`` holds, or none.
        overwrite: Begin again where there are looks of other settings.
        compare: Two replayed runs, the folders that were their ``out``, to lay side by side; default:
            none.
        page: With ``compare``, where an HTML page of both goes; default: nowhere.
        model_settings: How to load the encoders.
        options: How to score.
        settings: How to look.

    Returns:
        How many checkpoints and images had to be left out.

    Raises:
        ValueError: If an argument is missing or wrong.
    """
    if compare is not None:
        _compare(checkpoints, compare, page)
        return 0
    if page is not None:
        raise ValueError("`page` is for `compare`: a single run is for TensorBoard to show.")
    if data is None or out is None:
        raise ValueError(f"`{'data' if data is None else 'out'}` must be given.")
    from jepa_monitor.cli.app import COMMANDS
    from jepa_monitor.cli.console import Bars, printed, stderr_console
    from jepa_monitor.cli.replay_tables import run_table
    from jepa_monitor.cli.replaying import replay_run

    console = stderr_console()
    with Bars(console, disable=False) as bars:
        found = replay_run(
            checkpoints,
            data,
            out,
            model=model,
            reference=reference,
            anew=overwrite,
            model_settings=model_settings,
            options=options,
            settings=settings,
            progress=bars.update,
        )
    parser = COMMANDS["replay"].parser("replay")
    for sentence in found.assumed:
        printed(f"Assumed: {parser.spell(sentence)}.", console)
    for sentence in found.said:
        printed(sentence, console)
    for problem in found.problems[:_PROBLEMS]:
        printed(f"Left out: {problem['path']} {parser.spell(problem['reason'])}", console)
    if len(found.problems) > _PROBLEMS:
        printed(f"… and {len(found.problems) - _PROBLEMS} more, in {out}/replay.json", console)
    printed(run_table(found))
    printed(f"Wrote {out}: tensorboard --logdir {out}", console)
    return len(found.problems)


def _compare(checkpoints: list[str], runs: list[str], page: str | None) -> None:
    if checkpoints:
        raise ValueError("`compare` takes runs that were replayed, and no `checkpoints`.")
    if len(runs) != 2:
        raise ValueError(f"`compare` must be two folders, got {len(runs)}.")
    from jepa_monitor.cli.console import printed, stderr_console
    from jepa_monitor.cli.replay_comparison import compare_replays
    from jepa_monitor.cli.replay_tables import pair_table

    found = compare_replays(runs[0], runs[1], page)
    printed(pair_table(found))
    if page is not None:
        printed(f"Wrote {page}", stderr_console())
