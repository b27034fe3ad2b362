// Convolution of every channel of a map by itself, of tokens as they are stored, and its gradient.
//
// By operators the map is transposed to channels first, multiplied by band matrices, and transposed back. Channels last
// are vectors: each output is a sum of neighbours times weights. Beyond the edge of the map there are zeros.
#include "threads.h"
#include "vectors.h"

namespace {
using namespace focal_twins;

struct Map {
  int64_t height, width, channels, side;  // of the map; `side` is the kernel's

  // Calls function(tap, token) for all taps of the kernel at a token of an image that lie on the map, where `sign` is 1,
  // or that the token itself is a tap of, where it is -1.
  template <typename Function>
  FOCAL_TWINS_INLINE void each_tap(int64_t y, int64_t x, int sign, Function function) const {
    for (int64_t i = 0; i < side; ++i)
      for (int64_t j = 0; j < side; ++j) {
        const int64_t row = y + sign * (i - side / 2), column = x + sign * (j - side / 2);
        if (row >= 0 && row < height && column >= 0 && column < width)
          function((i * side + j) * channels, (row * width + column) * channels);
      }
  }

  // Convolves row y of an image, or, with sign -1, does what the gradient by the map needs; `start` is added, if any.
  void convolve(const float* image, const float* weights, const float* start, int64_t y, int sign, float* out) const {
    for (int64_t x = 0; x < width; ++x)
      each_vector(channels, [&](int64_t c, auto n) {
        Vec value = start ? load(start + c, n) : Vec{};
        each_tap(y, x, sign, [&](int64_t tap, int64_t token) {
          value += load(image + token + c, n) * load(weights + tap + c, n);
        });
        store(out + x * channels + c, value, n);
      });
  }
};

Map map_of(const Arguments& a, int sizes) {
  return {a.integers(sizes)[0], a.integers(sizes)[1], a.size(0, 2), a.size(1, 3)};
}

// Weights [C, 1, k, k] as [k * k, C].
std::vector<float> taps_first(const float* weights, const Map& map) {
  const int64_t taps = map.side * map.side;
  std::vector<float> turned(taps * map.channels);
  for (int64_t i = 0; i < taps * map.channels; ++i) turned[i % taps * map.channels + i / taps] = weights[i];
  return turned;
}

// tokens [B, H * W, C], weights [C, 1, k, k], bias [C], (H, W) -> tokens [B, H * W, C]
void forward(const Arguments& a) {
  const Map map = map_of(a, 3);
  const float *tokens = a.floats(0), *bias = a.floats(2);
  const std::vector<float> turned = taps_first(a.floats(1), map);
  const float* weights = turned.data();
  float* out = a.floats(4);
  const int64_t row_size = map.width * map.channels;
  Blocks(a.size(0, 0) * map.height, row_size).each([=](int64_t first, int64_t end, int64_t) {
    for (int64_t row = first; row < end; ++row) {
      const float* image = tokens + row / map.height * map.height * row_size;
      map.convolve(image, weights, bias, row % map.height, 1, out + row * row_size);
    }
  });
}

// tokens, weights, (H, W), gradient [B, H * W, C] -> gradients by tokens, weights and bias
void backward(const Arguments& a) {
  const Map map = map_of(a, 2);
  const float *tokens = a.floats(0), *gradient = a.floats(3);
  const std::vector<float> turned = taps_first(a.floats(1), map);
  const float* weights = turned.data();
  float *to_tokens = a.floats(4), *to_weights = a.floats(5);
  const int64_t row_size = map.width * map.channels, taps = map.side * map.side, size = taps * map.channels;
  const Blocks blocks(a.size(0, 0) * map.height, row_size);
  const auto totals = blocks.sum(size + map.channels, [=](int64_t first, int64_t end, float* sums) {
    for (int64_t row = first; row < end; ++row) {
      const int64_t start = row / map.height * map.height * row_size, y = row % map.height;
      map.convolve(gradient + start, weights, nullptr, y, -1, to_tokens + row * row_size);
      for (int64_t x = 0; x < map.width; ++x)
        each_vector(map.channels, [&](int64_t c, auto n) {
          const Vec given = load(gradient + row * row_size + x * map.channels + c, n);
          map.each_tap(y, x, 1, [&](int64_t tap, int64_t token) {
            store(sums + tap + c, load(sums + tap + c, n) + given * load(tokens + start + token + c, n), n);
          });
          store(sums + size + c, load(sums + size + c, n) + given, n);
        });
    }
  });
  for (int64_t i = 0; i < size; ++i) to_weights[i] = totals[i % taps * map.channels + i / taps];
  std::copy(totals.begin() + size, totals.end(), a.floats(6));
}

}  // namespace

FOCAL_TWINS_KERNEL(depthwise_convolution, "fffif", forward)
FOCAL_TWINS_KERNEL(depthwise_convolution_gradient, "ffiffff", backward)
