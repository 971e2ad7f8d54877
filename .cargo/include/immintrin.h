/* The compiler's own header, with one intrinsic mended.
 *
 * GCC before 12.4, 13.3 and 14 declares that `_tile_loadconfig` reads the first 8 of the 64 bytes that
 * it reads (GCC bug 114098). The optimizer then drops the stores to the other 56, and a processor
 * with AMX faults on what happens to lie there: llama.cpp crashes on its first batch. */
#pragma once
#include_next <immintrin.h>
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg %0" ::"m"(*(const char (*)[64])(config)))
#endif
