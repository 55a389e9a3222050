"""A SLURM of one node on the loopback address, with daemons, ports and a folder of its own."""

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
PATH = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"
# A requeued job waits until its credentials expire: five seconds, the least that SLURM takes.
CONFIG = """
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=10
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=localhost NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=low Nodes=localhost Default=YES PriorityTier=1 GraceTime=60 MaxTime=60
PartitionName=high Nodes=localhost PriorityTier=2 PreemptMode=off MaxTime=60
"""


def missing_daemons() -> list[str]:
    """Return the daemons of SLURM that are not installed."""
    return [name for name in DAEMONS if shutil.which(name, path=PATH) is None]


class Cluster:
    """SLURM's commands, in the environment that leads to this cluster."""

    def __init__(self, config: Path):
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(config)}

    def ask(self, *words: str) -> str:
        """Run a command and return what it prints."""
        answer = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=60
        )
        return answer.stdout + answer.stderr

    def submit(self, *words: str) -> str:
        """Return the number of a new job."""
        answer = self.ask("sbatch", "--parsable", *words)
        assert answer.strip().isdecimal(), answer
        return answer.strip()

    def jobs(self) -> list[str]:
        """Return the numbers of the jobs that have not ended."""
        return self.ask("squeue", "--noheader", "--format=%i").split()


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Run a cluster inside, for jobs of 4 CPUs together; `high` preempts jobs of `low`."""
    # A short path: that of a socket may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="slurm") as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "state").mkdir()
        (folder / "spool").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        config, user = folder / "slurm.conf", getpass.getuser()
        config.write_text(CONFIG.format(ports=free_ports(2), user=user, folder=folder))
        here = Cluster(config)
        munge = [f"--{one}-file={folder}/munge.{one}" for one in ("key", "log", "pid", "seed")]
        munge += [f"--socket={folder}/munge.socket", "--foreground", "--force"]
        node = ["slurmd", "-D", "-N", "localhost"]
        for words in (["munged", *munge], ["slurmctld", "-D", "-i"], node):
            log = stack.enter_context((folder / f"{words[0]}.out").open("w"))
            words = ["setpriv", "--pdeathsig=TERM", *words]  # also where the tests are killed
            daemon = subprocess.Popen(words, env=here.environment, stdout=log, stderr=log)
            stack.callback(end_of, daemon)
        end = time.monotonic() + 30
        while "idle" not in (answer := here.ask("sinfo", "--noheader", "--format=%T")):
            logs = "".join(file.read_text() for file in folder.glob("*.out"))
            assert time.monotonic() < end, f"SLURM does not start: {answer} {logs}"
            time.sleep(0.2)
        try:
            yield here
        finally:
            here.ask("scancel", f"--user={user}")
            end = time.monotonic() + 30
            while here.jobs() and time.monotonic() < end:
                time.sleep(0.2)


def end_of(daemon: subprocess.Popen) -> None:
    """End a daemon, by force where it does not hear."""
    daemon.terminate()
    try:
        daemon.wait(20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def free_ports(number: int) -> list[int]:
    """Return ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
