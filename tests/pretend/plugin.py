"""Makes a pytest run one on the pretended device: `python -m pytest -p tests.pretend.plugin -o python_files="case_*.py" tests/pretend`."""

from tests.pretend import hooks

hooks.load()  # before anything imports torch

import pytest  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """The tensors are tiny."""
    import torch

    torch.set_num_threads(1)
