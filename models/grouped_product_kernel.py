"""Products of the rows of each slot and its matrix on Hopper's tensor cores: programs go from tile to tile, which are
fetched and stored by the tensor memory accelerator.

    grouped_product           C[rows of e] = A[rows of e] · B[e]ᵀ, or · B[e]     forward; gradient of rows
    grouped_weight_gradient   C[e] = Y[rows of e]ᵀ · X[rows of e]                0 for a slot without rows

    rows, sorted by slot     tiles of 128 rows, each of one slot     tiles of C: 128 × 256, 132 programs (SMs)
    ┌───────────────────┐                                            in groups of 8 tiles of rows, a column at a time,
    │ slot 0: 300 rows  │    0 128 256┊300                           so that what is fetched is found in L2:
    ├───────────────────┤                                                  ┌──┬──┬──┐
    │ slot 1: none      │    none                                          │ 0│ 8│16│ …
    ├───────────────────┤                                                  │ 1│ 9│17│
    │ slot 2: 150 rows  │    300 428┊450                                   │ …│ …│ …│
    ├───────────────────┤                                                  │ 7│15│23│
    │ no slot's         │    none: neither a product nor written           └──┴──┴──┘
    └───────────────────┘    ┊ a tile that is cut: the rows after it are the next slot's, and it does not store them

Which tiles there are the device alone knows: one small kernel writes their table, once for all products of these rows,
and the host waits for nothing. Sums are in float32. Widths need be multiples of 16 bytes, no multiples of a tile.

A tile of 128 × 256 (256 × 128 for the gradient of a weight, where that divides it better) by 8 warps takes 64 deep
pieces, 48 KiB, of which 4 are on their way: 192 KiB of shared memory, and 32 for the half of C that is being stored;
228 there are. The loop over tiles is one with the loop over depth (`flatten`), so that the next tile's first pieces
come while this one is stored.

TFLOP/s at 98,304 rows of 64 slots, bfloat16, loads as unequal as drawn (one H200, torch 2.11, Triton 3.6):

                                          here      torch's grouped_mm    cuBLAS, were it one matrix
    gate and up    2048 → 2816            718       688                   822
    down           1408 → 2048            709       665                   787
    gradient of down's rows               686       645                   769
    of gate and up's rows                 715       710                   826
    of gate and up's weight               727       722                   714
    of down's weight                      716       624                   760

What lost there: tiles of 256 × 128 for rows (0.88 to 0.92 of this), of 128 × 128, two a multiprocessor (0.67 to 0.72);
3 pieces instead of 4 (0.96 to 1.0); gathering tokens' rows here (0.92 of a product, which saves a pass of 0.2 ms; but
0.69 in the weight's gradient, which then gathers as well); SwiGLU or its gradient at the end of a product (slower by
0.5 and 0.2 ms a layer than in a pass of its own).

These are kernels one by one, with time to cool between. One after the other for long they draw what the GPU may, and
what is left depends on loads: forward and backward of the experts take 0.95 to 1.03 of what `fused` takes where loads
are unequal (64 slots of 1,536 to 12,288 rows, 128 of 1,024 to 8,192), 1.00 to 1.08 where they are equal, 1.02 with 32
slots; a step of moe_5b 214.0 ms instead of 216.2. Hence by name, and not by `auto`.

N rows, E slots, K width of what is multiplied, M of what comes out, X tiles of rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.ragged_tma import create_ragged_descriptor, to_ragged_indices
from triton.tools.tensor_descriptor import TensorDescriptor

ROWS, COLUMNS = 128, 256
"""Of a tile of the outcome."""
DEPTH = 64
"""Of a piece: a line of 128 bytes in bfloat16, as wide as shared memory is swizzled."""
GROUP = 8
"""Tiles of rows that take turns before the next column."""
HOW = {"num_warps": 8, "num_stages": 4}


def tiles_of(offsets_E: Tensor, n_rows: int) -> Tensor:
    """[X, 2], int32: slot and first row of each tile of rows. The first line says how many follow; there is room for
    those of n_rows."""
    n_slots = len(offsets_E)
    tiles_X2 = offsets_E.new_empty(1 + n_rows // ROWS + n_slots, 2)
    grouped_tiles[(n_slots,)](offsets_E, tiles_X2, n_slots, triton.next_power_of_2(n_slots), ROWS)
    return tiles_X2


def grouped_product(rows_NK: Tensor, weights: Tensor, offsets_E: Tensor, tiles_X2: Tensor, transposed: bool) -> Tensor:
    """[N, M]: each slot's rows by its matrix, [E, K, M] or, transposed, [E, M, K]. Rows of no slot are not written."""
    width, made = rows_NK.shape[1], weights.shape[1 if transposed else 2]
    out_NM = rows_NK.new_empty(len(rows_NK), made)
    programs = _programs(rows_NK)
    grouped_rows[(programs,)](
        TensorDescriptor.from_tensor(rows_NK, [ROWS, DEPTH]),
        TensorDescriptor.from_tensor(weights, [1, COLUMNS, DEPTH] if transposed else [1, DEPTH, COLUMNS]),
        create_ragged_descriptor(out_NM, [ROWS, COLUMNS // 2]),
        offsets_E,
        tiles_X2,
        width,
        made,
        transposed,
        programs,
        ROWS,
        COLUMNS,
        DEPTH,
        GROUP,
        **HOW,
    )
    return out_NM


def grouped_weight_gradient(grad_NM: Tensor, rows_NK: Tensor, offsets_E: Tensor) -> Tensor:
    """[E, M, K]: the sum over each slot's rows of gradient times row."""
    n_slots, made, width = len(offsets_E), grad_NM.shape[1], rows_NK.shape[1]
    out_EMK = rows_NK.new_empty(n_slots, made, width)
    programs = _programs(rows_NK)
    tall = _area(made, width, COLUMNS, ROWS) < _area(made, width, ROWS, COLUMNS)
    height, columns = (COLUMNS, ROWS) if tall else (ROWS, COLUMNS)
    grouped_weights[(programs,)](
        create_ragged_descriptor(grad_NM, [DEPTH, height]),
        create_ragged_descriptor(rows_NK, [DEPTH, columns]),
        TensorDescriptor.from_tensor(out_EMK, [1, height, columns // 2]),
        offsets_E,
        made,
        width,
        n_slots,
        programs,
        height,
        columns,
        DEPTH,
        GROUP * ROWS // height,
        **HOW,
    )
    return out_EMK


def _programs(x: Tensor) -> int:
    """One a multiprocessor: so much shared memory has no room for two. A few in Triton's interpreter, one by one."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 3


def _area(height: int, width: int, rows: int, columns: int) -> int:
    """Of the tiles that cover a matrix."""
    return triton.cdiv(height, rows) * rows * triton.cdiv(width, columns) * columns


@triton.jit
def grouped_tiles(offsets_ptr, tiles_ptr, n_slots, slots: tl.constexpr, rows: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton's types are its own
    """A slot: its tiles come after those of the slots before it."""
    slot = tl.program_id(0)
    at = tl.arange(0, slots)
    ends = tl.load(offsets_ptr + at, mask=at < n_slots, other=0)
    begins = tl.load(offsets_ptr + at - 1, mask=(at < n_slots) & (at > 0), other=0)
    n_tiles = tl.where(at < n_slots, (ends - begins + rows - 1) // rows, 0)
    before = tl.sum(tl.where(at < slot, n_tiles, 0))
    mine = tl.sum(tl.where(at == slot, n_tiles, 0))
    begin = tl.sum(tl.where(at == slot, begins, 0))
    i = 0
    while i < mine:
        line = tiles_ptr + 2 * (1 + before + i)
        tl.store(line, slot)
        tl.store(line + 1, begin + i * rows)
        i += 1
    if slot == n_slots - 1:
        tl.store(tiles_ptr, before + mine)


@triton.jit
def grouped_rows(  # type: ignore[no-untyped-def]
    rows_desc,
    weights_desc,
    out_desc,
    offsets_ptr,
    tiles_ptr,
    width: tl.constexpr,
    made: tl.constexpr,
    transposed: tl.constexpr,
    programs: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
    group: tl.constexpr,
):
    """Every programs-th tile of the outcome. What lies past a width is fetched as zeros."""
    n_tiles = tl.load(tiles_ptr)
    across: tl.constexpr = (made + columns - 1) // columns
    for tile in tl.range(tl.program_id(0), n_tiles * across, programs, flatten=True):
        first = tile // (group * across) * group
        high = tl.minimum(n_tiles - first, group)
        within = tile - first * across
        line = tiles_ptr + 2 * (1 + first + within % high)
        column = within // high * columns
        slot = tl.load(line)
        row = tl.load(line + 1)
        end = tl.load(offsets_ptr + slot)
        total = tl.zeros((rows, columns), dtype=tl.float32)
        for k in range(0, width, depth):
            a = rows_desc.load([row, k])
            if transposed:
                b = tl.reshape(weights_desc.load([slot, column, k]), (columns, depth)).T
            else:
                b = tl.reshape(weights_desc.load([slot, k, column]), (depth, columns))
            total = tl.dot(a, b, total)
        left, right = in_halves(total.to(out_desc.dtype))
        # Coordinates by which the accelerator's own bounds end at `end`.
        x, y, z = to_ragged_indices(row, end - row, 0)
        out_desc.store([x, y, z, column], tl.reshape(left, (1, 1, rows, columns // 2)))
        out_desc.store([x, y, z, column + columns // 2], tl.reshape(right, (1, 1, rows, columns // 2)))


@triton.jit
def grouped_weights(  # type: ignore[no-untyped-def]
    grad_desc,
    rows_desc,
    out_desc,
    offsets_ptr,
    made: tl.constexpr,
    width: tl.constexpr,
    n_slots: tl.constexpr,
    programs: tl.constexpr,
    height: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
    group: tl.constexpr,
):
    """Every programs-th tile of the outcome. What lies past a slot's rows, or past a width, is fetched as zeros."""
    down: tl.constexpr = (made + height - 1) // height
    across: tl.constexpr = (width + columns - 1) // columns
    for tile in tl.range(tl.program_id(0), n_slots * down * across, programs, flatten=True):
        slot = tile // (down * across)
        of_slot = tile % (down * across)
        first = of_slot // (group * across) * group
        high = tl.minimum(down - first, group)
        within = of_slot - first * across
        m = (first + within % high) * height
        k = within // high * columns
        begin = tl.load(offsets_ptr + slot - 1, mask=slot > 0, other=0)
        n_rows = tl.load(offsets_ptr + slot) - begin
        total = tl.zeros((height, columns), dtype=tl.float32)
        for row in range(0, n_rows, depth):
            x, y, z = to_ragged_indices(begin, n_rows, row)
            # One after the other, so that they are waited for as one.
            a = grad_desc.load([x, y, z, m])
            b = rows_desc.load([x, y, z, k])
            total = tl.dot(tl.reshape(a, (depth, height)).T, tl.reshape(b, (depth, columns)), total)
        left, right = in_halves(total.to(out_desc.dtype))
        out_desc.store([slot, m, k], tl.reshape(left, (1, height, columns // 2)))
        out_desc.store([slot, m, k + columns // 2], tl.reshape(right, (1, height, columns // 2)))


@triton.jit
def in_halves(x):  # type: ignore[no-untyped-def]
    """The left and the right columns: half a tile at a time goes through shared memory."""
    return tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))
