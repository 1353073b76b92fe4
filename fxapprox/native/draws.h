// The draws of sampling/draws.py: the same arithmetic on the same random numbers.

#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/core/DistributionsHelper.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
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

// How far the probabilities of a row are cut down, its shares lying in (0, 1]: draws.inclusion. Those above the level
// are cut at 1 and the others share what is left; each pass cuts at least one more, and mostly two or three do.
inline double level_of(const double* shares, int64_t n, int64_t k) {
  constexpr int PASSES = 16;
  double level = std::accumulate(shares, shares + n, 0.0) / k;
  int64_t known = 0;
  for (int pass = 0; pass < PASSES; ++pass) {
    double rest = 0;
    int64_t cut = 0;
    for (int64_t i = 0; i < n; ++i) {
      const bool above = shares[i] > level;
      cut += above;
      rest += above ? 0.0 : shares[i];
    }
    if (cut == known || cut >= k) return level;  // cut == k: by rounding only
    known = cut;
    level = rest / (k - cut);
  }
  std::vector<double> sorted(shares, shares + n);
  std::sort(sorted.begin(), sorted.end());
  double rest = std::accumulate(sorted.begin(), sorted.end() - k, 0.0);
  level = std::numeric_limits<double>::infinity();
  for (int64_t others = 1; others <= k; ++others) level = std::min(level, (rest += sorted[n - k + others - 1]) / others);
  return level;
}

// draws.inclusion of one row.
template <typename T>
void probabilities(const T* scores, int64_t n, int64_t k, double* p) {
  const double top = std::max<double>(*std::max_element(scores, scores + n), std::numeric_limits<double>::min());
  for (int64_t i = 0; i < n; ++i) p[i] = std::max(scores[i] / top, LEAST);
  const double level = level_of(p, n, k);
  for (int64_t i = 0; i < n; ++i) p[i] = std::min(p[i] / level, 1.0);
}

inline Tensor inclusion(const Tensor& given, int64_t k) {
  const Tensor scores = given.contiguous();
  const int64_t n = scores.size(1);
  Tensor result = at::empty(scores.sizes(), scores.options().dtype(at::kDouble));
  AT_DISPATCH_FLOATING_TYPES(scores.scalar_type(), "inclusion", [&] {
    for (int64_t row = 0; row < scores.size(0); ++row)
      probabilities(scores.const_data_ptr<scalar_t>() + row * n, n, k, result.mutable_data_ptr<double>() + row * n);
  });
  return result;
}

// The numbers that torch's own operations take from a generator on the CPU, without a call of them for each.
class Numbers {
 public:
  explicit Numbers(const at::Generator& generator)
      : engine(at::check_generator<at::CPUGeneratorImpl>(generator)), lock(engine->mutex_) {}

  double uniform() { return at::uniform_real_distribution<double>(0, 1)(engine); }  // at::rand's

  std::vector<int64_t> permutation(int64_t n) {  // at::randperm's, of fewer than 2^27
    std::vector<int64_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    for (int64_t i = 0; i < n - 1; ++i) std::swap(order[i], order[i + engine->random() % (n - i)]);
    return order;
  }

 private:
  at::CPUGeneratorImpl* engine;
  std::lock_guard<std::mutex> lock;
};

// Places [1, size], ascending, and 1/p of them, or 0 where they only pad the row, of the type of the scores.
struct Chosen {
  Tensor index, factors;

  Chosen(const Tensor& scores, int64_t size)
      : index(at::empty({1, size}, scores.options().dtype(at::kLong))), factors(at::empty({1, size}, scores.options())) {}

  // Of the `n` pairs those that are `inside` and the first `spare` others.
  template <typename T>
  void fill(const std::vector<char>& inside, const std::vector<double>& p, int64_t spare) {
    const int64_t size = index.numel(), n = inside.size();
    int64_t* place = index.mutable_data_ptr<int64_t>();
    T* factor = factors.mutable_data_ptr<T>();
    for (int64_t i = 0, j = 0; i < n && j < size; ++i) {
      if (!inside[i] && spare-- <= 0) continue;
      place[j] = i;
      factor[j++] = inside[i] ? 1 / p[i] : 0.0;
    }
  }
};

// draws.proportional of one row [1, n].
inline std::tuple<Tensor, Tensor> proportional(const Tensor& given, int64_t k, int64_t bits, const at::Generator& generator) {
  const Tensor scores = given.contiguous();
  const int64_t n = scores.size(1), one = int64_t(1) << bits;
  Chosen chosen(scores, k);
  AT_DISPATCH_FLOATING_TYPES(scores.scalar_type(), "proportional", [&] {
    std::vector<double> p(n);
    probabilities(scores.const_data_ptr<scalar_t>(), n, k, p.data());
    Numbers numbers(generator);
    const std::vector<int64_t> order = numbers.permutation(n);
    const double start = numbers.uniform();
    int64_t end = 0;
    for (int64_t i = 0; i < n; ++i) end += static_cast<int64_t>(p[i] * one);
    const int64_t shift = one - 1 - static_cast<int64_t>(start * std::min(end - (k - 1) * one, one));
    std::vector<char> inside(n);
    end = 0;
    int64_t last = 0;
    for (const int64_t i : order) {
      end += static_cast<int64_t>(p[i] * one);
      const int64_t whole = (end + shift) >> bits;
      inside[i] = whole != last;
      last = whole;
    }
    chosen.fill<scalar_t>(inside, p, 0);
  });
  return {chosen.index, chosen.factors};
}

// draws.padded_size.
inline int64_t padded_size(int64_t count, int64_t n) { return std::min(std::max<int64_t>((count + 7) / 8, 1) * 8, n); }

// draws.independent of one row [1, n].
inline std::tuple<Tensor, Tensor> independent(const Tensor& given, int64_t k, const at::Generator& generator) {
  const Tensor scores = given.contiguous();
  const int64_t n = scores.size(1);
  std::vector<double> p(n);
  std::vector<char> inside(n);
  AT_DISPATCH_FLOATING_TYPES(scores.scalar_type(), "independent", [&] {
    probabilities(scores.const_data_ptr<scalar_t>(), n, k, p.data());
  });
  int64_t count = 0;
  {
    Numbers numbers(generator);
    for (int64_t i = 0; i < n; ++i) count += inside[i] = 1.0 - numbers.uniform() <= p[i];
  }
  Chosen chosen(scores, padded_size(count, n));
  AT_DISPATCH_FLOATING_TYPES(scores.scalar_type(), "independent",
                             [&] { chosen.fill<scalar_t>(inside, p, chosen.index.numel() - count); });
  return {chosen.index, chosen.factors};
}

}  // namespace fxapprox
