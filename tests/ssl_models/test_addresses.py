"""Addresses are shown without what they hold in confidence."""

from __future__ import annotations

import pytest

from ssl_models.addresses import public, secret


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://user:pass@host:5432/db", "postgresql://host:5432/db"),
        ("https://user:p@ss@host/", "https://host/"),
        ("https://host/path?token=t&x=1", "https://host/path"),
        ("no such store 'http://u:p@h/db?password=x' here", "no such store 'http://h/db' here"),
        ("sqlite:////a/b@c/mlflow.db", "sqlite:////a/b@c/mlflow.db"),
    ],
)
def test_an_address_is_shown_without_user_password_and_query(address: str, shown: str) -> None:
    assert public(address) == shown


@pytest.mark.parametrize(
    "address",
    [
        "https://user:password@host/data.csv",
        "https://ghp_token@host/data.csv",
        "ftp://user:p@ss@host/x",
        "zip://*.csv::https://u:p@h/x.zip",
        "https://bucket.s3.amazonaws.com/x?X-Amz-Date=1&X-Amz-Signature=2",
        "https://account.blob.core.windows.net/x?sv=1&sig=2",
        "https://host/x?access_token=t",
    ],
)
def test_a_password_a_token_and_a_signature_are_secrets(address: str) -> None:
    assert secret(address)


@pytest.mark.parametrize(
    "address",
    [
        "reviews.csv",
        "s3://bucket/prefix/",
        "https://host/data.csv?version=2&design=1",
        "ssh://user@host/data",
        "abfs://container@account.dfs.core.windows.net/x",
        "hf://datasets/user/name@revision/x.parquet",
        "photographs//2020: at home@sea",
    ],
)
def test_an_ordinary_source_is_none(address: str) -> None:
    assert not secret(address)
