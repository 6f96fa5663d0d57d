"""inflight bench against a running server, from client processes of its own."""

import json

import pytest

from inflight import cli


@pytest.fixture
def bench(served, python_7m, tmp_path):
    """bench(*arguments, model=python-7m): exit code and JSON rows."""

    def run(*arguments: object, model: object = python_7m) -> tuple[int, list[dict]]:
        file = tmp_path / "rows.jsonl"
        common = ("--url", served.server.grpc_url, "--client-processes", 2, "--json", file)
        code = cli.main(["bench", *map(str, (model, *common, *arguments))])
        return code, [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    return run


def test_engine_model(bench):
    code, (row, lone) = bench("--model", "tensorrt_llm", "--cases", "12,9,10;5,6,1", "--read-bandwidth", 1)
    assert code == 0
    wanted = dict(engine="inflight-triton", model="python-7m", isl=12, osl=9, n=10, concurrency=None)
    assert wanted.items() <= row.items()
    assert row["out_tok_s"] * row["s"] == pytest.approx(90, rel=0.05)  # every token arrived and was counted
    assert 0 < row["ttft_ms_p50"] <= row["ttft_ms_p99"] <= 1e3 * row["s"] + 1
    assert 0 < row["client_busy"] <= 2
    assert 0 < row["share_of_limit"] < 1
    assert lone["n"] == 1  # one of both processes has nothing to do


def test_text_model_is_the_default(bench):
    code, (row,) = bench("--input-lengths", "uniform:4-9", "--output-lengths", 5, "--requests", 6, "--concurrency", 3)
    assert code == 0
    assert row["concurrency"] == 3
    assert row["out_tok_s"] * row["s"] == pytest.approx(30, rel=0.2)  # a token may come without text of its own


def test_arrivals_by_the_clock(bench):
    code, (row,) = bench("--model", "tensorrt_llm", "--cases", "5,4,12", "--request-rate", 20)
    assert code == 0
    assert row["rate"] == 20
    assert row["s"] > 0.2  # 12 requests at 20 a second
    assert "share_of_limit" not in row


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--model", "nope", "--cases", "5,4,2"), "nope"),
        (("--model", "tensorrt_llm", "--cases", "5000,4,2"), "5000 tokens"),
    ],
)
def test_errors_of_the_server_are_told(bench, capfd, arguments, text):
    code, rows = bench(*arguments)
    assert (code, rows) == (1, [])
    assert text in capfd.readouterr().err


def test_a_model_without_tokenizer_is_asked_for_tokens(bench, capfd):
    code, (row,) = bench("--cases", "5,4,2", model="llama-tiny")  # its 256 token ids are in the server's vocabulary
    assert (code, row["model"]) == (0, "llama-tiny")
    code, _ = bench("--cases", "5,4,2", "--model", "ensemble", model="llama-tiny")
    assert code == 1
    assert "takes text" in capfd.readouterr().err


def test_a_wrong_address_is_told(python_7m, capfd):
    assert cli.main(["bench", str(python_7m), "--url", "127.0.0.1:1", "--client-processes", "1"]) == 1
    assert "127.0.0.1:1" in capfd.readouterr().err
