"""MAE against the paper's official code, re-written with NumPy: masks, targets, loss, reconstruction."""

import numpy as np
import pytest
import torch
from helpers import off_the_start
from torch import nn

from jepa_monitor.recipes.mae import Mae, mae_loss, patchify, unpatchify
from jepa_monitor.recipes.masking import sample_random_masks
from jepa_monitor.recipes.seen_patches import encode_tokens

TINY = {
    "image_size": 16,
    "in_channels": 3,
    "patch_size": 4,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "decoder_width": 8,
}
IMAGES = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def model(**options):
    torch.manual_seed(0)
    return off_the_start(Mae(**{**TINY, **options})).double().eval()


def masks(hidden=0.75, seed=0, images=5, patches=16):
    return sample_random_masks(images, patches, torch.Generator().manual_seed(seed), hidden)


# ------------------------------------------------------------------------------------- masking
@pytest.mark.parametrize(("hidden", "seen"), [(0.75, 4), (0.5, 8), (0.9, 2), (0.1, 14)])
def test_masks_part_the_patches_of_each_image(hidden, seen) -> None:
    found = masks(hidden)
    assert found.context.shape == (5, seen)
    assert found.targets.shape == (5, 1, 16 - seen)
    for context, targets in zip(found.context.tolist(), found.targets[:, 0].tolist(), strict=True):
        assert context == sorted(context)
        assert targets == sorted(targets)
        assert sorted(context + targets) == list(range(16))
    assert len({tuple(c) for c in found.context.tolist()}) > 1


def test_every_patch_is_hidden_as_often() -> None:
    hidden = masks(images=4000).targets.flatten().bincount(minlength=16)
    # 4000 independent draws of 12 of 16: a count has a variance of 4000 · 3/16.
    assert ((hidden - 3000) / (4000 * 3 / 16) ** 0.5).abs().max() < 4.5
    assert torch.equal(masks(seed=3).context, masks(seed=3).context)
    assert not torch.equal(masks(seed=3).context, masks(seed=4).context)


@pytest.mark.parametrize("hidden", [0.01, 0.99])
def test_masks_that_hide_nothing_or_all_are_refused(hidden) -> None:
    with pytest.raises(ValueError, match=rf"hidden={hidden} must leave some of 16 patches to see"):
        Mae(**TINY, mask=hidden)


# ----------------------------------------------------------------------------- patches and targets
def reference_patches(images, size):
    """Cut out one after the other."""
    patches = [
        image[:, y : y + size, x : x + size].transpose(1, 2, 0).ravel()
        for image in images
        for y in range(0, images.shape[2], size)
        for x in range(0, images.shape[3], size)
    ]
    return np.reshape(patches, (len(images), -1, len(patches[0])))


def test_patches_are_cut_row_by_row_and_put_together_again() -> None:
    images = IMAGES[:, :, :12]  # 12 × 16: rows and columns differ
    np.testing.assert_array_equal(patchify(images, 4), reference_patches(images.numpy(), 4))
    assert torch.equal(unpatchify(patchify(images, 4), (3, 4), 4), images)


@pytest.mark.parametrize("normalise", [True, False])
def test_targets_are_hidden_pixels_each_patch_normalised_by_itself(normalise) -> None:
    found = model(normalise_pixels=normalise).network.targets(IMAGES, masks())
    patches = reference_patches(IMAGES.numpy(), 4)
    for n, places in enumerate(masks().targets[:, 0].numpy()):
        expected = patches[n, places]
        if normalise:  # as the official code: an unbiased variance
            mean, var = expected.mean(1, keepdims=True), expected.var(1, ddof=1, keepdims=True)
            expected = (expected - mean) / np.sqrt(var + 1e-6)
        np.testing.assert_allclose(found[n], expected, rtol=1e-4, atol=1e-5)


def test_the_loss_counts_hidden_patches_alone() -> None:
    mae, images, hidden = model(), IMAGES.double(), masks()
    predicted = mae.network.predict(images, hidden).detach()
    targets = mae.network.targets(images, hidden)
    by_hand = np.mean((predicted.numpy() - targets.numpy()) ** 2)
    assert mae.loss(images, hidden).item() == pytest.approx(by_hand)
    assert mae_loss(predicted, targets).item() == pytest.approx(by_hand)
    # As the official code has it: a mean for each patch, then over the hidden ones of the batch.
    patches = torch.zeros(5, 16, 48, dtype=torch.double)
    mask = torch.zeros(5, 16).scatter(1, hidden.targets[:, 0], 1.0)
    places = hidden.targets[:, 0, :, None].expand(-1, -1, 48)
    per_patch = (patches.scatter(1, places, predicted) - patches.scatter(1, places, targets)) ** 2
    assert by_hand == pytest.approx(float((per_patch.mean(-1) * mask).sum() / mask.sum()))


# --------------------------------------------------------------------------------------- networks
def test_hidden_pixels_reach_neither_the_encoder_nor_the_prediction() -> None:
    mae, hidden = model(), masks()
    images = IMAGES.double().requires_grad_()
    mae.network.predict(images, hidden).square().sum().backward()
    touched = patchify(images.grad, 4).abs().sum(2) > 0
    seen = torch.zeros(5, 16, dtype=torch.bool).scatter(1, hidden.context, True)
    assert torch.equal(touched, seen)


def test_the_prediction_is_encoder_and_decoder_written_out() -> None:
    """Tokens of the seen patches with their positions, mask tokens with theirs, in one sequence."""
    mae, hidden = model(), masks()
    vit, decoder = mae.network.encoder, mae.network.decoder
    expected = []
    with torch.no_grad():
        for n, image in enumerate(IMAGES.double()):
            patches = [  # by the embedding's own convolution, a patch at a time
                vit.patch_embed.proj(image[None, :, y : y + 4, x : x + 4])[0, :, 0, 0]
                for y in range(0, 16, 4)
                for x in range(0, 16, 4)
            ]
            seen, gone = hidden.context[n], hidden.targets[n, 0]
            tokens = (torch.stack(patches) + vit.pos_embed[0])[seen]
            for block in vit.blocks:
                tokens = block(tokens[None])[0]
            tokens = decoder.embed(vit.norm(tokens))
            sequence = torch.cat(
                [
                    tokens + decoder.pos_embed[0, seen],
                    decoder.mask_token[0, 0] + decoder.pos_embed[0, gone],
                ]
            )
            for block in decoder.blocks:
                sequence = block(sequence[None])[0]
            expected.append(decoder.project(decoder.norm(sequence))[len(seen) :])
        found = mae.network.predict(IMAGES.double(), hidden)
    torch.testing.assert_close(found, torch.stack(expected))


def test_it_embeds_whole_images_by_the_mean_of_their_tokens() -> None:
    mae = model()
    # The same tokens through the path of training, as if a mask left everything to be seen.
    tokens = encode_tokens(mae.network.encoder, IMAGES.double(), torch.arange(16).expand(5, 16))
    torch.testing.assert_close(mae(IMAGES.double()), tokens.mean(1))


@pytest.mark.parametrize("normalise", [True, False])
def test_a_reconstruction_leaves_what_is_seen_and_undoes_the_normalisation(normalise) -> None:
    mae, images, found = model(normalise_pixels=normalise), IMAGES.double(), masks()
    hidden = torch.zeros(5, 16, dtype=torch.bool).scatter(1, found.targets[:, 0], True)
    with torch.no_grad():
        made = patchify(mae.network.reconstruct(images, hidden), 4)
        predicted = mae.network.predict(images, found)
    true = patchify(images, 4)
    assert torch.equal(made[~hidden], true[~hidden])
    for n, place, own in zip(*hidden.nonzero().T, predicted.flatten(0, 1), strict=True):
        if normalise:
            own = own * (true[n, place].var() + 1e-6).sqrt() + true[n, place].mean()
        torch.testing.assert_close(made[n, place], own)


def test_a_reconstruction_of_the_true_targets_is_the_image(monkeypatch) -> None:
    mae, images = model(), IMAGES.double()
    monkeypatch.setattr(mae.network, "predict", mae.network.targets)
    hidden = torch.zeros(5, 16, dtype=torch.bool).scatter(1, masks().targets[:, 0], True)
    torch.testing.assert_close(mae.network.reconstruct(images, hidden), images)


# --------------------------------------------------------------------------------------- training
def test_masks_depend_on_seed_epoch_and_batch() -> None:
    drawn = [
        Mae(**TINY, seed=seed).masks(4, epoch, batch).context
        for seed, epoch, batch in [(0, 1, 0), (0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1)]
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not any(torch.equal(drawn[0], other) for other in drawn[2:])


def test_weight_decay_is_for_matrices_alone() -> None:
    mae = Mae(**TINY)
    groups = {g["decays"]: {id(p) for p in g["params"]} for g in mae.parameter_groups()}
    modules = dict(mae.named_modules())
    for name, parameter in mae.named_parameters():
        owner, _, leaf = name.rpartition(".")
        matrix = leaf == "weight" and isinstance(modules[owner], nn.Linear | nn.Conv2d)
        fixed = "pos_embed" in name
        assert (id(parameter) in groups[True]) == matrix, name
        assert (id(parameter) in groups[False]) == (not matrix and not fixed), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "patch_size=3 does not divide image_size=16"),
        ({"warmup": 1.0}, r"warmup=1\.0 must be in \[0, 1\)"),
        ({"mask": 1.0}, r"hidden=1\.0 must leave some of 16 patches"),
    ],
)
def test_bad_arguments_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Mae(**{**TINY, **options})
