"""Backends beyond this machine: Ray and Slurm. Both run `nanoscale run FOLDER` and nothing else.

Run folders lie on a file system that all hosts share, so neither carries data, configs or results,
and either may die: leases say who trains what, and the next call goes on from the folders.
"""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from nanoscale.errors import INTERRUPTED, UserError, make_folder
from nanoscale.experiments.machine import Slot, thread_environment
from nanoscale.experiments.sbatch_options import quoted, read_sbatch_options, sbatch_lines
from nanoscale.experiments.worker import (
    GRACE_SECONDS,
    NANOSCALE,
    Exit,
    Worker,
    environment_of,
    open_process,
    whole_environment,
)
from nanoscale.model.launch import ELASTIC, LAUNCHER_VARIABLES
from nanoscale.processes import physical_cores
from nanoscale.spec.values import Json
from nanoscale.store.files import write_text
from nanoscale.store.folder import LOG

ASKED = ".asked"  # in a run folder: save or kill
PAUSES = (2.0, 5.0, 15.0, 30.0, 60.0, 120.0)  # before what was refused is submitted again


# -- what is started waits until it is taken -------------------------------------------------------
class Refused(UserError):
    """A cluster did not do what it was asked for, and may do it later."""


class Cluster:
    """Runs that were started and are not yet submitted, the same again where that was refused."""

    local = False

    def __init__(self) -> None:
        self._new: dict[Path, Slot] = {}  # started, not yet submitted
        self._refused = 0  # how often in a row
        self._again_at = 0.0
        self._dropped: list[Exit] = []  # of runs that were stopped before they were submitted

    def start(self, folder: Path, slot: Slot) -> None:
        self._new[folder] = slot

    def _submit(self, started: Mapping[Path, Slot]) -> None:
        """Give all that was started since the last look to the cluster; or raise `Refused`."""
        raise NotImplementedError

    def _submit_or_wait(self) -> None:
        """Submit what was started. A busy cluster refuses at times: the same again, later.

        One that had the job all the same starts a run twice; its lease lets one of them train.

        Raises:
            UserError: it cannot be submitted here, or was refused once more than there are pauses.
        """
        if not self._new or time.monotonic() < self._again_at:
            return
        try:
            self._submit(self._new)
        except Refused as e:
            if self._refused == len(PAUSES):
                raise
            pause = PAUSES[self._refused]
            self._refused += 1
            self._again_at = time.monotonic() + pause
            _warn(f"{e}; submitted again in {pause:g} s")
            return
        self._refused = 0
        self._new = {}

    def _drop(self, folders: Sequence[Path] | None) -> None:
        """Stop those that are not submitted yet, by default all."""
        for folder in list(self._new):
            if folders is None or folder in folders:
                del self._new[folder]
                self._dropped.append(Exit(folder, INTERRUPTED))

    def _exits(self) -> list[Exit]:
        """Of those that were stopped before they were submitted."""
        exits, self._dropped = self._dropped, []
        return exits

    def _forget(self) -> None:
        """Begin anew."""
        self._new = {}
        self._dropped = []
        self._refused = 0
        self._again_at = 0.0


# -- Ray ------------------------------------------------------------------------------------------
class Ray(Cluster):
    """Runs as tasks of Ray Core: on the cluster at `address` or RAY_ADDRESS, else one made here.

    A task only starts the run's process and waits. It is asked to end through a file in the run
    folder, as Ray's own cancelling does not reach every task that runs. What ran on a cluster that
    went away is submitted again: to the next one at that address.

    Raises:
        UserError: the address is no text.
    """

    def __init__(self, worker: Worker = NANOSCALE, address: Json = None) -> None:
        super().__init__()
        if address is not None and not isinstance(address, str):
            raise UserError(f"address={address!r}: expected a text, as in 'ray://host:10001'")
        self._worker = worker
        self._address = address
        self._needs: dict[str, int] = {}  # of every task
        self._running: dict[Any, Path] = {}  # by Ray's reference to the task
        self._ours = False  # whether we have begun the session, and so end it

    def slots(self, device: str, threads: int | None, workers: int | None) -> list[Slot]:
        """As many as the cluster's GPUs, or its CPUs over `threads`."""
        ray = self._ray()
        with self._refusals():
            have = ray.cluster_resources()
        kind, each = "CPU", threads or 1
        slot = Slot(thread_environment(each))
        if device.startswith("cuda") or (device == "auto" and have.get("GPU", 0) > 0):
            kind, each = "GPU", 1
            slot = Slot({})
        self._needs = {f"num_{kind.lower()}s": each}
        number = workers or max(1, int(have.get(kind, 0) // each))
        return [slot] * number

    def poll(self, timeout: float) -> list[Exit]:
        self._submit_or_wait()
        exits = self._exits()
        if not self._running:
            time.sleep(timeout)
            return exits
        try:
            ended = self._ended(timeout)
        except Refused as e:  # a run that goes on all the same keeps its lease, and is waited for
            _warn(f"{e}; what ran there is submitted again")
            lost = [Exit(folder, INTERRUPTED) for folder in self._running.values()]
            self._running.clear()
            return exits + lost

        for reference in ended:
            folder = self._running.pop(reference)
            exits.append(Exit(folder, self._code(reference)))
            (folder / ASKED).unlink(missing_ok=True)  # asked for when it had just ended
        return exits

    def stop(self, kill: bool = False, folders: Sequence[Path] | None = None) -> None:
        self._drop(folders)
        for reference, folder in self._running.items():
            if folders is None or folder in folders:
                write_text(folder / ASKED, "kill" if kill else "save")
                try:
                    with self._refusals():
                        package().cancel(reference)  # one that waits for its turn
                except Refused as e:  # what runs has been asked all the same
                    _warn(e)

    def close(self) -> None:
        if self._ours:
            package().shutdown()
        self._ours = False
        self._running.clear()
        self._forget()

    def _submit(self, started: Mapping[Path, Slot]) -> None:
        """One task for each."""
        ray = self._ray()
        task = ray.remote(run_in_task).options(max_retries=0, **self._needs)
        for folder, slot in list(started.items()):
            with self._refusals():
                reference = task.remote(
                    list(self._worker.command), str(folder), environment_of(slot)
                )
            self._running[reference] = folder
            del self._new[folder]

    def _ended(self, timeout: float) -> list[Any]:
        """The tasks that have ended, by reference."""
        ray = package()
        if not ray.is_initialized():
            raise Refused("ray: the cluster is gone")
        tasks = list(self._running)
        with self._refusals():
            ray.wait(tasks, timeout=timeout)
            ended, _ = ray.wait(tasks, num_returns=len(tasks), timeout=0)
        return list(ended)

    def _code(self, reference: object) -> int | None:
        """A task's exit code; 130 if it was cancelled, None if it or its host was lost."""
        ray = package()
        try:
            with self._refusals():
                return int(ray.get(reference))
        except Refused as e:
            cancelled = isinstance(e.__cause__, ray.exceptions.TaskCancelledError)
            return INTERRUPTED if cancelled else None

    def _ray(self) -> ModuleType:
        """The package, connected to the cluster.

        Raises:
            Refused: there is no cluster.
        """
        ray = package()
        if ray.is_initialized():
            return ray

        address = self._address or os.environ.get("RAY_ADDRESS")
        size = {} if address else {"num_cpus": len(physical_cores()), "include_dashboard": False}
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level="error",
                runtime_env={"env_vars": environment_of(Slot({}))},
                **size,
            )
        except (OSError, RuntimeError, ValueError) as e:
            raise Refused(f"backend='ray': no cluster at {address}: {_first_line(e)}") from e
        self._ours = True
        return ray

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Ray's errors, and those of the way to it, as `Refused`."""
        try:
            yield
        except (package().exceptions.RayError, OSError, RuntimeError) as e:
            raise Refused(f"ray: {_first_line(e)}") from e


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def package() -> ModuleType:
    """Ray, if it is here."""
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise UserError("backend='ray' needs ray: pip install 'nanoscale[ray]'") from None


def run_in_task(command: list[str], folder: str, env: dict[str, str]) -> int:
    """The body of a Ray task: the run's process, and a look ten times a second at what is asked."""
    asked = Path(folder, ASKED)
    asked.unlink(missing_ok=True)
    here = [sys.executable, *command[1:]]
    process = open_process(here, Path(folder), whole_environment(env), own_session=False)
    while process.poll() is None:
        try:
            time.sleep(0.1)
            if asked.exists():
                kill = asked.read_text(encoding="utf-8") == "kill"
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
#SBATCH --output={output}
{options}
folder=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {home}/{name}.folders)
unset {launcher} $(env | sed -n 's/=.*//; /^{elastic}/p')
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


@dataclass(frozen=True)
class ArrayTask:
    """One task of a job array: the folder it runs, and where it writes its exit code down."""

    folder: Path
    exit_file: Path


class Slurm(Cluster):
    """Runs as tasks of Slurm job arrays: what is started together is submitted together.

    A preempted run saves, is queued again by Slurm and goes on (a step, of srun, hears of that; a
    batch script alone does not). One whose time is up saves, and is submitted again. `options` are
    sbatch's, as in {"partition": "gpu", "gres": "gpu:1", "exclusive": True}; scripts and exit codes
    lie in `home`.

    Raises:
        UserError: an option is none of sbatch's, or one that the script itself has.
    """

    def __init__(
        self,
        worker: Worker = NANOSCALE,
        options: Mapping[str, Json] | None = None,
        home: str | Path = "experiments_out/slurm",
        most: int = 64,
    ) -> None:
        super().__init__()
        self._worker = worker
        self._options = read_sbatch_options(options or {})
        self._home = Path(home).absolute()
        self._most = most  # tasks at once, unless the study says how many
        self._running: dict[str, ArrayTask] = {}  # by Slurm's name of it, JOB_NUMBER
        self._seen = 0.0

    def slots(self, device: str, threads: int | None, workers: int | None) -> list[Slot]:
        """`workers` runs at once, queued or running; the cluster decides how many really run."""
        slot = Slot({})
        if threads:
            slot = Slot(thread_environment(threads))
            if not {"cpus-per-task", "c"} & set(self._options):
                self._options["cpus-per-task"] = str(threads)
        number = workers or self._most
        return [slot] * number

    def poll(self, timeout: float) -> list[Exit]:
        self._submit_or_wait()
        time.sleep(timeout)
        exits = self._exits()
        if not self._running or time.monotonic() - self._seen < SEEN_SECONDS:
            return exits
        self._seen = time.monotonic()

        alive = self._alive()
        for name, task in list(self._running.items()):
            if name not in alive:
                del self._running[name]
                exits.append(Exit(task.folder, exit_code_in(task.exit_file)))
        return exits

    def stop(self, kill: bool = False, folders: Sequence[Path] | None = None) -> None:
        self._drop(folders)
        chosen = []
        for name, task in self._running.items():
            if folders is None or task.folder in folders:
                chosen.append(name)
        if not chosen:
            return
        # the batch shell passes TERM on; one that waits in the queue is only cancelled
        how = ["--signal=KILL", "--full"] if kill else ["--signal=TERM", "--batch"]
        try:
            command("scancel", *how, *chosen)
            command("scancel", "--state=PENDING", *chosen)
        except UserError as e:  # they go on, and are waited for
            _warn(e)

    def close(self) -> None:
        self.stop(kill=True)
        self._running.clear()
        self._forget()

    def _submit(self, started: Mapping[Path, Slot]) -> None:
        """One array of all that was started since the last look."""
        name = f"nanoscale-{uuid.uuid4().hex[:12]}"
        make_folder(self._home)
        write_text(self._home / f"{name}.folders", "".join(f"{folder}\n" for folder in started))
        script = self._home / f"{name}.sh"
        write_text(script, self.script(name, len(started), next(iter(started.values()))))

        job = command("sbatch", "--parsable", str(script)).split(";")[0].strip()
        for number, folder in enumerate(started):
            exit_file = self._home / f"{name}.{number}.exit"
            self._running[f"{job}_{number}"] = ArrayTask(folder, exit_file)

    def script(self, name: str, tasks: int, slot: Slot) -> str:
        """What sbatch is given."""
        exports = [f"export {key}={shlex.quote(v)}" for key, v in environment_of(slot).items()]
        return JOB.format(
            last=tasks - 1,
            grace=int(GRACE_SECONDS + 30),
            home=shlex.quote(str(self._home)),
            name=name,
            log=LOG,
            command=shlex.join(self._worker.command),
            output=quoted(f"{self._home}/%A_%a.out"),
            options="\n".join(sbatch_lines(self._options)),
            launcher=" ".join(LAUNCHER_VARIABLES),
            elastic=ELASTIC,
            exports="\n".join(exports),
        )

    def _alive(self) -> set[str]:
        """Every task of ours that waits or runs, as `JOB_TASK`."""
        jobs = ",".join({name.split("_")[0] for name in self._running})
        try:
            table = command(
                "squeue",
                "--noheader",
                "--array",
                "--states=all",
                "--format=%F %K %T",
                f"--jobs={jobs}",
            )
        except UserError as e:
            if "Invalid job id" in str(e):  # all gone from Slurm's memory
                return set()
            _warn(e)  # never infer an end from a missed look
            return set(self._running)

        alive = set()
        for line in table.splitlines():
            if line.strip():
                job, number, state = line.split()[:3]
                if state not in ENDED_STATES:
                    alive.add(f"{job}_{number}")
        return alive


def exit_code_in(file: Path) -> int | None:
    """The exit code that a job wrote down; None if it could not any more."""
    try:
        code = int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return 128 - code if code > INTERRUPTED else code  # 128 + n: killed by signal n


def command(*words: str) -> str:
    """Standard output of one of Slurm's commands.

    Raises:
        Refused: it ended with an error, or did not answer.
        UserError: it is not here.
    """
    try:
        done = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=120)
    except FileNotFoundError:
        raise UserError(
            f"backend='slurm': there is no {words[0]} here; run this where Slurm's commands are"
        ) from None
    except subprocess.TimeoutExpired:
        raise Refused(f"{words[0]} did not answer within two minutes") from None
    if done.returncode:
        reason = done.stderr.strip() or f"exit code {done.returncode}"
        raise Refused(f"{words[0]}: {reason}")
    return done.stdout


def _warn(what: object) -> None:
    print(f"warning: {what}", file=sys.stderr)
