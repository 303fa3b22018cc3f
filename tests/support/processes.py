"""Starting programs in a chosen network namespace and cgroup, as a chosen user."""

import contextlib
import os
import pwd
import signal
import subprocess

import netns
from waiting import FACTOR, wait_for


_started = []


def reap():
    """Collects the exit codes of ended programs, so that no zombie stays behind."""
    _started[:] = [process for process in _started if process.running]


class Place:
    """Where a process is born: a network namespace (by name) and a cgroup2 folder; optionally another user."""

    def __init__(self, namespace, cgroup, user=None):
        self.namespace = namespace
        self.cgroup = cgroup
        self.user = user

    @contextlib.contextmanager
    def entering(self):
        """Yields the function that subprocess calls between fork and exec.

        The cgroup comes first: a socket belongs for ever to the cgroup that its maker was in.
        """
        group = os.open(f"{self.cgroup}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        space = os.open(netns.path_of(self.namespace), os.O_RDONLY | os.O_CLOEXEC) if self.namespace else -1
        who = pwd.getpwnam(self.user) if self.user else None

        def enter():
            os.write(group, b"0")
            if space >= 0:
                netns.setns(space)
            if who:
                os.initgroups(who.pw_name, who.pw_gid)
                os.setgid(who.pw_gid)
                os.setuid(who.pw_uid)

        try:
            yield enter
        finally:
            os.close(group)
            if space >= 0:
                os.close(space)


class Process:
    """A running program; its output goes to a file, so that it can neither block nor be lost."""

    def __init__(self, popen, log):
        self.popen = popen
        self.log = log

    @property
    def pid(self):
        return self.popen.pid

    @property
    def running(self):
        return self.popen.poll() is None

    def output(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def wait(self, seconds=30):
        """Waits for the end and returns the exit code (negative: the signal that ended it)."""
        return self.popen.wait(seconds * FACTOR)

    def wait_output(self, text, seconds=10):
        """Waits until the text stands in the output; says so at once when the program ends without it."""

        def there():
            if text in self.output():
                return True
            if not self.running:
                raise RuntimeError(f"{self.popen.args} ended with {self.popen.returncode}:\n{self.output()}")
            return False

        wait_for(there, seconds, lambda: f"{text!r} in the output of {self.popen.args[0]}:\n{self.output()[-2000:]}")

    def send(self, number):
        with contextlib.suppress(ProcessLookupError):
            self.popen.send_signal(number)

    def stop(self, number=signal.SIGTERM, seconds=10):
        """Asks it to end; kills it when it does not. Returns the exit code."""
        if self.running:
            self.send(number)
            try:
                self.popen.wait(seconds * FACTOR)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(10)
        return self.popen.returncode

    def kill(self):
        self.stop(signal.SIGKILL)


def spawn(place, command, log, stdin=subprocess.DEVNULL, env=None, cwd="/"):
    """Starts command in place, in a session of its own (a terminal's Ctrl-C reaches only the owner of the lab)."""
    with place.entering() as enter, open(log, "ab") as out:
        popen = subprocess.Popen([str(word) for word in command], stdin=stdin, stdout=out, stderr=out, cwd=cwd,
                                 start_new_session=True, preexec_fn=enter, env={**os.environ, **(env or {})})
    process = Process(popen, log)
    _started.append(process)
    return process


def run(place, command, input=None, timeout=30, check=True, env=None, text=True, cwd="/"):
    """Runs command in place to its end and returns subprocess.CompletedProcess with captured output."""
    with place.entering() as enter:
        done = subprocess.run([str(word) for word in command], input=input, capture_output=True, text=text,
                              timeout=timeout * FACTOR, start_new_session=True, preexec_fn=enter, cwd=cwd,
                              stdin=None if input is not None else subprocess.DEVNULL,
                              env={**os.environ, **(env or {})})
    if check and done.returncode != 0:
        raise RuntimeError(f"{command} ended with {done.returncode}\nstdout: {done.stdout}\nstderr: {done.stderr}")
    return done
