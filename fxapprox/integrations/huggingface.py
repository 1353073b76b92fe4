"""A Hugging Face TrainerCallback: sampled products in `trainer.train`, exact ones everywhere else."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import RequestError
from ..passes.batchnorm import moved
from ..planfile import write_whole
from ..run import load_run_state, run_state
from ._sampling import Following, check_batches, is_rewritten, reestimated_if_any, rewritten_with

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError("this callback needs transformers: pip install 'fxapprox[huggingface]'") from error


class FxApproxCallback(TrainerCallback):
    """Rewrites the Trainer's model when the Trainer is made, before there is an optimizer.

    >>> Trainer(model=model, callbacks=[FxApproxCallback(policy="topk", keep=0.5)], …)

    The model object that was given becomes the rewritten model: parameters taken from it before are not
    those that are trained.

    Args:
        inputs: example inputs, a tensor, a tuple, or a dict of keyword inputs. Default: the model's own
            `dummy_inputs`.
        batchnorm_batches: training batches by which batch norm is re-estimated before each evaluation
            during training; None for all, 0 for never.
        keys: as for `fxapprox.rewrite`: `policy`, `keep`, `scope`, `rules` …

    The run state goes into each checkpoint folder, and is taken up again by
    `train(resume_from_checkpoint=…)`. Raises RequestError where there are no example inputs, or the
    Trainer was given an optimizer already."""

    def __init__(self, *, inputs: Any = None, batchnorm_batches: int | None = None, **keys: Any) -> None:
        check_batches(batchnorm_batches)
        self._inputs, self._batches, self._keys = inputs, batchnorm_batches, keys
        self._following = Following()

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if model is None or is_rewritten(model):
            return
        if optimizer is not None:
            raise RequestError(
                "the Trainer was given an optimizer, which holds the parameters of the model as it was",
                remedy="rewrite the model first (fxapprox.rewrite), make the optimizer from the result",
            )
        inputs = getattr(model, "dummy_inputs", None) if self._inputs is None else self._inputs
        if inputs is None:
            raise RequestError(
                f"there are no example inputs for {type(model).__name__}",
                remedy='give them: FxApproxCallback(inputs={"input_ids": …}, …)',
            )
        if isinstance(inputs, Mapping):  # a tokenizer's batch would move itself
            inputs = dict(inputs)
        device = next((parameter.device for parameter in model.parameters()), None)
        _become(model, rewritten_with(model, moved(inputs, device), self._keys))

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        self._following.start(model, [optimizer] if optimizer is not None else [])
        path = _file(args, state)
        if state.global_step > 0 and path.exists():
            load_run_state(model, torch.load(path, weights_only=True))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._following.stop()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if control.should_evaluate and model is not None:
            # accelerate's own loader keeps count of the epoch while it is gone through
            loader = getattr(train_dataloader, "base_dataloader", train_dataloader)
            reestimated_if_any(model, loader, self._batches)

    on_epoch_end = on_step_end

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        path = _file(args, state)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(run_state(model), content)
        write_whole(path, content.getvalue())


def _file(args: TrainingArguments, state: TrainerState) -> Path:
    """Where this process keeps the run state of the checkpoint at the present step."""
    folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
    return folder / f"fxapprox_run_state_{args.process_index}.pt"


def _become(model: nn.Module, other: nn.Module) -> None:
    """Make `model` the same module as `other`: of its class, with its very attributes, so that what `other`
    refers to itself by (a bound method, a hook) is right for both."""
    model.__class__ = other.__class__
    object.__setattr__(model, "__dict__", other.__dict__)
