"""Tasks in processes give what they give in this process."""

import functools
import os
import subprocess
import sys
import time

import pytest

from ase_hvae.workers import Workers, count_workers


class Task:
    """Object with a method to call."""

    def __init__(self, factor=1):
        self.factor = factor

    def scale(self, value):
        """Value times factor."""
        return self.factor * value

    def fail(self, value):
        """A bug."""
        raise ZeroDivisionError(value)


@pytest.mark.parametrize("n_workers", [1, 2])
def test_map(n_workers):
    with Workers(functools.partial(Task, 3), n_workers) as workers:
        assert list(workers.map("scale", range(7), ordered=True)) == [0, 3, 6, 9, 12, 15, 18]
        assert sorted(workers.map("scale", range(7))) == [0, 3, 6, 9, 12, 15, 18]
        with pytest.raises(ZeroDivisionError):
            list(workers.map("fail", [1]))


def test_ordered_map_draws_only_a_few_arguments_ahead():
    drawn = []

    def arguments():
        for number in range(1000):
            drawn.append(number)
            yield number

    with Workers(Task, 2) as workers:
        results = workers.map("scale", arguments(), ordered=True)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        assert len(drawn) < 10


def test_a_script_without_main_guard_runs_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import fractions, functools\n"
        "from ase_hvae.workers import Workers\n"
        "print('script')\n"
        "with Workers(functools.partial(fractions.Fraction, 3), 2) as workers:\n"
        "    print(list(workers.map('__mul__', [1, 2])), list(workers.map('__getattribute__', ['numerator'])))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.count("script") == 1
    assert result.stdout.strip().endswith("[3]")


def test_workers_end_when_the_main_process_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import functools, pathlib, time\n"
        "from ase_hvae.workers import Workers\n"
        "with Workers(functools.partial(pathlib.Path, '/proc/self/stat'), 2) as workers:\n"
        "    print(*{text.split()[0] for text in workers.map('read_text', ['utf-8'] * 8)}, flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True) as process:
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
