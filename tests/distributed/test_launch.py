"""What launchers tell a process, and what is said of launches that cannot work."""

import os

import pytest

from focal_twins.distributed import launch
from focal_twins.distributed.launch import Launch, check_device_num, command_again, launched, mpirun_variables
from focal_twins.errors import UserError

MPIRUN = {"OMPI_COMM_WORLD_SIZE": "16", "OMPI_COMM_WORLD_RANK": "9", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
          "OMPI_COMM_WORLD_LOCAL_SIZE": "8"}  # fmt: skip
MSRUN = {"MS_WORKER_NUM": "4", "RANK_ID": "3", "DEVICE_ID": "3", "MS_ROLE": "MS_WORKER", "MS_SCHED_HOST": "127.0.0.1",
         "MS_SCHED_PORT": "8118", "RANK_SIZE": "4"}  # fmt: skip
RANK_TABLE = {"RANK_TABLE_FILE": "table.json", "RANK_SIZE": "16", "RANK_ID": "9", "DEVICE_ID": "1"}


@pytest.fixture
def environment(monkeypatch):
    """environment(variables) is all that launchers say."""

    def use(variables):
        for name in list(os.environ):
            if name.startswith(("OMPI_", "MS_", "RANK_", "PRTE_", "DEVICE_ID")):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return use


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Launch()),
        (MPIRUN, Launch("mpirun", 16, 9, 1, 8)),
        (MPIRUN | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, Launch()),
        (MSRUN, Launch("msrun", 4, 3, 3, 4)),
        (RANK_TABLE, Launch("rank table", 16, 9, 1, 8)),
        ({"MS_ROLE": "MS_SCHED", "MS_WORKER_NUM": "4"}, Launch("msrun", 4)),
    ],
)
def test_each_launcher_is_understood(environment, variables, expected):
    environment(variables)
    assert launched() == expected


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK"),
        (MPIRUN | {"OMPI_COMM_WORLD_RANK": "16"}, "OMPI_COMM_WORLD_RANK is 16"),
        (MPIRUN | {"OMPI_COMM_WORLD_SIZE": "two"}, "OMPI_COMM_WORLD_SIZE is 'two'"),
        ({name: value for name, value in MSRUN.items() if name != "MS_SCHED_PORT"}, "MS_SCHED_PORT"),
        ({name: value for name, value in MSRUN.items() if name != "RANK_ID"}, "RANK_ID"),
        ({name: value for name, value in RANK_TABLE.items() if name != "RANK_TABLE_FILE"}, "RANK_TABLE_FILE"),
    ],
)
def test_a_broken_launch_names_the_variable(environment, variables, named):
    environment(variables)
    with pytest.raises(UserError, match=named):
        launched()


def test_the_command_that_is_missing_is_printed_with_the_variables_that_are(environment, monkeypatch):
    environment({"OMPI_ALLOW_RUN_AS_ROOT": "1"})
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(launch, "cores", lambda: 4)
    with pytest.raises(UserError) as refusal:
        check_device_num(8, "train.py", ["--config", "X", "model.depths=[1, 1]"])
    command = str(refusal.value).split("start them with: ")[1]
    assert command == (
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 "
        "PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe "
        "mpirun -n 8 python train.py --config X 'model.depths=[1, 1]'"
    )
    with pytest.raises(UserError, match="mpirun -n 2 focal-twins train --config X"):
        check_device_num(2, "focal-twins train", ["--config", "X"])


def test_a_user_with_enough_cores_needs_no_variables(environment, monkeypatch):
    environment({})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(launch, "cores", lambda: 8)
    assert mpirun_variables(8) == []
    assert len(mpirun_variables(9)) == 2


def test_the_command_that_goes_on_is_the_one_that_was_typed(environment, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--config", "a b.yaml", "train.resume=false", "train.epochs=3"])
    again = "train.py --config 'a b.yaml' train.epochs=3 train.resume=auto"
    environment({})
    assert command_again("train.resume=auto") == f"python {again}"
    environment(MPIRUN)
    assert command_again("train.resume=auto") == f"mpirun -n 16 python {again}"

    class Parent:
        def cmdline(self):
            return ["/bin/python", "/bin/msrun", "--worker_num=4", "--join=True", *launch.sys.argv]

    monkeypatch.setattr("psutil.Process", lambda _: Parent())
    environment(MSRUN)
    assert command_again("train.resume=auto") == f"msrun --worker_num=4 --join=True {again}"


def test_another_number_of_devices_than_launched_is_refused(environment):
    environment(MPIRUN)
    check_device_num(16, "train.py", [])
    check_device_num(None, "train.py", [])
    with pytest.raises(UserError, match="--device_num 8 differs from the 16 processes"):
        check_device_num(8, "train.py", [])
