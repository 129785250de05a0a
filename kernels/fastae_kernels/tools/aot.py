"""Compile every kernel ahead of time, without a GPU, and report what the compiler made of it.

    python -m fastae_kernels.aot [--target cuda:90 ...] [--json FILE] [--operator NAME ...] [--dtype NAME ...]
                                 [--largest] [--table]

The operators themselves run, on tensors without data, and their launches are compiled in place of being run:
argument types, alignments and constants are those of real calls. One row per kernel, dtype and
configuration; the exit code is 1 if a default configuration spills, if a 16-bit product misses the matrix
instruction of its target, if codes are stored in smaller pieces than their rows allow, or if a reduction
takes lanes that are not neighbours (:mod:`.lanes`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs

from .. import operators
from ..device import noise
from ..launch import Compiled, Target, compile_only
from ..plan import choices, config
from . import lanes

TARGETS = {
    "cuda:80": Target("cuda", 80, 108),
    "cuda:90": Target("cuda", 90, 132),
    "cuda:100": Target("cuda", 100, 148),
    "hip:gfx942": Target("hip", "gfx942", 304),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MATRIX_INSTRUCTIONS = {"cuda:80": "mma.sync", "cuda:90": "wgmma", "cuda:100": "tcgen05", "hip:gfx942": "mfma"}

PRODUCTS = ("gemm", "overlapped_gemm")
"""The kernels of products."""

STORES = {1000: "16 B", 500: "8 B"}
"""The stores of 16-bit codes by their number of units."""

_ROWS, _FEATURES, _UNITS = 4096, 2048, 8192  # multiples of 16, as most widths are


@dataclass(frozen=True)
class Row:
    """Compiler's report on one kernel; spills and stack in bytes per thread, shared memory per program."""

    target: str
    operator: str
    kernel: str
    dtype: str
    configuration: str
    registers: int
    spilled: int
    stack: int
    shared: int
    matrix: str  # the matrix instruction found, or "-"
    loads: str  # the widest loads from global memory: "tma", or bytes per thread
    stores: str  # the widest stores to it
    pipelined: bool  # loads run ahead of their use
    seconds: float
    instructions: int = 0  # in the binary, with --table; then
    barriers: int = 0
    shuffles: int = 0
    per_entry: float = 0.0  # instructions per entry of a tile after the last matrix instruction
    scattered: tuple[str, ...] = ()  # reductions over lanes that are not neighbours


# --- what is compiled -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Case:
    name: str
    run: Callable[[torch.dtype], Any]
    product: bool  # whether it has tiles to choose


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _cases() -> Iterator[_Case]:
    M, D, H = _ROWS, _FEATURES, _UNITS
    seed = _meta(1, dtype=torch.int64)
    sums, scalar = _meta(H, dtype=torch.float32), torch.empty((), device="meta")
    mask = noise.Mask(seed, 0, 1000, noise.BITS[16])
    wide_mask = noise.Mask(seed, 0, 100_000, noise.BITS[32])
    dropout = mask._replace(stream=3, keep_scale=1.5)

    def case(name: str, run: Callable[[Any], Any], *, product: bool = False) -> _Case:
        return _Case(name, lambda dtype: run(lambda *shape: _meta(*shape, dtype=dtype)), product)

    def encode(**options: Any) -> Callable[[Any], Any]:
        activation = options.pop("activation", "sigmoid")
        return lambda t: operators.encode(t(M, D), t(H, D), t(H), activation, **options)

    def decode(tied: bool, loss: str, **options: Any) -> Callable[[Any], Any]:
        options = {"column_sums": True, "reduction": "mean", **options}
        return lambda t: operators.decode_loss(
            t(M, H), t(H, D).t() if tied else t(D, H), t(D), t(M, D), loss, **options
        )

    def code_grad(tied: bool, activation: str = "sigmoid", **options: Any) -> Callable[[Any], Any]:
        options = {"penalty_scale": scalar, **options}
        return lambda t: operators.code_grad(
            t(M, D),
            t(H, D).t() if tied else t(D, H),
            t(M, H),
            t(M, H),
            activation,
            scale=scalar,
            sq_norms=sums,
            mean=True,
            sums=torch.float32,
            column_sums=_meta(D, dtype=torch.float32),
            **options,
        )

    contractive = {"sq_norms": sums, "reduction": "mean"}
    gaussian_code = noise.Noise(noise.CODE_NOISES["gaussian"], 3, 0.5)
    binary_code = noise.Noise(noise.CODE_NOISES["bernoulli"], 3)

    yield case("encode", encode(), product=True)
    yield case("encode contractive", encode(**contractive), product=True)
    yield case("encode contractive rows", encode(sq_norms=sums), product=True)
    yield case(
        "encode everything", encode(**contractive, l1=True, code_sum=True, dropout=dropout), product=True
    )
    for activation in ("gelu", "softplus"):
        yield case(
            f"encode everything {activation}",
            encode(activation=activation, **contractive, l1=True, dropout=dropout),
            product=True,
        )
    yield case("encode l1 softplus", encode(activation="softplus", **contractive, l1=True), product=True)
    yield case("encode contractive gelu", encode(activation="gelu", **contractive), product=True)
    yield case(
        "encode difference",
        lambda t: operators.encode(t(M, D), t(H, D), t(H), "tanh", sq_norms=sums, base_code=t(M, H)),
        product=True,
    )
    for width in STORES:  # no multiples of 16, but rows start at multiples of 16 or 8 bytes
        yield case(
            f"encode {width}",
            lambda t, H=width: operators.encode(t(M, D), t(H, D), t(H), "sigmoid"),
            product=True,
        )
    odd = (4000, 2001, 501)  # rows that start anywhere: what plan() does with them
    yield case(
        "encode unaligned",
        lambda t: operators.encode(t(odd[0], odd[1]), t(odd[2], odd[1]), t(odd[2]), "sigmoid", sq_norms=sums),
    )
    yield case("decode_loss bce", decode(False, "bce"), product=True)
    yield case("decode_loss bce rows", decode(False, "bce", reduction="none"), product=True)
    yield case("decode_loss bce tied", decode(True, "bce"), product=True)
    yield case(
        "decode_loss negative_binomial", decode(False, "negative_binomial", parameter=1.0), product=True
    )
    yield case(
        "decode_loss mse emphasis", decode(False, "mse", mask=mask, corrupted=2.0, clean=0.5), product=True
    )
    yield case("decode_loss cosine", decode(False, "cosine"))
    weighted = {"missing": True, "entry_weight": _meta(M, D, dtype=torch.float32)}
    yield case("decode_loss mse weights", decode(False, "mse", **weighted), product=True)
    yield case(
        "decode_loss_target_grad",
        lambda t: operators.decode_loss_target_grad(t(M, H), t(D, H), t(D), t(M, D), "mse"),
        product=True,
    )
    yield case("code_grad", code_grad(False), product=True)
    yield case("code_grad rows", code_grad(False, penalty_scale=_meta(M, dtype=torch.float32)), product=True)
    yield case("code_grad tied", code_grad(True), product=True)
    yield case("code_grad l1 softplus", code_grad(False, "softplus", l1_scale=scalar), product=True)
    yield case(
        "code_grad everything",
        code_grad(False, "gelu", dropout=dropout, l1_scale=scalar, column_grad=sums),
        product=True,
    )
    yield case("weight_grad", lambda t: operators.weight_grad(t(M, H), t(M, D)), product=True)
    yield case(
        "weight_grad tied",
        lambda t: operators.weight_grad(
            t(M, H), t(M, D), None, t(H, D), sums, t(M, H), t(M, D), scalar, scalar, 2.0
        ),
        product=True,
    )
    for kind, function in noise.CORRUPTIONS.items():
        draws = wide_mask if kind in ("swap", "gaussian") else mask
        corruption = noise.Corruption(function, *draws[:4], hits=1 << 30)
        yield case(f"corrupt {kind}", lambda t, c=corruption: operators.corrupt(t(M, D), c))
    yield case("corrupt_backward swap", lambda t: operators.swap_backward(t(M, D), wide_mask, 1 << 30))
    yield case("perturb gaussian", lambda t: operators.perturb(t(M, H), gaussian_code, dropout, seed))
    yield case("perturb bernoulli", lambda t: operators.perturb(t(M, H), binary_code, None, seed))
    yield case("random_signs", lambda t: operators.random_signs(t(M, H), seed, 5))
    yield case("squared_norms", lambda t: operators.squared_norms(t(H, D)))
    yield case("squared_norms transposed", lambda t: operators.squared_norms(t(D, H).t()))
    wide = [_meta(H, D, dtype=torch.float32)] * 4
    for name, decay in (("adam", 0.0), ("adamw", 0.1)):

        def adam(t: Any, decay: float = decay) -> None:
            jobs = [
                operators.Updated(*wide, step=scalar, ahead=1, copy=t(H, D), sq_norms=sums),
                operators.Updated(*[sums] * 4, step=scalar, ahead=1),
            ]
            operators.adam(jobs, scalar, (0.9, 0.999), 1e-8, decay, decay > 0.0)

        yield case(name, adam)
    places = _meta(64 * M, dtype=torch.int64)
    by_latent, by_row = _meta(H + 1, dtype=torch.int64), _meta(M + 1, dtype=torch.int64)
    values = _meta(64 * M, dtype=torch.float32)
    for k in (32, 64, 512):
        yield case(
            f"top_entries {k}", lambda t, k=k: operators.top_entries(t(M, D), t(H, D), t(H), k), product=True
        )
    flat, count = _meta(1 << 20, dtype=torch.int64), _meta(dtype=torch.int32)
    yield case(
        "append_passing",
        lambda t: operators.append_passing(t(M, D), t(H, D), t(H), sums, flat, count),
        product=True,
    )
    yield case(
        "segment_loss", lambda t: operators.segment_loss(t(H, D), places, by_row, values, t(M, D), t(D))
    )
    yield case("sparse decode", lambda t: operators.segment_sums(t(H, D), places, by_row, values))
    yield case(
        "sparse decode_grad",
        lambda t: operators.segment_sums(t(M, D), places, by_latent, values, t(H, D), places),
    )
    for width in (D, 2 * D):
        w, first, second = (_meta(H, width, dtype=torch.float32) for _ in range(3))
        yield case(
            f"adam_rows D {width}",
            lambda t, w=w, m=first, v=second, D=width: operators.adam_rows(
                w, m, v, sums, (0.9, 0.99), 1e-8, (t(M, D), places, by_latent, values), unit=True
            ),
        )
    yield case(
        "slope_difference_grad",
        lambda t: operators.slope_difference_grad(t(M, H), None, t(M, H), None, "sigmoid", sums, scalar),
    )


def _runs(case: _Case, dtype: torch.dtype, target: Target, largest: bool) -> Iterator[dict[str, Any]]:
    """The overrides under which a case's default configurations are compiled, each once."""
    if not case.product:
        yield {}
        return
    heavy = case.name.startswith(
        ("encode everything ", "encode l1 softplus", "code_grad everything", "decode_loss negative")
    )
    tiles = config.configurations(target, dtype, operator=case.name.split()[0], heavy=heavy)
    if largest:
        tiles = tuple({gemm.epilogue_warps > 0: gemm for gemm in reversed(tiles)}.values())
    for gemm in tiles:
        yield {"strategy": "fused", "gemm": gemm}
    yield {"strategy": "split"}


# --- what the compiler made of it -------------------------------------------------------------------------


def _describe(compiled: Compiled, overrides: dict[str, Any]) -> str:
    if compiled.name in PRODUCTS and "gemm" in overrides:
        return str(overrides["gemm"])
    tile = f"{compiled.options['BM']}x{compiled.options['BN']} " if compiled.name == "elementwise" else ""
    return f"{tile}{compiled.options.get('num_warps', 4)}w"


def _match(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0


def _widest(patterns: dict[int, str], text: str) -> str:
    """The first size in bytes whose pattern is found."""
    return next((f"{size} B" for size, pattern in patterns.items() if re.search(pattern, text)), "4 B")


def _cuda_report(asm: dict[str, Any], log: str) -> dict[str, Any]:
    ptx = asm["ptx"]
    matrix = [
        name for name in ("tcgen05", "wgmma", "mma.sync") if f"{name}.mma" in ptx or f"{name}.aligned" in ptx
    ]
    tma = "cp.async.bulk.tensor" in ptx
    loads = r"cp\.async\.\w+\.shared\.global[^\n]*0x{copy:x}\b|ld\.global(\.\w+)*\.({types})\b"
    widths = {16: r"v[48]\.b32|v[24]\.b64", 8: r"v2\.b32|b64"}
    patterns = {size: loads.format(copy=size, types=types) for size, types in widths.items()}
    return {
        "registers": _match(r"Used (\d+) registers", log),
        "spilled": _match(r"(\d+) bytes spill stores", log) + _match(r"(\d+) bytes spill loads", log),
        "stack": _match(r"(\d+) bytes stack frame", log),
        "matrix": matrix[0] if matrix else "-",
        "loads": "tma" if tma else _widest(patterns, ptx),
        "stores": _widest({size: rf"st\.global(\.\w+)*\.({types})\b" for size, types in widths.items()}, ptx),
        "pipelined": tma or "cp.async.commit_group" in ptx,
    }


def _hip_report(asm: dict[str, Any]) -> dict[str, Any]:
    text = asm["amdgcn"]
    # scalar registers spill to vector registers, not to memory
    spills = _match(r"\.vgpr_spill_count:\s+(\d+)", text)
    accesses = "(global|buffer)_{}_dwordx{}"
    loops = re.findall(r"scf\.for[^\n]*iter_args[^\n]*", asm["ttgir"])
    return {
        "registers": _match(r"\.vgpr_count:\s+(\d+)", text),
        "spilled": 4 * spills,
        "stack": _match(r"\.private_segment_fixed_size:\s+(\d+)", text),
        "matrix": "mfma" if "v_mfma" in text else "-",
        "loads": _widest({size: accesses.format("load", size // 4) for size in (16, 8)}, text),
        "stores": _widest({size: accesses.format("store", size // 4) for size in (16, 8)}, text),
        "pipelined": any("memdesc" in loop or loop.count("tensor<") > 1 for loop in loops),
    }


def _counts(asm: Any, options: dict[str, Any]) -> dict[str, float]:
    """Instructions of a cubin, disassembled by the tool that comes with Triton."""
    names = re.findall(r"^\S+\t(?:@!?\S+ )?([A-Z][A-Z0-9.]*)", asm["sass"], re.MULTILINE)
    names = [name for name in names if name != "NOP"]
    products = [i for i, name in enumerate(names) if re.match(r"HMMA|HGMMA|UTC\w*MMA", name)]
    per_thread = options.get("BM", 0) * options.get("BN", 0) / (32 * options.get("num_warps", 4))
    rest = len(names) - max(products, default=-1) - 1
    return {
        "instructions": len(names),
        "barriers": sum(name.startswith("BAR.") for name in names),
        "shuffles": sum(name.startswith("SHFL") for name in names),
        "per_entry": round(rest / per_thread, 1) if per_thread else 0.0,
    }


_reports: dict[str, dict[str, Any]] = {}
"""By the kernel's hash: one that is compiled already has no log of its own."""


def _report(compiled: Compiled, target: Target, logs: list[str], counted: bool) -> dict[str, Any]:
    kernel = compiled.kernel
    if kernel.hash not in _reports:
        if target.backend == "hip":
            report = _hip_report(kernel.asm)
        else:
            report = _cuda_report(kernel.asm, next(log for log in logs if f"'{kernel.metadata.name}'" in log))
        shared, seconds = kernel.metadata.shared, round(compiled.seconds, 2)
        scattered = tuple(lanes.scattered_reductions(kernel.asm["ttgir"]))
        _reports[kernel.hash] = {**report, "shared": shared, "seconds": seconds, "scattered": scattered}
        if counted and target.backend == "cuda":
            _reports[kernel.hash] |= _counts(kernel.asm, compiled.options)
    return _reports[kernel.hash]


def _compile(task: tuple[str, str, str, bool, bool]) -> list[Row]:
    """The rows of one operator and dtype on one target."""
    name, operator, dtype_name, counted, largest = task
    target, dtype = TARGETS[name], DTYPES[dtype_name]
    case = next(case for case in _cases() if case.name == operator)
    rows: dict[tuple[str, str], Row] = {}
    torch.set_float32_matmul_precision("high")  # tf32 where there is: what is fused by default
    with tempfile.TemporaryDirectory() as cache:
        knobs.cache.dir = cache
        knobs.nvidia.dump_ptxas_log = True
        for overrides in _runs(case, dtype, target, largest):
            log = io.StringIO()
            with config.using(**overrides), compile_only(target) as kernels, contextlib.redirect_stdout(log):
                case.run(dtype)
            logs = re.split(r"(?=ptxas\S* info\s+: Compiling entry function)", log.getvalue())[1:]
            for compiled in kernels:
                configuration = _describe(compiled, overrides)
                report = _report(compiled, target, logs, counted)
                row = Row(name, operator, compiled.name, dtype_name, configuration, **report)
                rows.setdefault((compiled.name, configuration), row)
    return list(rows.values())


def compile_all(
    targets: list[str],
    operators_: list[str] | None = None,
    dtypes: list[str] | None = None,
    jobs: int = 1,
    counted: bool = False,
    largest: bool = False,
) -> Iterator[Row]:
    """The rows of every case as they come; ``jobs`` processes share the work.

    ``counted`` disassembles the kernels for CUDA, which takes a while, and counts their instructions.
    ``largest`` leaves out all but the first tile of each product and kernel, which has the most registers to
    spill.
    """
    tasks = [
        (target, case.name, dtype, counted, largest)
        for target in targets
        for case in _cases()
        for dtype in dtypes or DTYPES
        if operators_ is None or case.name in operators_
    ]
    if jobs == 1:
        for task in tasks:
            yield from _compile(task)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for rows in pool.imap(_compile, tasks):
            yield from rows


def problems(rows: list[Row]) -> list[str]:
    """Spills, products off the matrix units, codes stored in small pieces, and scattered reductions."""
    found = []
    for row in rows:
        where = f"{row.target} {row.operator} ({row.kernel}, {row.dtype}, {row.configuration})"
        if row.spilled:
            found.append(f"{where}: spills {row.spilled} bytes")
        if (
            row.kernel in PRODUCTS
            and row.dtype != "float32"
            and row.matrix != MATRIX_INSTRUCTIONS[row.target]
        ):
            found.append(f"{where}: no {MATRIX_INSTRUCTIONS[row.target]}, but {row.matrix}")
        width = int(row.operator.split()[-1]) if row.operator.split()[-1].isdecimal() else 0
        if width in STORES and row.dtype != "float32" and row.stores != STORES[width]:
            found.append(f"{where}: stores of {row.stores}, not of {STORES[width]}")
        found += [f"{where}: {reduction}" for reduction in row.scattered]
    return found


_WIDTHS = (10, 24, 14, 8, 34, 9, 7, 5, 6, 8, 5, 6, 9, 7)


def _line(cells: Iterable[Any]) -> str:
    return "  ".join(str(cell).ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def markdown(rows: list[Row]) -> str:
    """A table of the 16-bit products: the registers of each configuration, from the largest tile on."""
    targets = [target for target in TARGETS if any(row.target == target for row in rows)]
    products = [row for row in rows if row.kernel in PRODUCTS and row.dtype == "bfloat16"]
    lines = ["| operator | " + " | ".join(targets) + " |", "|---" * (len(targets) + 1) + "|"]
    for operator in dict.fromkeys(row.operator for row in products):
        cells = []
        for target in targets:
            own = [row for row in products if (row.operator, row.target) == (operator, target)]
            spilled = sum(row.spilled for row in own)
            cells.append(
                " / ".join(str(row.registers) for row in own) + (f", spills {spilled}" if spilled else "")
            )
        lines.append(f"| {operator} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(rows: list[Row]) -> str:
    """A table of the instructions, accesses and registers of every kernel for CUDA."""
    heads = ("operator", "kernel", "configuration", "instructions", "per_entry", "barriers", "shuffles",
             "loads", "stores", "registers", "spilled", "shared")  # fmt: skip
    lines = ["| " + " | ".join(("target", "dtype", *heads)) + " |", "|---" * (len(heads) + 2) + "|"]
    for row in (row for row in rows if row.instructions):
        cells = (row.target, row.dtype, *(getattr(row, head) for head in heads))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    names = [case.name for case in _cases()]
    parser = argparse.ArgumentParser(
        prog="python -m fastae_kernels.aot", description="Compile every kernel ahead of time."
    )
    parser.add_argument(
        "--target",
        nargs="+",
        choices=TARGETS,
        default=list(TARGETS),
        metavar="TARGET",
        help=f"one or more of {', '.join(TARGETS)}; all by default",
    )
    parser.add_argument(
        "--operator",
        nargs="+",
        choices=names,
        metavar="NAME",
        help=f"one or more of {', '.join(names)}; all by default",
    )
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="all by default")
    parser.add_argument("--largest", action="store_true", help="only the largest tile of each product")
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    parser.add_argument("--markdown", action="store_true", help="print a table of the 16-bit products last")
    parser.add_argument(
        "--table", action="store_true", help="count instructions in the binaries, and print them last"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="number of processes; by default one per core"
    )
    given = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        parser.error("TRITON_INTERPRET is set: the interpreter does not compile")
    shown = len(_WIDTHS)
    print(_line(list(Row.__dataclass_fields__)[:shown]))
    rows = []
    jobs = max(1, given.jobs)
    for row in compile_all(given.target, given.operator, given.dtype, jobs, given.table, given.largest):
        rows.append(row)
        print(_line(list(asdict(row).values())[:shown]), flush=True)
    if given.json:
        versions = {"triton": triton.__version__, "torch": torch.__version__}
        choices.replace_json(Path(given.json), {**versions, "rows": [asdict(row) for row in rows]})
    if given.markdown:
        print(markdown(rows))
    if given.table:
        print(table(rows))
    found = problems(rows)
    for problem in found:
        print(problem, file=sys.stderr)
    print(f"{len(rows)} kernels compiled with Triton {triton.__version__}: {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
