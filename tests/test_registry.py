"""What is registered under a name is looked at then, not where it is used."""

import pytest

from eca_jax.data.records import SOURCES
from eca_jax.models.registry import MODELS, register_backbone
from eca_jax.nn.attention import ATTENTIONS
from eca_jax.tasks import TASKS, Classification
from eca_jax.tasks.registry import task_from_dict
from tests.damage import refusal
from tests.tiny import Tiny, brought_from_outside


@pytest.mark.parametrize(
    ("registry", "name", "entry", "message"),
    [
        (MODELS, "mine", 3, "the model 'mine': expected (backbone, AttentionConfig), got 3"),
        (ATTENTIONS, "mine", 3, "the attention 'mine': expected an Attention, got 3"),
        (SOURCES, "mine", 3, "the data source 'mine': expected a function, got 3"),
        (TASKS, "mine", int, "the task 'mine': expected a subclass of Task, got <class 'int'>"),
        (TASKS, "mine", Classification, "its class says `name: ClassVar[str] = 'classification'`; expected 'mine'"),
        (TASKS, 5, Classification, "the task 5: expected a name, text, that is not empty"),
        (MODELS, "", ("resnet18", None), "the model '': expected a name, text, that is not empty"),
    ],
)
def test_an_entry_of_another_kind_is_refused(registry, name, entry, message):
    with brought_from_outside():
        said = refusal(registry.register, name, entry)
        assert name not in registry
    assert said.startswith("plugin tests.damage: ")
    assert message in said


def test_a_backbone_is_something_that_makes_one():
    with brought_from_outside():
        assert refusal(register_backbone, "mine", 3).startswith("the backbone 'mine': expected a class or a function")
        register_backbone("mine", Tiny)
        assert {"mine", "eca_mine", "se_mine"} < set(MODELS)


def test_the_name_of_a_saved_task_is_text():
    assert refusal(task_from_dict, {"name": 5}) == "config: task.name: Expected `str`, got `int`"
