"""Candidates in PostgreSQL: a real server, started for these tests on the loopback."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ase_hvae import generate
from ase_hvae.database import CandidateDatabase, RunFolder, check_url, without_password
from ase_hvae.errors import ConfigError, RunFolderError

OPTIONS = {"n": 6, "natoms": "1-4", "n_phonons": 2, "n_elastic": 1, "seed": 3, "n_proposals": 300, "workers": 1}
PASSWORD = "s3cret-word"


@dataclasses.dataclass
class Server:
    """A PostgreSQL server with an empty database."""

    bin: Path
    folder: Path
    port: int
    user: str | None

    def url(self, schema: str | None = None, password: str | None = PASSWORD) -> str:
        """Of the database, with a schema of its own if named."""
        end = "" if schema is None else f"?options=-csearch_path%3D{schema}"
        return f"postgresql://hvae:{password}@127.0.0.1:{self.port}/postgres{end}"

    def run(self, program: str, *arguments: str) -> None:
        """Run one of its programs, not as root, which they refuse."""
        command = [str(self.bin / program), *arguments]
        subprocess.run(command, check=True, user=self.user, cwd=self.folder, stdout=subprocess.DEVNULL, timeout=60)

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        log = str(self.folder / "log")
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-l", log, "-o", options, "-w", "start")

    def stop(self) -> None:
        """Stop at once."""
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")

    def make_schema(self, name: str) -> None:
        """CREATE SCHEMA."""
        import psycopg2

        connection = psycopg2.connect(self.url())
        connection.cursor().execute(f"CREATE SCHEMA {name}")
        connection.commit()
        connection.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb") or (programs[-1] if programs else None)
    if found is None:
        pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")
    pytest.importorskip("ase_db_backends")
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = Server(Path(found).parent, Path(name), free.getsockname()[1], "nobody" if os.geteuid() == 0 else None)
        free.close()
        (server.folder / "password").write_text(PASSWORD)
        if server.user is not None:
            shutil.chown(name, server.user)
        data, password = str(server.folder / "data"), f"--pwfile={server.folder / 'password'}"
        server.run("initdb", "-D", data, "-U", "hvae", password, "--auth=scram-sha-256", "--no-sync")
        server.start()
        yield server
        server.stop()


def same(first: object, second: object) -> bool:
    """Whether two attributes of candidates are equal to the last bit."""
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    return first == second


def check_same(first: CandidateDatabase, second: CandidateDatabase) -> None:
    """Candidates are the same, whatever holds them."""
    pairs = list(zip(first.read(), second.read(), strict=True))
    assert len(pairs) >= OPTIONS["n"]
    for a, b in pairs:
        for spec in dataclasses.fields(a):
            assert same(getattr(a, spec.name), getattr(b, spec.name)), spec.name


@pytest.fixture(scope="module")
def finished(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("postgresql") / "run"
    server.make_schema("first")
    generate(out=folder, database=server.url("first"), **OPTIONS)
    return folder, server.url("first")


def test_a_server_and_a_file_hold_the_same_run(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = finished
    assert not (folder / "candidates.db").exists()
    ranked = generate(out=tmp_path / "run", **OPTIONS)
    with RunFolder(folder, resume=True).opened_store(url) as store:
        check_same(CandidateDatabase(tmp_path / "run" / "candidates.db"), CandidateDatabase(store))
    assert len(list((folder / "structures").iterdir())) == len(ranked)


def test_the_password_is_written_nowhere(finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored URL has none, so that a run goes on with the one of the environment."""
    folder, url = finished
    for file in folder.rglob("*"):
        assert not file.is_file() or PASSWORD not in file.read_text(errors="replace"), file
    with pytest.raises(
        RunFolderError, match=r"cannot use postgresql://hvae@127.0.0.1.*no password supplied.*PGPASSWORD"
    ):
        generate(out=folder, resume=True)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert [c.index for c in generate(out=folder, resume=True)] == [
        c.index for c in generate(out=folder, resume=True, database=url)
    ]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://a:b@h:1/d", "postgresql://a@h:1/d"),
        ("postgresql://h/d?password=b&user=a", "postgresql://h/d?user=a"),
        ("postgresql:///d", "postgresql:///d"),
        (
            "postgresql://a:b%40c@[::1]:1/d?options=-csearch_path%3Ds",
            "postgresql://a@[::1]:1/d?options=-csearch_path%3Ds",
        ),
    ],
)
def test_urls_are_shown_without_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize("url", ["candidates.db", "mysql://h/d", "postgresql://host"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"give a URL such as postgresql://user@host:5432/name"):
        check_url(url)


def test_a_schema_belongs_to_one_run(server: Server, finished: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = finished
    with pytest.raises(RunFolderError, match="names no schema that exists"):
        generate(out=tmp_path / "run", database=server.url("absent"), **OPTIONS)
    with pytest.raises(RunFolderError, match="password authentication failed"):
        generate(out=tmp_path / "run", database=server.url("first", password="guess"), **OPTIONS)
    assert not (tmp_path / "run").exists()
    with pytest.raises(RunFolderError, match=r"holds \d+ rows that are not of this run; name another schema"):
        generate(out=tmp_path / "run", database=url, **OPTIONS)
    server.make_schema("second")
    small = OPTIONS | {"n": 1, "n_phonons": 0}
    generate(out=tmp_path / "run", overwrite=True, database=server.url("second"), **small)
    generate(out=tmp_path / "run", overwrite=True, database=server.url("second"), **small)
    with RunFolder(tmp_path / "run", resume=True).opened_store(server.url("second")) as store:
        assert len(CandidateDatabase(store).read()) == 1
    with RunFolder(folder, resume=True).opened_store(url) as store:
        assert len(CandidateDatabase(store).read()) >= OPTIONS["n"]


def test_one_program_at_a_time_and_a_killed_one_leaves_no_lock(finished: tuple[Path, str]) -> None:
    folder, url = finished
    program = (
        "import sys, time\nfrom ase_hvae.database import RunFolder\n"
        "with RunFolder(sys.argv[1], resume=True).opened_store(sys.argv[2]):\n    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, folder, url], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RunFolderError, match=r"another program works on the run in postgresql://hvae@127.0.0.1"):
            generate(out=folder, resume=True, database=url)
        other.send_signal(signal.SIGKILL)
    assert generate(out=folder, resume=True, database=url)


def test_a_server_that_goes_away_is_named_and_the_run_goes_on_later(
    server: Server, finished: tuple[Path, str], tmp_path: Path
) -> None:
    server.make_schema("third")
    written = 0
    write = CandidateDatabase.write

    def stopping(database: CandidateDatabase, *candidates: object) -> None:
        nonlocal written
        written += 1
        if written == 4:
            server.stop()
        write(database, *candidates)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CandidateDatabase, "write", stopping)
        with pytest.raises(RunFolderError, match=r"cannot use postgresql://hvae@127.0.0.1.*see that the server runs"):
            generate(out=tmp_path / "run", database=server.url("third"), **OPTIONS)
    server.start()
    generate(out=tmp_path / "run", resume=True, database=server.url("third"))
    with (
        RunFolder(tmp_path / "run", resume=True).opened_store(server.url("third")) as third,
        RunFolder(finished[0], resume=True).opened_store(finished[1]) as first,
    ):
        check_same(CandidateDatabase(first), CandidateDatabase(third))
