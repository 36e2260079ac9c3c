"""Without its extra the callback for Hugging Face's Trainer says what to install."""

from __future__ import annotations

import importlib
import sys

import pytest


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from jepa_monitor.callbacks import huggingface

    monkeypatch.setitem(sys.modules, "transformers", None)
    try:
        missing = importlib.reload(huggingface)
        with pytest.raises(ImportError, match=r'pip install "jepa-monitor\[hf\]"'):
            missing.HuggingFaceCallback(None)
    finally:
        monkeypatch.undo()
        importlib.reload(huggingface)
