"""The suite and whole runs in ``gpu_check.py``."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_machine import Machine, Save
from benchmarks.gpu_training import SHAPES
from fastae.bench import runs
from fastae.bench.suite import Suite


def suite(here: Machine, save: Save) -> dict[str, Any]:
    """``fastae bench`` of steps and operators: its own file of results is in the answer."""
    from fastae.commands import bench
    from fastae.console import Console

    if here.dry:
        made = Suite(here.device, clock=here.clock).cases(
            ("step", "operators"),
            SHAPES,
            ("bfloat16",),
            bench.training_run("digits", "quick"),
            compiled=False,
            all_compiled=False,
        )
        return {"cases": [case.key for case in made]}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        problems = {}
        try:
            measured = bench.Config(
                groups=("step", "operators"),
                shapes=SHAPES,
                dtype=("bfloat16",),
                device="cuda",
                compile=False,
                seconds=max(5.0, here.left - 12.0),
                out=str(out),
            )
            bench.run(measured, Console())
        except bench.MeasurementError as error:
            problems["suite"] = str(error)
        return {"results": json.loads(out.read_text()), "problems": problems}


def digits(here: Machine, save: Save) -> dict[str, Any]:
    """A whole run on digits beside its bare products and a plain script."""
    from fastae.commands.bench import training_run

    run = training_run("digits", "quick")
    if here.dry:
        run = replace(run, dataset=runs.first_rows(run.dataset, 64), epochs=1)
        return {"losses": len(runs.by_engine(run, "float32", torch.device("cpu")))}
    found: dict[str, Any] = {}
    for name, provider in runs.providers_of(run, "bfloat16", here.device).items():
        provider()
        began = time.monotonic()
        losses = provider()
        torch.cuda.synchronize()
        found[name] = {"seconds": time.monotonic() - began, "losses": losses}
        save(found)
    return found


RATES = (1e-3, 3e-4)
"""Learning rates of the classifier, between which its error on rows held out decides."""


def classic_stack(here: Machine, out: Path, rate: float, validation: float) -> Any:
    """The settings of 784-1000-1000-1000-10: pretrained with masking, then trained with dropout.

    Dropout is that of Srivastava et al. 2014: 0.2 of the inputs and 0.5 of the hidden units.
    """
    from fastae.train import Stage, TrainConfig

    pretraining, training = (1, 1) if here.dry else (30, 100)
    return TrainConfig(
        sizes=(784, 1000, 1000, 1000),
        corruption=("masking:0.25",),
        classifier=True,
        pretrain=Stage(epochs=pretraining, batch_size=256, schedule="CosineAnnealingLR"),
        finetune=Stage(epochs=0),
        supervised=Stage(epochs=training, batch_size=256, lr=rate, schedule="CosineAnnealingLR"),
        supervised_dropout=0.5,
        supervised_input_dropout=0.2,
        validation=validation,
        precision="bfloat16",
        device=here.device.type,
        out=str(out),
        tensorboard=False,
    )


def mnist(here: Machine, save: Save) -> dict[str, Any]:
    """The classic stack on MNIST: the rate chosen on held-out rows, then one run with it on all rows.

    ``test_error`` is that of the last run, and no choice depends on it. ``seconds`` sums all runs, each with
    its compilation, checkpoints and test error.
    """
    from fastae.train import load_dataset, train

    if here.data is None:
        return {"skipped": "no data was carried: --data FOLDER of MNIST's files"}
    dataset = load_dataset(str(here.data))
    if here.dry:
        dataset = replace(runs.first_rows(dataset, 60), test=dataset.test)
    test = dataset.test
    assert test is not None and test.labels is not None
    x, labels = torch.from_numpy(test.read()).to(here.device), torch.from_numpy(test.labels).to(here.device)
    found: dict[str, Any] = {"runs": {}, "problems": {}}
    with tempfile.TemporaryDirectory() as folder:

        def trained(name: str, rate: float, validation: float) -> dict[str, Any]:
            began = time.monotonic()
            result = train(classic_stack(here, Path(folder) / name, rate, validation), dataset=dataset)
            assert result.classifier is not None
            with torch.no_grad():
                wrong = (result.classifier(x).argmax(1) != labels).double().mean().item()
            found["runs"][name] = figures = {
                "rate": rate,
                "validation_error": result.history[-1].get("validation_error"),
                "test_error": wrong,
                "seconds": time.monotonic() - began,
            }
            save(found)
            return figures

        tried = [trained(str(rate), rate, 1.0 / 6.0) for rate in RATES]
        best = min(tried, key=lambda run: run["validation_error"])
        last = trained("all rows", best["rate"], 0.0)
    found |= {
        "rate": last["rate"],
        "test_error": last["test_error"],
        "seconds": sum(run["seconds"] for run in found["runs"].values()),
    }
    if not here.dry and (found["test_error"] > 0.013 or found["seconds"] > 60.0):
        found["problems"]["mnist"] = f"{100 * found['test_error']:.2f} % in {found['seconds']:.0f} s"
    return found
