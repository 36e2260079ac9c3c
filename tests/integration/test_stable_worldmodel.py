"""LeWorldModel of stable-worldmodel: one line watches what it learns, as docs/recipes/world.md has it."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import images

from jepa_monitor import DensityMonitor
from jepa_monitor.functional import prediction_error
from jepa_monitor.insights import Clips

pytest.importorskip("transformers")
pytest.importorskip("stable_worldmodel")
from stable_worldmodel.wm.lewm import LeWM
from stable_worldmodel.wm.lewm.module import MLP, Embedder, Predictor
from transformers import ViTConfig, ViTModel

WIDTH = 24


def lewm() -> LeWM:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=8, patch_size=4,
    )  # fmt: skip
    return LeWM(
        ViTModel(config, add_pooling_layer=False),
        Predictor(num_frames=3, depth=2, heads=2, mlp_dim=32, input_dim=WIDTH, hidden_dim=WIDTH, dropout=0.1),
        Embedder(input_dim=2, emb_dim=WIDTH),
        projector=MLP(WIDTH, 48, norm_fn=torch.nn.BatchNorm1d),
        pred_proj=MLP(WIDTH, 48, norm_fn=torch.nn.BatchNorm1d),
    )  # fmt: skip


def test_its_numbers_are_those_of_its_own_methods_and_it_is_left_as_it_was() -> None:
    model = lewm().train()
    frames, actions = images(120).unflatten(0, (20, 6)), torch.randn(20, 5, 2)
    world = Clips(
        frames, actions, lambda z, a: model.predict(z, model.action_encoder(a)), history=3
    )
    monitor = DensityMonitor(images(24, 2), max_probe_samples=4, world=world)
    state, mode = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    def encoder(x: torch.Tensor) -> torch.Tensor:
        return model.encode({"pixels": x[:, None]})["emb"][:, 0]

    scalars = monitor.evaluate(encoder).scalars
    assert model.training
    assert torch.equal(torch.get_rng_state(), mode)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        found = model.encode({"pixels": frames, "action": actions})
        z, moves = found["emb"], found["act_emb"]
        made = [
            model.predict(z[:, max(0, t - 2) : t + 1], moves[:, max(0, t - 2) : t + 1])[:, -1]
            for t in range(5)
        ]
    error = prediction_error(torch.stack(made, 1), z[:, 1:], z[:, :-1])
    assert scalars["world/error"] == pytest.approx(error.value.item(), rel=1e-4)
    assert scalars["world/error_still"] == pytest.approx(error.still.item(), rel=1e-4)
