"""Models of the whole life of tasks, and searches through them."""

import pytest

pytest.register_assert_rewrite("tests.model.acts", "tests.model.promises")
