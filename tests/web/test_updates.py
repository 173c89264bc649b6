"""What is said of a running job."""

import pytest

from ggm_image.web.jobs import Step


def test_progress_says_the_time_left_and_what_to_expect() -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'ggm-image[demo]'")
    from ggm_image.web.updates import progress_bar

    assert "3 of 9 steps, 45 s left" in progress_bar(Step(3, 9, 45.2))
    told = progress_bar(Step(0, 9, 600.0, note="a hole of <b>"))
    assert "0 of 9 steps, 10 min left" in told
    assert "a hole of &lt;b&gt;" in told
