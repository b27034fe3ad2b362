"""Attention whose keys are rows of a token matrix, chosen by a static table."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops.functional import is_sequence_value_unknown

from focal_twins.models.compiled import NO_BIAS, CompiledSelfAttention, KernelLayer
from focal_twins.models.gathers import RowGather
from focal_twins.models.layers import Dense, Dropout, SlicedDense


class GatheredAttention(nn.Cell, KernelLayer):
    """Attends within windows that a table describes: queries and keys are rows of token matrices.

    A window has N queries and K keys, which may be any tokens and may repeat. Rows are gathered head by head, so that
    they arrive in the order of the batched products and nothing needs transposing; the results are gathered back into
    the order of the map.

    A subclass calls `set_tables`. If `has_bias`, it defines `position_bias()`, [kinds, heads, N, K], which is added to
    the scores of every window according to its kind.

    Args:
        index: distinguishes the dropouts of a model, see Dropout.
    """

    has_bias = False
    learns_bias = True  # where it has one

    def __init__(self, dim, num_heads, qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0, index=0):
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = float(qk_scale or self.head_dim**-0.5)  # Focal's configs carry qk_scale: False
        self.qkv = SlicedDense(dim, 3, qkv_bias)
        self.proj = Dense(dim, dim)
        self.attn_drop = Dropout(attn_drop, index)
        self.proj_drop = Dropout(proj_drop, index + 1)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.folded_bias = None
        self.kernel = None

    def set_tables(self, query_index: np.ndarray, key_index: np.ndarray, length: int, kind: np.ndarray | None = None):
        """Set the tokens that each window has.

        Args:
            query_index: [nW, N] row numbers of the queries; every token below `length` is a query once. Numbers from
                `length` on are padding: their results are dropped.
            key_index: [nW, K] row numbers of the keys.
            kind: [nW] number of the position bias that each window has; None: the first, second, ...
        """
        self.one_kind_each = kind is None
        self.kind = Tensor((np.arange(len(query_index)) if kind is None else kind).astype(np.int32))
        self.query_index, self.key_index = query_index, key_index  # for pictures: the graph uses the tables below
        self.num_windows, self.window_area = query_index.shape
        self.num_keys = key_index.shape[1]
        self.length = length
        heads = np.arange(self.num_heads)
        self.pick_queries = RowGather(query_index[:, None] * self.num_heads + heads[:, None])  # [nW, heads, N]
        self.pick_keys = RowGather(key_index[:, None] * self.num_heads + heads[:, None])  # [nW, heads, K]
        place = np.argsort(query_index.reshape(-1), kind="stable")[:length]  # of every token among the queries
        window, query = np.divmod(place, self.window_area)
        # The result of (window, head, query) is row (window * heads + head) * N + query.
        self.restore = RowGather((window[:, None] * self.num_heads + heads) * self.window_area + query[:, None])
        self.use_kernels(self.library)  # which hold the tables, too

    def make_kernel(self, library):
        return CompiledSelfAttention(
            library,
            self.query_index,
            self.key_index,
            self.kind.asnumpy(),
            self.length,
            self.dim,
            self.num_heads,
            self.scale,
            self.has_bias and self.learns_bias,
        )

    def heads_of(self, rows, pick, count):
        """Pick each window's tokens, split into heads: [B, T, C] to [B * nW, heads, count, head_dim]."""
        rows = rows.reshape((-1, rows.shape[1] * self.num_heads, self.head_dim))  # [B, T * heads, head_dim]
        return pick(rows).reshape((-1, self.num_heads, count, self.head_dim))

    def fold_position_bias(self):
        """Make the position bias of the present weights a constant, so that an exported model need not compute it."""
        if self.has_bias:
            self.folded_bias = Tensor(self.position_bias().asnumpy())

    def add_position_bias(self, scores):
        """Add the position bias to the scores [B * nW, heads, N, K], by a gather and a plain sum.

        On CPU a sum that repeats a side takes twice as long, and holds four times its result while the graph lives.
        """
        bias = self.position_bias() if self.folded_bias is None else self.folded_bias  # [kinds, heads, N, K]
        if is_sequence_value_unknown(scores.shape):
            windows = (-1, self.num_windows, self.num_heads, self.window_area, self.num_keys)
            of_windows = bias if self.one_kind_each else ops.gather(bias, self.kind, 0)  # [nW, heads, N, K]
            return (scores.reshape(windows) + of_windows).reshape((-1, self.num_heads, self.window_area, self.num_keys))
        kind = ops.tile(self.kind, (scores.shape[0] // self.num_windows,))  # [B * nW]
        return scores + ops.gather(bias, kind, 0)

    def key_groups(self) -> list[tuple[str, int]]:
        """Return a name and a number of keys for each kind of key that a window has, in order."""
        return [("tokens of the window", self.num_keys)]

    def attention_weights(self, queries, tokens):
        """Compute the weights of each query of each window on its keys, [B * nW, heads, N, K]; they sum to 1.

        The tables number the rows of queries [B, L or more, C] and of tokens [B, T, C].
        """
        q = (self.qkv(queries.reshape((-1, self.dim)), 0) * self.scale).reshape((-1, *queries.shape[1:]))
        k = self.qkv(tokens.reshape((-1, self.dim)), 1).reshape((-1, *tokens.shape[1:]))
        q = self.heads_of(q, self.pick_queries, self.window_area)
        scores = self.scores(q, self.heads_of(k, self.pick_keys, self.num_keys))  # [B * nW, heads, N, K]
        if self.has_bias:
            scores = self.add_position_bias(scores)
        return ops.softmax(scores, -1)

    def attended(self, tokens):
        """Do the same as `attend`, but for dropout and the last projection, by a kernel.

        One product computes queries, keys and values of all tokens, also queries of the few that are only keys.
        """
        bias = NO_BIAS
        if self.has_bias:
            bias = self.position_bias() if self.folded_bias is None else self.folded_bias
        qkv = self.qkv.product(tokens.reshape((-1, self.dim))).reshape((-1, tokens.shape[1], 3 * self.dim))
        return self.kernel(qkv, self.qkv.bias if self.qkv.has_bias else NO_BIAS, bias)

    def attend(self, queries, tokens, dropout_seed):
        """Attend from queries [B, L or more, C] to tokens [B, T, C], which the tables number: [B, L, C].

        The queries are the first rows of the tokens.
        """
        if self.kernel is not None and queries.dtype == ms.float32 and not self.attn_drop.is_active():
            return self.proj_drop(self.proj(self.attended(tokens)), dropout_seed)
        weights = self.attn_drop(self.attention_weights(queries, tokens), dropout_seed)
        v = self.qkv(tokens.reshape((-1, self.dim)), 2).reshape((-1, *tokens.shape[1:]))
        weights = weights.reshape((-1, self.num_heads, self.window_area, self.num_keys)).astype(v.dtype)
        out = self.mix(weights, self.heads_of(v, self.pick_keys, self.num_keys))  # [B * nW, heads, N, head_dim]
        out = out.reshape((-1, self.num_windows * self.num_heads * self.window_area, self.head_dim))
        out = self.restore(out).reshape((-1, self.length, self.dim))  # [B, L, C]
        return self.proj_drop(self.proj(out), dropout_seed)
