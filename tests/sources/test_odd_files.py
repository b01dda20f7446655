"""Files of every type, depth, layout, nodata and cut: the pixels that they have, or an error that says what to do."""

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judged_files import judge


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_file_is_read_right_or_refused(tmp_path_factory: object, data: st.DataObject) -> None:
    folder = Path(tmp_path_factory.getbasetemp()) / "odd"  # type: ignore[attr-defined]
    folder.mkdir(exist_ok=True)
    judge(folder, data.draw)
