"""A real Slurm cluster on this machine: three nodes with two pretended GPUs each, preemption, and accounting if wanted.

Needs root and Debian's packages (`python tests/cluster/slurm_cluster.py install`), no systemd and no network. All of
it lives in one folder and on one block of ports. `python tests/cluster/slurm_cluster.py start FOLDER` starts one to
play with, `stop FOLDER` ends it; `export SLURM_CONF=FOLDER/etc/slurm.conf` makes Slurm's commands talk to it.
"""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PACKAGES = ["procps", "munge", "slurm-client", "slurmctld", "slurmd"]
PACKAGES += ["slurmdbd", "slurm-wlm-mysql-plugin", "mariadb-server-core", "mariadb-client-core"]
PACKAGES += ["charliecloud-runtime"]  # jobs in containers: image_folder.py
DAEMONS = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "sbatch", "srun")
NODES = ("n1", "n2", "n3")
DATABASE_PORT = 26833
_SAVES_S = 6
"""slurmctld saves its state within 5 s of a change."""


def why_not() -> str | None:
    """Return why no cluster can run here, or None."""
    missing = [name for name in DAEMONS if shutil.which(name) is None]
    if os.geteuid() != 0:
        return "a Slurm cluster of one's own needs root"
    if missing:
        return f"{', '.join(missing)} not found: python tests/cluster/slurm_cluster.py install (Debian)"
    return None


class SlurmCluster:
    """The cluster in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "etc/slurm.conf"
        self._database: subprocess.Popen[bytes] | None = None

    def start(self, *, accounting: bool = True, user_signal: bool = False) -> None:
        """Start all daemons and wait until the nodes are up.

        Args:
            accounting: run slurmdbd on MariaDB, so that sacct knows of jobs that squeue has forgotten; without it,
                squeue forgets after 2 s what it otherwise knows for a minute.
            user_signal: warn preempted jobs by USR2 (preempt_send_user_signal).
        """
        for name in ("etc", "munge", "log", "state", "spool", "run", "dev", "db"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._write(accounting=accounting, user_signal=user_signal)
        munge = self.folder / "munge"
        for folder in (self.folder, munge):
            folder.chmod(0o755)  # munged wants everybody to reach its socket
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
        self.command("munged", *(f"--{key}={munge / name}" for key, name in files.items()), f"--seed-file={munge}/seed")
        if accounting:
            self._start_accounting()
        self.command("slurmctld", "-i")
        for node in NODES:
            self.command("slurmd", "-N", node)
        wait(self._is_up, "the nodes")

    def stop(self) -> None:
        """End every job and daemon, and whatever a crash left behind."""
        subprocess.run(["scancel", "--signal=KILL", "--me"], env=self.environment(), capture_output=True, check=False)
        for process in self._processes("slurmstepd"):
            _kill(process)
        for name in ("slurmd", "slurmctld", "slurmdbd", "mariadbd", "munged"):
            for process in self._processes(name):
                process.kill()
        if self._database is not None:
            self._database.wait(20)

    def restart_controller(self, *, forgets: bool = False) -> None:
        """Start slurmctld again; it is killed first if it runs. One that `forgets` gives ids from 1 on again."""
        self.kill_controller()
        if forgets:
            shutil.rmtree(self.folder / "state")
            (self.folder / "state").mkdir()
        self.command("slurmctld", "-i")
        wait(self._is_up, "the controller")

    def reconfigure(self, *, user_signal: bool) -> None:
        """Warn preempted jobs by USR2, or no longer."""
        self._write(accounting=True, user_signal=user_signal)
        self.command("scontrol", "reconfigure")

    def kill_controller(self) -> None:
        """Kill slurmctld when it has saved what it knows: one that has lost a job's start gives out its node again."""
        time.sleep(_SAVES_S)
        for process in self._processes("slurmctld"):
            process.kill()
            process.wait(20)

    def crash(self, node: str, *, ghosts: bool = False) -> None:
        """Take a node away as a power cut does; with `ghosts`, only its daemon, so that its jobs run on unseen."""
        for process in self._processes("slurmd", f"-N {node}"):
            process.kill()
            process.wait(20)
        for process in [] if ghosts else self._processes("slurmstepd", f"slurmd-{node}.log"):
            _kill(process)

    def revive(self, node: str) -> None:
        self.command("slurmd", "-N", node)
        wait(self._is_up, node)

    def resume(self, node: str) -> None:
        """Have a node that was set down back; it may have come by itself, which Slurm takes for a mistake."""
        command = ["scontrol", "update", f"nodename={node}", "state=resume"]
        subprocess.run(command, env=self.environment(), capture_output=True, check=False)
        wait(self._is_up, node)

    def environment(self) -> dict[str, str]:
        return dict(os.environ) | {"SLURM_CONF": str(self.conf)}

    def command(self, *arguments: str) -> str:
        """Run a command of Slurm and return what it prints."""
        environment, log = self.environment(), self.folder / "log" / "commands.log"
        with log.open("ab") as errors:  # not a pipe: a daemon keeps its end open
            answer = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, stderr=errors, check=False)
        assert answer.returncode == 0, f"{arguments}: {log.read_text()[-500:]}"
        return answer.stdout.decode()

    def _is_up(self) -> bool:
        listed = self.command("sinfo", "-h", "-N", "-p", "low", "-o", "%N %T").split()
        return sum(word in ("idle", "allocated", "mixed") for word in listed) == len(NODES)  # no *: it has answered

    def _start_accounting(self) -> None:
        database = self.folder / "db/data"
        if not database.exists():
            install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={database}", "--force"]
            self.command(*install, "--skip-name-resolve", "--skip-test-db", "--auth-root-authentication-method=normal")
        first = self.folder / "db/first.sql"
        first.write_text(
            "CREATE DATABASE IF NOT EXISTS slurm_acct_db;\n"
            "CREATE USER IF NOT EXISTS 'slurm'@'%' IDENTIFIED BY 'slurm';\n"
            "GRANT ALL ON slurm_acct_db.* TO 'slurm'@'%';\n"
        )
        options = [f"--datadir={database}", f"--socket={self.folder}/db/sock", "--bind-address=127.0.0.1"]
        options += [f"--port={DATABASE_PORT}", f"--init-file={first}", "--skip-name-resolve", "--user=root"]
        options += ["--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0", "--performance-schema=0"]
        with (self.folder / "log/mariadb.log").open("ab") as log:
            command = ["mariadbd", "--no-defaults", *options]
            self._database = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        login = ["mariadb", "--no-defaults", "-uslurm", "-pslurm", "-h127.0.0.1", f"-P{DATABASE_PORT}"]
        wait(lambda: self._works(*login, "-e", "use slurm_acct_db"), "the database")
        self.command("slurmdbd")
        wait(lambda: self._works("sacctmgr", "-n", "list", "cluster"), "slurmdbd")
        if "contrails" not in self.command("sacctmgr", "-n", "list", "cluster", "format=cluster"):
            self.command("sacctmgr", "-iQ", "add", "cluster", "contrails")

    def _works(self, *arguments: str) -> bool:
        done = subprocess.run(arguments, env=self.environment(), capture_output=True, timeout=10, check=False)
        return done.returncode == 0

    def _processes(self, name: str, *words: str) -> list[psutil.Process]:
        """Return this cluster's processes of a name; `words` are looked for in their command lines and open files."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.name() == name and process.status() != psutil.STATUS_ZOMBIE:
                    about = f"{' '.join(process.cmdline())} {process.environ().get('SLURM_CONF')} "
                    about += " ".join(file.path for file in process.open_files())
                    if str(self.folder) in about and all(word in about for word in words):
                        found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def _write(self, *, accounting: bool, user_signal: bool) -> None:
        key = self.folder / "munge/munge.key"
        if not key.exists():
            key.write_bytes(os.urandom(1024))
            key.chmod(0o600)
        for number in (0, 1):  # gres.conf wants a character device: the twin of /dev/null
            device = self.folder / f"dev/nvidia{number}"
            if not device.exists():
                os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        etc = self.folder / "etc"
        store, age = ("slurmdbd", 60) if accounting else ("none", 2)
        # what is forgotten at once has only its own files to tell its end: on a busy machine they take a while
        kill = 4 if accounting else 60
        signals = "SlurmctldParameters=preempt_send_user_signal" if user_signal else ""
        host = socket.gethostname().split(".")[0]
        self.conf.write_text(
            CONF.format(host=host, folder=self.folder, store=store, signals=signals, age=age, kill=kill)
        )
        # slurmd looks for a cgroup plugin even where none is used, and only v1 starts without one mounted
        (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (etc / "gres.conf").write_text(f"AutoDetect=off\nNodeName=n[1-3] Name=gpu File={self.folder}/dev/nvidia[0-1]\n")
        database = etc / "slurmdbd.conf"
        database.write_text(DATABASE_CONF.format(folder=self.folder))
        database.chmod(0o600)


CONF = """\
ClusterName=contrails
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job is held back: 120 s elsewhere, not below 5
AuthInfo=socket={folder}/munge/munge.socket,cred_expire=6
SlurmctldPort=26817
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
SlurmdParameters=config_overrides
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{signals}
JobRequeue=1
ReturnToService=2
KillWait={kill}
MinJobAge={age}
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=10
MessageTimeout=10
GresTypes=gpu
DefMemPerCPU=800
NodeName=n[1-3] NodeHostname={host} NodeAddr=127.0.0.1 Port=[26851-26853] CPUs=4 RealMemory=8000 Gres=gpu:2
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 DefaultTime=5 MaxTime=1440
PartitionName=lowgrace Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 DefaultTime=5 MaxTime=1440
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF DefaultTime=5 MaxTime=1440
AccountingStorageType=accounting_storage/{store}
AccountingStorageHost=127.0.0.1
AccountingStoragePort=26819
# slurmdbd's connections do not take the socket from AuthInfo
AccountingStoragePass={folder}/munge/munge.socket
"""

DATABASE_CONF = """\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=26819
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.socket
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=26833
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""


def wait(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not come up"
        time.sleep(0.1)


def install() -> None:
    """Install Debian's packages, without starting the daemons that they bring."""
    policy = Path("/usr/sbin/policy-rc.d")
    made = not policy.exists()
    if made:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    environment = dict(os.environ) | {"DEBIAN_FRONTEND": "noninteractive"}
    quiet = ["-qq", "-o", "DPkg::Lock::Timeout=300"]
    try:
        subprocess.run(["apt-get", *quiet, "update"], check=True)
        options = ["-y", "--no-install-recommends"]
        subprocess.run(
            ["apt-get", *quiet, "install", *options, *PACKAGES], env=environment, stdout=subprocess.DEVNULL, check=True
        )
    finally:
        if made:
            policy.unlink()


def _kill(process: psutil.Process) -> None:
    """Kill a process and all below it."""
    try:
        tree = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for each in tree:
        try:
            each.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    if sys.argv[1] == "install":
        install()
    elif sys.argv[1] == "start":
        SlurmCluster(Path(sys.argv[2]).absolute()).start()
    else:
        SlurmCluster(Path(sys.argv[2]).absolute()).stop()
