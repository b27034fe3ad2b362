// Attention of windows whose queries and keys are rows of token matrices, softmax(scale q k^T + bias) v, and its gradient.
//
// By operators each window's queries, keys and values are copied into place, and its scores are written and read five
// times: product, bias, sum, softmax, product. Here a window of one head at a time is taken from the matrices, where the
// biases of the projections are added on the way, and computed in the second cache; only the result is written. The
// gradient computes the weights again from q and k.
#include <limits>

#include "small_products.h"
#include "threads.h"

namespace {
using namespace focal_twins;

constexpr int64_t kBiasGradientFloats = 1 << 23;  // 32 MB for the parts of the bias' gradient, at most, or one part

inline int64_t whole_vectors(int64_t count) { return (count + kWidth - 1) / kWidth * kWidth; }

// What both directions get. Rows of queries [B, Lq, C or 3 C] begin with q, rows of keys [B, T, 2 C or 3 C] end with k
// and v, so that both can be one matrix; and so do the two rows that are added to them (or one number each: nothing).
// Further: bias [kinds, heads or 1, N, K] (or one number: none), the kind of each window [nW], rows of its queries
// [nW, N] and of its keys [nW, K], scale [heads]. Argument 9, the result or its gradient, is [B, L, C]; rows of queries
// from L on are dropped.
struct Windows {
  const float *q, *k, *v, *add_q, *add_k, *add_v, *bias, *scale;
  const int32_t *kind, *queries, *keys;
  int64_t length, channels, batch, query_rows, query_width, key_rows, key_width, windows, count, key_count, heads, dim;
  int64_t padded_keys, padded_dim, bias_heads;

  explicit Windows(const Arguments& a)
      : bias(a.ranks[4] == 4 ? a.floats(4) : nullptr), scale(a.floats(8)), kind(a.integers(5)), queries(a.integers(6)),
        keys(a.integers(7)), length(a.size(9, 1)), channels(a.size(9, 2)), batch(a.size(0, 0)), query_rows(a.size(0, 1)),
        query_width(a.size(0, 2)), key_rows(a.size(1, 1)), key_width(a.size(1, 2)), windows(a.size(6, 0)),
        count(a.size(6, 1)), key_count(a.size(7, 1)), heads(a.size(8, 0)), dim(channels / heads),
        padded_keys(whole_vectors(key_count)), padded_dim(whole_vectors(dim)), bias_heads(bias ? a.size(4, 1) : 1) {
    const bool adds = a.size(2, 0) > 1;
    q = a.floats(0);
    k = a.floats(1) + key_width - 2 * channels;
    v = k + channels;
    add_q = adds ? a.floats(2) : nullptr;
    add_k = adds ? a.floats(3) + a.size(3, 0) - 2 * channels : nullptr;
    add_v = adds ? add_k + channels : nullptr;
  }

  int64_t bias_at(int64_t window, int64_t head) const {
    return (kind[window] * bias_heads + (bias_heads > 1 ? head : 0)) * count * key_count;
  }
};

// One head of the rows of a matrix, and what is added to each of them, if anything.
struct Rows {
  const float* data;
  int64_t width, end;  // of the whole matrix
  const float* add;

  FOCAL_TWINS_INLINE Vec part(int64_t row, int64_t at, int64_t n) const {
    const Vec value = load(data + row * width + at, n);
    return add ? value + load(add + at, n) : value;
  }
};

Rows rows_of_q(const Windows& w, int64_t image, int64_t head) {
  return {w.q + image * w.query_rows * w.query_width + head * w.dim, w.query_width, w.query_rows,
          w.add_q ? w.add_q + head * w.dim : nullptr};
}

Rows rows_of_keys(const Windows& w, const float* data, const float* add, int64_t image, int64_t head) {
  return {data + image * w.key_rows * w.key_width + head * w.dim, w.key_width, w.key_rows,
          add ? add + head * w.dim : nullptr};
}

// Copies rows, times a factor, to [count, padded_dim]; rows from their end on are zero, and so is padding.
void gather(const Windows& w, const Rows& rows, const int32_t* index, int64_t count, float factor, float* out) {
  for (int64_t i = 0; i < count; ++i, out += w.padded_dim) {
    if (index[i] >= rows.end) {
      std::fill(out, out + w.padded_dim, 0.0f);
      continue;
    }
    each_vector(w.dim, [=](int64_t j, auto n) { store(out + j, rows.part(index[i], j, n) * factor); });
  }
}

// Copies rows to the columns of [dim, padded_keys]; columns of padding are zero.
void gather_columns(const Windows& w, const Rows& rows, const int32_t* index, float* out) {
  for (int64_t i = 0; i < w.key_count; i += kWidth) {
    const int64_t present = std::min<int64_t>(w.key_count - i, kWidth);
    for (int64_t j = 0; j < w.dim; j += kWidth) {
      const int64_t part = std::min<int64_t>(w.dim - j, kWidth);
      Vec square[kWidth];
      for (int n = 0; n < kWidth; ++n) {
        const int32_t row = index[i + std::min<int64_t>(n, present - 1)];
        square[n] = n >= present ? Vec{} : part == kWidth ? rows.part(row, j, kWidth) : rows.part(row, j, part);
      }
      transpose(square);
      for (int n = 0; n < part; ++n) store(out + (j + n) * w.padded_keys + i, square[n]);
    }
  }
}

// Turns a row of scores [padded_keys] into weights that sum to the result, after adding the bias [key_count] if any.
float softmax(const Windows& w, float* scores, const float* bias) {
  const float none = -std::numeric_limits<float>::infinity();  // of keys that only fill the last vector
  Vec highest = Vec{} + none, total{};
  each_vector(w.key_count, [&](int64_t i, auto n) {
    Vec value = load(scores + i, n, none);
    if (bias) value += load(bias + i, n);
    store(scores + i, value);
    highest = value > highest ? value : highest;
  });
  const float top = largest(highest);
  for (int64_t i = 0; i < w.padded_keys; i += kWidth) {
    const Vec value = exponential(load(scores + i) - top);
    store(scores + i, value);
    total += value;
  }
  return sum(total);
}

// ..., -> result [B, L, C]
void forward(const Arguments& a) {
  const Windows w(a);
  float* out = a.floats(9);
  const int64_t q_size = w.count * w.padded_dim, columns = w.dim * w.padded_keys;
  const int64_t scores_size = w.count * w.padded_keys, v_size = w.key_count * w.padded_dim;
  parallel(w.batch * w.windows * w.heads, [=](int64_t task) {
    const int64_t head = task % w.heads, window = task / w.heads % w.windows, image = task / w.heads / w.windows;
    const int32_t *queries = w.queries + window * w.count, *keys = w.keys + window * w.key_count;
    float* q = scratch(2 * q_size + columns + scores_size + v_size);
    float *result = q + q_size, *k = result + q_size, *scores = k + columns, *v = scores + scores_size;
    gather(w, rows_of_q(w, image, head), queries, w.count, w.scale[head], q);
    gather_columns(w, rows_of_keys(w, w.k, w.add_k, image, head), keys, k);
    multiply({q, w.padded_dim, 1}, k, scores, w.count, w.dim, w.padded_keys);
    gather(w, rows_of_keys(w, w.v, w.add_v, image, head), keys, w.key_count, 1.0f, v);
    const float* bias = w.bias ? w.bias + w.bias_at(window, head) : nullptr;
    float* const factors = q;  // the queries have been used
    for (int64_t i = 0; i < w.count; ++i)
      factors[i] = 1.0f / softmax(w, scores + i * w.padded_keys, bias ? bias + i * w.key_count : nullptr);
    multiply({scores, w.padded_keys, 1}, v, result, w.count, w.key_count, w.padded_dim);
    for (int64_t i = 0; i < w.count; ++i) {
      if (queries[i] >= w.length) continue;
      float* to = out + (image * w.length + queries[i]) * w.channels + head * w.dim;
      const float* from = result + i * w.padded_dim;
      for (int64_t j = 0; j < w.dim; ++j) to[j] = from[j] * factors[i];
    }
  });
}

void scatter_add(const Windows& w, const float* parts, const int32_t* index, float* rows) {
  for (int64_t i = 0; i < w.key_count; ++i) {
    float* to = rows + index[i] * w.key_width;
    const float* from = parts + i * w.padded_dim;
    each_vector(w.dim, [=](int64_t j, auto n) { store(to + j, load(to + j, n) + load(from + j), n); });
  }
}

// The gradients of one head of one image, by the matrices of queries and keys, which begin with q and end with k and v.
// That of the bias is added to `to_bias`, unless there is none.
void backward_of_head(const Windows& w, const float* gradient, int64_t image, int64_t head, float* to_queries,
                      float* to_keys, float* to_bias) {
  const int64_t q_size = w.count * w.padded_dim, columns = w.dim * w.padded_keys;
  const int64_t scores_size = w.count * w.padded_keys, k_size = w.key_count * w.padded_dim;
  float* q = scratch(3 * q_size + 2 * columns + 2 * scores_size + 2 * k_size);
  float *g = q + q_size, *dq = g + q_size, *k_columns = dq + q_size, *v_columns = k_columns + columns;
  float *weights = v_columns + columns, *d_scores = weights + scores_size, *k = d_scores + scores_size;
  float* part = k + k_size;  // of one window
  const Rows of_q = rows_of_q(w, image, head), of_k = rows_of_keys(w, w.k, w.add_k, image, head);
  const Rows of_v = rows_of_keys(w, w.v, w.add_v, image, head);
  const Rows results{gradient + image * w.length * w.channels + head * w.dim, w.channels, w.length, nullptr};
  float* to_q = to_queries + image * w.query_rows * w.query_width + head * w.dim;
  float* to_k = to_keys + (image * w.key_rows + 1) * w.key_width - 2 * w.channels + head * w.dim;
  float* to_v = to_k + w.channels;
  for (int64_t i = 0; i < w.query_rows; ++i) std::fill_n(to_q + i * w.query_width, w.dim, 0.0f);
  for (int64_t i = 0; i < w.key_rows; ++i)
    for (float* to : {to_k, to_v}) std::fill_n(to + i * w.key_width, w.dim, 0.0f);
  for (int64_t window = 0; window < w.windows; ++window) {
    const int32_t *queries = w.queries + window * w.count, *keys = w.keys + window * w.key_count;
    const int64_t at_bias = w.bias ? w.bias_at(window, head) : 0;
    gather(w, of_q, queries, w.count, w.scale[head], q);
    gather(w, results, queries, w.count, 1.0f, g);
    gather(w, of_k, keys, w.key_count, 1.0f, k);
    gather_columns(w, of_k, keys, k_columns);
    gather_columns(w, of_v, keys, v_columns);
    multiply({q, w.padded_dim, 1}, k_columns, weights, w.count, w.dim, w.padded_keys);
    multiply({g, w.padded_dim, 1}, v_columns, d_scores, w.count, w.dim, w.padded_keys);
    for (int64_t i = 0; i < w.count; ++i) {
      float *p = weights + i * w.padded_keys, *d = d_scores + i * w.padded_keys;
      const float factor = 1.0f / softmax(w, p, w.bias ? w.bias + at_bias + i * w.key_count : nullptr);
      Vec along{};
      for (int64_t j = 0; j < w.padded_keys; j += kWidth) {
        const Vec weight = load(p + j) * factor;
        store(p + j, weight);
        along += weight * load(d + j);
      }
      const float mean = sum(along);
      for (int64_t j = 0; j < w.padded_keys; j += kWidth) store(d + j, load(p + j) * (load(d + j) - mean));
      if (to_bias == nullptr || queries[i] >= w.length) continue;
      float* to = to_bias + at_bias + i * w.key_count;
      each_vector(w.key_count, [=](int64_t j, auto n) { store(to + j, load(to + j, n) + load(d + j), n); });
    }
    multiply({weights, 1, w.padded_keys}, g, part, w.key_count, w.count, w.padded_dim);
    scatter_add(w, part, keys, to_v);
    multiply({d_scores, 1, w.padded_keys}, q, part, w.key_count, w.count, w.padded_dim);
    scatter_add(w, part, keys, to_k);
    multiply({d_scores, w.padded_keys, 1}, k, dq, w.count, w.key_count, w.padded_dim);
    for (int64_t i = 0; i < w.count; ++i) {
      if (queries[i] >= w.length) continue;  // padding, whose result was dropped
      float* to = to_q + queries[i] * w.query_width;
      for (int64_t j = 0; j < w.dim; ++j) to[j] = dq[i * w.padded_dim + j] * w.scale[head];
    }
  }
}

// ..., gradient [B, L, C] -> gradients by the queries, by the keys (none where both are one matrix) and by the bias (one
// number, of no meaning, where it needs none).
//
// Windows share keys, so all windows of a head and image are one task. The bias is shared by images as well: they are
// divided into groups by shapes alone, each of which sums into a part of its own.
void backward(const Arguments& a) {
  const Windows w(a);
  const int last = a.count - 1;
  const float* gradient = a.floats(9);
  float *to_queries = a.floats(10), *to_keys = a.floats(last - 1), *to_bias = a.floats(last);
  const bool of_bias = a.ranks[last] == 4;
  const int64_t size = of_bias ? a.size(last, 0) * w.bias_heads * w.count * w.key_count : 1;
  const int64_t groups = std::max<int64_t>(1, std::min(w.batch, of_bias ? kBiasGradientFloats / size : w.batch));
  std::fill(to_bias, to_bias + size, 0.0f);
  std::vector<float> parts(of_bias ? (groups - 1) * size : 0, 0.0f);
  float* others = parts.data();
  parallel(groups * w.heads, [=, &w](int64_t task) {
    const int64_t group = task / w.heads, head = task % w.heads;
    float* part = !of_bias ? nullptr : group == 0 ? to_bias : others + (group - 1) * size;
    for (int64_t image = group * w.batch / groups; image < (group + 1) * w.batch / groups; ++image)
      backward_of_head(w, gradient, image, head, to_queries, to_keys, part);
  });
  if (!of_bias) return;
  Blocks(size, 1).each([=](int64_t first, int64_t end, int64_t) {
    for (int64_t group = 1; group < groups; ++group)
      for (int64_t i = first; i < end; ++i) to_bias[i] += others[(group - 1) * size + i];
  });
}

}  // namespace

FOCAL_TWINS_KERNEL(window_attention, "fffffiiiff", forward)
FOCAL_TWINS_KERNEL(window_attention_gradient, "fffffiiifffff", backward)
FOCAL_TWINS_KERNEL(self_attention_gradient, "fffffiiiffff", backward)
