"""What the methods share: groups of parameters, schedules of a run, batches of several processes."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from helpers import in_two_processes
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from jepa_monitor.recipes.module import ScheduledModule, gathered
from jepa_monitor.recipes.networks import blanked, build_vit, projector
from jepa_monitor.recipes.schedules import warmup_cosine


class Small(ScheduledModule):
    def __init__(
        self, learning_rate=0.1, final_learning_rate=0.01, warmup=0.5, weight_decay=0.3, seed=0
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.vit = build_vit(8, 4, 1, 8, 1, 2, class_token=True, layer_scale=0.1)
        self.head = projector([8, 6, 3])
        self.seen, self.after = [], []

    def training_step(self, batch, batch_idx):
        return self.head(self.vit(batch[0])).square().mean()

    def after_step(self, values) -> None:
        groups = self.trainer.optimizers[0].param_groups
        self.seen.append([(g["lr"], g["weight_decay"]) for g in groups])
        self.after.append(values)


def fit(model, **options):
    loader = DataLoader(TensorDataset(torch.randn(24, 1, 8, 8)), 4)
    trainer = pl.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        **options,
    )
    trainer.fit(model, loader)
    return trainer


def test_weight_decay_is_for_matrices_only() -> None:
    model = Small()
    decayed, kept = model.parameter_groups()
    names = {id(p): n for n, p in model.named_parameters()}
    with_decay = {names[id(p)] for p in decayed["params"]}
    without = {names[id(p)] for p in kept["params"]}
    assert with_decay | without == set(names.values())
    assert not with_decay & without
    modules = dict(model.named_modules())
    for name in names.values():
        owner, _, leaf = name.rpartition(".")
        matrix = leaf == "weight" and isinstance(modules[owner], nn.Linear | nn.Conv2d)
        assert (name in with_decay) == matrix, name


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_follows_its_schedule_once_per_step(accumulate) -> None:
    model = Small()
    trainer = fit(model, accumulate_grad_batches=accumulate)
    steps = 6 // accumulate
    lr = [warmup_cosine(s, steps, round(0.5 * steps), 0.1, 0.01) for s in range(steps)]
    assert model.seen == [[pytest.approx((v, 0.3)), pytest.approx((v, 0.0))] for v in lr]
    assert len(model.after) == steps
    assert float(trainer.callback_metrics["train/lr"]) == pytest.approx(lr[-1])


def test_what_a_network_draws_depends_on_seed_epoch_and_batch() -> None:
    drawn = {}
    for seed, epoch, batch in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]:
        model = Small(seed=seed)
        model._trainer = SimpleNamespace(global_rank=0, current_epoch=epoch)
        for repeat in range(2):
            torch.manual_seed(repeat)
            model.on_train_batch_start(None, batch)
            drawn.setdefault((seed, epoch, batch), set()).add(float(torch.rand(())))
    assert all(len(values) == 1 for values in drawn.values())
    assert len(set.union(*drawn.values())) == 4


def test_groups_with_a_scale_get_their_share() -> None:
    group = {"lr_scale": 0.25, "decays": True}
    Small().set_group(group, {"lr": 0.4, "weight_decay": 0.1})
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.1)


def test_a_run_without_end_is_refused() -> None:
    model = Small()
    model._trainer = SimpleNamespace(estimated_stepping_batches=float("inf"))
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs or max_steps"):
        model.on_train_start()


# ------------------------------------------------------------------------------------- networks
def test_drop_path_is_the_same_in_every_block() -> None:
    vit = build_vit(8, 4, 1, 8, 3, 2, drop_path=0.25)
    rates = [(b.drop_path1.drop_prob, b.drop_path2.drop_prob) for b in vit.blocks]
    assert rates == [(0.25, 0.25)] * 3
    x = torch.randn(4, 1, 8, 8)
    assert not torch.equal(vit(x), vit(x))
    assert torch.equal(vit.eval()(x), vit(x))


def test_a_vit_takes_crops_of_other_sizes_and_interpolates_its_positions() -> None:
    vit = build_vit(16, 4, 1, 8, 1, 2).eval()
    nn.init.constant_(vit.pos_embed, 0.7)  # the same everywhere, so interpolation changes nothing
    crop = torch.randn(2, 1, 8, 8)
    tokens = vit.patch_embed.proj(crop).flatten(2).transpose(1, 2) + 0.7
    expected = vit.norm(vit.blocks(tokens)).mean(1)
    torch.testing.assert_close(vit(crop), expected)
    assert vit(torch.randn(2, 1, 24, 24)).shape == (2, 8)


def test_the_embedding_is_the_mean_of_the_tokens_or_the_class_token() -> None:
    x = torch.randn(2, 1, 8, 8)
    for class_token in (False, True):
        vit = build_vit(8, 4, 1, 8, 1, 2, class_token=class_token).eval()
        tokens = vit.forward_features(x)
        expected = tokens[:, 0] if class_token else tokens.mean(1)
        torch.testing.assert_close(vit(x), expected)


@pytest.mark.parametrize("stem", ["conv", "conv_batchnorm"])
def test_convolutional_stem_gives_a_token_for_each_patch(stem) -> None:
    vit = build_vit(16, 4, 3, 16, 1, 2, stem=stem).eval()
    images = torch.randn(2, 3, 16, 16)
    tokens = vit.patch_embed(images)
    assert tokens.shape == (2, 4, 4, 16)
    assert vit(images).shape == vit(images[..., :8, :8]).shape == (2, 16)
    torch.testing.assert_close(vit(images)[:1], vit(images[:1]))  # no image depends on its batch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch_size": 6, "image_size": 18, "width": 48}, "patch_size=6 must be a power of 2"),
        ({"patch_size": 4, "image_size": 16, "width": 24}, "width=24 must be a multiple of 16"),
        ({"patch_size": 4, "image_size": 16, "width": 16, "stem": "hybrid"}, "`stem`"),
    ],
)
def test_impossible_stems_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        build_vit(**{"in_channels": 1, "depth": 1, "heads": 2, "stem": "conv", **arguments})


def test_blanked_hides_exactly_the_patches() -> None:
    images = torch.arange(1.0, 65.0).view(2, 1, 4, 8)
    hidden = torch.tensor([[False, True], [False, False]])
    result = blanked(images, hidden, 4)
    assert torch.equal(result[..., :4], images[..., :4])
    assert torch.equal(result[1], images[1])
    assert not result[0, ..., 4:].any()


def test_projector_is_linear_norm_relu() -> None:
    head = projector([3, 5, 2]).train()
    x = torch.randn(7, 3)
    hidden = x @ head[0].weight.T + head[0].bias
    normal = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head(x), F.relu(normal) @ head[3].weight.T)


# ------------------------------------------------------------------------------ several processes
def test_one_process_gathers_nothing() -> None:
    x = torch.randn(2, 3, 4)
    assert gathered(x) is x


def loss_of(z):
    return torch.cov(z.flatten(0, 1).T).square().sum() + z.mean(1).exp().sum()


def images_and_weight():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 6, 5, generator=generator), torch.randn(5, 3, generator=generator)


def half(rank, folder):
    images, weight = images_and_weight()
    weight.requires_grad_()
    loss = loss_of(gathered(images[:, 3 * rank : 3 * rank + 3] @ weight))
    loss.backward()
    dist.all_reduce(weight.grad)
    return float(loss.detach()), weight.grad / 2  # DDP's average


def test_two_processes_have_the_loss_and_gradient_of_one(tmp_path) -> None:
    images, alone = images_and_weight()
    expected = loss_of(images @ alone.requires_grad_())
    expected.backward()
    for loss, gradient in in_two_processes(half, tmp_path):
        assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
        torch.testing.assert_close(gradient, alone.grad)
