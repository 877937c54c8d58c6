#include "decoder.h"

#include <algorithm>
#include <cmath>

namespace tidewheel {
namespace {

constexpr int ROWS_TOGETHER = 192;  // activations that stay in a processor's own cache while weights pass by
constexpr int PARTS_PER_THREAD = 4;
constexpr int ROWS_WORTH_SHARING = 8;

}  // namespace

Decoder::Decoder(const Shape& shape, const Kernels& kernels, Kind weights, Kind pool)
    : shape_(shape), kernels_(kernels), weights_(weights), pool_(pool), layers_(static_cast<size_t>(shape.layers)) {}

void Decoder::set_ends(const Matrix& embedding, const float* norm, const Matrix& head, const float* turns) {
  embedding_ = embedding;
  norm_ = norm;
  head_ = head;
  turns_ = turns;
}

void Decoder::begin(const int64_t* tokens, const std::vector<Segment>& segments, int threads) {
  Threads& crew = Threads::shared();
  Threads::Turn turn(crew, threads);
  segments_ = segments;
  positions_.clear();
  pool_rows_.clear();
  firsts_.clear();
  parts_.clear();
  for (size_t s = 0; s < segments.size(); ++s) {
    const Segment& segment = segments[s];
    firsts_.push_back(static_cast<int>(positions_.size()));
    for (int i = 0; i < segment.tokens; ++i) {
      positions_.push_back(segment.start + i);
      pool_rows_.push_back(segment.rows[segment.start + i]);
    }
    // A single query takes all heads at once, which reads the pool's rows whole, where that leaves enough parts.
    bool is_whole = segment.tokens == 1 && static_cast<int>(segments.size()) >= threads * PARTS_PER_THREAD;
    int heads = is_whole ? shape_.kv_heads : 1;
    for (int first = 0; first < segment.tokens; first += QUERIES)
      for (int head = 0; head < shape_.kv_heads; head += heads)
        parts_.push_back({static_cast<int>(s), head, head + heads, first, std::min(first + QUERIES, segment.tokens)});
  }
  // claimed from the end: the longest first, so that no thread is left with a long one alone
  std::stable_sort(parts_.begin(), parts_.end(), [&](const Part& a, const Part& b) {
    auto cost = [&](const Part& p) {
      return static_cast<int64_t>(p.last - p.first) * (segments_[static_cast<size_t>(p.segment)].start + p.last);
    };
    return cost(a) < cost(b);
  });
  tokens_ = static_cast<int>(positions_.size());
  size_t rows = static_cast<size_t>(tokens_);
  int widest = std::max({shape_.hidden, shape_.feed_forward, shape_.heads * shape_.head_dim});
  stream_.reserve(rows * static_cast<size_t>(shape_.hidden));
  qkv_.reserve(rows * static_cast<size_t>((shape_.heads + 2 * shape_.kv_heads) * shape_.head_dim));
  mixed_.reserve(rows * static_cast<size_t>(stride(shape_.heads * shape_.head_dim)));
  inner_.reserve(rows * static_cast<size_t>(stride(shape_.feed_forward)));
  values_.reserve(rows * static_cast<size_t>(stride(widest)) * 4);
  scales_.reserve(rows * static_cast<size_t>(stride(widest) / BLOCK + 1));
  offsets_.reserve(rows * static_cast<size_t>(stride(widest) / BLOCK + 1));
  size_t workers = static_cast<size_t>(crew.workers());
  normed_.reserve(workers * static_cast<size_t>(round_up(stride(shape_.hidden), BLOCK)));
  scratch_.reserve(workers * attention_scratch_floats(attention_rows(), shape_.head_dim));
  for_rows(crew, tokens_, [&](int row, int) {
    int token = static_cast<int>(tokens[row]);
    size_t bytes = panel_bytes(weights_, shape_.hidden);
    const uint8_t* panel = embedding_.panels + static_cast<size_t>(token / LANES) * bytes;
    kernels_.unpack_row[static_cast<int>(weights_)](panel, token % LANES, shape_.hidden,
                                                    stream_.get() + static_cast<ptrdiff_t>(row) * shape_.hidden);
  });
}

void Decoder::run_layers(int first, int last, uint8_t* pool, int64_t pool_rows, int threads) {
  Threads& crew = Threads::shared();
  Threads::Turn turn(crew, threads);
  int hidden = shape_.hidden, queries = shape_.heads * shape_.head_dim, keys = shape_.kv_heads * shape_.head_dim;
  size_t half = static_cast<size_t>(pool_rows) * static_cast<size_t>(keys) * (pool_ == Kind::float32 ? 4 : 2);
  Inputs narrow = inputs(hidden), heads = inputs(queries), wide = inputs(shape_.feed_forward);
  Output stream{stream_.get(), hidden, hidden, Store::add};
  for (int index = first; index < last; ++index) {
    const Layer& layer = layers_[static_cast<size_t>(index)];
    uint8_t* layer_keys = pool + 2 * half * static_cast<size_t>(index);
    norm(crew, stream_.get(), layer.attention_norm, tokens_, narrow);
    multiply(crew, narrow, layer.qkv, {qkv_.get(), queries + 2 * keys, queries + 2 * keys, Store::set}, tokens_);
    place(crew, layer_keys, layer_keys + half);
    attend(crew, layer_keys, layer_keys + half);
    convert(crew, mixed_.get(), queries, tokens_, heads);
    multiply(crew, heads, layer.attention_out, stream, tokens_);
    norm(crew, stream_.get(), layer.feed_forward_norm, tokens_, narrow);
    multiply(crew, narrow, layer.gate_up,
             {inner_.get(), stride(shape_.feed_forward), shape_.feed_forward, Store::swiglu}, tokens_);
    convert(crew, inner_.get(), shape_.feed_forward, tokens_, wide);
    multiply(crew, wide, layer.down, stream, tokens_);
  }
}

void Decoder::finish(float* logits, int threads) {
  Threads& crew = Threads::shared();
  Threads::Turn turn(crew, threads);
  int rows = static_cast<int>(segments_.size()), hidden = shape_.hidden;
  for (int s = 0; s < rows; ++s) {
    int last = firsts_[static_cast<size_t>(s)] + segments_[static_cast<size_t>(s)].tokens - 1;
    // a segment's last token never lies before its place in this list
    std::memmove(stream_.get() + static_cast<ptrdiff_t>(s) * hidden,
                 stream_.get() + static_cast<ptrdiff_t>(last) * hidden, sizeof(float) * static_cast<size_t>(hidden));
  }
  Inputs in = inputs(hidden);
  norm(crew, stream_.get(), norm_, rows, in);
  multiply(crew, in, head_, {logits, shape_.vocab, shape_.vocab, Store::set}, rows);
}

template <class Work>
void Decoder::for_rows(Threads& threads, int rows, Work&& work) {
  if (rows < ROWS_WORTH_SHARING) {
    for (int row = 0; row < rows; ++row) work(row, 0);
    return;
  }
  int parts = std::min(rows / 4, threads.count() * PARTS_PER_THREAD);
  threads.run(parts, [&](int part, int worker) {
    for (int row = rows * part / parts; row < rows * (part + 1) / parts; ++row) work(row, worker);
  });
}

Inputs Decoder::inputs(int columns) const { return {values_.get(), scales_.get(), offsets_.get(), stride(columns)}; }

void Decoder::convert(Threads& threads, const float* from, int columns, int rows, const Inputs& to) {
  auto convert_row = kernels_.convert[static_cast<int>(weights_)];
  ptrdiff_t step = stride(columns);
  for_rows(threads, rows, [&](int row, int) { convert_row(from + row * step, to, row); });
}

void Decoder::norm(Threads& threads, const float* from, const float* weight, int rows, const Inputs& to) {
  auto convert_row = kernels_.convert[static_cast<int>(weights_)];
  int hidden = shape_.hidden;
  ptrdiff_t spare = round_up(stride(hidden), BLOCK);
  for_rows(threads, rows, [&](int row, int worker) {
    float* normed = normed_.get() + worker * spare;
    kernels_.rms_norm(from + static_cast<ptrdiff_t>(row) * hidden, weight, shape_.norm_epsilon, hidden, normed);
    convert_row(normed, to, row);
  });
}

void Decoder::multiply(Threads& threads, const Inputs& in, const Matrix& w, const Output& out, int rows) {
  auto multiply_part = kernels_.multiply[static_cast<int>(weights_)];
  int pairs = w.pairs();
  int row_parts = (rows + ROWS_TOGETHER - 1) / ROWS_TOGETHER;
  int pair_parts = std::min(pairs, threads.count() * PARTS_PER_THREAD);
  threads.run(row_parts * pair_parts, [&](int part, int) {
    int at = part % pair_parts, first = part / pair_parts * ROWS_TOGETHER;
    multiply_part(in, w, out, first, std::min(first + ROWS_TOGETHER, rows), pairs * at / pair_parts,
                  pairs * (at + 1) / pair_parts);
  });
}

// Rotates queries and keys, and puts keys and values into the pool.
void Decoder::place(Threads& threads, uint8_t* keys, uint8_t* values) {
  int head_dim = shape_.head_dim, queries = shape_.heads * head_dim, width = shape_.kv_heads * head_dim;
  float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  for_rows(threads, tokens_, [&](int row, int) {
    float* query = qkv_.get() + static_cast<ptrdiff_t>(row) * (queries + 2 * width);
    float* key = query + queries;
    const float* cos = turns_ + static_cast<ptrdiff_t>(positions_[static_cast<size_t>(row)]) * head_dim;
    const float* sin = cos + head_dim / 2;
    kernels_.rotate(query, shape_.heads, head_dim, cos, sin, scale);
    kernels_.rotate(key, shape_.kv_heads, head_dim, cos, sin, 1.0f);
    ptrdiff_t at = pool_rows_[static_cast<size_t>(row)] * width;
    if (pool_ == Kind::float32) {
      std::memcpy(reinterpret_cast<float*>(keys) + at, key, sizeof(float) * static_cast<size_t>(width));
      std::memcpy(reinterpret_cast<float*>(values) + at, key + width, sizeof(float) * static_cast<size_t>(width));
    } else {
      kernels_.store_bf16(key, width, reinterpret_cast<uint16_t*>(keys) + at);
      kernels_.store_bf16(key + width, width, reinterpret_cast<uint16_t*>(values) + at);
    }
  });
}

void Decoder::attend(Threads& threads, const uint8_t* keys, const uint8_t* values) {
  auto attend_part = kernels_.attend[static_cast<int>(pool_)];
  int head_dim = shape_.head_dim, rows = attention_rows();
  ptrdiff_t query_stride = (shape_.heads + 2 * shape_.kv_heads) * head_dim;
  ptrdiff_t out_stride = stride(shape_.heads * head_dim);
  size_t scratch = attention_scratch_floats(rows, head_dim);
  threads.run(static_cast<int>(parts_.size()), [&](int at, int worker) {
    const Part& part = parts_[static_cast<size_t>(at)];
    const Segment& segment = segments_[static_cast<size_t>(part.segment)];
    ptrdiff_t token = firsts_[static_cast<size_t>(part.segment)];
    Attention work{qkv_.get() + token * query_stride,
                   query_stride,
                   mixed_.get() + token * out_stride,
                   out_stride,
                   keys,
                   values,
                   segment.rows,
                   segment.start,
                   part.first,
                   part.last,
                   part.first_head,
                   part.last_head,
                   shape_.kv_heads,
                   shape_.heads / shape_.kv_heads,
                   head_dim};
    attend_part(work, scratch_.get() + static_cast<size_t>(worker) * scratch, rows);
  });
}

int Decoder::attention_rows() const { return std::max(QUERIES * shape_.heads / shape_.kv_heads, shape_.heads); }

size_t attention_scratch_floats(int rows, int head_dim) {
  size_t count = static_cast<size_t>(rows), width = static_cast<size_t>(head_dim);
  size_t all = 2 * count * width + 2 * KEYS * width + 8 * KEYS + 2 * count;
  return (all + LANES - 1) / LANES * LANES;
}

}  // namespace tidewheel
