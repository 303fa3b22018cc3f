"""The story that a new user sees, judged by itself; and that an interrupted one leaves nothing."""

import os
import signal
import subprocess
import sys

import lab as lab_module
from waiting import FACTOR, wait_for

SCRIPT = f"{lab_module.ROOT}/scripts/quickstart.py"


def test_every_claim_of_the_quickstart_holds():
    done = subprocess.run([sys.executable, SCRIPT, "--once"], text=True, capture_output=True, timeout=120 * FACTOR,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every claim holds" in done.stdout and "FAILED" not in done.stdout


def test_an_interrupted_quickstart_leaves_no_trace(tmp_path):
    with open(tmp_path / "out", "w+", encoding="utf-8") as out:
        story = subprocess.Popen([sys.executable, SCRIPT], stdout=out, stderr=subprocess.STDOUT, start_new_session=True)

        def shown():
            with open(out.name, encoding="utf-8") as text:
                return text.read()

        wait_for(lambda: "shop/curl" in shown() and "DENIED" in shown(), 60, shown)
        run_id = shown().split("/run/nodemesh-lab/")[1][:6]
        assert lab_module.leftovers(run_id)
        os.kill(story.pid, signal.SIGINT)
        assert story.wait(30 * FACTOR) == 0, shown()
    assert not lab_module.leftovers(run_id)
