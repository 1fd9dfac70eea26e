"""Tokens and who is dead."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from workflow import incarnation
from workflow.incarnation import Incarnation, dead


def parts(token):
    """Place, pid, start time, random bits."""
    return token.rsplit("/", 3)


def test_each_opening_has_its_own():
    """Tokens and commit ids are unique; commit ids are UUIDs: random bits of the incarnation and a counter."""
    one, two = Incarnation(), Incarnation()
    assert one.token != two.token
    ids = {n.commit_id() for n in (one, two) for _ in range(100)}
    assert len(ids) == 200
    assert all(uuid.UUID(id).hex == id for id in ids)
    one.close()
    two.close()


def test_open_ones_are_alive():
    """A Manager that is open here is alive; closed, its token is dead at once."""
    one = Incarnation()
    assert dead([one.token]) == frozenset()
    one.close()
    assert dead([one.token]) == {one.token}


def test_a_token_of_my_own_pid_that_nobody_holds():
    """Left by an earlier Manager of this very process: dead."""
    here, pid, started, _ = parts(Incarnation().token)
    stray = f"{here}/{pid}/{started}/{'0' * 16}"
    assert dead([stray]) == {stray}


def test_another_process():
    """A process that lives is alive, one that ended is dead, one whose pid came to somebody else is dead."""
    code = "from workflow.incarnation import Incarnation; print(Incarnation().token, flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert child.stdout is not None
    assert child.stdin is not None
    token = child.stdout.readline().strip()
    here, pid, started, bits = parts(token)
    assert dead([token]) == frozenset()
    reused = f"{here}/{pid}/{int(started) - 1}/{bits}"
    assert dead([reused]) == {reused}
    child.kill()
    zombie: Any = None
    for _ in range(1000):
        zombie = dead([token])
        if zombie:
            break
    assert zombie == {token}  # killed, though nobody asked for its end yet
    child.stdin.close()
    child.stdout.close()
    child.wait()
    assert set(dead([token])) == {token}


def test_other_hosts_and_namespaces():
    """Of a token from another boot or pid namespace, and of junk, nothing is known: not dead."""
    here, pid, started, bits = parts(Incarnation().token)
    boot, space = here.split("/", 1)
    others = [f"other/{space}/{pid}/{started}/{bits}", f"{boot}/pid:[1]/{pid}/{started}/{bits}", "", "junk", "a/b/c/d"]
    assert dead(others) == frozenset()


def test_a_host_that_does_not_tell(monkeypatch):
    """Where the system does not tell boot id and namespace nobody is called dead."""
    monkeypatch.setattr(incarnation, "_here", lambda: "?")
    assert dead(["?/1/2/3", "?/999999999/2/3"]) == frozenset()
