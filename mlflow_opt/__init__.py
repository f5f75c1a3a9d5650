from mlflow_opt.gate import judge
from mlflow_opt.records import Binding, Criterion, Measurement, Outcome, Policy, Quantity, Reason, Task, Variant, Verdict

__all__ = ["Binding", "Criterion", "Measurement", "Outcome", "Policy", "Quantity", "Reason", "Task", "Variant", "Verdict", "judge"]
