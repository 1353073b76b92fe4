// A linear layer that is computed exactly, and whose gradients a function in Python draws and computes.

#pragma once

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/custom_class.h>
#include <ATen/ATen.h>

#include <optional>
#include <tuple>
#include <utility>

namespace fxapprox {

// What the backward pass calls, and with what draw. The graph is mostly let go of without the interpreter's lock.
struct Held : torch::CustomClassHolder {
  py::object gradients, draw;

  Held(py::object gradients, py::object draw) : gradients(std::move(gradients)), draw(std::move(draw)) {}

  ~Held() override {
    if (Py_IsInitialized()) {
      py::gil_scoped_acquire gil;
      gradients = draw = py::object();
    } else {  // too late to give anything back
      gradients.release();
      draw.release();
    }
  }
};

// In the backward pass gradients(grad, x or None, weight or None, whether the bias has one, draw) is called, which gives
// three gradients or None; an operand is None where the other one needs no gradient.
struct Own : torch::autograd::Function<Own> {
  using Tensor = at::Tensor;
  using Found = std::tuple<std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>>;

  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias, py::object gradients, py::object draw) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor(), x.requires_grad() ? weight : Tensor()});
    ctx->saved_data["held"] = at::IValue::make_capsule(c10::make_intrusive<Held>(std::move(gradients), std::move(draw)));
    ctx->saved_data["bias"] = bias.has_value();
    return at::linear(x, weight, bias);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor x = ctx->needs_input_grad(1) ? saved[0] : Tensor(), weight = ctx->needs_input_grad(0) ? saved[1] : Tensor();
    const bool of_vector = ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2);
    const auto held = c10::static_intrusive_pointer_cast<Held>(ctx->saved_data["held"].toCapsule());
    py::gil_scoped_acquire gil;
    try {
      const auto found = held->gradients(grads[0], given(x), given(weight), of_vector, held->draw);
      auto [of_x, of_weight, of_bias] = found.cast<Found>();
      return {of_x.value_or(Tensor()), of_weight.value_or(Tensor()), of_bias.value_or(Tensor()), Tensor(), Tensor()};
    } catch (py::error_already_set& error) {
      error.restore();
      python_error kept;  // torch's own way to carry an exception of Python's out of the backward pass
      kept.persist();
      throw std::move(kept);
    }
  }

 private:
  static py::object given(const Tensor& tensor) { return tensor.defined() ? py::cast(tensor) : py::none(); }
};

inline at::Tensor own(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                      py::object gradients, py::object draw) {
  return Own::apply(x, weight, bias, std::move(gradients), std::move(draw));
}

}  // namespace fxapprox
