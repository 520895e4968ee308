"""What a network is trained to do."""

from eca_jax.tasks.base import Task as Task
from eca_jax.tasks.classification import Classification as Classification
from eca_jax.tasks.multi_label import MultiLabel as MultiLabel
from eca_jax.tasks.registry import TASKS as TASKS
