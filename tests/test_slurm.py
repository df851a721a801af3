"""A sweep on a real Slurm of one node, which the test starts and stops: nothing outside its folder is written."""

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from checkout import CHAPTER, TOY, Tree, toy_book

pytest_plugins = ["checkout"]
pytestmark = pytest.mark.slow

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])  # where daemons lie, not only for the administrator
# As README.md gives it, with a shorter first wait.
SLURM = (
    "--executor slurm --jobs 2 --default-resources mem_mb=1000 runtime=10"
    " --slurm-no-account --slurm-status-command squeue --slurm-init-seconds-before-status-checks 5"
)
CONFIGURATION = """
ClusterName=book
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000
PartitionName=main Nodes={host} Default=YES
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def configure(place: Path) -> Path:
    """A cluster of this one machine, of this user: its key, its folders, slurm.conf."""
    host = socket.gethostname().split(".")[0]
    settings = {"host": host, "controller": free_port(), "node": free_port(), "place": place}
    path = place / "slurm.conf"
    path.write_text(CONFIGURATION.format(user=psutil.Process().username(), **settings))
    (place / "munge.key").write_bytes(secrets.token_bytes(128))
    for name in ("state", "spool", "bin"):
        (place / name).mkdir()
    # A job's step is started without Slurm's variables, so srun would look for its configuration in the system's place.
    srun = place / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF="{path}" exec "{shutil.which("srun")}" "$@"\n')
    for file, mode in ((srun, 0o700), (place / "munge.key", 0o600)):
        file.chmod(mode)
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[dict[str, str]]:
    """A cluster that is up, as environment variables."""
    missing = [name for name in COMMANDS if not shutil.which(name, path=PATH)]
    missing += [name for name in ("snakemake_executor_plugin_slurm",) if not importlib.util.find_spec(name)]
    if missing:
        message = f"this test needs {', '.join(missing)}"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{message}; with CI=true that is a failure.", pytrace=False)
        pytest.skip(message)

    place = tmp_path_factory.mktemp("slurm")
    configuration = configure(place)
    environment = {"SLURM_CONF": str(configuration), "PATH": f"{place / 'bin'}{os.pathsep}{PATH}"}
    munge = [f"--{name}-file={place}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    own = {"env": {**os.environ, **environment}, "cwd": place}
    started = []

    def start(*command: str) -> None:
        with (place / f"{command[0]}.log").open("w") as log:
            started.append(psutil.Popen(command, stdout=log, stderr=log, start_new_session=True, **own))

    def states() -> str:
        return subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, **own).stdout

    try:
        start("munged", "--foreground", "--force", f"--socket={place}/munge.socket", *munge)
        start("slurmctld", "-D", "-f", str(configuration))
        start("slurmd", "-D", "-f", str(configuration), "-N", socket.gethostname().split(".")[0])
        deadline = time.monotonic() + 60
        while "idle" not in states():
            assert time.monotonic() < deadline, [log.read_text()[-1000:] for log in place.glob("*.log")]
            time.sleep(0.2)
        yield environment
    finally:
        for daemon in reversed(started):
            daemon.terminate()
        psutil.wait_procs(started, timeout=20)
        for process in psutil.process_iter():  # a daemon that hangs, and jobs of a test that failed
            with suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == str(configuration):
                    process.kill()
        for daemon in started:
            daemon.wait()


def swept(tree: Tree, cluster: dict[str, str], profile: str) -> tuple[int, str]:
    return tree.run(*tree.snakemake("sweep", "THREADS=1", "RETRIES=0", extra=SLURM, profile=profile), **cluster)


def test_a_cluster_gives_the_rows_that_this_machine_gives(built, cluster, tmp_path):
    tree = built.clone(tmp_path / "book")
    shutil.rmtree(tree.root / ".advbook" / "rows" / CHAPTER)
    status, output = swept(tree, cluster, "tiny")
    assert status == 0, output
    assert output.count("has been submitted with SLURM jobid") == 1
    assert tree.rows() == built.rows()


def test_points_are_jobs_and_one_that_fails_costs_no_other(fresh, cluster, tmp_path):
    tree = toy_book(fresh, tmp_path / "book", "[{N: [1, 2]}]")
    (tree.root / "broken-2").touch()
    status, output = swept(tree, cluster, "toy")
    assert status != 0
    assert output.count("has been submitted with SLURM jobid") == 2
    assert {row["about"]["n"] for row in tree.rows().values()} == {1}
    (log,) = tree.root.glob(f".snakemake/slurm_logs/rule_point_{TOY}_1/*.log")
    assert "advbook: point 2 is broken" in log.read_text()

    (tree.root / "broken-2").unlink()
    status, output = swept(tree, cluster, "toy")
    assert status == 0, output
    assert output.count("has been submitted with SLURM jobid") == 1
    lines = (tree.root / "computed").read_text().splitlines()
    assert sorted(int(line.split()[1]) for line in lines) == [1, 2]
