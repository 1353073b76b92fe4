// A bit for every entry of a float tensor: what sampling/rectifiers.py keeps of a ReLU's result.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace fxapprox {

using at::Tensor;

constexpr int64_t LANES = 16, BLOCKS = 1 << 11;  // entries of a word, words that are worth a thread

// Which of 16 entries are not zero (NaN is not), or with `above` which are positive.
inline uint16_t word(const float* at, bool above) {
#if defined(__AVX512F__)
  const __m512 values = _mm512_loadu_ps(at), zero = _mm512_setzero_ps();
  return above ? _mm512_cmp_ps_mask(values, zero, _CMP_GT_OQ) : _mm512_cmp_ps_mask(values, zero, _CMP_NEQ_UQ);
#else
  uint16_t bits = 0;
  for (int64_t i = 0; i < LANES; ++i) bits |= static_cast<uint16_t>(above ? at[i] > 0 : at[i] != 0) << i;
  return bits;
#endif
}

inline void entries(uint16_t bits, float* at) {
#if defined(__AVX512F__)
  _mm512_storeu_ps(at, _mm512_maskz_mov_ps(bits, _mm512_set1_ps(1)));
#else
  for (int64_t i = 0; i < LANES; ++i) at[i] = bits >> i & 1;
#endif
}

// The words of a tensor without gaps, in the order of its memory. Its size is a multiple of 16.
inline Tensor pack(const Tensor& values, bool above) {
  const int64_t words = values.numel() / LANES;
  Tensor result = at::empty({words}, values.options().dtype(at::kShort));
  const float* from = values.const_data_ptr<float>();
  uint16_t* to = reinterpret_cast<uint16_t*>(result.mutable_data_ptr<int16_t>());
  at::parallel_for(0, words, BLOCKS, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) to[i] = word(from + i * LANES, above);
  });
  return result;
}

// A 1 for every bit that is set, else 0.
inline Tensor unpack(const Tensor& bits, at::IntArrayRef shape, at::IntArrayRef strides) {
  Tensor result = at::empty_strided(shape, strides, bits.options().dtype(at::kFloat));
  const uint16_t* from = reinterpret_cast<const uint16_t*>(bits.const_data_ptr<int16_t>());
  float* to = result.mutable_data_ptr<float>();
  at::parallel_for(0, bits.numel(), BLOCKS, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) entries(from[i], to + i * LANES);
  });
  return result;
}

}  // namespace fxapprox
