"""What every Python test shares: a lab of its own, and the tails of the agents' logs when it fails."""

import pytest

import lab as lab_module


@pytest.fixture
def lab():
    """A lab of the test's own, empty."""
    with lab_module.Lab() as made:
        yield made


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed and call.when in ("setup", "call"):
        for made in lab_module.OPEN:
            report.sections.append((f"lab {made.run_id}", made.logs(4000)))
