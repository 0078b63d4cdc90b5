"""`mayfly annotate` over folders, against a real service with a model that costs nothing."""

import asyncio
import io
import json
import signal
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from jobs.contract import Request
from scripts.cli import main
from tests.batch.conftest import BOX, NAMES, Annotate, coco, lines, mayfly, paint, start
from tests.fakes import Bright, Seen
from worker.models.base import Pixels


async def test_a_folder_becomes_a_coco_file(
    annotate: Annotate, pictures: Path, tmp_path: Path
) -> None:
    """Run again, nothing is sent; one more picture, and it alone is."""
    out = tmp_path / "found.json"
    arguments = (pictures, "--box", f"{BOX}:coin", "--format", "coco", "-o", out)
    ran = await annotate(*arguments)
    assert ran.code == 0, ran.err
    found = coco(out)
    assert sorted(found) == sorted(NAMES)
    assert [len(found[name]) for name in NAMES] == [1, 2, 3, 4, 1, 2, 3, 4]
    assert {label for finds in found.values() for label, _ in finds} == {"coin"}
    assert "found=20" in ran.err
    assert "each image is sent with an embedding of the examples" in ran.err
    whole = out.read_bytes()

    again = await annotate(*arguments)
    assert again.code == 0
    assert "8 of 8 images are finished" in again.err
    assert out.read_bytes() == whole

    paint(pictures / "8.png", 8)
    paint(pictures / "1.png", 3)  # a changed picture counts as new
    assert (await annotate(*arguments)).code == 0
    assert len(coco(out)["8.png"]) == 1
    assert len(coco(out)["1.png"]) == 4
    journal = list(lines(tmp_path / "found.json.journal.jsonl"))
    assert sorted(line["name"] for line in journal[9:]) == ["1.png", "8.png"]

    other = await annotate(pictures, "--box", "8,8,32,32:coin", "--format", "coco", "-o", out)
    assert other.code == 78
    assert "other prompts" in other.err


async def test_what_to_match_goes_with_each_image(
    annotate: Annotate, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []
    prepare = Bright.prepare

    def listening(model: Bright, images: Mapping[str, Pixels], request: Request) -> Seen:
        if request.task == "detect":
            asked.append((request.match, request.turned))
        return prepare(model, images, request)

    monkeypatch.setattr(Bright, "prepare", listening)
    for flags, expected in (
        ((), ("normal", True)),
        (("--match", "kind", "--upright"), ("kind", False)),
    ):
        ran = await annotate(pictures, "--box", BOX, *flags)
        assert ran.code == 0, ran.err
        assert asked == [expected] * len(NAMES)
        asked.clear()


async def test_failures_are_listed_and_tried_again(
    annotate: Annotate, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "1.png").write_bytes((pictures / "1.png").read_bytes()[:2000])
    (pictures / "2.png").write_bytes(b"GIF89a")
    out = tmp_path / "found.json"
    arguments = (pictures, "--box", f"{pictures / '0.png'}:{BOX}", "-o", out)
    ran = await annotate(*arguments)
    assert ran.code == 1
    failures = {
        line["image"]: line["code"] for line in lines(tmp_path / "found.json.failures.jsonl")
    }
    assert set(failures) == {"1.png", "2.png"}
    assert failures["1.png"] == "image_undecodable"
    assert len(json.loads(out.read_text())) == 6

    for number in (1, 2):
        paint(pictures / f"{number}.png", number)
    assert (await annotate(*arguments)).code == 0
    assert not (tmp_path / "found.json.failures.jsonl").exists()
    assert sorted(json.loads(out.read_text())) == sorted(NAMES)


async def test_archives_and_lists_find_the_same(
    annotate: Annotate, pictures: Path, tmp_path: Path
) -> None:
    """However the same pictures are named."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in NAMES:
            archive.write(pictures / name, name)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(pictures, "")
    results = []
    listed = "".join(f"{pictures / name}\n" for name in NAMES)
    box = f"{pictures / '0.png'}:{BOX}:coin"
    for path, stdin, more in (
        (tmp_path / "a.zip", "", []),
        (tmp_path / "a.tar.gz", "", ["--seal"]),  # and sealed before they leave
        ("-", listed, []),
    ):
        ran = await annotate(path, "--box", box, "--format", "csv", *more, stdin=stdin)
        assert ran.code == 0, ran.err
        results.append(ran.out)
    assert results[0].startswith("image,label,score,x0,y0,x1,y1")
    assert results[0].count("\n") == 21
    assert set(results) == {results[0]}
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "a.zip", "a.tar.gz"}


async def test_prompts_from_a_file_and_from_existing_labels(
    annotate: Annotate, pictures: Path, tmp_path: Path
) -> None:
    prompts = [
        {"type": "box", "box": [8, 8, 24, 24], "label": "nut", "image": "pictures/0.png"},
        {"type": "point", "point": [8, 8], "label": "bolt", "image": "pictures/1.png"},
        {"type": "box", "box": [8, 8, 24, 24], "negative": True, "image": "pictures/1.png"},
    ]
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"prompts": prompts}))
    out = tmp_path / "found.json"
    ran = await annotate(pictures, "--prompts", path, "--format", "coco", "-o", out)
    assert ran.code == 0, ran.err
    assert [each["name"] for each in json.loads(out.read_text())["categories"]] == ["nut", "bolt"]

    data = json.loads(out.read_text())
    kept = {"0.png", "more/7.jpg"}
    data["images"] = [each for each in data["images"] if each["file_name"] in kept]
    ids = {each["id"] for each in data["images"]}
    data["annotations"] = [each for each in data["annotations"] if each["image_id"] in ids]
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(data))
    rest = tmp_path / "rest.json"
    ran = await annotate(pictures, "--from-labels", labels, "--format", "coco", "-o", rest)
    assert ran.code == 0, ran.err
    assert set(coco(rest)) == set(NAMES) - kept
    assert {label for finds in coco(rest).values() for label, _ in finds} == {"nut"}


async def test_dry_run_limit_and_preview(
    annotate: Annotate, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    arguments = (pictures, "--box", BOX, "--format", "voc", "-o", out)
    ran = await annotate(*arguments, "--dry-run")
    assert ran.code == 0
    assert "images     8" in ran.out
    assert "passed by  2" in ran.out
    assert not out.exists()

    ran = await annotate(*arguments, "--limit", "3", "--preview", "2")
    assert ran.code == 0, ran.err
    assert len(list((out / "Annotations").iterdir())) == 3
    drawn = sorted((out / "preview").iterdir())
    assert [path.name for path in drawn] == ["0.png.png", "1.png.png"]
    with Image.open(drawn[0]) as picture:
        assert picture.size == (160, 120)


async def test_watching_a_folder_until_ctrl_c(url: str, pictures: Path, tmp_path: Path) -> None:
    """A picture that is still being written is left until it is whole."""
    out = tmp_path / "found.json"
    process = await start("annotate", pictures, "--box", BOX, "-o", out, "--watch", "--server", url)
    journal = tmp_path / "found.json.journal.jsonl"
    await _until(lambda: journal.exists() and len(list(lines(journal))) == 9)
    whole = io.BytesIO()
    Image.open(pictures / "5.png").save(whole, "PNG")
    with (pictures / "late.png").open("wb") as file:
        for at in range(0, len(whole.getvalue()), 15_000):
            file.write(whole.getvalue()[at : at + 15_000])
            file.flush()
            await asyncio.sleep(0.4)
    await _until(lambda: len(list(lines(journal))) == 10)
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, err
    assert "late.png" in json.loads(out.read_text())
    assert not (tmp_path / "found.json.failures.jsonl").exists()


async def _until(ready) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(20):
        while not ready():
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere.png", "--box", BOX], "nowhere.png is not a file"),
        ([__file__, "--box", "1,2,3"], "A box is [IMAGE:]X0,Y0,X1,Y1[:LABEL]"),
        ([__file__, "--box", "9,9,3,3"], "x0 < x1"),
        ([__file__, "--point", "1"], "A point is"),
        ([__file__, "--box", "nowhere.png:1,2,3,4"], "nowhere.png is not a file"),
        ([__file__, "--box", BOX, "--server", "http://127.0.0.1:9"], "No service answers at"),
        ([__file__, "--box", BOX, "--format", "yolo"], "-o"),
        ([__file__, "--box", BOX, "--split", "2", "-o", "x"], "--split"),
        ([__file__, "--box", BOX, "--server", "http://127.0.0.1:9", "--seal", "x"], "sealing key"),
        ([__file__, "--prompts", __file__], "cannot be read as JSON"),
    ],
)
def test_a_wrong_call_says_what_to_do(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["annotate", *arguments]) == 78
    assert told in capsys.readouterr().err


async def test_a_service_that_cannot_be_trusted_is_told_at_once(url: str, pictures: Path) -> None:
    wrong = url.replace("http://", "https://")
    ran = await mayfly("annotate", pictures, "--box", BOX, "--server", wrong)
    assert ran.code == 78
    assert f"{wrong} cannot be used. TLS with the service fails" in ran.err


async def test_what_the_model_cannot_do_is_told_before_anything_is_sent(
    annotate: Annotate, pictures: Path, tmp_path: Path
) -> None:
    ran = await annotate(pictures)
    assert ran.code == 78
    assert "needs to be told what to look for" in ran.err
    paint(pictures / "0.jpg", 1)
    ran = await annotate(pictures, "--box", BOX, "--format", "yolo", "-o", tmp_path / "set")
    assert "0.jpg and 0.png would share one file" in ran.err
