// Lets the code up to target_end.h use the instructions in KERNELS_TARGET, whatever the rest is compiled for.
#define KERNELS_TEXT(text) #text
#define KERNELS_PRAGMA(text) _Pragma(KERNELS_TEXT(text))
#if defined(__clang__)
KERNELS_PRAGMA(clang attribute push(__attribute__((target(KERNELS_TARGET))), apply_to = function))
#else
#pragma GCC push_options
KERNELS_PRAGMA(GCC target(KERNELS_TARGET))
#endif
