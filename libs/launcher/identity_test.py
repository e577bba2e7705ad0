"""Who is judged by a process id, and who is not."""

import subprocess
import sys

import pytest

from libs.launcher import identity, is_known_dead, signature

SIGN = "from libs.launcher import signature; print(signature(), flush=True); input()"


def test_the_living_are_not_dead_and_the_dead_are() -> None:
    assert not is_known_dead(signature())
    assert not is_known_dead(f"{signature()}/more")
    with subprocess.Popen([sys.executable, "-c", SIGN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        signed = other.stdout.readline().strip()
        assert not is_known_dead(signed)
        other.kill()
    assert is_known_dead(signed)


def test_an_id_that_is_used_again_is_another_process() -> None:
    space, pid = signature().split("/")[0], identity.handle_of(1).split(":")[0]
    assert is_known_dead(f"{space}/{pid}:12345:00000000")


@pytest.mark.parametrize("elsewhere", ["other-machine-00000000-4026531836", "", "vm"])
def test_processes_elsewhere_are_not_judged(elsewhere: str) -> None:
    assert not is_known_dead(f"{elsewhere}/999999:1:00000000")
    assert not is_known_dead(elsewhere)


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_another_container_with_the_same_name_is_elsewhere() -> None:
    host, boot, namespace = signature().split("/")[0].rsplit("-", 2)
    assert is_known_dead(f"{host}-{boot}-{namespace}/999999:1:00000000")
    assert not is_known_dead(f"{host}-{boot}-{int(namespace) + 1}/999999:1:00000000")
