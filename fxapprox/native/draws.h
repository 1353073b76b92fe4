// The draws of sampling/draws.py: the same arithmetic on the same random numbers.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

namespace fxapprox {

using at::Tensor;

constexpr double LEAST = 1e-300;  // draws.FLOOR

// The k largest of each row of scores, of equals the first: their places [rows, k], ascending.
inline Tensor largest(const Tensor& given, int64_t k) {
  const Tensor scores = given.contiguous();
  const int64_t rows = scores.size(0), n = scores.size(1);
  Tensor index = at::empty({rows, k}, scores.options().dtype(at::kLong));
  int64_t* to = index.mutable_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(scores.scalar_type(), "largest", [&] {
    at::parallel_for(0, rows, std::max<int64_t>((1 << 14) / std::max<int64_t>(n, 1), 1), [&](int64_t first, int64_t last) {
      std::vector<int32_t> order(n);
      for (int64_t row = first; row < last; ++row) {
        const scalar_t* at = scores.const_data_ptr<scalar_t>() + row * n;
        std::iota(order.begin(), order.end(), 0);
        std::nth_element(order.begin(), order.begin() + k, order.end(),
                         [at](int32_t a, int32_t b) { return at[a] > at[b] || (at[a] == at[b] && a < b); });
        std::sort(order.begin(), order.begin() + k);
        std::copy(order.begin(), order.begin() + k, to + row * k);
      }
    });
  });
  return index;
}

// draws.inclusion: probabilities of each row, float64.
inline Tensor inclusion(const Tensor& scores, int64_t k) {
  Tensor result = scores.to(at::kDouble, false, true, at::MemoryFormat::Contiguous);
  const int64_t n = scores.size(1);
  for (int64_t row = 0; row < scores.size(0); ++row) {
    double* p = result.mutable_data_ptr<double>() + row * n;
    const double top = std::max(*std::max_element(p, p + n), std::numeric_limits<double>::min());
    double total = 0;
    for (int64_t i = 0; i < n; ++i) total += p[i] = std::max(p[i] / top, LEAST);
    double level = total / k;
    if (level < 1) {  // somebody is cut at 1
      std::vector<double> sorted(p, p + n);
      std::sort(sorted.begin(), sorted.end());
      double rest = std::accumulate(sorted.begin(), sorted.end() - k, 0.0);
      level = std::numeric_limits<double>::infinity();
      for (int64_t others = 1; others <= k; ++others)
        level = std::min(level, (rest += sorted[n - k + others - 1]) / others);
    }
    for (int64_t i = 0; i < n; ++i) p[i] = std::min(p[i] / level, 1.0);
  }
  return result;
}

// draws.systematic of one row: places [1, k] of the probabilities [1, n].
inline Tensor systematic(const Tensor& given, int64_t k, int64_t bits, const at::Generator& generator) {
  const Tensor p = given.contiguous();
  const int64_t n = p.size(1), one = int64_t(1) << bits;
  const Tensor order = at::randperm(n, generator, p.options().dtype(at::kLong));
  const double start = at::rand({1, 1}, generator, p.options()).item<double>();
  const int64_t* at = order.const_data_ptr<int64_t>();
  const double* share = p.const_data_ptr<double>();
  int64_t end = 0;
  for (int64_t i = 0; i < n; ++i) end += static_cast<int64_t>(share[at[i]] * one);
  const int64_t shift = one - 1 - static_cast<int64_t>(start * std::min(end - (k - 1) * one, one));
  std::vector<char> kept(n);
  end = 0;
  int64_t last = 0;
  for (int64_t i = 0; i < n; ++i) {
    end += static_cast<int64_t>(share[at[i]] * one);
    const int64_t whole = (end + shift) >> bits;
    kept[at[i]] = whole != last;
    last = whole;
  }
  Tensor index = at::empty({1, k}, order.options());
  int64_t* to = index.mutable_data_ptr<int64_t>();
  for (int64_t i = 0, j = 0; i < n && j < k; ++i)
    if (kept[i]) to[j++] = i;
  return index;
}

// draws.padded_size.
inline int64_t padded_size(int64_t count, int64_t n) { return std::min(std::max<int64_t>((count + 7) / 8, 1) * 8, n); }

// draws.independent of one row: places [1, size] and factors, float64, of the probabilities [1, n].
inline std::tuple<Tensor, Tensor> independent(const Tensor& given, const at::Generator& generator) {
  const Tensor p = given.contiguous();
  const int64_t n = p.size(1);
  const Tensor numbers = at::rand({1, n}, generator, p.options());
  const double *share = p.const_data_ptr<double>(), *drawn = numbers.const_data_ptr<double>();
  std::vector<char> inside(n);
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += inside[i] = 1.0 - drawn[i] <= share[i];
  const int64_t size = padded_size(count, n);
  Tensor index = at::empty({1, size}, p.options().dtype(at::kLong)), factors = at::empty({1, size}, p.options());
  int64_t* to = index.mutable_data_ptr<int64_t>();
  double* factor = factors.mutable_data_ptr<double>();
  for (int64_t i = 0, j = 0, spare = size - count; i < n && j < size; ++i) {
    if (!inside[i] && spare-- <= 0) continue;
    to[j] = i;
    factor[j++] = inside[i] ? 1 / share[i] : 0.0;
  }
  return {index, factors};
}

}  // namespace fxapprox
