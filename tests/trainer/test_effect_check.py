"""The probe: what takes effect has another signature, and every valid configuration can be probed."""

from typing import Any

import pytest

from ablatrix.trainer import effect_check
from ablatrix.trainer.config import validate


def signature(**settings: Any) -> dict[str, str]:
    tree = {"data": {"file_path": "x"}, "model": {"model_type": "gpt-nano"}, "trainer": {"batch_size": 16, **settings}}
    return effect_check.signature(validate(tree).resolved(100).model_dump(mode="json"))


@pytest.mark.parametrize("parts", [1, 2, 3, 16])
def test_a_batch_in_parts_can_be_probed(parts: int) -> None:
    """More parts than the probe's small batch has windows divided by zero."""
    assert (signature(grad_accum=parts) == signature()) == (parts == 1), "dropout is drawn for each part"
