// Columns of a matrix taken out and put back by vector instructions, sixteen numbers at a time.

#pragma once

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace fxapprox {

// Which lanes of each block of sixteen columns are kept, and where the kept of a block begin in a row of them.
struct Lanes {
  std::vector<uint16_t> kept;
  std::vector<int64_t> begin;
};

// Whether the index ascends without repeating, which the lanes want.
inline bool ascends(const int64_t* index, int64_t k) {
  return std::adjacent_find(index, index + k, [](int64_t a, int64_t b) { return a >= b; }) == index + k;
}

inline Lanes lanes(const int64_t* index, int64_t k, int64_t n) {
  const int64_t blocks = (n + 15) / 16;
  Lanes found{std::vector<uint16_t>(blocks), std::vector<int64_t>(blocks)};
  for (int64_t j = 0; j < k; ++j) found.kept[index[j] / 16] |= 1 << index[j] % 16;
  for (int64_t b = 1; b < blocks; ++b) found.begin[b] = found.begin[b - 1] + __builtin_popcount(found.kept[b - 1]);
  return found;
}

#if defined(__AVX512F__)
inline __mmask16 first_of(int64_t count) { return static_cast<__mmask16>((1u << std::min<int64_t>(count, 16)) - 1); }

inline void take_row(const float* from, const Lanes& lanes, int64_t n, float* to) {
  for (size_t b = 0; b < lanes.kept.size(); ++b) {
    const __m512 block = _mm512_maskz_loadu_ps(first_of(n - b * 16), from + b * 16);
    const int64_t count = __builtin_popcount(lanes.kept[b]);
    _mm512_mask_storeu_ps(to + lanes.begin[b], first_of(count), _mm512_maskz_compress_ps(lanes.kept[b], block));
  }
}

inline void spread_row(const float* from, const Lanes& lanes, int64_t n, float* to) {
  for (size_t b = 0; b < lanes.kept.size(); ++b) {
    const __m512 kept = _mm512_maskz_loadu_ps(first_of(__builtin_popcount(lanes.kept[b])), from + lanes.begin[b]);
    _mm512_mask_storeu_ps(to + b * 16, first_of(n - b * 16), _mm512_maskz_expand_ps(lanes.kept[b], kept));
  }
}
#endif

// Numbers of 16 bits (of bfloat16, say), widened for the way: compressing them as they are is newer than AVX-512.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
inline void take_row(const uint16_t* from, const Lanes& lanes, int64_t n, uint16_t* to) {
  for (size_t b = 0; b < lanes.kept.size(); ++b) {
    const __m512i block = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_of(n - b * 16), from + b * 16));
    const int64_t count = __builtin_popcount(lanes.kept[b]);
    const __m256i kept = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(lanes.kept[b], block));
    _mm256_mask_storeu_epi16(to + lanes.begin[b], first_of(count), kept);
  }
}

inline void spread_row(const uint16_t* from, const Lanes& lanes, int64_t n, uint16_t* to) {
  for (size_t b = 0; b < lanes.kept.size(); ++b) {
    const __mmask16 there = first_of(__builtin_popcount(lanes.kept[b]));
    const __m512i kept = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, from + lanes.begin[b]));
    const __m256i block = _mm512_cvtepi32_epi16(_mm512_maskz_expand_epi32(lanes.kept[b], kept));
    _mm256_mask_storeu_epi16(to + b * 16, first_of(n - b * 16), block);
  }
}
#endif

// What a number of type T goes through the lanes as; void where it does not.
template <typename T>
struct Passes {
  using Type = void;
};
#if defined(__AVX512F__)
template <>
struct Passes<float> {
  using Type = float;
};
#endif
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
template <>
struct Passes<c10::BFloat16> {
  using Type = uint16_t;
};
#endif

}  // namespace fxapprox
