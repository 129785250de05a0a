"""The matrix product of :mod:`.gemm` with warps of its own for the epilogue, for Hopper's matrix units.

Four or eight warps of a program load operands by tensor descriptors and multiply. They leave a finished tile
in shared memory, in float32 or in the operands' dtype as a library leaves it in memory, and go on with the
next one. One or two crews of four warps meanwhile work on the tile's epilogue, each on parts of its own. The
schedule is persistent, so that epilogues cost little but for a program's last, on which all warps work.

Written in Gluon, since Triton has no such schedule for Hopper.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false
# (Gluon's own annotations know neither numbers for constants nor its loops)

from __future__ import annotations

from triton import constexpr_function
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from .dependence import follow
from .gemm import place
from .tiles import multiple_of

_copy = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # until Triton 3.7


@constexpr_function
def _part_layout(BM, BN, dtype):
    """The layout of a part [BM, BN] in shared memory.

    Matrix units' threads write 4 rows of 32 bytes at a time in float32, and an epilogue's read 8 rows of 16
    bytes. In 128 bytes, the three bits of a piece's place are xored with those of its row, from low to high
    the third, first and second: neither then meets a bank twice.
    """
    if dtype != gl.float32 or BN < 32:
        return gl.NVMMASharedLayout.get_default_for([BM, BN], dtype)
    columns = [[0, 1 << bit] for bit in range(BN.bit_length() - 1)]
    rows = [[1, 8], [2, 16], [4, 4], *([1 << bit, 0] for bit in range(3, BM.bit_length() - 1))]
    return gl.SharedLinearLayout([*columns[:5], *rows, *columns[5:]])


@gluon.jit
def _load(a, b, x, y, ready, stage, block_m, block_n, step, wanted, A_TRANSPOSED: gl.constexpr,
          B_TRANSPOSED: gl.constexpr):  # fmt: skip
    """Begin to load a step's operands to a stage of x and y; its barrier tells when they are there."""
    BM: gl.constexpr = a.block_shape[1 if A_TRANSPOSED else 0]
    BK: gl.constexpr = a.block_shape[0 if A_TRANSPOSED else 1]
    BN: gl.constexpr = b.block_shape[0 if B_TRANSPOSED else 1]
    m, n, k = block_m * BM, block_n * BN, step * BK
    there = ready.index(stage)
    mbarrier.expect(there, (BM + BN) * BK * a.dtype.primitive_bitwidth // 8, pred=wanted)
    if A_TRANSPOSED:
        _copy(a, [k, m], there, x.index(stage), pred=wanted)
    else:
        _copy(a, [m, k], there, x.index(stage), pred=wanted)
    if B_TRANSPOSED:
        _copy(b, [n, k], there, y.index(stage), pred=wanted)
    else:
        _copy(b, [k, n], there, y.index(stage), pred=wanted)


@gluon.jit
def _next(tile, block_m, block_n, step, steps, tiles_m, tiles_n, GROUP: gl.constexpr):
    """The step after one: of the same tile, or the first of the program's next one."""
    step += 1
    if step == steps:
        tile, step = tile + gl.num_programs(0), 0
        block_m, block_n = place(tile, tiles_m, tiles_n, GROUP)
    return tile, block_m, block_n, step


@gluon.jit
def _hand_over(acc, parts, first: gl.constexpr, PARTS: gl.constexpr):
    """Write the columns of ``acc`` as PARTS parts, the first of them number ``first``."""
    if PARTS == 1:
        parts.index(first).store(acc.to(parts.dtype))
    else:
        BM: gl.constexpr = acc.shape[0]
        BN: gl.constexpr = acc.shape[1]
        left, right = gl.split(gl.permute(gl.reshape(acc, (BM, 2, BN // 2)), (0, 2, 1)))
        _hand_over(left, parts, first, PARTS // 2)
        _hand_over(right, parts, first + PARTS // 2, PARTS // 2)


@gluon.jit
def _end(parts, first, last, tile, tiles_m, tiles_n, M, N, EPILOGUE: gl.constexpr, args, GROUP: gl.constexpr,
         WARPS: gl.constexpr):  # fmt: skip
    """EPILOGUE of a tile's parts from ``first`` to before ``last``."""
    PARTS: gl.constexpr = parts.shape[0]
    BM: gl.constexpr = parts.shape[1]
    BN: gl.constexpr = parts.shape[2]
    if parts.dtype == gl.float32:  # a row, or half of one, per thread, which needs no other then
        held: gl.constexpr = min(4 * BN // WARPS, 32)
        layout: gl.constexpr = gl.BlockedLayout([1, held], [32, 1], [4, WARPS // 4], [1, 0])
    else:  # 16 bytes of a row per thread
        layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BN, BN // 8], [WARPS, 1], [1, 0])
    block_m, block_n = place(tile, tiles_m, tiles_n, GROUP)
    for part in range(first, last):
        value = parts.index(part).load(layout).to(gl.float32)  # [BM, BN]
        EPILOGUE(value, block_m, block_n * PARTS + part, M, N, args, BM, BN)


@gluon.jit
def _multiply(a, b, x, y, ready, parts, full, empty, tiles_m, tiles_n, steps, M, N, EPILOGUE: gl.constexpr,
              args, GROUP: gl.constexpr, A_TRANSPOSED: gl.constexpr, B_TRANSPOSED: gl.constexpr,
              CREWS: gl.constexpr, WARPS: gl.constexpr):  # fmt: skip
    """The warps that multiply. Loads run STAGES - 1 steps ahead, across the ends of tiles."""
    PARTS: gl.constexpr = parts.shape[0]
    BM: gl.constexpr = parts.shape[1]
    BN: gl.constexpr = PARTS * parts.shape[2]
    STAGES: gl.constexpr = x.shape[0]
    # of 512 threads none may name more than 128 registers in an instruction
    WIDTH: gl.constexpr = BN if CREWS == 1 else min(BN, 128)
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, WIDTH, 16]
    )
    tiles = tiles_m * tiles_n
    next_tile, next_step = gl.program_id(0), 0  # of the next load
    next_m, next_n = place(next_tile, tiles_m, tiles_n, GROUP)
    for stage in gl.static_range(STAGES - 1):
        wanted = next_tile < tiles
        _load(a, b, x, y, ready, stage, next_m, next_n, next_step, wanted, A_TRANSPOSED, B_TRANSPOSED)
        next_tile, next_m, next_n, next_step = _next(
            next_tile, next_m, next_n, next_step, steps, tiles_m, tiles_n, GROUP
        )
    stage, phase, turn = 0, 0, 0
    last = gl.program_id(0)
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        acc = gl.zeros((BM, BN), gl.float32, layout)
        for _ in range(steps):
            mbarrier.wait(ready.index(stage), phase)
            left, right = x.index(stage), y.index(stage)
            if A_TRANSPOSED:
                left = left.permute((1, 0))  # [BM, BK]
            if B_TRANSPOSED:
                right = right.permute((1, 0))  # [BK, BN]
            acc = warpgroup_mma(left, right, acc, is_async=True)
            acc = warpgroup_mma_wait(1, deps=(acc,))  # the step before has read its stage
            free = gl.where(stage == 0, STAGES - 1, stage - 1)
            wanted = next_tile < tiles
            _load(a, b, x, y, ready, free, next_m, next_n, next_step, wanted, A_TRANSPOSED, B_TRANSPOSED)
            next_tile, next_m, next_n, next_step = _next(
                next_tile, next_m, next_n, next_step, steps, tiles_m, tiles_n, GROUP
            )
            stage += 1
            if stage == STAGES:
                stage, phase = 0, phase ^ 1
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.wait(empty, turn ^ 1)
        _hand_over(acc, parts, 0, PARTS)
        mbarrier.arrive(full)
        turn ^= 1
        last = tile
    _end(
        parts, CREWS * PARTS // (CREWS + 1), PARTS, last, tiles_m, tiles_n, M, N, EPILOGUE, args, GROUP, WARPS
    )


@gluon.jit
def _finish(parts, full, empty, tiles_m, tiles_n, M, N, EPILOGUE: gl.constexpr, args, GROUP: gl.constexpr,
            NUMBER: gl.constexpr, CREWS: gl.constexpr):  # fmt: skip
    """One of CREWS crews that end tiles. The warps that multiply take a share of the last one, too."""
    PARTS: gl.constexpr = parts.shape[0]
    tiles = tiles_m * tiles_n
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        mbarrier.wait(full, turn)
        more = tile + gl.num_programs(0) < tiles
        first = gl.where(more, NUMBER * PARTS // CREWS, NUMBER * PARTS // (CREWS + 1))
        last = gl.where(more, (NUMBER + 1) * PARTS // CREWS, (NUMBER + 1) * PARTS // (CREWS + 1))
        _end(parts, first, last, tile, tiles_m, tiles_n, M, N, EPILOGUE, args, GROUP, 4)
        mbarrier.arrive(empty)
        turn ^= 1


@gluon.jit
def overlapped_gemm(a, b, M, N, K, EPILOGUE: gl.constexpr, args, BM: gl.constexpr, BN: gl.constexpr,
                    BK: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr, SUBTILES: gl.constexpr,
                    A_TRANSPOSED: gl.constexpr, B_TRANSPOSED: gl.constexpr, N_UNIT: gl.constexpr,
                    CREWS: gl.constexpr, REGISTERS: gl.constexpr, EXACT: gl.constexpr,
                    num_warps: gl.constexpr):  # fmt: skip
    """EPILOGUE of each tile of a b, a [M, K], b [K, N], K > 0, both by descriptors.

    An operand is transposed where its columns are contiguous. REGISTERS is what a thread of a crew has.
    EXACT hands tiles over in float32.
    """
    follow()
    N = multiple_of(N, N_UNIT)
    tiles_m, tiles_n, steps = gl.cdiv(M, BM), gl.cdiv(N, BN), gl.cdiv(K, BK)
    dtype: gl.constexpr = a.dtype
    x = gl.allocate_shared_memory(dtype, [STAGES, BM, BK] if not A_TRANSPOSED else [STAGES, BK, BM], a.layout)
    y = gl.allocate_shared_memory(dtype, [STAGES, BK, BN] if not B_TRANSPOSED else [STAGES, BN, BK], b.layout)
    handed: gl.constexpr = gl.float32 if EXACT else dtype
    layout: gl.constexpr = _part_layout(BM, BN // SUBTILES, handed)
    parts = gl.allocate_shared_memory(handed, [SUBTILES, BM, BN // SUBTILES], layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
    mbarrier.init(full, count=1)
    mbarrier.init(empty, count=CREWS)
    if CREWS == 1:
        gl.warp_specialize(
            [
                (_multiply, (a, b, x, y, ready, parts, full, empty, tiles_m, tiles_n, steps, M, N, EPILOGUE,
                             args, GROUP, A_TRANSPOSED, B_TRANSPOSED, CREWS, num_warps)),
                (_finish, (parts, full, empty, tiles_m, tiles_n, M, N, EPILOGUE, args, GROUP, 0, CREWS)),
            ],
            [4],
            [REGISTERS],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_multiply, (a, b, x, y, ready, parts, full, empty, tiles_m, tiles_n, steps, M, N, EPILOGUE,
                             args, GROUP, A_TRANSPOSED, B_TRANSPOSED, CREWS, num_warps)),
                (_finish, (parts, full, empty, tiles_m, tiles_n, M, N, EPILOGUE, args, GROUP, 0, CREWS)),
                (_finish, (parts, full, empty, tiles_m, tiles_n, M, N, EPILOGUE, args, GROUP, 1, CREWS)),
            ],
            [4, 4],
            [REGISTERS, REGISTERS],
        )  # fmt: skip
