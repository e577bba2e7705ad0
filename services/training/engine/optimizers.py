"""torch's optimisers, without the 1.3 s that they take to load torch._dynamo for a compilation that does not happen here."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer

from services.training.engine.spec import Training


def make_optimizer(training: Training, parameters: Iterable[Parameter]) -> Optimizer:
    """The optimiser that the spec names, over `parameters`."""
    skip_dynamo()
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "lbfgs":
        # No tolerance on change: the loop itself stops when an epoch brings nothing, and precision is what this one is chosen for.
        tolerances = {"tolerance_grad": 1e-14, "tolerance_change": 0.0}
        return LBFGS(parameters, lr=rate, max_iter=20, history_size=20, line_search_fn="strong_wolfe", **tolerances)
    kind: Any = {"sgd": SGD, "adam": Adam, "adamw": AdamW}[training.optimizer]
    extra = {"momentum": 0.9} if kind is SGD else {}
    return _lean(kind)(parameters, lr=rate, weight_decay=decay, fused=True, **extra)


def skip_dynamo() -> None:
    """Marks torch's wrapped methods as already excluded from compilation. Where torch has changed, nothing is skipped or broken."""
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        wrapped = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if wrapped is not None:
            wrapped.__dynamo_disable = wrapped


def _lean(kind: Any) -> Any:
    step = getattr(kind.step, "__wrapped__", None)
    return type(kind.__name__, (kind,), {"step": torch.no_grad()(step)}) if step else kind
