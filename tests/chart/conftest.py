"""The chart tier needs Helm alone, built from its Go module as for the cluster tier."""

import pytest

from charts import Helm


@pytest.fixture(scope="session")
def helm():
    return Helm()
