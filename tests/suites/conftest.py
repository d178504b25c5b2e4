"""The VMs of the public suites live in a state directory of their own, with the user's cached images."""

import pytest

from tests.vm.conftest import home as home

_ABSOLUTE = "Deep Agents 0.7.32 returns absolute paths, its suite still expects paths below the search root"
KNOWN_DIFFERENCES = {
    "test_write_existing_file_fails": "Deep Agents 0.7.32 overwrites files, its suite still expects an error",
    "test_glob": _ABSOLUTE,
    "test_glob_basic_pattern": _ABSOLUTE,
    "test_glob_hidden_files_explicitly": _ABSOLUTE,
    "test_glob_with_character_class": _ABSOLUTE,
    "test_glob_with_question_mark": _ABSOLUTE,
    "test_glob_with_directories": "Deep Agents 0.7.32 lists files only, its suite still expects directories",
}
"""Tests of LangChain's suite that its own framework does not pass, and why."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = KNOWN_DIFFERENCES.get(getattr(item, "originalname", ""))
        if reason and item.path.name == "test_langchain.py":
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
