"""DINOv2 (Oquab et al., arXiv 2304.07193): distil an EMA teacher across crops and masked patches.

Run ``python -m jepa_monitor.recipes.dinov2`` to train on handwritten digits in a few minutes; see
``docs/recipes/dinov2.md``. To change the method, edit one function: ``sample_patch_masks`` for the
masking, ``sinkhorn_knopp`` for how the teacher's answers are balanced, ``dino_loss``, ``ibot_loss``
and ``koleo`` for the terms of the loss, ``DinoV2.scheduled`` for the schedules,
``DinoV2.restart`` for what a curriculum does between its two stages.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_monitor._checks import check_choice
from jepa_monitor.recipes.data import mixed_seed
from jepa_monitor.recipes.module import ScheduledModule, follow, is_decayed
from jepa_monitor.recipes.networks import blanked, build_vit, sees_beyond_patches
from jepa_monitor.recipes.schedules import cosine, linear, warmup_cosine

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from jepa_monitor.recipes.views import Views

# What this method asks of the data and of the callbacks, unless told otherwise.
DEFAULTS: dict[str, Any] = {
    "data.image_size": 16,
    "data.global_views": 2,
    "data.local_views": 2,
    "data.crop_scale": 0.6,
    "data.local_crop_scale": (0.2, 0.6),
    "trainer.gradient_clip_val": 3.0,
    "monitor.encoder": "teacher.backbone",
    "knn.encoder": "teacher.backbone",
}
CENTERINGS = ("sinkhorn_knopp", "centering")


# ------------------------------------------------------------------------------------- masking
def sample_patch_masks(
    images: int,
    grid: tuple[int, int],
    generator: torch.Generator,
    probability: float = 0.5,
    ratio: tuple[float, float] = (0.1, 0.5),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Tensor:
    """Hide blocks of patches, as iBOT and BEiT do (arXiv 2111.07832, 2106.08254).

    ``probability`` of the images are masked. Their shares of hidden patches are spread evenly over
    ``ratio``, so that every batch has easy and hard ones. An image gets rectangles of random area,
    aspect and place until its share is reached, and never more than its share.

    Args:
        images: Number of images B.
        grid: Rows and columns of patches.
        generator: Source of all randomness, on the CPU.
        probability: Share of the images that are masked, in [0, 1].
        ratio: Lowest and highest share of hidden patches in a masked image.
        aspect: Lowest and highest ratio of a rectangle's height to its width.

    Returns:
        True where a patch is hidden, shape (B, rows · columns), on the CPU.
    """
    rows, columns = grid
    masked = int(images * probability)
    masks = torch.zeros(images, rows, columns, dtype=torch.bool)

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    for image, place in enumerate(torch.randperm(images, generator=generator)[:masked].tolist()):
        step = (ratio[1] - ratio[0]) / masked
        share = draw(ratio[0] + image * step, ratio[0] + (image + 1) * step)
        goal = max(int(rows * columns * share), 1)
        mask = masks[place]
        for _ in range(10 * goal):
            left = goal - int(mask.sum())
            if left == 0:
                break
            area = draw(min(4, left), left)
            ratio_of_sides = math.exp(draw(math.log(aspect[0]), math.log(aspect[1])))
            height = min(max(round(math.sqrt(area * ratio_of_sides)), 1), rows)
            width = min(max(round(math.sqrt(area / ratio_of_sides)), 1), columns)
            top = int(torch.randint(rows - height + 1, (), generator=generator))
            side = int(torch.randint(columns - width + 1, (), generator=generator))
            block = mask[top : top + height, side : side + width]
            if block.numel() - int(block.sum()) <= left:
                block.fill_(True)
    return masks.flatten(1)


# --------------------------------------------------------------------------- the teacher's answers
def summed(value: Tensor) -> Tensor:
    """Add a tensor up over all processes.

    Args:
        value: This process's part; changed in place.

    Returns:
        The sum.
    """
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
    return value


def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Assign samples to prototypes so that all prototypes are used equally (arXiv 2006.09882).

    Alternately scales the prototypes to equal mass and the samples to mass 1, over all processes.
    No prototype can win every sample, so the teacher cannot collapse to one answer.

    Args:
        logits: Shape (N, P), float32, of a size for which exp(logits / temperature) is finite.
        temperature: Positive; small values sharpen.
        iterations: How often.

    Returns:
        Probabilities, shape (N, P); rows sum to 1.
    """
    mass = torch.exp(logits / temperature)
    count = summed(torch.tensor(float(len(logits)), device=logits.device))
    for _ in range(iterations):
        mass = mass / summed(mass.sum(0)) * (count / logits.shape[1])
        mass = mass / mass.sum(1, keepdim=True)
    return mass


class Centre(nn.Module):
    """DINO's alternative to Sinkhorn-Knopp: subtract the running mean of the logits, then sharpen.

    Args:
        prototypes: P.
        momentum: Share of the old mean that stays.
    """

    value: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes))

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Answer with the mean so far, then learn from these logits.

        Args:
            logits: Shape (N, P).
            temperature: Positive.

        Returns:
            Probabilities, shape (N, P).
        """
        answers = ((logits - self.value) / temperature).softmax(1)
        total = summed(logits.sum(0))
        count = summed(torch.tensor(float(len(logits)), device=logits.device))
        if count > 0:
            self.value.lerp_(total / count, 1 - self.momentum)
        return answers


# ------------------------------------------------------------------------------------------ losses
def dino_loss(students: list[Tensor], teachers: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of every crop against the teacher's answer to every *other* global crop.

    Args:
        students: Logits of the crops, (B, P) each, the global crops first.
        teachers: Probabilities of the G global crops, shape (G, B, P).
        temperature: Of the student.

    Returns:
        Scalar, the mean over images and pairs of crops.
    """
    pairs = [
        -(teacher * (student / temperature).log_softmax(1)).sum(1).mean()
        for crop, student in enumerate(students)
        for place, teacher in enumerate(teachers)
        if crop != place
    ]
    return torch.stack(pairs).mean()


def ibot_loss(student: Tensor, teacher: Tensor, masks: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of hidden patches against what the teacher says of them, seeing all.

    Args:
        student: Logits of the hidden patches of all images, image by image, shape (n, P).
        teacher: Probabilities of the same patches, shape (n, P).
        masks: Where they are, shape (B, N).
        temperature: Of the student.

    Returns:
        Scalar: the mean of each image over its hidden patches, averaged over all images; an image
        without hidden patches counts as 0.
    """
    entropies = -(teacher * (student / temperature).log_softmax(1)).sum(1)
    hidden = masks.sum(1, keepdim=True).clamp_min(1)
    return (entropies / hidden.expand_as(masks)[masks]).sum() / len(masks)


def koleo(embeddings: Tensor) -> Tensor:
    """Kozachenko-Leonenko regulariser: keep nearest neighbours on the sphere apart.

    Args:
        embeddings: Shape (B, K), B ≥ 2.

    Returns:
        Scalar: minus the mean logarithm of the distance to the nearest neighbour in the batch.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        points = F.normalize(embeddings.float(), dim=1)
        with torch.no_grad():
            nearest = (points @ points.T).fill_diagonal_(-1).argmax(1)
        return -(F.pairwise_distance(points, points[nearest]) + 1e-8).log().mean()


# ---------------------------------------------------------------------------------------- networks
class Head(nn.Module):
    """Three linear layers, then cosines with the prototypes: a weight-normalised last layer.

    Args:
        width: Numbers in.
        hidden: Numbers in each of the two hidden layers.
        bottleneck: Numbers in a prototype.
        prototypes: Numbers out, P.
        batchnorm: Whether batch normalisation follows the two hidden layers.
    """

    def __init__(
        self, width: int, hidden: int, bottleneck: int, prototypes: int, batchnorm: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (width, hidden):
            layers.append(nn.Linear(inputs, hidden))
            layers += [nn.BatchNorm1d(hidden)] if batchnorm else []
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.last_layer = nn.Linear(bottleneck, prototypes, bias=False)
        for layer in (*self.mlp, self.last_layer):
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compare tokens with the prototypes.

        Args:
            tokens: Shape (n, K).

        Returns:
            Cosines, float32, shape (n, P).
        """
        found = F.normalize(self.mlp(tokens), dim=1)
        return F.linear(found, F.normalize(self.last_layer.weight, dim=1)).float()


def patch_grid(images: Tensor, patch_size: int) -> tuple[int, int]:
    """Count the patches of images.

    Args:
        images: Shape (..., H, W).
        patch_size: Side of a patch.

    Returns:
        Rows and columns.

    Raises:
        ValueError: If the patches do not cover the images: a ViT would drop the rest.
    """
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"`patch_size` {patch_size} must divide the sides of all crops, got {height}x{width}."
        )
    return height // patch_size, width // patch_size


def encode_masked(
    vit: Any, images: Tensor, mask_token: Tensor, masks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run a timm ViT, hidden patches replaced by a learned token.

    Args:
        vit: A timm ``VisionTransformer``.
        images: Shape (B, C, H, W).
        mask_token: Shape (1, 1, K).
        masks: True where a patch is hidden, shape (B, N); none if None.

    Returns:
        Embeddings of the images (B, K), which are the class tokens or, of a ViT that has none, the
        means of the patch tokens; and the patch tokens (B, N, K). All tokens are normalised.
    """
    if masks is not None and sees_beyond_patches(vit):
        images = blanked(images, masks, vit.patch_embed.patch_size[0])
    patches = vit.patch_embed(images)  # (B, rows, columns, K)
    if masks is not None:
        hidden = masks.view(*patches.shape[:3], 1)
        patches = torch.where(hidden, mask_token[0, 0].to(patches.dtype), patches)
    tokens = vit.norm(vit.blocks(vit.norm_pre(vit._pos_embed(patches))))
    if vit.num_prefix_tokens == 0:
        return tokens.mean(1), tokens
    return tokens[:, 0], tokens[:, 1:]


# ------------------------------------------------------------------------------------------ method
class DinoV2(ScheduledModule):
    """DINOv2: a student that sees crops and masked images, and an EMA teacher that sees all.

    Masks depend on ``(seed, epoch, batch)`` and every schedule on the step, so a run resumed from
    the end of an epoch equals the uninterrupted one.

    With ``first_epochs`` it follows a curriculum of two stages, whose images the data module changes
    at the same epoch: FastDINOv2 (arXiv 2507.03779), or denoised images and then noisy ones
    (arXiv 2505.12191). The second stage begins with the weights of the first and nothing else: all
    schedules and the optimiser start again, as in both papers' code.

    The defaults learn on digits within minutes; ``recipes/configs/dinov2_224.yaml`` has the settings
    of the paper's code.

    Logs ``train/loss``, ``train/dino``, ``train/ibot``, ``train/koleo``, ``train/lr``,
    ``train/last_layer_lr``, ``train/weight_decay``, ``train/momentum`` and
    ``train/teacher_temperature``; ``train/anchor`` where there is one.

    Args:
        image_size: Side of the global crops in pixels.
        in_channels: Colour channels.
        patch_size: Side of a patch in pixels; divides ``image_size`` and the size of local crops.
        stem: How patches become tokens: ``"patch"``, the papers', or ``"conv"`` or
            ``"conv_batchnorm"``, convolutions, which learn more from few images.
        width: Numbers per token of the backbone, a multiple of ``heads``.
        depth: Transformer blocks of the backbone.
        heads: Attention heads of the backbone.
        class_token: Whether the embedding of an image is a class token, as in the paper. Otherwise it
            is the mean of the patch tokens, which serves shallow backbones better: in a few blocks a
            class token gathers little.
        drop_path: Share of stochastic depth in the student, the same in every block.
        layer_scale: First value of LayerScale, or None for none; 1e-5 in the paper, whose runs are
            hundreds of times longer than the default here.
        head_hidden: Numbers in each of the two hidden layers of a head.
        bottleneck: Numbers in a prototype.
        prototypes: Prototypes of each head, P.
        head_batchnorm: Whether the heads normalise over the batch, an option of DINO
            (arXiv 2104.14294): embeddings that hardly differ at first then still get different
            prototypes, which short runs need.
        dino_weight: Weight of the loss of whole images.
        ibot_weight: Weight of the loss of the hidden patches.
        koleo_weight: Weight of KoLeo, summed over the global crops.
        centering: ``"sinkhorn_knopp"`` or ``"centering"``: what keeps the teacher from collapsing.
        mask_probability: Share of the global crops that are masked.
        mask_ratio: Lowest and highest share of hidden patches in them.
        student_temperature: Of the student.
        teacher_temperature: First and last of the teacher.
        teacher_warmup: Share of the steps in which the teacher's temperature changes.
        learning_rate: Highest learning rate of AdamW.
        final_learning_rate: Learning rate of the last step.
        warmup: Share of the steps in which the learning rate rises, in [0, 1).
        layer_decay: Factor of the learning rate from one block to the one before it.
        patch_embed_lr: Factor of the learning rate of the patch embedding, beside that.
        freeze_last_layer: Share of the steps in which the prototypes stay as they are.
        weight_decay: First and last weight decay; none on biases, norms, tokens and positions.
        momentum: First and last momentum of the teacher.
        first_epochs: Epochs of the first stage of a curriculum, or 0 for none. Its schedules are those
            of the whole run, broken off.
        anchor_weight: Weight in the second stage of DINO's and iBOT's losses against a teacher that
            sees the denoised copies of the global crops, its backbone frozen as the first stage left
            it; 0 for none.
        seed: Seed of the masks.

    Raises:
        ValueError: If a number is out of its range.
    """

    first_steps = 0

    def __init__(
        self,
        image_size: int = 16,
        in_channels: int = 1,
        patch_size: int = 4,
        stem: str = "patch",
        width: int = 64,
        depth: int = 4,
        heads: int = 2,
        class_token: bool = True,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        head_hidden: int = 256,
        bottleneck: int = 64,
        prototypes: int = 64,
        head_batchnorm: bool = False,
        dino_weight: float = 1.0,
        ibot_weight: float = 1.0,
        koleo_weight: float = 0.1,
        centering: str = "sinkhorn_knopp",
        mask_probability: float = 0.5,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        student_temperature: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.04, 0.04),
        teacher_warmup: float = 0.3,
        learning_rate: float = 2e-3,
        final_learning_rate: float = 1e-6,
        warmup: float = 0.1,
        layer_decay: float = 1.0,
        patch_embed_lr: float = 1.0,
        freeze_last_layer: float = 0.01,
        weight_decay: tuple[float, float] = (0.04, 0.4),
        momentum: tuple[float, float] = (0.95, 1.0),
        first_epochs: int = 0,
        anchor_weight: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice(centering, "centering", CENTERINGS)
        for name, share in {
            "mask_probability": mask_probability,
            "teacher_warmup": teacher_warmup,
            "freeze_last_layer": freeze_last_layer,
        }.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share} must be in [0, 1].")
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup={warmup} must be in [0, 1).")
        if not 0 < mask_ratio[0] <= mask_ratio[1] <= 1:
            raise ValueError(f"mask_ratio={mask_ratio} must rise within (0, 1].")
        if not all(0 <= m <= 1 for m in momentum):
            raise ValueError(f"momentum={momentum} must lie in [0, 1].")
        if min(student_temperature, *teacher_temperature) <= 0:
            raise ValueError(
                f"student_temperature={student_temperature} and "
                f"teacher_temperature={teacher_temperature} must be positive."
            )
        if first_epochs < 0:
            raise ValueError(f"first_epochs={first_epochs} must be at least 0.")
        if anchor_weight < 0 or (anchor_weight and not first_epochs):
            raise ValueError(
                f"anchor_weight={anchor_weight} must be at least 0, and 0 without first_epochs."
            )
        self.save_hyperparameters()
        backbone = build_vit(
            image_size,
            patch_size,
            in_channels,
            width,
            depth,
            heads,
            class_token=class_token,
            drop_path=drop_path,
            layer_scale=layer_scale,
            stem=stem,
        )
        self.student = nn.ModuleDict(
            {
                "backbone": backbone,
                "dino_head": Head(width, head_hidden, bottleneck, prototypes, head_batchnorm),
                "ibot_head": Head(width, head_hidden, bottleneck, prototypes, head_batchnorm),
            }
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        for module in self.teacher.modules():
            if isinstance(module, Block):  # stochastic depth is the student's only
                module.drop_path1, module.drop_path2 = nn.Identity(), nn.Identity()
        self.centres = nn.ModuleDict({"dino": Centre(prototypes), "ibot": Centre(prototypes)})
        self.anchor = copy.deepcopy(self.teacher["backbone"]) if anchor_weight else None
        for kind in ("dino", "ibot") if anchor_weight else ():
            self.centres[f"anchor_{kind}"] = Centre(prototypes)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images with the teacher's backbone, which is what is evaluated and kept.

        Args:
            images: Shape (B, C, H, W).

        Returns:
            Class tokens, or means of the patch tokens, shape (B, K).
        """
        embeddings: Tensor = self.teacher["backbone"](images)
        return embeddings

    def balanced(self, logits: Tensor, kind: str, temperature: float) -> Tensor:
        """Turn the teacher's logits into answers that use all prototypes.

        Args:
            logits: Shape (N, P).
            kind: Name of the running mean, one of ``centres``.
            temperature: Of the teacher.

        Returns:
            Probabilities, shape (N, P).
        """
        if self.hparams["centering"] == "sinkhorn_knopp":
            return sinkhorn_knopp(logits, temperature)
        answers: Tensor = self.centres[kind](logits, temperature)
        return answers

    @torch.no_grad()
    def targets(
        self, crops: Tensor, masks: Tensor, temperature: float, anchored: bool = False
    ) -> tuple[Tensor, Tensor]:
        """What the student must say: the teacher's balanced answers to unmasked global crops.

        Args:
            crops: G global crops of B images, one after the other, shape (G · B, C, H, W).
            masks: Which patches will be asked for, shape (G · B, N).
            temperature: Of the teacher.
            anchored: Whether the frozen backbone answers, through the teacher's present heads.

        Returns:
            Probabilities of the images (G · B, P) and of the asked patches (n, P).
        """
        backbone = self.anchor if anchored else self.teacher["backbone"]
        prefix = "anchor_" if anchored else ""
        classes, patches = encode_masked(backbone, crops, self.mask_token)
        return (
            self.balanced(self.teacher["dino_head"](classes), f"{prefix}dino", temperature),
            self.balanced(self.teacher["ibot_head"](patches[masks]), f"{prefix}ibot", temperature),
        )

    def loss(self, views: Views, masks: Tensor, temperature: float) -> dict[str, Tensor]:
        """Sum DINO's loss, iBOT's loss and KoLeo, and the first two against the anchor.

        Args:
            views: At least two global crops of B images, local crops, and for the anchor the global
                crops of the denoised copies.
            masks: Hidden patches of the global crops, shape (G · B, N).
            temperature: Of the teacher.

        Returns:
            Scalars ``loss``, ``dino``, ``ibot`` and ``koleo``; ``anchor`` if there is an anchor and
            it has crops to look at.

        Raises:
            ValueError: If there are fewer than two global crops.
        """
        large = len(views.global_crops)
        if large < 2:
            raise ValueError(f"DINOv2 needs data.global_views of at least 2, got {large}.")
        h, student = self.hparams, self.student
        crops = torch.cat(views.global_crops)
        classes, patches = encode_masked(student["backbone"], crops, self.mask_token, masks)
        logits = list(student["dino_head"](classes).chunk(large))
        if views.local_crops:
            small = student["dino_head"](student["backbone"](torch.cat(views.local_crops)))
            logits += small.chunk(len(views.local_crops))
        hidden = student["ibot_head"](patches[masks])

        def distilled(answers: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
            of_classes = torch.stack(answers[0].chunk(large))
            return {
                "dino": dino_loss(logits, of_classes, h["student_temperature"]),
                "ibot": ibot_loss(hidden, answers[1], masks, h["student_temperature"]),
            }

        def weighted(terms: dict[str, Tensor]) -> Tensor:
            return torch.as_tensor(sum(h[f"{name}_weight"] * term for name, term in terms.items()))

        terms = distilled(self.targets(crops, masks, temperature))
        # Not between crops of one image: those should be near each other.
        terms["koleo"] = torch.stack([koleo(tokens) for tokens in classes.chunk(large)]).sum()
        if self.anchor is not None and views.clean_crops:
            clean = torch.cat(views.clean_crops)
            answers = self.targets(clean, masks, temperature, anchored=True)
            terms["anchor"] = weighted(distilled(answers))
        return {"loss": weighted(terms), **terms}

    def masks(self, crops: int, grid: tuple[int, int], *counters: int) -> Tensor:
        """Draw the masks of a batch.

        Args:
            crops: Global crops in the batch.
            grid: Rows and columns of their patches.
            counters: What identifies the batch, mixed with the seed and the process's rank.

        Returns:
            Shape (crops, N), on the module's device.
        """
        h, seed = self.hparams, mixed_seed(self.hparams["seed"], self.global_rank, *counters)
        generator = torch.Generator().manual_seed(seed)
        masks = sample_patch_masks(crops, grid, generator, h["mask_probability"], h["mask_ratio"])
        return masks.to(self.device)

    def on_train_start(self) -> None:
        """Find the lengths of the schedules.

        Raises:
            ValueError: If the run ends with the first stage.
        """
        super().on_train_start()
        if epochs := self.hparams["first_epochs"]:
            batches = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
            self.first_steps = epochs * math.ceil(batches)
            if self.first_steps >= self.total_steps:
                raise ValueError(
                    f"first_epochs={epochs} are {self.first_steps} of {self.total_steps} steps; "
                    "expected fewer, to leave some to the second stage."
                )

    def on_train_batch_start(self, batch: tuple[Views, Tensor], batch_idx: int) -> None:
        """Restart where the second stage begins, and seed what the networks draw.

        Args:
            batch: Views of B images, and labels (B,).
            batch_idx: Number of the batch in the epoch.
        """
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx == 0 and 0 < self.current_epoch == self.hparams["first_epochs"]:
            self.restart()

    def restart(self) -> None:
        """Keep the weights only, as a new run from a checkpoint would; the anchor is the teacher's."""
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()
        if self.anchor is not None:
            self.anchor.load_state_dict(self.teacher["backbone"].state_dict())
            for kind in ("dino", "ibot"):
                self.centres[f"anchor_{kind}"].load_state_dict(self.centres[kind].state_dict())

    def training_step(self, batch: tuple[Views, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of (views, labels); the labels are not looked at.

        Args:
            batch: Views of B images, and labels (B,).
            batch_idx: Number of the batch in the epoch.

        Returns:
            Scalar loss.

        Raises:
            ValueError: If the anchor has nothing to look at in the second stage.
        """
        views = batch[0]
        second = self.current_epoch >= self.hparams["first_epochs"]
        if self.anchor is not None and second and not views.clean_crops:
            raise ValueError(
                "anchor_weight needs denoised copies: set data.denoised and data.paired."
            )
        grids = [patch_grid(c[0], self.hparams["patch_size"]) for c in views[:2] if c]
        crops = len(views.global_crops) * views.batch_size
        masks = self.masks(crops, grids[0], self.current_epoch, batch_idx)
        values = self.loss(views, masks, self.scheduled(self.global_step)["teacher_temperature"])
        loss = values.pop("loss")
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in values.items()})
        return loss

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Part the student's parameters by weight decay, by layer and by being a last layer.

        Returns:
            Groups for AdamW, each with ``decays``, ``lr_scale`` and ``last_layer``.
        """
        h = self.hparams
        groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            layer = h["depth"] + 1  # the last norm and the heads
            if ".blocks." in name:
                layer = int(name.partition(".blocks.")[2].partition(".")[0]) + 1
            elif "token" in name or "pos_embed" in name or "patch_embed" in name:
                layer = 0
            scale = h["layer_decay"] ** (h["depth"] + 1 - layer)
            scale *= h["patch_embed_lr"] if "patch_embed" in name else 1.0
            key = (scale, is_decayed(name, parameter), "last_layer" in name)
            groups.setdefault(key, []).append(parameter)
        return [
            {"params": parameters, "lr_scale": scale, "decays": decays, "last_layer": last}
            for (scale, decays, last), parameters in groups.items()
        ]

    def scheduled(self, step: int) -> dict[str, float]:
        """All that changes from step to step.

        Args:
            step: Optimiser steps done before.

        Returns:
            Values by the names ``lr``, ``last_layer_lr``, ``weight_decay``, ``momentum`` and
            ``teacher_temperature``.
        """
        h, total = self.hparams, self.total_steps
        if step >= self.first_steps:  # of the second stage, which is all without a curriculum
            step, total = step - self.first_steps, total - self.first_steps
        warmup = round(h["warmup"] * total)
        lr = warmup_cosine(step, total, warmup, h["learning_rate"], h["final_learning_rate"])
        frozen = step < math.ceil(h["freeze_last_layer"] * total)
        warm = round(h["teacher_warmup"] * total)
        return {
            "lr": lr,
            "last_layer_lr": 0.0 if frozen else lr,
            "weight_decay": cosine(step, total, *h["weight_decay"]),
            "momentum": cosine(step, total, *h["momentum"]),
            "teacher_temperature": linear(step, warm, *h["teacher_temperature"]),
        }

    def set_group(self, group: dict[str, Any], values: dict[str, float]) -> None:
        """Give a group of parameters its values; a learning rate of 0 freezes it.

        Args:
            group: One of the optimiser's.
            values: What :meth:`scheduled` says.
        """
        lr = values["last_layer_lr"] if group["last_layer"] else values["lr"]
        super().set_group(group, {**values, "lr": lr})

    def after_step(self, values: dict[str, float]) -> None:
        """Move the teacher towards the student.

        Args:
            values: What :meth:`scheduled` said.
        """
        follow(self.teacher, self.student, values["momentum"])


def main(args: list[str] | None = None) -> Trainer:
    """Train from the command line.

    Args:
        args: Arguments, or None for those of the process.

    Returns:
        The trainer after ``fit``.
    """
    from jepa_monitor.recipes.cli import train

    return train(DinoV2, "dinov2", max_epochs=30, args=args, defaults=DEFAULTS)


if __name__ == "__main__":
    main()
