// The kernels for processors with AVX-512, its VNNI.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#define KERNELS_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#include "target_begin.h"

namespace tidewheel::avx512 {
namespace {
const char* const NAME = "avx512";
#include "simd_avx512.h"
#include "kernels.inl"
}  // namespace
}  // namespace tidewheel::avx512
#include "target_end.h"

const tidewheel::Kernels* const tidewheel::AVX512 = &tidewheel::avx512::TABLE;
#else
const tidewheel::Kernels* const tidewheel::AVX512 = nullptr;
#endif
