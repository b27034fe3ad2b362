"""Finds tasks by their names."""

from focal_twins.config.load import Config
from focal_twins.errors import UserError
from focal_twins.tasks.classification.task import Classification
from focal_twins.tasks.detection.task import Detection
from focal_twins.tasks.segmentation.task import Segmentation
from focal_twins.tasks.task import Task

TASKS: dict[str, type[Task]] = {task.name: task for task in (Classification, Segmentation, Detection)}


def create_task(config: Config) -> Task:
    """Return the task that a configuration is for."""
    return TASKS[config.task](config)


def task_of_run(config: dict) -> type[Task]:
    """Return the task of a run by its config.yaml; files of earlier versions, which name none, are classification's.

    Raises:
        UserError: this version does not know the task.
    """
    name = config.get("task", Classification.name)
    if name not in TASKS:
        raise UserError(f"task {name}: not known here; known: {', '.join(TASKS)}")
    return TASKS[name]
