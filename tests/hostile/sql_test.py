"""Expressions that want files, settings, other rows or all the time and memory there is: refused, or bounded, and others go on."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.hostile.conftest import Town, ok
from tests.platform import eventually

REFUSED = [
    "read_text('/etc/passwd')",
    "(SELECT content FROM read_text('/etc/passwd'))",
    "(SELECT * FROM read_csv('/etc/passwd'))",
    "(SELECT * FROM glob('/*'))",
    "(SELECT * FROM '/etc/passwd')",
    "(FROM duckdb_settings())",
    "(SELECT content FROM read_blob('https://example.com/'))",
    "x IN (SELECT 1)",
    "EXISTS (SELECT 1)",
    "ARRAY(SELECT 1)",
    "x = ANY (SELECT 1)",
    "x) AS value FROM read_csv('/etc/passwd') --",
    "x) AS value FROM raw UNION SELECT (1",
    "x); COPY (SELECT 1) TO '/tmp/owned'; SELECT (1",
    "x; ATTACH '/tmp/owned.db'",
    "x); INSTALL httpfs; SELECT (1",
    "x); SET enable_external_access = true; SELECT (1",
    "x); PRAGMA database_list; SELECT (1",
    "x /*",
    "x)) OVER (",
    "getenv('HOME')",
    "current_setting('temp_directory')",
    "getvariable('a')",
    "current_database()",
    "txid_current()",
    "nextval('a')",
    "random()",
    "uuid()",
    "now()",
    "current_timestamp",
    "write_log('x')",
    "sleep_ms(100000)",
    "error('x')",
    "sum(x)",
    "row_number() OVER ()",
    "lag(x) OVER ()",
    "unnest([1, 2])",
    "COLUMNS('.*')",
    "*",
    "$1",
    "?",
    "#1",
    "x -> x",
    "list_transform([1], lambda q: q)",
    "rowid",
    "main.t.x",
    "__lepton_row",
    "__lepton_split",
    "'a'::BLOB",
    "[x]",
    "{'a': x}",
    "x\0",
    "(" * 4000 + "x" + ")" * 4000,
    "+".join(["x"] * 4000),
    "-" * 9000 + "x",
    "CASE " * 900 + "x",
    "regexp_matches(s, '(a{1,1000}){1,1000}')",
    "length(string_split(repeat('a,', 100000000), ',')[1])",
]
# Allowed by what they are; what they take is not.
HUNGRY = [
    "length(repeat(s, 1000000000))",
    "length(rpad(s, 2000000000, 'x'))",
    "list_sum(range(x, 4000000000))",
    "length(printf('%1000000000d', x))",
    "levenshtein(repeat('a', 100000), repeat('b', 100000 + x))",
]
ROWS = "x,y,s\n" + "".join(f"{n},{n * 2}.5,w{n % 3}\n" for n in range(1000))


@pytest.fixture(scope="module")
def http(town: Town) -> Iterator[httpx.Client]:
    with town.http("victim") as http:
        ok(http.put("/v1/datasets/sql/content", params={"filename": "t.csv"}, content=ROWS))
        yield http


def transform(http: httpx.Client, step: dict[str, Any], dataset: str = "sql", version: int = 1) -> httpx.Response:
    return http.post(f"/v1/datasets/{dataset}/transforms", json={"version": version, "steps": [step]})


@pytest.mark.parametrize("expression", REFUSED, ids=lambda text: text[:50].replace("\0", "NUL"))
def test_what_is_no_value_of_one_row_is_refused(http: httpx.Client, expression: str) -> None:
    for step in ({"derive": {"column": "q", "expression": expression}}, {"filter": {"expression": expression}}):
        answer = transform(http, step)
        assert answer.status_code in (400, 422), f"{answer.status_code}: {answer.text[:500]}"
        assert len(answer.content) < 30_000
        assert "root:" not in answer.text and "/site-packages/" not in answer.text


def test_names_of_columns_are_no_sql(http: httpx.Client) -> None:
    """Names come from files; they stand in statements as names."""
    header = '"a""; COPY (SELECT 1) TO \'/tmp/owned\'; --","b) FROM read_text(\'/etc/passwd\') --","c\'; DROP TABLE raw; \'"\n'
    answer = http.put("/v1/datasets/names/content", params={"filename": "t.csv"}, content=header + "1,2,3\n4,5,6\n")
    assert answer.status_code in (201, 400, 422), answer.text
    if answer.status_code == 201:
        columns = [each["name"] for each in answer.json()["columns"]]
        steps: list[dict[str, Any]] = [
            {"dedupe": {}},
            {"rename": {"column": columns[0], "to": "z"}},
            {"impute": {"strategy": "median"}},
            {"split": {"test": 0.5}},
        ]
        for step in steps:
            answer = transform(http, step, "names")
            assert answer.status_code in (202, 400, 422), answer.text
        shown = http.get("/v1/datasets/names/versions/1/preview")
        assert shown.status_code == 200 and "root:" not in shown.text
    http.delete("/v1/datasets/names")


@pytest.mark.parametrize("expression", HUNGRY)
def test_what_is_hungry_is_bounded_and_ends_with_its_dataset(town: Town, http: httpx.Client, expression: str) -> None:
    # Numbers go on where a deleted dataset of the name left off.
    version = ok(http.put("/v1/datasets/hungry/content", params={"filename": "t.csv"}, content=ROWS))["number"]
    began = time.monotonic()
    answer = transform(http, {"derive": {"column": "q", "expression": expression}}, "hungry", version)
    assert time.monotonic() - began < 12
    assert answer.status_code in (202, 422), answer.text
    if answer.status_code == 202:
        path = f"/v1/datasets/hungry/versions/{answer.json()['number']}"
        eventually(lambda: ok(http.get(path))["state"] != "processing", 3)
        began = time.monotonic()
        assert http.get("/v1/me").status_code == 200
        # Another upload finds a place beside it.
        ok(http.put("/v1/datasets/beside/content", params={"filename": "t.csv"}, content="a,b\n1,2\n"), 201)
        assert time.monotonic() - began < 15
        if (made := ok(http.get(path)))["state"] == "failed":
            assert made["error"]["code"] in ("out_of_memory", "time_limit", "invalid_data", "invalid_spec"), made
    for engine in town.platform.find("services.data.engine"):
        assert engine.memory_info().rss < 3 << 30
    for name in ("hungry", "beside"):
        http.delete(f"/v1/datasets/{name}")
    assert eventually(lambda: not town.platform.find("services.data.engine"), 20), "it runs on though nobody wants it any more"
