"""Run in a fresh process in another folder: builds the emitted models and reports what they do.

Arguments: the folder of the emitted files, the file of what is expected, the file for the answer."""

import importlib
import json
import sys
from typing import Any

import torch


def flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [tensor for item in values for tensor in flat(item)]


def losses(model: torch.nn.Module, args: Any, kwargs: Any, steps: int) -> list[float]:
    """Losses of a few training steps that begin from the seed."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    torch.manual_seed(0)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.stack(
            [(out.double().tanh() - 0.5).square().mean() for out in flat(model(*args, **kwargs))]
        ).sum()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def verdict(module: Any, bag: dict[str, Any]) -> dict[str, Any]:
    model = module.build_model()
    model.load_state_dict(bag["state"], strict=True)
    emitted = model.state_dict()
    answer: dict[str, Any] = {"keys": list(emitted), "training": model.training}
    model.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = flat(model(*bag["args"], **bag["kwargs"]))
    answer["eval"] = max(
        float((a.double() - b.double()).abs().max()) for a, b in zip(outputs, bag["eval"], strict=True)
    )
    answer["losses"] = losses(model, bag["args"], bag["kwargs"], len(bag["losses"]))
    answer["no weights"] = list(module.build_model(weights=False).state_dict())
    return answer


def main() -> None:
    folder, expected, result = sys.argv[1:]
    torch.set_num_threads(1)
    sys.path.insert(0, folder)
    bags = torch.load(expected, weights_only=True)
    answers = {}
    for name, bag in bags.items():
        try:
            answers[name] = verdict(importlib.import_module(f"{name}_fast"), bag)
        except Exception as failure:
            answers[name] = {"error": f"{type(failure).__name__}: {failure}"}
    with open(result, "w") as file:
        json.dump(answers, file)


if __name__ == "__main__":
    main()
