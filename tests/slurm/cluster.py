"""A real SLURM on this machine, for tests: a controller and node daemons on loopback.

Without systemd, cgroups, database or a file outside its folder; it needs root, and installs
Debian's packages where they are missing. Nodes are declared, not measured: memory and cores are
scheduled but not enforced. Only processes started here are ended.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

PACKAGES = ["slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge"]
PROGRAMS = ["slurmctld", "slurmd", "sbatch", "munged"]
CONF = """\
ClusterName=apm
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
SchedulerParameters=bf_interval=2,batch_sched_delay=0,sched_interval=2
MinJobAge=3600
SlurmdTimeout=10
KillWait=5
ReturnToService=2
"""


class Cluster:
    """Two nodes with a GPU each, which is a character device of this machine."""

    nodes = ("n1", "n2")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 20000 + os.getpid() % 2000 * 5  # two clusters on one machine do not meet
        self.daemons: dict[str, subprocess.Popen] = {}
        self.conf = folder / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}

    @staticmethod
    def why_not() -> str | None:
        """Why this machine cannot run one, if it cannot; installs what is missing."""
        if os.geteuid():
            return "a SLURM of its own needs root"
        try:
            address = socket.gethostbyname(socket.gethostname())
        except OSError:
            return "this machine's name has no address"
        if not address.startswith("127."):
            return f"this machine's name is {address}, and SLURM is to listen on loopback alone"
        if all(map(shutil.which, PROGRAMS)):
            return None
        if not shutil.which("apt-get"):
            return "SLURM is not installed, and there is no apt-get"
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        install = ["apt-get", "install", "-qq", "--no-install-recommends", *PACKAGES]
        for command in (["apt-get", "update", "-qq"], install):
            done = subprocess.run(command, env=quiet, capture_output=True, text=True)
            if done.returncode:
                return f"SLURM cannot be installed: {done.stderr.strip()[-200:]}"
        return None

    def __enter__(self) -> "Cluster":
        try:
            self._launch()
        except BaseException:
            self._end()
            raise
        return self

    def _launch(self) -> None:
        self._configure()
        key, sockets = self.folder / "munge.key", self.folder / "munge.socket"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        (self.folder / "munge").mkdir(exist_ok=True)
        own = [f"--pid-file={self.folder}/munge/pid", f"--seed-file={self.folder}/munge/seed"]
        self._start(
            "munged",
            "munged",
            "--force",
            "--foreground",
            f"--key-file={key}",
            f"--socket={sockets}",
            *own,
        )
        wait_for(sockets.exists, 10, "munge")
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        wait_for(self._idle, 60, "idle nodes")

    def __exit__(self, *_: object) -> None:
        try:
            if jobs := self.jobs():
                self.call("scancel", *jobs)
                wait_for(lambda: not self.jobs(), 30, "the end of the jobs")
        finally:
            self._end()

    def _end(self) -> None:
        for name in reversed(list(self.daemons)):
            self.stop(name, signal.SIGTERM)

    def _configure(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        host = socket.gethostname()
        lines = [CONF.format(host=host, port=self.port, folder=self.folder)]
        card = "/dev/tty0" if Path("/dev/tty0").exists() else "/dev/null"
        cards = []
        for number, node in enumerate(self.nodes, start=1):
            lines.append(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={self.port + number}"
                " CPUs=4 RealMemory=60000 Gres=gpu:1 State=UNKNOWN\n"
            )
            cards.append(f"NodeName={node} Name=gpu File={card}\n")
        lines.append(
            f"PartitionName=gpu Nodes={','.join(self.nodes)} Default=YES MaxTime=INFINITE\n"
        )
        self.conf.write_text("".join(lines))
        (self.folder / "gres.conf").write_text("".join(cards))
        for name in ("state", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir(exist_ok=True)
        # jobs lose every SLURM_* variable before they call srun
        bin_, srun = self.folder / "bin", shutil.which("srun") or "/usr/bin/srun"
        bin_.mkdir(exist_ok=True)
        wrapper = bin_ / "srun"
        wrapper.write_text(f"#!/bin/sh\nSLURM_CONF='{self.conf}' exec {srun} \"$@\"\n")
        wrapper.chmod(0o755)
        self.environment["PATH"] = f"{bin_}:{os.environ['PATH']}"

    def start_controller(self) -> None:
        """Start the controller, with what it knew before."""
        self._start("slurmctld", "slurmctld", "-D", "-f", str(self.conf))

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self._start(node, "slurmd", "-D", "-N", node, "-f", str(self.conf))

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )

    def stop(self, name: str, number: int = signal.SIGKILL) -> None:
        """End a daemon: munged, slurmctld, or that of a node."""
        process = self.daemons.pop(name)
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _idle(self) -> bool:
        states = self.call("sinfo", "-h", "-N", "-o", "%t", check=False).split()
        return len(states) == len(self.nodes) and set(states) <= {"idle", "mix", "alloc"}

    def call(self, *command: str, check: bool = True) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert not (check and done.returncode), f"{command}: {done.stderr}"
        return done.stdout

    def jobs(self, state: str = "all", name: str = "") -> list[str]:
        """Ids of the jobs in the queue: running, pending, or all that have not ended."""
        states = "running,pending,completing,configuring" if state == "all" else state
        rows = self.call("squeue", "-h", "-t", states, "-o", "%i %k", check=False).splitlines()
        return [row.split()[0] for row in rows if name in row]

    def shown(self, job: str) -> Mapping[str, str]:
        """The fields of a job."""
        words = self.call("scontrol", "-d", "-o", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


def wait_for(what: Callable[[], object], seconds: float, name: str) -> None:
    """Wait until `what()` is true; fails by name after `seconds`."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"{seconds:.0f} s passed without {name}"
        time.sleep(0.2)
