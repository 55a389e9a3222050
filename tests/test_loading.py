"""The data modules of all tasks share one base."""

import pytest
from lightning.pytorch import LightningDataModule

from attention_vision import classification, detection, generation
from attention_vision.data.loading import TaskData
from attention_vision.errors import InputError

TASKS = (classification, detection, generation)  # imported, so that their classes exist


def subclasses(kind: type) -> set[type]:
    """All subclasses that the package defines, over any number of generations."""
    below = {one for one in kind.__subclasses__() if one.__module__.startswith("attention_vision")}
    return below.union(*map(subclasses, below))


def test_all_data_derives_from_the_one_base():
    found = subclasses(LightningDataModule)
    assert found == {TaskData} | subclasses(TaskData)
    exported = {getattr(task, name) for task in TASKS for name in task.__all__}
    assert exported & found <= subclasses(TaskData)
    assert len(found) > 20


@pytest.mark.parametrize("name", ["num_classes", "order_seed", "test_dataloader"])
def test_what_the_base_settles_is_settled_once(name):
    assert [kind for kind in subclasses(TaskData) if name in vars(kind)] == []


def test_nonsense_is_refused_for_all_tasks():
    with pytest.raises(InputError, match=r"batch_size is 0: it has to be"):
        TaskData(0, 0, None)
    with pytest.raises(InputError, match=r"num_workers is -1: it has to be"):
        TaskData(1, -1, None)
    with pytest.raises(InputError, match=r"nothing to predict: set data.images"):
        TaskData(1, 0, None).setup("predict")
