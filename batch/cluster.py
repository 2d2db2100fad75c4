"""Workers on a Ray cluster: an actor for each GPU, or for each few CPUs, on whatever nodes there are."""

from __future__ import annotations

import logging
import os
import platform
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import TimeoutError as TaskTimeout
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

from ..dicom import Series, safe_name
from ..errors import DeepCACError, DeviceError
from ..pipeline.chain import provenance_of
from ..pipeline.places import RUN_FILE
from ..pipeline.run import Job
from ..pipeline.step import PHASES
from .local import LOADING_SECONDS, Outcome, WorkerLost
from .worker import Finished, Handed, NotBegun, Role, Worker, add_log_file, prepare_process

log = logging.getLogger(__name__)

CPUS_EACH = 4
"""CPUs of an actor; fewer where the nodes have fewer (see `ActorSize.of`)."""
_LOOK_SECONDS = 5.0
"""How often we look for nodes that joined."""
PATIENCE = 600.0
"""Seconds without a single actor, all nodes lost or busy, after which the run ends."""
HEAD_PATIENCE = 30.0
"""Seconds without an answer from the cluster's head after which the run ends; Ray kills the process at 60."""
_STARTS = 3
"""Times in a row that one actor may fail to start before the run ends."""
SETTLE_SECONDS = 60.0
"""A node may see what another one wrote only after so long: NFS keeps what it knows of a folder."""


@dataclass(frozen=True, kw_only=True)
class ActorSize:
    """What one actor takes of its node.

    Attributes:
        gpus: 1 or 0.
        cpus: Cores, which are also the threads of its computations; 0: whatever the node has.
    """

    gpus: int
    cpus: int

    @classmethod
    def of(cls, nodes: Iterable[Mapping[str, float]]) -> ActorSize:
        """As fits the nodes, given what each offers.

        With a GPU anywhere, every actor takes one; else `CPUS_EACH` cores, or what the largest node has.

        >>> ActorSize.of([{"CPU": 2}, {"CPU": 64, "GPU": 8}])
        ActorSize(gpus=1, cpus=4)
        >>> ActorSize.of([{"CPU": 2}, {"CPU": 3}])
        ActorSize(gpus=0, cpus=3)

        Raises:
            DeviceError: They offer neither.
        """
        nodes = list(nodes)
        each = [int(n.get("CPU", 0) // n["GPU"]) for n in nodes if n.get("GPU", 0) >= 1]
        if each:
            return cls(gpus=1, cpus=min(CPUS_EACH, *each))
        most = max((int(n.get("CPU", 0)) for n in nodes), default=0)
        if most < 1:
            raise DeviceError("the Ray cluster offers neither a GPU nor a CPU; start its workers first")
        return cls(gpus=0, cpus=min(CPUS_EACH, most))

    def fits(self, nodes: Iterable[Mapping[str, float]]) -> int:
        """How many of them the nodes can hold together.

        >>> ActorSize(gpus=0, cpus=4).fits([{"CPU": 2}, {"CPU": 9}])
        2
        """
        return sum(
            min(
                int(n.get(name, 0)) // take for name, take in (("GPU", self.gpus), ("CPU", self.cpus)) if take
            )
            for n in nodes
        )


class RayWorkers:
    """Actors on a Ray cluster, each with all phases and one series at a time; input and output are shared.

    Whatever ends an actor, or its node, costs the series it had, which `done` is told; another actor is
    started where there is room. Nodes that join later get actors, too.

    Args:
        job: What to do.
        address: Of a running cluster: ``host:port``, or ``auto`` on one of its nodes.
        most: Actors at most.
        timeout: Seconds a task may take before its actor is killed; None: any time.
        log_path: The run's log file, or None; each node writes another one beside it.

    Raises:
        DeviceError: Ray is not installed, no cluster answers, or it offers neither GPU nor CPU.
    """

    def __init__(
        self,
        job: Job,
        address: str,
        *,
        most: int | None = None,
        timeout: float | None = None,
        log_path: Path | None = None,
    ) -> None:
        self._ray = _connected(address)
        try:
            offers = _offers(self._ray.nodes())
            self._size = ActorSize.of(offers)
        except BaseException:
            self._ray.shutdown()
            raise
        self._most = most
        self._timeout = timeout
        self._role = Role(
            phases=PHASES,
            device="cuda" if self._size.gpus else "cpu",
            threads=self._size.cpus,
            scratch=Path(),
            log_path=log_path,
        )
        self._job = job
        self._tasks: SimpleQueue[tuple[Series | Path, Callable[[Outcome], None]] | None] = SimpleQueue()
        self._tell: Callable[[Outcome | str], None] = lambda outcome: None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._actors: set[Any] = set()
        self._placed = 0
        self._introduced = False
        self._threads: list[threading.Thread] = []
        self.names: tuple[str, ...] = ("all",)
        self.counts: tuple[int, ...] = (self._wanted(offers),)

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closing.set()
            actors, threads = list(self._actors), list(self._threads)
        for actor in actors:
            self._kill(actor)
        for _ in threads:
            self._tasks.put(None)
        until = time.monotonic() + 10
        for thread in threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))
        self._ray.shutdown()

    def ready(self, done: Callable[[Outcome | str], None]) -> None:
        """See `Workers.ready`; the device is told once, and later on whatever ends the run."""
        self._tell = done
        self._start_threads(self.counts[0])
        self._start(self._look_after)

    def halt(self) -> None:
        """See `Workers.halt`."""
        with suppress(Empty):
            while (given := self._tasks.get_nowait()) is not None:
                given[1](NotBegun())

    def submit(self, stage: int, task: Series | Path, done: Callable[[Outcome], None]) -> None:
        """See `Workers.submit`."""
        self._tasks.put((task, done))

    def _wanted(self, offers: Iterable[Mapping[str, float]]) -> int:
        fits = self._size.fits(offers)
        return max(1, fits if self._most is None else min(fits, self._most))

    def _start_threads(self, count: int) -> None:
        for _ in range(count):
            self._start(self._serve)

    def _start(self, target: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                target()
            except Exception as error:  # a thread that ends unnoticed would leave the run waiting
                log.exception("the Ray cluster cannot go on")
                self._give_up(_line(error))

        thread = threading.Thread(target=guarded, name="deepcac2-ray", daemon=True)
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _look_after(self) -> None:
        """What one thread does: start more actors where nodes joined, end the run where none is left."""
        here = self._ray.get_runtime_context()
        head, home = here.gcs_address, here.get_node_id()
        head_seen = placed = time.monotonic()
        while not self._closing.wait(_LOOK_SECONDS):
            now = time.monotonic()
            head_seen = now if _answers(head) else head_seen
            placed = now if self._placed else placed
            if now - head_seen > HEAD_PATIENCE:
                return self._give_up("its head is gone")
            if now - placed > PATIENCE:
                return self._give_up("all its nodes have been lost or busy for a long time")
            if now > head_seen:
                continue
            nodes = self._ray.nodes()
            if not any(n["Alive"] and n["NodeID"] == home for n in nodes):
                return self._give_up("the node on this machine is gone")
            wanted = self._wanted(_offers(nodes))
            if wanted > self.counts[0]:
                log.info("nodes joined the Ray cluster: %d workers now", wanted)
                self._start_threads(wanted - self.counts[0])
                self.counts = (wanted,)

    def _give_up(self, why: str) -> None:
        text = f"the Ray cluster cannot go on: {why}; the same command goes on where this one stopped"
        self._tell(DeviceError(text))

    def _serve(self) -> None:
        """What every other thread does: have an actor, give it series, replace it when it is gone."""
        failures = 0
        while (actor := self._new_actor()) is not None:
            problem = self._settled(actor)
            if problem is None:
                with self._count_placed():
                    problem = self._loaded(actor)
                    if problem is None:
                        self._feed(actor)
            self._kill(actor)
            with self._lock:
                self._actors.discard(actor)
            failures = 0 if problem is None else failures + 1
            if problem is None or self._closing.is_set():
                continue
            if failures == _STARTS and not isinstance(problem, DeepCACError):
                problem = DeviceError(
                    f"a Ray worker did not start: {_line(problem)}; see Ray's logs on its node"
                )
            if isinstance(problem, DeepCACError):
                self._tell(problem)
                return
            log.warning("a Ray worker did not start: %s", _line(problem))

    def _new_actor(self) -> Any | None:
        """Another actor, perhaps without a place yet; None at the end of the run."""
        made = self._ray.remote(_Actor).options(
            num_gpus=self._size.gpus, num_cpus=self._size.cpus, max_restarts=0, max_task_retries=0
        )
        with self._lock:
            if self._closing.is_set():
                return None
            actor = made.remote(self._job, self._role, str(Path.cwd()))
            self._actors.add(actor)
        return actor

    def _settled(self, actor: Any) -> BaseException | None:
        """Wait for its place, however long that takes; what went wrong, or None."""
        settled, _ = self._ask(None, actor.settle)
        return settled if isinstance(settled, BaseException) else None

    def _loaded(self, actor: Any) -> BaseException | None:
        """Wait for its models; what went wrong, or None."""
        device, _ = self._ask(LOADING_SECONDS, actor.warm_up)
        if isinstance(device, BaseException):
            return device
        with self._lock:
            first, self._introduced = not self._introduced, True
        if first:
            self._tell(f"{device}, one of {self.counts[0]} Ray workers")
        return None

    def _feed(self, actor: Any) -> None:
        """Give it series until it is gone or there are no more."""
        looked = False
        while (given := self._tasks.get()) is not None:
            task, done = given
            outcome, good = (None, True) if looked else self._look_for(actor, task)
            looked = True
            if outcome is None:
                outcome, good = self._ask(self._timeout, actor.work, task)
            done(outcome)
            if not good:
                return

    def _look_for(self, actor: Any, task: Series | Path) -> tuple[Outcome | None, bool]:
        """Whether its node has the input: one without it would fail every series it gets, and fast."""
        path = task if isinstance(task, Path) else next((s.path for s in task.slices), None)
        if path is None:
            return None, True
        seen, good = self._ask(self._timeout, actor.sees, path)
        if isinstance(seen, BaseException):
            return seen, good
        if seen or not path.exists():
            return None, good
        return DeviceError(
            f"a node of the Ray cluster does not see {path}; mount the input on all nodes"
        ), good

    def _ask(self, timeout: float | None, method: Any, *args: object) -> tuple[Any, bool]:
        """What a call of an actor came to, and whether the actor can go on."""
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        try:
            return self._ray.get(method.remote(*args), timeout=timeout), True
        except GetTimeoutError:
            return TaskTimeout(), False
        except RayTaskError as error:
            return error.cause if isinstance(error.cause, Exception) else error, True
        except RayError as error:
            return WorkerLost(_reason(error)), False
        except Exception as error:  # of this one task, whatever it is: the thread has others to do
            return error, False

    def _kill(self, actor: Any) -> None:
        with suppress(Exception):  # it may be dead, and its node with it
            self._ray.kill(actor, no_restart=True)

    @contextmanager
    def _count_placed(self) -> Iterator[None]:
        with self._lock:
            self._placed += 1
        try:
            yield
        finally:
            with self._lock:
                self._placed -= 1


class _Actor:
    """A worker in a process that Ray started on one of its nodes.

    Args:
        job, role: See `Worker`.
        folder: Where the run was started: relative paths begin there.
    """

    def __init__(self, job: Job, role: Role, folder: str) -> None:
        self._worker = Worker(job, role)
        self._folder = folder

    def settle(self) -> None:
        """Make the process a worker.

        Raises:
            DeviceError: This node sees other files, or works with another version, than the run.
            WeightsError: It has no such weights.
        """
        job, log_path, node = self._worker.job, self._worker.role.log_path, platform.node()
        with suppress(OSError):
            os.chdir(self._folder)
        prepare_process()
        if not _seen(job.output / RUN_FILE):
            raise DeviceError(
                f"node {node} of the Ray cluster does not see {job.output}; input and output must lie on a "
                "file system that all nodes share, under the same path"
            )
        here = provenance_of(job.workflow, job.allow)
        if different := sorted(k for k in here if here[k] != job.provenance[k]):
            raise DeviceError(
                f"node {node} of the Ray cluster differs in {', '.join(different)}; run the same image on all"
            )
        if log_path is not None:
            add_log_file(log_path.with_name(f"{log_path.stem}-{safe_name(node)}.log"))

    def sees(self, path: Path) -> bool:
        """Whether the file is there."""
        return path.exists()

    def warm_up(self) -> str:
        """See `Worker.warm_up`."""
        return self._worker.warm_up()

    def work(self, task: Series | Path) -> Handed | Finished:
        """See `Worker`."""
        return self._worker(task)


def _offers(nodes: Iterable[Mapping[str, Any]]) -> list[Mapping[str, float]]:
    """What each living node offers."""
    return [n["Resources"] for n in nodes if n["Alive"]]


def _seen(path: Path) -> bool:
    until = time.monotonic() + SETTLE_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(1)
    return True


def check_ray(address: str) -> None:
    """See that Ray is there, and that something answers at the address of the cluster.

    Raises:
        DeviceError: It is not, or the address is of another kind.
    """
    try:
        _imported()
    except ImportError as error:
        raise DeviceError(f"--ray {address}: needs Ray; .venv/bin/pip install -e '.[cluster]'") from error
    # Ray would start a cluster for "local"; ray:// is its client for programs outside the cluster.
    meant = (os.environ.get("RAY_ADDRESS") or address) if address == "auto" else address
    if meant == "auto":
        return
    if not re.fullmatch(r"[^/\s]+:\d+", meant):
        raise DeviceError(
            f"--ray {address}: {meant!r} is no host:port; run the command on a node of the Ray cluster with "
            "--ray auto or --ray HOST:6379"
        )
    if not _answers(meant):  # Ray itself would try for minutes
        raise DeviceError(f"--ray {address}: nothing answers at {meant}; is the cluster up?")


def _answers(address: str) -> bool:
    """Whether a server listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError):
        return False
    return True


def _imported() -> Any:
    """Ray, told to send no statistics and to start no cluster of its own; it takes this from nowhere else."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    import ray
    import ray._private.worker

    return ray


def _connected(address: str) -> Any:
    """Ray, connected to a running cluster; never to one that it starts itself.

    Raises:
        DeviceError: See `check_ray`; or no cluster answers.
    """
    check_ray(address)
    ray = _imported()
    # Ray prints what happens to workers on stdout, where --json-progress writes; `log_to_driver` is
    # about the workers' own output only.
    ray._private.worker._worker_logs_enabled = False
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # connection, version of Ray or of Python: all are RuntimeError or OSError
        ray.shutdown()
        raise DeviceError(f"--ray {address}: no Ray cluster can be used: {_line(error)}") from error
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray took it
    return ray


def _reason(error: Exception) -> str:
    """Ray's reason for the death of an actor in a few words; it writes pages."""
    from ray.exceptions import ActorUnavailableError

    text = str(error).strip()
    if isinstance(error, ActorUnavailableError):
        return "its node does not answer"
    if getattr(error, "actor_init_failed", False):  # ends with the exception
        return text.splitlines()[-1].strip()
    because = re.search(r"because (its? [^.\n]+)", text)
    return because[1] if because is not None else _line(error)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
