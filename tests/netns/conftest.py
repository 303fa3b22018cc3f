import pytest

from lab import Lab
from mesh import Mesh


@pytest.fixture(scope="module")
def mesh():
    """Two nodes with agents and a handful of pods, shared by the tests of a file; see support/mesh.py."""
    with Lab() as lab:
        yield Mesh(lab)


@pytest.fixture
def own_mesh():
    """The same, for one test that breaks things."""
    with Lab() as lab:
        yield Mesh(lab)
