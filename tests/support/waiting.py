"""Waiting for a condition with a deadline: the only way a test may let time pass."""

import os
import time

# Sanitised builds and busy machines are slower; one factor stretches every deadline.
FACTOR = float(os.environ.get("NODEMESH_TEST_TIME_FACTOR", "1"))


class Timeout(AssertionError):
    """The condition did not come true before its deadline."""


def wait_for(condition, seconds=10.0, what=None, every=0.02, ignore=()):
    """Calls condition() until it returns something true and returns that; raises Timeout after the deadline.

    what says what is waited for, a string or a function that makes one; ignore lists exceptions that mean "not yet".
    """
    deadline = time.monotonic() + seconds * FACTOR
    last = None
    while True:
        try:
            value = condition()
            if value:
                return value
        except ignore as error:
            last = error
        if time.monotonic() >= deadline:
            text = what() if callable(what) else what or getattr(condition, "__name__", "condition")
            raise Timeout(f"after {seconds * FACTOR:.1f} s still not: {text}" + (f" ({last!r})" if last else ""))
        time.sleep(every)
