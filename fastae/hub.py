"""Trained runs on the Hugging Face Hub, through the mixin of ``huggingface_hub`` (extra ``hub``).

A repository holds ``config.json``, ``model.safetensors`` and a model card. Reading it executes no code.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .optional import require
from .run import Run
from .train.checkpoint import load_checkpoint

if TYPE_CHECKING:
    import huggingface_hub
    from typing_extensions import Self
else:
    huggingface_hub = require("huggingface_hub", "fastae.hub", "hub")

_FILES = ("config.json", "model.safetensors")
_FIGURES = {
    "r2": "R² of the reconstruction",
    "mse": "mean squared error",
    "reconstruction": "reconstruction loss per row",
    "classifier_error": "share of rows that the classifier gets wrong",
}


class HubRun(Run, huggingface_hub.ModelHubMixin, library_name="fastae", tags=["autoencoder"]):
    """A :class:`~fastae.Run` that is saved to and loaded from the Hub.

    ``HubRun.load("runs/first").push_to_hub("me/digits")`` uploads a run, and
    ``HubRun.from_pretrained("me/digits")`` downloads it. ``save_pretrained`` writes a local folder, which
    ``from_pretrained`` and :func:`fastae.load` read. Scaling, feature names and classes are saved with the
    weights, paths of the training data are not.
    """

    @classmethod
    def load(cls, run: str | Path) -> Self:
        """Load a run of this machine, as :func:`fastae.load` does.

        Raises:
            CheckpointError: for a folder without a checkpoint, or one that cannot be used.
        """
        return cls(load_checkpoint(Path(run)))

    def _save_pretrained(self, save_directory: Path) -> None:
        config, model = (self.checkpoint.path / name for name in _FILES)
        values = json.loads(config.read_text(encoding="utf-8"))
        values["data"].pop("paths", None)
        for key in ("data", "test", "labels", "out"):
            if isinstance(name := values.get("train", {}).get(key), str):
                values["train"][key] = Path(name).name
        text = json.dumps(values, indent=2, sort_keys=True)
        (save_directory / config.name).write_text(text + "\n", encoding="utf-8")
        shutil.copyfile(model, save_directory / model.name)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:
        if Path(model_id).is_dir():
            return cls.load(model_id)
        known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        options = {name: options[name] for name in known if name in options}
        return cls.load(huggingface_hub.snapshot_download(model_id, allow_patterns=list(_FILES), **options))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> huggingface_hub.ModelCard:
        """The model card: the architecture, how to use it, and the run's figures where it has them."""
        stack = self.checkpoint.stack
        layers = "\n".join(f"- {layer}" for layer in _described(stack))
        sizes = " - ".join(map(str, stack.sizes))
        data = Path(str(self.checkpoint.config.get("data") or "unknown data")).name
        card = self._hub_mixin_info.model_card_data.to_yaml()
        text = _CARD.format(card=card, sizes=sizes, data=data, layers=layers, figures=self._figures())
        return huggingface_hub.ModelCard(text)

    def _figures(self) -> str:
        path = self.checkpoint.path.parent / "evaluation.json"
        if not path.is_file():
            return "Not evaluated."
        values = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            f"| {title} | {values[name]:.4g} |"
            for name, title in _FIGURES.items()
            if isinstance(values.get(name), float)
        ]
        return "\n".join(["| figure | value |", "|---|---|", *rows])


def _described(stack: Any) -> list[str]:
    return [
        f"{layer.in_features} to {layer.code_features}: "
        + ", ".join(f"{k}={v!s}" for k, v in layer.options.to_dict().items() if v not in (None, 0.0))
        for layer in stack.autoencoders
    ]


_CARD = """---
{card}
---

# Autoencoder {sizes}

Trained by fastae on {data}. Layers:

{layers}

## Use

```python
from fastae.hub import HubRun

run = HubRun.from_pretrained("...")  # this repository
codes = run.encode(rows)
scores = run.score(rows)  # anomaly scores
```

## Figures

{figures}
"""
