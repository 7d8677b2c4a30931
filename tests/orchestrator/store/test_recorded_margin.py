"""The margin of a study: recorded when it is submitted, with every later change."""

from __future__ import annotations

from pathlib import Path

from ablatrix.orchestrator.store.study_dir import STUDY, create_study, plan_fields


def test_a_later_change_of_the_margin_is_recorded(tmp_path: Path) -> None:
    def margins(margin: float | None) -> list[float | None]:
        folder = tmp_path / "study"
        fields = plan_fields(folder, [], None, margin)
        return [value for _, value in create_study(folder, "s", Path("s.yaml"), {}, [], fields=fields).margins]

    assert margins(0.02) == [0.02]
    assert margins(0.02) == [0.02]
    assert margins(None) == [0.02, None]
    assert margins(0.05) == [0.02, None, 0.05]
    (tmp_path / "study" / STUDY).write_text("{")
    assert margins(0.05) == [0.05]
