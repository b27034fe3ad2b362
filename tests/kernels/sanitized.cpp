// Calls every kernel on shapes that are no whole vectors, with memory of exactly the size that each may touch.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

using Kernel = int(int, void**, int*, int64_t**, const char**, void*, void*);
extern "C" Kernel bias_gelu, bias_gelu_gradient, layer_norm, layer_norm_gradient;
extern "C" Kernel fit_columns, affine, affine_gradient, column_sums, depthwise_convolution, depthwise_convolution_gradient;
extern "C" Kernel scaled_branch, scaled_branch_gradient, cross_entropy, cross_entropy_gradient;
extern "C" Kernel sum_of_squares, adamw_update, average_update;
extern "C" Kernel position_bias, position_bias_gradient, window_pool, window_pool_gradient;
extern "C" Kernel window_attention, window_attention_gradient, self_attention_gradient;
extern "C" void focal_twins_set_threads(int);

using Shape = std::vector<int64_t>;

// A tensor of small numbers, or of row numbers below `end`, or of integers.
struct Tensor {
  Shape shape;
  int64_t end = 0;
  std::vector<int32_t> values = {};
  std::unique_ptr<int32_t[]> data = nullptr;  // floats take as much

  void fill() {
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    data.reset(new int32_t[count]);
    for (int64_t i = 0; i < count; ++i) {
      if (!values.empty())
        data[i] = values[i];
      else if (end)
        data[i] = static_cast<int32_t>(i % end);
      else
        reinterpret_cast<float*>(data.get())[i] = static_cast<float>(i % 17) * 0.1f - 0.8f;
    }
  }
};

void run(Kernel* kernel, std::vector<Tensor> tensors) {
  std::vector<void*> data;
  std::vector<int> ranks;
  std::vector<int64_t*> shapes;
  std::vector<const char*> types;
  for (Tensor& tensor : tensors) {
    tensor.fill();
    data.push_back(tensor.data.get());
    ranks.push_back(static_cast<int>(tensor.shape.size()));
    shapes.push_back(tensor.shape.data());
    types.push_back(tensor.end || !tensor.values.empty() ? "int32" : "float32");
  }
  const int count = static_cast<int>(tensors.size());
  if (kernel(count, data.data(), ranks.data(), shapes.data(), types.data(), nullptr, nullptr) != 0) std::abort();
}

std::vector<Tensor> tensors(std::vector<Shape> shapes) {
  std::vector<Tensor> made;
  for (const Shape& shape : shapes) made.push_back({shape});
  return made;
}

void attention(int64_t batch, int64_t heads, int64_t dim, int64_t length, int64_t rows, int64_t windows, int64_t queries,
               int64_t keys, bool has_bias) {
  const int64_t channels = heads * dim;
  const Shape q{batch, length + 1, channels}, kv{batch, rows, 2 * channels}, both{batch, length + 1, 3 * channels};
  const Shape out{batch, length, channels};
  const Shape bias = has_bias ? Shape{2, heads, queries, keys} : Shape{1};
  auto inputs = [&](const Shape& of_queries, const Shape& of_keys) {
    auto added = [&](const Shape& rows) { return has_bias ? Shape{rows[2]} : Shape{1}; };
    std::vector<Tensor> made = tensors({of_queries, of_keys, added(of_queries), added(of_keys), bias});
    made.push_back({{windows}, 2});
    if (!has_bias) made.back().end = 1;
    made.push_back({{windows, queries}, length + 2});  // the last two are padding, one of them beyond the queries' rows
    made.push_back({{windows, keys}, std::min(rows, length)});
    made.push_back({{heads}});
    made.push_back({out});
    return made;
  };
  run(window_attention, inputs(q, kv));
  run(window_attention, inputs(both, both));
  std::vector<Tensor> all = inputs(q, kv), of_both = inputs(both, both);
  for (Tensor& output : tensors({q, kv, bias})) all.push_back({output.shape});
  for (Tensor& output : tensors({both, bias})) of_both.push_back({output.shape});
  run(window_attention_gradient, std::move(all));
  run(self_attention_gradient, std::move(of_both));
}

void depthwise(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t side) {
  const Shape tokens{batch, height * width, channels}, weights{channels, 1, side, side};
  std::vector<Tensor> inputs = tensors({tokens, weights, {channels}, {2}, tokens});
  std::vector<Tensor> of_gradient = tensors({tokens, weights, {2}, tokens, tokens, weights, {channels}});
  for (Tensor* sizes : {&inputs[3], &of_gradient[2]}) sizes->values = {static_cast<int32_t>(height), static_cast<int32_t>(width)};
  run(depthwise_convolution, std::move(inputs));
  run(depthwise_convolution_gradient, std::move(of_gradient));
}

void biases_of_positions(int64_t rows, int64_t heads, const Shape& pairs) {
  const Shape table{rows, heads}, biases{pairs[0], heads, pairs[1], pairs[2]};
  std::vector<Tensor> inputs = tensors({table, pairs, biases}), of_gradient = tensors({table, pairs, biases, table});
  inputs[1].end = of_gradient[1].end = rows;
  run(position_bias, std::move(inputs));
  run(position_bias_gradient, std::move(of_gradient));
}

void pooled_windows(const Shape& tokens, int64_t parts, int64_t area) {
  const Shape weight{1, area}, index{parts, area}, all{tokens[0], tokens[1] + parts, tokens[2]};
  std::vector<Tensor> inputs = tensors({tokens, weight, {1}, index, all});
  std::vector<Tensor> of_gradient = tensors({tokens, weight, index, all, tokens, weight, {1}});
  inputs[3].end = of_gradient[2].end = tokens[1];
  run(window_pool, std::move(inputs));
  run(window_pool_gradient, std::move(of_gradient));
}

void rows_of_logits(const Shape& shape) {
  const Shape height{shape[0]};
  auto inputs = [&] {
    std::vector<Tensor> made = tensors({shape});
    made.push_back({height, shape[1] + 2});  // some of no class
    made.push_back({{1}, 1, {static_cast<int32_t>(shape[1])}});
    made.push_back({height});
    return made;
  };
  std::vector<Tensor> of_gradient = inputs();
  of_gradient.push_back({shape});
  run(cross_entropy, inputs());
  run(cross_entropy_gradient, std::move(of_gradient));
}

void updates(const std::vector<Shape>& weights) {
  const Shape count{static_cast<int64_t>(weights.size())};
  auto inputs = [&](std::vector<Shape> first, int kinds) {
    for (int kind = 0; kind < kinds; ++kind) first.insert(first.end(), weights.begin(), weights.end());
    first.push_back({1});
    return tensors(first);
  };
  run(sum_of_squares, inputs({}, 1));
  run(adamw_update, inputs({{6}, count, count}, 4));
  run(average_update, inputs({{1}}, 2));
}

int main() {
  for (int threads : {1, 3}) {
    focal_twins_set_threads(threads);
    for (Shape shape : {Shape{1, 1}, {3, 7}, {130, 33}, {2, 20000}, {0, 5}}) {
      const Shape width{shape[1]}, height{shape[0]}, wide{shape[0], shape[1] + 3};
      run(bias_gelu, tensors({shape, width, shape}));
      run(bias_gelu_gradient, tensors({shape, width, shape, shape, width, shape}));
      run(bias_gelu_gradient, tensors({shape, width, shape, wide, width, wide}));
      run(column_sums, tensors({shape, width}));
      run(fit_columns, tensors({shape, wide}));
      run(fit_columns, tensors({wide, shape}));
      run(affine, tensors({shape, width, width, shape}));
      run(affine_gradient, tensors({shape, width, shape, shape, width, width}));
      rows_of_logits(shape);
      run(layer_norm, tensors({shape, width, width, {1}, shape, height, height}));
      run(layer_norm_gradient, tensors({shape, width, height, height, shape, shape, width, width}));
    }
    for (Shape shape : {Shape{1, 1, 1}, {3, 7, 5}, {2, 1, 20000}, {0, 4, 5}}) {
      run(scaled_branch, tensors({shape, shape, {shape[0]}, shape}));
      run(scaled_branch_gradient, tensors({shape, {shape[0]}, shape}));
    }
    updates({{}, {7}, {3, 5}, {0, 2}, {20001}});
    depthwise(2, 5, 7, 19, 3);
    depthwise(1, 1, 1, 4, 5);
    biases_of_positions(13, 3, {5, 7, 9});
    biases_of_positions(1, 1, {1, 1, 1});
    pooled_windows({2, 20, 19}, 5, 4);
    pooled_windows({1, 3, 1}, 1, 2);
    pooled_windows({3, 50, 150}, 9, 7);
    attention(2, 3, 32, 40, 60, 2, 21, 33, true);
    attention(3, 1, 5, 7, 4, 3, 3, 3, true);
    attention(1, 2, 17, 9, 9, 11, 1, 50, false);
  }
  std::puts("done");
}
