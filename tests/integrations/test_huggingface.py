"""The Hugging Face callback, in real trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

from fxapprox.errors import FxApproxError
from fxapprox.integrations.huggingface import FxApproxCallback
from fxapprox.passes.layers import Sampled

pytestmark = pytest.mark.filterwarnings("ignore")


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, hidden_dropout_prob=0.1,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def sentences() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 40, (16, 8), generator=generator)
    return [{"input_ids": row, "attention_mask": torch.ones(8).long(), "labels": row[0] % 2} for row in ids]


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    given = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 1e-2,
        "report_to": [], "use_cpu": True, "seed": 0, "disable_tqdm": True, "save_strategy": "no", **more,
    }  # fmt: skip
    return TrainingArguments(**given)


def test_train_trains_the_model_that_was_given(tmp_path: Path) -> None:
    model = bert()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = Trainer(
        model=model, args=arguments(tmp_path), train_dataset=sentences(),
        callbacks=[FxApproxCallback(policy="pps", keep=0.5)],
    )  # fmt: skip
    query = model.bert.encoder.layer[0].attention.self.query
    assert isinstance(query, Sampled)
    assert isinstance(query, nn.Linear)
    trainer.train()
    after = model.state_dict()
    assert list(after) == list(before)
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])
    other = bert()
    other.load_state_dict(after, strict=True)
    batch = {key: torch.stack([row[key] for row in sentences()]) for key in ("input_ids", "attention_mask")}
    torch.testing.assert_close(model.eval()(**batch).logits, other.eval()(**batch).logits)


def test_the_trained_model_saves_and_loads_as_pretrained(tmp_path: Path) -> None:
    model = bert()
    trainer = Trainer(
        model=model, args=arguments(tmp_path, max_steps=1), train_dataset=sentences(),
        callbacks=[FxApproxCallback(policy="topk")],
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert type(loaded) is BertForSequenceClassification
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    def run(resume: str | None = None) -> nn.Module:
        model = bert()
        trainer = Trainer(
            model=model, args=arguments(tmp_path, save_strategy="steps", save_steps=2),
            train_dataset=sentences(), callbacks=[FxApproxCallback(policy="pps", keep=0.5)],
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return model

    whole = run()
    resumed = run(str(tmp_path / "checkpoint-2"))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        logits = self.last(self.norm(self.first(pixels)).relu())
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


def points() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [{"pixels": torch.randn(6, generator=generator), "labels": i % 2} for i in range(16)]


def test_batch_norm_is_re_estimated_before_each_evaluation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Classifier()
    trainer = Trainer(
        model=model, args=arguments(tmp_path, eval_strategy="steps", eval_steps=4), train_dataset=points(),
        eval_dataset=points(),
        callbacks=[FxApproxCallback(policy="topk", inputs={"pixels": torch.randn(4, 6)})],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 4
    x = torch.stack([row["pixels"] for row in points()])
    exact = (x @ model.first.weight.t() + model.first.bias).mean(0)
    torch.testing.assert_close(model.norm.running_mean, exact, rtol=1e-4, atol=1e-5)


def test_no_example_inputs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FxApproxError, match="no example inputs for Classifier"):
        Trainer(model=Classifier(), args=arguments(tmp_path), callbacks=[FxApproxCallback(policy="topk")])


def test_an_optimizer_made_before_is_an_error(tmp_path: Path) -> None:
    model = bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(FxApproxError, match="was given an optimizer"):
        Trainer(
            model=model, args=arguments(tmp_path), optimizers=(optimizer, None),
            callbacks=[FxApproxCallback(policy="topk")],
        )  # fmt: skip
