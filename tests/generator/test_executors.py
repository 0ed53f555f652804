"""Tasks in processes and on Dask give what they give in this process; what crashes or hangs loses only its own call."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from ase_hvae.errors import ConfigError
from ase_hvae.executors import LocalExecutor, Lost, ProcessExecutor, check_executor, count_workers, open_executor


class Task:
    """Object with methods to call."""

    def __init__(self, factor=1):
        self.factor = factor

    def scale(self, value):
        """Value times factor."""
        return self.factor * value

    def fail(self, value):
        """A bug."""
        raise ZeroDivisionError(value)

    def process(self, value):
        """The number of the process."""
        return os.getpid()

    def break_at_three(self, value):
        """A segmentation fault in a library."""
        if value == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        return value

    def hang_at_three(self, value):
        """An endless loop."""
        while value == 3:
            time.sleep(0.01)
        return value


MAKE = functools.partial(Task, 3)


@pytest.fixture(scope="module")
def dask():
    with open_executor("dask", MAKE, 2) as executor:
        yield executor


def executors(request):
    if request == "local":
        return LocalExecutor(Task(3))
    return ProcessExecutor(MAKE, 2, time_limit=2.0)


@pytest.mark.parametrize("name", ["local", "processes"])
def test_map(name):
    with executors(name) as executor:
        check_map(executor)


def test_map_on_dask(dask):
    check_map(dask)


def check_map(executor):
    expected = [(number, 3 * number) for number in range(7)]
    assert list(executor.map("scale", range(7), ordered=True)) == expected
    assert sorted(executor.map("scale", range(7))) == expected
    with pytest.raises(ZeroDivisionError):
        list(executor.map("fail", [1]))


def test_a_crash_or_an_endless_loop_loses_one_call():
    with executors("processes") as executor:
        for task, words in (("break_at_three", r"signal 11 \(SIGSEGV\)"), ("hang_at_three", "no result after 2 s")):
            results = dict(executor.map(task, range(6)))
            assert [results[number] for number in (0, 1, 2, 4, 5)] == [0, 1, 2, 4, 5]
            assert isinstance(results[3], Lost)
            with pytest.raises(AssertionError, match=words):
                raise AssertionError(results[3].reason)
        assert dict(executor.map("scale", [5])) == {5: 15}


@pytest.mark.parametrize("n_killed", [1, 2])
def test_workers_that_are_killed_while_idle_are_replaced(n_killed):
    with executors("processes") as executor:
        workers = {pid for _, pid in executor.map("process", range(40))}
        for pid in sorted(workers)[:n_killed]:
            os.kill(pid, signal.SIGKILL)
        time.sleep(1.0)
        assert dict(executor.map("scale", range(6))) == {number: 3 * number for number in range(6)}
        os.kill(next(pid for _, pid in executor.map("process", [0])), signal.SIGKILL)
        assert dict(executor.map("scale", range(6))) == {number: 3 * number for number in range(6)}


def test_workers_that_cannot_begin_are_an_error():
    with ProcessExecutor(functools.partial(os._exit, 1), 1) as executor, pytest.raises(BrokenProcessPool):
        list(executor.map("scale", [1]))


def test_dask_tries_elsewhere_what_a_killed_worker_had(dask):
    results = dask.map("scale", range(40))
    first = next(results)
    killed = next(iter(dask.cluster.workers.values())).pid
    os.kill(killed, signal.SIGKILL)
    assert sorted([first, *results]) == [(number, 3 * number) for number in range(40)]


def test_dask_gives_up_what_kills_its_workers():
    import dask as settings

    with settings.config.set({"distributed.scheduler.allowed-failures": 1}), open_executor("dask", MAKE, 1) as executor:
        assert list(executor.map("break_at_three", [3])) == [(3, Lost("2 Dask workers ended with it"))]
        assert list(executor.map("break_at_three", [2])) == [(2, 2)]


@pytest.mark.parametrize("ordered", [True, False])
def test_map_draws_only_a_few_arguments_ahead(ordered):
    drawn = []

    def arguments():
        for number in range(1000):
            drawn.append(number)
            yield number

    with ProcessExecutor(Task, 2) as executor:
        results = executor.map("scale", arguments(), ordered=ordered)
        assert sorted(next(results)[0] for _ in range(3)) <= list(range(5))
        assert len(drawn) < 10


def test_wrong_names_are_refused(monkeypatch):
    monkeypatch.setattr("ase_hvae.executors.dask._CONNECT", 1)
    with pytest.raises(ConfigError, match="must be processes, dask or the address"):
        check_executor("slurm")
    with pytest.raises(ConfigError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 within 1 s"):
        open_executor("tcp://127.0.0.1:9", MAKE, 1)


def run_script(path, text):
    path.write_text(text)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, path], env=environment, stdout=subprocess.PIPE, text=True)


def test_a_script_without_main_guard_runs_once(tmp_path):
    with run_script(
        tmp_path / "script.py",
        "import os, functools, pathlib\n"
        "from ase_hvae.executors import ProcessExecutor\n"
        "print('script', flush=True)\n"
        "with ProcessExecutor(functools.partial(pathlib.Path, '/proc/self/environ'), 2) as executor:\n"
        "    for _ in range(2):\n"
        "        environment = dict(executor.map('read_text', ['utf-8']))['utf-8']\n"
        "        print('OMP_NUM_THREADS=1' in environment.split('\\0'))\n",
    ) as process:
        assert process.communicate()[0].split() == ["script", "True", "True"]


def test_workers_end_when_the_main_process_is_killed(tmp_path):
    with run_script(
        tmp_path / "script.py",
        "import functools, pathlib, time\n"
        "from ase_hvae.executors import ProcessExecutor\n"
        "with ProcessExecutor(functools.partial(pathlib.Path, '/proc/self/stat'), 2) as executor:\n"
        "    print(*{text.split()[0] for _, text in executor.map('read_text', ['utf-8'] * 8)}, flush=True)\n"
        "    time.sleep(60)\n",
    ) as process:
        numbers = process.stdout.readline().split()
        process.kill()
    assert numbers
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{number}") for number in numbers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{number}") for number in numbers)


def test_count_workers():
    assert count_workers(3) == 3
    assert count_workers(0) >= 1
