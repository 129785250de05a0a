"""Predictions against what small runs on the CPU take: bytes of a step, bytes that are exchanged."""

import gc
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._C._profiler import _EventType
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastae.distributed import World, make_mesh, shard_units, split_weights
from fastae.nn import Autoencoder, SparseAutoencoder, StackedAutoencoder
from fastae.tensors import local
from fastae.train import TrainingStep, estimate
from fastae.train.estimate import dictionary_memory, stack_parameters, step_memory
from tests.distributed.test_world import with_world

pytest.importorskip("triton")


def measured_bytes(model: nn.Module, rows: torch.Tensor, world: World | None = None, total: int = 0) -> int:
    """The most bytes of a step: weights, Adam's state, the batch, and what PyTorch gives out.

    NumPy's are counted where no process group has threads, which Python cannot watch.
    """
    options: dict[str, int] = {} if world is None else {"total": total}
    step = TrainingStep(model, torch.optim.Adam(model.parameters(), fused=True), world=world)
    step(rows, **options)
    gc.collect()
    gc.disable()  # it would free what earlier tests have left
    if world is None:
        tracemalloc.start()
    try:
        most = made_bytes(lambda: step(rows, **options)) + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.enable()
    return 3 * sum(local(p).nbytes for p in model.parameters()) + rows.nbytes + most


def made_bytes(run: Callable[[], object]) -> int:
    """The most bytes of the tensors that are made in a run; those that were there before may end in it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        run()
    results = profiler.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    events = [e for e in _all_of(results.experimental_event_tree()) if e.tag == _EventType.Allocation]
    held: dict[int, int] = {}
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_time_ns):
        memory = event.extra_fields
        if memory.alloc_size > 0:
            held[memory.ptr] = memory.alloc_size
            now += memory.alloc_size
        else:
            now -= held.pop(memory.ptr, 0)
        most = max(most, now)
    return most


def _all_of(events: Iterable[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _all_of(event.children)


@pytest.mark.parametrize(
    "sizes, rows", [((256, 512), 4096), ((512, 256), 64), ((1024, 256, 512), 64), ((1024, 256, 512), 2048)]
)
def test_the_memory_of_a_step_is_what_it_takes(sizes, rows):
    model = Autoencoder(*sizes) if len(sizes) == 2 else StackedAutoencoder(sizes)
    predicted = sum(step_memory(sizes, rows, torch.float32).values())
    assert predicted == pytest.approx(measured_bytes(model, torch.rand(rows, sizes[0])), rel=0.05)
    assert stack_parameters(sizes) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("D, H, k, rows", [(64, 8192, 16, 512), (64, 32768, 16, 512), (128, 8192, 8, 2048)])
def test_the_memory_of_a_dictionary_has_no_rows_times_latents(D, H, k, rows):
    model = SparseAutoencoder(D, H, f"topk:{k}")
    predicted = sum(dictionary_memory(D, H, k, rows, torch.float32).values())
    assert predicted == pytest.approx(measured_bytes(model, torch.rand(rows, D)), rel=0.15)


class Sent(TorchDispatchMode):
    """Bytes that each of two processes sends, by rings; of a group of two, the smaller operand's."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            self.bytes += min(tensor.nbytes for tensor in tensors)
        return func(*args, **(kwargs or {}))


def step_in_parts(world: World, shard: Any, sizes: tuple[int, ...], rows: int) -> tuple[int, int]:
    """Bytes that a process takes, and sends, in a step of a stack of which two hold a copy together."""
    torch.manual_seed(0)
    stack, mesh = StackedAutoencoder(sizes), make_mesh(world, shard, 2)
    assert mesh is not None
    if shard == "units":
        world.share_rows(mesh)
        shard_units(stack, mesh.get_group("parts"))
    else:
        split_weights(stack, mesh)
    own = torch.rand(rows, sizes[0])[world.part(torch.arange(rows))].clone()
    taken = measured_bytes(stack, own, world, rows)
    step = TrainingStep(stack, torch.optim.Adam(stack.parameters()), world=world)
    with Sent() as sent:
        step(own, total=rows)
    return taken, sent.bytes


@pytest.mark.parametrize("shard", ["weights", "units"])
@pytest.mark.parametrize("sizes, rows", [((256, 512), 2048), ((256, 512, 384), 64), ((1024, 256, 512), 2048)])
@pytest.mark.parametrize("devices", [2, 4])
def test_parts_take_and_send_what_is_predicted(request, shard, sizes, rows, devices):
    """Four processes are two copies of two parts.

    The profiler does not see what the threads of a group free, so the process that takes least counts.
    """
    group = request.getfixturevalue({2: "two", 4: "four"}[devices])
    predicted = estimate(sizes, batch_size=rows, devices=devices, shard=shard, shard_size=2).stages[-1]
    taken, sent = zip(*group.run(with_world, step_in_parts, shard, sizes, rows), strict=True)
    assert predicted.bytes == pytest.approx(min(taken), rel=0.1)
    assert list(sent) == pytest.approx([predicted.wire] * devices, rel=0.01)


def test_the_bytes_exchanged_are_those_of_the_gradients(tmp_path):
    """Two devices send one copy of the gradients each, by a ring: all that is summed."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("needs gloo")
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(Autoencoder(64, 32))
        summed = []

        def count(state, bucket):
            summed.append(bucket.buffer().nbytes)
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        model.register_comm_hook(None, count)
        model(torch.rand(16, 64)).total.backward()
    finally:
        torch.distributed.destroy_process_group()
    (stage,) = estimate((64, 32), batch_size=16, devices=2).stages
    assert stage.wire == sum(summed)
    (many,) = estimate((64, 32), batch_size=16, devices=1000).stages
    assert many.wire == pytest.approx(2 * sum(summed), rel=0.01)


def test_limits_are_named():
    one = estimate((2048, 10**6), batch_size=8192, sae="topk:32", dtype="bfloat16")
    assert one.fits and one.bytes > 70e9 and one.stages[0].wire == 0
    wide = estimate((4096, 10**6), batch_size=8192, sae="topk:32")
    assert not wide.fits and wide.limit == "memory"
    copied = estimate((2048, 10**6), batch_size=8192, sae="topk:32", devices=64)
    assert copied.limit == "wire"
    options = {"batch_size": 8192, "sae": "topk:32", "shard": "latents"}
    split = [estimate((4096, 10**6), devices=n, **options) for n in (8, 64)]
    assert all(found.fits and found.limit != "wire" for found in split[:1])
    assert split[1].bytes < split[0].bytes / 4 and split[1].stages[0].wire < copied.stages[0].wire / 10


def test_more_devices_take_less_each():
    found = [estimate((784, 1000, 500), batch_size=2**16, devices=n) for n in (1, 8, 64)]
    assert [stage.name for stage in found[0].stages] == ["layer 1", "layer 2", "fine-tuning"]
    assert found[0].bytes > found[1].bytes > found[2].bytes
    rates = [estimated.stages[0].epochs_per_hour for estimated in found]
    assert rates == sorted(rates) and rates[0] < rates[2]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sizes": (8,)}, "sizes: .*8"),
        ({"device_kind": "tpu"}, "device_kind: 'tpu' .*h100"),
        ({"devices": 0}, "devices: .*0"),
        ({"dtype": "float8"}, "dtype: 'float8' .*bfloat16"),
        ({"shard": "latents"}, "shard: .*sae"),
        ({"shard": "units", "sae": "topk:2"}, "shard: units splits stacks"),
        ({"shard": "units", "devices": 2}, "sizes: expected at least 17 units .* got 16"),
        (
            {"shard": "weights", "devices": 4, "shard_size": 3},
            "shard_size: .*divisor of the 4 devices, got 3",
        ),
        ({"shard_size": 2}, "shard_size: expected 0"),
        ({"sae": "relu"}, "sae: .*'relu'"),
        ({"sae": "topk:9", "shard": "latents", "devices": 8}, "sae: 9 .*2 latents"),
        ({"sizes": (8, 4, 2), "sae": "topk:2"}, "sizes: .*dictionary"),
    ],
)
def test_estimate_refuses(changes, words):
    options: dict[str, Any] = {"sizes": (32, 16), "batch_size": 8, **changes}
    with pytest.raises(ValueError, match=f"^{words}"):
        estimate(options.pop("sizes"), **options)
