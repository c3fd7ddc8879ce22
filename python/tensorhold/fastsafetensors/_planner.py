"""What loads within a budget raise. They are planned below Python."""

from tensorhold import _core


class BudgetInfeasibleError(ValueError):
    """Not even one tensor at a time, with nothing read ahead, fits the budget."""


def infeasible(error: _core.Error) -> "BudgetInfeasibleError | None":
    """The same as fastsafetensors' class, if that is what the error says."""
    text = str(error)
    return BudgetInfeasibleError(text) if "already fully serial" in text else None
