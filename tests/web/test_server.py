"""Who may reach the page, and what is said where it cannot be served."""

import sys
from pathlib import Path

import pytest

from ggm_image.cli.main import main
from ggm_image.errors import UserError
from ggm_image.web.server import bind, check_address, prepare_gradio, without_other_hosts


def test_other_machines_need_a_password(capsys: pytest.CaptureFixture[str]) -> None:
    for address in ("127.0.0.1", "::1", "localhost", "127.8.0.1"):
        assert check_address(address, None) is None
    for address in ("0.0.0.0", "::", "192.168.0.7"):
        with pytest.raises(UserError, match="only with a password"):
            check_address(address, None)
        assert check_address(address, "anna:a:b") == ("anna", "a:b")
        assert "not encrypted" in capsys.readouterr().err
    for auth in ("anna", ":b", "anna:", ""):
        with pytest.raises(UserError, match="user:password") as refused:
            check_address("127.0.0.1", auth)
        assert not auth or auth not in str(refused.value.got)  # a password is not printed
    with pytest.raises(UserError, match="must be an IP address"):
        check_address("example.org", "anna:b")


def test_the_command_refuses_before_it_loads_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--listen", "0.0.0.0"]) == 2
    assert "--auth" in capsys.readouterr().err
    assert main(["demo", "--model", "cifar01"]) == 2
    assert "no such model" in capsys.readouterr().err


def test_taken_port_is_said() -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(UserError, match="cannot be used .*--port"):
        bind("127.0.0.1", taken.getsockname()[1])


def test_missing_gradio_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="pip install 'ggm-image\\[demo\\]'"):
        prepare_gradio(tmp_path)


def test_elements_of_other_hosts_are_taken_out() -> None:
    html = '<script src="https://a.org/x.js" async></script><link href="//b.org/f.css"><a href="https://c.org">c</a>'
    kept = '<script src="./x.js"></script><link href="./f.css">'
    assert without_other_hosts(html + kept) == '<a href="https://c.org">c</a>' + kept
