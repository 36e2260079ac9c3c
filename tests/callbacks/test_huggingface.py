"""What the callbacks of Hugging Face's Trainer say where transformers is not installed."""

from __future__ import annotations

import pytest

from jepa_monitor.callbacks import huggingface_base
from jepa_monitor.callbacks.huggingface import HuggingFaceCallback
from jepa_monitor.callbacks.huggingface_shortcut import HuggingFaceShortcutCallback


@pytest.mark.parametrize(
    ("callback", "extra"), [(HuggingFaceCallback, "hf"), (HuggingFaceShortcutCallback, "text")]
)
def test_without_transformers_they_say_what_to_install(
    callback: type, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_base, "TrainerCallback", object)
    with pytest.raises(
        ImportError, match=rf'{callback.__name__} needs .* "jepa-monitor\[{extra}\]"'
    ):
        callback(None)
