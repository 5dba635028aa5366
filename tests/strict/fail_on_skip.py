"""A test that is skipped has failed: for `.ci/run --strict`, on machines where all that the tests need should be there.

    PYTEST_PLUGINS=fail_on_skip PYTHONPATH=tests/strict python3 -m pytest ...
"""

import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    report = (yield).get_result()
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"this was left out, which --strict forbids: {reason}"
