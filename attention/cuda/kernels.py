"""Triton kernels of the `cuda` backend. This is the only module that imports triton when it is imported.

Every kernel serves one case, a block of rows that each see one interval [FIRST, LAST) of a list of keys, with an online
softmax (Milakov and Gimelshein, 2018) and a backward pass that recomputes the weights (Dao et al., FlashAttention,
2022). A list of tokens is either given by `INDEX` (B, tokens), the global tokens of each example, or, where INDEX is
None, the strips of a dilation: residue, residue + dilation, … A token has a *place* in its list or strip, in which
the intervals count, and a *position* in the sequence, at which its projections lie and which the dropout hashes.

The tiles of a block's range are split in two: the *interior*, which every row of the block sees whole and which is
computed without any mask, and the *edges*. Rows that see nothing (padding, global tokens among local rows) take
part in the interior for nothing: their results are replaced at the end, or weigh exp(score - inf) = 0.

B, H, N, D are the sizes of the batch, heads, sequence and head; G global tokens; S splits, whose partial results
are summed in order by the launcher. There are no atomics: the same bits every run. Offsets of examples, heads and rows
are 64-bit, those within a tile 32-bit. Arguments that are None compile their feature away.
"""

# mypy: disallow-untyped-defs=False
# ruff: noqa: E741  O is the output's name in the literature

from __future__ import annotations

import triton
import triton.language as tl

from attention import dropout

INTERPRETED = triton.knobs.runtime.interpret  # by TRITON_INTERPRET=1 when this was imported

if INTERPRETED:
    from attention.cuda import interpreter

    interpreter.repair()

# Scores stay in natural units until the peak or the logsumexp is taken off: folding log2(e) into the scale would save a
# multiplication, but rounds a row's logsumexp twice more, which float32 gradients show.
LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.0e38)  # a peak below any score, yet finite: -inf - LOWEST is -inf and never NaN
BEYOND = tl.constexpr(1 << 30)  # of any list
FIRST_FACTOR = tl.constexpr(0x21F0AAAD)  # those of `dropout`
SECOND_FACTOR = tl.constexpr(0xD35A2D97)
GOLDEN = tl.constexpr(0x9E3779B9)
LOCAL_STREAM = tl.constexpr(dropout.LOCAL_STREAM)
GLOBAL_STREAM = tl.constexpr(dropout.GLOBAL_STREAM)

# Numbers that take any value at run time; without this, 1 and multiples of 16 would each compile kernels of their own.
# Strides stay specialised: loads of 16 bytes need to know their divisibility.
_COUNTS = [
    "tokens",
    "keys",
    "rows",
    "columns",
    "length",
    "heads",
    "first_head",
    "group",
    "dilation",
    "interval_batch",
    "split",
    "border",
]
_TABLES = [
    "FIRST",
    "LAST",
    "HIDDEN",
    "INDEX",
    "KEY_INDEX",
    "COLUMN_INDEX",
    "COLUMN_FIRST",
    "COLUMN_LAST",
    "SEED",
]


# Lists of tokens and their tiles.


@triton.jit
def _program(tokens, group, first_head, heads, dilation, BLOCK: tl.constexpr):
    """Which block of tokens, example and head this program has, and the pair of the two among all pairs (int64)."""
    blocks = dilation * tl.cdiv(tl.cdiv(tokens, dilation), BLOCK)
    pair = tl.program_id(0) // blocks
    example = pair // group
    head = first_head + pair % group
    return tl.program_id(0) % blocks, example, head, example.to(tl.int64) * heads + head


@triton.jit
def _block(INDEX, example, block, tokens, dilation, BLOCK: tl.constexpr):
    """A block of a list: residue of its strip, and place, position and whether it is a token at all, each (BLOCK,)."""
    per_strip = tl.cdiv(tl.cdiv(tokens, dilation), BLOCK)
    residue = block // per_strip  # 0 for lists, whose dilation is 1
    place = block % per_strip * BLOCK + tl.arange(0, BLOCK)
    position = residue + place * dilation
    inside = position < tokens
    if INDEX is not None:
        position = tl.load(INDEX + example.to(tl.int64) * tokens + place, mask=inside, other=0)
    return residue, place, position, inside


@triton.jit
def _intervals(FIRST, LAST, offset, place, inside, split, SPLIT: tl.constexpr):
    """The intervals at `place` of a table, clipped to the keys of this split; and which are not empty."""
    first = tl.load(FIRST + offset + place, mask=inside, other=0)
    last = tl.load(LAST + offset + place, mask=inside, other=0)
    if SPLIT:
        start = tl.program_id(1) * split
        first = tl.maximum(first, start)
        last = tl.minimum(last, start + split)
    return first, last, last > first


@triton.jit
def _range(first, last, seen):
    """The keys that any row of the block sees, [low, high)."""
    high = tl.max(tl.where(seen, last, 0), 0)
    low = tl.min(tl.where(seen, first, BEYOND), 0)
    return tl.minimum(low, high), high


@triton.jit
def _tiles(first, last, seen, BLOCK: tl.constexpr):
    """Cut the block's range into tiles.

    Returns low, high (see `_range`), the number of tiles with a mask on the left, where the interior starts, the number
    of its tiles, where the right edge starts, and the number of tiles with a mask on both sides together.
    """
    low, high = _range(first, last, seen)
    inner_low = tl.max(tl.where(seen, first, 0), 0)
    inner_high = tl.minimum(tl.min(tl.where(seen, last, BEYOND), 0), high)
    left = tl.minimum(tl.cdiv(tl.maximum(inner_low - low, 0), BLOCK), tl.cdiv(high - low, BLOCK))
    interior = low + left * BLOCK
    inner = tl.maximum(inner_high - interior, 0) // BLOCK
    right = interior + inner * BLOCK
    edges = left + tl.cdiv(tl.maximum(high - right, 0), BLOCK)
    return low, high, left, interior, inner, right, edges


@triton.jit
def _edge(i, low, left, right, BLOCK: tl.constexpr):
    """Where the i-th tile of the edges starts."""
    return tl.where(i < left, low + i * BLOCK, right + (i - left) * BLOCK)


@triton.jit
def _tile(INDEX, start, high, residue, dilation, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """The tokens of a list or strip from place `start` on, below `high`.

    Returns place, position and, if MASKED, which are inside, each (BLOCK,); and, counted in rows of a tensor, where the
    tile lies (int64) and where its tokens lie from there (BLOCK,).
    """
    step = tl.arange(0, BLOCK)
    place = start + step
    inside = place < high
    if INDEX is None:
        position = residue + place * dilation
        return place, position, inside, (residue + start * dilation).to(tl.int64), step * dilation
    else:
        if MASKED:
            position = tl.load(INDEX + place, mask=inside, other=0)
        else:
            position = tl.load(INDEX + place)
        return place, position, inside, (start * 0).to(tl.int64), position.to(tl.int64)


@triton.jit
def _hidden(HIDDEN, position, inside, MASKED: tl.constexpr):
    """Which of the tokens are hidden."""
    if MASKED:
        return tl.load(HIDDEN + position, mask=inside, other=1) != 0
    else:
        return tl.load(HIDDEN + position) != 0


@triton.jit
def _load(pointer, offset, inside, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Rows at `offset` (M,): (M, BLOCK_D), 0 beyond the head's size and, if MASKED, where not inside."""
    column = tl.arange(0, BLOCK_D)
    address = pointer + offset[:, None] + column[None, :]
    if MASKED and HEAD_DIM < BLOCK_D:
        return tl.load(address, mask=inside[:, None] & (column < HEAD_DIM)[None, :], other=0.0)
    elif MASKED:
        return tl.load(address, mask=inside[:, None], other=0.0)
    elif HEAD_DIM < BLOCK_D:
        return tl.load(address, mask=(column < HEAD_DIM)[None, :], other=0.0)
    else:
        return tl.load(address)


@triton.jit
def _store(pointer, row, x, inside, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write x (M, BLOCK_D) to the rows (M,), int64, of a contiguous tensor (…, HEAD_DIM)."""
    column = tl.arange(0, BLOCK_D)
    address = pointer + row[:, None] * HEAD_DIM + column[None, :]
    mask = inside[:, None]
    if HEAD_DIM < BLOCK_D:
        mask = mask & (column < HEAD_DIM)[None, :]
    tl.store(address, x.to(pointer.dtype.element_ty), mask=mask)


# What a tile's entries are.


@triton.jit
def _scores(a, b, place, first, last, scale, MASKED: tl.constexpr):
    """Scaled products a @ b.T (M, K); -inf outside the intervals of a's rows if MASKED."""
    score = tl.dot(a, tl.trans(b), input_precision="ieee") * scale
    if MASKED:
        seen = (place[None, :] >= first[:, None]) & (place[None, :] < last[:, None])
        score = tl.where(seen, score, float("-inf"))
    return score


@triton.jit
def _mix(x):
    """`dropout._mix`."""
    x = (x ^ (x >> 16)) * FIRST_FACTOR
    x = (x ^ (x >> 15)) * SECOND_FACTOR
    return x ^ (x >> 15)


@triton.jit
def _pair_state(SEED, example, head, STREAM: tl.constexpr):
    """The part of `dropout.row_state` that a pair's rows share: two words."""
    seed = tl.load(SEED + example)
    one = seed.to(tl.uint32)
    other = (seed >> 32).to(tl.uint32)
    stream = (head * 0).to(tl.uint32) + GOLDEN * STREAM
    head_word = head.to(tl.uint32) * GOLDEN
    low = _mix(_mix(_mix(one + stream) ^ other) ^ head_word)
    high = _mix(_mix(_mix((other ^ FIRST_FACTOR) + stream) ^ one) ^ head_word)
    return low, high


@triton.jit
def _row_state(low_pair, high_pair, position):
    """The two words of rows at `position`: `dropout.row_state`."""
    position = position.to(tl.uint32)
    return _mix(low_pair ^ position), _mix(high_pair ^ position)


@triton.jit
def _kept(low, high, key, border):
    """Which entries dropout keeps; row words and key positions (uint32) broadcast. See `dropout.entry_hash`."""
    x = (low ^ key) * FIRST_FACTOR
    x = x ^ high
    x = x ^ (x >> 15)
    x = x * SECOND_FACTOR
    return x >= border.to(tl.uint32) + 0x80000000


# Forward.


@triton.jit
def _attend_tile(
    peak, total, acc, q, K, V, k_row, v_row, KEY_INDEX, HIDDEN, start, high, residue, dilation, first, last,
    low_word, high_word, border, scale,
    DROP: tl.constexpr, MASKED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Let the rows attend to the tile of keys at `start`: the online softmax's new state."""
    place, key, inside, at, step = _tile(KEY_INDEX, start, high, residue, dilation, BLOCK_N, MASKED)
    k = _load(K + at * k_row, step * k_row, inside, HEAD_DIM, BLOCK_D, MASKED)
    score = _scores(q, k, place, first, last, scale, MASKED)
    if HIDDEN is not None:
        score = tl.where(_hidden(HIDDEN, key, inside, MASKED)[None, :], float("-inf"), score)
    new_peak = tl.maximum(peak, tl.max(score, 1))
    weight = tl.math.exp2((score - new_peak[:, None]) * LOG2E)
    shrink = tl.math.exp2((peak - new_peak) * LOG2E)
    total = total * shrink + tl.sum(weight, 1)
    if DROP:
        kept = _kept(low_word[:, None], high_word[:, None], key.to(tl.uint32)[None, :], border)
        weight = tl.where(kept, weight, 0.0)
    v = _load(V + at * v_row, step * v_row, inside, HEAD_DIM, BLOCK_D, MASKED)
    acc = tl.dot(weight.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return new_peak, total, acc


@triton.jit(do_not_specialize=_COUNTS, do_not_specialize_on_alignment=_TABLES)
def attend(
    Q, K, V, O, LSE, FIRST, LAST, HIDDEN, INDEX, COLUMN_INDEX, COLUMN_FIRST, COLUMN_LAST, SEED,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    tokens, columns, length, heads, first_head, group, dilation, interval_batch, split, border,
    scale, keep_scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Output and logsumexp of a block of rows.

    Without INDEX, of local rows: intervals by position, over the keys of the row's strip, and then over the global keys
    COLUMN_INDEX (B, columns) if there are any, in the same softmax; written to O (B, H, N, D) and LSE (B, H, N).
    With INDEX (B, tokens), of the global rows: intervals by place, over all keys, of which program_id(1) takes `split`;
    written to O (S, B, H, G, D) and LSE (S, B, H, G).
    HIDDEN (B, N): keys that nobody sees in their strip. keep_scale is 1 / (1 - p).
    """
    block, example, head, pair = _program(tokens, group, first_head, heads, dilation, BLOCK_M)
    residue, place, position, inside = _block(INDEX, example, block, tokens, dilation, BLOCK_M)
    slot = position if INDEX is None else place
    first, last, seen = _intervals(
        FIRST, LAST, example.to(tl.int64) * interval_batch, slot, inside, split, INDEX is not None
    )
    Q += example.to(tl.int64) * q_batch + head.to(tl.int64) * q_head
    K += example.to(tl.int64) * k_batch + head.to(tl.int64) * k_head
    V += example.to(tl.int64) * v_batch + head.to(tl.int64) * v_head
    if HIDDEN is not None:
        HIDDEN += example.to(tl.int64) * length
    low_word, high_word = 0, 0
    if SEED is not None:
        low_pair, high_pair = _pair_state(
            SEED, example, head, LOCAL_STREAM if INDEX is None else GLOBAL_STREAM
        )
        low_word, high_word = _row_state(low_pair, high_pair, position)
    q = _load(Q, position.to(tl.int64) * q_row, inside, HEAD_DIM, BLOCK_D, True)

    peak = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    low, high, left, interior, inner, right, edges = _tiles(first, last, seen, BLOCK_N)
    for i in range(edges):
        peak, total, acc = _attend_tile(
            peak, total, acc, q, K, V, k_row, v_row, None, HIDDEN, _edge(i, low, left, right, BLOCK_N), high,
            residue, dilation, first, last, low_word, high_word, border, scale,
            SEED is not None, True, HEAD_DIM, BLOCK_D, BLOCK_N,
        )  # fmt: skip
    for i in range(inner):
        peak, total, acc = _attend_tile(
            peak, total, acc, q, K, V, k_row, v_row, None, HIDDEN, interior + i * BLOCK_N, high,
            residue, dilation, first, last, low_word, high_word, border, scale,
            SEED is not None, False, HEAD_DIM, BLOCK_D, BLOCK_N,
        )  # fmt: skip
    if COLUMN_INDEX is not None:
        COLUMN_INDEX += example.to(tl.int64) * columns
        first, last, any_column = _intervals(
            COLUMN_FIRST, COLUMN_LAST, example.to(tl.int64) * length, position, inside, split, False
        )
        low, high = _range(first, last, any_column)
        for i in range(tl.cdiv(high - low, BLOCK_N)):
            peak, total, acc = _attend_tile(
                peak, total, acc, q, K, V, k_row, v_row, COLUMN_INDEX, None, low + i * BLOCK_N, high,
                residue, dilation, first, last, low_word, high_word, border, scale,
                SEED is not None, True, HEAD_DIM, BLOCK_D, BLOCK_N,
            )  # fmt: skip

    row = pair * length + position
    if INDEX is not None:
        pairs = tl.num_programs(0) // tl.cdiv(tokens, BLOCK_M)
        row = (tl.program_id(1).to(tl.int64) * pairs + pair) * tokens + place
    normaliser = tl.where(seen, total, 1.0)
    output = tl.where(seen[:, None], acc * (keep_scale / normaliser)[:, None], 0.0)
    _store(O, row, output, inside, HEAD_DIM, BLOCK_D)
    tl.store(LSE + row, tl.where(seen, peak + tl.log(normaliser), float("inf")), mask=inside)


# Backward. With weights P, what dropout keeps of them M (0 or 1 / (1 - p)) and the output's gradient dO:
# dV = (P * M)^T dO and dS = P * (dO V^T * M - delta), where delta is the sum over a row of dO * O; then
# dQ = scale dS K and dK = scale dS^T Q.


@triton.jit(do_not_specialize=_COUNTS)
def sum_products(
    O, DO, DELTA, do_batch, do_head, do_row, length, heads,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """DELTA (B, H, N), the sums over D of O (contiguous) times DO."""
    block, example, head, pair = _program(length, heads, 0, heads, 1, BLOCK_M)
    position = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = position < length
    row = pair * length + position
    o = _load(O, row * HEAD_DIM, inside, HEAD_DIM, BLOCK_D, True).to(tl.float32)
    DO += example.to(tl.int64) * do_batch + head.to(tl.int64) * do_head
    do = _load(DO, position.to(tl.int64) * do_row, inside, HEAD_DIM, BLOCK_D, True).to(tl.float32)
    tl.store(DELTA + row, tl.sum(o * do, 1), mask=inside)


@triton.jit
def _query_tile(
    dq, q, do, lse, delta, K, V, k_row, v_row, KEY_INDEX, HIDDEN, start, high, residue, dilation, first, last,
    low_word, high_word, border, scale, keep_scale,
    DROP: tl.constexpr, MASKED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add what the tile of keys at `start` gives to the queries' gradients."""
    place, key, inside, at, step = _tile(KEY_INDEX, start, high, residue, dilation, BLOCK_N, MASKED)
    k = _load(K + at * k_row, step * k_row, inside, HEAD_DIM, BLOCK_D, MASKED)
    score = _scores(q, k, place, first, last, scale, MASKED)
    if HIDDEN is not None:
        score = tl.where(_hidden(HIDDEN, key, inside, MASKED)[None, :], float("-inf"), score)
    weight = tl.math.exp2((score - lse[:, None]) * LOG2E)
    v = _load(V + at * v_row, step * v_row, inside, HEAD_DIM, BLOCK_D, MASKED)
    grad_weight = tl.dot(do, tl.trans(v), input_precision="ieee")
    if DROP:
        kept = _kept(low_word[:, None], high_word[:, None], key.to(tl.uint32)[None, :], border)
        grad_weight = tl.where(kept, grad_weight * keep_scale, 0.0)
    grad_score = weight * (grad_weight - delta[:, None])
    return tl.dot(grad_score.to(k.dtype), k, dq, input_precision="ieee")


@triton.jit(do_not_specialize=_COUNTS, do_not_specialize_on_alignment=_TABLES)
def differentiate_queries(
    Q, K, V, DO, LSE, DELTA, DQ, FIRST, LAST, HIDDEN, INDEX, COLUMN_INDEX, COLUMN_FIRST, COLUMN_LAST, SEED,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, do_batch, do_head, do_row,
    tokens, columns, length, heads, first_head, group, dilation, interval_batch, split, border,
    scale, keep_scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The queries' gradients DQ of a block of rows, over the tiles of `attend` and in the shapes of its O."""
    block, example, head, pair = _program(tokens, group, first_head, heads, dilation, BLOCK_M)
    residue, place, position, inside = _block(INDEX, example, block, tokens, dilation, BLOCK_M)
    slot = position if INDEX is None else place
    first, last, seen = _intervals(
        FIRST, LAST, example.to(tl.int64) * interval_batch, slot, inside, split, INDEX is not None
    )
    Q += example.to(tl.int64) * q_batch + head.to(tl.int64) * q_head
    K += example.to(tl.int64) * k_batch + head.to(tl.int64) * k_head
    V += example.to(tl.int64) * v_batch + head.to(tl.int64) * v_head
    if HIDDEN is not None:
        HIDDEN += example.to(tl.int64) * length
    low_word, high_word = 0, 0
    if SEED is not None:
        low_pair, high_pair = _pair_state(
            SEED, example, head, LOCAL_STREAM if INDEX is None else GLOBAL_STREAM
        )
        low_word, high_word = _row_state(low_pair, high_pair, position)
    q = _load(Q, position.to(tl.int64) * q_row, inside, HEAD_DIM, BLOCK_D, True)
    DO += example.to(tl.int64) * do_batch + head.to(tl.int64) * do_head
    do = _load(DO, position.to(tl.int64) * do_row, inside, HEAD_DIM, BLOCK_D, True)
    delta = tl.load(DELTA + pair * length + position, mask=inside, other=0.0)
    # Rows that see nothing, at all or in this split, get weights exp(score - inf) = 0.
    lse = tl.load(LSE + pair * length + position, mask=inside, other=float("inf"))
    lse = tl.where(seen, lse, float("inf"))

    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    low, high, left, interior, inner, right, edges = _tiles(first, last, seen, BLOCK_N)
    for i in range(edges):
        dq = _query_tile(
            dq, q, do, lse, delta, K, V, k_row, v_row, None, HIDDEN, _edge(i, low, left, right, BLOCK_N), high,
            residue, dilation, first, last, low_word, high_word, border, scale, keep_scale,
            SEED is not None, True, HEAD_DIM, BLOCK_D, BLOCK_N,
        )  # fmt: skip
    for i in range(inner):
        dq = _query_tile(
            dq, q, do, lse, delta, K, V, k_row, v_row, None, HIDDEN, interior + i * BLOCK_N, high,
            residue, dilation, first, last, low_word, high_word, border, scale, keep_scale,
            SEED is not None, False, HEAD_DIM, BLOCK_D, BLOCK_N,
        )  # fmt: skip
    if COLUMN_INDEX is not None:
        COLUMN_INDEX += example.to(tl.int64) * columns
        first, last, any_column = _intervals(
            COLUMN_FIRST, COLUMN_LAST, example.to(tl.int64) * length, position, inside, split, False
        )
        low, high = _range(first, last, any_column)
        for i in range(tl.cdiv(high - low, BLOCK_N)):
            dq = _query_tile(
                dq, q, do, lse, delta, K, V, k_row, v_row, COLUMN_INDEX, None, low + i * BLOCK_N, high,
                residue, dilation, first, last, low_word, high_word, border, scale, keep_scale,
                SEED is not None, True, HEAD_DIM, BLOCK_D, BLOCK_N,
            )  # fmt: skip

    row = pair * length + position
    if INDEX is not None:
        pairs = tl.num_programs(0) // tl.cdiv(tokens, BLOCK_M)
        row = (tl.program_id(1).to(tl.int64) * pairs + pair) * tokens + place
    _store(DQ, row, dq * scale, inside, HEAD_DIM, BLOCK_D)


@triton.jit
def _key_tile(
    dk, dv, k, v, Q, DO, q_row, do_row, LSE, DELTA, INDEX, start, high, residue, dilation, first, last,
    low_pair, high_pair, key, border, scale, keep_scale,
    DROP: tl.constexpr, MASKED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Add what the tile of rows at `start` gives to the keys' and values' gradients. Weights are (keys, rows)."""
    place, row, inside, at, step = _tile(INDEX, start, high, residue, dilation, BLOCK_M, MASKED)
    if MASKED:
        lse = tl.load(LSE + row, mask=inside, other=float("inf"))
        delta = tl.load(DELTA + row, mask=inside, other=0.0)
    else:
        lse = tl.load(LSE + row)
        delta = tl.load(DELTA + row)
    q = _load(Q + at * q_row, step * q_row, inside, HEAD_DIM, BLOCK_D, MASKED)
    score = _scores(k, q, place, first, last, scale, MASKED)
    weight = tl.math.exp2((score - lse[None, :]) * LOG2E)
    do = _load(DO + at * do_row, step * do_row, inside, HEAD_DIM, BLOCK_D, MASKED)
    grad_weight = tl.dot(v, tl.trans(do), input_precision="ieee")
    kept_weight = weight
    if DROP:
        low_word, high_word = _row_state(low_pair, high_pair, row)
        kept = _kept(low_word[None, :], high_word[None, :], key.to(tl.uint32)[:, None], border)
        grad_weight = tl.where(kept, grad_weight * keep_scale, 0.0)
        kept_weight = tl.where(kept, weight, 0.0)
    dv = tl.dot(kept_weight.to(do.dtype), do, dv, input_precision="ieee")
    grad_score = weight * (grad_weight - delta[None, :])
    dk = tl.dot(grad_score.to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit(do_not_specialize=_COUNTS, do_not_specialize_on_alignment=_TABLES)
def differentiate_keys(
    Q, K, V, DO, LSE, DELTA, DK, DV, FIRST, LAST, HIDDEN, INDEX, KEY_INDEX, SEED,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, do_batch, do_head, do_row,
    rows, keys, length, heads, first_head, group, dilation, interval_batch, split, border,
    scale, keep_scale,
    ACCUMULATE: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradients DK and DV of a block of keys. [FIRST, LAST) are the rows that see each key; those among them that
    see nothing have LSE +inf.

    Without INDEX and KEY_INDEX: keys and local rows of one strip. With KEY_INDEX (B, keys): the global keys, from all
    local rows, of which program_id(1) takes `split`; written to DK and DV (S, B, H, G, D). With INDEX (B, rows): all
    keys, from the global rows. DK and DV are else (B, H, N, D); they are added to if ACCUMULATE. HIDDEN keys get 0.
    """
    block, example, head, pair = _program(keys, group, first_head, heads, dilation, BLOCK_N)
    residue, place, position, inside = _block(KEY_INDEX, example, block, keys, dilation, BLOCK_N)
    slot = position if KEY_INDEX is None else place
    first, last, seen = _intervals(
        FIRST, LAST, example.to(tl.int64) * interval_batch, slot, inside, split, KEY_INDEX is not None
    )
    Q += example.to(tl.int64) * q_batch + head.to(tl.int64) * q_head
    K += example.to(tl.int64) * k_batch + head.to(tl.int64) * k_head
    V += example.to(tl.int64) * v_batch + head.to(tl.int64) * v_head
    DO += example.to(tl.int64) * do_batch + head.to(tl.int64) * do_head
    LSE += pair * length
    DELTA += pair * length
    if INDEX is not None:
        INDEX += example.to(tl.int64) * rows
    low_pair, high_pair = 0, 0
    if SEED is not None:
        low_pair, high_pair = _pair_state(
            SEED, example, head, LOCAL_STREAM if INDEX is None else GLOBAL_STREAM
        )
    k = _load(K, position.to(tl.int64) * k_row, inside, HEAD_DIM, BLOCK_D, True)
    v = _load(V, position.to(tl.int64) * v_row, inside, HEAD_DIM, BLOCK_D, True)

    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    low, high, left, interior, inner, right, edges = _tiles(first, last, seen, BLOCK_M)
    for i in range(edges):
        dk, dv = _key_tile(
            dk, dv, k, v, Q, DO, q_row, do_row, LSE, DELTA, INDEX, _edge(i, low, left, right, BLOCK_M), high,
            residue, dilation, first, last, low_pair, high_pair, position, border, scale, keep_scale,
            SEED is not None, True, HEAD_DIM, BLOCK_D, BLOCK_M,
        )  # fmt: skip
    for i in range(inner):
        dk, dv = _key_tile(
            dk, dv, k, v, Q, DO, q_row, do_row, LSE, DELTA, INDEX, interior + i * BLOCK_M, high,
            residue, dilation, first, last, low_pair, high_pair, position, border, scale, keep_scale,
            SEED is not None, False, HEAD_DIM, BLOCK_D, BLOCK_M,
        )  # fmt: skip

    if HIDDEN is not None:
        seen = seen & ~_hidden(HIDDEN + example.to(tl.int64) * length, position, inside, True)
    dk = tl.where(seen[:, None], dk * scale, 0.0)
    dv = tl.where(seen[:, None], dv * keep_scale, 0.0)
    to = pair * length + position
    if KEY_INDEX is not None:
        pairs = tl.num_programs(0) // tl.cdiv(keys, BLOCK_N)
        to = (tl.program_id(1).to(tl.int64) * pairs + pair) * keys + place
    if ACCUMULATE:
        dk += _load(DK, to * HEAD_DIM, inside, HEAD_DIM, BLOCK_D, True).to(tl.float32)
        dv += _load(DV, to * HEAD_DIM, inside, HEAD_DIM, BLOCK_D, True).to(tl.float32)
    _store(DK, to, dk, inside, HEAD_DIM, BLOCK_D)
    _store(DV, to, dv, inside, HEAD_DIM, BLOCK_D)
