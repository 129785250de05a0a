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


def classic_stack(folder: str, rate: float) -> Any:
    """The settings of 784-1000-1000-1000-10: pretrained with masking, then trained with dropout."""
    from fastae.train import Stage, TrainConfig

    return TrainConfig(
        sizes=(784, 1000, 1000, 1000),
        corruption=("masking:0.25",),
        classifier=True,
        pretrain=Stage(epochs=30, batch_size=256, schedule="CosineAnnealingLR"),
        finetune=Stage(epochs=0),
        supervised=Stage(epochs=100, batch_size=256, lr=rate, schedule="CosineAnnealingLR"),
        validation=1.0 / 6.0,
        precision="bfloat16",
        device="cuda",
        out=str(Path(folder) / f"run-{rate}"),
        tensorboard=False,
    )


def mnist(here: Machine, save: Save) -> dict[str, Any]:
    """The classic stack pretrained and trained on MNIST: seconds and errors, of each rate."""
    from fastae.train import load_dataset, train
    from fastae.train.evaluation import evaluate

    if here.data is None:
        return {"skipped": "no data was carried: --data FOLDER of MNIST's files"}
    dataset = load_dataset(str(here.data))
    if here.dry:
        return {"rows": len(dataset.train)}
    assert dataset.test is not None
    found: dict[str, Any] = {"runs": {}, "problems": {}}
    with tempfile.TemporaryDirectory() as folder:
        for rate in RATES:
            began = time.monotonic()
            result = train(classic_stack(folder, rate), dataset=dataset)
            seconds = time.monotonic() - began
            held_out = result.history[-1]["validation_error"]
            error = evaluate(result.stack, dataset.test, classifier=result.classifier)["classifier_error"]
            found["runs"][str(rate)] = {"seconds": seconds, "validation_error": held_out, "test_error": error}
            save(found)
    best = min(found["runs"].values(), key=lambda run: run["validation_error"])
    found |= {
        "seconds": sum(run["seconds"] for run in found["runs"].values()),
        "test_error": best["test_error"],
    }
    if best["test_error"] > 0.013 or found["seconds"] > 60.0:
        found["problems"]["mnist"] = f"{100 * best['test_error']:.2f} % in {found['seconds']:.0f} s"
    return found
