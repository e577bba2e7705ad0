"""What settings a database takes, and how pages are named. What databases do is in tests/contract/ports."""

import traceback

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from libs.db import Database, DatabaseSettings, DatabaseTlsSettings, page_token, start_after
from libs.errors import Invalid, Transient

SECRET = "nobody-may-see-this"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"postgresql+asyncpg://role:{SECRET}@host/db", "has neither password nor parameters"),
        (f"postgresql+asyncpg://role@host/db?password={SECRET}", "has neither password nor parameters"),
        ("postgresql+asyncpg://host/db", "names role, host and database"),
        ("postgresql+asyncpg://role@host", "names role, host and database"),
        (f"postgresql://role:{SECRET}@host/db", "must begin with sqlite"),
        ("mysql://host/db", "must begin with sqlite"),
    ],
)
def test_a_url_that_is_not_supported_is_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        Database(DatabaseSettings(url=url))
    assert SECRET not in str(refused.value)


def test_a_client_certificate_without_an_authority_is_refused() -> None:
    with pytest.raises(ValueError, match="CA_FILE"):
        Database(DatabaseSettings(url="postgresql+asyncpg://r@h/d", tls=DatabaseTlsSettings(cert_file="client.pem")))


async def test_a_server_that_does_not_come_is_said_in_words_without_the_password() -> None:
    settings = DatabaseSettings(url="postgresql+asyncpg://role@127.0.0.1:1/db", password=SecretStr(SECRET), start_seconds=0)
    database = Database(settings)
    with pytest.raises(Transient, match=r"127\.0\.0\.1 cannot be reached") as refused:
        await database.start()
    with pytest.raises(Transient):
        async with database.unit() as unit:
            await unit.session.execute(text("SELECT 1"))
    await database.stop()
    assert SECRET not in f"{settings!r} {database.engine!r} {''.join(traceback.format_exception(refused.value))}"


def test_page_tokens() -> None:
    assert start_after("") is None
    assert start_after(page_token("job-0001")) == "job-0001"
    for token in ("\x00é", page_token("a\0")):
        with pytest.raises(Invalid):
            start_after(token)
