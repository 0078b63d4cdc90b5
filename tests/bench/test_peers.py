"""What peers are sent and how they are compared; their servers are installed by `--peers` alone."""

import base64
import json
from email import message_from_bytes, policy

import msgspec
import pytest
import torch

from scripts.bench.peers import work
from scripts.bench.peers.run import PEERS, RATIOS, best
from scripts.bench.pictures import make_pictures

IMAGE = b"\xff\xd8\r\n--\x00"
BY_NAME = {peer.name: peer for peer in PEERS}


def test_each_is_sent_the_whole_image_in_its_form() -> None:
    assert BY_NAME["mosec"].body(IMAGE) == IMAGE
    sent = json.loads(BY_NAME["LitServe"].body(IMAGE))
    assert base64.b64decode(sent["image"]) == IMAGE
    form = BY_NAME["BentoML"]
    head = f"Content-Type: {form.content_type}\r\n\r\n".encode()
    [part] = message_from_bytes(head + form.body(IMAGE), policy=policy.HTTP).iter_parts()
    assert part.get_content_disposition() == "form-data"
    assert part.get_payload(decode=True) == IMAGE


def test_the_best_peer_has_the_highest_rate_and_the_lowest_of_all_else() -> None:
    fast = {"images/s": 9.0, "p50 ms": 5.0, "memory MB": 30.0}
    small = {"images/s": 8.0, "p50 ms": 6.0, "memory MB": 10.0}
    assert best([fast, small]) == {"images/s": 9.0, "p50 ms": 5.0, "memory MB": 10.0}


def test_ratios_are_of_cases_that_the_measure_has() -> None:
    assert {ratio.above[1].partition(":")[0] for ratio in RATIOS} == {
        "nothing, 1",
        "nothing, 32",
        "plain, 32",
        "same, 32",
    }


def test_work_without_a_model_answers_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEER_WORK", "nothing")
    nothing = work.make()
    assert nothing.run([nothing.decode(IMAGE), nothing.decode(IMAGE)]) == ["{}", "{}"]


def test_plain_torchvision_keeps_what_the_wish_keeps() -> None:
    """At most forty finds above its score, the best first."""
    plain = work.Plain.__new__(work.Plain)
    scores = torch.linspace(1, 0, 100)
    found = {"boxes": torch.zeros(100, 4), "labels": torch.ones(100), "scores": scores}
    vars(plain)["_network"] = lambda images: [found for _ in images]
    item = plain.decode(make_pictures(1)[0])
    assert item.shape == (3, 960, 1280)
    [text] = plain.run([item])
    kept = msgspec.json.decode(text)["scores"]
    assert len(kept) == 40
    assert kept == sorted(kept, reverse=True)
    assert min(kept) >= 0.3
