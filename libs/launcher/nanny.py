"""Stands between a platform process and one child of it, so that the child never outlives its owner.

Run as `python -I -S nanny.py SOCKET_FD MEMORY_BYTES ARGV...`, with the child's environment, folder, stdout and stderr as its own. Knows
the standard library only: it is there once a child, and has to be small. What passes over the socket, a line each:

    owner → nanny   T<seconds>            SIGTERM to the child's group, SIGKILL after so many seconds; end of file: SIGKILL now
    nanny → owner   P<pid>                the child runs
                    E<errno>              it could not be started
                    X<code> <signal> <oom>   it ended; nothing of it is left
"""

import ctypes
import os
import select
import signal
import sys
import time

LINUX = sys.platform == "linux"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
WATCH_SECONDS = 0.2
OWNER_SECONDS = 1.0
REAP_SECONDS = 2.0
DEFAULT_GRACE_SECONDS = 5.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def prctl(option: int, value: int) -> None:
    """Linux only; a kernel that refuses leaves us with the other guards."""
    if LINUX:
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def children_of(pid: int) -> list[int]:
    """Children that the kernel knows of `pid`, on Linux."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [int(child) for thread in threads for child in read(f"/proc/{pid}/task/{thread}/children").split()]


def resident_bytes(root: int) -> int:
    """Memory of `root` and everything under it."""
    if not LINUX:
        with os.popen("ps -axo pgid=,rss=") as lines:  # noqa: S605
            return sum(int(kib) * 1024 for group, kib in (line.split() for line in lines) if int(group) == root)
    total, pending = 0, [root]
    while pending:
        pid = pending.pop()
        fields = read(f"/proc/{pid}/statm").split()
        total += int(fields[1]) * PAGE_BYTES if fields else 0
        pending += children_of(pid)
    return total


def kernel_oom_kills() -> int:
    """How many processes the kernel has killed for memory since it started."""
    for line in read("/proc/vmstat").splitlines():
        if line.startswith(b"oom_kill "):
            return int(line.split()[1])
    return 0


def become_child(argv: list[str], nanny: int, errors: int) -> None:
    """In the forked process: a session of its own, then the program. Never returns."""
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != nanny:
            os._exit(1)
        if LINUX:
            # When the machine runs out of memory, a child is what the kernel should take, not the platform.
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("500")
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.execvpe(argv[0], argv, os.environ)
    except OSError as error:
        os.write(errors, str(error.errno or 1).encode())
    finally:
        os._exit(127)


def start(argv: list[str]) -> tuple[int, int]:
    """(pid, errno): the child's process id, or why there is none."""
    reading, writing = os.pipe()
    nanny = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        become_child(argv, nanny, writing)
    os.close(writing)
    failure = os.read(reading, 16)
    os.close(reading)
    return pid, int(failure or 0)


def kill_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except OSError:
        pass


def reap_rest(pid: int) -> None:
    """Ends whatever the child left behind: its group, and on Linux also what had left the group, for orphans come to us."""
    kill_group(pid, signal.SIGKILL)
    give_up = time.monotonic() + REAP_SECONDS
    while time.monotonic() < give_up:
        for orphan in children_of(os.getpid()):
            try:
                os.kill(orphan, signal.SIGKILL)
            except OSError:
                pass
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.005)
        except ChildProcessError:
            return


class Watch:
    """The child, from its start to its end."""

    def __init__(self, pid: int, owner_fd: int, memory_bytes: int) -> None:
        self.pid, self.owner_fd, self.memory_bytes = pid, owner_fd, memory_bytes
        self.owner_pid = os.getppid()
        self.kill_at: float | None = None
        self.killed = self.over_memory = False
        self.next_memory = 0.0
        self.oom_kills = kernel_oom_kills()
        self.buffer = b""

    def stop(self, grace: float) -> None:
        if self.kill_at is None:
            kill_group(self.pid, signal.SIGTERM)
        self.kill_at = min(self.kill_at or float("inf"), time.monotonic() + grace)

    def kill(self) -> None:
        self.killed = True
        kill_group(self.pid, signal.SIGKILL)

    def hear_owner(self) -> bool:
        """Obeys what the owner says; without an owner there is no child either."""
        heard = os.read(self.owner_fd, 4096)
        if not heard:
            self.kill()
            return False
        *lines, self.buffer = (self.buffer + heard).split(b"\n")
        for line in lines:
            if line[:1] == b"T":
                self.stop(float(line[1:]))
        return True

    def check(self) -> None:
        """What time brings: the end of a grace, too much memory, an owner that is gone though a copy of its socket lives on."""
        now = time.monotonic()
        if self.kill_at is not None and now >= self.kill_at:
            self.kill()
        if os.getppid() != self.owner_pid:
            self.kill()
        if self.memory_bytes and now >= self.next_memory:
            self.next_memory = now + (WATCH_SECONDS if LINUX else OWNER_SECONDS)
            if resident_bytes(self.pid) > self.memory_bytes:
                self.over_memory = True
                self.kill()

    def pause_ms(self) -> int:
        pause = WATCH_SECONDS if self.memory_bytes else OWNER_SECONDS
        if self.kill_at is not None:
            pause = min(pause, max(0.0, self.kill_at - time.monotonic()))
        return int(pause * 1000) + 1

    def ended(self) -> int | None:
        """The child's wait status, or None while it lives. Orphans that came to us are reaped on the way."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 0
            if pid == self.pid:
                return status
            if pid == 0:
                return None

    def run(self, wakeup_fd: int) -> int:
        """Until the child has ended: its wait status."""
        poll = select.poll()
        poll.register(wakeup_fd, select.POLLIN)
        poll.register(self.owner_fd, select.POLLIN)
        while (status := self.ended()) is None:
            for fd, _ in poll.poll(self.pause_ms()):
                if fd == wakeup_fd:
                    for number in os.read(wakeup_fd, 512):
                        if number == signal.SIGTERM:
                            self.stop(DEFAULT_GRACE_SECONDS)
                elif not self.hear_owner():
                    poll.unregister(self.owner_fd)
            self.check()
        return status

    def report(self, status: int) -> str:
        code, number = os.waitstatus_to_exitcode(status), 0
        if code < 0:
            code, number = 0, -code
        oom = self.over_memory or (number == signal.SIGKILL and not self.killed and kernel_oom_kills() > self.oom_kills)
        return f"X{code} {number} {int(oom)}\n"


def main() -> None:
    owner_fd, memory_bytes, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    os.set_inheritable(owner_fd, False)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    pid, failure = start(argv)
    for fd in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)
    try:
        if failure:
            os.write(owner_fd, f"E{failure}\n".encode())
            return
        watch = Watch(pid, owner_fd, memory_bytes)
        os.write(owner_fd, f"P{pid}\n".encode())
    except OSError:
        kill_group(pid, signal.SIGKILL)
        return
    status = watch.run(reading)
    reap_rest(pid)
    try:
        os.write(owner_fd, watch.report(status).encode())
    except OSError:
        pass


if __name__ == "__main__":
    main()
