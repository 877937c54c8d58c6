// What one instruction set offers: a table of functions that each work on a part of a larger whole, so that the decoder
// can spread the parts over threads. Every output is summed in an order that depends on its own row alone: a token
// comes out the same, bit for bit, whatever else is in the batch and however the work is cut.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tidewheel {

enum class Kind : int { float32 = 0, bfloat16 = 1, int8 = 2 };

constexpr int LANES = 16;           // outputs that one vector holds
constexpr int PAIR = 2 * LANES;     // rows of a matrix that are packed and multiplied together
constexpr int BLOCK = 32;           // neighbouring 8-bit numbers that share a scale, as in GGUF's Q8_0
constexpr int KEYS = 64;            // keys that attention looks at together
constexpr int QUERIES = 32;         // tokens of a segment that one part of attention covers

inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

// Columns as they are packed: 8-bit numbers fill their last block, bfloat16 their last pair.
inline int packed_columns(Kind kind, int columns) {
  return kind == Kind::int8 ? round_up(columns, BLOCK) : kind == Kind::bfloat16 ? round_up(columns, 2) : columns;
}

// Bytes of sixteen packed rows.
//   float32   [column][row]
//   bfloat16  [column / 2][row][2]
//   int8      [column / 4][row][4] of weight + 128, then [column / 32][row] scales in float16
inline size_t panel_bytes(Kind kind, int columns) {
  size_t packed = static_cast<size_t>(packed_columns(kind, columns)) * LANES;
  if (kind == Kind::float32) return packed * 4;
  if (kind == Kind::bfloat16) return packed * 2;
  return (packed + packed / BLOCK * 2 + 63) / 64 * 64;
}

struct Matrix {
  const uint8_t* panels = nullptr;  // of sixteen rows each, an even number of them
  int rows = 0;
  int columns = 0;
  int pairs() const { return (rows + PAIR - 1) / PAIR; }
};

// Rows that are multiplied with a matrix, converted to its kind.
struct Inputs {
  uint8_t* values = nullptr;  // [row][packed columns]
  float* scales = nullptr;    // int8: [row][blocks]
  int32_t* offsets = nullptr;  // int8: [row][blocks], -128 times the block's sum
  int columns = 0;
};

enum class Store : int {
  set,     // out = product
  add,     // out += product
  swiglu,  // of each pair of panels the first is the gate: out = silu(first) * second, sixteen columns a pair
};

struct Output {
  float* values = nullptr;
  ptrdiff_t stride = 0;  // floats from one row to the next
  int columns = 0;
  Store how = Store::set;
};

// One segment's part of attention in one layer.
struct Attention {
  const float* queries;  // of the segment's first token: rotated, divided by sqrt(head_dim)
  ptrdiff_t query_stride;
  float* out;
  ptrdiff_t out_stride;
  const void* keys;  // the layer's pool: [row][kv_heads][head_dim]
  const void* values;
  const int64_t* rows;  // pool row of each position
  int start;            // position of the segment's first token
  int first, last;            // tokens of the segment that this part covers
  int first_head, last_head;  // key heads that this part covers
  int kv_heads, group, head_dim;
};

// `rows` is the most pairs (token, query head) that one part covers.
size_t attention_scratch_floats(int rows, int head_dim);

struct Kernels {
  const char* name;
  // Rows [first, last) of `in` times the row pairs [first_pair, last_pair) of `w`.
  void (*multiply[3])(const Inputs& in, const Matrix& w, const Output& out, int first, int last, int first_pair,
                      int last_pair);
  // One row of floats to one row of Inputs.
  void (*convert[3])(const float* row, const Inputs& in, int at);
  // Scaled to a root mean square of one, times weight.
  void (*rms_norm)(const float* row, const float* weight, float epsilon, int columns, float* out);
  // Turns pairs (i, i + head_dim / 2) of each head, then multiplies with `scale`.
  void (*rotate)(float* row, int heads, int head_dim, const float* cos, const float* sin, float scale);
  void (*store_bf16)(const float* row, int count, uint16_t* out);
  void (*attend[2])(const Attention& work, float* scratch, int scratch_rows);  // by the kind of the pool
  // [row][column] floats to one packed row; panels begin zeroed by `pack_padding`.
  void (*pack_row[3])(const float* row, int columns, uint8_t* panel, int lane);
  void (*unpack_row[3])(const uint8_t* panel, int lane, int columns, float* out);
};

extern const Kernels* const AVX512_BF16;  // null where the compiler does not know the instructions
extern const Kernels* const AVX512;
extern const Kernels* const AVX2;

}  // namespace tidewheel
