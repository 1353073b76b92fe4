// The product of two matrices through chosen pairs, and its gradients, in few passes and without Python.
//
// The same estimator and the same gradients as sampling/matrices.py, which runs where this is not built.

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/utils/pybind.h>
#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <vector>

#include "bits.h"
#include "draws.h"
#include "lanes.h"
#include "own.h"
#include "tiles.h"

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t GRAIN = 1 << 14;   // numbers that are worth a thread
constexpr int64_t DIRECT = 1 << 18, SHORT = 256;  // numbers and rows of a gradient that goes by tiles

int64_t rows_at_once(int64_t width) { return std::max<int64_t>(GRAIN / std::max<int64_t>(width, 1), 1); }

// Sums of squares of the columns of a contiguous matrix. How they are added up does not depend on the threads.
template <typename T>
void column_energies(const T* values, int64_t rows, int64_t columns, at::opmath_type<T>* sums) {
  using S = at::opmath_type<T>;
  constexpr int64_t BLOCK = 64;  // sums that stay in registers
  const int64_t blocks = (columns + BLOCK - 1) / BLOCK, parts = std::clamp<int64_t>(rows / 128, 1, 16);
  std::vector<S> partial(parts * columns);
  at::parallel_for(0, parts * blocks, rows_at_once(rows / parts * BLOCK), [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t part = i / blocks, first = i % blocks * BLOCK, length = std::min(BLOCK, columns - first);
      S sum[BLOCK] = {};
      for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; ++row) {
        const T* at = values + row * columns + first;
        if (length == BLOCK)
          for (int64_t j = 0; j < BLOCK; ++j) sum[j] += S(at[j]) * S(at[j]);
        else
          for (int64_t j = 0; j < length; ++j) sum[j] += S(at[j]) * S(at[j]);
      }
      std::memcpy(&partial[part * columns + first], sum, length * sizeof(S));
    }
  });
  std::copy(partial.begin(), partial.begin() + columns, sums);
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t j = 0; j < columns; ++j) sums[j] += partial[part * columns + j];
}

// Sum of squares of neighbours, in running sums that vector instructions add up side by side.
template <typename T>
T energy(const T* values, int64_t length) {
  constexpr int64_t LANES = 64;
  T lanes[LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= length; i += LANES)
    for (int64_t j = 0; j < LANES; ++j) lanes[j] += values[i + j] * values[i + j];
  T sum = 0;
  for (int64_t j = 0; j < LANES; ++j) sum += lanes[j];
  for (; i < length; ++i) sum += values[i] * values[i];
  return sum;
}

template <typename T>
void times_row_norms(const Tensor& matrix, T* norms) {
  const int64_t width = matrix.size(1);
  const T* values = matrix.const_data_ptr<T>();
  at::parallel_for(0, matrix.size(0), rows_at_once(width), [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) norms[i] *= std::sqrt(energy(values + i * width, width));
  });
}

template <typename T>
bool sound(const T* scores, int64_t count) {
  T top = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(scores[i])) return false;
    top = std::max(top, scores[i]);
  }
  return top > 0;
}

// Whether these are what the kernels are for. Nobody may be watching torch's operations (a flop counter, say), of
// which they are none.
bool fit(const Tensor& left, const Tensor& right, bool inner) {
  const auto type = left.scalar_type();
  return left.dim() == 2 && right.dim() == 2 && left.is_cpu() && right.is_cpu() && type == right.scalar_type() &&
         (type == at::kFloat || type == at::kDouble) && left.layout() == at::kStrided && left.numel() > 0 &&
         right.numel() > 0 && left.is_contiguous() && left.size(1) == right.size(inner ? 1 : 0) &&
         (inner ? right.t() : right).is_contiguous() && !at::autocast::is_autocast_enabled(at::kCPU) &&
         c10::impl::TorchDispatchModeTLS::stack_len() == 0;
}

// Norm products of the columns of left [N, n] and the rows of right [n, m]: [1, n]. Nothing where one of them is not
// finite, or all are zero, or where these are not what the kernels are for.
std::optional<Tensor> scores(const Tensor& left, const Tensor& given, bool inner) {
  at::AutoDispatchBelowADInplaceOrView guard;
  if (!fit(left, given, inner)) return std::nullopt;
  const Tensor right = inner ? given.t() : given;
  Tensor result = at::empty({1, left.size(1)}, left.options());
  bool good = false;
  AT_DISPATCH_FLOATING_TYPES(left.scalar_type(), "scores", [&] {
    scalar_t* out = result.mutable_data_ptr<scalar_t>();
    column_energies(left.const_data_ptr<scalar_t>(), left.size(0), left.size(1), out);
    for (int64_t i = 0; i < left.size(1); ++i) out[i] = std::sqrt(out[i]);
    times_row_norms(right, out);
    good = sound(out, left.size(1));
  });
  return good ? std::optional<Tensor>(result) : std::nullopt;
}

// The same of the rows of both, first [n, p] and second [n, m].
std::optional<Tensor> row_scores(const Tensor& first, const Tensor& second) {
  at::AutoDispatchBelowADInplaceOrView guard;
  Tensor result = at::ones({1, first.size(0)}, first.options());
  bool good = false;
  AT_DISPATCH_FLOATING_TYPES(first.scalar_type(), "row_scores", [&] {
    scalar_t* out = result.mutable_data_ptr<scalar_t>();
    times_row_norms(first, out);
    times_row_norms(second, out);
    good = sound(out, first.size(0));
  });
  return good ? std::optional<Tensor>(result) : std::nullopt;
}

// Chosen columns of a matrix [N, n], times their factors: as rows [k, N], or as they are [N, k].
template <typename T>
Tensor columns(const Tensor& matrix, const Tensor& index, const Tensor& scale, bool as_rows) {
  const int64_t rows = matrix.size(0), n = matrix.size(1), k = index.numel();
  Tensor kept = as_rows ? at::empty({k, rows}, matrix.options()) : at::empty({rows, k}, matrix.options());
  const int64_t along_rows = as_rows ? 1 : k, along_pairs = as_rows ? rows : 1;
  const T *from = matrix.const_data_ptr<T>(), *factors = scale.defined() ? scale.const_data_ptr<T>() : nullptr;
  const int64_t* places = index.const_data_ptr<int64_t>();
  T* to = kept.mutable_data_ptr<T>();
  using Passes = typename fxapprox::Passes<T>::Type;
  if constexpr (!std::is_void_v<Passes>) {
    if (!as_rows && fxapprox::ascends(places, k)) {
      const fxapprox::Lanes lanes = fxapprox::lanes(places, k, n);
      at::parallel_for(0, rows, rows_at_once(k), [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
          fxapprox::take_row(reinterpret_cast<const Passes*>(from + row * n), lanes, n,
                             reinterpret_cast<Passes*>(to + row * k));
          if (factors)
            for (int64_t j = 0; j < k; ++j) to[row * k + j] *= factors[j];
        }
      });
      return kept;
    }
  }
  at::parallel_for(0, rows, rows_at_once(k), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row)
      for (int64_t j = 0; j < k; ++j) {
        const T value = from[row * n + places[j]];
        to[row * along_rows + j * along_pairs] = factors ? factors[j] * value : value;
      }
  });
  return kept;
}

// Chosen rows of a matrix.
Tensor gathered(const Tensor& matrix, const Tensor& index) {
  const int64_t k = index.numel();
  const int64_t* places = index.const_data_ptr<int64_t>();
  Tensor kept = at::empty({k, matrix.size(1)}, matrix.options());
  const size_t bytes = matrix.size(1) * matrix.element_size();
  const char* from = static_cast<const char*>(matrix.const_data_ptr());
  char* to = static_cast<char*>(kept.mutable_data_ptr());
  at::parallel_for(0, k, rows_at_once(matrix.size(1)), [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) std::memcpy(to + j * bytes, from + places[j] * bytes, bytes);
  });
  return kept;
}

// Rows at their places among zeros, those with the same place added up; the index ascends.
template <typename T>
Tensor spread_rows(const Tensor& kept, const Tensor& index, int64_t n) {
  const int64_t width = kept.size(1), k = index.numel();
  Tensor full = at::empty({n, width}, kept.options());
  const T* from = kept.const_data_ptr<T>();
  const int64_t* places = index.const_data_ptr<int64_t>();
  T* to = full.mutable_data_ptr<T>();
  at::parallel_for(0, n, rows_at_once(width), [&](int64_t first, int64_t last) {
    int64_t j = std::lower_bound(places, places + k, first) - places;
    for (int64_t i = first; i < last; ++i) {
      T* row = to + i * width;
      if (j == k || places[j] != i) {
        std::memset(row, 0, width * sizeof(T));
        continue;
      }
      std::memcpy(row, from + j * width, width * sizeof(T));
      for (++j; j < k && places[j] == i; ++j)
        for (int64_t c = 0; c < width; ++c) row[c] += from[j * width + c];
    }
  });
  return full;
}

// Columns [N, k] at their places among zeros, times their factors, those with the same place added up.
template <typename T>
Tensor spread_columns(const Tensor& kept, const Tensor& index, const Tensor& scale, int64_t n) {
  const int64_t rows = kept.size(0), k = index.numel();
  Tensor full = at::empty({rows, n}, kept.options());
  const T *from = kept.const_data_ptr<T>(), *factors = scale.defined() ? scale.const_data_ptr<T>() : nullptr;
  const int64_t* places = index.const_data_ptr<int64_t>();
  T* to = full.mutable_data_ptr<T>();
  using Passes = typename fxapprox::Passes<T>::Type;
  if constexpr (!std::is_void_v<Passes>) {
    if (fxapprox::ascends(places, k)) {
      const fxapprox::Lanes lanes = fxapprox::lanes(places, k, n);
      at::parallel_for(0, rows, rows_at_once(n), [&](int64_t first, int64_t last) {
        std::vector<T> scaled(factors ? k : 0);
        for (int64_t row = first; row < last; ++row) {
          for (size_t j = 0; j < scaled.size(); ++j) scaled[j] = factors[j] * from[row * k + j];
          fxapprox::spread_row(reinterpret_cast<const Passes*>(factors ? scaled.data() : from + row * k), lanes, n,
                               reinterpret_cast<Passes*>(to + row * n));
        }
      });
      return full;
    }
  }
  at::parallel_for(0, rows, rows_at_once(n), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      std::memset(to + row * n, 0, n * sizeof(T));  // a row at a time: it is still in the cache when it is filled
      for (int64_t j = 0; j < k; ++j)
        to[row * n + places[j]] += factors ? factors[j] * from[row * k + j] : from[row * k + j];
    }
  });
  return full;
}

// Whether the tiles serve: a short operand stays in the cache while rows go by. Others are gathered for BLAS.
template <typename T>
bool short_enough(int64_t count, int64_t width) {
  return count <= SHORT && count * width <= DIRECT && width >= 2 * fxapprox::Vectors<T>::LANES;
}

// left[:, index] · diag(scale) · rows[index, :] + bias, and what backward needs of both operands; of the right one
// nothing where it can be read again.
template <typename T>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& left, const Tensor& rows, const std::optional<Tensor>& bias,
                                  const Tensor& index, const Tensor& scale) {
  const int64_t count = left.size(0), width = rows.size(1);
  const bool direct = short_enough<T>(count, width);
  const Tensor kept = columns<T>(left, index, scale, direct);
  if (!direct) {
    const Tensor kept_rows = gathered(rows, index);
    return {bias ? at::addmm(*bias, kept, kept_rows) : at::mm(kept, kept_rows), kept, kept_rows};
  }
  Tensor result = at::empty({count, width}, left.options());
  fxapprox::forward<T>(kept.const_data_ptr<T>(), rows.const_data_ptr<T>(), bias ? bias->const_data_ptr<T>() : nullptr,
                       index.const_data_ptr<int64_t>(), index.numel(), count, width, result.mutable_data_ptr<T>());
  return {result, kept, Tensor()};
}

template <typename T>
Tensor grad_left(const Tensor& grad, const Tensor& rows, const Tensor& index, const Tensor& scale, int64_t n) {
  const int64_t count = grad.size(0), width = grad.size(1);
  if (!short_enough<T>(count, width)) return spread_columns<T>(at::mm(grad, rows.t()), index, scale, n);
  Tensor result = at::zeros({count, n}, grad.options());
  fxapprox::grad_left<T>(grad.const_data_ptr<T>(), rows.const_data_ptr<T>(), index.const_data_ptr<int64_t>(),
                         scale.defined() ? scale.const_data_ptr<T>() : nullptr, index.numel(), count, width, n,
                         result.mutable_data_ptr<T>());
  return result;
}

template <typename T>
Tensor grad_rows(const Tensor& grad, const Tensor& kept, const Tensor& index, int64_t n) {
  const int64_t count = grad.size(0), width = grad.size(1);
  if (!short_enough<T>(count, width)) return spread_rows<T>(at::mm(kept.t(), grad), index, n);
  Tensor result = at::empty({n, width}, grad.options());
  fxapprox::grad_rows<T>(kept.const_data_ptr<T>(), grad.const_data_ptr<T>(), index.const_data_ptr<int64_t>(),
                         index.numel(), count, width, n, result.mutable_data_ptr<T>());
  return result;
}

// first[index, :]ᵀ · diag(scale) · second[index, :] of first [N, p] and second [N, m]: [p, m].
template <typename T>
Tensor outer_of(const Tensor& first, const Tensor& second, const Tensor& index, const Tensor& scale) {
  const int64_t p = first.size(1), width = second.size(1), k = index.numel();
  const Tensor kept = gathered(second, index);
  Tensor factors = gathered(first, index);
  if (scale.defined()) factors.mul_(scale.unsqueeze(1));
  if (!short_enough<T>(k, width)) return at::mm(factors.t(), kept);
  factors = factors.t().contiguous();
  std::vector<int64_t> all(p);
  std::iota(all.begin(), all.end(), 0);
  Tensor result = at::empty({p, width}, second.options());
  fxapprox::grad_rows<T>(factors.const_data_ptr<T>(), kept.const_data_ptr<T>(), all.data(), p, k, width, p,
                         result.mutable_data_ptr<T>());
  return result;
}

struct Product : torch::autograd::Function<Product> {
  static Tensor forward(AutogradContext* ctx, const Tensor& left, const Tensor& right, const std::optional<Tensor>& bias,
                        const Tensor& index, const std::optional<Tensor>& scale, bool inner) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor factors = scale ? scale->view({-1}).to(left.scalar_type()) : Tensor();
    const int64_t width = right.size(inner ? 0 : 1);
    TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == width && bias->scalar_type() == left.scalar_type()),
                "the bias is to be a vector of ", width, " numbers of the operands' type");
    const std::optional<Tensor> row = bias ? std::make_optional(bias->contiguous()) : std::nullopt;
    Tensor result, kept, kept_rows;
    AT_DISPATCH_FLOATING_TYPES(left.scalar_type(), "product", [&] {
      std::tie(result, kept, kept_rows) = ::forward<scalar_t>(left, inner ? right.t() : right, row, index, factors);
    });
    const Tensor other = kept_rows.defined() ? kept_rows : right;
    ctx->saved_data["inner"] = inner;
    ctx->saved_data["whole"] = !kept_rows.defined();
    ctx->saved_data["pairs"] = left.size(1);
    ctx->save_for_backward({right.requires_grad() ? kept : Tensor(), left.requires_grad() ? other : Tensor(), index, factors});
    return result;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "gradients of gradients are not defined through a sampled product");
    const Tensor grad = gradients[0].contiguous();
    const variable_list saved = ctx->get_saved_variables();
    const bool inner = ctx->saved_data["inner"].toBool();
    const int64_t n = ctx->saved_data["pairs"].toInt();
    Tensor left, right, bias;
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "gradients", [&] {
      if (ctx->needs_input_grad(0)) {
        const Tensor rows = inner && ctx->saved_data["whole"].toBool() ? saved[1].t() : saved[1];
        left = grad_left<scalar_t>(grad, rows, saved[2], saved[3], n);
      }
      if (ctx->needs_input_grad(1)) {
        right = grad_rows<scalar_t>(grad, saved[0], saved[2], n);
        if (inner) right = right.t();
      }
    });
    if (ctx->needs_input_grad(2)) bias = grad.sum(0);
    return {left, right, bias, Tensor(), Tensor(), Tensor()};
  }
};

// left [N, n] · right [n, m] (+ bias [m]) through the pairs `index` [1, k], ascending and distinct, times `scale` [1, k].
// Contiguous matrices of one type; with `inner` the right one is the transpose of such.
Tensor product(const Tensor& left, const Tensor& right, const std::optional<Tensor>& bias, const Tensor& index,
               const std::optional<Tensor>& scale, bool inner) {
  return Product::apply(left, right, bias, index, scale, inner);
}

// The same without gradients.
Tensor through(const Tensor& left, const Tensor& rows, const Tensor& index, const std::optional<Tensor>& scale) {
  at::AutoDispatchBelowADInplaceOrView guard;
  const Tensor factors = scale ? scale->view({-1}).to(left.scalar_type()) : Tensor();
  Tensor result;
  AT_DISPATCH_FLOATING_TYPES(left.scalar_type(), "through", [&] {
    result = std::get<0>(forward<scalar_t>(left, rows, std::nullopt, index, factors));
  });
  return result;
}

// A weight's gradient from chosen rows of the batch, without gradients of its own.
Tensor outer(const Tensor& first, const Tensor& second, const Tensor& index, const std::optional<Tensor>& scale) {
  at::AutoDispatchBelowADInplaceOrView guard;
  const Tensor factors = scale ? scale->view({-1}).to(first.scalar_type()) : Tensor();
  Tensor result;
  AT_DISPATCH_FLOATING_TYPES(first.scalar_type(), "outer",
                             [&] { result = outer_of<scalar_t>(first, second, index, factors); });
  return result;
}

// Sums of squares of the columns of a matrix: [n], of bfloat16 in float32.
Tensor energies(const Tensor& matrix) {
  at::AutoDispatchBelowADInplaceOrView guard;
  Tensor result;
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, matrix.scalar_type(), "energies", [&] {
    using S = at::opmath_type<scalar_t>;
    result = at::empty({matrix.size(1)}, matrix.options().dtype(c10::CppTypeToScalarType<S>::value));
    column_energies(matrix.const_data_ptr<scalar_t>(), matrix.size(0), matrix.size(1), result.mutable_data_ptr<S>());
  });
  return result;
}

// Chosen columns [rows, k] of a matrix [rows, n]; the index is [k].
Tensor take(const Tensor& matrix, const Tensor& index) {
  at::AutoDispatchBelowADInplaceOrView guard;
  Tensor result;
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, matrix.scalar_type(), "take", [&] {
    result = columns<scalar_t>(matrix, index.contiguous(), Tensor(), false);
  });
  return result;
}

// Columns [rows, k] at their places among zeros [rows, n], those with the same place added up; the index is [k].
Tensor spread(const Tensor& kept, const Tensor& index, int64_t n) {
  at::AutoDispatchBelowADInplaceOrView guard;
  Tensor result;
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, kept.scalar_type(), "spread", [&] {
    result = spread_columns<scalar_t>(kept, index.contiguous(), Tensor(), n);
  });
  return result;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("scores", &scores);
  module.def("row_scores", &row_scores);
  module.def("through", &through);
  module.def("outer", &outer);
  module.def("energies", &energies);
  module.def("take", &take);
  module.def("spread", &spread);
  module.def("pack", &fxapprox::pack);
  module.def("unpack", [](const Tensor& bits, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
    return fxapprox::unpack(bits, shape, strides);
  });
  module.def("largest", &fxapprox::largest);
  module.def("inclusion", &fxapprox::inclusion);
  module.def("proportional", &fxapprox::proportional);
  module.def("independent", &fxapprox::independent);
  module.def("product", &product);
  module.def("own", &fxapprox::own);
}
