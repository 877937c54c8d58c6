// A whole Llama decoder over packed weights: what Python calls once per forward pass, or once per layer.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace tidewheel {

struct Shape {
  int layers, hidden, feed_forward, heads, kv_heads, head_dim, vocab;
  float norm_epsilon;
};

struct Layer {
  const float* attention_norm = nullptr;
  Matrix qkv;
  Matrix attention_out;
  const float* feed_forward_norm = nullptr;
  Matrix gate_up;  // pairs of panels: sixteen rows of gate, the same sixteen of up
  Matrix down;
};

// One sequence's part of a forward pass.
struct Segment {
  const int64_t* rows;  // pool row of each position of the sequence
  int start;            // position of its first token
  int tokens;
};

// Grows, never shrinks, and begins as zeros.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(values_); }

  T* reserve(size_t count) {
    if (count > size_) {
      std::free(values_);
      size_ = 0;
      size_t bytes = (count * sizeof(T) + 4095) / 4096 * 4096;
      values_ = static_cast<T*>(std::aligned_alloc(4096, bytes));
      if (!values_) throw std::bad_alloc();
      std::memset(static_cast<void*>(values_), 0, bytes);
      size_ = count;
    }
    return values_;
  }
  T* get() const { return values_; }

 private:
  T* values_ = nullptr;
  size_t size_ = 0;
};

class Decoder {
 public:
  Decoder(const Shape& shape, const Kernels& kernels, Kind weights, Kind pool);

  Shape shape() const { return shape_; }
  void set_layer(int index, const Layer& layer) { layers_.at(static_cast<size_t>(index)) = layer; }
  // `turns` holds a row of cosines and a row of sines, head_dim / 2 each, for every position.
  void set_ends(const Matrix& embedding, const float* norm, const Matrix& head, const float* turns);

  // Takes in the tokens of all segments, one after the other.
  void begin(const int64_t* tokens, const std::vector<Segment>& segments, int threads);
  // Layers [first, last); `pool` is the pool's first layer: [keys, values][rows][kv_heads][head_dim].
  void run_layers(int first, int last, uint8_t* pool, int64_t pool_rows, int threads);
  // Logits after the last token of each segment: [segments][vocab].
  void finish(float* logits, int threads);

 private:
  struct Part {
    int segment, first_head, last_head, first, last;
  };

  int attention_rows() const;
  int stride(int columns) const { return packed_columns(weights_, columns); }
  template <class Work>
  void for_rows(Threads& threads, int rows, Work&& work);
  Inputs inputs(int columns) const;
  void convert(Threads& threads, const float* from, int columns, int rows, const Inputs& to);
  void norm(Threads& threads, const float* from, const float* weight, int rows, const Inputs& to);
  void multiply(Threads& threads, const Inputs& in, const Matrix& w, const Output& out, int rows);
  void place(Threads& threads, uint8_t* keys, uint8_t* values);
  void attend(Threads& threads, const uint8_t* keys, const uint8_t* values);

  Shape shape_;
  const Kernels& kernels_;
  Kind weights_, pool_;
  std::vector<Layer> layers_;
  Matrix embedding_, head_;
  const float* norm_ = nullptr;
  const float* turns_ = nullptr;

  std::vector<Segment> segments_;
  std::vector<Part> parts_;
  std::vector<int> positions_;     // of each token
  std::vector<int64_t> pool_rows_;  // of each token
  std::vector<int> firsts_;        // of each segment, its first token
  int tokens_ = 0;
  Buffer<float> stream_, qkv_, mixed_, inner_, normed_, scratch_, scales_;
  Buffer<int32_t> offsets_;
  Buffer<uint8_t> values_;
};

}  // namespace tidewheel
