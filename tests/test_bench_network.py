"""The network benchmark runs, and compares equal networks."""

import json

from quarterarc.cli import main


def test_it_measures_both_with_the_same_weights(tmp_path, capsys, monkeypatch):
    out = tmp_path / "bench.json"
    arguments = ["bench", "network", "--cases", "digits", "--repeats", "1", "--batch", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["quarterarc", *arguments])
    assert main(arguments) == 0
    assert "digits" in capsys.readouterr().out
    text = out.read_text()
    assert json.loads(text)
    assert "nan" not in text.lower()


def test_unknown_cases_are_refused(capsys, monkeypatch):
    arguments = ["bench", "network", "--cases", "digit"]
    monkeypatch.setattr("sys.argv", ["quarterarc", *arguments])
    assert main(arguments) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err
