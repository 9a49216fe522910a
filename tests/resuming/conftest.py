"""``algorithm`` and the names of capabilities are parametrized as in the conformance suite."""

from tests.conformance.conftest import pytest_generate_tests as pytest_generate_tests
