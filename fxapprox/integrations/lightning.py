"""A Lightning callback: sampled products in `trainer.fit`, exact ones everywhere else."""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import nn

from ..errors import RequestError
from ..run import load_run_state, run_state
from ._sampling import Following, check_batches, is_rewritten, reestimated_if_any, rewritten_with

if importlib.util.find_spec("lightning") is not None:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer  # type: ignore[assignment]
    except ImportError as error:
        raise ImportError("this callback needs Lightning: pip install 'fxapprox[lightning]'") from error

CHECKPOINT_KEY = "fxapprox_run_state"


class FxApproxCallback(Callback):
    """Rewrites a child of the LightningModule before the optimizers are made.

    >>> Trainer(callbacks=[FxApproxCallback(child="net", policy="topk", keep=0.5)])

    Args:
        child: the attribute of the LightningModule that holds the model, dots allowed. Default: its only
            child with parameters.
        inputs: example inputs of that child, a tensor, a tuple, or a dict of keyword inputs. Default: the
            LightningModule's `example_input_array`.
        batchnorm_batches: training batches by which batch norm is re-estimated before each validation
            in `fit`; None for all, 0 for never. A checkpoint written after it holds these statistics.
        keys: as for `fxapprox.rewrite`: `policy`, `keep`, `scope`, `rules` …

    The run state goes into checkpoints: `fit(ckpt_path=…)` goes on to the bit. Raises RequestError where
    the child or its example inputs cannot be told."""

    def __init__(
        self,
        *,
        child: str | None = None,
        inputs: Any = None,
        batchnorm_batches: int | None = None,
        **keys: Any,
    ) -> None:
        check_batches(batchnorm_batches)
        self._child, self._inputs, self._keys = child, inputs, keys
        self._batches = batchnorm_batches
        self._following = Following()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return  # sampling is for training; everything else is exact as it is
        path = self._child or _only_child(pl_module)
        model = _model_at(pl_module, path)
        if is_rewritten(model):
            return  # fit called again
        inputs = pl_module.example_input_array if self._inputs is None else self._inputs
        if inputs is None:
            raise RequestError(
                f"there are no example inputs for {path!r}",
                remedy="give inputs=, or set example_input_array in the LightningModule",
            )
        owner, _, name = path.rpartition(".")
        setattr(pl_module.get_submodule(owner), name, rewritten_with(model, inputs, self._keys))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._following.start(self._model(pl_module), trainer.optimizers)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._following.stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            reestimated_if_any(self._model(pl_module), trainer.train_dataloader, self._batches)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[CHECKPOINT_KEY] = run_state(self._model(pl_module))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == "fit" and CHECKPOINT_KEY in checkpoint:
            load_run_state(self._model(pl_module), checkpoint[CHECKPOINT_KEY])

    def _model(self, pl_module: LightningModule) -> nn.Module:
        return _model_at(pl_module, self._child or _only_child(pl_module))


def _only_child(pl_module: LightningModule) -> str:
    children = [name for name, child in pl_module.named_children() if any(True for _ in child.parameters())]
    if len(children) == 1:
        return children[0]
    raise RequestError(
        f"{type(pl_module).__name__} has {len(children) or 'no'} children with parameters"
        + (f": {', '.join(children)}" if children else ""),
        remedy='name the one to rewrite: FxApproxCallback(child="…", …)',
    )


def _model_at(pl_module: LightningModule, path: str) -> nn.Module:
    try:
        return pl_module.get_submodule(path)
    except AttributeError as error:
        known = ", ".join(name for name, _ in pl_module.named_children())
        raise RequestError(
            f"{type(pl_module).__name__} has no child {path!r}", remedy=f"its children: {known or 'none'}"
        ) from error
