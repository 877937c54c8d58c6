// The kernels for processors with AVX-512, its VNNI and its bfloat16 products.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#define KERNELS_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16"
#include "target_begin.h"
#define KERNELS_BF16
namespace tidewheel::avx512_bf16 {
namespace {
const char* const NAME = "avx512_bf16";
#include "simd_avx512.h"
#include "kernels.inl"
}  // namespace
}  // namespace tidewheel::avx512_bf16
#include "target_end.h"

const tidewheel::Kernels* const tidewheel::AVX512_BF16 = &tidewheel::avx512_bf16::TABLE;
#else
const tidewheel::Kernels* const tidewheel::AVX512_BF16 = nullptr;
#endif
