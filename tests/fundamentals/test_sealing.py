"""Who can read what."""

import pytest

from jobs.sealing import Capability, Payload, PrivateKey, SealError, open_result, seal_result


def test_a_capability_names_its_job_and_the_name_gives_nothing_away() -> None:
    """The id follows from the token; the token does not show in the id or in a repr."""
    capability = Capability.new()
    assert Capability.from_token(capability.token).id == capability.id
    assert capability.token not in repr(capability)
    assert Capability.new().id != capability.id


@pytest.mark.parametrize("token", ["", "short", "=" * 43, "ä" * 43, "A" * 42, "A" * 44, "A" * 86])
def test_a_token_is_43_characters_of_base64url(token: str) -> None:
    """Anything else is refused before it is used."""
    with pytest.raises(ValueError, match="32 bytes"):
        Capability.from_token(token)


def test_only_the_workers_read_an_image() -> None:
    """A payload opens with the workers' private key, and only for its own job."""
    key, capability = PrivateKey.new(), Capability.new()
    payload = Payload(capability.result_key, b"{}", {"image": b"pixels"}, 1)
    sealed = key.public.seal(capability.id, payload)
    assert b"pixels" not in sealed
    assert key.open(capability.id, sealed) == payload
    with pytest.raises(SealError):
        PrivateKey.new().open(capability.id, sealed)
    with pytest.raises(SealError):
        key.open(Capability.new().id, sealed)


def test_only_the_owner_reads_a_result() -> None:
    """A result opens with its capability's key, and only under its own id."""
    mine, other = Capability.new(), Capability.new()
    sealed = seal_result(mine.result_key, mine.id, b"annotations")
    assert open_result(mine.result_key, mine.id, sealed) == b"annotations"
    for capability, job_id in ((other, mine.id), (mine, other.id)):
        with pytest.raises(SealError):
            open_result(capability.result_key, job_id, sealed)
    with pytest.raises(SealError):
        open_result(mine.result_key, mine.id, sealed[:-1] + bytes([sealed[-1] ^ 1]))


def test_keys_do_not_show() -> None:
    """A key's repr holds its public id only."""
    key = PrivateKey.new()
    assert key.raw.hex() not in repr(key)
    assert repr(key.raw) not in repr(key)
