"""Tasks by name: a run stores a task as its name and its fields."""

from typing import Any

from eca_jax.errors import EcaJaxError
from eca_jax.plain import from_plain, to_plain
from eca_jax.plugins import Registry
from eca_jax.tasks.base import Task
from eca_jax.tasks.classification import Classification
from eca_jax.tasks.multi_label import MultiLabel

REQUIRED = ("train_example", "eval_example", "padding", "abstract_batch", "loss", "evaluate", "describe", "predict")
REQUIRED += ("describe_prediction",)
"""The methods that a task has to define."""


def task_fault(name: str, task: type[Task]) -> str | None:
    """What is wrong with a task that is to be registered."""
    if not (isinstance(task, type) and issubclass(task, Task)):
        return f"expected a subclass of Task, got {task!r}"
    if vars(task).get("name") != name:
        return f"its class says `name: ClassVar[str] = {vars(task).get('name')!r}`; expected {name!r}"
    if not isinstance(getattr(task, "best", None), str):
        return "its class does not say which score is the `best`"
    missing = [method for method in REQUIRED if getattr(task, method) is getattr(Task, method)]
    if "predict" in missing and hasattr(task, "predictor"):  # of eca_jax 0.2
        return "its method `predictor` has become two, `predict_example(data)` and `predict(model, batch)`"
    return f"it does not define {', '.join(missing)}" if missing else None


TASKS: Registry[type[Task]] = Registry("task", {task.name: task for task in (Classification, MultiLabel)}, task_fault)


def task_class(name: str) -> type[Task]:
    """The class of a task.

    Raises:
      EcaJaxError: nobody has registered it; the nearest are named.
    """
    if name not in TASKS:
        raise TASKS.unknown(name)
    return TASKS[name]


def task_from_dict(values: dict[str, Any]) -> Task:
    """The inverse of `Task.to_dict`.

    Raises:
      EcaJaxError: an unknown task, or a field that it does not have or of another type.
    """
    fields = {key: value for key, value in values.items() if key != "name"}
    name = from_plain(values["name"], str, "config: task.name")
    task = from_plain(fields, task_class(name), "config: task")
    unknown = sorted(fields.keys() - to_plain(task).keys())
    if unknown:
        raise EcaJaxError(f"config: the task {name!r} has no fields {', '.join(unknown)}")
    return task
