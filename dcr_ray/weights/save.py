"""A model and its tokenizer written as one folder: no progress bars, readable by every user of a shared cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers and the hub client from drawing progress bars on stderr."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write safetensors, config, generation config, tokenizer and chat template to `folder`, which is made if missing.

    transformers makes the weights readable by their owner alone; they get the mode that the other files have.
    """
    with without_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    mode = (folder / "config.json").stat().st_mode & 0o777
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)
