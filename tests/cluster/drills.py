"""What takes minutes, since a lost machine is known by its missing heartbeats, and so is not in `make test`."""

import os

import pytest

in_drills = pytest.mark.skipif("LONGSPAN_KILLS" not in os.environ, reason="runs in `make drills`")
