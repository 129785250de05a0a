"""``fastae estimate``: what a run would need, before there is a device for it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from ..console import Console, print_table
from ..train.estimate import EstimateDtype, Sharding, StageEstimate, estimate


@dataclass(frozen=True)
class Config:
    """Predict memory per device, bytes over the wire, least time per step and what limits it. Nothing is run.

    Attributes:
        sizes: Widths of the input and of each code; of a dictionary the input's and the number of latents.
        batch_size: Rows of a step, on all devices together.
        dtype: Type of the products' operands; parameters are float32.
        devices: Number of devices.
        device_kind: Kind of device: h100, h200, b200, a100 or mi300x.
        rows: Rows per epoch.
        sae: Activation of a sparse dictionary, as in topk:32. By default a stack of autoencoders is trained.
        shard: Data copies everything to every device; weights and units split a stack, latents a dictionary.
        shard_size: Consecutive devices that hold one copy of a stack together; 0 for all.
        tied: Layers share weights with their decoders.
        json: Print JSON instead of a table.
    """

    sizes: tuple[int, ...] = (784, 1000, 500, 250)
    batch_size: int = 4096
    dtype: EstimateDtype = "float32"
    devices: int = 1
    device_kind: str = "h100"
    rows: int = 1_000_000
    sae: str | None = None
    shard: Sharding = "data"
    shard_size: int = 0
    tied: bool = True
    json: bool = False


def run(config: Config, console: Console) -> None:
    """Run the command."""
    options = asdict(config)
    as_json, sizes = options.pop("json"), options.pop("sizes")
    found = estimate(sizes, **options)
    if as_json:
        stages = [{**asdict(stage), "bytes": stage.bytes} for stage in found.stages]
        values = {**asdict(found), "stages": stages, "limit": found.limit, "fits": found.fits}
        print(json.dumps(values, indent=2))
        return
    header = ("", "GB", "sent, MB", "least step, us", "epochs/h", "limit")
    cells = [header, *(_cells(stage) for stage in found.stages)]
    capacity = f"{config.device_kind} x {config.devices}, {found.capacity / 1e9:.0f} GB each"
    print_table(console, cells, title=f"Predicted, not measured: {capacity}")
    wide = max(found.stages, key=lambda stage: stage.bytes)
    parts = ", ".join(f"{name} {size / 1e9:.3g}" for name, size in wide.memory.items())
    console.print(f"memory of {wide.name}, GB: {parts}")
    if not found.fits:
        console.print(
            f"memory: {found.bytes / 1e9:.3g} GB per device do not fit in {found.capacity / 1e9:.0f}"
        )
    else:
        console.print(f"first limit: {found.limit}")


def _cells(stage: StageEstimate) -> tuple[str, ...]:
    return (
        stage.name,
        f"{stage.bytes / 1e9:.3g}",
        f"{stage.wire / 1e6:.4g}",
        f"{1e6 * stage.step:.3g}",
        f"{stage.epochs_per_hour:.4g}",
        stage.limit,
    )
