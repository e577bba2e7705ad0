"""Signatures are those that Amazon's own documents show, and those of the minio package where that can sign the same."""

from datetime import UTC, datetime, timedelta

from minio import Minio

from libs.storage.s3_signing import presigned

NOW = datetime(2013, 5, 24, tzinfo=UTC)


def test_the_example_of_the_specification() -> None:
    url = presigned(
        "GET",
        "https://examplebucket.s3.amazonaws.com/test.txt",
        {},
        access_key="AKIAIOSFODNN7EXAMPLE",
        secret_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        region="us-east-1",
        seconds=86400,
        now=NOW,
    )
    assert url.endswith("&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404")


def test_what_another_implementation_signs() -> None:
    client = Minio("files.example:9000", "lepton", "secret", secure=False, region="eu-west-1")
    url = presigned(
        "PUT",
        "http://files.example:9000/bucket/incoming/ab",
        {},
        access_key="lepton",
        secret_key="secret",
        region="eu-west-1",
        seconds=60,
        now=NOW,
    )
    assert url == client.get_presigned_url("PUT", "bucket", "incoming/ab", timedelta(seconds=60), request_date=NOW)


def test_headers_count() -> None:
    words = {"access_key": "a", "secret_key": "s", "region": "r", "seconds": 60, "now": NOW}
    first, second = (presigned("PUT", "http://a/b", {"X-Size": size}, **words) for size in ("1", "2"))
    assert "X-Amz-SignedHeaders=host%3Bx-size" in first
    assert first != second
