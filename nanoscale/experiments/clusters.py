"""Backends beyond this machine: Ray and Slurm. Both run `nanoscale run FOLDER` and nothing else.

Run folders lie on a file system that all hosts share, so neither carries data, configs or results,
and either may die: leases say who trains what, and the next call goes on from the folders.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanoscale.errors import INTERRUPTED, UserError, did_you_mean, disk_errors, one_of
from nanoscale.experiments import backends, machine
from nanoscale.experiments.backends import GRACE_SECONDS, Backend, Exit, Worker, worker_environment
from nanoscale.experiments.machine import Slot
from nanoscale.store.files import write_text
from nanoscale.store.folder import LOG

ASKED = ".asked"  # in a run folder: save or kill


# -- Ray ------------------------------------------------------------------------------------------
class Ray:
    """Runs as tasks of Ray Core: on the cluster at `address` or RAY_ADDRESS, else one made here.

    A task only starts the run's process and waits. It is asked to end through a file in the run
    folder, as Ray's own cancelling does not reach every task that runs.
    """

    local = False

    def __init__(self, worker: Worker | None = None, address: str | None = None) -> None:
        self._worker, self._address = worker or Worker(), address
        self._running: dict[Any, Path] = {}
        self._ours = False

    def slots(self, device: str, threads: int | None, workers: int | None) -> list[Slot]:
        """As many as the cluster's GPUs, or its CPUs over `threads`."""
        have = self._ray().cluster_resources()
        gpu = device.startswith("cuda") or (device == "auto" and have.get("GPU", 0) > 0)
        self._needs = {"num_gpus": 1} if gpu else {"num_cpus": threads or 1}
        count = int(have.get("GPU", 0) if gpu else have.get("CPU", 1) // (threads or 1))
        env = {} if gpu else machine.thread_environment(threads or 1)
        return [Slot(env)] * (workers or max(1, count))

    def start(self, folder: Path, slot: Slot) -> None:
        ray = self._ray()
        task = ray.remote(run_in_task).options(max_retries=0, **self._needs)
        env = {**slot.env, "PYTHONPATH": worker_environment(slot)["PYTHONPATH"]}
        self._running[task.remote(list(self._worker.command), str(folder), env)] = folder

    def poll(self, timeout: float) -> list[Exit]:
        if not self._running:
            time.sleep(timeout)
            return []
        ray = self._ray()
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
        more, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        gone = [Exit(self._running.pop(ref), self._code(ref)) for ref in {*ready, *more}]
        for one in gone:
            (one.folder / ASKED).unlink(missing_ok=True)  # asked for when it had just ended
        return gone

    def stop(self, kill: bool = False, folders: Sequence[Path] | None = None) -> None:
        for ref, folder in self._running.items():
            if folders is None or folder in folders:
                write_text(folder / ASKED, "kill" if kill else "save")
                self._ray().cancel(ref)  # one that waits for its turn

    def close(self) -> None:
        if self._ours:
            self._ray().shutdown()
        self._ours = False
        self._running.clear()

    def _code(self, ref: Any) -> int | None:
        """A task's exit code; 130 if it was cancelled, None if it or its host was lost."""
        ray = self._ray()
        try:
            return ray.get(ref)
        except ray.exceptions.TaskCancelledError:
            return INTERRUPTED
        except ray.exceptions.RayError:
            return None

    def _ray(self) -> Any:
        try:
            import ray
        except ImportError:
            raise UserError("backend='ray' needs ray: pip install 'nanoscale[ray]'") from None
        if not ray.is_initialized():
            address = self._address or os.environ.get("RAY_ADDRESS")
            size = {} if address else {"num_cpus": len(machine.cores()), "include_dashboard": False}
            paths = worker_environment(Slot({}))["PYTHONPATH"]
            try:
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level="error",
                    runtime_env={"env_vars": {"PYTHONPATH": paths}},
                    **size,
                )
            except (ConnectionError, RuntimeError) as e:
                raise UserError(f"backend='ray': no cluster at {address}: {e}") from e
            self._ours = True
        return ray


def run_in_task(command: list[str], folder: str, env: dict[str, str]) -> int:
    """The body of a Ray task: the run's process, and a look ten times a second at what is asked."""
    asked = Path(folder, ASKED)
    asked.unlink(missing_ok=True)
    with open(os.path.join(folder, LOG), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, *command[1:], folder],
            env=os.environ | env,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    while process.poll() is None:
        try:
            time.sleep(0.1)
            if asked.exists():
                kill = asked.read_text() == "kill"
                asked.unlink(missing_ok=True)
                process.kill() if kill else process.terminate()
        except KeyboardInterrupt:  # cancelled
            process.terminate()
    return process.returncode


# -- Slurm ----------------------------------------------------------------------------------------
JOB = """#!/bin/sh
#SBATCH --job-name=nanoscale
#SBATCH --array=0-{last}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@{grace}
#SBATCH --output={home}/%A_%a.out
{options}
folder=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {home}/{name}.folders)
{exports}
rm -f {home}/{name}.$SLURM_ARRAY_TASK_ID.exit
export SRUN_CPUS_PER_TASK=${{SLURM_CPUS_PER_TASK:-1}}
${{SLURM_JOB_ID:+srun --ntasks=1 --cpu-bind=none}} {command} "$folder" >> "$folder/{log}" 2>&1 &
run=$!
asked=
trap 'asked=1; kill -TERM $run' TERM
wait $run
code=$?
while [ "$asked" ]; do  # a signal ends a wait, not the run; 127: it has been waited for
    asked=
    wait $run
    again=$?
    [ $again -eq 127 ] || code=$again
done
echo $code > {home}/{name}.$SLURM_ARRAY_TASK_ID.exit
exit $code
"""
ENDED_STATES = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "TIMEOUT",
)
SEEN_SECONDS = 2.0  # between two looks at the queue


class Slurm:
    """Runs as tasks of Slurm job arrays: what is started together is submitted together.

    A preempted run saves, is queued again by Slurm and goes on (a step, of srun, hears of that; a
    batch script alone does not). One whose time is up saves, and is submitted again. `options` are
    sbatch's, as in {"partition": "gpu", "gres": "gpu:1"}.
    """

    local = False

    def __init__(
        self,
        worker: Worker | None = None,
        options: Mapping[str, str] | None = None,
        home: str | Path = "experiments_out/slurm",
        most: int = 64,
    ) -> None:
        self._worker, self._options = worker or Worker(), dict(options or {})
        self._home, self._most = Path(home).absolute(), most
        self._new: list[tuple[Path, Slot]] = []
        self._running: dict[tuple[str, str, int], Path] = {}  # (job id, array's name, task)
        self._seen = 0.0

    def slots(self, device: str, threads: int | None, workers: int | None) -> list[Slot]:
        """`workers` runs at once, queued or running; the cluster decides how many really run."""
        if threads and not {"cpus-per-task", "c"} & set(self._options):
            self._options["cpus-per-task"] = str(threads)
        env = {} if threads is None else machine.thread_environment(threads)
        return [Slot(env)] * (workers or self._most)

    def start(self, folder: Path, slot: Slot) -> None:
        self._new.append((folder, slot))

    def poll(self, timeout: float) -> list[Exit]:
        self._submit()
        time.sleep(timeout)
        if time.monotonic() - self._seen < SEEN_SECONDS:
            return []
        self._seen = time.monotonic()
        queued = self._queue()
        gone = [key for key in self._running if (key[0], key[2]) not in queued]
        return [Exit(self._running.pop(key), self._code(key)) for key in gone]

    def stop(self, kill: bool = False, folders: Sequence[Path] | None = None) -> None:
        self._new = [one for one in self._new if folders is not None and one[0] not in folders]
        chosen = [
            f"{job}_{task}"
            for (job, _, task), folder in self._running.items()
            if folders is None or folder in folders
        ]
        if chosen:  # the batch shell passes TERM on; one that waits in the queue is only cancelled
            command(
                "scancel",
                *(["--signal=KILL", "--full"] if kill else ["--signal=TERM", "--batch"]),
                *chosen,
            )
            command("scancel", "--state=PENDING", *chosen)

    def close(self) -> None:
        self.stop(kill=True)
        self._running.clear()
        self._new.clear()

    def _submit(self) -> None:
        """One array of all that was started since the last look."""
        if not self._new:
            return
        started, self._new = self._new, []
        name = f"nanoscale-{uuid.uuid4().hex[:12]}"
        with disk_errors(self._home):
            self._home.mkdir(parents=True, exist_ok=True)
        write_text(self._home / f"{name}.folders", "".join(f"{f}\n" for f, _ in started))
        script = self._home / f"{name}.sh"
        write_text(script, self.script(name, len(started), started[0][1]))
        job = command("sbatch", "--parsable", str(script)).split(";")[0].strip()
        for task, (folder, _) in enumerate(started):
            self._running[job, name, task] = folder

    def script(self, name: str, tasks: int, slot: Slot) -> str:
        """What sbatch is given."""
        env = {**slot.env, "PYTHONPATH": worker_environment(slot)["PYTHONPATH"]}
        return JOB.format(
            last=tasks - 1,
            grace=int(GRACE_SECONDS + 30),
            home=shlex.quote(str(self._home)),
            name=name,
            log=LOG,
            command=shlex.join(self._worker.command),
            options="\n".join(f"#SBATCH --{key}={value}" for key, value in self._options.items()),
            exports="\n".join(f"export {key}={shlex.quote(v)}" for key, v in env.items()),
        )

    def _queue(self) -> set[tuple[str, int]]:
        """(job id, task) of every task of ours that waits or runs."""
        jobs = ",".join({key[0] for key in self._running})
        if not jobs:
            return set()
        try:
            lines = command(
                "squeue",
                "--noheader",
                "--array",
                "--states=all",
                "--format=%F %K %T",
                f"--jobs={jobs}",
            ).splitlines()
        except UserError as e:
            if "Invalid job id" in str(e):  # all gone from Slurm's memory
                return set()
            print(f"warning: {e}", file=sys.stderr)  # never infer an end from a missed look
            return {(key[0], key[2]) for key in self._running}
        rows = [line.split() for line in lines if line.strip()]
        return {(row[0], int(row[1])) for row in rows if row[2] not in ENDED_STATES}

    def _code(self, key: tuple[str, str, int]) -> int | None:
        """The exit code that the job wrote down; None if it could not any more."""
        try:
            code = int((self._home / f"{key[1]}.{key[2]}.exit").read_text())
        except (OSError, ValueError):
            return None
        return 128 - code if code > INTERRUPTED else code  # 128 + n: killed by signal n


def command(*words: str) -> str:
    """Standard output of one of Slurm's commands; a UserError if it is not here or refuses."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise UserError(
            f"backend='slurm': there is no {words[0]} here; run this where Slurm's commands are"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{words[0]} did not answer within two minutes") from None
    if done.returncode:
        raise UserError(f"{words[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


# -- by name --------------------------------------------------------------------------------------
def backend_of(name: str | Backend, output_root: Path, options: Mapping[str, str]) -> Backend:
    """The backend of that name: local, subprocess, ray or slurm.

    `options`: sbatch's for slurm; address for ray.
    """
    if not isinstance(name, str):
        return name
    makers = {
        "local": backends.local_backend,
        "subprocess": backends.Subprocess,
        "ray": lambda: Ray(address=options.get("address")),
        "slurm": lambda: Slurm(options=options, home=output_root / "slurm"),
    }
    if name not in makers:
        raise UserError(f"backend={name!r}: choose {one_of(makers)}{did_you_mean(name, makers)}")
    return makers[name]()
