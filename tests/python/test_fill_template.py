"""The command line of fill_template.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from inflight.serve.template import DEFAULTS, fill, parse_substitutions, split, unparsable_variables

SCRIPT = Path(__file__).parents[2] / "tools/fill_template.py"


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("text", "delimiter", "expected"),
    [
        ("a,b", ",", ["a", "b"]),
        ("a", ",", ["a"]),
        ("", ",", [""]),
        (r"a\,b,c", ",", ["a,b", "c"]),
        (r"C\:\path:x", ":", [r"C:\path", "x"]),
        (r"0\,1;2\,3", ",", ["0,1;2,3"]),
    ],
)
def test_split(text, delimiter, expected):
    assert split(text, delimiter) == expected


def test_parse_substitutions():
    text = r"engine_dir:/models/a\:b,gpu_device_ids:0\,1;2,empty:"
    assert parse_substitutions(text) == {"engine_dir": "/models/a:b", "gpu_device_ids": "0,1;2", "empty": ""}


@pytest.mark.parametrize("text", ["key", "a:b:c", "a:b,c"])
def test_parse_substitutions_names_the_bad_pair(text):
    with pytest.raises(ValueError, match="wanted key:value"):
        parse_substitutions(text)


def test_fill_keeps_unknown_variables():
    assert fill("${a} ${b} $c", {"a": "1"}) == "1 ${b} $c"


@pytest.mark.parametrize("key", DEFAULTS)
def test_fill_defaults(key):
    assert fill(f"x: ${{{key}}}", {}) == f"x: {DEFAULTS[key]}"
    assert fill(f"x: ${{{key}}}", {key: "17"}) == "x: 17"


def test_unparsable_variables():
    assert unparsable_variables('# ${c}\nx: ${a}\ny: "${b}"\nz: [ ${d} ]') == ["a", "d"]


def test_prints_the_filled_file(tmp_path):
    file = tmp_path / "config.pbtxt"
    file.write_text('max_batch_size: ${size}\nqueue: ${max_queue_size}\npath: "${path}"\n')
    done = run(file, "size:4")
    assert (done.returncode, done.stdout.rstrip("\n")) == (0, 'max_batch_size: 4\nqueue: 0\npath: "${path}"')
    assert file.read_text().startswith("max_batch_size: ${size}")


@pytest.mark.parametrize("flag", ["-i", "--in_place"])
def test_fills_in_place(tmp_path, flag):
    file = tmp_path / "config.pbtxt"
    file.write_text("a ${x}")
    done = run(flag, file, "x:1")
    assert (done.returncode, done.stdout, file.read_text()) == (0, "", "a 1")


def test_unknown_key_fails_and_leaves_the_file(tmp_path):
    file = tmp_path / "config.pbtxt"
    file.write_text("a ${x}")
    done = run("-i", file, "y:1")
    assert done.returncode != 0 and "'y'" in done.stderr
    assert file.read_text() == "a ${x}"


def test_says_what_the_server_could_not_parse(tmp_path):
    file = tmp_path / "config.pbtxt"
    file.write_text("decoupled: ${decoupled_mode}\nsize: ${size}")
    assert "decoupled_mode" in run(file, "size:1").stderr
