"""Marks of tests that show what an older torch cannot do."""

import pytest

from ldp_search.core.older_torch import COMPILES

COMPILED = pytest.mark.skipif(not COMPILES, reason="torch.compile of a quantized model needs torch >= 2.8")
