"""``fastae info``: versions, devices, and what runs where."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import torch

from .. import ops
from .._version import __version__
from ..bench.problems import Shape
from ..console import Console, print_table
from ..ops.backend import backend_of, requested_backend
from ..train.graph import capture_on


@dataclass(frozen=True)
class Config:
    """Show versions, devices, and which backend each operator would use, and why.

    Attributes:
        json: Print JSON instead of tables.
        why: Rows, features and units, as in 256x784x1000. Shows how each product of such a step would run
            on a GPU, the estimated times of one kernel and of the library's product with a pass, and what
            decided.
        dtype: Precision of the tensors that --why is about.
        device: Card that --why plans for; auto takes the GPU that there is, else an H100.
    """

    json: bool = False
    why: Shape | None = None
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    device: Literal["auto", "a100", "h100", "h200", "b200", "mi300x"] = "auto"


def run(config: Config, console: Console) -> None:
    """Run the command."""
    if config.why is not None:
        _explain(config.why, config, console)
        return
    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    names = {
        str(d): platform.processor() or platform.machine()
        if d.type == "cpu"
        else torch.cuda.get_device_name(d)
        for d in devices
    }
    info = {
        "versions": {
            "fastae": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version_of("triton"),
            "numpy": _version_of("numpy"),
            "safetensors": _version_of("safetensors"),
        },
        "threads": torch.get_num_threads(),
        "devices": names,
        "FASTAE_BACKEND": requested_backend(),
        "training_step": {str(d): capture_on(d)[1] for d in devices},
        "operators": {str(d): {op: _backend(op, d) for op in ops.NAMES} for d in devices},
        "measured_choices": _measured_choices(devices),
    }
    if config.json:
        print(json.dumps(info, indent=2))
        return
    rows = [*info["versions"].items(), ("threads", str(info["threads"]))]
    rows.append(("FASTAE_BACKEND", info["FASTAE_BACKEND"]))
    for device, name in names.items():
        rows += [(device, name), ("  training step", info["training_step"][device])]
    for device, tables in info["measured_choices"].items():
        hold = ", ".join(f"{table['hold']} {place}" for place, table in tables.items())
        rows.append((f"measured choices, {device}", hold))
    print_table(console, rows, text=(0, 1))
    for device, operators in info["operators"].items():
        console.print(f"\noperators on {device}", style="bold")
        by_reason: dict[tuple[str, str], list[str]] = {}
        for op, (backend, why) in operators.items():
            by_reason.setdefault((backend, why), []).append(op)
        for (backend, why), names_of in by_reason.items():
            console.print(f"  {backend}: {', '.join(names_of)}\n    ({why})")


def _explain(shape: Shape, config: Config, console: Console) -> None:
    """Print the plans of a step's products and the estimates behind them."""
    from fastae_kernels.launch import target_of
    from fastae_kernels.plan.explain import DEVICES, explain

    here = config.device == "auto" and torch.cuda.is_available()
    card = "h100" if config.device == "auto" else config.device
    target = target_of(torch.device("cuda")) if here else DEVICES[card]
    plans = explain(*shape, getattr(torch, config.dtype), target)
    if config.json:
        print(json.dumps([{**p._asdict(), "plan": str(p.plan)} for p in plans], indent=2))
        return
    rows = [
        (
            p.operator,
            f"[{p.M}, {p.K}] [{p.K}, {p.N}]",
            f"{1e6 * p.fused.seconds:.1f}",
            f"{1e6 * p.split.seconds:.1f}",
            str(p.plan),
            p.reason,
        )
        for p in plans
    ]
    header = ("operator", "product", "fused us", "split us", "plan", "because of")
    print_table(
        console, rows, header, f"{shape} in {config.dtype} on {target.device}, estimated", (0, 1, 4, 5)
    )


def _backend(op: str, device: torch.device) -> list[str]:
    try:
        return list(backend_of(op, device))
    except ValueError as error:  # what a call would raise
        return ["none", str(error)]


def _measured_choices(devices: list[torch.device]) -> dict[str, dict[str, Any]]:
    """By device that runs on kernels: which tables of measured choices there are, how many entries hold."""
    report: dict[str, dict[str, Any]] = {}
    for device in devices:
        try:
            if backend_of("encode", device)[0] != "triton":
                continue
        except ValueError:  # asked for, and cannot run there
            continue
        from fastae_kernels.launch import target_of
        from fastae_kernels.plan import choices

        report[str(device)] = choices.counts(target_of(device).device)
    return report


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
