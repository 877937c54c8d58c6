// The kernels for processors with AVX2, FMA and F16C: x86-64 servers since 2013.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#define KERNELS_TARGET "avx2,fma,f16c"
#include "target_begin.h"
namespace tidewheel::avx2 {
namespace {
const char* const NAME = "avx2";
#include "simd_avx2.h"
#include "kernels.inl"
}  // namespace
}  // namespace tidewheel::avx2
#include "target_end.h"

const tidewheel::Kernels* const tidewheel::AVX2 = &tidewheel::avx2::TABLE;
#else
const tidewheel::Kernels* const tidewheel::AVX2 = nullptr;
#endif
