import pytest

from lab import Lab
from wire import Wire


@pytest.fixture(scope="module")
def wire():
    """Two nodes with agents and a peer that the tests play; see support/wire.py."""
    with Lab() as lab:
        yield Wire(lab)
