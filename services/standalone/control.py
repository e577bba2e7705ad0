"""Starting and stopping a platform process from outside."""

import json
import os
import subprocess
import sys

import psutil

from services.standalone.home import Home, HomeError, Running

STOP_SECONDS = 30.0


def start_platform(
    home: Home, *, host: str, port: int, grpc_port: int, log_level: str = "info"
) -> tuple["subprocess.Popen[bytes]", dict[str, str]]:
    """A platform process that is ready, and its words {"url", "grpc", "api_key"}. Raises HomeError when it cannot start."""
    read, write = os.pipe()
    argv = [*platform_command(home, host=host, port=port, grpc_port=grpc_port, log_level=log_level), "--ready-fd", str(write)]
    try:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[write], start_new_session=True
        )
    finally:
        os.close(write)
    with os.fdopen(read) as pipe:
        line = pipe.readline()
    if not line:
        child.wait()
        raise HomeError(f"the platform ended while it started (exit code {child.returncode})", f"look at {home.logs / 'platform.log'}")
    said: dict[str, str] = json.loads(line)
    if "wrong" in said:
        child.wait()
        raise HomeError(said["wrong"], said["right"])
    return child, said


def platform_command(home: Home, *, host: str, port: int, grpc_port: int, log_level: str) -> list[str]:
    words = [sys.executable, "-m", "services.standalone", str(home.path), "--host", host, "--port", str(port)]
    return [*words, "--grpc-port", str(grpc_port), "--log-level", log_level]


def stop_platform(running: Running) -> None:
    """SIGTERM, and SIGKILL when that is not heard in time; what it has started ends with it."""
    try:
        process = psutil.Process(running.pid)
        process.terminate()
        process.wait(STOP_SECONDS)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        process.kill()
        process.wait(5)
