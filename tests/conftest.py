"""What all tests share: a home of their own, one thread, and what happens to a test whose tool is not there."""

import os
import shutil

import pytest
import torch
from hypothesis import settings

TOOLS = {"browser": ("chromium", "chromium-browser"), "node": ("node",)}  # marker -> commands, any of which will do

torch.set_num_threads(1)  # tests time nothing, and one thread gives the same bits everywhere
settings.register_profile("book", deadline=None, derandomize=True)
settings.load_profile("book")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skip a test whose tool is missing; on a CI machine, which must have the tools, fail it."""
    for marker, commands in TOOLS.items():
        if item.get_closest_marker(marker) and not any(map(shutil.which, commands)):
            message = f"this test needs {' or '.join(commands)}, which is not on the PATH"
            if os.environ.get("CI") == "true":
                pytest.fail(f"{message}; with CI=true that is a failure.", pytrace=False)
            pytest.skip(message)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty place for networks and rows."""
    place = tmp_path / "home"
    monkeypatch.setenv("ADVBOOK_HOME", str(place))
    return place
