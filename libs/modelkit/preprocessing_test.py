import json
import math
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.errors import Invalid
from libs.modelkit.preprocessing import Preprocessing, fit_table, fit_text
from libs.modelkit.tables import column_type, read_columns

TABLE = pa.table(
    {
        "size": pa.array([1.0, 2.0, None, 5.0]),
        "rooms": pa.array([1, 2, 3, 4]),
        "new": pa.array([True, False, None, True]),
        "city": pa.array(["Rome", "Oslo", "Rome", None]),
        "sold": pa.array([datetime(2025, 1, day, tzinfo=UTC) for day in (1, 2, 3, 4)], pa.timestamp("us", "UTC")),
    }
)
RECORDS = [
    {"size": 1.0, "rooms": 1, "new": True, "city": "Rome", "sold": "2025-01-01T00:00:00Z"},
    {"size": 2, "rooms": 2.0, "new": False, "city": "Oslo", "sold": "2025-01-02"},
    {"size": None, "rooms": 3, "city": "Rome", "sold": "2025-01-03T01:00:00+01:00"},
    {"size": 5.0, "rooms": 4, "new": True, "city": None, "sold": "2025-01-04T00:00:00"},
]


def fitted(table=TABLE):
    types = {field.name: column_type(field.type) for field in table.schema}
    return fit_table(read_columns(table, list(types)), types)


def test_records_and_tables_give_the_same_features():
    by_table = fitted().transform(fitted().from_columns(read_columns(TABLE, TABLE.column_names)))
    np.testing.assert_array_equal(fitted().records_to_arrays(RECORDS), by_table)


def test_survives_json():
    again = Preprocessing(json.loads(json.dumps(fitted().data, allow_nan=False)))
    np.testing.assert_array_equal(again.records_to_arrays(RECORDS), fitted().records_to_arrays(RECORDS))


def test_numbers_are_standardised_and_missing_ones_become_the_median():
    features = fitted().records_to_arrays(RECORDS)
    np.testing.assert_allclose(features[:, 0].mean(), 0, atol=1e-12)
    np.testing.assert_allclose(features[:, 0].std(), 1)
    assert features[2, 0] == features[1, 0]


def test_large_offsets_keep_their_digits():
    values = 1e12 + np.arange(5.0)
    features = fitted(pa.table({"x": values})).records_to_arrays([{"x": value} for value in values.tolist()])
    np.testing.assert_allclose(features[:, 0], (np.arange(5) - 2) / np.sqrt(2), rtol=1e-12)


@pytest.mark.parametrize("values", [[1e308, -1e308, 1e307], [1e-308, 2e-308, 5e-308], [7.0, 7.0, 7.0], [0.0, 0.0, 0.0]])
def test_extreme_and_constant_columns_stay_finite(values):
    assert np.isfinite(fitted(pa.table({"x": values})).records_to_arrays([{"x": value} for value in values])).all()


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"rooms": "two"}, "instances[1].rooms", "takes a number"),
        ({"rooms": None}, "instances[1].rooms", "null does not fit"),
        ({"rooms": True}, "instances[1].rooms", "takes a number"),
        ({"rooms": math.nan}, "instances[1].rooms", "nan does not fit"),
        ({"size": math.inf}, "instances[1].size", "inf does not fit"),
        ({"rooms": 10**400}, "instances[1].rooms", "takes a number"),
        ({"rooms": [1]}, "instances[1].rooms", "takes a number"),
        ({"new": 1}, "instances[1].new", "true or false"),
        ({"city": 5}, "instances[1].city", "takes a text"),
        ({"sold": "yesterday"}, "instances[1].sold", "takes a time"),
        ({"romms": 3}, "instances[1].romms", "did you mean 'rooms'"),
    ],
)
def test_a_wrong_record_is_named(change, field, words):
    records = [RECORDS[0], {**RECORDS[1], **change}]
    with pytest.raises(Invalid) as caught:
        fitted().records_to_arrays(records)
    assert caught.value.code == "invalid_record"
    assert [error.field for error in caught.value.errors] == [field]
    assert words in caught.value.errors[0].message


def test_a_missing_field_is_named_with_what_may_be_meant():
    with pytest.raises(Invalid) as caught:
        fitted().records_to_arrays([{"Rooms": 3, "sold": "2025-01-01"}])
    assert {error.field for error in caught.value.errors} == {"instances[0].rooms", "instances[0].Rooms"}


@pytest.mark.parametrize("record", [5, None, "x", [1, 2], {}])
def test_plain_numbers_refuse_what_is_no_record(record):
    with pytest.raises(Invalid):
        fitted(pa.table({"x": [1.0, 2.0]})).records_to_arrays([{"x": 1.0}, record])


def test_errors_are_bounded():
    with pytest.raises(Invalid) as caught:
        fitted().records_to_arrays([{"rooms": "x"}] * 10_000)
    assert len(caught.value.errors) <= 50


def test_rare_categories_share_a_place():
    fine = fitted(pa.table({"c": [f"v{i}" for i in range(150)] + ["often"] * 9}))
    assert fine.shape == (101,)
    assert fine.records_to_arrays([{"c": "never seen"}])[0].argmax() == 100
    assert "often" in fine.inputs[0]["values"]


def test_texts_become_padded_tokens():
    texts = np.array(["A cat.", "a dog", None], object)
    tokens = fit_text({"t": texts}, ["t"], vocabulary=3, max_length=10).records_to_arrays([{"t": "A zebra, a cat"}])
    assert tokens.shape == (1, 3)
    assert tokens[0, 1] == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys([*TABLE.column_names, "other"], JSON)) | JSON, max_size=4))
def test_any_json_is_answered_or_refused(records):
    try:
        assert np.isfinite(fitted().records_to_arrays(records)).all()
    except Invalid as error:
        assert error.errors
