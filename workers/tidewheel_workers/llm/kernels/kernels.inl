// The kernels, on the names of a simd_*.h; included once per instruction set, inside its namespace.

constexpr float LARGEST = 127.0f;
constexpr float LEAST_EXPONENT = -87.0f;

// e^x for x <= 0: within 2 units in the last place, and exactly 0 below -87.
inline F exponential(F x) {
  F bounded = max(x, set1(LEAST_EXPONENT));
  F n = nearest(mul(bounded, set1(1.44269504f)));
  F r = fma(n, set1(-0.693359375f), bounded);
  r = fma(n, set1(2.12194440e-4f), r);
  F p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = add(fma(mul(r, r), p, r), set1(1.0f));
  return zero_below(x, LEAST_EXPONENT, mul(p, power_of_two(n)));
}

// x / (1 + e^-x), with the exponential of a number that is never positive.
inline F silu(F x) {
  F e = exponential(sub(zero(), abs(x)));
  F above = max(zero_below(x, 0.0f, set1(1.0f)), e);  // 1 where x >= 0, else e
  return div(mul(x, above), add(set1(1.0f), e));
}

// ---------------------------------------------------------------------------------------------- matrix products

// What a tile of 8-bit weights fetches into the cache for the tiles that follow: while one group of panels is multiplied
// with all rows, the next one comes from memory, every row tile fetching a stretch of it; otherwise memory would idle
// during all tiles but the first. Wider weights gain nothing: the processor's own reading ahead keeps up with their sums.
struct Ahead {
  const char* line;
  int row_tiles;
  int owed = 0;  // lines times row tiles

  Ahead(const uint8_t* group, size_t bytes, int row_tile, int of)
      : line(reinterpret_cast<const char*>(group) + bytes / 64 * static_cast<size_t>(row_tile) / static_cast<size_t>(of) * 64),
        row_tiles(of) {}

  // Fetches this tile's part of so many lines of 64 bytes.
  void fetch(int lines) {
    for (owed += lines; owed >= row_tiles; owed -= row_tiles, line += 64) _mm_prefetch(line, _MM_HINT_T1);
  }
};

// A tile: ROWS rows of the input times PAIRS * 2 panels.
template <int ROWS, int PANELS>
inline void products(std::integral_constant<Kind, Kind::float32>, const Inputs& in, int row, const uint8_t* panels,
                     size_t panel, Ahead, F (&sums)[ROWS][PANELS]) {
  const float* x = reinterpret_cast<const float*>(in.values) + static_cast<size_t>(row) * in.columns;
  for (int k = 0; k < in.columns; ++k) {
    F w[PANELS];
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) w[p] = load(reinterpret_cast<const float*>(panels + p * panel) + k * LANES);
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
      F value = set1(x[static_cast<size_t>(m) * in.columns + k]);
#pragma GCC unroll 8
      for (int p = 0; p < PANELS; ++p) sums[m][p] = fma(value, w[p], sums[m][p]);
    }
  }
}

template <int ROWS, int PANELS>
inline void products(std::integral_constant<Kind, Kind::bfloat16>, const Inputs& in, int row, const uint8_t* panels,
                     size_t panel, Ahead, F (&sums)[ROWS][PANELS]) {
  int pairs = in.columns / 2;
  const uint32_t* x = reinterpret_cast<const uint32_t*>(in.values) + static_cast<size_t>(row) * pairs;
  for (int k = 0; k < pairs; ++k) {
    B w[PANELS];
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) w[p] = load_pairs(reinterpret_cast<const uint32_t*>(panels + p * panel) + k * LANES);
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
      B value = set1_pair(x[static_cast<size_t>(m) * pairs + k]);
#pragma GCC unroll 8
      for (int p = 0; p < PANELS; ++p) sums[m][p] = fma_pairs(value, w[p], sums[m][p]);
    }
  }
}

template <int ROWS, int PANELS>
inline void products(std::integral_constant<Kind, Kind::int8>, const Inputs& in, int row, const uint8_t* panels,
                     size_t panel, Ahead ahead, F (&sums)[ROWS][PANELS]) {
  int blocks = in.columns / BLOCK;
  const int32_t* x = reinterpret_cast<const int32_t*>(in.values) + static_cast<size_t>(row) * (in.columns / 4);
  const float* scales = in.scales + static_cast<size_t>(row) * blocks;
  const int32_t* offsets = in.offsets + static_cast<size_t>(row) * blocks;
  size_t weights = static_cast<size_t>(in.columns) * LANES;
  for (int b = 0; b < blocks; ++b) {
    ahead.fetch(BLOCK / 4 * PANELS + PANELS / 2);
    I whole[ROWS][PANELS];
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 8
      for (int p = 0; p < PANELS; ++p) whole[m][p] = begin_sum(offsets[static_cast<size_t>(m) * blocks + b]);
    }
#pragma GCC unroll 8
    for (int k = 0; k < BLOCK / 4; ++k) {
      W8 w[PANELS];
#pragma GCC unroll 8
      for (int p = 0; p < PANELS; ++p) w[p] = load_weights(panels + p * panel + (b * (BLOCK / 4) + k) * (LANES * 4));
#pragma GCC unroll 8
      for (int m = 0; m < ROWS; ++m) {
        int32_t four = x[static_cast<size_t>(m) * (in.columns / 4) + b * (BLOCK / 4) + k];
#pragma GCC unroll 8
        for (int p = 0; p < PANELS; ++p) whole[m][p] = add_products(whole[m][p], w[p], four);
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) {
      F scale = load_half(reinterpret_cast<const uint16_t*>(panels + p * panel + weights) + b * LANES);
#pragma GCC unroll 8
      for (int m = 0; m < ROWS; ++m) {
        F both = mul(scale, set1(scales[static_cast<size_t>(m) * blocks + b]));
        sums[m][p] = fma(to_float(whole[m][p]), both, sums[m][p]);
      }
    }
  }
}

inline void put(float* out, F value, int columns, bool is_added) {
  if (columns >= LANES) {
    store(out, is_added ? add(load(out), value) : value);
    return;
  }
  float spare[LANES];
  store(spare, value);
  for (int i = 0; i < columns; ++i) out[i] = is_added ? out[i] + spare[i] : spare[i];
}

template <Kind KIND, int ROWS, int PAIRS>
inline void tile(const Inputs& in, const Matrix& w, const Output& out, int row, int pair, int row_tile, int of) {
  constexpr int PANELS = 2 * PAIRS;
  size_t panel = panel_bytes(KIND, w.columns);
  const uint8_t* panels = w.panels + 2 * static_cast<size_t>(pair) * panel;
  F sums[ROWS][PANELS];
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) sums[m][p] = zero();
  }
  products<ROWS, PANELS>(std::integral_constant<Kind, KIND>{}, in, row, panels, panel,
                         Ahead(panels + PANELS * panel, PANELS * panel, row_tile, of), sums);
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m) {
    float* to = out.values + (row + m) * out.stride;
    if (out.how == Store::swiglu) {
#pragma GCC unroll 8
      for (int p = 0; p < PAIRS; ++p) {
        int column = (pair + p) * LANES;
        put(to + column, mul(silu(sums[m][2 * p]), sums[m][2 * p + 1]), out.columns - column, false);
      }
    } else {
#pragma GCC unroll 8
      for (int p = 0; p < PANELS; ++p) {
        int column = pair * PAIR + p * LANES;
        if (column < out.columns) put(to + column, sums[m][p], out.columns - column, out.how == Store::add);
      }
    }
  }
}

template <Kind KIND, int ROWS, int PAIRS>
void tiles(const Inputs& in, const Matrix& w, const Output& out, int first, int last, int pair) {
  int row = first, row_tile = 0, of = (last - first + ROWS - 1) / ROWS;
  for (; row + ROWS <= last; row += ROWS) tile<KIND, ROWS, PAIRS>(in, w, out, row, pair, row_tile++, of);
  if constexpr (ROWS > 1) {
    switch (last - row) {
      case 5: if constexpr (ROWS > 5) tile<KIND, 5, PAIRS>(in, w, out, row, pair, row_tile, of); break;
      case 4: if constexpr (ROWS > 4) tile<KIND, 4, PAIRS>(in, w, out, row, pair, row_tile, of); break;
      case 3: if constexpr (ROWS > 3) tile<KIND, 3, PAIRS>(in, w, out, row, pair, row_tile, of); break;
      case 2: if constexpr (ROWS > 2) tile<KIND, 2, PAIRS>(in, w, out, row, pair, row_tile, of); break;
      case 1: tile<KIND, 1, PAIRS>(in, w, out, row, pair, row_tile, of); break;
      default: break;
    }
  }
}

template <Kind KIND>
void multiply(const Inputs& in, const Matrix& w, const Output& out, int first, int last, int first_pair,
              int last_pair) {
  constexpr int ROWS = KIND == Kind::int8 ? TILE_ROWS_INT8 : TILE_ROWS;
  int pair = first_pair;
  if constexpr (HAS_WIDE_TILES) {
    // more sums at once hide the latency of a product
    if (last - first == 1) {
      for (; pair + 2 <= last_pair; pair += 2) tile<KIND, 1, 2>(in, w, out, first, pair, 0, 1);
    } else if constexpr (KIND != Kind::int8) {
      for (; pair + 2 <= last_pair; pair += 2) tiles<KIND, ROWS, 2>(in, w, out, first, last, pair);
    }
  }
  for (; pair < last_pair; ++pair) tiles<KIND, ROWS, 1>(in, w, out, first, last, pair);
}

// --------------------------------------------------------------------------------- rows: convert, norm, rotate, pack

void convert_float32(const float* row, const Inputs& in, int at) {
  float* out = reinterpret_cast<float*>(in.values) + static_cast<size_t>(at) * in.columns;
  if (out != row) std::memcpy(out, row, sizeof(float) * static_cast<size_t>(in.columns));
}

uint16_t bf16_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void store_row_bf16(const float* row, int count, uint16_t* out) {
  int i = 0;
  for (; i + LANES <= count; i += LANES) store_bf16(out + i, load(row + i));
  for (; i < count; ++i) out[i] = bf16_of(row[i]);
}

void convert_bfloat16(const float* row, const Inputs& in, int at) {
  store_row_bf16(row, in.columns, reinterpret_cast<uint16_t*>(in.values) + static_cast<size_t>(at) * in.columns);
}

// The scale that makes the largest of a block 127, and the block in these units.
inline float quantise_block(const float* x, int8_t* out, int* total, bool is_half) {
  F low = load(x), high = load(x + LANES);
  float scale = largest(max(abs(low), abs(high))) / LARGEST;
  if (is_half) scale = _cvtsh_ss(_cvtss_sh(scale, _MM_FROUND_TO_NEAREST_INT));
  F inverse = set1(scale > 0 ? 1.0f / scale : 0.0f);
  F most = set1(LARGEST), least = set1(-LARGEST);  // a scale that was rounded down may leave the largest above 127
  low = max(min(nearest(mul(low, inverse)), most), least);
  high = max(min(nearest(mul(high, inverse)), most), least);
  store_int8(out, low);
  store_int8(out + LANES, high);
  if (total) *total = sum_int8(add(low, high));
  return scale;
}

void convert_int8(const float* row, const Inputs& in, int at) {
  int blocks = in.columns / BLOCK;
  int8_t* out = reinterpret_cast<int8_t*>(in.values) + static_cast<size_t>(at) * in.columns;
  for (int b = 0; b < blocks; ++b) {
    int total = 0;
    in.scales[static_cast<size_t>(at) * blocks + b] = quantise_block(row + b * BLOCK, out + b * BLOCK, &total, false);
    in.offsets[static_cast<size_t>(at) * blocks + b] = -128 * total;
  }
}

void rms_norm(const float* row, const float* weight, float epsilon, int columns, float* out) {
  F squares = zero();
  float rest = 0;
  int i = 0;
  for (; i + LANES <= columns; i += LANES) {
    F x = load(row + i);
    squares = fma(x, x, squares);
  }
  for (; i < columns; ++i) rest += row[i] * row[i];
  float scale = 1.0f / std::sqrt((sum(squares) + rest) / static_cast<float>(columns) + epsilon);
  for (i = 0; i + LANES <= columns; i += LANES)
    store(out + i, mul(mul(load(row + i), set1(scale)), load(weight + i)));
  for (; i < columns; ++i) out[i] = row[i] * scale * weight[i];
}

void rotate(float* row, int heads, int head_dim, const float* cos, const float* sin, float scale) {
  int half = head_dim / 2;
  for (int head = 0; head < heads; ++head, row += head_dim) {
    int i = 0;
    for (; i + LANES <= half; i += LANES) {
      F a = load(row + i), b = load(row + half + i), c = load(cos + i), s = load(sin + i);
      store(row + i, mul(sub(mul(a, c), mul(b, s)), set1(scale)));
      store(row + half + i, mul(add(mul(b, c), mul(a, s)), set1(scale)));
    }
    for (; i < half; ++i) {
      float a = row[i], b = row[half + i];
      row[i] = (a * cos[i] - b * sin[i]) * scale;
      row[half + i] = (b * cos[i] + a * sin[i]) * scale;
    }
  }
}

void pack_float32(const float* row, int columns, uint8_t* panel, int lane) {
  float* out = reinterpret_cast<float*>(panel);
  for (int k = 0; k < columns; ++k) out[k * LANES + lane] = row[k];
}

void pack_bfloat16(const float* row, int columns, uint8_t* panel, int lane) {
  uint16_t* out = reinterpret_cast<uint16_t*>(panel);
  for (int k = 0; k < columns; ++k) out[(k / 2 * LANES + lane) * 2 + k % 2] = bf16_of(row[k]);
  if (columns % 2) out[(columns / 2 * LANES + lane) * 2 + 1] = 0;
}

void pack_int8(const float* row, int columns, uint8_t* panel, int lane) {
  int padded = round_up(columns, BLOCK);
  uint16_t* scales = reinterpret_cast<uint16_t*>(panel + static_cast<size_t>(padded) * LANES);
  for (int b = 0; b < padded / BLOCK; ++b) {
    float spare[BLOCK] = {};
    int8_t whole[BLOCK];
    int here = columns - b * BLOCK < BLOCK ? columns - b * BLOCK : BLOCK;
    std::memcpy(spare, row + b * BLOCK, sizeof(float) * static_cast<size_t>(here));
    scales[b * LANES + lane] = _cvtss_sh(quantise_block(spare, whole, nullptr, true), _MM_FROUND_TO_NEAREST_INT);
    for (int k = 0; k < BLOCK; ++k)
      panel[((b * BLOCK + k) / 4 * LANES + lane) * 4 + k % 4] = static_cast<uint8_t>(whole[k] + 128);
  }
}

void unpack_float32(const uint8_t* panel, int lane, int columns, float* out) {
  const float* in = reinterpret_cast<const float*>(panel);
  for (int k = 0; k < columns; ++k) out[k] = in[k * LANES + lane];
}

void unpack_bfloat16(const uint8_t* panel, int lane, int columns, float* out) {
  const uint16_t* in = reinterpret_cast<const uint16_t*>(panel);
  for (int k = 0; k < columns; ++k) {
    uint32_t bits = static_cast<uint32_t>(in[(k / 2 * LANES + lane) * 2 + k % 2]) << 16;
    std::memcpy(out + k, &bits, 4);
  }
}

void unpack_int8(const uint8_t* panel, int lane, int columns, float* out) {
  const uint16_t* scales =
      reinterpret_cast<const uint16_t*>(panel + static_cast<size_t>(round_up(columns, BLOCK)) * LANES);
  for (int b = 0; b * BLOCK < columns; ++b) {
    float scale[LANES];
    store(scale, load_half(scales + b * LANES));
    for (int k = b * BLOCK; k < columns && k < (b + 1) * BLOCK; ++k)
      out[k] = scale[lane] * static_cast<float>(static_cast<int>(panel[(k / 4 * LANES + lane) * 4 + k % 4]) - 128);
  }
}

// -------------------------------------------------------------------------------------------------------- attention
//
// Flash attention over tiles of 64 keys that always begin at multiples of 64: a query meets the same tiles in the same
// order and in the same lanes whether it comes in a prompt, in a part of one or as a single decode token.

template <Kind KIND>
struct Tiles;  // how a tile of keys and values lies in the scratch memory

template <>
struct Tiles<Kind::float32> {
  using Pool = float;
  static constexpr int STEP = 1;  // dimensions, and keys, that one product takes
  static F product(const float* x, const float* y, F sum) { return fma(set1(*x), load(y), sum); }
  static void keep_queries(const float* row, int count, float* out) {
    for (int i = 0; i < count; i += LANES) store(out + i, load(row + i));
  }
  static void keep_chances(float* out, F chances) { store(out, chances); }
  static void lay_values(const Pool* const* rows, int keys, int head_dim, float* out) {
    for (int j = 0; j < keys; ++j)
      for (int d = 0; d < head_dim; d += LANES) store(out + j * head_dim + d, load(rows[j] + d));
  }
};

template <>
struct Tiles<Kind::bfloat16> {
  using Pool = uint16_t;
  static constexpr int STEP = 2;
  static F product(const float* x, const float* y, F sum) {
    return fma_pairs(set1_pair(*reinterpret_cast<const uint32_t*>(x)), load_pairs(reinterpret_cast<const uint32_t*>(y)),
                     sum);
  }
  static void keep_queries(const float* row, int count, float* out) {
    for (int i = 0; i < count; i += LANES)
      store_bf16(reinterpret_cast<uint16_t*>(out) + i, load(row + i));
  }
  static void keep_chances(float* out, F chances) { store_bf16(reinterpret_cast<uint16_t*>(out), chances); }
  static void lay_values(const Pool* const* rows, int keys, int head_dim, float* out) {
    alignas(64) static const uint16_t none[LANES] = {};
    for (int j = 0; j < keys; j += 2)
      for (int d = 0; d < head_dim; d += LANES)
        store_as_pairs(reinterpret_cast<uint32_t*>(out) + j / 2 * head_dim + d, rows[j] + d,
                       j + 1 < keys ? rows[j + 1] + d : none);
  }
};

// Sums of products: ROWS rows of x, `count` words each, times `count` rows of y, VECTORS vectors each.
template <Kind KIND, int ROWS, int VECTORS>
inline void attend_products(const float* x, ptrdiff_t x_stride, const float* y, ptrdiff_t y_stride, int count,
                            F (&sums)[ROWS][VECTORS]) {
  for (int k = 0; k < count; ++k) {
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v)
        sums[m][v] = Tiles<KIND>::product(x + m * x_stride + k, y + k * y_stride + v * LANES, sums[m][v]);
    }
  }
}

// Bookkeeping of the rows (token, head) of one part of attention.
struct Running {
  float* queries;  // [row][words]
  float* sums;     // [row][head_dim], of values times chances so far
  float* most;     // [row], the largest score so far
  float* total;    // [row], of chances so far
  float* keys;     // [words][KEYS]
  float* values;   // [KEYS / STEP][head_dim]
  float* chances;  // [rows of a block][KEYS]
};

constexpr int ATTEND_ROWS = TILE_ROWS;

template <Kind KIND, int ROWS, int VECTORS>
inline void add_values(const Running& run, int row, int at, int keys, int head_dim, const float* fade) {
  F sums[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v)
      sums[m][v] = mul(load(run.sums + static_cast<ptrdiff_t>(row + m) * head_dim + at + v * LANES), set1(fade[m]));
  }
  constexpr int STEP = Tiles<KIND>::STEP;
  attend_products<KIND, ROWS, VECTORS>(run.chances, KEYS, run.values + at, head_dim, (keys + STEP - 1) / STEP, sums);
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v)
      store(run.sums + static_cast<ptrdiff_t>(row + m) * head_dim + at + v * LANES, sums[m][v]);
  }
}

// The keys in the first VECTORS vectors of a tile; those behind are seen by none of these rows.
template <Kind KIND, int ROWS, int VECTORS>
inline void attend_rows(const Running& run, int row, const int* visible, int head_dim) {
  constexpr int STEP = Tiles<KIND>::STEP;
  F scores[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) scores[m][v] = zero();
  }
  int words = head_dim / STEP;
  attend_products<KIND, ROWS, VECTORS>(run.queries + static_cast<ptrdiff_t>(row) * words, words, run.keys, KEYS, words,
                                       scores);
  float fade[ROWS];
  int keys = 0;
  F never = set1(-std::numeric_limits<float>::infinity());
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m) {
    int seen = visible[m];
    keys = seen > keys ? seen : keys;
    F high = never;
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) {
      int here = seen - v * LANES;
      if (here < LANES) scores[m][v] = first(here > 0 ? here : 0, scores[m][v], never);
      high = max(high, scores[m][v]);
    }
    float before = run.most[row + m], most = largest(high);
    most = most > before ? most : before;
    float spare[LANES];
    store(spare, exponential(set1(before - most)));
    fade[m] = spare[0];
    F added = zero();
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) {
      F chances = exponential(sub(scores[m][v], set1(most)));
      added = add(added, chances);
      Tiles<KIND>::keep_chances(run.chances + m * KEYS + v * LANES / STEP, chances);
    }
    run.most[row + m] = most;
    run.total[row + m] = run.total[row + m] * fade[m] + sum(added);
  }
  int at = 0;
  constexpr int WIDE = HAS_WIDE_TILES ? 4 : 2;
  for (; at + WIDE * LANES <= head_dim; at += WIDE * LANES)
    add_values<KIND, ROWS, WIDE>(run, row, at, keys, head_dim, fade);
  for (; at < head_dim; at += LANES) add_values<KIND, ROWS, 1>(run, row, at, keys, head_dim, fade);
}

template <Kind KIND, int ROWS>
inline void attend_rows(const Running& run, int row, const int* visible, int keys, int head_dim) {
  if (keys <= LANES)
    attend_rows<KIND, ROWS, 1>(run, row, visible, head_dim);
  else if (keys <= 2 * LANES)
    attend_rows<KIND, ROWS, 2>(run, row, visible, head_dim);
  else
    attend_rows<KIND, ROWS, KEYS / LANES>(run, row, visible, head_dim);
}

inline void fetch(const void* from, size_t bytes) {
  const char* line = static_cast<const char*>(from);
  for (size_t at = 0; at < bytes; at += 64) _mm_prefetch(line + at, _MM_HINT_T0);
}

template <Kind KIND>
void attend(const Attention& work, float* scratch, int scratch_rows) {
  using Pool = typename Tiles<KIND>::Pool;
  constexpr int STEP = Tiles<KIND>::STEP;
  int head_dim = work.head_dim, group = work.group, words = head_dim / STEP;
  int rows = (work.last - work.first) * group, heads = work.last_head - work.first_head;  // rows of each key head
  Running run;
  run.queries = scratch;
  run.sums = run.queries + static_cast<ptrdiff_t>(scratch_rows) * head_dim;
  run.keys = run.sums + static_cast<ptrdiff_t>(scratch_rows) * head_dim;
  run.values = run.keys + KEYS * head_dim;
  run.chances = run.values + KEYS * head_dim;
  run.most = run.chances + 8 * KEYS;
  run.total = run.most + scratch_rows;
  auto query_at = [&](int row) {
    int within = row % rows;
    return static_cast<ptrdiff_t>(((work.first_head + row / rows) * group + within % group) * head_dim);
  };
  auto token_at = [&](int row) { return static_cast<ptrdiff_t>(work.first + row % rows / group); };
  for (int row = 0; row < heads * rows; ++row) {
    const float* query = work.queries + token_at(row) * work.query_stride + query_at(row);
    Tiles<KIND>::keep_queries(query, head_dim, run.queries + static_cast<ptrdiff_t>(row) * words);
    std::memset(run.sums + static_cast<ptrdiff_t>(row) * head_dim, 0, sizeof(float) * static_cast<size_t>(head_dim));
    run.most[row] = -std::numeric_limits<float>::infinity();
    run.total[row] = 0;
  }
  int position = work.start + work.first;  // of the first query
  int end = work.start + work.last;
  size_t width = static_cast<size_t>(heads * head_dim) * sizeof(Pool);
  auto pool_at = [&](int key) { return (work.rows[key] * work.kv_heads + work.first_head) * head_dim; };
  const Pool* keys = static_cast<const Pool*>(work.keys);
  const Pool* values = static_cast<const Pool*>(work.values);
  // few queries wait for memory rather than for sums, and rows of the pool lie too far apart to be read ahead unasked
  bool is_fetched = rows <= ATTEND_ROWS;
  auto fetch_tile = [&](int from) {
    int last = from + KEYS < end ? from + KEYS : end;
    for (int key = from; key < last; ++key) fetch(keys + pool_at(key), width);
    for (int key = from; key < last; ++key) fetch(values + pool_at(key), width);
  };
  if (is_fetched) fetch_tile(0);
  alignas(64) static const Pool none[1024] = {};
  for (int from = 0; from < end; from += KEYS) {
    int here = end - from < KEYS ? end - from : KEYS;
    if (is_fetched) fetch_tile(from + KEYS);
    for (int head = 0; head < heads; ++head) {
      const Pool* key[KEYS];
      const Pool* value[KEYS];
      for (int j = 0; j < here; ++j) {
        ptrdiff_t at = pool_at(from + j) + head * head_dim;
        key[j] = keys + at;
        value[j] = values + at;
      }
      for (int j = here; j < KEYS; ++j) key[j] = none;
      for (int j = 0; j < here; j += LANES) {
        for (int d = 0; d < words; d += LANES) {
          const uint32_t* square[LANES];
          for (int i = 0; i < LANES; ++i) square[i] = reinterpret_cast<const uint32_t*>(key[j + i]) + d;
          transpose(square, reinterpret_cast<uint32_t*>(run.keys) + d * KEYS + j, KEYS);
        }
      }
      Tiles<KIND>::lay_values(value, here, head_dim, run.values);
      int row = from > position ? (from - position) * group : 0;
      while (row < rows) {
        int block = rows - row < ATTEND_ROWS ? rows - row : ATTEND_ROWS;
        int visible[8];
        for (int m = 0; m < block; ++m) {
          int seen = position + (row + m) / group - from + 1;
          visible[m] = seen < here ? seen : here;
        }
        int most = visible[block - 1], at = head * rows + row;
        switch (block) {
          case 6: if constexpr (ATTEND_ROWS >= 6) attend_rows<KIND, 6>(run, at, visible, most, head_dim); break;
          case 5: if constexpr (ATTEND_ROWS >= 5) attend_rows<KIND, 5>(run, at, visible, most, head_dim); break;
          case 4: if constexpr (ATTEND_ROWS >= 4) attend_rows<KIND, 4>(run, at, visible, most, head_dim); break;
          case 3: attend_rows<KIND, 3>(run, at, visible, most, head_dim); break;
          case 2: attend_rows<KIND, 2>(run, at, visible, most, head_dim); break;
          default: attend_rows<KIND, 1>(run, at, visible, most, head_dim); break;
        }
        row += block;
      }
    }
  }
  for (int row = 0; row < heads * rows; ++row) {
    float* out = work.out + token_at(row) * work.out_stride + query_at(row);
    F share = set1(1.0f / run.total[row]);
    for (int d = 0; d < head_dim; d += LANES)
      store(out + d, mul(load(run.sums + static_cast<ptrdiff_t>(row) * head_dim + d), share));
  }
}

const Kernels TABLE = {
    NAME,
    {multiply<Kind::float32>, multiply<Kind::bfloat16>, multiply<Kind::int8>},
    {convert_float32, convert_bfloat16, convert_int8},
    rms_norm,
    rotate,
    store_row_bf16,
    {attend<Kind::float32>, attend<Kind::bfloat16>},
    {pack_float32, pack_bfloat16, pack_int8},
    {unpack_float32, unpack_bfloat16, unpack_int8},
};
