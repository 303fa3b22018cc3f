"""A word that a script does not know is refused, and before packages are installed or anything is built."""

import os
import shutil
import subprocess

import pytest
import tiers

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture
def script(tmp_path):
    """Runs a script where installing and building fail: CompletedProcess."""
    for name in os.listdir(ROOT):
        if name not in ("scripts", "build", ".git"):
            os.symlink(f"{ROOT}/{name}", tmp_path / name)
    shutil.copytree(f"{ROOT}/scripts", tmp_path / "scripts")
    (tmp_path / "bin").mkdir()
    for path in (tmp_path / "scripts/install-packages", tmp_path / "bin/cmake"):
        path.write_text("#!/bin/sh\necho began to work >&2\nexit 3\n", encoding="ascii")
        path.chmod(0o755)

    def run(name, *words):
        return subprocess.run([tmp_path / "scripts" / name, *words], capture_output=True, text=True, check=False,
                              stdin=subprocess.DEVNULL, env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})

    return run


@pytest.mark.parametrize("words", [
    ("test", "nonsense"), ("test", "unit", "nonsense"), ("bench", "nonsense"), ("bench", "scale", "nonsense"),
    ("bench", "--nonsense"), ("quickstart", "--nonsense"), ("quickstart", "--cluster", "--nonsense"), ("quickstart", "nonsense"),
    ("helm-values", "--nonsense"), ("manifests", "--nonsense"), ("chart", "--nonsense"), ("cluster", "nonsense"),
    ("install-packages", "nonsense")], ids=" ".join)
def test_an_unknown_word_is_refused_before_anything_is_done(script, words):
    if words[0] == "install-packages":
        done = subprocess.run([f"{ROOT}/scripts/install-packages", *words[1:]], capture_output=True, text=True, check=False)
    else:
        done = script(*words)
    said = done.stdout + done.stderr
    assert done.returncode in (1, 2) and "began to work" not in said, said
    assert "nonsense" in said or "usage: " in said, said


@pytest.mark.parametrize("words", [("test", "unit"), ("quickstart", "--once"), ("quickstart", "--once", "--cluster"), ("bench", "exchange-c1")],
                         ids=" ".join)
def test_a_word_that_it_knows_is_not(script, words):
    assert "began to work" in script(*words).stderr


def test_scripts_test_knows_the_tiers_that_there_are(script):
    assert script("test", "nonsense").stderr.strip().endswith(f"there are {' '.join(tiers.TIERS)}")
